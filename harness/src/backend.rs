//! What a backend is: the safe traits an author implements and the host calls.
//!
//! A backend turns token ids into numbers. It never sees a suite, a chat template, a report or a metric: tokenizing,
//! truncation, the loss mask, the order of batches, the learning-rate schedule and every seed are decided by the host
//! and handed over as data, so that two backends given the same plan can be compared number by number.
//!
//! A backend is stateless; [`Backend::open`] gives a [`Session`] that holds one model (and at most one adapter) on one
//! device. A session may offer an [`Evaluator`], a [`Trainer`] or both. The same traits serve in process (tests) and
//! across the plugin boundary ([`crate::abi`], [`crate::plugin`]).

mod convert;
mod threads;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::train::LoraConfig;

pub use convert::{AdapterMode, ExportConfig, ExportSummary, NamedAdapter};
pub use threads::{bounded_threads, most_threads, worker_threads};

/// The label of a position that is not trained on (PyTorch's `ignore_index`).
pub const IGNORE: i32 = -100;

/// A library of model code: describes itself and opens sessions.
pub trait Backend: Send + Sync + 'static {
    /// What this backend is and can do. Cheap; needs no device and touches no file.
    fn describe(&self) -> Descriptor;
    /// Loads a model onto a device.
    ///
    /// # Errors
    /// [`BackendErrorKind::Unsupported`] for a device, dtype, architecture or adapter variant that is not implemented
    /// (named in the message), [`BackendErrorKind::Failed`] for broken or missing files.
    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>, BackendError>;
    /// Writes a model in this backend's own format, if it has one ([`Capability::Export`]). Emits [`Event::Progress`] at
    /// least once per tensor; [`Flow::Stop`] ends with [`BackendErrorKind::Cancelled`] and leaves nothing behind.
    ///
    /// # Errors
    /// [`BackendErrorKind::Unsupported`] for what cannot be written, [`BackendErrorKind::Failed`] for broken or missing
    /// files and a folder that holds something else. Nothing half-written stays.
    fn export(&self, config: &ExportConfig, sink: &mut dyn EventSink) -> Result<ExportSummary, BackendError> {
        let _ = (config, sink);
        Err(BackendError::unsupported(format!("the backend {} exports no models", self.describe().name)))
    }
    /// Looks for what this backend needs of the machine beside itself to run on `device` (a runtime library, a driver) and says
    /// what it found; with `fix` it fetches what is missing first. A backend that needs nothing leaves this as it is.
    ///
    /// # Errors
    /// Something is missing or unusable; the message says the one command to run.
    fn provide(&self, fix: bool, device: &str) -> Result<Provisions, BackendError> {
        let _ = (fix, device);
        Ok(Provisions::default())
    }
    /// What this backend's kernels reach on `device` with all its processors, beside what the device could do at most: facts
    /// for a person, each with its unit. It takes seconds. A backend that has no kernels of its own leaves this as it is.
    ///
    /// # Errors
    /// The device is not there, or a choice of kernels in the environment is none.
    fn measure(&self, device: &str) -> Result<Provisions, BackendError> {
        let _ = device;
        Ok(Provisions::default())
    }
}

/// What a backend found of what it needs of the machine or can do on it; see [`Backend::provide`] and [`Backend::measure`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provisions {
    /// Facts in the order of their names: `library`, `providers`, `version`.
    pub facts: BTreeMap<String, String>,
}

/// One model on one device. Calls are made from one thread at a time.
pub trait Session: Send {
    /// The evaluator, if this backend can score and generate.
    fn evaluator(&mut self) -> Option<&mut dyn Evaluator> {
        None
    }
    /// The trainer, if this backend can train.
    fn trainer(&mut self) -> Option<&mut dyn Trainer> {
        None
    }
    /// What was really opened: dtype, device, kernels, parameter count, effective thread count.
    fn info(&self) -> SessionInfo;
    /// Exchanges the adapter for the one in a folder (PEFT layout), or for none, and keeps the base model resident
    /// ([`Capability::ExchangeAdapter`]). If it fails, the session goes on with the adapter it had.
    ///
    /// # Errors
    /// [`BackendErrorKind::Unsupported`] if this session cannot, or not with such an adapter; [`BackendErrorKind::Failed`]
    /// for a broken adapter or one of another base.
    fn set_adapter(&mut self, adapter: Option<&Path>) -> Result<(), BackendError> {
        let _ = adapter;
        Err(BackendError::unsupported("this session cannot exchange its adapter; open another"))
    }
}

