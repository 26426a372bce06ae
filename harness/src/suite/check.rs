//! Combinations that make no sense are refused before anything runs.

use std::path::Path;

use super::{EvalConfig, Suite, check_models, limits, names_file};
use crate::data::files::{self, Part};
use crate::error::{Error, Result};
use crate::eval::stats::StatsOptions;
use crate::model_dir;
use crate::report::compare::MUST_BE_EQUAL;
use crate::run::greedy_samples;

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
        let backends = [("model.backend", &self.model.backend), ("eval.backend", &self.eval.backend)];
        for (key, name) in backends.into_iter().filter(|(key, name)| *key == "model.backend" || !name.is_empty()) {
            // The path of a library would run its code, whoever wrote the suite.
            if !crate::plugin::is_name(name) {
                return fail(
                    format!("{key} = {name:?} is not the name of a backend"),
                    "a suite names backends by name, like \"native\"; the library of one is given on the command line: \
                     --backend-path FILE",
                );
            }
        }
        let data = &self.data;
        match (&data.file, &data.train, &data.heldout) {
            (Some(_), None, None) | (None, Some(_), Some(_)) => {}
            (None, None, Some(_)) if self.runs().is_empty() && data.validation.is_none() => {}
            (None, None, Some(_)) => {
                return fail(
                    "[data] has `heldout` and no `train`, but the suite trains something".into(),
                    "give `train` too, or leave out [train.lora], [train.full] and models with a `train` table",
                );
            }
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
        for (part, paths) in data.parts() {
            paths.iter().try_for_each(|path| files::found(path, part).map(drop))?;
        }
        if let Some(general) = &self.eval.general {
            files::found(&general.file, Part::Test)?;
        }
        if self.model.has_base() {
            model_dir::base_of_suite(&self.model.base, path)?;
        }
        for (name, hyperparameters) in self.runs() {
            hyperparameters.check(&name).map_err(|e| e.at(path.display()))?;
        }
        let chooses = self.runs().into_iter().find(|(_, h)| h.checkpoint_metric.is_some());
        let validates = data.validation.is_some() || data.heldout.is_some() || data.split.has_test();
        if let Some((name, _)) = chooses.filter(|_| !validates) {
            return fail(
                format!("{name}.checkpoint_metric chooses by the validation part, and the data has none"),
                "give three shares, as split = \"8:1:1\", or a file as data.validation: held-out items choose nothing",
            );
        }
        check_models::check(self, path)?;
        if data.max_length < 2 {
            return fail(format!("data.max_length = {} leaves nothing to learn", data.max_length), "give at least 2");
        }
        if let Some(lora) = &self.train.lora {
            lora.check("train.lora").map_err(|e| e.at(format!("{}: train.lora", path.display())))?;
        }
        // Found out here, not after an hour of training.
        crate::eval::metric::check_names(&self.eval.metrics).map_err(|e| e.at(path.display()))?;
        let gated: Vec<String> = self.gate.margins.keys().cloned().collect();
        crate::eval::metric::check_names(&gated).map_err(|e| e.at(path.display()))?;
        if let Some((metric, margin)) = self.gate.margins.iter().find(|(_, m)| !m.is_finite() || **m < 0.0) {
            return fail(
                format!("gate.margins.{metric} = {margin} must be a number of at least 0"),
                "correct the value",
            );
        }
        self.check_verdict(path)?;
        if let Some(name) = self.track.name.as_ref().filter(|name| !names_file(name)) {
            return fail(format!("track.name = {name:?} cannot name a folder"), "use letters, digits, '-' and '_'");
        }
        if let Some(other) = self.eval.allow.iter().find(|what| !MUST_BE_EQUAL.contains(&what.as_str())) {
            return fail(
                format!("eval.allow names {other:?}, which nothing is compared by"),
                &format!("it knows {}", MUST_BE_EQUAL.join(", ")),
            );
        }
        match self.eval.samples {
            1 => {}
            n @ (0 | 1025..) => {
                return fail(format!("eval.samples = {n} must be between 1 and 1024"), "correct the value");
            }
            n if self.eval.temperature == Some(0.0) => return Err(greedy_samples(n).at(path.display())),
            _ => {}
        }
        let EvalConfig { temperature, top_p, max_new_tokens, batch_size, .. } = self.eval;
        let refused = |value: &dyn std::fmt::Display, checked: Result<(), String>| match checked {
            Ok(()) => Ok(()),
            Err(why) => Err(format!("{value}: {why}")),
        };
        for (key, checked) in [
            ("eval.temperature", temperature.map_or(Ok(()), |t| refused(&t, limits::temperature(t).map(drop)))),
            ("eval.top_p", top_p.map_or(Ok(()), |p| refused(&p, limits::top_p(p).map(drop)))),
            (
                "eval.max_new_tokens",
                max_new_tokens.map_or(Ok(()), |n| refused(&n, limits::max_new_tokens(n as u64).map(drop))),
            ),
            ("eval.batch_size", refused(&batch_size, limits::decode_batch(batch_size as u64).map(drop))),
            ("data.max_length", refused(&data.max_length, limits::max_length(data.max_length as u64).map(drop))),
        ] {
            if let Err(why) = checked {
                return fail(format!("{key} = {why}"), "correct the value");
            }
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
        Ok(())
    }

    /// Refuses priorities that nothing is measured for.
    fn check_verdict(&self, path: &Path) -> Result<()> {
        let Some(verdict) = &self.verdict else { return Ok(()) };
        let general = ["general_nll", "general_bits_per_byte"];
        let of_general = |name: &str| self.eval.general.is_some() && general.contains(&name);
        let measured = |name: &String| self.eval.metrics.contains(name) || of_general(name);
        let fail = |what: String, help: String| Err(Error::usage(what).at(path.display()).help(help));
        if let Some(name) = std::iter::once(&verdict.primary).chain(verdict.floors.keys()).find(|name| !measured(name))
        {
            return match general.contains(&name.as_str()) {
                true => fail(
                    format!("[verdict] names {name}, but the suite has no general text"),
                    "give it as [eval.general] file = \"FILE\"".into(),
                ),
                false => fail(
                    format!("[verdict] names {name:?}, which the suite does not measure"),
                    format!("add it to eval.metrics, or name one of {}", self.eval.metrics.join(", ")),
                ),
            };
        }
        match verdict.floors.iter().find(|(_, floor)| !floor.is_finite() || **floor < 0.0) {
            Some((metric, floor)) => fail(
                format!("verdict.floors.{metric} = {floor} must be a number of at least 0"),
                "it says how much worse than the baseline a model may be".into(),
            ),
            None => Ok(()),
        }
    }
}
