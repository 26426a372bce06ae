//! Numbers as people read them; the same digits on every machine.

use super::model::{Metric, MetricComparison, MetricValue};

/// What stands for a value that is undefined.
pub(super) const UNDEFINED: &str = "–";

/// `x` with `decimals` digits and a true minus sign; never `-0.00`.
pub(super) fn fixed(x: f64, decimals: usize) -> String {
    let text = format!("{x:.decimals$}");
    match text.strip_prefix('-') {
        Some(digits) if digits.chars().any(|c| ('1'..='9').contains(&c)) => format!("−{digits}"),
        Some(digits) => digits.to_string(),
        None => text,
    }
}

/// The same with a plus sign where it is positive.
pub(super) fn signed(x: f64, decimals: usize) -> String {
    let text = fixed(x, decimals);
    if x > 0.0 && text.chars().any(|c| ('1'..='9').contains(&c)) { format!("+{text}") } else { text }
}

/// `+12.3 %`; the difference itself, without a percent sign, where the baseline is 0, or is printed
/// as 0, and has no percentage.
pub(super) fn improvement(metric: &Metric, c: &MetricComparison) -> String {
    let from_zero =
        c.mean_baseline.is_some_and(|x| !fixed(x, metric.decimals).contains(|c: char| c.is_ascii_digit() && c != '0'));
    match (c.improvement_percent, c.difference) {
        (_, Some(d)) if from_zero => signed(d, metric.decimals),
        // A baseline next to zero gives percentages that say nothing but "much".
        (Some(x), _) if x.abs() >= 1000.0 => format!("{} %", if x > 0.0 { ">+999" } else { "<−999" }),
        (Some(x), _) => format!("{} %", signed(x, 1)),
        (None, _) => UNDEFINED.to_string(),
    }
}

/// `1.5e−6`, and `0` for nothing at all.
pub(super) fn scientific(x: f64) -> String {
    if x == 0.0 { "0".to_string() } else { format!("{x:.1e}").replace('-', "−") }
}

/// A share in percent.
pub(super) fn percent(x: f64) -> String {
    format!("{} %", fixed(100.0 * x, 1))
}

/// `<0.001` or three decimals.
pub(super) fn p_value(p: Option<f64>) -> String {
    match p {
        Some(p) if p < 0.001 => "<0.001".to_string(),
        Some(p) => fixed(p, 3),
        None => UNDEFINED.to_string(),
    }
}

/// The value of a table's cell.
pub(super) fn value(metric: &Metric, value: &MetricValue) -> String {
    value.value.map_or_else(|| UNDEFINED.to_string(), |x| fixed(x, metric.decimals))
}

/// Half the width of the interval.
pub(super) fn plus_minus(metric: &Metric, value: &MetricValue) -> Option<String> {
    Some(format!("±{}", fixed((value.ci_high? - value.ci_low?) / 2.0, metric.decimals)))
}

/// `+0.123 [+0.100, +0.150]`; the difference alone where there is no interval.
pub(super) fn difference(metric: &Metric, c: &MetricComparison) -> String {
    match (c.difference, c.ci_low, c.ci_high) {
        (Some(d), Some(low), Some(high)) => format!(
            "{} [{}, {}]",
            signed(d, metric.decimals),
            signed(low, metric.decimals),
            signed(high, metric.decimals)
        ),
        (Some(d), ..) => signed(d, metric.decimals),
        (None, ..) => UNDEFINED.to_string(),
    }
}

/// `12,345,678`.
pub(super) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(c);
    }
    text
}

/// `1 h 02 min`, `3 min 20 s`, `4.2 s`.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{} s", fixed(s, 1)),
        s if s < 3600.0 => format!("{} min {:02} s", (s / 60.0).floor(), (s % 60.0).floor()),
        s => format!("{} h {:02} min", (s / 3600.0).floor(), (s % 3600.0 / 60.0).floor()),
    }
}

/// `1.4 GiB`.
pub(super) fn bytes(n: u64) -> String {
    let n = n as f64;
    if n >= 1024.0 * 1024.0 * 1024.0 {
        format!("{} GiB", fixed(n / 1024.0 / 1024.0 / 1024.0, 2))
    } else if n >= 1024.0 * 1024.0 {
        format!("{} MiB", fixed(n / 1024.0 / 1024.0, 0))
    } else {
        format!("{} KiB", fixed(n / 1024.0, 0))
    }
}

/// The first twelve digits of a hash, enough to tell two apart.
pub(super) fn short_hash(hash: &str) -> &str {
    match hash.char_indices().nth(12) {
        Some((end, _)) => &hash[..end],
        None if hash.is_empty() => UNDEFINED,
        None => hash,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_has_no_sign() {
        assert_eq!(fixed(-0.0004, 3), "0.000");
        assert_eq!(signed(0.0004, 3), "0.000");
        assert_eq!(signed(-0.04, 2), "−0.04");
        assert_eq!(signed(0.04, 2), "+0.04");
    }

    #[test]
    fn digits_are_grouped_by_thousands() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1000), "1,000");
        assert_eq!(grouped(12_345_678), "12,345,678");
    }

    #[test]
    fn tiny_p_values_are_bounded_not_zero() {
        assert_eq!(p_value(Some(0.0001)), "<0.001");
        assert_eq!(p_value(Some(0.0421)), "0.042");
        assert_eq!(p_value(None), UNDEFINED);
    }
}
