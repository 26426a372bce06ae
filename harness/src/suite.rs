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
//! Relative paths are relative to the suite file. Three layers make the effective suite: the defaults written here, the
//! file, and `--set key=value` overrides; a key nobody knows is an error in each. The effective suite is stored in the
//! run folder, so that a run can be repeated from it alone.

mod written;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::backend::{AdamW, Dtype, EarlyStopping};
use crate::data::format::{Choices, End, Output};
use crate::data::record::Fields;
use crate::data::split::Parts;
use crate::error::{Error, Result};
use crate::report::Language;
use crate::train::LoraConfig;
use crate::train::schedule::Schedule;

pub use written::parse_setting;
use written::{check_spans, find, inherit_hyperparameters, set, toml_error};

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
    /// Seeds the split, the order of training, adapter initialisation, dropout, sampling and the statistics.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// What is learnt and asked.
    pub data: DataConfig,
    /// What is fine-tuned, and by which backend.
    pub model: ModelConfig,
    /// How it is fine-tuned.
    #[serde(default)]
    pub train: TrainSection,
    /// How it is measured.
    #[serde(default)]
    pub eval: EvalConfig,
    /// How differences are judged.
    #[serde(default)]
    pub stats: StatsConfig,
    /// What counts as a regression: metric name to rule.
    #[serde(default)]
    pub gate: GateConfig,
}

fn default_seed() -> u64 {
    42
}

/// The `[data]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// One file to be split: JSON lines, or CSV with a first line of column names (`.csv`).
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// How `file` is split after Python's shuffle: `"9:1"` is train and held-out (which then also serves the loss during
    /// training, as the recipe does), `"8:1:1"` train, validation and held-out. Where `train` and `heldout` are files and
    /// `validation` is not given, the first two shares cut it off `train`.
    #[serde(default = "default_split")]
    pub split: Parts,
    /// Training items, where they have their own file.
    #[serde(default)]
    pub train: Option<PathBuf>,
    /// Items for the loss during training, where they have their own file.
    #[serde(default)]
    pub validation: Option<PathBuf>,
    /// Held-out items, where they have their own file.
    #[serde(default)]
    pub heldout: Option<PathBuf>,
    /// Names of the fields in the JSON lines.
    #[serde(default)]
    pub fields: Fields,
    /// The system turn; empty for none.
    #[serde(default)]
    pub system_prompt: String,
    /// Which chat template renders prompts.
    #[serde(default)]
    pub template: TemplateChoice,
    /// How reasoning and answer become the response.
    #[serde(default = "default_output")]
    pub output: Output,
    /// What ends a training example; by default what goes with `output`.
    #[serde(default)]
    pub end: Option<End>,
    /// How the options of multiple-choice items are asked: `letter` lists them in the prompt and scores the labels, `text`
    /// scores their texts as answers to the question alone.
    #[serde(default, skip_serializing_if = "Choices::is_usual")]
    pub choices: Choices,
    /// Examples are cut to so many tokens (the end is lost).
    #[serde(default = "default_max_length")]
    pub max_length: usize,
    /// A bad line is an error, not a count.
    #[serde(default)]
    pub strict: bool,
    /// Use only the first so many training items; 0 is all.
    #[serde(default)]
    pub train_limit: usize,
}

fn default_split() -> Parts {
    Parts::NINE_ONE
}

fn default_output() -> Output {
    Output::Template
}

fn default_max_length() -> usize {
    2048
}

/// Which chat template renders prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TemplateChoice {
    /// The base model's own.
    #[default]
    Model,
    /// The literal ChatML text of the published scripts.
    ChatmlRecipe,
}

/// The `[model]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The base model's folder.
    pub base: PathBuf,
    /// The backend that trains.
    #[serde(default = "default_backend")]
    pub backend: String,
    /// Its device.
    #[serde(default = "default_device")]
    pub device: String,
    /// Its element type.
    #[serde(default)]
    pub dtype: Dtype,
    /// Worker threads; 0 is all cores.
    #[serde(default)]
    pub threads: usize,
}

fn default_backend() -> String {
    "candle".into()
}

fn default_device() -> String {
    "cpu".into()
}

/// The `[train]` table: what LoRA and full share, and one table for each.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSection {
    /// Train a LoRA adapter so; absent, none is trained.
    #[serde(default)]
    pub lora: Option<LoraTrain>,
    /// Train all parameters so; absent, they are not.
    #[serde(default)]
    pub full: Option<FullTrain>,
}

