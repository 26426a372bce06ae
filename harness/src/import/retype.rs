//! A model folder's weights in another element type.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use half::{bf16, f16};
use karat_system::safetensors::{Dtype as Element, WEIGHTS, Writer, read_header};
use serde_json::{Value, json};

use super::{PIECE, encode, torch_name};
use crate::backend::Dtype;
use crate::fsio::{PassingFolder, read_json, write_json};
use crate::{Error, Result};

/// Rounds the weights of the model in `folder` (one file) to `dtype`, to nearest with ties to even,
/// and says so in its `config.json`. The file is replaced when the new one is whole.
///
/// # Errors
/// Data, for weights that are no floats of one file, or hold a number that `dtype` cannot; I/O.
pub fn retype(folder: &Path, dtype: Dtype) -> Result<()> {
    let file = &folder.join(WEIGHTS);
    let read = |e| Error::io("read", file, e);
    if !file.is_file() {
        return Err(Error::data("the weights lie in several files").at(folder.display()));
    }
    let tensors = read_header(file)?;
    let mut source = File::open(file).map_err(read)?;
    let entries = tensors.iter().map(|(name, stored)| encode::entry(name, &stored.shape, dtype)).collect();
    // In the folder itself, so that the new file can take the old one's place at once.
    let rest = PassingFolder::new_in(folder, "retype").map_err(|e| Error::io("create a folder in", folder, e))?;
    let mut writer = Writer::sharded(rest.path(), entries, u64::MAX);
    for (name, stored) in &tensors {
        source.seek(SeekFrom::Start(stored.bytes.start)).map_err(read)?;
        let mut left = stored.bytes.end - stored.bytes.start;
        while left > 0 {
            let mut bytes = vec![0; left.min(4 * PIECE as u64) as usize];
            source.read_exact(&mut bytes).map_err(read)?;
            left -= bytes.len() as u64;
            let values: Vec<f32> = match stored.dtype {
                Element::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
                Element::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
                Element::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
                other => {
                    let what = format!("tensor {name} is {other:?}; F32, BF16 and F16 are rounded");
                    return Err(Error::data(what).at(file.display()));
                }
            };
            encode::write(&mut writer, dtype, &values)?;
        }
    }
    writer.finish()?;
    std::fs::rename(rest.path().join(WEIGHTS), file).map_err(|e| Error::io("replace", file, e))?;
    let path = folder.join("config.json");
    let mut config: Value = read_json(&path)?;
    if let Some(config) = config.as_object_mut() {
        let key = if config.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
        config.insert(key.into(), json!(torch_name(dtype)));
    }
    write_json(&path, &config)
}
