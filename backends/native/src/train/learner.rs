//! The numbers of a training run on a device: gradients by the written-out backward pass, clipped
//! and applied there.

use std::collections::BTreeMap;

use karat_backend::BackendError;
use karat_model::publish::{Put, Shapes};
use karat_model::train::{Dropout, Learner, MicroBatch, OptimizerStep, TensorState, excluded_from_decay};

use super::examples::Examples;
use crate::device::{Optimizer, Parameter};
use crate::error::Result;
use crate::files::shapes;
use crate::linear::Gradients;
use crate::model::{Decoder, Targets};
use crate::ops::adamw::Update;
use crate::tensor::{Gradient, Tensor, set, view, zeros_like};

/// The trained tensors of a model, with their gradients and moments.
pub struct NativeLearner<'a> {
    model: &'a Decoder,
    trained: BTreeMap<String, Tensor>,
    /// The two moments of AdamW for each.
    moments: BTreeMap<String, [Tensor; 2]>,
    gradients: Gradients,
    optimizer: Box<dyn Optimizer>,
    /// Whether activations are made again in the backward pass.
    recompute: bool,
}

impl<'a> NativeLearner<'a> {
    /// Nothing is learned yet of `trained`; `one_batch` if each step has one micro-batch and no
    /// adapter.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(
        model: &'a Decoder,
        trained: BTreeMap<String, Tensor>,
        one_batch: bool,
        recompute: bool,
    ) -> Result<Self> {
        let zeros = |(name, t): (&String, &Tensor)| Ok((name.clone(), [zeros_like(t)?, zeros_like(t)?]));
        let moments: BTreeMap<String, [Tensor; 2]> = trained.iter().map(zeros).collect::<Result<_>>()?;
        let device = &**model.device();
        let gradients = Gradients::new(device, &trained, one_batch)?;
        // The maps have the same names in the same order.
        let parameters = trained.iter().zip(moments.values()).map(|((name, tensor), moments)| Parameter {
            tensor: tensor.clone(),
            moments: moments.clone(),
            decays: !excluded_from_decay(name),
        });
        let optimizer = device.optimizer(parameters.collect())?;
        Ok(NativeLearner { model, trained, moments, gradients, optimizer, recompute })
    }

    fn tensor(&self, of: TensorState, name: &str) -> Result<&Tensor> {
        let tensor = match of {
            TensorState::Parameter => self.trained.get(name),
            TensorState::FirstMoment => self.moments.get(name).map(|[m, _]| m),
            TensorState::SecondMoment => self.moments.get(name).map(|[_, v]| v),
        };
        tensor.ok_or_else(|| BackendError::failed(format!("{name} is not trained")))
    }
}

impl Learner for NativeLearner<'_> {
    type LogProbs = Tensor;

    fn trained(&self) -> Shapes {
        shapes(&self.trained)
    }

    fn zero_gradients(&mut self) -> Result<()> {
        self.gradients.clear(&**self.model.device())
    }

    fn add_gradients(&mut self, batch: MicroBatch<'_>, scale: f64, dropout: Option<Dropout>) -> Result<Tensor> {
        let examples = Examples::new(batch);
        let targets = Targets { at: &examples.at, ids: &examples.targets };
        self.model.train(&examples.batch, targets, scale as f32, dropout, self.recompute, &self.gradients)
    }

    fn log_probs(&self, of: Tensor) -> Result<Vec<f32>> {
        Ok(view(&of)?.to_vec())
    }

    fn update(&mut self, step: OptimizerStep<'_>) -> Result<Vec<f64>> {
        let update = Update {
            lr: step.learning_rate,
            beta1: step.adamw.beta1,
            beta2: step.adamw.beta2,
            eps: step.adamw.eps,
            weight_decay: step.adamw.weight_decay,
            step: step.number as u32,
            gradient_scale: 1.0,
        };
        let gradients: Vec<&Gradient> = self.gradients.0.values().collect();
        let squares = self.optimizer.step(&gradients, step.max_grad_norm, &update)?;
        self.model.renorm()?;
        Ok(squares)
    }

    fn score(&mut self, batch: MicroBatch<'_>) -> Result<Vec<f32>> {
        let examples = Examples::new(batch);
        let scored = self.model.score(&examples.batch, &examples.at, &examples.targets)?;
        Ok(scored.iter().map(|target| target.logprob).collect())
    }

    fn read(&self, of: TensorState, name: &str, put: &mut Put<'_>) -> Result<()> {
        put(&view(self.tensor(of, name)?)?)
    }

    fn write(&mut self, of: TensorState, name: &str, values: Vec<f32>) -> Result<()> {
        set(self.tensor(of, name)?, &values)
    }

    fn restored(&mut self) -> Result<()> {
        self.model.renorm()
    }

    fn memory(&self) -> Option<u64> {
        self.model.device().memory()
    }

    fn peak_memory(&self) -> Option<u64> {
        self.model.device().peak_memory()
    }
}
