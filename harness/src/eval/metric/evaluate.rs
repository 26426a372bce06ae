//! From an item, its prediction and the reference's log-probabilities to values; from values to a corpus.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use super::conformance::Texts;
use super::key_points::{self, KeyPoints, Statements};
use super::sacrebleu::Counts;
use super::sacrebleu_tokenizers::Tokenizer;
use super::tokens::{TokenPair, distinct};
use super::{Corpus, MetricInfo, exact, info, jieba, likelihood, python, registry, repetition, rouge, vocabulary};
use crate::Result;
use crate::backend::StopReason;
use crate::eval::choice::{self, Choice, Normalisation};
use crate::eval::stats::{Interval, StatsOptions, bootstrap_ratio_ci, by_cluster};
use crate::eval::think::{self, Parts, ThinkState, ThinkTags};
use crate::eval::{Item, ItemResult, PartScore, Prediction, ReferenceScore};

/// The values of the named metrics on one item. `None` is "undefined here": no reference part to compare with, no tokens, no
/// `reference` score given, or an exception in the package that is reproduced.
///
/// # Errors
/// Usage, for a name that is not in the registry, with the names nearest to it.
pub fn evaluate(
    names: &[String],
    item: &Item,
    prediction: &Prediction,
    reference: Option<&ReferenceScore>,
) -> Result<BTreeMap<String, Option<f64>>> {
    evaluate_by(&ThinkTags::default(), names, item, prediction, reference)
}

/// [`evaluate`], with reasoning told from answers by `tags`.
///
/// # Errors
/// As there.
pub fn evaluate_by(
    tags: &ThinkTags,
    names: &[String],
    item: &Item,
    prediction: &Prediction,
    reference: Option<&ReferenceScore>,
) -> Result<BTreeMap<String, Option<f64>>> {
    let context = Context::new(tags, item, prediction, reference);
    let full = think::join(&item.think, &item.answer);
    let full = Texts::new(&full, &prediction.text);
    let mut values = BTreeMap::new();
    for name in names {
        let metric = declared(name)?;
        let value = match context.own(metric.name) {
            Some(value) => value,
            None => full.number(metric.name)?,
        };
        values.insert(name.clone(), value);
    }
    Ok(values)
}

fn declared(name: &str) -> Result<&'static MetricInfo> {
    info(name).ok_or_else(|| super::unknown_name(name, registry().iter().map(|metric| metric.name)))
}

/// One item, with what several metrics need computed once.
struct Context<'a> {
    tags: &'a ThinkTags,
    item: &'a Item,
    prediction: &'a Prediction,
    reference: Option<&'a ReferenceScore>,
    parts: Parts<'a>,
    characters: OnceCell<rouge::Rouge>,
    words: OnceCell<TokenPair>,
    answer_points: OnceCell<[KeyPoints; 2]>,
    think_points: OnceCell<[KeyPoints; 2]>,
}

impl<'a> Context<'a> {
    fn new(
        tags: &'a ThinkTags,
        item: &'a Item,
        prediction: &'a Prediction,
        reference: Option<&'a ReferenceScore>,
    ) -> Self {
        Context {
            tags,
            item,
            prediction,
            reference,
            parts: tags.split(&prediction.text),
            characters: OnceCell::new(),
            words: OnceCell::new(),
            answer_points: OnceCell::new(),
            think_points: OnceCell::new(),
        }
    }

