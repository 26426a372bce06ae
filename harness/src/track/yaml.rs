//! Settings as YAML that every reader takes for what they are.

use serde_json::Value;

/// The `config.yaml` of a SwanLab run: each key of the object `config` with its value and place.
pub(super) fn config(config: &Value) -> String {
    let keys = config.as_object().into_iter().flatten().enumerate();
    keys.map(|(sort, (key, value))| format!("{}:\n  value: {}\n  desc: ''\n  sort: {sort}\n", text(key), flow(value)))
        .collect()
}

/// A value in flow style, on one line.
fn flow(value: &Value) -> String {
    match value {
        Value::Number(number) => float(&number.to_string()),
        Value::String(value) => text(value),
        Value::Array(values) => format!("[{}]", values.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(values) => {
            let pairs = values.iter().map(|(key, value)| format!("{}: {}", text(key), flow(value)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// JSON's texts are YAML's.
fn text(value: &str) -> String {
    Value::from(value).to_string()
}

/// YAML 1.1 takes a number with an exponent for a text unless it has a point and a sign.
fn float(number: &str) -> String {
    let Some((mantissa, exponent)) = number.split_once('e') else { return number.into() };
    let point = if mantissa.contains('.') { "" } else { ".0" };
    let sign = if exponent.starts_with(['-', '+']) { "" } else { "+" };
    format!("{mantissa}{point}e{sign}{exponent}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_number_stays_a_number_and_chinese_stays_readable() {
        let value = serde_json::json!({"suite": {"eps": 1e-12, "huge": 1e20, "r": 8, "on": true}, "系统": ["医学\n\"专家\"", null]});
        assert_eq!(
            config(&value),
            "\"suite\":\n  value: {\"eps\": 1.0e-12, \"huge\": 1.0e+20, \"r\": 8, \"on\": true}\n  desc: ''\n  sort: 0\n\
             \"系统\":\n  value: [\"医学\\n\\\"专家\\\"\", null]\n  desc: ''\n  sort: 1\n"
        );
    }
}
