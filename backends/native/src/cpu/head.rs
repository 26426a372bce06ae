//! The output projection and the loss on the CPU.

use super::{Cpu, add_to};
use crate::device::{HeadOps, LinearOps};
use crate::error::Result;
use crate::ops::cross_entropy::{Sum, Target};
use crate::ops::{buffers, cross_entropy};
use crate::profile::Timer;
use crate::tensor::{Gradient, Indices, Stored, Tensor, activation, tensor, view};

impl HeadOps for Cpu {
    fn logits(&self, hidden: &Tensor, head: &dyn Stored) -> Result<Tensor> {
        self.linear(hidden, head, None)
    }

    fn score(&self, hidden: &Tensor, targets: &Indices, head: &dyn Stored) -> Result<Vec<Target>> {
        let (hidden, width) = (view(hidden)?, head.matrix()?.1);
        Ok(cross_entropy::score(self.precision, &hidden, targets, head.view()?.elements(), width))
    }

    fn head_loss(
        &self,
        hidden: &Tensor,
        targets: &Indices,
        head: &dyn Stored,
        scale: f32,
        dhead: Option<&Gradient>,
    ) -> Result<(Tensor, Tensor)> {
        let (hs, ws, width) = (view(hidden)?, head.view()?, head.matrix()?.1);
        let products = if dhead.is_some() { 3 } else { 2 };
        let _timer = Timer::product("head and loss", [products * targets.len(), ws.elements().len() / width, width]);
        let mut dhidden = buffers::take(hs.len());
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
