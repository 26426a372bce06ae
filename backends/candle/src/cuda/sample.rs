//! From logits on a device to the next tokens: only the ids come to the host.

use karat::backend::GenerateConfig;

use super::Tensor;
use super::device::{Buffer, Element};
use super::kernels::decode;
use super::tensor::{self, Indices};
use crate::nn::Result;

/// The next token of each row of `logits` `[rows, vocab]` in f32, nothing where one is not a number; `places` are the row's
/// number and how many tokens it has generated.
///
/// # Errors
/// If the device fails.
pub fn pick(logits: &Tensor, places: &[(usize, usize)], config: &GenerateConfig) -> Result<Vec<Option<u32>>> {
    let (device, (rows, vocab)) = (logits.device(), logits.matrix_dims());
    let numbers = |f: fn(&(usize, usize)) -> u32| Indices::upload(device, &places.iter().map(f).collect::<Vec<_>>());
    let (row, place) = (numbers(|p| p.0 as u32)?, numbers(|p| p.1 as u32)?);
    let ids = Buffer::new(&device.gpu, rows * 4)?;
    // Weights of a draw; a greedy one has none.
    let weights = Buffer::new(&device.gpu, if config.temperature > 0.0 { rows * vocab * 8 } else { 8 })?;
    let arguments = [logits.arg(), row.arg(), place.arg(), tensor::start(&ids), tensor::start(&weights)];
    decode::sample(&*device.gpu, Element::F32, arguments, (rows, vocab), config)?;
    let mut picked = vec![0u32; rows];
    device.gpu.download(ids.raw(), 0, bytemuck::cast_slice_mut(&mut picked))?;
    Ok(picked.into_iter().map(|id| (id != decode::NOT_A_NUMBER).then_some(id)).collect())
}
