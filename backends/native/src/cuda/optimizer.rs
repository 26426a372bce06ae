//! The step of the optimizer on a device: gradients measured, clipped and applied in a few
//! launches, their norms fetched after all of it is queued.

use karat_backend::BackendError;

use super::kernels::optimizer::{ParameterTable, TrainedTensor};
use super::{Cuda, here};
use crate::device::{Optimizer, Parameter};
use crate::error::Result;
use crate::ops::adamw::Update;
use crate::tensor::{Gradient, Tensor};

/// AdamW over all trained tensors of a run.
#[derive(Debug)]
pub struct AdamW {
    device: Cuda,
    table: ParameterTable,
    /// The table holds addresses into them.
    parameters: Vec<Parameter>,
}

impl AdamW {
    /// An optimizer of `parameters`, which keep their places.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(device: &Cuda, parameters: Vec<Parameter>) -> Result<Self> {
        let mut trained = Vec::with_capacity(parameters.len());
        for Parameter { tensor, moments: [m, v], decays } in &parameters {
            let tensor = here(tensor)?;
            trained.push(TrainedTensor {
                parameter: tensor.buffer(),
                moments: [here(m)?.buffer(), here(v)?.buffer()],
                lower: tensor.lower(),
                elements: tensor.elem_count(),
                decays: *decays,
            });
        }
        let table = ParameterTable::new(&device.gpu, &trained)?;
        Ok(AdamW { device: device.clone(), table, parameters })
    }
}

impl Optimizer for AdamW {
    fn step(&self, gradients: &[&Gradient], max_norm: f64, update: &Update) -> Result<Vec<f64>> {
        let gpu = &*self.device.gpu;
        let sums = gradients.iter().map(|g| self.device.whole_sum(g)).collect::<Result<Vec<Tensor>>>()?;
        let fits = |(p, g): (&Parameter, &Tensor)| p.tensor.dims() == g.dims();
        if sums.len() != self.parameters.len() || !self.parameters.iter().zip(&sums).all(fits) {
            return Err(BackendError::failed("the gradients are not those of the parameters"));
        }
        let sums = sums.iter().map(here).collect::<Result<Vec<_>>>()?;
        self.table.point(gpu, &sums.iter().map(|g| (g.buffer(), g.element())).collect::<Vec<_>>())?;
        self.table.measure(gpu, max_norm)?;
        self.table.adamw(gpu, update)?;
        let mut squares = vec![0f64; self.parameters.len()];
        if !squares.is_empty() {
            gpu.download(self.table.sums_of_squares().raw(), 0, bytemuck::cast_slice_mut(&mut squares))?;
        }
        Ok(squares)
    }
}
