//! The output projection and the loss on the CPU.

use super::{Cpu, add_to};
use crate::device::{HeadOps, LinearOps};
use crate::error::Result;
use crate::ops::cross_entropy;
use crate::ops::cross_entropy::{Sum, Target};
use crate::profile::Timer;
use crate::tensor::{Gradient, Indices, StoredWeight, Tensor, activation, tensor, view};
use karat_kernels::memory::arena;

impl HeadOps for Cpu {
    fn logits(&self, hidden: &Tensor, head: &dyn StoredWeight) -> Result<Tensor> {
        self.linear(hidden, head, None)
    }

    fn score(&self, hidden: &Tensor, targets: &Indices, head: &dyn StoredWeight) -> Result<Vec<Target>> {
        let (hidden, width) = (view(hidden)?, head.matrix()?.1);
        Ok(cross_entropy::score(self.precision, &hidden, targets, head.view()?.elements(), width))
    }

    fn head_loss(
        &self,
        hidden: &Tensor,
        targets: &Indices,
        head: &dyn StoredWeight,
        scale: f32,
        dhead: Option<&Gradient>,
    ) -> Result<(Tensor, Tensor)> {
        let (hs, ws, width) = (view(hidden)?, head.view()?, head.matrix()?.1);
        let products = if dhead.is_some() { 3 } else { 2 };
        let _timer = Timer::product("head and loss", [products * targets.len(), ws.elements().len() / width, width]);
        let mut dhidden = arena::alloc(hs.len());
        let mut train = |sum: Option<Sum<'_>>| {
            cross_entropy::train(self.precision, &hs, targets, ws.elements(), width, scale, &mut dhidden, sum)
        };
        let logprobs = match dhead {
            Some(dhead) => {
                let mut logprobs = Vec::new();
                add_to(dhead, |sum, add| logprobs = train(Some(Sum { sum, add })))?;
                logprobs
            }
            None => train(None),
        };
        let count = logprobs.len();
        Ok((tensor(logprobs, &[count])?, activation(dhidden, hidden.dims())?))
    }
}