/// Teacher-forced scoring and free generation: with them every request type of the field can be served
/// (log-likelihood, rolling log-likelihood, multiple choice, generate-until).
pub trait Evaluator {
    /// The log-probability of every token given its prefix, for a batch of rows `tokens`.
    ///
    /// Emits [`Event::Progress`] at least once per internal batch; [`Flow::Stop`] ends with
    /// [`BackendErrorKind::Cancelled`].
    fn score(&mut self, tokens: TokensView<'_>, sink: &mut dyn EventSink) -> Result<Scores, BackendError>;

    /// Continues every prompt. Emits one [`Event::Completion`] per row as soon as the row is complete (in any order),
    /// and [`Event::Progress`] at least once per decoded batch step; returns all completions in row order.
    fn generate(
        &mut self,
        prompts: TokensView<'_>,
        config: &GenerateConfig,
        sink: &mut dyn EventSink,
    ) -> Result<Vec<Completion>, BackendError>;
}

/// Supervised training of the open model.
pub trait Trainer {
    /// Carries out `plan` on `train`, evaluating on `eval` as the plan says. Emits [`Event::Step`] once per optimizer
    /// step; [`Flow::Stop`] ends with [`BackendErrorKind::Cancelled`] after a resumable checkpoint was written.
    fn train(
        &mut self,
        train: LabelledView<'_>,
        eval: LabelledView<'_>,
        plan: &TrainPlan,
        sink: &mut dyn EventSink,
    ) -> Result<TrainSummary, BackendError>;
}

/// Ragged rows of token ids, owned: row `i` is `ids[offsets[i]..offsets[i + 1]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    ids: Vec<u32>,
    offsets: Vec<usize>,
}

impl Default for Tokens {
    fn default() -> Self {
        Tokens { ids: Vec::new(), offsets: vec![0] }
    }
}

impl Tokens {
    /// No rows.
    pub fn new() -> Self {
        Self::default()
    }
    /// Appends a row (which may be empty).
    pub fn push(&mut self, row: &[u32]) {
        self.ids.extend_from_slice(row);
        self.offsets.push(self.ids.len());
    }
    /// A borrowed view.
    pub fn view(&self) -> TokensView<'_> {
        TokensView { ids: &self.ids, offsets: &self.offsets }
    }
}

impl<R: AsRef<[u32]>> FromIterator<R> for Tokens {
    fn from_iter<I: IntoIterator<Item = R>>(rows: I) -> Self {
        let mut tokens = Tokens::new();
        rows.into_iter().for_each(|row| tokens.push(row.as_ref()));
        tokens
    }
}

/// Borrowed ragged rows of token ids.
#[derive(Clone, Copy, Debug)]
pub struct TokensView<'a> {
    ids: &'a [u32],
    offsets: &'a [usize],
}

impl<'a> TokensView<'a> {
    /// Checks and wraps raw parts: `offsets` starts at 0, never falls and ends at `ids.len()`.
    ///
    /// # Errors
    /// Says which of these is broken.
    pub fn new(ids: &'a [u32], offsets: &'a [usize]) -> Result<Self, BackendError> {
        let ordered = offsets.windows(2).all(|w| w[0] <= w[1]);
        if offsets.first() != Some(&0) || offsets.last() != Some(&ids.len()) || !ordered {
            return Err(BackendError::failed(format!(
                "ragged offsets must rise from 0 to the number of ids ({}), got {} offsets from {:?} to {:?}",
                ids.len(),
                offsets.len(),
                offsets.first(),
                offsets.last()
            )));
        }
        Ok(TokensView { ids, offsets })
    }
    /// How many rows.
    pub fn rows(&self) -> usize {
        self.offsets.len() - 1
    }
    /// Row `i`.
    pub fn row(&self, i: usize) -> &'a [u32] {
        &self.ids[self.offsets[i]..self.offsets[i + 1]]
    }
    /// All rows in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u32]> + use<'a> {
        let (ids, offsets) = (self.ids, self.offsets);
        (0..offsets.len() - 1).map(move |i| &ids[offsets[i]..offsets[i + 1]])
    }
    /// The ids of all rows, back to back.
    pub fn ids(&self) -> &'a [u32] {
        self.ids
    }
    /// Where each row starts; one more entry than rows.
    pub fn offsets(&self) -> &'a [usize] {
        self.offsets
    }
}

