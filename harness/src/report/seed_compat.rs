//! The table of the published base-against-fine-tuned comparison, metric by metric as its script
//! computes and prints it.
//!
//! The project that Karat succeeds publishes a JSON file: fourteen numbers a model over 50 items,
//! and five of these items with their texts. The script's definitions, kept here to the last digit,
//! oddities included:
//!
//! | number | definition |
//! |---|---|
//! | `bleu` | mean over the items of nltk's `sentence_bleu` over jieba words, smoothing method 4 |
//! | `rouge_*` | mean over the items of package `rouge` on the texts as they are: split at white space, which Chinese has little of; scores of *sets* |
//! | | one pair on which the package raises makes all nine numbers 0 for the whole corpus: the script's bare `except` |
//! | `precision`, `recall`, `f1` | mean over the items of the overlap of the *sets* of jieba words |
//! | `perplexity` | mean over the items of exp(mean negative log-likelihood) of the model's **own generated text**, without its prompt, cut to 2,048 tokens |
//!
//! All read the whole text, `<think>` included; the reference is
//! `<think>{think}</think>\n{answer}`. The text metrics need nothing but the texts. The perplexity
//! needs the model: it is what the caller computed ([`perplexity`]) or unknown. It rewards a model
//! that repeats itself; Karat's own reports use the likelihood of the *reference* instead.
//!
//! The published numbers cover 50 items of which five are given, so they cannot be computed again
//! from the file; the same numbers over the five can, and stand beside them.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::number::UNDEFINED;
use crate::error::{Error, Result};
use crate::eval::metric::nltk_bleu::{BleuCounts, Smoothing};
use crate::eval::metric::rouge_package::{RougeScores, Rpf, rouge};
use crate::eval::metric::tokens::TokenPair;
use crate::eval::metric::{jieba, vocabulary::vocabulary};
use crate::eval::stats::mean;
use crate::eval::{Item, Prediction};

/// The numbers of one model, under the file's names and in its order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompatNumbers {
    /// Mean perplexity of the model's own texts; none where no model computed it.
    pub perplexity: Option<f64>,
    /// BLEU.
    pub bleu: f64,
    /// ROUGE-1, F1.
    pub rouge_1_f: f64,
    /// ROUGE-1, precision.
    pub rouge_1_p: f64,
    /// ROUGE-1, recall.
    pub rouge_1_r: f64,
    /// ROUGE-2, F1.
    pub rouge_2_f: f64,
    /// ROUGE-2, precision.
    pub rouge_2_p: f64,
    /// ROUGE-2, recall.
    pub rouge_2_r: f64,
    /// ROUGE-L, F1.
    pub rouge_l_f: f64,
    /// ROUGE-L, precision.
    pub rouge_l_p: f64,
    /// ROUGE-L, recall.
    pub rouge_l_r: f64,
    /// F1 of vocabularies.
    pub f1: f64,
    /// Precision of vocabularies.
    pub precision: f64,
    /// Recall of vocabularies.
    pub recall: f64,
}

/// The two models' numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantitative {
    /// Before fine-tuning.
    pub base_model: CompatNumbers,
    /// After it.
    pub finetuned_model: CompatNumbers,
}

/// One item with both models' texts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompatSample {
    /// The question.
    pub question: String,
    /// The reference, reasoning in tags before the answer.
    pub reference: String,
    /// What the base model generated.
    pub base_model: String,
    /// What the fine-tuned model generated.
    pub finetuned_model: String,
}

/// A results file: read as published, written in the same form.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    /// The numbers.
    pub quantitative: Quantitative,
    /// The texts that are given.
    pub qualitative: Vec<CompatSample>,
}

/// Which of the two models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The base model.
    Base,
    /// The fine-tuned one.
    Finetuned,
}

/// What the script's `except` hid: the exception of package `rouge` that made all of a model's
/// ROUGE 0.
pub type Hidden = Option<&'static str>;

impl Results {
    /// Reads a published file; `place` is for errors.
    ///
    /// # Errors
    /// Data: text that is no such file.
    pub fn from_json(text: &str, place: &str) -> Result<Results> {
        serde_json::from_str(text).map_err(|e| {
            Error::data("this is no results file of the published comparison")
                .at(format!("{place}:{}:{}", e.line(), e.column()))
                .because(e)
                .help("it has `quantitative` and `qualitative`, each with base_model and finetuned_model")
        })
    }

