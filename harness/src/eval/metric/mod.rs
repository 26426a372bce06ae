//! Metrics: what each one measures, which part of the text it reads, which direction is better, and
//! how the value of a corpus comes from its items.
//!
//! Two families share one registry:
//!
//! - **Karat's own**, with short names (`nll_answer`, `rougeL`, `exact_match`, `key_points`, ...).
//!   Text metrics read the *answer* alone, the reasoning being split off by state ([`think`]): an
//!   unclosed reasoning has an empty answer, and scores as one. White space is no token.
//! - **The Python packages'**, under the names of [`conformance`] (`nltk_bleu_jieba.m4`,
//!   `rouge_raw.rouge-l.f`, `sacrebleu.zh.score`, ...). They read the *whole text*, reasoning and
//!   tags included, as the published comparisons do, digit for digit and trap for trap; see each
//!   module for what is wrong with them.
//!
//! `bleu` is sacrebleu's `zh` tokenizer with effective order and `exp` smoothing, in percent,
//! averaged over items; print [`sacrebleu::signature`] beside it. `rouge1`, `rouge2` and `rougeL`
//! are F1 of clipped character counts ([`rouge`]).

mod choices;
pub mod chrf;
pub mod conformance;
pub mod corpus;
mod decisions;
mod definition;
mod diversity;
pub mod exact;
mod form;
pub mod jieba;
pub mod key_points;
pub mod lcs;
pub mod likelihood;
pub mod nltk_bleu;
pub mod porter;
pub mod python;
pub mod quantities;
pub mod registry;
pub mod repetition;
pub mod rouge;
pub mod rouge_package;
pub mod rouge_score;
pub mod sacrebleu;
pub mod sacrebleu_tokenizers;
mod sample;
mod signature;
pub mod ter;
pub mod tokens;
pub mod vocabulary;

mod evaluate;

pub use definition::{Asks, Corpus, Direction, MetricDef, Reads};
pub use evaluate::{Bounds, aggregate, aggregate_with_interval, bounds, evaluate, evaluate_by, weight};
pub use registry::{info, registry};
pub use signature::signature;

use crate::eval::{Item, Prediction, think};
use crate::{Error, Result, nearest};

/// One row of `karat metrics`: the package metrics of a pair of texts under their conformance
/// names, nested; all of them, or those that `names` lists (a group such as `rouge_jieba`, or a
/// path such as `rouge_jieba.rouge-l.f`).
///
/// # Errors
/// Usage, for a name that does not exist.
pub fn conformance_row(reference: &str, candidate: &str, names: &[String]) -> Result<serde_json::Value> {
    conformance::Texts::new(reference, candidate).row(names)
}

/// [`conformance_row`] that also knows Karat's own metrics of texts (`rougeL`, `key_points`, ...),
/// under the names that suites have: the reference's and the candidate's reasoning are split off as
/// they are in a suite. A name that both have (`exact_match`) is the package's.
///
/// # Errors
/// Usage, for a name that does not exist, or one of a metric that needs more than two texts.
pub fn pair_row(reference: &str, candidate: &str, names: &[String]) -> Result<serde_json::Value> {
    let group = |name: &str| name.split('.').next().unwrap_or_default().to_string();
    let (packages, own): (Vec<String>, Vec<String>) =
        names.iter().cloned().partition(|name| conformance::GROUPS.contains(&group(name).as_str()));
    if own.is_empty() {
        return conformance_row(reference, candidate, names);
    }
    for name in &own {
        let Some(metric) = info(name) else {
            let all = registry().iter().map(|m| m.name).chain(conformance::GROUPS.iter().copied());
            return Err(unknown_name(name, all));
        };
        if matches!(metric.reads, Reads::Stop | Reads::Reference | Reads::Options) {
            return Err(Error::usage(format!("the metric `{name}` needs a model, not two texts"))
                .help("evaluate one with it: karat eval SUITE, with the metric in eval.metrics"));
        }
    }
    let mut row = match packages.is_empty() {
        true => serde_json::json!({}),
        false => conformance_row(reference, candidate, &packages)?,
    };
    let parts = think::split(reference);
    let item = Item {
        id: String::new(),
        question: String::new(),
        think: parts.think.to_string(),
        answer: parts.answer.to_string(),
        cluster: String::new(),
        choice: None,
        decision: None,
    };
    let prediction = Prediction { id: String::new(), text: candidate.to_string(), ids: None, stop: None };
    for (name, value) in evaluate(&own, &item, &prediction, None)? {
        row[name] = value.into();
    }
    Ok(row)
}

/// Whether all names are registered.
///
/// # Errors
/// Usage, for the first that is not, with the names nearest to it.
pub fn check_names(names: &[String]) -> Result<()> {
    match names.iter().find(|name| info(name).is_none()) {
        Some(name) => Err(unknown_name(name, registry().iter().map(|metric| metric.name))),
        None => Ok(()),
    }
}

/// The error for a metric that does not exist: with the names nearest to it.
fn unknown_name<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Error {
    let mut near: Vec<(usize, &str)> = known.into_iter().map(|k| (nearest::distance(name, k), k)).collect();
    near.sort_unstable();
    let near: Vec<&str> = near.into_iter().take(4).map(|(_, known)| known).collect();
    Error::usage(format!("there is no metric `{name}`")).help(format!("did you mean {}?", near.join(", ")))
}