/// Ragged rows of token ids with a label for each: `labels[k]` is the id at `k`, or [`IGNORE`] where position `k` is
/// not trained on. Labels are *not* shifted: position `k` is predicted from `k - 1`.
#[derive(Clone, Copy, Debug)]
pub struct LabelledView<'a> {
    tokens: TokensView<'a>,
    labels: &'a [i32],
}

impl<'a> LabelledView<'a> {
    /// Checks that there is one label per id.
    ///
    /// # Errors
    /// If the lengths differ.
    pub fn new(tokens: TokensView<'a>, labels: &'a [i32]) -> Result<Self, BackendError> {
        if labels.len() != tokens.ids.len() {
            return Err(BackendError::failed(format!("{} labels for {} ids", labels.len(), tokens.ids.len())));
        }
        Ok(LabelledView { tokens, labels })
    }
    /// The ids.
    pub fn tokens(&self) -> TokensView<'a> {
        self.tokens
    }
    /// All labels, back to back.
    pub fn labels(&self) -> &'a [i32] {
        self.labels
    }
    /// The labels of row `i`.
    pub fn row_labels(&self, i: usize) -> &'a [i32] {
        &self.labels[self.tokens.offsets[i]..self.tokens.offsets[i + 1]]
    }
}

/// What a backend says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Short name: `native`, `onnxruntime`, `replay`.
    pub name: String,
    /// The backend's own version.
    pub version: String,
    /// What its sessions offer.
    pub capabilities: Vec<Capability>,
    /// Devices it was built for, in order of preference; whether one is present shows at [`Backend::open`].
    pub devices: Vec<String>,
    /// Element types it computes in.
    pub dtypes: Vec<Dtype>,
    /// `model_type`s of Hugging Face configurations it implements.
    pub model_families: Vec<String>,
    /// Free facts for the report: library versions, build features, CPU kernels.
    #[serde(default)]
    pub build: BTreeMap<String, String>,
}

/// Something a session can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Capability {
    /// [`Evaluator::score`].
    Score,
    /// [`Evaluator::generate`].
    Generate,
    /// [`Trainer::train`] of all parameters.
    TrainFull,
    /// [`Trainer::train`] of a LoRA adapter.
    TrainLora,
    /// [`OpenConfig::adapter`] is applied.
    Adapter,
    /// [`OpenConfig::merge_into`] is carried out.
    Merge,
    /// [`Weights::Random`]: a model without weights can be opened for pretraining.
    FromScratch,
    /// [`Backend::export`].
    Export,
    /// [`Session::set_adapter`], perhaps only with an option of the backend's.
    ExchangeAdapter,
}

/// Element type of weights and activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit float.
    #[default]
    F32,
    /// bfloat16 with f32 accumulation.
    Bf16,
    /// IEEE half with f32 accumulation.
    F16,
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
        })
    }
}

/// Where the weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// From the safetensors files of the model folder.
    #[default]
    Load,
    /// Drawn anew: `N(0, initializer_range)` for matrices, ones for norms; the folder needs only `config.json`.
    Random,
}

/// What the name of the folder begins with in which a model lies that is deleted again: a backend should keep nothing of it
/// elsewhere.
pub const TEMPORARY_MODEL: &str = ".karat-merged-";

