//! The metrics of the Python packages, under the names of the conformance vectors: a nested object
//! per pair, so that anyone can compare it with what Python prints.
//!
//! A name is a path: `rouge_jieba` is the whole group, `rouge_jieba.rouge-l.f` one number. All of
//! them read the two texts *as they are*, think part and tags included. An exception of a package
//! is `{"error": name, "message": text}`, an undefined value `null`.

use std::cell::OnceCell;

use serde_json::{Map, Value, json};

use super::chrf::ChrfCounts;
use super::nltk_bleu::{BleuCounts, Smoothing};
use super::rouge_package::{self, RougeError, RougeScores, Rpf};
use super::sacrebleu::Counts;
use super::sacrebleu_tokenizers::BleuTokenizer;
use super::ter::TerCounts;
use super::tokens::{Prf, TokenPair, distinct};
use super::{jieba, python, rouge, rouge_score, vocabulary};
use crate::eval::think;
use crate::{Error, Result, fsio};

/// The groups, in the order in which a row has them.
pub const GROUPS: &[&str] = &[
    "jieba",
    "nltk_bleu_jieba",
    "nltk_bleu_char",
    "sacrebleu",
    "sacrebleu_eff",
    "chrf",
    "chrfpp",
    "ter",
    "ter_asian_normalized",
    "rouge_raw",
    "rouge_raw_seed_limit1000",
    "rouge_jieba",
    "rouge_jieba_limit1000",
    "rouge_char",
    "rouge_char_limit1000",
    "rouge_chinese_jieba",
    "rouge_score",
    "rouge_score_jieba",
    "vocab",
    "vocab_nohmm",
    "extract",
    "exact_match",
    "token_f1_jieba",
    "token_f1_char",
    "distinct",
    "length_ratio",
    "rouge_recursion_depth",
];

/// Longest side, in characters, for which a row without a list of names has `ter_asian_normalized`:
/// its search is cubic.
const ASIAN_TER_LIMIT: usize = 150;

/// One pair of texts, with what several metrics need computed once.
pub struct Texts<'a> {
    reference: &'a str,
    candidate: &'a str,
    jieba: [OnceCell<(Vec<&'a str>, Vec<&'a str>)>; 2],
    jieba_ids: [OnceCell<TokenPair>; 2],
    characters: OnceCell<TokenPair>,
    rouge: [OnceCell<Result<RougeScores, RougeError>>; 3],
}

impl<'a> Texts<'a> {
    /// A reference and a candidate.
    pub fn new(reference: &'a str, candidate: &'a str) -> Self {
        Texts {
            reference,
            candidate,
            jieba: Default::default(),
            jieba_ids: Default::default(),
            characters: OnceCell::new(),
            rouge: Default::default(),
        }
    }

