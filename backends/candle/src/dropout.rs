//! Dropout of an adapter's inputs, by the masks that the native backend draws: a pure function of
//! the run's seed, the step, the module and the element's place in the step.

use candle_core::{Result, Tensor};
use karat_kernels::philox::{Philox, WIDE};
use karat_model::train::Dropout;

/// Elements that one call of the generator decides, by 16 bits each.
const BLOCK: usize = 8 * WIDE;

/// The masks of a row.
#[derive(Clone, Copy, Debug)]
pub struct Masks {
    /// Probability of dropping an element, taken to the nearest multiple of `2^-16`.
    pub p: f64,
    /// Seed, step, and the tokens of the step before this row.
    pub of: Dropout,
}

impl Masks {
    /// `x / (1 - p)` where an element is kept, else 0; `x` is `[tokens, width]`, the input of
    /// module number `module`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn apply(&self, x: &Tensor, module: u32) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let threshold = (self.p * 65536.0).round().clamp(0.0, 65535.0);
        let scale = (1.0 / (1.0 - threshold / 65536.0)) as f32;
        let (generator, threshold) = (Philox::new(self.of.seed), threshold as u16);
        let first = self.of.first_token * width as u64;
        let (mut mask, mut bits) = (Vec::with_capacity(tokens * width), [0u16; BLOCK]);
        let mut at = first;
        while mask.len() < tokens * width {
            generator.fill_u16(at / BLOCK as u64, self.of.step, module, &mut bits);
            let rest = &bits[(at % BLOCK as u64) as usize..];
            let rest = &rest[..rest.len().min(tokens * width - mask.len())];
            mask.extend(rest.iter().map(|bits| if *bits >= threshold { scale } else { 0.0 }));
            at += rest.len() as u64;
        }
        x * Tensor::from_vec(mask, (tokens, width), x.device())?
    }
}
