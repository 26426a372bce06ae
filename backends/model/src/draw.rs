//! Numbers drawn by counter: each is a function of the seed, the name of its tensor and its place
//! there, so that every backend draws the same model and the same adapter, on any number of
//! threads.

use karat_backend::BackendError;
use karat_backend::lora::{AdapterShape, InitLora};
use karat_kernels::philox::{Philox, name_key};
use karat_system::memory;
use rayon::prelude::*;

use crate::config::ModelConfig;
use crate::peft::{Linears, TargetModules};

/// The two halves of a tensor's counter that its name makes.
fn stream(name: &str) -> (u32, u32) {
    let key = name_key(name);
    (key as u32, (key >> 32) as u32)
}

impl ModelConfig {
    /// The tensor `name` of a model that is trained from scratch: `N(0, initializer_range)` for a
    /// matrix, zeros for a bias, ones for a norm.
    pub fn draw(&self, seed: u64, name: &str, shape: &[usize]) -> Vec<f32> {
        let (generator, count, (a, b)) = (Philox::new(seed), shape.iter().product(), stream(name));
        match shape.len() {
            2 => {
                let number = |i: usize| (generator.normal(i as u64, a, b) * self.initializer_range) as f32;
                (0..count).into_par_iter().map(number).collect()
            }
            _ if name.ends_with(".bias") => vec![0.0; count],
            _ => vec![1.0; count],
        }
    }
}

/// `A` `[r, input]` of a new adapter, called `name` in its file; `B` is zero.
pub fn lora_a(seed: u64, init: InitLora, name: &str, r: usize, input: usize) -> Vec<f32> {
    let (generator, bound, (a, b)) = (Philox::new(seed), 1.0 / (input as f64).sqrt(), stream(name));
    let number = |i: u64| match init {
        InitLora::Kaiming => (generator.uniform(i, a, b) * 2.0 - 1.0) * bound,
        InitLora::Gaussian => generator.normal(i, a, b) / r as f64,
    };
    (0..(r * input) as u64).map(|i| number(i) as f32).collect()
}

impl TargetModules {
    /// Holds the size of an adapter that is to be drawn for a model of these `linears` against the
    /// memory that is left: each number has a gradient and two moments.
    ///
    /// # Errors
    /// If it cannot fit.
    pub fn check_memory(&self, linears: &Linears) -> Result<(), BackendError> {
        let Some(room) = memory::available() else { return Ok(()) };
        let of = |(path, shape): (&String, &AdapterShape)| {
            16 * shape.r as u128 * linears.get(path).map_or(0, |[input, output]| *input as u128 + *output as u128)
        };
        let bytes: u128 = self.modules.iter().map(of).sum();
        if bytes <= u128::from(room) {
            return Ok(());
        }
        let [bytes, room] = [bytes as f64, room as f64].map(|bytes| bytes / 1e9);
        Err(BackendError::failed(format!(
            "an adapter of these ranks takes {bytes:.1} GB to train, and there are {room:.1} GB of memory left: lower r or \
             rank_pattern"
        )))
    }
}
