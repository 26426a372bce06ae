//! Training: the variables that a plan trains; [`karat_model::train`] carries it out.

mod learner;

use std::path::Path;

use candle_core::Device;
use karat_backend::{EventSink, LabelledView, Level, LoraConfig, Method, TrainPlan, TrainSummary};
use karat_model::ModelConfig;
use karat_model::peft::Adapter;
use karat_model::train::{TrainedModel, TrainingRun, say};
use rayon::ThreadPool;

use crate::lora::{self, Adapted};
use crate::model::{Decoder, Rotary};
use crate::weights::{Vars, handles, set};
use crate::{Result, failed};
use learner::CandleLearner;

/// What a training run borrows from its session.
pub struct Job<'a> {
    /// The configuration of the model.
    pub config: &'a mut ModelConfig,
    /// What evaluates; it becomes that of the trained model.
    pub decoder: &'a mut Decoder,
    /// The rotary embedding.
    pub rotary: &'a mut Rotary,
    /// The tensors of the model; trained in place.
    pub vars: &'a Vars,
    /// The folder it came from.
    pub source: &'a Path,
    /// Where the numbers lie.
    pub device: &'a Device,
    /// What computes them on the CPU.
    pub pool: &'a ThreadPool,
    /// Training rows.
    pub train: LabelledView<'a>,
    /// Evaluation rows.
    pub eval: LabelledView<'a>,
    /// What to do.
    pub plan: &'a TrainPlan,
}

impl Job<'_> {
    /// Carries out the plan.
    ///
    /// # Errors
    /// As [`TrainingRun::new`] and [`TrainingRun::carry_out`]; for an adapter that does not fit the
    /// model.
    pub fn run(self, sink: &mut dyn EventSink) -> Result<TrainSummary> {
        let Job { config, decoder, rotary, vars, source, device, pool, train, eval, plan } = self;
        let run = TrainingRun::new(config, plan, train, eval)?;
        let said = config.warnings.len();
        let (trained, adapted, dropout) = match &plan.method {
            Method::Full => (vars.clone(), Adapted::new(), 0.0),
            Method::Lora(lora) => {
                let (trained, adapted) = attach(config, lora, plan, vars, device)?;
                (trained, adapted, lora.lora_dropout)
            }
        };
        for message in &config.warnings[said..] {
            say(sink, Level::Warn, message.clone());
        }
        if plan.recompute {
            let message = "candle's autograd keeps the activations of a row: recompute changes nothing here";
            say(sink, Level::Warn, message.into());
        }
        let of = |learned: &dyn Fn(&str) -> bool| {
            let all = vars.iter().chain(&trained);
            Decoder::new(config, handles(all, learned), &adapted, device).map_err(failed)
        };
        *decoder = of(&|_| false)?;
        let learning = of(&|name| trained.contains_key(name))?;
        let mut learner = CandleLearner::new(learning, decoder, rotary, device, trained, dropout)?;
        run.carry_out(TrainedModel { backend: crate::NAME, config, source, pool }, &mut learner, sink)
    }
}

/// What an adapter trains: a new one, or the one that the plan starts from.
fn attach(
    model: &mut ModelConfig,
    config: &LoraConfig,
    plan: &TrainPlan,
    vars: &Vars,
    device: &Device,
) -> Result<(Vars, Adapted)> {
    let targets = lora::targets(model, config)?;
    let adapter = match &plan.init_adapter {
        Some(folder) => Some(Adapter::open_to_train(folder, model, config)?),
        None => None,
    };
    model.warnings.extend(adapter.iter().flat_map(Adapter::warnings).cloned());
    let drawn = (config.init_lora_weights, plan.seed);
    let mut trained = lora::low_rank(model, &targets, adapter.as_ref(), drawn, device)?;
    for name in &targets.whole {
        let Some(var) = vars.get(name) else { continue };
        if let Some(values) = adapter.as_ref().and_then(|a| a.saved_rows(name, var.dims(), 0..var.dims()[0])) {
            set(var, values?, device)?;
        }
        trained.insert(name.clone(), var.clone());
    }
    Ok((trained, targets.modules))
}
