//! Rotary embedding, head norms and causal attention on a GPU.

use super::super::device::Element;
use super::super::kernels::attention as packed;
use super::super::{Cuda, CudaStorage, here, kernels};
use super::like;
use crate::device::{Attended, AttentionOps, HeadNorm, Qkv, ReadBy, RmsNormed, Rotary, Rotated, TensorOps};
use crate::error::Result;
use crate::ops::attention::Heads;
use crate::tensor::Tensor;

impl Cuda {
    /// Rotates `q` and `k` `[tokens, heads * head_dim]` in place; `inverse` is the gradient.
    fn rotate(
        &self,
        q: &Tensor,
        k: &Tensor,
        Rotary { positions, angles, heads }: Rotary<'_>,
        inverse: bool,
    ) -> Result<()> {
        let (q, k, angles) = (here(q)?, here(k)?, self.angles(angles)?);
        let ((tokens, q_width), k_width) = (q.matrix_dims(), k.matrix_dims().1);
        let arguments = [q.arg(), k.arg(), self.indices(positions)?.arg(), angles.cos.arg(), angles.sin.arg()];
        kernels::rope(&*self.gpu, q.element(), arguments, (tokens, heads, [q_width, k_width]), inverse)
    }
}

impl AttentionOps for Cuda {
    fn rope_qk(
        &self,
        [q, k]: [Tensor; 2],
        norms: Option<[HeadNorm<'_>; 2]>,
        rotary: Rotary<'_>,
        read_by: ReadBy,
    ) -> Result<Rotated> {
        let (q, k, scales) = match norms {
            None => (q, k, None),
            Some([of_q, of_k]) => {
                let (q, sq) = self.rms_norm(&q, of_q.weight, of_q.eps, read_by)?;
                let (k, sk) = self.rms_norm(&k, of_k.weight, of_k.eps, read_by)?;
                (q, k, Some([sq, sk]))
            }
        };
        self.rotate(&q, &k, rotary, false)?;
        Ok(Rotated { q, k, scales })
    }

    fn attend(&self, Qkv { q, k, v, starts }: Qkv<'_>, heads: Heads) -> Result<(Tensor, Tensor)> {
        let (q, k, v, rows) = (here(q)?, here(k)?, here(v)?, self.rows(starts)?);
        let tokens = q.matrix_dims().0;
        let (out, lse) = (like(q)?, CudaStorage::any(self, Element::F32, &[tokens * heads.queries])?);
        let rows = packed::PackedRows::dense(rows.starts.arg(), rows.count, rows.longest, tokens, heads);
        let arguments = [q.arg(), k.arg(), v.arg(), out.arg(), lse.arg()];
        packed::attention(&*self.gpu, q.element(), arguments, &rows)?;
        Ok((out.into(), lse.into()))
    }

    fn attend_backward(
        &self,
        Qkv { q, k, v, starts }: Qkv<'_>,
        made: Attended<'_>,
        dout: &Tensor,
        rotary: Rotary<'_>,
        norms: Option<[RmsNormed<'_>; 2]>,
        _: ReadBy,
    ) -> Result<[Tensor; 3]> {
        let (q, k, v, rows) = (here(q)?, here(k)?, here(v)?, self.rows(starts)?);
        let (out, lse, dout) = (here(made.out)?, here(made.lse)?, here(dout)?);
        let (tokens, heads) = (q.matrix_dims().0, rotary.heads);
        let (dq, dk, dv) = (like(q)?, like(k)?, like(v)?);
        let delta = CudaStorage::any(self, Element::F32, &[tokens * heads.queries])?;
        let rows = packed::PackedRows::dense(rows.starts.arg(), rows.count, rows.longest, tokens, heads);
        let forward = [q.arg(), k.arg(), v.arg(), out.arg(), lse.arg(), dout.arg(), delta.arg()];
        packed::attention_backward(&*self.gpu, q.element(), forward, [dq.arg(), dk.arg(), dv.arg()], &rows)?;
        // Scratch goes before what comes next asks for memory.
        drop(delta);
        let (dq, dk, dv) = (dq.into(), dk.into(), dv.into());
        self.rotate(&dq, &dk, rotary, true)?;
        let Some([of_q, of_k]) = norms else { return Ok([dq, dk, dv]) };
        Ok([self.rms_norm_backward(None, of_q, &dq)?, self.rms_norm_backward(None, of_k, &dk)?, dv])
    }
}