    fn reference_answer(&self) -> &'a str {
        python::strip(&self.item.answer)
    }

    fn reference_think(&self) -> &'a str {
        python::strip(&self.item.think)
    }

    fn characters(&self) -> &rouge::Rouge {
        self.characters.get_or_init(|| rouge::score(&visible_characters(self.reference_answer(), self.parts.answer)))
    }

    fn words(&self) -> &TokenPair {
        self.words.get_or_init(|| {
            let words = |text: &'a str| jieba::segment(text, true).into_iter().filter(|w| !python::strip(w).is_empty());
            TokenPair::new(words(self.reference_answer()), words(self.parts.answer))
        })
    }

    /// Recall, then precision.
    fn answer_points(&self) -> &[KeyPoints; 2] {
        self.answer_points.get_or_init(|| key_points(self.reference_answer(), self.parts.answer))
    }

    fn think_points(&self) -> &[KeyPoints; 2] {
        self.think_points.get_or_init(|| key_points(self.reference_think(), self.parts.think))
    }

    /// The value of one of Karat's own metrics; `None` if it is not one.
    fn own(&self, name: &str) -> Option<Option<f64>> {
        let part = |of: fn(&ReferenceScore) -> PartScore| self.reference.map(of);
        let whole = || part(likelihood::whole);
        let answered = |value: &dyn Fn() -> f64| (!self.reference_answer().is_empty()).then(value);
        let reasoned = |value: &dyn Fn() -> f64| (!self.reference_think().is_empty()).then(value);
        let flag = |is: bool| Some(f64::from(u8::from(is)));
        let value = match name {
            "nll" => whole().as_ref().and_then(likelihood::nll),
            "nll_think" => part(|r| r.think).as_ref().and_then(likelihood::nll),
            "nll_answer" => part(|r| r.answer).as_ref().and_then(likelihood::nll),
            "perplexity" => whole().as_ref().and_then(likelihood::nll).map(f64::exp),
            "bits_per_byte" => whole().as_ref().and_then(likelihood::bits_per_byte),
            "greedy_share" => whole().as_ref().and_then(likelihood::greedy_share),
            "bleu" => answered(&|| {
                Counts::of(self.reference_answer(), self.parts.answer, Tokenizer::Zh).score(true).score.min(100.0)
            }),
            "rouge1" => answered(&|| self.characters().rouge1.f1),
            "rouge2" => answered(&|| self.characters().rouge2.f1),
            "rougeL" => answered(&|| self.characters().rouge_l.f1),
            "rouge1_jieba" => answered(&|| rouge::score(self.words()).rouge1.f1),
            "rouge2_jieba" => answered(&|| rouge::score(self.words()).rouge2.f1),
            "rougeL_jieba" => answered(&|| rouge::score(self.words()).rouge_l.f1),
            "think_rougeL" => {
                reasoned(&|| rouge::score(&visible_characters(self.reference_think(), self.parts.think)).rouge_l.f1)
            }
            "vocab_precision" => answered(&|| vocabulary::vocabulary(self.words()).precision),
            "vocab_recall" => answered(&|| vocabulary::vocabulary(self.words()).recall),
            "vocab_f1" => answered(&|| vocabulary::vocabulary(self.words()).f1),
            "exact_match" => {
                answered(&|| f64::from(u8::from(exact::exact_match(self.reference_answer(), self.parts.answer))))
            }
            "acc" => self.accuracy(Normalisation::Raw),
            "acc_norm" => self.accuracy(Normalisation::Characters),
            "acc_bytes" => self.accuracy(Normalisation::Bytes),
            "acc_extracted" => self.item.choice.as_ref().and_then(|c| flag(self.extracted(c) == Some(c.gold))),
            "unparsed" => self.item.choice.as_ref().and_then(|c| flag(self.extracted(c).is_none())),
            "key_points" => self.answer_points()[0].share_made(),
            "key_points_precision" => self.answer_points()[1].share_made(),
            "think_key_points" => self.think_points()[0].share_made(),
            "think_key_points_precision" => {
                self.think_points()[1].share_made().filter(|_| !self.reference_think().is_empty())
            }
            "contradictions" => self.answer_points()[0].share_contradicted(),
            "format" => flag(self.well_formed()),
            "truncated" => flag(matches!(self.prediction.stop, StopReason::Length | StopReason::Context)),
            "repetition" => flag(repetition::has_loop(&self.prediction.text)),
            "repeated_4grams" => repetition::repeated_4_grams(&self.prediction.text),
            "distinct1" => distinct(&self.words().candidate, 1),
            "distinct2" => distinct(&self.words().candidate, 2),
            "length_ratio" => {
                let visible = |text| python::visible(text).count() as f64;
                answered(&|| visible(self.parts.answer) / visible(self.reference_answer()))
            }
            "generated_tokens" => Some(self.prediction.ids.len() as f64),
            _ => return None,
        };
        Some(value)
    }

    /// Whether the most probable option is the right one; `None` if the options were not scored.
    fn accuracy(&self, by: Normalisation) -> Option<f64> {
        let choice = self.item.choice.as_ref()?;
        let scores = &self.reference?.options;
        let best = choice::most_probable(scores, by).filter(|_| scores.len() == choice.options.len())?;
        Some(f64::from(u8::from(best == choice.gold)))
    }

    /// The option that the answer names. A reasoning that was never closed has no answer.
    fn extracted(&self, choice: &Choice) -> Option<usize> {
        choice::extract(&choice.options, self.parts.answer)
    }

    fn well_formed(&self) -> bool {
        let parts = &self.parts;
        let reasoned = match parts.state {
            ThinkState::Closed | ThinkState::CloseOnly => true,
            ThinkState::None => self.reference_think().is_empty(),
            ThinkState::Unclosed => false,
        };
        reasoned && parts.before.is_empty() && !parts.answer.is_empty() && !self.tags.stray(parts.answer)
    }
}

fn visible_characters(reference: &str, candidate: &str) -> TokenPair {
    TokenPair::of_characters(python::visible(reference), python::visible(candidate))
}

fn key_points(reference: &str, candidate: &str) -> [KeyPoints; 2] {
    let (reference, candidate) = (Statements::read(reference), Statements::read(candidate));
    [key_points::compare(&reference, &candidate), key_points::compare(&candidate, &reference)]
}

