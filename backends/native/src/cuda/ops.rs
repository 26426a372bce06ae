//! The operations of a [`crate::device::Device`] on a GPU: one launch or GEMM each, in the order
//! they are called.

mod attention;
mod head;
mod linear;

pub use self::head::chunk;
use super::device::{DeviceBuffer, Element, Gemm, Matrix};
use super::kernels::{self, Groups};
use super::storage::{DeviceIndices, start};
use super::{Cuda, CudaStorage, here, stored};
use crate::device::{Dropped, LinearOps, LoraPair, Mask, ReadBy, RmsNormed, TensorOps};
use crate::error::Result;
use crate::ops::dropout::Key;
use crate::tensor::{Gradient, Indices, StoredWeight, Tensor};

fn transposed(matrix: Matrix<'_>) -> Matrix<'_> {
    Matrix { transposed: true, ..matrix }
}

/// A tensor with any contents, stored as `t` is.
fn like(t: &CudaStorage) -> Result<CudaStorage> {
    CudaStorage::any(t.device(), t.element(), t.dims())
}

impl Cuda {
    /// `c = alpha op(a) op(b) + beta c` for single matrices.
    fn multiply(
        &self,
        c: Matrix<'_>,
        [m, n, k]: [usize; 3],
        alpha: f32,
        [a, b]: [Matrix<'_>; 2],
        beta: f32,
    ) -> Result<()> {
        if m == 0 || n == 0 {
            return Ok(());
        }
        self.gpu.gemm(&Gemm { m, n, k, alpha, a, b, beta, c, batch: 1 })
    }

    /// f32 scratch for sums over rows.
    fn scratch(&self, rows: usize, width: usize) -> Result<DeviceBuffer> {
        DeviceBuffer::new(&self.gpu, kernels::column_scratch(rows, width) * 4)
    }

    /// A gradient's sum and whether there is anything in it: else what is in the memory means
    /// nothing, and the caller stores.
    fn sum(&self, gradient: &Gradient) -> Result<(Tensor, bool)> {
        let mut sum = gradient.lock();
        match &*sum {
            Some(sum) => Ok((sum.clone(), true)),
            None => {
                let new = Tensor::from(CudaStorage::activation(self, gradient.dims())?);
                Ok((sum.insert(new).clone(), false))
            }
        }
    }

    /// A gradient's sum, zeros where nothing was added.
    ///
    /// # Errors
    /// If the device fails.
    pub(super) fn whole_sum(&self, gradient: &Gradient) -> Result<Tensor> {
        let (sum, filled) = self.sum(gradient)?;
        if !filled {
            here(&sum)?.clear()?;
        }
        Ok(sum)
    }

    /// `dtable[ids] += dy`, but for the id `pad`; the tokens of an id are summed in their order.
    fn scatter(&self, dtable: &Tensor, ids: &Indices, dy: &Tensor, pad: Option<u32>) -> Result<()> {
        let (dtable, dy) = (here(dtable)?, here(dy)?);
        let width = dtable.matrix_dims().1;
        let groups = Groups::new(ids, pad);
        let upload = |host: &[u32]| DeviceIndices::upload(self, host);
        let (starts, rows, order) = (upload(&groups.starts)?, upload(&groups.ids)?, upload(&groups.order)?);
        let arguments = [dtable.arg(), starts.arg(), rows.arg(), order.arg(), dy.arg()];
        kernels::scatter_add(&*self.gpu, (dtable.element(), dy.element()), arguments, (groups.ids.len(), width))
    }

    fn add_bias(&self, y: &CudaStorage, bias: &Tensor) -> Result<()> {
        kernels::add_bias(&*self.gpu, y.element(), [y.arg(), here(bias)?.arg()], y.matrix_dims())
    }
}

impl TensorOps for Cuda {
    fn gather(&self, x: &Tensor, at: &Indices) -> Result<Tensor> {
        self.embed(x, at)
    }

    fn embed(&self, table: &dyn StoredWeight, ids: &Indices) -> Result<Tensor> {
        let table = stored(table)?;
        let (_, width) = table.matrix_dims();
        let y = CudaStorage::activation(self, &[ids.len(), width])?;
        let arguments = [table.arg(), self.indices(ids)?.arg(), y.arg()];
        kernels::gather(&*self.gpu, (table.element(), y.element()), arguments, (ids.len(), width))?;
        Ok(y.into())
    }

    fn scatter_add(&self, dx: &Tensor, at: &Indices, dy: &Tensor) -> Result<()> {
        self.scatter(dx, at, dy, None)
    }

    fn embedding_gradient(&self, dtable: &Gradient, ids: &Indices, dx: Tensor, pad: Option<u32>) -> Result<()> {
        self.scatter(&self.whole_sum(dtable)?, ids, &dx, pad)
    }

    fn zero_activation(&self, t: &Tensor) -> Result<Tensor> {
        let zeros = like(here(t)?)?;
        zeros.clear()?;
        Ok(zeros.into())
    }

    fn operand(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.clone())
    }

    fn add(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        let (x, y) = (here(x)?, here(y)?);
        kernels::add(&*self.gpu, x.element(), [x.arg(), y.arg()], x.elem_count())
    }

    fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f32, _: ReadBy) -> Result<(Tensor, Tensor)> {
        let (x, w) = (here(x)?, here(w)?);
        let width = w.elem_count();
        let runs = x.elem_count() / width;
        let (y, scale) = (like(x)?, CudaStorage::any(self, Element::F32, &[runs])?);
        let arguments = [x.arg(), w.arg(), y.arg(), scale.arg()];
        kernels::rms_norm(&*self.gpu, x.element(), arguments, (runs, width), eps)?;
        Ok((y.into(), scale.into()))
    }

    fn add_rms_norm(&self, x: &Tensor, y: &Tensor, w: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
        let (x, y, w) = (here(x)?, here(y)?, here(w)?);
        let width = w.elem_count();
        let runs = x.elem_count() / width;
        let (normed, scale) = (like(x)?, CudaStorage::any(self, Element::F32, &[runs])?);
        let arguments = [x.arg(), y.arg(), w.arg(), normed.arg(), scale.arg()];
        kernels::add_rms_norm(&*self.gpu, x.element(), arguments, (runs, width), eps)?;
        Ok((normed.into(), scale.into()))
    }

    fn rms_norm_backward(&self, dx: Option<Tensor>, of: RmsNormed<'_>, dy: &Tensor) -> Result<Tensor> {
        let (x, w, scale, dy) = (here(of.x)?, here(of.weight)?, here(of.scale)?, here(dy)?);
        let shape = (scale.elem_count(), w.elem_count());
        if let Some(dw) = of.dw {
            let (dw, scratch) = (self.whole_sum(dw)?, self.scratch(shape.0, shape.1)?);
            let arguments = [x.arg(), scale.arg(), dy.arg(), here(&dw)?.arg(), start(&scratch)];
            kernels::rms_norm_dw(&*self.gpu, x.element(), arguments, shape)?;
        }
        let add = dx.is_some();
        let dx = match dx {
            Some(dx) => dx,
            None => like(x)?.into(),
        };
        let arguments = [x.arg(), w.arg(), scale.arg(), dy.arg(), here(&dx)?.arg()];
        kernels::rms_norm_backward(&*self.gpu, x.element(), arguments, shape, add)?;
        Ok(dx)
    }

    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let (gate, up) = (here(gate)?, here(up)?);
        let (y, (rows, width)) = (like(gate)?, gate.matrix_dims());
        let arguments = [gate.arg(), up.arg(), y.arg()];
        kernels::swiglu(&*self.gpu, gate.element(), arguments, (rows, width), width)?;
        Ok(y.into())
    }

    fn swiglu_keeping(&self, gate: Tensor, up: Tensor) -> Result<(Tensor, [Tensor; 2])> {
        Ok((self.swiglu(&gate, &up)?, [gate, up]))
    }

    fn swiglu_backward(&self, gate: &Tensor, up: &Tensor, dy: &Tensor, _: ReadBy) -> Result<(Tensor, Tensor)> {
        let (gate, up, dy) = (here(gate)?, here(up)?, here(dy)?);
        let (dgate, dup, (rows, width)) = (like(gate)?, like(gate)?, gate.matrix_dims());
        let arguments = [gate.arg(), up.arg(), dy.arg(), dgate.arg(), dup.arg()];
        kernels::swiglu_backward(&*self.gpu, gate.element(), arguments, (rows, width), width)?;
        Ok((dgate.into(), dup.into()))
    }

    /// Kernels draw it as they go.
    fn mask(&self, _elements: usize, p: f64, key: Key) -> Mask {
        Mask { p, key, drawn: None }
    }

    fn dropout(&self, x: &Tensor, mask: &Mask) -> Result<Dropped> {
        let x = here(x)?;
        let y = like(x)?;
        let arguments = [x.arg(), y.arg()];
        kernels::dropout(&*self.gpu, x.element(), arguments, x.elem_count(), mask.p, mask.key, false)?;
        Ok(Dropped { x: y.into(), factor: 1.0 })
    }

    fn dropout_add(&self, dx: &Tensor, dy: &Tensor, mask: &Mask) -> Result<()> {
        let (dx, dy) = (here(dx)?, here(dy)?);
        let arguments = [dy.arg(), dx.arg()];
        kernels::dropout(&*self.gpu, dx.element(), arguments, dx.elem_count(), mask.p, mask.key, true)
    }

    fn dropout_add_dx(&self, dx: &Tensor, dlow: &Tensor, a: &Tensor, mask: &Mask) -> Result<()> {
        let dropped = self.linear_dx(None, dlow, a, None)?;
        self.dropout_add(dx, &dropped, mask)
    }

    fn merged_norms(&self, norms: &Tensor, w: &dyn StoredWeight, delta: LoraPair<'_>) -> Result<()> {
        let (norms, w, a, b) = (here(norms)?, stored(w)?, here(delta.a)?, here(delta.b)?);
        let ((n_out, n_in), rank) = (w.matrix_dims(), a.matrix_dims().0);
        let [[a, a_lower], [b, b_lower]] = [a.halves(), b.halves()];
        let arguments = [w.arg(), a, a_lower, b, b_lower, norms.arg()];
        kernels::merged_norms(&*self.gpu, w.element(), arguments, [n_out, n_in, rank], delta.scale)
    }

    fn ratio(&self, m: &Tensor, n: &Tensor) -> Result<Tensor> {
        let (m, n) = (here(m)?, here(n)?);
        let y = like(m)?;
        kernels::divide(&*self.gpu, [m.arg(), n.arg(), y.arg()], m.elem_count())?;
        Ok(y.into())
    }

    fn add_scaled(&self, y: &Tensor, x: &Tensor, gain: &Tensor) -> Result<()> {
        let (y, x, gain) = (here(y)?, here(x)?, here(gain)?);
        kernels::add_scaled(&*self.gpu, y.element(), [y.arg(), x.arg(), gain.arg()], y.matrix_dims())
    }

    fn subtract(&self, y: &Tensor, x: &Tensor) -> Result<()> {
        let width = here(y)?.matrix_dims().1;
        let minus = CudaStorage::any(self, Element::F32, &[width])?;
        minus.set(&vec![-1.0; width])?;
        self.add_scaled(y, x, &minus.into())
    }

    fn rows(&self, like: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let y = self.zero_activation(like)?;
        if let Some(bias) = bias {
            self.add_bias(here(&y)?, bias)?;
        }
        Ok(y)
    }

    fn magnitude_gradient(&self, dm: &Gradient, dy: &Tensor, x: &Tensor, n: &Tensor) -> Result<()> {
        let (dm, dy, x, n) = (self.whole_sum(dm)?, here(dy)?, here(x)?, here(n)?);
        let (rows, width) = dy.matrix_dims();
        let scratch = self.scratch(rows, width)?;
        let arguments = [dy.arg(), x.arg(), here(&dm)?.arg(), n.arg(), start(&scratch)];
        kernels::gain_gradient(&*self.gpu, dy.element(), arguments, (rows, width))
    }
}