/// Hyperparameters under the Hugging Face trainer's meanings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hyperparameters {
    /// Passes over the training items.
    pub epochs: f64,
    /// Optimizer steps, overriding `epochs`; 0 is off.
    pub max_steps: usize,
    /// Rows of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of an optimizer step.
    pub accumulation: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Its course.
    pub schedule: Schedule,
    /// Warmup: below 1 a share of all steps, else steps.
    pub warmup: f64,
    /// Where the schedule `cosine_with_min_lr` ends, as a learning rate ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr: Option<f64>,
    /// ... or as a share of the peak.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr_rate: Option<f64>,
    /// The optimizer.
    pub optimizer: AdamW,
    /// Global gradient norm that is clipped to; 0 is off.
    pub max_grad_norm: f64,
    /// Evaluate every so many steps; 0 is only at the end.
    pub eval_every: usize,
    /// Save every so many steps; 0 is only at the end.
    pub save_every: usize,
    /// Keep at most so many checkpoints; 0 keeps all.
    pub save_total_limit: usize,
    /// End after so many evaluations in a row without a lower loss; 0 is off.
    #[serde(skip_serializing_if = "is_zero")]
    pub early_stopping_patience: usize,
    /// By how much a loss must be lower to count as such.
    #[serde(skip_serializing_if = "is_nought")]
    pub early_stopping_threshold: f64,
    /// Recompute activations in the backward pass.
    pub recompute: bool,
    /// Draw a new order every epoch.
    pub shuffle: bool,
    /// Measure the checkpoint with the lowest evaluation loss (`best`) or the last one (`last`).
    pub checkpoint: CheckpointChoice,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

fn is_nought(value: &f64) -> bool {
    *value == 0.0
}

impl Default for Hyperparameters {
    /// The published recipe: 2 epochs, batch 1 x 4, learning rate 1e-4 falling linearly to 0, clipping at 1.
    fn default() -> Self {
        Hyperparameters {
            epochs: 2.0,
            max_steps: 0,
            batch_size: 1,
            accumulation: 4,
            learning_rate: 1e-4,
            schedule: Schedule::Linear,
            warmup: 0.0,
            min_lr: None,
            min_lr_rate: None,
            optimizer: AdamW::default(),
            max_grad_norm: 1.0,
            eval_every: 100,
            save_every: 400,
            save_total_limit: 3,
            early_stopping_patience: 0,
            early_stopping_threshold: 0.0,
            recompute: true,
            shuffle: true,
            checkpoint: CheckpointChoice::Best,
        }
    }
}

/// Which checkpoint of a training run is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointChoice {
    /// The one with the lowest evaluation loss.
    #[default]
    Best,
    /// The last.
    Last,
}

/// The `[train.lora]` table: the adapter, and its own hyperparameters where they differ from `[train]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraTrain {
    /// The adapter.
    pub adapter: LoraConfig,
    /// How it is trained.
    pub hyperparameters: Hyperparameters,
}

/// The `[train.full]` table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FullTrain {
    /// How it is trained.
    pub hyperparameters: Hyperparameters,
}

/// The `[eval]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// The backend that evaluates; empty is the one that trained.
    pub backend: String,
    /// Held-out items to use, drawn as Python's `random.sample` draws; 0 is all.
    pub items: usize,
    /// Longest generation.
    pub max_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus; 1 is off.
    pub top_p: f64,
    /// Most probable tokens kept; 0 is off.
    pub top_k: usize,
    /// Rows decoded together; 0 lets the backend choose.
    pub batch_size: usize,
    /// The device that evaluates; absent, the one that trains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Options of the backend that evaluates, by its own names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, serde_json::Value>,
    /// What the template is told of thinking; absent, nothing.
    pub enable_thinking: Option<bool>,
    /// Metrics, in the order of the report.
    pub metrics: Vec<String>,
    /// Items shown in full.
    pub show: usize,
    /// Plain text that is not the task, to see what is forgotten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub general: Option<GeneralConfig>,
}

/// The `[eval.general]` table: texts that every model is scored on beside the items.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneralConfig {
    /// The texts: of a `.jsonl` file the `text` of every line, of any other the paragraphs.
    pub file: PathBuf,
    /// Use only the first so many; 0 is all.
    #[serde(default)]
    pub limit: usize,
}

impl Default for EvalConfig {
    fn default() -> Self {
        EvalConfig {
            backend: String::new(),
            items: 0,
            max_new_tokens: 2048,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            batch_size: 0,
            device: None,
            options: BTreeMap::new(),
            enable_thinking: None,
            metrics: DEFAULT_METRICS.map(String::from).to_vec(),
            show: 5,
            general: None,
        }
    }
}