/// How to open a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenConfig {
    /// A folder in the Hugging Face layout: `config.json`, `model.safetensors` or its shards.
    pub model: PathBuf,
    /// A folder in the PEFT layout, applied on top of the model.
    #[serde(default)]
    pub adapter: Option<PathBuf>,
    /// Fold the adapter into the weights (in f32, rounded once) and write the model that results into this folder, in the
    /// layout of `model`; the session is that model's. For backends with [`Capability::Merge`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge_into: Option<PathBuf>,
    /// Load weights or draw them.
    #[serde(default)]
    pub weights: Weights,
    /// `cpu`, `cuda:0`, `auto`.
    #[serde(default = "cpu")]
    pub device: String,
    /// Element type to compute in.
    #[serde(default)]
    pub dtype: Dtype,
    /// Worker threads; 0 means all cores. The numbers do not depend on it.
    #[serde(default)]
    pub threads: usize,
    /// Seeds everything random in the session that no call seeds itself.
    #[serde(default)]
    pub seed: u64,
    /// Options of this backend alone; an unknown key is an error. One that names code to load is called `library` or ends in
    /// `_library`: a suite file cannot give it, only the command line.
    #[serde(default)]
    pub options: BTreeMap<String, serde_json::Value>,
}

fn cpu() -> String {
    "cpu".into()
}

impl OpenConfig {
    /// Defaults for `model`: CPU, f32, all cores, seed 0, weights loaded, no adapter.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        OpenConfig {
            model: model.into(),
            adapter: None,
            merge_into: None,
            weights: Weights::Load,
            device: cpu(),
            dtype: Dtype::F32,
            threads: 0,
            seed: 0,
            options: BTreeMap::new(),
        }
    }
}

/// What a session really runs with; goes into the report's `environment`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// The device that runs, e.g. `cpu`.
    pub device: String,
    /// The element type.
    pub dtype: Dtype,
    /// Threads in use.
    pub threads: usize,
    /// Kernels chosen at run time, e.g. `matmul: gemm f32 avx512`.
    pub kernels: Vec<String>,
    /// Parameters of the model without the adapter.
    pub parameters: u64,
    /// Parameters of the adapter, 0 without one.
    pub adapter_parameters: u64,
    /// Size of the vocabulary, the number of logits.
    pub vocab_size: usize,
    /// Longest sequence the model was made for.
    pub max_positions: usize,
    /// What the user should know of how the model or its adapter was read, each a sentence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Log-probabilities of a scored batch: row `i` of `n` ids has `max(n, 1) - 1` entries, the first for the second token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// Natural-log probability of each token given its prefix, rows back to back.
    pub logprobs: Vec<f32>,
    /// Whether that token was the most probable one (ties go to the lowest id).
    pub greedy: Vec<bool>,
}

/// How to generate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerateConfig {
    /// At most so many new tokens per row.
    pub max_new_tokens: usize,
    /// 0 is greedy (ties go to the lowest id).
    #[serde(default)]
    pub temperature: f64,
    /// Sample from the smallest set of tokens with at least this probability; 1 is off.
    #[serde(default = "one")]
    pub top_p: f64,
    /// Sample from the `k` most probable tokens; 0 is off.
    #[serde(default)]
    pub top_k: usize,
    /// Seed of sampling. A row's text depends on the seed and its row number, not on how rows are batched.
    #[serde(default)]
    pub seed: u64,
    /// A row ends when it produces one of these ids (which stays the last of its ids).
    #[serde(default)]
    pub stop_ids: Vec<u32>,
    /// Rows decoded together; 0 lets the backend choose.
    #[serde(default)]
    pub batch_size: usize,
}

fn one() -> f64 {
    1.0
}

impl GenerateConfig {
    /// Greedy decoding.
    pub fn greedy(max_new_tokens: usize, stop_ids: Vec<u32>) -> Self {
        GenerateConfig { max_new_tokens, temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0, stop_ids, batch_size: 0 }
    }

    /// What decides a text, as JSON: everything but how many rows are decoded together.
    pub fn deciding(&self) -> String {
        let deciding = GenerateConfig { batch_size: 0, ..self.clone() };
        serde_json::to_string(&deciding).expect("numbers and lists of them are JSON")
    }
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StopReason {
    /// It produced a stop id.
    Stop,
    /// It reached `max_new_tokens`.
    Length,
    /// It reached the longest sequence the model can hold.
    Context,
}

/// One generated row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completion {
    /// The new ids, without the prompt; the stop id included if one ended it.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub stop: StopReason,
}

