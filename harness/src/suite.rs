//! The suite file: one TOML file that says everything about an experiment.
//!
//! ```toml
//! name = "medical-r1"
//! seed = 42
//!
//! [data]
//! train = "train.jsonl"
//! heldout = "heldout.jsonl"        # or: file = "all.jsonl" and split = "9:1"
//! system_prompt = "你是一个医学专家，你需要根据用户的问题，给出带有思考的回答。"
//!
//! [model]
//! base = "base"                    # a folder in the Hugging Face layout
//!
//! [train]                          # what LoRA and full share
//! epochs = 2
//! learning_rate = 1e-4
//!
//! [train.lora]                     # what is LoRA's own; left out, it is not trained
//! r = 8
//! lora_alpha = 32
//!
//! [train.full]
//!
//! [eval]
//! max_new_tokens = 256
//! ```
//!
//! Relative paths are relative to the suite file. Where a model's folder or a data file stands, an id
//! of a hub may stand as well: `base = "hf:Qwen/Qwen3-0.6B"`, `file = "ms:owner/data/train.jsonl"` (see
//! [`crate::hub`]); the commits that branches meant are stored as `[pins]`. Three layers make the effective suite: the
//! defaults written here, the file, and `--set key=value` overrides; a key nobody knows is an error
//! in each. The effective suite is stored in the run folder, so that a run can be repeated from it
//! alone.

mod check;
mod check_models;
mod data;
mod eval;
mod field_names;
mod hub;
mod keys;
pub mod limits;
mod model;
mod models;
mod overrides;
mod parse;
mod paths;
mod toml_errors;
mod track;
mod train;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::error::{Error, Result};
use crate::hub::Source;
use crate::report::Language;

pub(crate) use check_models::names_file;
pub use data::DataConfig;
pub use eval::{
    Checkpoints, DEFAULT_METRICS, EvalConfig, GateConfig, GeneralConfig, NamedCheckpoints, StatsConfig, VerdictConfig,
};
pub use keys::training_keys;
pub use model::{ModelSettings, TemplateChoice};
pub use models::{ComparePair, ModelRole, NamedModel, NamedModels, SuiteModel, TrainMethod, TrainModel};
pub use overrides::Overrides;
pub use parse::parse_setting;
use parse::{check_spans, find, inherit_hyperparameters, nothing_is_trained, refuse_places};
pub use paths::Paths;
use toml_errors::toml_error;
pub use track::TrackConfig;
pub use train::{CheckpointChoice, FullTrain, Hyperparameters, LoraTrain, TrainSection};

/// An experiment, fully resolved: paths are absolute, defaults are filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Short name; the run folder and the report are named after it.
    pub name: String,
    /// One sentence for the report's head.
    #[serde(default)]
    pub title: String,
    /// A sentence or two below it: what the data is, and what it is not.
    #[serde(default)]
    pub description: String,
    /// Language of the report: `en` or `zh`.
    #[serde(default)]
    pub language: Language,
    /// Seeds the split, the order of training, adapter initialisation, dropout, sampling and the
    /// statistics.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// What is learnt and asked.
    pub data: DataConfig,
    /// What is fine-tuned, and by which backend.
    #[serde(default)]
    pub model: ModelSettings,
    /// How it is fine-tuned.
    #[serde(default)]
    pub train: TrainSection,
    /// More models, by name.
    #[serde(default, skip_serializing_if = "NamedModels::is_empty")]
    pub models: NamedModels,
    /// More comparisons than every model with the baseline.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compare: Vec<ComparePair>,
    /// How it is measured.
    #[serde(default)]
    pub eval: EvalConfig,
    /// How differences are judged.
    #[serde(default)]
    pub stats: StatsConfig,
    /// What counts as a regression: metric name to rule.
    #[serde(default)]
    pub gate: GateConfig,
    /// Which model one would ship.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<VerdictConfig>,
    /// Which trackers are written for.
    #[serde(default, skip_serializing_if = "TrackConfig::is_default")]
    pub track: TrackConfig,
    /// What branches and tags of the hubs are taken to mean: `"hf:owner/name" = "COMMIT"`, of a
    /// dataset `"hf:datasets/owner/name" = "COMMIT"`. A run notes here what they meant when it began, and stays with it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pins: BTreeMap<String, String>,
    /// What came from a hub, in place of which the paths above stand.
    #[serde(skip)]
    pub sources: Vec<Source>,
}