    /// The same comparison of two models of a run: every item that both have a text for, the first
    /// five as samples.
    pub fn of_run(items: &[Item], base: &[Prediction], finetuned: &[Prediction]) -> (Results, [Hidden; 2]) {
        let text = |of: &[Prediction], id: &str| Some(of.iter().find(|p| p.id == id)?.text.clone());
        let samples: Vec<CompatSample> = items
            .iter()
            .filter_map(|item| {
                Some(CompatSample {
                    question: item.question.clone(),
                    reference: format!("<think>{}</think>\n{}", item.think, item.answer),
                    base_model: text(base, &item.id)?,
                    finetuned_model: text(finetuned, &item.id)?,
                })
            })
            .collect();
        Results { quantitative: Quantitative::default(), qualitative: samples }.recomputed()
    }

    /// The numbers again, over the texts that are given; perplexities are left out, for they need
    /// the models. And which exceptions the script would have hidden.
    pub fn recomputed(&self) -> (Results, [Hidden; 2]) {
        let side = |side| numbers(self.qualitative.iter().map(|s| (s.reference.as_str(), s.text(side))));
        let (base_model, hidden_base) = side(Side::Base);
        let (finetuned_model, hidden_finetuned) = side(Side::Finetuned);
        let quantitative = Quantitative { base_model, finetuned_model };
        let results = Results { quantitative, qualitative: self.qualitative.clone() };
        (results, [hidden_base, hidden_finetuned])
    }
}

impl CompatSample {
    /// The text of one model.
    pub fn text(&self, side: Side) -> &str {
        match side {
            Side::Base => &self.base_model,
            Side::Finetuned => &self.finetuned_model,
        }
    }
}

fn numbers<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> (CompatNumbers, Hidden) {
    let (mut bleu, mut f1, mut precision, mut recall) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut scores, mut hidden) = (Vec::new(), None);
    for (reference, candidate) in pairs {
        let words = TokenPair::new(jieba::segment(reference, true), jieba::segment(candidate, true));
        bleu.push(BleuCounts::of(&words).score(Smoothing::Method4));
        let sets = vocabulary(&words);
        f1.push(sets.f1);
        precision.push(sets.precision);
        recall.push(sets.recall);
        match rouge(reference, candidate) {
            Ok(score) if score.recursion_depth > PYTHON_RECURSION_LIMIT => hidden = hidden.or(Some("RecursionError")),
            Ok(score) => scores.push(score),
            Err(error) => hidden = hidden.or(Some(error.python().0)),
        }
    }
    let average = |of: fn(&RougeScores) -> Rpf| match hidden {
        Some(_) => Rpf::default(),
        None => {
            let sum = scores.iter().map(of).fold((0.0, 0.0, 0.0), |s, x| (s.0 + x.r, s.1 + x.p, s.2 + x.f));
            let n = scores.len() as f64;
            Rpf { r: sum.0 / n, p: sum.1 / n, f: sum.2 / n }
        }
    };
    let (one, two, l) = (average(|s| s.rouge1), average(|s| s.rouge2), average(|s| s.rouge_l));
    let numbers = CompatNumbers {
        perplexity: None,
        bleu: mean(&bleu),
        rouge_1_f: one.f,
        rouge_1_p: one.p,
        rouge_1_r: one.r,
        rouge_2_f: two.f,
        rouge_2_p: two.p,
        rouge_2_r: two.r,
        rouge_l_f: l.f,
        rouge_l_p: l.p,
        rouge_l_r: l.r,
        f1: mean(&f1),
        precision: mean(&precision),
        recall: mean(&recall),
    };
    (numbers, hidden)
}

/// Package `rouge` recurses once a token of the longest common subsequence; above Python's default
/// limit it raises.
const PYTHON_RECURSION_LIMIT: usize = 1000;

/// Tokens that the script's perplexity reads of a text.
pub const PERPLEXITY_TOKENS: usize = 2048;

/// The script's perplexity: mean over the texts of `exp(-mean log-probability)`; each text's
/// log-probabilities are those of its tokens after the first, in nats, without any prompt. None
/// without texts, or where one has fewer than two tokens (the script's loss is not a number there).
pub fn perplexity(texts: &[Vec<f32>]) -> Option<f64> {
    let each: Vec<f64> = texts
        .iter()
        .map(|logprobs| {
            let logprobs: Vec<f64> = logprobs.iter().map(|&l| f64::from(l)).collect();
            (-mean(&logprobs)).exp()
        })
        .collect();
    Some(mean(&each)).filter(|p| p.is_finite())
}

