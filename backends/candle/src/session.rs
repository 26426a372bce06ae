//! A session: one model in candle's tensors, a pool of threads, and the calls on them.

use karat_backend::{
    BackendError, Completion, Dtype, Evaluator, Event, EventSink, Flow, GenerateConfig, LabelledView, Method,
    OpenConfig, Scores, Session, SessionInfo, TokensView, TrainPlan, TrainSummary, Trainer, Weights,
};
use karat_model::peft::Adapter;
use karat_model::publish::{Put, publish_model};
use karat_model::sampling::argmax;
use karat_model::train::admit;
use karat_model::{ModelConfig, Rounding, Supports, thread_pool};
use rayon::ThreadPool;

use crate::device::{self, Opened};
use crate::lora::Adapted;
use crate::model::{Decoder, Rotary, log_probabilities};
use crate::train::Job;
use crate::weights::{self, Vars, handles, shapes, values};
use crate::{Result, failed};

/// Tokens of a row that go through the decoder at once where nothing is learned: attention takes memory of their number times
/// that of all before them.
pub const PIECE: usize = 512;

/// An open model on its device.
pub struct CandleSession {
    pub(crate) config: ModelConfig,
    pub(crate) decoder: Decoder,
    rotary: Rotary,
    vars: Vars,
    opened_on: Opened,
    pool: ThreadPool,
    opened: OpenConfig,
    parameters: u64,
    adapter_parameters: u64,
    trained: bool,
}

impl CandleSession {
    /// Opens what `config` names.
    ///
    /// # Errors
    /// As [`karat_backend::Backend::open`].
    pub fn open(opened: &OpenConfig) -> Result<Self> {
        if let Some(key) = opened.options.keys().next() {
            return Err(BackendError::unsupported(format!("the candle backend has no option \"{key}\" (it has none)")));
        }
        let elsewhere = match opened.dtype {
            Dtype::F32 => None,
            Dtype::Bf16 => Some("native"),
            Dtype::F16 => Some("onnxruntime"),
        };
        if let Some(other) = elsewhere {
            return Err(BackendError::unsupported(format!(
                "the candle backend computes in f32 alone, not in {}, which the backend {other} does; weights stored as f16 \
                 and bf16 are read",
                opened.dtype
            )));
        }
        let opened_on = device::open(&opened.device)?;
        let pool = thread_pool(crate::NAME, opened.threads)?;
        let mut config = ModelConfig::read(&opened.model)?;
        Supports::CANDLE.check(&config)?;
        let device = &opened_on.device;
        let adapter = match &opened.adapter {
            Some(folder) => Some(Adapter::open(folder, &config.linears())?),
            None => None,
        };
        let (vars, rounding) = pool.install(|| match opened.weights {
            Weights::Load => weights::load(&mut config, &opened.model, adapter.as_ref(), device),
            Weights::Random => {
                weights::random(&config, opened.seed, adapter.as_ref(), device).map(|vars| (vars, Rounding::default()))
            }
        })?;
        if let Some(adapter) = &adapter {
            config.warnings.extend_from_slice(adapter.warnings());
        }
        if let Some(folder) = &opened.merge_into {
            if adapter.is_none() {
                return Err(BackendError::failed("there is no adapter to merge into the weights; name one"));
            }
            config.warnings.extend(rounding.warning());
            let read = |name: &str, put: &mut Put<'_>| put(&values(&vars[name])?);
            publish_model(&config, &shapes(&vars), &read, &opened.model, folder)?;
        }
        let decoder = Decoder::new(&config, handles(&vars, |_| false), &Adapted::new(), device).map_err(failed)?;
        let rotary = Rotary::new(&config, device);
        let parameters = vars.values().map(|var| var.elem_count() as u64).sum();
        // A merged adapter is part of the model.
        let adapter = adapter.filter(|_| opened.merge_into.is_none());
        let adapter_parameters = adapter.map_or(0, |adapter| adapter.parameters());
        let opened = opened.clone();
        let trained = false;
        Ok(CandleSession {
            config,
            decoder,
            rotary,
            vars,
            opened_on,
            pool,
            opened,
            parameters,
            adapter_parameters,
            trained,
        })
    }

