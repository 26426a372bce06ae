//! The settings of a run as trackers keep them: without secrets, and without places of this machine.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::run::comparable;
use crate::suite::Suite;

/// Parts of the names of keys whose values nobody else may see.
const SECRET: [&str; 7] = ["token", "secret", "password", "passwd", "api_key", "apikey", "credential"];

/// A suite as an object; files by their names alone.
///
/// # Errors
/// If the suite has no form as TOML.
pub(super) fn of_suite(suite: &Suite) -> Result<Value> {
    let broken = |what: &str| Error::failed(format!("could not write the suite as {what}"));
    let table: toml::Table = toml::from_str(&comparable(suite)?).map_err(|e| broken("TOML").because(e))?;
    serde_json::to_value(table).map_err(|e| broken("JSON").because(e))
}

/// What trackers keep of a model: the suite's settings, and those of its training.
pub(super) fn config(suite: Option<&Value>, training: Option<&BTreeMap<String, String>>) -> Value {
    let mut config = Map::new();
    config.insert("karat".into(), env!("CARGO_PKG_VERSION").into());
    if let Some(suite) = suite {
        config.insert("suite".into(), suite.clone());
    }
    if let Some(training) = training {
        // They are numbers and lists where they are not words.
        let read = |text: &String| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text.as_str()));
        config.insert("training".into(), training.iter().map(|(key, text)| (key.clone(), read(text))).collect());
    }
    let mut config = Value::Object(config);
    let home = std::env::var("HOME").ok().filter(|home| home.len() > 1);
    redact(&mut config, home.as_deref());
    config
}

fn redact(value: &mut Value, home: Option<&str>) {
    match value {
        Value::Object(table) => {
            for (key, value) in table {
                let key = key.to_ascii_lowercase();
                match value.is_string() && SECRET.iter().any(|part| key.contains(part)) {
                    true => *value = "***".into(),
                    false => redact(value, home),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| redact(value, home)),
        Value::String(text) => {
            if let Some(home) = home.filter(|home| text.contains(*home)) {
                *text = text.replace(home, "~");
            }
            // `scheme://user:secret@host`
            if let Some((scheme, rest)) = text.split_once("://")
                && let Some((user, host)) = rest.split_once('@')
                && !user.contains('/')
            {
                *text = format!("{scheme}://***@{host}");
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_and_homes_stay_here() {
        let mut value = json!({
            "hub_token": "hf_abc", "max_new_tokens": 8, "stop": ["a"],
            "options": {"library": "/home/me/lib.so", "url": "https://me:pw@host/x", "API_KEY": "k"},
        });
        redact(&mut value, Some("/home/me"));
        let expected = json!({
            "hub_token": "***", "max_new_tokens": 8, "stop": ["a"],
            "options": {"library": "~/lib.so", "url": "https://***@host/x", "API_KEY": "***"},
        });
        assert_eq!(value, expected);
    }
}
