//! Which items went from right to wrong, and which back: what a mean over items hides.
//!
//! What "right" is, a metric says itself
//! ([`MetricDef::is_right`](super::metric::MetricDef::is_right)): 1 of a yes-or-no metric, all key
//! points made. A metric that only grades (BLEU, log-likelihood) has no flips.

use serde::{Deserialize, Serialize};

use super::metric;

/// What became of the items between two models, by one metric.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flips {
    /// Ids of the items that the baseline had right and the candidate has wrong, in the order of
    /// the items.
    pub right_to_wrong: Vec<String>,
    /// Ids of the items that the baseline had wrong and the candidate has right.
    pub wrong_to_right: Vec<String>,
    /// Items that both have right.
    pub both_right: usize,
    /// Items that both have wrong.
    pub both_wrong: usize,
    /// Items left out because a side has no value.
    pub undecided: usize,
}

/// Whether an item with this value of the metric is right; `None` if there is no value, the metric
/// has no notion of right, or there is no such metric.
pub fn is_right(name: &str, value: Option<f64>) -> Option<bool> {
    metric::info(name)?.is_right(value?)
}

/// The flips of `name` over `(id, baseline, candidate)`; `None` if the metric has no notion of
/// right.
pub fn flips<'a>(name: &str, items: impl IntoIterator<Item = (&'a str, Option<f64>, Option<f64>)>) -> Option<Flips> {
    metric::info(name)?.right_from?;
    let mut flips = Flips::default();
    for (id, baseline, candidate) in items {
        match (is_right(name, baseline), is_right(name, candidate)) {
            (Some(true), Some(true)) => flips.both_right += 1,
            (Some(false), Some(false)) => flips.both_wrong += 1,
            (Some(true), Some(false)) => flips.right_to_wrong.push(id.to_string()),
            (Some(false), Some(true)) => flips.wrong_to_right.push(id.to_string()),
            _ => flips.undecided += 1,
        }
    }
    Some(flips)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flips_follow_the_direction_of_the_metric_and_grades_have_none() {
        let items = [
            ("a", Some(1.0), Some(0.5)),
            ("b", Some(0.0), Some(1.0)),
            ("c", Some(1.0), Some(1.0)),
            ("d", Some(0.9), Some(0.0)),
            ("e", None, Some(1.0)),
        ];
        let found = flips("key_points", items).expect("it has a notion of right");
        assert_eq!(found.right_to_wrong, ["a"]);
        assert_eq!(found.wrong_to_right, ["b"]);
        assert_eq!((found.both_right, found.both_wrong, found.undecided), (1, 1, 1));
        // Of contradictions none is right.
        let found = flips("contradictions", items).expect("it has a notion of right");
        assert_eq!((found.right_to_wrong, found.wrong_to_right), (vec!["b".to_string()], vec!["d".to_string()]));
        assert_eq!(flips("rougeL", items), None);
        assert_eq!(is_right("exact_match", Some(1.0)), Some(true));
        assert_eq!(is_right("exact_match", None), None);
    }
}
