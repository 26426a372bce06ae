//! A session: one model, at most one adapter, a pool of threads.

use std::collections::BTreeMap;

use karat_backend::{
    BackendError, Completion, Dtype, Evaluator, Event, EventSink, Flow, GenerateConfig, LabelledView, OpenConfig,
    Scores, Session, SessionInfo, TokensView, TrainPlan, TrainSummary, Trainer, Weights,
};
use karat_model::publish::publish_model;
use karat_model::thread_pool;
use karat_model::train::admit;
use rayon::ThreadPool;

use crate::adapter;
use crate::config;
use crate::device::Precision;
use crate::error::Result;
use crate::files::{reader, shapes};
use crate::model::{Batch, Decoder};
use crate::select::{Asked, SelectedDevice, open};
use crate::train::Job;
use karat_kernels::gemm::isa::Isa;
use karat_kernels::memory::arena;

/// Tokens scored at once.
const SCORE_TOKENS: usize = 4096;

/// An open model on its device.
pub struct NativeSession {
    model: Decoder,
    pool: ThreadPool,
    opened: OpenConfig,
    opened_on: SelectedDevice,
    parameters: u64,
    trained: bool,
}

impl NativeSession {
    /// Opens what `config` names.
    ///
    /// # Errors
    /// As [`karat_backend::Backend::open`].
    pub fn open(config: &OpenConfig) -> Result<Self> {
        let asked = Asked::of(&config.device)?;
        if let Err(message) = Isa::chosen() {
            return Err(BackendError::unsupported(message.clone()));
        }
        let precision = match config.dtype {
            Dtype::F32 => Precision::F32,
            Dtype::Bf16 => Precision::Bf16,
            Dtype::F16 => {
                return Err(BackendError::unsupported(
                    "computing in f16 is not implemented (implemented: f32, bf16; weights stored as f16 are read)",
                ));
            }
        };
        let opened_on = open(asked, precision, graphs(&config.options)?)?;
        let pool = thread_pool(crate::NAME, config.threads)?;
        let shape = config::read(&config.model)?;
        let mut model = pool.install(|| match config.weights {
            Weights::Load => Decoder::load(shape, &config.model),
            Weights::Random => Decoder::random(shape, config.seed),
        })?;
        if let Some(folder) = &config.adapter {
            let adapter = adapter::open(&model, folder)?;
            let config = adapter.config().clone();
            adapter::load(&mut model, &config, adapter)?;
        }
        if let Some(folder) = &config.merge_into {
            let Some(adapter) = &config.adapter else {
                return Err(BackendError::failed("there is no adapter to merge into the weights; name one"));
            };
            let rounding = pool.install(|| model.merge()).map_err(|mut error| {
                error.message.insert_str(0, &format!("the adapter {}: ", adapter.display()));
                error
            })?;
            model.config.warnings.extend(rounding.warning());
            let tensors = model.tensors();
            publish_model(&model.config.raw, &shapes(&tensors), &reader(&tensors), &config.model, folder)?;
        }
        pool.install(|| model.place(&opened_on.device))?;
        let parameters = model.tensors().values().map(|t| t.elem_count() as u64).sum();
        Ok(NativeSession { model, pool, opened: config.clone(), opened_on, parameters, trained: false })
    }

    /// Leaves memory of the device that nobody uses to others.
    fn trim(&self) {
        self.opened_on.device.trim();
    }
}

/// The one option there is, `cuda_graph`: whether steps of generation on a GPU are recorded and
/// played again (default true).
fn graphs(options: &BTreeMap<String, serde_json::Value>) -> Result<bool> {
    if let Some(key) = options.keys().find(|key| *key != "cuda_graph") {
        return Err(BackendError::unsupported(format!(
            "the native backend has no option \"{key}\" (known: cuda_graph)"
        )));
    }
    match options.get("cuda_graph") {
        None => Ok(true),
        Some(value) => value.as_bool().ok_or_else(|| {
            let what = format!("the option cuda_graph of the native backend must be true or false, not {value}");
            BackendError::unsupported(what)
        }),
    }
}

impl Drop for NativeSession {
    fn drop(&mut self) {
        arena::clear();
    }
}

impl Session for NativeSession {
    fn evaluator(&mut self) -> Option<&mut dyn Evaluator> {
        Some(self)
    }
    fn trainer(&mut self) -> Option<&mut dyn Trainer> {
        Some(self)
    }
    fn info(&self) -> SessionInfo {
        SessionInfo {
            device: self.opened_on.name.clone(),
            dtype: self.opened.dtype,
            threads: self.pool.current_num_threads(),
            kernels: self.opened_on.facts.clone(),
            parameters: self.parameters,
            adapter_parameters: self.model.adapter_tensors().values().map(|t| t.elem_count() as u64).sum(),
            vocab_size: self.model.config.vocab_size,
            max_positions: self.model.config.max_positions,
            warnings: self.model.config.warnings.clone(),
        }
    }
}

impl Evaluator for NativeSession {
    fn score(&mut self, tokens: TokensView<'_>, sink: &mut dyn EventSink) -> Result<Scores> {
        self.model.config.check_rows(tokens.iter())?;
        let mut scores = Scores::default();
        let (mut first, mut done_tokens) = (0, 0u64);
        while first < tokens.rows() {
            let (mut last, mut size) = (first, 0);
            while last < tokens.rows() && (last == first || size + tokens.row(last).len() <= SCORE_TOKENS) {
                size += tokens.row(last).len();
                last += 1;
            }
            let batch = Batch::new((first..last).map(|row| tokens.row(row)));
            let (mut at, mut targets) = (Vec::with_capacity(size), Vec::with_capacity(size));
            for w in batch.starts.windows(2) {
                at.extend(w[0] as u32..(w[1].max(w[0] + 1) - 1) as u32);
                targets.extend_from_slice(&batch.ids[(w[0] + 1).min(w[1])..w[1]]);
            }
            let scored = self.pool.install(|| self.model.score(&batch, &at.into(), &targets.into()))?;
            scores.logprobs.extend(scored.iter().map(|t| t.logprob));
            scores.greedy.extend(scored.iter().map(|t| t.greedy));
            done_tokens += size as u64;
            first = last;
            let (done, total) = (last as u64, tokens.rows() as u64);
            let event = Event::Progress { stage: "score".into(), done, total, tokens: done_tokens };
            if sink.event(event) == Flow::Stop {
                return Err(BackendError::cancelled());
            }
        }
        self.trim();
        Ok(scores)
    }

    fn generate(
        &mut self,
        prompts: TokensView<'_>,
        config: &GenerateConfig,
        sink: &mut dyn EventSink,
    ) -> Result<Vec<Completion>> {
        let completions = crate::generate::generate(&self.model, &self.pool, prompts, config, sink);
        self.trim();
        completions
    }
}

impl Trainer for NativeSession {
    fn train(
        &mut self,
        train: LabelledView<'_>,
        eval: LabelledView<'_>,
        plan: &TrainPlan,
        sink: &mut dyn EventSink,
    ) -> Result<TrainSummary> {
        admit(&mut self.trained, &self.opened)?;
        let NativeSession { model, pool, opened, .. } = &mut *self;
        let summary = Job { model, source: &opened.model, pool, train, eval, plan }.run(sink);
        self.trim();
        summary
    }
}
