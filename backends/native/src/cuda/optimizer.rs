//! The step of the optimizer on a device: gradients measured, clipped and applied in a few launches, their norms fetched
//! after all of it is queued.

use std::sync::Arc;

use karat_backend::BackendError;

use super::kernels::optimizer::{Table, Trained};
use super::{Device, Tensor};
use crate::nn::{Gradient, Result};
use crate::ops::adamw::Update;

/// One trained tensor with what belongs to it.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// The parameter.
    pub tensor: Tensor,
    /// Its moments.
    pub moments: [Tensor; 2],
    /// Whether weight decay applies.
    pub decays: bool,
}

/// All trained tensors of a run.
#[derive(Debug)]
pub struct Optimizer {
    device: Arc<Device>,
    table: Table,
    /// The table holds addresses into them.
    parameters: Vec<Parameter>,
}

impl Optimizer {
    /// An optimizer of `parameters`, which keep their places.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(device: &Arc<Device>, parameters: Vec<Parameter>) -> Result<Self> {
        let trained: Vec<Trained<'_>> = parameters
            .iter()
            .map(|p| Trained {
                parameter: p.tensor.buffer(),
                moments: [p.moments[0].buffer(), p.moments[1].buffer()],
                lower: p.tensor.lower(),
                elements: p.tensor.elem_count(),
                decays: p.decays,
            })
            .collect();
        let table = Table::new(&device.gpu, &trained)?;
        Ok(Optimizer { device: device.clone(), table, parameters })
    }

    /// Clips `gradients`, in the order of the parameters, to `max_norm` (0: never) and updates; `update.gradient_scale` is not
    /// read. Returns the sum of squares of each gradient. Where one is not finite, nothing has changed.
    ///
    /// # Errors
    /// If the device fails, or these are not the parameters' gradients.
    pub fn step<'a>(
        &self,
        gradients: impl Iterator<Item = &'a Gradient>,
        max_norm: f64,
        update: &Update,
    ) -> Result<Vec<f64>> {
        let gpu = &*self.device.gpu;
        let gradients = gradients.map(Gradient::whole).collect::<Result<Vec<Tensor>>>()?;
        let fits = |(p, g): (&Parameter, &Tensor)| p.tensor.dims() == g.dims();
        if gradients.len() != self.parameters.len() || !self.parameters.iter().zip(&gradients).all(fits) {
            return Err(BackendError::failed("the gradients are not those of the parameters"));
        }
        self.table.point(gpu, &gradients.iter().map(|g| (g.buffer(), g.element())).collect::<Vec<_>>())?;
        self.table.measure(gpu, max_norm)?;
        self.table.adamw(gpu, update)?;
        let mut sums = vec![0f64; self.parameters.len()];
        if !sums.is_empty() {
            gpu.download(self.table.sums_of_squares().raw(), 0, bytemuck::cast_slice_mut(&mut sums))?;
        }
        Ok(sums)
    }
}