/// What to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase")]
pub enum Method {
    /// Every parameter.
    Full,
    /// A low-rank adapter on frozen weights.
    Lora(LoraConfig),
}

/// AdamW as PyTorch defines it (decoupled decay, `eps` added after the square root).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay; norms and biases are excluded, as the Hugging Face trainer does.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// A training run, fully decided by the host. One optimizer step consumes `steps[s]`: its micro-batches in order, each
/// a list of rows of the training data. The loss of a step is the summed negative log-likelihood of all its labelled
/// tokens divided by their number (Hugging Face's `num_items_in_batch`), so accumulation equals one large batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainPlan {
    /// Full or LoRA.
    pub method: Method,
    /// `steps[step][micro_batch]` = rows of the training data.
    pub steps: Vec<Vec<Vec<u32>>>,
    /// Learning rate of each step.
    pub learning_rates: Vec<f64>,
    /// Epochs completed after each step (fractional).
    pub epochs: Vec<f64>,
    /// The optimizer.
    pub optimizer: AdamW,
    /// Gradients are scaled down to this global L2 norm; 0 is off.
    pub max_grad_norm: f64,
    /// Evaluate every so many steps and after the last; 0 is only after the last. No eval rows, no evaluation.
    pub eval_every: usize,
    /// Rows per evaluation batch.
    pub eval_batch_size: usize,
    /// Write a checkpoint every so many steps and after the last; 0 is only after the last.
    pub save_every: usize,
    /// Keep only so many checkpoints (the best by evaluation loss and the last are always kept); 0 keeps all.
    pub save_total_limit: usize,
    /// End before the last step when the evaluation loss no longer falls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
    /// Recompute activations layer by layer in the backward pass.
    pub recompute: bool,
    /// Where `checkpoint-{step}` folders go.
    pub output_dir: PathBuf,
    /// Continue from this checkpoint folder.
    pub resume_from: Option<PathBuf>,
    /// Start LoRA from this adapter folder instead of drawing one.
    pub init_adapter: Option<PathBuf>,
    /// Seeds adapter initialisation and dropout.
    pub seed: u64,
    /// SHA-256 over data and plan (without output and resume paths); a checkpoint of another plan is refused.
    pub fingerprint: String,
}

/// When training ends early, as transformers' `EarlyStoppingCallback` has it. The backend stops, since what it writes as the
/// last checkpoint depends on it; the losses of all evaluations decide, so that a resumed run stops where a whole one does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// After so many evaluations in a row that were no improvement; at least 1.
    pub patience: usize,
    /// What counts as one: a loss more than this below the lowest before it.
    pub threshold: f64,
}

impl EarlyStopping {
    /// Whether to stop after evaluations with these losses, in order.
    pub fn stops(&self, losses: impl IntoIterator<Item = f64>) -> bool {
        let (mut best, mut waited) = (None::<f64>, 0);
        for loss in losses {
            let improved = best.is_none_or(|best| loss < best && best - loss > self.threshold);
            waited = if improved { 0 } else { waited + 1 };
            // The lowest loss is the lowest, by however little.
            best = Some(best.map_or(loss, |best| best.min(loss)));
        }
        waited >= self.patience
    }
}

/// What a training run left behind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainSummary {
    /// The last checkpoint folder.
    pub last_checkpoint: PathBuf,
    /// The checkpoint with the lowest evaluation loss, if evaluated.
    pub best_checkpoint: Option<PathBuf>,
    /// Optimizer steps done in total (those before a resume included); fewer than planned if it stopped early.
    pub steps: usize,
    /// Parameters that were trained.
    pub trainable_parameters: u64,
    /// Training tokens seen (positions fed to the model, padding excluded), those before a resume included.
    pub tokens: u64,
    /// Seconds of training in this call, evaluation and saving included.
    pub seconds: f64,
    /// Peak resident memory of the process (CPU) or device memory, in bytes, if known.
    pub peak_memory: Option<u64>,
}

