//! Combinations that make no sense are refused before anything runs.

use std::path::Path;

use super::train::LARGEST_BATCH;
use super::{EvalConfig, Suite};
use crate::error::{Error, Result};
use crate::eval::stats::StatsOptions;

/// Longest text in tokens that a suite may ask for: beyond every model there is.
const LONGEST: usize = 1 << 24;
/// Most worker threads: more than these only wait for each other.
const MOST_THREADS: usize = 1024;

impl Suite {
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        let fail = |what: String, help: &str| Err(Error::usage(what).at(path.display()).help(help));
        let name_ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || !self.name.chars().all(name_ok) || self.name.starts_with('.') {
            return fail(
                format!("the suite's name {:?} cannot name a folder", self.name),
                "use letters, digits, '-' and '_'",
            );
        }
        let data = &self.data;
        match (&data.file, &data.train, &data.heldout) {
            (Some(_), None, None) | (None, Some(_), Some(_)) => {}
            _ => {
                return fail(
                    "[data] needs either `file`, or `train` and `heldout`".into(),
                    "give one file and its split, or two files",
                );
            }
        }
        if data.file.is_some() && data.validation.is_some() {
            return fail(
                "[data] has both `file` and `validation`, which the split of `file` would leave unused".into(),
                "give `train`, `validation` and `heldout`, or `file` alone with split = \"8:1:1\"",
            );
        }
        if data.heldout.is_some() && data.validation.is_none() && String::from(data.split).matches(':').count() > 1 {
            return fail(
                format!(
                    "data.split = {:?} has a third share, but held-out items have their own file",
                    String::from(data.split)
                ),
                "give two shares: what is trained on, and what gives the loss during training",
            );
        }
        let general = self.eval.general.as_ref().map(|g| &g.file);
        for file in [&data.file, &data.train, &data.validation, &data.heldout].into_iter().flatten().chain(general) {
            if !file.is_file() {
                return Err(Error::data("no such data file")
                    .at(file.display())
                    .help("paths in a suite are relative to the suite file"));
            }
        }
        if !self.model.base.join("config.json").is_file() {
            return Err(Error::data("no config.json in the base model's folder")
                .at(self.model.base.display())
                .help("model.base must be a folder in the Hugging Face layout"));
        }
        if data.max_length < 2 {
            return fail(format!("data.max_length = {} leaves nothing to learn", data.max_length), "give at least 2");
        }
        for (name, hyperparameters) in self.runs() {
            hyperparameters.check(&format!("train.{name}")).map_err(|e| e.at(path.display()))?;
        }
        if let Some(lora) = &self.train.lora {
            lora.check("train.lora").map_err(|e| e.at(format!("{}: train.lora", path.display())))?;
        }
        // Found out here, not after an hour of training.
        crate::eval::metric::check_names(&self.eval.metrics).map_err(|e| e.at(path.display()))?;
        let gated: Vec<String> = self.gate.margins.keys().cloned().collect();
        crate::eval::metric::check_names(&gated).map_err(|e| e.at(path.display()))?;
        if let Some((metric, margin)) = self.gate.margins.iter().find(|(_, m)| m.is_nan() || **m < 0.0) {
            return fail(format!("gate.margins.{metric} = {margin} must be at least 0"), "correct the value");
        }
        if self.eval.max_new_tokens == 0 {
            return fail("eval.max_new_tokens = 0 generates nothing".into(), "give at least 1");
        }
        let EvalConfig { temperature, top_p, .. } = self.eval;
        if !(temperature.is_finite() && temperature >= 0.0 && top_p > 0.0 && top_p <= 1.0) {
            return fail(
                format!("eval: temperature = {temperature} must be at least 0 and top_p = {top_p} above 0, at most 1"),
                "correct the value; temperature 0 is greedy",
            );
        }
        let most = StatsOptions::MOST_RESAMPLES;
        let confident = self.stats.confidence > 0.5 && self.stats.confidence < 1.0;
        if !confident || !(100..=most).contains(&self.stats.resamples) {
            return fail(
                format!(
                    "stats: confidence = {} must be between 0.5 and 1 and resamples = {} between 100 and {most}",
                    self.stats.confidence, self.stats.resamples
                ),
                "correct the value",
            );
        }
        for (key, value, most) in [
            ("data.max_length", data.max_length, LONGEST),
            ("eval.max_new_tokens", self.eval.max_new_tokens, LONGEST),
            ("eval.batch_size", self.eval.batch_size, LARGEST_BATCH),
            ("model.threads", self.model.threads, MOST_THREADS),
        ] {
            if value > most {
                return fail(format!("{key} = {value} must be at most {most}"), "correct the value");
            }
        }
        Ok(())
    }
}