/// The metrics of a report unless the suite names others.
pub const DEFAULT_METRICS: [&str; 17] = [
    "nll",
    "nll_think",
    "nll_answer",
    "perplexity",
    "bits_per_byte",
    "bleu",
    "rouge1",
    "rouge2",
    "rougeL",
    "vocab_precision",
    "vocab_recall",
    "vocab_f1",
    "key_points",
    "exact_match",
    "format",
    "truncated",
    "repetition",
];

/// The `[stats]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StatsConfig {
    /// Resamples of the bootstrap and of the permutation test.
    pub resamples: usize,
    /// Coverage of intervals.
    pub confidence: f64,
}

impl Default for StatsConfig {
    fn default() -> Self {
        StatsConfig { resamples: 10_000, confidence: 0.95 }
    }
}

/// The `[gate]` table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GateConfig {
    /// Non-inferiority margins by metric, in the metric's unit: a model may be worse than its baseline by at most this.
    pub margins: BTreeMap<String, f64>,
}

impl Hyperparameters {
    /// Refuses what cannot be carried out; `place` names the table.
    ///
    /// # Errors
    /// Usage, naming the key.
    pub fn check(&self, place: &str) -> Result<()> {
        for (key, value) in [("epochs", self.epochs), ("learning_rate", self.learning_rate)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::usage(format!("{place}: {key} = {value} must be above 0")));
            }
        }
        for (key, value) in [("batch_size", self.batch_size), ("accumulation", self.accumulation)] {
            if value == 0 {
                return Err(Error::usage(format!("{place}: {key} must be at least 1")));
            }
        }
        let AdamW { beta1, beta2, eps, weight_decay } = self.optimizer;
        let in_range = |x: f64| (0.0..1.0).contains(&x);
        if !in_range(beta1)
            || !in_range(beta2)
            || eps.is_nan()
            || eps <= 0.0
            || weight_decay.is_nan()
            || weight_decay < 0.0
        {
            return Err(Error::usage(format!(
                "{place}: the optimizer needs betas in [0, 1), eps above 0 and weight_decay of at least 0"
            )));
        }
        if !self.max_grad_norm.is_finite() || self.max_grad_norm < 0.0 {
            return Err(Error::usage(format!("{place}: max_grad_norm must be at least 0 (0 is off)")));
        }
        self.floor(place)?;
        self.early_stopping(place)?;
        Ok(())
    }

    /// Where the schedule ends, as a share of the peak.
    fn floor(&self, place: &str) -> Result<f64> {
        let fails = |what: &str| Err(Error::usage(format!("{place}: {what}")));
        if self.schedule != Schedule::CosineWithMinLr {
            return match (self.min_lr, self.min_lr_rate) {
                (None, None) => Ok(0.0),
                _ => fails("min_lr and min_lr_rate are for schedule = \"cosine_with_min_lr\""),
            };
        }
        let floor = match (self.min_lr, self.min_lr_rate) {
            (Some(rate), None) => rate / self.learning_rate,
            (None, Some(share)) => share,
            _ => return fails("schedule = \"cosine_with_min_lr\" needs one of min_lr and min_lr_rate"),
        };
        match (0.0..=1.0).contains(&floor) {
            true => Ok(floor),
            false => fails("the schedule must end between 0 and its peak; correct min_lr or min_lr_rate"),
        }
    }

    /// The learning rate of each of `steps` optimizer steps.
    ///
    /// # Errors
    /// Usage, for settings that contradict each other.
    pub fn learning_rates(&self, steps: usize) -> Result<Vec<f64>> {
        self.schedule.learning_rates(self.learning_rate, steps, self.warmup, self.floor("train")?)
    }

    /// When to end early, if at all; `place` names the table.
    ///
    /// # Errors
    /// Usage, for a threshold that is no number of at least 0, or one that nothing waits for, or without evaluations.
    pub fn early_stopping(&self, place: &str) -> Result<Option<EarlyStopping>> {
        let (patience, threshold) = (self.early_stopping_patience, self.early_stopping_threshold);
        let fails = |what: &str| Err(Error::usage(format!("{place}: {what}")));
        if !threshold.is_finite() || threshold < 0.0 {
            return fails("early_stopping_threshold must be a number of at least 0");
        }
        match (patience, threshold) {
            (0, 0.0) => Ok(None),
            (0, _) => fails("early_stopping_threshold has no effect without early_stopping_patience"),
            _ if self.eval_every == 0 => fails("early_stopping_patience needs evaluations: set eval_every above 0"),
            _ => Ok(Some(EarlyStopping { patience, threshold })),
        }
    }
}

impl LoraTrain {
    /// Refuses what cannot be carried out; `place` names the table.
    ///
    /// # Errors
    /// Usage, naming the key.
    pub fn check(&self, place: &str) -> Result<()> {
        self.adapter.check().map_err(|e| e.at(place))?;
        self.hyperparameters.check(place)
    }
}

