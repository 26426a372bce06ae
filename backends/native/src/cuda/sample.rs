//! Sampling on a device: from logits to the next tokens; only the ids come to the host.

use karat_backend::GenerateConfig;
use karat_model::sampling::not_a_number;

use super::device::{Arg, DeviceBuffer, Element};
use super::kernels::decode;
use super::storage::{CudaStorage, DeviceIndices, start};
use crate::error::Result;

/// The next token of each row of `logits` `[rows, vocab]` in f32; `places` are the row's number and
/// how many tokens it has generated.
///
/// # Errors
/// If the device fails, or a logit is not a number.
pub fn pick(logits: &CudaStorage, places: &[(usize, usize)], config: &GenerateConfig) -> Result<Vec<u32>> {
    let (device, rows) = (logits.device(), logits.matrix_dims().0);
    let numbers =
        |f: fn(&(usize, usize)) -> u32| DeviceIndices::upload(device, &places.iter().map(f).collect::<Vec<_>>());
    let (row, place) = (numbers(|p| p.0 as u32)?, numbers(|p| p.1 as u32)?);
    let ids = DeviceIndices::any(device, rows)?;
    pick_into(logits, [row.arg(), place.arg(), ids.arg()], config)?;
    tokens(picked(ids.get(rows)?), places)
}

/// [`pick`] from numbers that are on the device, to a place there: rows, places, ids.
///
/// # Errors
/// As there.
pub fn pick_into(logits: &CudaStorage, [row, place, ids]: [Arg<'_>; 3], config: &GenerateConfig) -> Result<()> {
    let (device, shape) = (logits.device(), logits.matrix_dims());
    // Weights of a draw; a greedy one has none.
    let weights = DeviceBuffer::new(&device.gpu, if config.temperature > 0.0 { shape.0 * shape.1 * 8 } else { 8 })?;
    let arguments = [logits.arg(), row, place, ids, start(&weights)];
    decode::sample(&*device.gpu, Element::F32, arguments, shape, config)
}

/// The tokens that were picked for `places`.
///
/// # Errors
/// If a logit was not a number.
pub fn tokens(picked: Vec<Option<u32>>, places: &[(usize, usize)]) -> Result<Vec<u32>> {
    let checked = picked.into_iter().zip(places).map(|(id, &(row, place))| id.ok_or_else(|| not_a_number(row, place)));
    checked.collect()
}

/// The tokens that the kernel picked, read.
pub fn picked(ids: Vec<u32>) -> Vec<Option<u32>> {
    ids.into_iter().map(|id| (id != decode::NOT_A_NUMBER).then_some(id)).collect()
}