    /// The reference, as given.
    pub fn reference(&self) -> &'a str {
        self.reference
    }

    /// The candidate, as given.
    pub fn candidate(&self) -> &'a str {
        self.candidate
    }

    /// jieba's tokens of reference and candidate.
    pub fn words(&self, hmm: bool) -> &(Vec<&'a str>, Vec<&'a str>) {
        self.jieba[usize::from(hmm)]
            .get_or_init(|| (jieba::segment(self.reference, hmm), jieba::segment(self.candidate, hmm)))
    }

    /// The same as ids.
    pub fn word_ids(&self, hmm: bool) -> &TokenPair {
        self.jieba_ids[usize::from(hmm)].get_or_init(|| {
            let (reference, candidate) = self.words(hmm);
            TokenPair::new(reference.iter().copied(), candidate.iter().copied())
        })
    }

    /// Characters, white space included, as ids.
    pub fn characters(&self) -> &TokenPair {
        self.characters.get_or_init(|| TokenPair::characters(self.reference, self.candidate))
    }

    /// Package `rouge` on the texts as they are (0), on jieba tokens (1), on characters (2), joined
    /// by spaces.
    fn rouge(&self, input: usize) -> &Result<RougeScores, RougeError> {
        self.rouge[input].get_or_init(|| match input {
            0 => rouge_package::rouge(self.reference, self.candidate),
            1 => {
                let (reference, candidate) = self.words(true);
                rouge_package::rouge(&reference.join(" "), &candidate.join(" "))
            }
            _ => rouge_package::rouge(&spaced(self.reference), &spaced(self.candidate)),
        })
    }

    /// The value of a group; `None` if there is no such group.
    pub fn group(&self, name: &str) -> Option<Value> {
        Some(match name {
            "jieba" => self.segmentation(),
            "nltk_bleu_jieba" => nltk(self.word_ids(true)),
            "nltk_bleu_char" => nltk(self.characters()),
            "sacrebleu" => by_tokenizer(|t| sacrebleu(&Counts::of(self.reference, self.candidate, t))),
            "sacrebleu_eff" => by_tokenizer(|t| json!(Counts::of(self.reference, self.candidate, t).score(true).score)),
            "chrf" => json!(ChrfCounts::of(self.reference, self.candidate, 0).score()),
            "chrfpp" => json!(ChrfCounts::of(self.reference, self.candidate, 2).score()),
            "ter" => json!(TerCounts::of(self.reference, self.candidate, false).score()),
            "ter_asian_normalized" => json!(TerCounts::of(self.reference, self.candidate, true).score()),
            "rouge_raw" => package(self.rouge(0)),
            "rouge_raw_seed_limit1000" => under_recursion_limit(self.rouge(0)),
            "rouge_jieba" => package(self.rouge(1)),
            "rouge_jieba_limit1000" => under_recursion_limit(self.rouge(1)),
            "rouge_char" => package(self.rouge(2)),
            "rouge_char_limit1000" => under_recursion_limit(self.rouge(2)),
            "rouge_chinese_jieba" => {
                let (reference, candidate) = self.words(true);
                package(&rouge_package::rouge_chinese(&reference.join(" "), &candidate.join(" ")))
            }
            "rouge_score" => json!({
                "stem_false": self.google_rouge(false),
                "stem_true": self.google_rouge(true),
            }),
            "rouge_score_jieba" => {
                let scores = rouge::score(self.word_ids(true));
                json!({"rouge1": prf_f(scores.rouge1), "rouge2": prf_f(scores.rouge2), "rougeL": prf_f(scores.rouge_l)})
            }
            "vocab" => prf_f1(vocabulary::vocabulary(self.word_ids(true))),
            "vocab_nohmm" => prf_f1(vocabulary::vocabulary(self.word_ids(false))),
            "extract" => json!({"ref": extract(self.reference), "cand": extract(self.candidate)}),
            "exact_match" => self.exact_match(),
            "token_f1_jieba" => token_f1(self.word_ids(true)),
            "token_f1_char" => token_f1(self.characters()),
            "distinct" => {
                let (words, characters) = (&self.word_ids(true).candidate, &self.characters().candidate);
                json!({
                    "jieba_1": distinct(words, 1),
                    "jieba_2": distinct(words, 2),
                    "char_1": distinct(characters, 1),
                    "char_2": distinct(characters, 2),
                })
            }
            "length_ratio" => {
                json!({"jieba": length_ratio(self.word_ids(true)), "char": length_ratio(self.characters())})
            }
            "rouge_recursion_depth" => {
                let depth = |input| self.rouge(input).as_ref().map_or(0, |scores| scores.recursion_depth);
                json!({"raw": depth(0), "jieba": depth(1), "char": depth(2)})
            }
            _ => return None,
        })
    }

    fn segmentation(&self) -> Value {
        let mut object = Map::new();
        for (hmm, suffix) in [(true, "hmm"), (false, "nohmm")] {
            let (reference, candidate) = self.words(hmm);
            for (side, tokens) in [("ref", reference), ("cand", candidate)] {
                object.insert(format!("{side}_{suffix}_n"), json!(tokens.len()));
                object.insert(format!("{side}_{suffix}_sha256"), json!(fsio::sha256(tokens.join("\u{1f}").as_bytes())));
                object.insert(format!("{side}_{suffix}"), json!(tokens));
            }
        }
        Value::Object(object)
    }

    fn google_rouge(&self, stem: bool) -> Value {
        let scores = rouge_score::score(self.reference, self.candidate, stem);
        json!({
            "rouge1": prf_f(scores.rouge1),
            "rouge2": prf_f(scores.rouge2),
            "rougeL": prf_f(scores.rouge_l),
            "rougeLsum": prf_f(scores.rouge_l_sum),
        })
    }

    fn exact_match(&self) -> Value {
        let answer = |text| think::split_as_published(text).1;
        json!({
            "raw": u8::from(self.reference == self.candidate),
            "stripped": u8::from(python::strip(self.reference) == python::strip(self.candidate)),
            "answer": u8::from(answer(self.reference) == answer(self.candidate)),
        })
    }

    /// A row with all groups (`ter_asian_normalized` for short texts only).
    pub fn whole_row(&self) -> Value {
        let short = [self.reference, self.candidate].iter().all(|t| t.chars().count() < ASIAN_TER_LIMIT);
        let groups = GROUPS.iter().filter(|group| short || **group != "ter_asian_normalized");
        let values = groups.filter_map(|group| Some(((*group).to_string(), self.group(group)?)));
        Value::Object(values.collect())
    }

    /// A row with the groups and values that `names` lists; all groups if it lists none. Where a
    /// package raised, the exception stands for the whole group.
    ///
    /// # Errors
    /// Usage, for a name that does not exist.
    pub fn row(&self, names: &[String]) -> Result<Value> {
        if names.is_empty() {
            return Ok(self.whole_row());
        }
        let mut row = Map::new();
        for name in names {
            let mut path = name.split('.');
            let group = path.next().unwrap_or_default();
            let path: Vec<&str> = path.collect();
            let value = self.group(group).ok_or_else(|| unknown(name))?;
            let picked = pick(&value, &path).ok_or_else(|| unknown(name))?;
            if value.get("error").is_some() {
                row.insert(group.to_string(), value);
                continue;
            }
            let mut slot = row.entry(group).or_insert(Value::Null);
            for key in path {
                if !slot.is_object() {
                    *slot = json!({});
                }
                slot = slot.as_object_mut().expect("made an object above").entry(key).or_insert(Value::Null);
            }
            *slot = picked;
        }
        Ok(Value::Object(row))
    }

    /// One number; `None` where it is undefined or the package raised.
    ///
    /// # Errors
    /// Usage, for a name that does not exist.
    pub fn number(&self, name: &str) -> Result<Option<f64>> {
        let mut path = name.split('.');
        let value = path.next().and_then(|group| self.group(group)).ok_or_else(|| unknown(name))?;
        Ok(pick(&value, &path.collect::<Vec<_>>()).ok_or_else(|| unknown(name))?.as_f64())
    }
}