/// Something that happened. Events cross the boundary as JSON with a `type` key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    /// A line for the log.
    Log {
        /// How serious.
        level: Level,
        /// The text.
        message: String,
    },
    /// Work done of work to do; cancels are answered here.
    Progress {
        /// What is being done: `score`, `generate`, `load`, `export`.
        stage: String,
        /// Units done.
        done: u64,
        /// Units in all.
        total: u64,
        /// Tokens processed so far.
        tokens: u64,
    },
    /// One optimizer step.
    Step(StepEvent),
    /// An evaluation during training.
    Evaluation {
        /// After this optimizer step.
        step: usize,
        /// Mean negative log-likelihood of a labelled token, in nats.
        #[serde(with = "crate::abi::float")]
        loss: f64,
        /// Labelled tokens.
        tokens: u64,
        /// Seconds it took.
        seconds: f64,
    },
    /// A checkpoint was published under its final name.
    Checkpoint {
        /// After this optimizer step.
        step: usize,
        /// The folder.
        path: PathBuf,
    },
    /// A row of [`Evaluator::generate`] is complete.
    Completion {
        /// Its row number.
        row: usize,
        /// What was generated.
        completion: Completion,
    },
}

/// One optimizer step, as logged. Volatile values (seconds, memory) are marked as such in reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepEvent {
    /// Counts from 1.
    pub step: usize,
    /// Epochs completed after it.
    pub epoch: f64,
    /// Mean negative log-likelihood per labelled token of this step, in nats.
    #[serde(with = "crate::abi::float")]
    pub loss: f64,
    /// The share of each micro-batch in `loss` (they add up to it).
    #[serde(default, with = "crate::abi::float::list")]
    pub micro_losses: Vec<f64>,
    /// The learning rate used.
    pub learning_rate: f64,
    /// Global L2 norm of the gradient before clipping.
    #[serde(with = "crate::abi::float")]
    pub grad_norm: f64,
    /// Labelled tokens in this step.
    pub label_tokens: u64,
    /// Tokens fed so far.
    pub tokens: u64,
    /// Seconds this step took.
    pub seconds: f64,
    /// Resident (CPU) or device memory in bytes after it, if known.
    pub memory: Option<u64>,
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// For developers.
    Debug,
    /// For users: shown with the progress.
    Info,
    /// Something is off, the run goes on.
    Warn,
}

/// The answer to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// End cleanly as soon as possible.
    Stop,
}

/// Receives events; its answer is how a run is cancelled.
pub trait EventSink {
    /// Takes one event.
    fn event(&mut self, event: Event) -> Flow;
}

impl<F: FnMut(Event) -> Flow> EventSink for F {
    fn event(&mut self, event: Event) -> Flow {
        self(event)
    }
}

/// How a backend call failed; the same four cross the boundary as a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendErrorKind {
    /// It did not work.
    Failed,
    /// The sink said stop.
    Cancelled,
    /// The backend panicked; its session is poisoned.
    Panicked,
    /// This backend does not implement it.
    Unsupported,
}

/// An error of a backend: a message and what caused it, outermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendError {
    /// Which way it failed.
    pub kind: BackendErrorKind,
    /// A lowercase fragment: what, where, what to do.
    pub message: String,
    /// The chain below it.
    pub causes: Vec<String>,
}

impl BackendError {
    /// An error of `kind`.
    pub fn new(kind: BackendErrorKind, message: impl Into<String>) -> Self {
        BackendError { kind, message: message.into(), causes: Vec::new() }
    }
    /// [`BackendErrorKind::Failed`].
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(BackendErrorKind::Failed, message)
    }
    /// [`BackendErrorKind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(BackendErrorKind::Unsupported, message)
    }
    /// [`BackendErrorKind::Cancelled`].
    pub fn cancelled() -> Self {
        Self::new(BackendErrorKind::Cancelled, "cancelled")
    }
    /// Adds `error` and its sources as causes.
    #[must_use]
    pub fn because(mut self, error: &dyn std::error::Error) -> Self {
        let mut next = Some(error);
        while let Some(e) = next {
            self.causes.push(e.to_string());
            next = e.source();
        }
        self
    }
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.causes.iter().try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl std::error::Error for BackendError {}