/// The corpus value of a metric over items' results, in order; `None` if no item has a value or the metric does not exist.
///
/// Means and sums are taken in the order of the items, so the same items give the same bytes.
pub fn aggregate<'a>(name: &str, results: impl IntoIterator<Item = &'a ItemResult>) -> Option<f64> {
    let (sum, weight) = terms(name, results)?.iter().fold((0.0, 0.0), |(v, w), t| (v + t.0, w + t.1));
    let mean = (weight > 0.0).then(|| sum / weight)?;
    Some(if info(name)?.corpus == Corpus::ExpOfPooled { mean.exp() } else { mean })
}

/// [`aggregate`] with its bootstrap interval, whole items being drawn, and with them all others of their cluster; `cluster_of` an
/// item's id names it.
pub fn aggregate_with_interval<'a>(
    name: &str,
    results: impl IntoIterator<Item = &'a ItemResult> + Clone,
    cluster_of: impl Fn(&'a str) -> &'a str,
    options: &StatsOptions,
) -> (Option<f64>, Option<Interval>) {
    let value = aggregate(name, results.clone());
    let with_value = results.clone().into_iter().filter(|r| r.metrics.get(name).copied().flatten().is_some());
    let clusters: Vec<&str> = with_value.map(|r| cluster_of(r.prediction.id.as_str())).collect();
    let terms = terms(name, results).map(|terms| by_cluster(clusters.into_iter().zip(terms)));
    let interval = terms.filter(|t| t.len() > 1 && value.is_some()).map(|terms| {
        let Interval { low, high } = bootstrap_ratio_ci(&terms, options);
        match info(name).map(|m| m.corpus) {
            Some(Corpus::ExpOfPooled) => Interval { low: low.exp(), high: high.exp() },
            _ => Interval { low, high },
        }
    });
    (value, interval)
}

/// `(value * weight, weight)` of every item that has a value; of [`Corpus::ExpOfPooled`] the value's logarithm.
fn terms<'a>(name: &str, results: impl IntoIterator<Item = &'a ItemResult>) -> Option<Vec<(f64, f64)>> {
    let metric = info(name)?;
    let mut terms = Vec::new();
    for result in results {
        let Some(value) = result.metrics.get(name).copied().flatten() else { continue };
        let weight = if metric.corpus == Corpus::Mean { 1.0 } else { weight(name, result)? };
        let value = if metric.corpus == Corpus::ExpOfPooled { value.ln() } else { value };
        terms.push((value * weight, weight));
    }
    Some(terms)
}

/// What an item weighs in the corpus value of a pooled metric: the scored tokens or bytes of its reference. None for a metric that is a
/// mean of items, and without a scored reference.
pub fn weight(name: &str, result: &ItemResult) -> Option<f64> {
    let corpus = info(name)?.corpus;
    let reference = result.reference.as_ref()?;
    let part = match name {
        "nll_think" => reference.think,
        "nll_answer" => reference.answer,
        _ => likelihood::whole(reference),
    };
    match corpus {
        Corpus::Mean => None,
        Corpus::PooledByToken | Corpus::ExpOfPooled => Some(part.tokens as f64),
        Corpus::PooledByByte => Some(part.bytes as f64),
    }
}

/// A mean over items of which some were cut off while thinking.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Bounds {
    /// Over all items, the cut-off ones scoring as empty answers.
    pub all: f64,
    /// Over the items whose reasoning was closed; `None` if there are none.
    pub completed: Option<f64>,
    /// Items whose reasoning was closed (or that had none).
    pub n_completed: usize,
    /// Were every cut-off item to score the worst value of the range.
    pub low: f64,
    /// Were every cut-off item to score the best value of the range.
    pub high: f64,
}

/// What truncation can have done to a metric that reads the answer and has a finite range, reasoning being told from answers by
/// `tags`; `None` for others, or if no item has a value.
pub fn bounds<'a>(tags: &ThinkTags, name: &str, results: impl IntoIterator<Item = &'a ItemResult>) -> Option<Bounds> {
    let metric = info(name).filter(|m| m.reads == super::Reads::Answer && m.range.1.is_finite())?;
    let (mut all, mut completed, mut n, mut n_completed) = (0.0, 0.0, 0usize, 0usize);
    for result in results {
        let Some(value) = result.metrics.get(name).copied().flatten() else { continue };
        n += 1;
        all += value;
        if tags.split(&result.prediction.text).is_complete() {
            n_completed += 1;
            completed += value;
        }
    }
    if n == 0 {
        return None;
    }
    let cut_off = (n - n_completed) as f64;
    Some(Bounds {
        all: all / n as f64,
        completed: (n_completed > 0).then(|| completed / n_completed as f64),
        n_completed,
        low: (completed + cut_off * metric.range.0) / n as f64,
        high: (completed + cut_off * metric.range.1) / n as f64,
    })
}