/// The value at a path. Below an error everything is that error.
fn pick(value: &Value, path: &[&str]) -> Option<Value> {
    match path {
        [] => Some(value.clone()),
        _ if value.get("error").is_some() => Some(value.clone()),
        [key, rest @ ..] => pick(value.get(key)?, rest),
    }
}

fn unknown(name: &str) -> Error {
    super::unknown_name(name, GROUPS.iter().copied())
}

fn spaced(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for (n, c) in text.chars().enumerate() {
        if n > 0 {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

fn nltk(pair: &TokenPair) -> Value {
    let counts = BleuCounts::of(pair);
    Value::Object(Smoothing::ALL.iter().map(|(s, name)| ((*name).to_string(), json!(counts.score(*s)))).collect())
}

fn by_tokenizer(value: impl Fn(BleuTokenizer) -> Value) -> Value {
    Value::Object(BleuTokenizer::ALL.iter().map(|t| (t.name().to_string(), value(*t))).collect())
}

fn sacrebleu(counts: &Counts) -> Value {
    let bleu = counts.score(false);
    json!({
        "score": bleu.score,
        "counts": counts.matches,
        "totals": counts.totals,
        "precisions": bleu.precisions,
        "bp": bleu.brevity_penalty,
        "sys_len": counts.candidate,
        "ref_len": counts.reference,
    })
}

fn package(scores: &Result<RougeScores, RougeError>) -> Value {
    let rpf = |score: Rpf| json!({"r": score.r, "p": score.p, "f": score.f});
    match scores {
        Ok(scores) => {
            json!({"rouge-1": rpf(scores.rouge1), "rouge-2": rpf(scores.rouge2), "rouge-l": rpf(scores.rouge_l)})
        }
        Err(error) => {
            let (name, message) = error.python();
            json!({"error": name, "message": message})
        }
    }
}

/// What the package does under Python's default recursion limit of 1000, of which the caller's
/// frames take some: the same; `RecursionError`; or, close to the limit, it depends on the caller.
fn under_recursion_limit(scores: &Result<RougeScores, RougeError>) -> Value {
    match scores.as_ref().map_or(0, |scores| scores.recursion_depth) {
        0..960 => json!("same"),
        960..=1000 => json!("call-stack-dependent"),
        _ => json!({"error": "RecursionError", "message": "maximum recursion depth exceeded"}),
    }
}

fn prf_f(score: Prf) -> Value {
    json!({"p": score.precision, "r": score.recall, "f": score.f1})
}

fn prf_f1(score: Prf) -> Value {
    json!({"p": score.precision, "r": score.recall, "f1": score.f1})
}

fn token_f1(pair: &TokenPair) -> Value {
    let score = vocabulary::token_f1(pair);
    json!({
        "num_same": score.common,
        "p": score.prf.precision,
        "r": score.prf.recall,
        "f1": score.prf.f1,
        "f1_squad2": score.f1_squad2,
    })
}

fn length_ratio(pair: &TokenPair) -> Option<f64> {
    (!pair.reference.is_empty()).then(|| pair.candidate.len() as f64 / pair.reference.len() as f64)
}

fn extract(text: &str) -> Value {
    let (think, answer) = think::split_as_published(text);
    json!({"think": think, "answer": answer})
}

/// The names of all numbers of a row (`jieba` tokens and `extract` texts are none), as paths.
pub fn number_names() -> Vec<String> {
    fn walk(prefix: &str, value: &Value, names: &mut Vec<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| walk(&format!("{prefix}.{key}"), value, names)),
            Value::Number(_) | Value::Null => names.push(prefix.to_string()),
            _ => {}
        }
    }
    // Any pair on which nothing raises has all the names.
    let texts = Texts::new("高血压患者", "高血压");
    let mut names = Vec::new();
    for group in GROUPS.iter().filter(|group| **group != "jieba") {
        if let Some(value) = texts.group(group) {
            walk(group, &value, &mut names);
        }
    }
    names
}
