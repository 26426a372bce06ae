//! A session: one model in candle's tensors, a pool of threads, and the calls on them.

use candle_core::{Device, Var};
use karat_backend::{
    BackendError, Completion, Dtype, Evaluator, Event, EventSink, Flow, GenerateConfig, LabelledView, Method,
    OpenConfig, Scores, Session, SessionInfo, TokensView, TrainPlan, TrainSummary, Trainer, Weights,
};
use karat_model::peft::Adapter;
use karat_model::publish::{Put, publish_model};
use karat_model::rows::check_rows;
use karat_model::train::admit;
use karat_model::{Architecture, ModelConfig, Rounding, Supports, thread_pool};
use rayon::ThreadPool;

use crate::causal::{Causal, score};
use crate::device::{self, Opened};
use crate::lora::Adapted;
use crate::model::{Decoder, Rotary};
use crate::train::Job;
use crate::weights::{self, Spec, Vars, handles, shapes, values};
use crate::{Result, failed, families};

/// What is open.
pub enum Model {
    /// A decoder that can be trained.
    Trained(Box<Trained>),
    /// One that is scored and generated with.
    Family(Box<families::Decoder>),
}

/// A decoder that can be trained, with its variables.
pub struct Trained {
    config: ModelConfig,
    decoder: Decoder,
    rotary: Rotary,
    vars: Vars,
}

impl Model {
    /// Tokens in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        match self {
            Model::Trained(model) => model.config.vocab_size,
            Model::Family(decoder) => decoder.architecture().vocab_size,
        }
    }

    /// Longest sequence.
    pub fn max_positions(&self) -> usize {
        match self {
            Model::Trained(model) => model.config.max_positions,
            Model::Family(decoder) => decoder.architecture().max_positions,
        }
    }

    fn warnings(&self) -> &[String] {
        match self {
            Model::Trained(model) => &model.config.warnings,
            Model::Family(decoder) => &decoder.architecture().warnings,
        }
    }

    /// A row of `length` tokens that begins; more may follow.
    pub fn row(&mut self, length: usize) -> Box<dyn Causal + '_> {
        match self {
            Model::Trained(model) => Box::new(model.decoder.row(&mut model.rotary)),
            Model::Family(decoder) => Box::new(decoder.row(length)),
        }
    }
}

/// An open model on its device.
pub struct CandleSession {
    pub(crate) model: Model,
    pub(crate) pool: ThreadPool,
    opened_on: Opened,
    opened: OpenConfig,
    parameters: u64,
    adapter_parameters: u64,
    weights: Option<String>,
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
        if opened.merge_into.is_some() && opened.adapter.is_none() {
            return Err(BackendError::failed("there is no adapter to merge into the weights; name one"));
        }
        let device = &opened_on.device;
        let family = match (families::gguf::file_in(&opened.model)?, Architecture::read(&opened.model)?) {
            (None, None) => None,
            (Some(file), _) => Some(pool.install(|| families::gguf::open(&file, opened, device))?),
            (None, Some(architecture)) => Some(pool.install(|| families::open(architecture, opened, device))?),
        };
        let (model, parameters, adapter, weights) = match family {
            Some(families::Opened { decoder, parameters, adapter, weights }) => {
                (Model::Family(Box::new(decoder)), parameters, adapter, weights)
            }
            None => {
                let (trained, adapter) = open_trained(opened, device, &pool)?;
                let parameters = trained.vars.values().map(|var| var.elem_count() as u64).sum();
                (Model::Trained(Box::new(trained)), parameters, adapter, None)
            }
        };
        // A merged adapter is part of the model.
        let adapter = adapter.filter(|_| opened.merge_into.is_none());
        let adapter_parameters = adapter.map_or(0, |adapter| adapter.parameters());
        let opened = opened.clone();
        let trained = false;
        Ok(CandleSession { model, pool, opened_on, opened, parameters, adapter_parameters, weights, trained })
    }

    /// Says which row this model cannot take.
    pub(crate) fn check(&self, rows: TokensView<'_>) -> Result<()> {
        check_rows(rows.iter(), self.model.vocab_size(), self.model.max_positions())
    }
}

/// Opens a model of a family that is trained, with the adapter that is in its weights.
fn open_trained(opened: &OpenConfig, device: &Device, pool: &ThreadPool) -> Result<(Trained, Option<Adapter>)> {
    let mut config = ModelConfig::read(&opened.model)?;
    Supports::CANDLE.check(&config)?;
    let adapter = match &opened.adapter {
        Some(folder) => Some(Adapter::open(folder, &config.linears())?),
        None => None,
    };
    let (vars, rounding) = pool.install(|| match opened.weights {
        Weights::Load => {
            let spec = Spec::Trained(&mut config);
            weights::load(spec, &opened.model, adapter.as_ref(), device, Var::from_vec)
        }
        Weights::Random => {
            weights::random(&config, opened.seed, adapter.as_ref(), device).map(|vars| (vars, Rounding::default()))
        }
    })?;
    if let Some(adapter) = &adapter {
        config.warnings.extend_from_slice(adapter.warnings());
    }
    if let Some(folder) = &opened.merge_into {
        config.warnings.extend(rounding.warning());
        let read = |name: &str, put: &mut Put<'_>| put(&values(&vars[name])?);
        publish_model(&config.raw, &shapes(&vars), &read, &opened.model, folder)?;
    }
    let decoder = Decoder::new(&config, handles(&vars, |_| false), &Adapted::new(), device).map_err(failed)?;
    let rotary = Rotary::new(&config, device);
    Ok((Trained { config, decoder, rotary, vars }, adapter))
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
        kernels.extend(self.opened_on.remark.iter().chain(&self.weights).cloned());
        SessionInfo {
            device: self.opened_on.name.clone(),
            dtype: self.opened.dtype,
            threads: self.pool.current_num_threads(),
            kernels,
            parameters: self.parameters,
            adapter_parameters: self.adapter_parameters,
            vocab_size: self.model.vocab_size(),
            max_positions: self.model.max_positions(),
            warnings: self.model.warnings().to_vec(),
        }
    }
}

impl Evaluator for CandleSession {
    fn score(&mut self, tokens: TokensView<'_>, sink: &mut dyn EventSink) -> Result<Scores> {
        self.check(tokens)?;
        let (mut scores, mut fed) = (Scores::default(), 0);
        for (i, row) in tokens.iter().enumerate() {
            let CandleSession { model, pool, .. } = self;
            let of_row = pool.install(|| score(&mut *model.row(row.len()), row))?;
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
        let CandleSession { model, opened_on, pool, opened, trained, .. } = self;
        let Trained { config, decoder, rotary, vars } = match model {
            Model::Trained(model) => &mut **model,
            Model::Family(_) if self.weights.is_some() => {
                return Err(BackendError::unsupported(
                    "the quantized weights of a GGUF file are not trained; make a folder of it with karat import",
                ));
            }
            Model::Family(decoder) => {
                return Err(families::not_trained(&decoder.architecture().model_type, "training"));
            }
        };
        admit(trained, opened)?;
        let (source, device) = (&*opened.model, &opened_on.device);
        let job = Job { config, decoder, rotary, vars, source, device, pool, train, eval, plan };
        let summary = job.run(sink)?;
        if matches!(plan.method, Method::Lora(_)) {
            self.adapter_parameters = summary.trainable_parameters;
        }
        Ok(summary)
    }
}