/// The rows of the printed table: label, value, whether lower is better.
type Row = (&'static str, fn(&CompatNumbers) -> Option<f64>, bool);
const ROWS: [Row; 8] = [
    ("困惑度", |n| n.perplexity, true),
    ("BLEU", |n| Some(n.bleu), false),
    ("ROUGE-1 F1", |n| Some(n.rouge_1_f), false),
    ("ROUGE-2 F1", |n| Some(n.rouge_2_f), false),
    ("ROUGE-L F1", |n| Some(n.rouge_l_f), false),
    ("词汇F1", |n| Some(n.f1), false),
    ("精确率", |n| Some(n.precision), false),
    ("召回率", |n| Some(n.recall), false),
];

/// What the script prints, character for character, trailing blanks included; a perplexity that
/// nobody computed is a dash.
pub fn printed(results: &Results) -> String {
    let mut out = format!("\n{0}\n模型对比结果\n{0}\n", "=".repeat(80));
    let _ = writeln!(out, "\n定量指标对比:\n{}", "-".repeat(60));
    let _ = writeln!(out, "{:<20} {:<15} {:<15} {:<10}", "指标", "基础模型", "微调模型", "提升");
    let _ = writeln!(out, "{}", "-".repeat(60));
    let Quantitative { base_model, finetuned_model } = &results.quantitative;
    for (label, value, lower) in ROWS {
        let (base, tuned) = (value(base_model), value(finetuned_model));
        let gain = base.zip(tuned).map(|(base, tuned)| if lower { base - tuned } else { tuned - base });
        let gain = gain.map_or(UNDEFINED.to_string(), |g| format!("{g:+.4}"));
        let _ = writeln!(out, "{label:<20} {:<15} {:<15} {gain:<10}", digits(base), digits(tuned));
    }
    let _ = writeln!(out, "\n定性对比 (前5个样本):\n{}", "-".repeat(80));
    for (i, sample) in results.qualitative.iter().take(5).enumerate() {
        let start = |text: &str| text.chars().take(200).collect::<String>();
        let _ = writeln!(out, "\n样本 {}:\n问题: {}", i + 1, sample.question);
        let _ = writeln!(out, "参考回答: {}...", start(&sample.reference));
        let _ = writeln!(out, "基础模型: {}...", start(&sample.base_model));
        let _ = writeln!(out, "微调模型: {}...\n{}", start(&sample.finetuned_model), "-".repeat(40));
    }
    out
}

/// Published beside recomputed, to the printed digits: all fourteen numbers of both models.
pub fn beside(published: &Results, again: &Results) -> String {
    type Named = (&'static str, fn(&CompatNumbers) -> Option<f64>);
    const ALL: [Named; 14] = [
        ("perplexity", |n| n.perplexity),
        ("bleu", |n| Some(n.bleu)),
        ("rouge_1_f", |n| Some(n.rouge_1_f)),
        ("rouge_1_p", |n| Some(n.rouge_1_p)),
        ("rouge_1_r", |n| Some(n.rouge_1_r)),
        ("rouge_2_f", |n| Some(n.rouge_2_f)),
        ("rouge_2_p", |n| Some(n.rouge_2_p)),
        ("rouge_2_r", |n| Some(n.rouge_2_r)),
        ("rouge_l_f", |n| Some(n.rouge_l_f)),
        ("rouge_l_p", |n| Some(n.rouge_l_p)),
        ("rouge_l_r", |n| Some(n.rouge_l_r)),
        ("f1", |n| Some(n.f1)),
        ("precision", |n| Some(n.precision)),
        ("recall", |n| Some(n.recall)),
    ];
    let here = format!("these {}", again.qualitative.len());
    let mut out = format!("{:<12} {:>22}   {:>22}\n", "", "base_model", "finetuned_model");
    let _ = writeln!(out, "{:<12} {:>11}{here:>11}   {:>11}{here:>11}", "", "published", "published");
    let (a, b) = (&published.quantitative, &again.quantitative);
    for (name, value) in ALL {
        let _ = writeln!(
            out,
            "{name:<12} {:>11}{:>11}   {:>11}{:>11}",
            digits(value(&a.base_model)),
            digits(value(&b.base_model)),
            digits(value(&a.finetuned_model)),
            digits(value(&b.finetuned_model)),
        );
    }
    out
}

fn digits(value: Option<f64>) -> String {
    value.map_or(UNDEFINED.to_string(), |x| format!("{x:.4}"))
}