fn default_seed() -> u64 {
    42
}

impl Suite {
    /// Finds and loads a suite: `spec` is a path to a TOML file, a folder with a `suite.toml`, or
    /// the name of a suite in a `suites` folder of this folder or one above it. `overrides` are
    /// `key.path=value` pairs.
    ///
    /// # Errors
    /// Not found (with every place tried), not TOML, an unknown key, a wrong type (with line and
    /// column), a combination that makes no sense, a file that is not there.
    pub fn load(spec: &str, overrides: &[String]) -> Result<Suite> {
        Suite::load_with(spec, &overrides.into())
    }

    /// As [`Suite::load`], with what the command line says in its types.
    ///
    /// # Errors
    /// See [`Suite::load`].
    pub fn load_with(spec: &str, overrides: &Overrides) -> Result<Suite> {
        let path = find(spec)?;
        let text = std::fs::read(&path).map_err(|e| Error::io("read the suite file", &path, e))?;
        let text = String::from_utf8(text).map_err(|e| {
            let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
            Error::usage("the suite file is not UTF-8").at(format!("{}:{line}", path.display())).because(e)
        })?;
        Suite::parse_with(&text, &path, overrides)
    }

    /// Where [`Suite::load`] finds a suite.
    ///
    /// # Errors
    /// Usage, if there is none, with every place tried.
    pub fn find(spec: &str) -> Result<PathBuf> {
        find(spec)
    }

    /// Parses the text of a suite file that lies at `path`.
    ///
    /// # Errors
    /// See [`Suite::load`].
    pub fn parse(text: &str, path: &Path, overrides: &[String]) -> Result<Suite> {
        Suite::parse_with(text, path, &overrides.into())
    }

    /// As [`Suite::parse`], with what the command line says in its types.
    ///
    /// # Errors
    /// See [`Suite::load`].
    pub fn parse_with(text: &str, path: &Path, overrides: &Overrides) -> Result<Suite> {
        let mut table: Table = toml::from_str(text).map_err(|e| toml_error(&e, text, path))?;
        keys::check_written(text, path)?;
        let (mut shared, idle) = inherit_hyperparameters(&mut table, path)?;
        refuse_places(&table, path)?;
        // Without overrides the file alone must be a suite; this parse has the spans.
        if overrides.is_empty() {
            check_spans(text, path)?;
        }
        let written = (table.clone(), shared.clone());
        overrides.apply(&mut table, &mut shared)?;
        let mut suite: Suite = Value::Table(table).try_into().map_err(|e: toml::de::Error| {
            // With overrides, either the file is wrong, which has a place in it, or an override is.
            match check_spans(text, path) {
                Err(in_file) => in_file,
                Ok(()) => overrides.refused(written, &e),
            }
        })?;
        // A bare file name lies in the folder called nothing.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        suite.resolve_paths(&std::path::absolute(folder).map_err(|e| Error::io("resolve", folder, e))?);
        suite.bring(&overrides.pins).map_err(|e| if e.place().is_none() { e.at(path.display()) } else { e })?;
        suite.check(path)?;
        // Last: what is wrong with the tables of models explains it better.
        match idle && suite.runs().is_empty() {
            true => Err(nothing_is_trained(path)),
            false => Ok(suite),
        }
    }

    /// The effective suite as TOML, as it is stored in the run folder: with the ids of what came from
    /// a hub, and what they meant as `pins`.
    ///
    /// # Errors
    /// If a number does not fit TOML.
    pub fn to_toml(&self) -> Result<String> {
        // By way of a value, in which tables come after plain values, as TOML wants it.
        Value::try_from(self.as_written())
            .and_then(|value| toml::to_string(&value))
            .map_err(|e| Error::failed("could not write the suite as TOML").because(e))
    }

