//! The packages' metrics of a whole corpus: means over pairs, and the scores that the packages
//! compute from pooled counts.

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::chrf::{self, ChrfCounts};
use super::conformance::Texts;
use super::nltk_bleu::{BleuCounts, Smoothing};
use super::rouge_package::{self, RougeScores, Rpf};
use super::sacrebleu::{self, Counts};
use super::sacrebleu_tokenizers::BleuTokenizer;
use super::ter::{self, TerCounts};
use crate::eval::stats;

/// What one pair adds to the corpus.
struct Contribution {
    row: Value,
    nltk: [BleuCounts; 2],
    sacrebleu: [Counts; 4],
    chrf: [ChrfCounts; 2],
    ter: TerCounts,
    rouge_raw: Result<RougeScores, &'static str>,
}

impl Contribution {
    fn of(reference: &str, candidate: &str) -> Self {
        let texts = Texts::new(reference, candidate);
        Contribution {
            row: texts.whole_row(),
            nltk: [BleuCounts::of(texts.word_ids(true)), BleuCounts::of(texts.characters())],
            sacrebleu: BleuTokenizer::ALL.map(|tokenizer| Counts::of(reference, candidate, tokenizer)),
            chrf: [0, 2].map(|words| ChrfCounts::of(reference, candidate, words)),
            ter: TerCounts::of(reference, candidate, false),
            rouge_raw: match rouge_package::rouge(reference, candidate) {
                Ok(scores) if scores.recursion_depth > 1000 => Err("RecursionError"),
                Ok(scores) => Ok(scores),
                Err(error) => Err(error.python().0),
            },
        }
    }
}

/// The corpus values of pairs of a reference and a candidate:
///
/// - `n` and `means`: per number of a row its mean over the pairs that have it, and how many those
///   are;
/// - `nltk_corpus_bleu_jieba`, `nltk_corpus_bleu_char`: nltk's `corpus_bleu` by smoothing method;
/// - `sacrebleu_corpus`: score, counts and signature by tokenizer; chrF, chrF++, TER;
/// - `seed`: the published comparison's own table, where one pair on which `rouge` raises makes all
///   of ROUGE 0.
///
/// Pairs are scored in parallel and added up in order.
pub fn corpus_row<R: AsRef<str> + Sync, C: AsRef<str> + Sync>(pairs: &[(R, C)]) -> Value {
    let contributions: Vec<Contribution> = pairs
        .par_iter()
        .map(|(reference, candidate)| Contribution::of(reference.as_ref(), candidate.as_ref()))
        .collect();
    let pooled = |side: usize| {
        let mut sum = BleuCounts::default();
        contributions.iter().for_each(|c| sum.add(&c.nltk[side]));
        Value::Object(Smoothing::ALL.iter().map(|(s, name)| ((*name).to_string(), json!(sum.score(*s)))).collect())
    };
    let means = means(&contributions);
    json!({
        "n": pairs.len(),
        "nltk_corpus_bleu_jieba": pooled(0),
        "nltk_corpus_bleu_char": pooled(1),
        "sacrebleu_corpus": sacrebleu_corpus(&contributions),
        "seed": published(&contributions, &means),
        "means": means,
    })
}

fn means(contributions: &[Contribution]) -> Value {
    fn walk(path: &str, value: &Value, into: &mut Map<String, Value>) {
        match value {
            Value::Object(object) => {
                for (key, value) in object {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    walk(&path, value, into);
                }
            }
            Value::Number(number) => {
                let values = into.entry(path).or_insert_with(|| json!([]));
                if let Some(values) = values.as_array_mut() {
                    values.push(Value::Number(number.clone()));
                }
            }
            _ => {}
        }
    }
    let mut values = Map::new();
    contributions.iter().for_each(|c| walk("", &c.row, &mut values));
    let mean = |values: &Value| {
        let values: Vec<f64> = values.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        json!({"mean": stats::mean(&values), "n": values.len()})
    };
    Value::Object(values.iter().map(|(path, values)| (path.clone(), mean(values))).collect())
}

fn sacrebleu_corpus(contributions: &[Contribution]) -> Value {
    let mut object = Map::new();
    for (at, tokenizer) in BleuTokenizer::ALL.into_iter().enumerate() {
        let mut sum = Counts::default();
        contributions.iter().for_each(|c| sum.add(&c.sacrebleu[at]));
        let bleu = sum.score(false);
        let value = json!({
            "score": bleu.score,
            "counts": sum.matches,
            "totals": sum.totals,
            "precisions": bleu.precisions,
            "bp": bleu.brevity_penalty,
            "sys_len": sum.candidate,
            "ref_len": sum.reference,
            "signature": sacrebleu::signature(tokenizer, false),
        });
        object.insert(tokenizer.name().to_string(), value);
    }
    for (at, (name, words)) in [("chrf", 0), ("chrfpp", 2)].into_iter().enumerate() {
        let mut sum = ChrfCounts::default();
        contributions.iter().for_each(|c| sum.add(&c.chrf[at]));
        object.insert(name.to_string(), json!({"score": sum.score(), "signature": chrf::signature(words)}));
    }
    let mut sum = TerCounts::default();
    contributions.iter().for_each(|c| sum.add(&c.ter));
    object.insert("ter".to_string(), json!({"score": sum.score(), "signature": ter::signature(false)}));
    Value::Object(object)
}

fn published(contributions: &[Contribution], means: &Value) -> Value {
    let raised = contributions.iter().find_map(|c| c.rouge_raw.as_ref().err());
    let n = contributions.len() as f64;
    let average = |of: fn(&RougeScores) -> Rpf| {
        // Zeros if any pair raised: the script's bare `except`.
        let scores = contributions.iter().filter(|_| raised.is_none()).filter_map(|c| c.rouge_raw.as_ref().ok());
        let (r, p, f) = scores.map(of).fold((0.0, 0.0, 0.0), |s, x| (s.0 + x.r, s.1 + x.p, s.2 + x.f));
        json!({"r": r / n, "p": p / n, "f": f / n})
    };
    let mean = |path: &str| means[path]["mean"].clone();
    json!({
        "bleu": mean("nltk_bleu_jieba.m4"),
        "rouge": {
            "result": {
                "rouge-1": average(|s| s.rouge1),
                "rouge-2": average(|s| s.rouge2),
                "rouge-l": average(|s| s.rouge_l),
            },
            "exception": raised,
        },
        "f1": mean("vocab.f1"),
        "precision": mean("vocab.p"),
        "recall": mean("vocab.r"),
    })
}