impl Suite {
    /// Finds and loads a suite: `spec` is a path to a TOML file, a folder with a `suite.toml`, or the name of a suite
    /// in a `suites` folder of this folder or one above it. `overrides` are `key.path=value` pairs.
    ///
    /// # Errors
    /// Not found (with every place tried), not TOML, an unknown key, a wrong type (with line and column), a
    /// combination that makes no sense, a file that is not there.
    pub fn load(spec: &str, overrides: &[String]) -> Result<Suite> {
        let path = find(spec)?;
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read the suite file", &path, e))?;
        Suite::parse(&text, &path, overrides)
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
        let mut table: Table = toml::from_str(text).map_err(|e| toml_error(&e, text, path))?;
        let mut shared = inherit_hyperparameters(&mut table, path)?;
        let written = table.clone();
        // Without overrides the file alone must be a suite; this parse has the spans.
        if overrides.is_empty() {
            check_spans(text, path)?;
        }
        for override_ in overrides {
            set(&mut table, &mut shared, override_)?;
        }
        let mut suite: Suite = Value::Table(table).try_into().map_err(|e: toml::de::Error| {
            // With overrides, either the file is wrong, which has a place in it, or an override is.
            match check_spans(text, path) {
                Err(in_file) => in_file,
                Ok(()) => {
                    let file_alone = Value::Table(written).try_into::<Suite>().is_ok();
                    let place = if file_alone { "--set".to_string() } else { path.display().to_string() };
                    Error::usage(e.message().trim().to_string())
                        .at(place)
                        .help("see the suite reference in the documentation of karat::suite")
                }
            }
        })?;
        let folder = path.parent().unwrap_or(Path::new("."));
        suite.resolve_paths(&std::path::absolute(folder).map_err(|e| Error::io("resolve", folder, e))?);
        suite.check(path)?;
        Ok(suite)
    }

    /// The effective suite as TOML, as it is stored in the run folder.
    ///
    /// # Errors
    /// If a number does not fit TOML.
    pub fn to_toml(&self) -> Result<String> {
        // By way of a value, in which tables come after plain values, as TOML wants it.
        Value::try_from(self)
            .and_then(|value| toml::to_string(&value))
            .map_err(|e| Error::failed("could not write the suite as TOML").because(e))
    }

    fn resolve_paths(&mut self, folder: &Path) {
        let data = &mut self.data;
        for path in [&mut data.file, &mut data.train, &mut data.validation, &mut data.heldout].into_iter().flatten() {
            *path = folder.join(&*path);
        }
        if let Some(general) = &mut self.eval.general {
            general.file = folder.join(&general.file);
        }
        self.model.base = folder.join(&self.model.base);
    }

    fn check(&self, path: &Path) -> Result<()> {
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
        if !(self.stats.confidence > 0.5 && self.stats.confidence < 1.0) || self.stats.resamples < 100 {
            return fail(
                format!(
                    "stats: confidence = {} must be between 0.5 and 1 and resamples = {} at least 100",
                    self.stats.confidence, self.stats.resamples
                ),
                "correct the value",
            );
        }
        Ok(())
    }

    /// The training runs of this suite, by name, in order: `lora`, then `full`.
    pub fn runs(&self) -> Vec<(&'static str, &Hyperparameters)> {
        let lora = self.train.lora.as_ref().map(|l| ("lora", &l.hyperparameters));
        let full = self.train.full.as_ref().map(|f| ("full", &f.hyperparameters));
        lora.into_iter().chain(full).collect()
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
        assert!(fails("", &["train.epochs=3"]).contains("trains neither"));
        assert!(fails("[train]\nepochs = 3\n", &[]).contains("neither"));
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
    fn an_unknown_key_is_named_with_its_place() {
        let folder = place();
        let error = |text: &str, overrides: &[&str]| parse_in(folder.path(), text, overrides).unwrap_err().to_string();
        let in_set = error(TRAIN, &["train.epoch=3"]);
        assert!(in_set.starts_with("--set: ") && in_set.contains("`epoch`") && in_set.contains("epochs"), "{in_set}");
        // An override does not hide where in the file the mistake is.
        let in_file = error("[data]\nfile = \"all.jsonl\"\nmaxlength = 5\n", &["seed=1"]);
        assert!(in_file.contains("suite.toml:4:1") && in_file.contains("maxlength"), "{in_file}");
        let in_train = error("[train.full]\nepoch = 3\n", &["seed=1"]);
        assert!(in_train.contains("suite.toml: ") && in_train.contains("`epoch`"), "{in_train}");
    }
}
