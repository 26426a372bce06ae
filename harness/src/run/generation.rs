//! Generation settings of a suite: what `[eval]` says, else what the model's
//! `generation_config.json` says.
//!
//! The file is read as transformers reads it (`GenerationConfig`): without `do_sample` it is greedy
//! whatever its temperature, and with it what is absent is temperature 1, top_k 50, top_p 1.

use std::path::Path;

use serde_json::{Map, Value};

use crate::data::notes::Note;
use crate::data::tokens;
use crate::error::{Error, Result};
use crate::suite::{EvalConfig, limits};

/// How texts are generated.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationSettings {
    /// Longest generation, in tokens.
    pub max_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus; 1 is off.
    pub top_p: f64,
    /// Most probable tokens kept; 0 is off.
    pub top_k: usize,
    /// The settings that are the model's, as `temperature 0.6`.
    pub of_model: Vec<String>,
    /// Settings of the model that change its texts and are not applied, as
    /// `repetition_penalty 1.1`.
    pub not_applied: Vec<String>,
}

const FILE: &str = "generation_config.json";

/// Longest generation where neither the suite nor the model says.
const MAX_NEW_TOKENS: usize = 2048;
/// `top_k` of transformers where a file that samples has none.
const TOP_K: usize = 50;

/// Settings that Karat has no counterpart of, with the value that means off.
const OTHERS: [(&str, f64); 9] = [
    ("repetition_penalty", 1.0),
    ("encoder_repetition_penalty", 1.0),
    ("no_repeat_ngram_size", 0.0),
    ("num_beams", 1.0),
    ("penalty_alpha", 0.0),
    ("length_penalty", 1.0),
    ("min_new_tokens", 0.0),
    ("min_length", 0.0),
    ("exponential_decay_length_penalty", 0.0),
];
/// The same, off where they are null or an empty list.
const LISTS: [&str; 6] = [
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "sequence_bias",
];
/// The same, of settings that only sampling asks for.
const OF_SAMPLING: [(&str, f64); 5] =
    [("min_p", 0.0), ("typical_p", 1.0), ("epsilon_cutoff", 0.0), ("eta_cutoff", 0.0), ("top_h", 0.0)];

impl GenerationSettings {
    /// Of a suite's `[eval]` and the model in `folder`.
    ///
    /// # Errors
    /// [`ErrorKind::Data`](crate::ErrorKind::Data), for a value in the model's file that is out of
    /// range or of another type; usage, for several samples of greedy texts.
    pub fn new(eval: &EvalConfig, folder: &Path) -> Result<GenerationSettings> {
        let path = folder.join(FILE);
        let file = tokens::read_object(&path)?.unwrap_or_default();
        let read = File { path: &path, values: &file };
        let samples = read.flag("do_sample")?;
        let mut of_model = Vec::new();
        let max_new_tokens = match (eval.max_new_tokens, read.count("max_new_tokens")?) {
            (Some(own), _) => own,
            (None, Some(n)) => {
                let n = limits::max_new_tokens(n).map_err(|why| read.wrong("max_new_tokens", &why))?;
                of_model.push(format!("max_new_tokens {n}"));
                n
            }
            (None, None) => MAX_NEW_TOKENS,
        };
        let mut own = |name: &str, given: Option<f64>, file: Option<f64>, off: f64| match (given, file) {
            (Some(given), _) => given,
            (None, Some(value)) if samples => {
                if value != off {
                    of_model.push(format!("{name} {value}"));
                }
                value
            }
            _ => off,
        };
        let temperature = read.number("temperature", limits::temperature)?.or(Some(1.0));
        let temperature = own("temperature", eval.temperature, temperature, 0.0);
        let top_k = read.count("top_k")?.unwrap_or(TOP_K as u64);
        let top_p = read.number("top_p", limits::top_p)?;
        let (top_p, top_k) = match temperature {
            // Of no effect on greedy texts: what the suite says stands as it is.
            0.0 => (eval.top_p.unwrap_or(1.0), eval.top_k.unwrap_or(0)),
            _ => {
                let top_p = own("top_p", eval.top_p, top_p, 1.0);
                (top_p, own("top_k", eval.top_k.map(|k| k as f64), Some(top_k as f64), 0.0) as usize)
            }
        };
        if eval.samples > 1 && temperature == 0.0 {
            return Err(greedy_samples(eval.samples));
        }
        let others = OTHERS.iter().chain(OF_SAMPLING.iter().filter(|_| temperature > 0.0));
        let not_applied = others.filter_map(|(name, off)| match file.get(*name) {
            None | Some(Value::Null | Value::Bool(false)) => None,
            Some(value) if value.as_f64() == Some(*off) => None,
            Some(value) => Some(format!("{name} {value}")),
        });
        let lists = LISTS.iter().filter(|name| {
            let value = file.get(**name);
            value.is_some_and(|value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()))
        });
        let not_applied = not_applied.chain(lists.map(|name| (*name).to_string())).collect();
        Ok(GenerationSettings { max_new_tokens, temperature, top_p, top_k, of_model, not_applied })
    }

    /// What a reader must know of where the settings come from.
    pub fn notes(&self) -> [Option<Note>; 2] {
        let (own, other) = (self.of_model.join(", "), self.not_applied.join(", "));
        [
            (!own.is_empty()).then(|| Note {
                english: format!("texts are generated with {own}, as the model's {FILE} says; [eval] overrides it"),
                chinese: format!("按模型的 {FILE} 生成文本：{own}；[eval] 可覆盖"),
            }),
            (!other.is_empty()).then(|| Note {
                english: format!("the model's {FILE} also says {other}, which Karat does not apply"),
                chinese: format!("模型的 {FILE} 还指定了 {other}，Karat 不予应用"),
            }),
        ]
    }
}