    /// What this suite trains: the key of the table, and the hyperparameters.
    pub fn runs(&self) -> Vec<(String, &Hyperparameters)> {
        let lora = self.train.lora.as_ref().map(|l| ("train.lora".to_string(), &l.hyperparameters));
        let full = self.train.full.as_ref().map(|f| ("train.full".to_string(), &f.hyperparameters));
        let named = self.models.0.iter();
        let named =
            named.filter_map(|(name, m)| Some((format!("models.{name}.train"), &m.train.as_ref()?.hyperparameters)));
        lora.into_iter().chain(full).chain(named).collect()
    }

    /// The backend that evaluates.
    pub fn eval_backend(&self) -> &str {
        if self.eval.backend.is_empty() { &self.model.backend } else { &self.eval.backend }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with what a suite needs to exist.
    fn place() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("base")).unwrap();
        std::fs::write(folder.path().join("base/config.json"), "{}").unwrap();
        for name in ["all.jsonl", "heldout.jsonl", "validation.jsonl"] {
            std::fs::write(folder.path().join(name), "{}\n").unwrap();
        }
        folder
    }

    fn parse_in(folder: &Path, rest: &str, overrides: &[&str]) -> Result<Suite> {
        let text = if rest.contains("[data]") { rest.to_string() } else { format!("{DATA}{rest}") };
        let text = format!("name = \"x\"\n{text}\n[model]\nbase = \"base\"\n");
        let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
        Suite::parse(&text, &folder.join("suite.toml"), &overrides)
    }

    const DATA: &str = "[data]\nfile = \"all.jsonl\"\n";
    const TRAIN: &str = "[train]\nepochs = 8\noptimizer = { weight_decay = 0.1 }\n[train.full]\n";

    #[test]
    fn a_run_that_an_override_adds_has_the_shared_settings_too() {
        let folder = place();
        for overrides in [
            &["train.lora.r=16"][..],
            &["train.lora={ r = 16 }"],
            &["train.lora.adapter.r=16"],
            &["train.lora={}", "train.lora.r=16"],
        ] {
            let suite = parse_in(folder.path(), TRAIN, overrides).unwrap();
            let lora = suite.train.lora.unwrap();
            assert_eq!((lora.adapter.r, lora.hyperparameters.epochs), (16, 8.0), "{overrides:?}");
            assert_eq!(lora.hyperparameters.optimizer.weight_decay, 0.1, "{overrides:?}");
            assert_eq!(suite.train.full.unwrap().hyperparameters.epochs, 8.0);
        }
        let suite = parse_in(folder.path(), TRAIN, &["train.epochs=3", "train.lora.r=4"]).unwrap();
        assert_eq!(suite.runs().iter().map(|(_, h)| h.epochs).collect::<Vec<_>>(), [3.0, 3.0]);
    }

    #[test]
    fn overrides_reach_flat_and_nested_train_tables() {
        let folder = place();
        let both = format!("{TRAIN}[train.lora]\nepochs = 2\n");
        let suite = parse_in(folder.path(), &both, &["train.epochs=3", "train.lora.optimizer.beta1=0.5"]).unwrap();
        let lora = suite.train.lora.as_ref().unwrap();
        assert_eq!(lora.hyperparameters.epochs, 3.0);
        assert_eq!((lora.hyperparameters.optimizer.beta1, lora.hyperparameters.optimizer.weight_decay), (0.5, 0.1));
        // A stored effective suite is nested; the same overrides reach it.
        let stored = suite.to_toml().unwrap();
        let path = folder.path().join("elsewhere.toml");
        assert_eq!(Suite::parse(&stored, &path, &[]).unwrap(), suite);
        let again = Suite::parse(&stored, &path, &["train.epochs=5".into(), "train.lora.r=2".into()]).unwrap();
        let lora = again.train.lora.as_ref().unwrap();
        assert_eq!((lora.hyperparameters.epochs, lora.adapter.r), (5.0, 2));
        assert_eq!(again.train.full.as_ref().unwrap().hyperparameters.epochs, 5.0);
    }

    #[test]
    fn settings_under_the_names_of_other_trainers_are_the_same_suite() {
        let folder = place();
        let theirs =
            "[train]\nnum_train_epochs = 3\nweight_decay = 0.1\n[train.lora]\nlora_r = 4\nwarmup_ratio = 0.1\n";
        let ours = "[train]\nepochs = 3\noptimizer = { weight_decay = 0.1 }\n[train.lora]\nr = 4\nwarmup = 0.1\n";
        let ours = parse_in(folder.path(), ours, &[]).unwrap();
        assert_eq!(parse_in(folder.path(), theirs, &[]).unwrap(), ours);
        let set = [
            "train.num_train_epochs=3",
            "train.weight_decay=0.1",
            "train.lora.lora_r=4",
            "train.lora.warmup_ratio=0.1",
        ];
        assert_eq!(parse_in(folder.path(), "[train.lora]\n", &set).unwrap(), ours);
        let set = ["train.lora={ lora_r = 4, warmup_ratio = 0.1, num_train_epochs = 3, weight_decay = 0.1 }"];
        assert_eq!(parse_in(folder.path(), "", &set).unwrap(), ours);

        let error = |text: &str, set: &[&str]| parse_in(folder.path(), text, set).unwrap_err().to_string();
        let wrong = error("[train.lora]\nper_device_train_batch_size = \"two\"\n", &[]);
        assert!(wrong.contains("suite.toml:5:31") && wrong.contains("`per_device_train_batch_size`"), "{wrong}");
        let refused = error("[train.lora]\nbf16 = true\n", &[]);
        assert!(refused.contains("suite.toml:5:1") && refused.contains("`bf16`"), "{refused}");
        assert!(error("[train.lora]\nepochs = 1\nnum_train_epochs = 1\n", &[]).contains("another name of `epochs`"));
    }

    #[test]
    fn shared_settings_reach_a_nested_table_and_part_of_an_optimizer() {
        let folder = place();
        let text = "[train]\nepochs = 8\n[train.optimizer]\nweight_decay = 0.1\n[train.lora.adapter]\nr = 2\n\
                    [train.full.optimizer]\nbeta1 = 0.5\n";
        let suite = parse_in(folder.path(), text, &[]).unwrap();
        assert_eq!(suite.train.lora.as_ref().unwrap().hyperparameters.epochs, 8.0);
        let full = &suite.train.full.as_ref().unwrap().hyperparameters;
        assert_eq!((full.epochs, full.optimizer.beta1, full.optimizer.weight_decay), (8.0, 0.5, 0.1));
    }

    #[test]
    fn a_suite_may_train_nothing_and_its_stored_form_loads_again() {
        let folder = place();
        let suite = parse_in(folder.path(), "", &[]).unwrap();
        assert!(suite.runs().is_empty());
        let stored = suite.to_toml().unwrap();
        assert_eq!(Suite::parse(&stored, Path::new("/elsewhere/suite.toml"), &[]).unwrap(), suite);
    }

    #[test]
    fn a_setting_without_effect_is_an_error() {
        let folder = place();
        let fails = |text: &str, overrides: &[&str]| {
            let error = parse_in(folder.path(), text, overrides).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Usage);
            error.to_string()
        };
        assert!(fails("", &["train.epochs=3"]).contains("trains none"));
        assert!(fails("[train]\nepochs = 3\n", &[]).contains("nothing is trained"));
        let both = "[data]\nfile = \"all.jsonl\"\nvalidation = \"validation.jsonl\"\n";
        assert!(fails(both, &[]).contains("validation"));
        let three = "[data]\ntrain = \"all.jsonl\"\nheldout = \"heldout.jsonl\"\nsplit = \"8:1:1\"\n";
        assert!(fails(three, &[]).contains("third share"));
        assert!(fails("", &["eval.top_p=0"]).contains("top_p"));
        assert!(fails("", &["gate.margins.nlll=0.1"]).contains("nlll"));
        assert!(fails("", &["gate.margins.nll=-0.1"]).contains("margins.nll"));
        assert!(fails("", &["eval.temperature=-1"]).contains("temperature"));
    }

    #[test]
    fn a_number_beyond_all_use_is_refused_by_its_key() {
        let folder = place();
        for (key, values) in [
            ("train.max_steps", &["9223372036854775807", "4294967296", "-1", "2.5"][..]),
            ("train.epochs", &["1e30", "0", "-1", "nan", "inf"]),
            ("train.batch_size", &["4294967296", "0"]),
            ("train.accumulation", &["4294967296", "0"]),
            ("train.learning_rate", &["1e30", "0", "nan", "inf"]),
            ("train.warmup", &["1e30", "-1", "nan", "inf"]),
            ("train.optimizer.eps", &["1e30", "0", "nan"]),
            ("train.optimizer.weight_decay", &["-1", "inf", "nan"]),
            ("train.max_grad_norm", &["-1", "inf", "nan"]),
            ("eval.temperature", &["1e30", "-1", "nan", "inf"]),
            ("eval.max_new_tokens", &["4294967296", "0"]),
            ("eval.batch_size", &["4294967296"]),
            ("data.max_length", &["4294967296", "1"]),
            ("stats.resamples", &["9223372036854775807", "1"]),
            ("stats.confidence", &["1", "nan", "1e30"]),
            ("gate.margins.nll", &["-1", "inf", "nan"]),
        ] {
            for value in values {
                let error = parse_in(folder.path(), TRAIN, &[&format!("{key}={value}")]).unwrap_err();
                assert_eq!(error.kind(), crate::ErrorKind::Usage, "{key}={value}: {error}");
                let name = key.rsplit('.').next().unwrap();
                assert!(error.to_string().contains(name), "{key}={value}: {error}");
            }
        }
    }

    #[test]
    fn trackers_are_known_by_name_and_no_part_of_the_experiment() {
        let folder = place();
        let tracked = "[track]\nto = [\"tensorboard\", \"swanlab\"]\nname = \"mine\"\n";
        let suite = parse_in(folder.path(), tracked, &["track.samples=1"]).unwrap();
        assert_eq!((suite.track.to.len(), suite.track.samples), (2, 1));
        let plain = parse_in(folder.path(), "", &[]).unwrap();
        assert_eq!(plain.track.samples, 3);
        assert!(!plain.to_toml().unwrap().contains("track"));
        let comparable = |suite: &Suite| crate::run::comparable(suite).unwrap();
        assert_eq!(comparable(&suite), comparable(&plain));
        let error = |text: &str| parse_in(folder.path(), text, &[]).unwrap_err().to_string();
        let unknown = error("[track]\nto = [\"tensorbord\"]\n");
        assert!(unknown.contains("suite.toml:5:") && unknown.contains("known are tensorboard, swanlab"), "{unknown}");
        assert!(error("[track]\nname = \"../x\"\n").contains("track.name"));
        // Where is written, the command line alone says.
        assert!(error("[track]\ndir = \"/tmp\"\n").contains("track.dir"));
        let elsewhere = parse_in(folder.path(), "", &["track.dir=/tmp/x"]).unwrap();
        assert_eq!(elsewhere.track.dir.as_deref(), Some(Path::new("/tmp/x")));
        assert!(!elsewhere.to_toml().unwrap().contains("/tmp/x"));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place() {
        let folder = place();
        let error = |text: &str, overrides: &[&str]| parse_in(folder.path(), text, overrides).unwrap_err().to_string();
        let in_set = error(TRAIN, &["train.epoch=3"]);
        assert!(in_set.starts_with("--set: ") && in_set.contains("`epoch`") && in_set.contains("epochs"), "{in_set}");
        // An override does not hide where in the file the mistake is.
        let in_file = error("[data]\nfile = \"all.jsonl\"\nmaxlength = 5\n", &["seed=1"]);
        assert!(in_file.contains("suite.toml:4:1") && in_file.contains("maxlength"), "{in_file}");
        let in_train = error("[train.full]\nepoch = 3\n", &["seed=1"]);
        assert!(in_train.contains("suite.toml:5:1") && in_train.contains("`epoch`"), "{in_train}");
    }
}