    /// Computes on the session's threads.
    pub(crate) fn install<T: Send>(&mut self, compute: impl FnOnce(&Decoder, &mut Rotary) -> T + Send) -> T {
        let (decoder, rotary) = (&self.decoder, &mut self.rotary);
        self.pool.install(|| compute(decoder, rotary))
    }
}

/// The log-probability of every token of `row` given its prefix, and whether it was the most probable one.
pub fn score(decoder: &Decoder, rotary: &mut Rotary, row: &[u32]) -> Result<Scores> {
    let (mut scores, mut caches) = (Scores::default(), decoder.caches());
    let (inputs, targets) = (&row[..row.len().max(1) - 1], &row[row.len().min(1)..]);
    for (piece, targets) in inputs.chunks(PIECE).zip(targets.chunks(PIECE)) {
        let hidden = decoder.hidden(piece, rotary, Some(&mut caches), None).map_err(failed)?;
        let logits = decoder.logits(&hidden).map_err(failed)?;
        scores.logprobs.extend(values(&log_probabilities(&logits, targets).map_err(failed)?)?);
        let logits: Vec<Vec<f32>> = logits.to_vec2().map_err(failed)?;
        scores.greedy.extend(logits.iter().zip(targets).map(|(logits, id)| argmax(logits) == Some(*id as usize)));
    }
    Ok(scores)
}

impl Session for CandleSession {
    fn evaluator(&mut self) -> Option<&mut dyn Evaluator> {
        Some(self)
    }
    fn trainer(&mut self) -> Option<&mut dyn Trainer> {
        Some(self)
    }
    fn info(&self) -> SessionInfo {
        let mut kernels = vec![format!("candle {} f32; element-wise on threads of candle's own", crate::CANDLE)];
        kernels.extend(self.opened_on.remark.clone());
        SessionInfo {
            device: self.opened_on.name.clone(),
            dtype: self.opened.dtype,
            threads: self.pool.current_num_threads(),
            kernels,
            parameters: self.parameters,
            adapter_parameters: self.adapter_parameters,
            vocab_size: self.config.vocab_size,
            max_positions: self.config.max_positions,
            warnings: self.config.warnings.clone(),
        }
    }
}

impl Evaluator for CandleSession {
    fn score(&mut self, tokens: TokensView<'_>, sink: &mut dyn EventSink) -> Result<Scores> {
        self.config.check_rows(tokens.iter())?;
        let (mut scores, mut fed) = (Scores::default(), 0);
        for (i, row) in tokens.iter().enumerate() {
            let of_row = self.install(|decoder, rotary| score(decoder, rotary, row))?;
            scores.logprobs.extend(of_row.logprobs);
            scores.greedy.extend(of_row.greedy);
            fed += row.len() as u64;
            let (done, total) = (i as u64 + 1, tokens.rows() as u64);
            if sink.event(Event::Progress { stage: "score".into(), done, total, tokens: fed }) == Flow::Stop {
                return Err(BackendError::cancelled());
            }
        }
        Ok(scores)
    }

    fn generate(
        &mut self,
        prompts: TokensView<'_>,
        config: &GenerateConfig,
        sink: &mut dyn EventSink,
    ) -> Result<Vec<Completion>> {
        crate::generate::generate(self, prompts, config, sink)
    }
}

impl Trainer for CandleSession {
    fn train(
        &mut self,
        train: LabelledView<'_>,
        eval: LabelledView<'_>,
        plan: &TrainPlan,
        sink: &mut dyn EventSink,
    ) -> Result<TrainSummary> {
        admit(&mut self.trained, &self.opened)?;
        let CandleSession { config, decoder, rotary, vars, opened_on, pool, opened, .. } = self;
        let (source, device) = (&*opened.model, &opened_on.device);
        let job = Job { config, decoder, rotary, vars, source, device, pool, train, eval, plan };
        let summary = job.run(sink)?;
        if matches!(plan.method, Method::Lora(_)) {
            self.adapter_parameters = summary.trainable_parameters;
        }
        Ok(summary)
    }
}