/// The error for several samples of an item whose texts are all the same.
pub(crate) fn greedy_samples(samples: usize) -> Error {
    Error::usage(format!("eval.samples = {samples} asks for several answers, and greedy ones are all the same"))
        .help("set eval.temperature above 0, or leave eval.samples out")
}

/// A model's `generation_config.json`.
struct File<'a> {
    path: &'a Path,
    values: &'a Map<String, Value>,
}

impl File<'_> {
    fn wrong(&self, key: &str, why: &str) -> Error {
        let value = self.values.get(key).map(Value::to_string).unwrap_or_default();
        Error::data(format!("{key} = {value}: {why}"))
            .at(self.path.display())
            .help(format!("correct the file, or set eval.{key} in the suite"))
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.value(key) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "it must be true or false")),
        }
    }

    fn count(&self, key: &str) -> Result<Option<u64>> {
        self.value(key).map(|v| v.as_u64().ok_or_else(|| self.wrong(key, "it must be a whole number"))).transpose()
    }

    fn number(&self, key: &str, within: impl Fn(f64) -> Result<f64, String>) -> Result<Option<f64>> {
        let checked = |value: &Value| {
            let number = value.as_f64().ok_or("it must be a number".to_string());
            number.and_then(&within).map_err(|why| self.wrong(key, &why))
        };
        self.value(key).map(checked).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(file: &str, eval: EvalConfig) -> Result<GenerationSettings> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), file).unwrap();
        GenerationSettings::new(&eval, folder.path())
    }

    /// As Qwen3 ships it.
    const SAMPLES: &str =
        r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [1, 2]}"#;

    #[test]
    fn the_model_says_what_the_suite_does_not() {
        let settings = of(SAMPLES, EvalConfig::default()).unwrap();
        assert_eq!((settings.temperature, settings.top_p, settings.top_k), (0.6, 0.95, 20));
        assert_eq!(settings.of_model, ["temperature 0.6", "top_p 0.95", "top_k 20"]);
        let warmer = EvalConfig { temperature: Some(0.9), top_k: Some(0), ..EvalConfig::default() };
        let settings = of(SAMPLES, warmer).unwrap();
        assert_eq!((settings.temperature, settings.top_p, settings.top_k), (0.9, 0.95, 0));
        assert_eq!(settings.of_model, ["top_p 0.95"]);
        let greedy = EvalConfig { temperature: Some(0.0), ..EvalConfig::default() };
        let settings = of(SAMPLES, greedy).unwrap();
        assert_eq!((settings.temperature, settings.top_p, settings.top_k, settings.of_model.len()), (0.0, 1.0, 0, 0));
    }

    #[test]
    fn a_file_that_does_not_sample_is_greedy_whatever_its_temperature() {
        let settings = of(r#"{"temperature": 0.6, "top_k": 20, "max_new_tokens": 7}"#, EvalConfig::default()).unwrap();
        assert_eq!((settings.temperature, settings.top_k, settings.max_new_tokens), (0.0, 0, 7));
        assert_eq!(of(r#"{"do_sample": true}"#, EvalConfig::default()).unwrap().top_k, TOP_K);
    }

    #[test]
    fn settings_that_are_not_applied_are_named() {
        let file = r#"{"repetition_penalty": 1.1, "num_beams": 1, "min_p": 0.05, "length_penalty": 1}"#;
        let settings = of(file, EvalConfig::default()).unwrap();
        assert_eq!(settings.not_applied, ["repetition_penalty 1.1"]);
        let lists = of(
            r#"{"bad_words_ids": [[5]], "suppress_tokens": [], "forced_bos_token_id": null}"#,
            EvalConfig::default(),
        );
        assert_eq!(lists.unwrap().not_applied, ["bad_words_ids"]);
        assert!(settings.notes()[1].as_ref().unwrap().english.contains("repetition_penalty 1.1"));
    }

    #[test]
    fn a_value_out_of_range_is_refused_by_file_and_key() {
        for (file, key) in [
            (r#"{"do_sample": 1}"#, "do_sample"),
            (r#"{"do_sample": true, "temperature": -1}"#, "temperature"),
            (r#"{"top_p": 2}"#, "top_p"),
            (r#"{"top_k": -1}"#, "top_k"),
            (r#"{"max_new_tokens": 0}"#, "max_new_tokens"),
        ] {
            let error = of(file, EvalConfig::default()).unwrap_err().to_string();
            assert!(error.contains(FILE) && error.contains(key), "{error}");
        }
        assert!(of("{}", EvalConfig { samples: 2, ..EvalConfig::default() }).is_err());
    }
}
