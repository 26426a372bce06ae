//! The output projection and the loss on a GPU, some rows of logits at a time.

use karat_backend::BackendError;

use super::super::device::{Arg, DeviceBuffer, Element, Matrix};
use super::super::{Cuda, CudaStorage, arena, here, kernels, stored};
use super::{like, transposed};
use crate::device::HeadOps;
use crate::error::Result;
use crate::ops::cross_entropy::Target;
use crate::tensor::{Gradient, Indices, StoredWeight, Tensor};

/// Tokens whose logits exist at once: about 320 MiB of them in f32. Depends on the vocabulary
/// alone.
pub fn chunk(vocab: usize) -> usize {
    ((80 << 20) / vocab.max(1)).clamp(128, 4096) / 128 * 128
}

impl Cuda {
    /// Logits in f32 of the rows `first..first + n` of `hidden`, into `logits`.
    fn project(
        &self,
        logits: &CudaStorage,
        hidden: &CudaStorage,
        first: usize,
        n: usize,
        head: &CudaStorage,
    ) -> Result<()> {
        let (vocab, width) = head.matrix_dims();
        let rows = Matrix { first: first * width, ..hidden.matrix() };
        self.multiply(logits.matrix(), [n, vocab, width], 1.0, [rows, transposed(head.matrix())], 0.0)
    }
}

impl HeadOps for Cuda {
    fn logits(&self, hidden: &Tensor, head: &dyn StoredWeight) -> Result<Tensor> {
        let (hidden, head) = (here(hidden)?, stored(head)?);
        let (tokens, vocab) = (hidden.matrix_dims().0, head.matrix_dims().0);
        let logits = CudaStorage::any(self, Element::F32, &[tokens, vocab])?;
        self.project(&logits, hidden, 0, tokens, head)?;
        Ok(logits.into())
    }

    fn score(&self, hidden: &Tensor, targets: &Indices, head: &dyn StoredWeight) -> Result<Vec<Target>> {
        let (hidden, head) = (here(hidden)?, stored(head)?);
        let vocab = head.matrix_dims().0;
        let (count, size) = (targets.len(), chunk(vocab).min(targets.len()));
        let logits = CudaStorage::any(self, Element::F32, &[size, vocab])?;
        let logprobs = CudaStorage::any(self, Element::F32, &[count])?;
        let greedy = DeviceBuffer::new(&self.gpu, count * 4)?;
        for first in (0..count).step_by(size.max(1)) {
            let n = size.min(count - first);
            self.project(&logits, hidden, first, n, head)?;
            let targets = self.indices(targets)?.from(first);
            let arguments = [logits.arg(), targets, logprobs.from(first), Arg::Buffer(&greedy, first * 4)];
            kernels::score(&*self.gpu, Element::F32, arguments, (n, vocab))?;
        }
        let logprobs = logprobs.download()?;
        let mut best = vec![0u32; count];
        self.gpu.download(greedy.raw(), 0, bytemuck::cast_slice_mut(&mut best))?;
        Ok(logprobs.into_iter().zip(best).map(|(logprob, best)| Target { logprob, greedy: best != 0 }).collect())
    }

    /// The projection's gradient over several chunks is summed in f32 whatever `dhead` keeps, and
    /// rounded once.
    fn head_loss(
        &self,
        hidden: &Tensor,
        targets: &Indices,
        head: &dyn StoredWeight,
        scale: f32,
        dhead: Option<&Gradient>,
    ) -> Result<(Tensor, Tensor)> {
        let (hidden, head) = (here(hidden)?, stored(head)?);
        let (vocab, width) = head.matrix_dims();
        let (count, size) = (targets.len(), chunk(vocab).min(targets.len()));
        // A gradient without a place of its own is kept as activations are.
        let narrow = dhead.filter(|dhead| !dhead.lasts() && self.activations == Element::Bf16 && count > size);
        let mut sum = match (dhead, narrow) {
            (None, _) => None,
            (Some(_), Some(_)) => Some((CudaStorage::any(self, Element::F32, head.dims())?.into(), false)),
            (Some(dhead), None) => Some(self.sum(dhead)?),
        };
        let logprobs = CudaStorage::any(self, Element::F32, &[count])?;
        let dhidden = like(hidden)?;
        let logits = CudaStorage::any(self, Element::F32, &[size, vocab])?;
        // What products take of the logits' gradient.
        let rounded = match self.activations {
            Element::F32 => None,
            Element::Bf16 => Some(CudaStorage::any(self, Element::Bf16, &[size, vocab])?),
        };
        for first in (0..count).step_by(size.max(1)) {
            let n = size.min(count - first);
            self.project(&logits, hidden, first, n, head)?;
            let arguments = [logits.arg(), self.indices(targets)?.from(first), logprobs.from(first)];
            kernels::cross_entropy(&*self.gpu, Element::F32, arguments, (n, vocab), scale)?;
            if let Some(rounded) = &rounded {
                kernels::narrow(&*self.gpu, [logits.arg(), rounded.arg()], n * vocab)?;
            }
            let d = rounded.as_ref().unwrap_or(&logits).matrix();
            let to = Matrix { first: first * width, ..dhidden.matrix() };
            self.multiply(to, [n, width, vocab], 1.0, [d, head.matrix()], 0.0)?;
            if let Some((sum, filled)) = &mut sum {
                let rows = Matrix { first: first * width, ..hidden.matrix() };
                let beta = if std::mem::replace(filled, true) { 1.0 } else { 0.0 };
                self.multiply(here(sum)?.matrix(), [vocab, width, n], 1.0, [transposed(d), rows], beta)?;
            }
        }
        // The logits' memory goes before the gradient's comes.
        drop((logits, rounded));
        if narrow.is_some() {
            arena::trim(&*self.gpu);
        }
        if let (Some(dhead), Some((sum, _))) = (narrow, sum) {
            match self.sum(dhead)? {
                (to, false) => kernels::narrow(&*self.gpu, [here(&sum)?.arg(), here(&to)?.arg()], vocab * width)?,
                _ => return Err(BackendError::failed("the projection's gradient has been written before")),
            }
        }
        if dhead.is_some_and(|dhead| !dhead.lasts()) {
            arena::trim(&*self.gpu);
        }
        Ok((logprobs.into(), dhidden.into()))
    }
}
