//! Loops: generation that repeats itself.

use super::definition::{Direction, MetricDef, Reads, SHARE};
use super::python;
use super::sample::flag;
use super::tokens;

/// Shortest stretch, in characters, that counts as a loop.
const SHORTEST: usize = 24;
/// Copies of the unit in a row that make a loop.
const COPIES: usize = 4;
/// Longest unit looked for, in characters.
const LONGEST_UNIT: usize = 200;

/// Whether `text` runs in a loop anywhere: a unit of at most 200 characters repeated at least 4
/// times in a row, over at least 24 characters. White space is skipped; a unit without a letter or
/// digit (a ruled line, dots) is none.
///
/// Costs one pass a unit length: 200 times the text.
pub fn has_loop(text: &str) -> bool {
    let chars: Vec<char> = python::visible(text).collect();
    let longest = LONGEST_UNIT.min(chars.len() / COPIES);
    // Letters and digits before each place: whether a unit has one, at the price of a subtraction.
    let mut said = vec![0u32];
    said.extend(chars.iter().scan(0, |n, c| {
        *n += u32::from(c.is_alphanumeric());
        Some(*n)
    }));
    (1..=longest).any(|unit| {
        let needed = ((COPIES - 1) * unit).max(SHORTEST.saturating_sub(unit));
        let mut run = 0;
        (unit..chars.len()).any(|at| {
            run = if chars[at] == chars[at - unit] { run + 1 } else { 0 };
            run >= needed && said[at + 1] > said[at + 1 - unit]
        })
    })
}

/// Share of 4-grams (of characters, white space skipped) that occurred before: `1 - distinct-4`,
/// "seq-rep-4" of Welleck et al. 2020. `None` for a text of fewer than 4 characters.
pub fn repeated_4_grams(text: &str) -> Option<f64> {
    let chars: Vec<char> = python::visible(text).collect();
    tokens::distinct(&chars, 4).map(|distinct| 1.0 - distinct)
}

/// Metrics of this file.
pub(super) const METRICS: &[MetricDef] = &[
    MetricDef::of("repetition", SHARE, Direction::Lower, Reads::FullText, "texts that run in a loop", |s| {
        flag(has_loop(&s.prediction.text))
    })
    .titled("Loops", "循环重复率")
    .yes_or_no(),
    MetricDef::of(
        "repeated_4grams",
        SHARE,
        Direction::Lower,
        Reads::FullText,
        "4-grams of characters that occurred before in the text",
        |s| repeated_4_grams(&s.prediction.text),
    )
    .titled("Repeated 4-grams", "重复四元组"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_found_and_ordinary_text_and_rules_are_not_loops() {
        assert!(has_loop(&"患者".repeat(20)));
        assert!(has_loop(&format!("首先，{}", "需要检查血压。\n".repeat(5))));
        assert!(!has_loop(&"需要检查血压。".repeat(3)), "three copies are emphasis");
        assert!(!has_loop(&"-".repeat(80)));
        assert!(!has_loop(&"-".repeat(1 << 20)), "also a rule of a megabyte, in time");
        assert!(!has_loop("患者应注意休息，多饮水。如果体温超过38.5℃，可以口服布洛芬。"));
        assert!(!has_loop("哈哈哈哈哈哈"), "short");
        assert!(!has_loop(""));
    }
}
