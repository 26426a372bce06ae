//! Linear layers and low-rank adapters on a GPU.

use super::super::storage::start;
use super::super::{Cuda, CudaStorage, here, kernels, stored};
use super::transposed;
use crate::device::{Affine, DownGradient, DownProjected, DownProjection, LinearOps, UpProjection};
use crate::error::Result;
use crate::tensor::{Gradient, StoredWeight, Tensor, scale};

impl Cuda {
    /// `y += alpha x w^T`.
    fn add_product(&self, y: &CudaStorage, alpha: f32, x: &CudaStorage, w: &CudaStorage) -> Result<()> {
        let ((tokens, n_in), (n_out, _)) = (x.matrix_dims(), w.matrix_dims());
        self.multiply(y.matrix(), [tokens, n_out, n_in], alpha, [x.matrix(), transposed(w.matrix())], 1.0)
    }

    /// One of [`LinearOps::linears`].
    fn affine(&self, x: &CudaStorage, of: &Affine<'_>) -> Result<Tensor> {
        let w = stored(of.w)?;
        let ((tokens, n_in), (n_out, _)) = (x.matrix_dims(), w.matrix_dims());
        let y = CudaStorage::activation(self, &[tokens, n_out])?;
        self.multiply(y.matrix(), [tokens, n_out, n_in], 1.0, [x.matrix(), transposed(w.matrix())], 0.0)?;
        if let Some(UpProjection { low, b, scale }) = of.lora {
            self.add_product(&y, scale, here(low)?, here(b)?)?;
        }
        if let Some(bias) = of.bias {
            self.add_bias(&y, bias)?;
        }
        Ok(y.into())
    }

    /// `alpha dy w`, and an adapter's share: [`LinearOps::linear_dx`].
    fn scaled_dx(
        &self,
        dx: Option<Tensor>,
        alpha: f32,
        dy: &Tensor,
        w: &dyn StoredWeight,
        lora: Option<DownGradient<'_>>,
    ) -> Result<Tensor> {
        let (dy, w) = (here(dy)?, stored(w)?);
        let ((tokens, n_out), (_, n_in)) = (dy.matrix_dims(), w.matrix_dims());
        let (dx, beta) = match dx {
            Some(dx) => (dx, 1.0),
            None => (CudaStorage::activation(self, &[tokens, n_in])?.into(), 0.0),
        };
        let to = here(&dx)?.matrix();
        self.multiply(to, [tokens, n_in, n_out], alpha, [dy.matrix(), w.matrix()], beta)?;
        if let Some(DownGradient { dlow, a }) = lora {
            let (dlow, a) = (here(dlow)?, here(a)?);
            let r = dlow.matrix_dims().1;
            self.multiply(to, [tokens, n_in, r], 1.0, [dlow.matrix(), a.matrix()], 1.0)?;
        }
        Ok(dx)
    }
}

impl LinearOps for Cuda {
    fn linears(&self, x: &Tensor, layers: &[Affine<'_>]) -> Result<Vec<Tensor>> {
        let x = here(x)?;
        layers.iter().map(|of| self.affine(x, of)).collect()
    }

    fn linear(&self, x: &Tensor, w: &dyn StoredWeight, bias: Option<&Tensor>) -> Result<Tensor> {
        self.affine(here(x)?, &Affine { w, bias, lora: None })
    }

    fn linear_add(&self, y: &Tensor, alpha: f32, x: &Tensor, w: &dyn StoredWeight) -> Result<()> {
        self.add_product(here(y)?, alpha, here(x)?, stored(w)?)
    }

    fn linear_dx(
        &self,
        dx: Option<Tensor>,
        dy: &Tensor,
        w: &dyn StoredWeight,
        lora: Option<DownGradient<'_>>,
    ) -> Result<Tensor> {
        self.scaled_dx(dx, 1.0, dy, w, lora)
    }

    /// Summed in f32; stored where nothing is in `dw`.
    fn linear_dw(&self, dw: &Gradient, alpha: f32, dy: &Tensor, x: &Tensor) -> Result<()> {
        let ((dw, filled), dy, x) = (self.sum(dw)?, here(dy)?, here(x)?);
        let ((tokens, n_out), (_, n_in)) = (dy.matrix_dims(), x.matrix_dims());
        let operands = [transposed(dy.matrix()), x.matrix()];
        let beta = if filled { 1.0 } else { 0.0 };
        self.multiply(here(&dw)?.matrix(), [n_out, n_in, tokens], alpha, operands, beta)
    }

    fn bias_gradient(&self, db: &Gradient, dy: &Tensor) -> Result<()> {
        let (db, dy) = (self.whole_sum(db)?, here(dy)?);
        let (rows, width) = dy.matrix_dims();
        let scratch = self.scratch(rows, width)?;
        let arguments = [dy.arg(), here(&db)?.arg(), start(&scratch)];
        kernels::bias_gradient(&*self.gpu, dy.element(), arguments, (rows, width))
    }

    fn lora_down(&self, of: &[DownProjection<'_>]) -> Result<Vec<DownProjected>> {
        let alone = |of: &DownProjection<'_>| {
            let low = self.linear(of.x, of.a, None)?;
            scale(&low, of.factor)?;
            Ok(DownProjected { low, scale: of.scale })
        };
        of.iter().map(alone).collect()
    }

    fn lora_down_gradients(&self, of: &[UpProjection<'_>]) -> Result<Vec<Tensor>> {
        of.iter().map(|of| self.scaled_dx(None, of.scale, of.low, of.b, None)).collect()
    }
}
