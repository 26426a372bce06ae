//! Which choices are behind a score that sacrebleu also has.

use super::sacrebleu_tokenizers::BleuTokenizer;
use super::{chrf, sacrebleu, ter};

/// The signature that sacrebleu prints beside the scores of the named metric; `None` for metrics
/// that are not sacrebleu's, and for BLEU by a tokenizer that does not exist.
///
/// ```
/// # use karat::eval::metric::signature;
/// assert_eq!(signature("bleu").unwrap(), "nrefs:1|case:mixed|eff:yes|tok:zh|smooth:exp|version:2.6.0");
/// ```
pub fn signature(name: &str) -> Option<String> {
    let mut path = name.split('.');
    let group = path.next()?;
    let mut bleu = |effective_order| {
        let tokenizer = path.next()?;
        let tokenizer = BleuTokenizer::ALL.into_iter().find(|t| t.name() == tokenizer)?;
        Some(sacrebleu::signature(tokenizer, effective_order))
    };
    match group {
        "bleu" => Some(sacrebleu::signature(BleuTokenizer::Zh, true)),
        "sacrebleu" => bleu(false),
        "sacrebleu_eff" => bleu(true),
        "chrf" => Some(chrf::signature(0)),
        "chrfpp" => Some(chrf::signature(2)),
        "ter" => Some(ter::signature(false)),
        "ter_asian_normalized" => Some(ter::signature(true)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::metric::registry;

    #[test]
    fn every_number_of_sacrebleu_and_no_other_has_a_signature() {
        for metric in registry() {
            let group = metric.name.split('.').next().unwrap_or_default();
            let theirs = ["bleu", "sacrebleu", "sacrebleu_eff", "chrf", "chrfpp", "ter", "ter_asian_normalized"];
            assert_eq!(signature(metric.name).is_some(), theirs.contains(&group), "{}", metric.name);
        }
        let of = |name: &str| signature(name).unwrap_or_default();
        assert!(of("sacrebleu.13a.score").contains("|eff:no|tok:13a|"), "{}", of("sacrebleu.13a.score"));
        assert!(of("sacrebleu_eff.char").contains("|eff:yes|tok:char|"));
        assert!(of("chrfpp").contains("|nw:2|") && of("ter_asian_normalized").contains("|asian:yes|"));
    }
}
