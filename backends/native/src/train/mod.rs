//! Training: the adapter put on and the trained tensors chosen, then [`karat_model::train`] carries
//! out the plan.

mod examples;
mod learner;

use std::path::Path;
use std::time::Instant;

use karat_backend::{Event, EventSink, LabelledView, Level, LoraConfig, Method, TrainPlan, TrainSummary};
use karat_model::peft::Adapter;
use karat_model::train::{TrainedModel, TrainingRun, say};
use karat_system::memory;
use rayon::ThreadPool;

use crate::adapter;
use crate::error::Result;
use crate::memory::{TrainingShape, held, peak};
use crate::model::Decoder;
use crate::profile;
use karat_kernels::memory::arena;
use learner::NativeLearner;

/// What a training run borrows from its session.
pub struct Job<'a> {
    /// The model; trained in place.
    pub model: &'a mut Decoder,
    /// The folder it came from.
    pub source: &'a Path,
    /// Where the numbers are computed.
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
        let Job { model, source, pool, train, eval, plan } = self;
        let run = TrainingRun::new(&model.config, plan, train, eval)?;
        let lora = match &plan.method {
            Method::Full => None,
            Method::Lora(config) => Some(config),
        };
        if let Some(config) = lora {
            let said = model.config.warnings.len();
            attach(model, config, plan)?;
            for message in &model.config.warnings[said..] {
                say(sink, Level::Warn, message.clone());
            }
            let device = model.device().clone();
            model.place(&device)?;
        }
        if model.device().is_host() {
            announce(model, plan, train, eval, sink);
        }
        let trained = if lora.is_some() { model.adapter_tensors() } else { model.own()? };
        let one_batch = lora.is_none() && plan.steps.iter().all(|micros| micros.len() == 1);
        let mut learner = NativeLearner::new(model, trained, one_batch, plan.recompute)?;
        let base = TrainedModel { backend: crate::NAME, config: &model.config, source, pool };
        profile::reset();
        let training = Instant::now();
        let summary = run.carry_out(base, &mut learner, sink)?;
        if let Some(table) = profile::table(training.elapsed().as_secs_f64()) {
            let message = format!("where the time of {} steps went:\n{table}", summary.steps);
            let _ = sink.event(Event::Log { level: Level::Info, message });
        }
        Ok(summary)
    }
}

/// Says how much memory the run will need, and warns where the machine has less; gradients are put
/// below that end.
fn announce(
    model: &Decoder,
    plan: &TrainPlan,
    train: LabelledView<'_>,
    eval: LabelledView<'_>,
    sink: &mut dyn EventSink,
) {
    let run = TrainingShape::of(model, plan, train, eval);
    let needs = peak(&model.config, &run);
    arena::expect(usize::try_from(needs.passes).unwrap_or(usize::MAX));
    for (level, message) in run.remarks(&needs, held(model), memory::available()) {
        say(sink, level, message);
    }
}

/// A new adapter, or the one the plan starts from.
fn attach(model: &mut Decoder, config: &LoraConfig, plan: &TrainPlan) -> Result<()> {
    match &plan.init_adapter {
        None => adapter::draw(model, config, plan.seed),
        Some(folder) => adapter::load(model, config, Adapter::open_to_train(folder, &model.config, config)?),
    }
}
