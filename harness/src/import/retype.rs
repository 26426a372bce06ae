//! A model folder's weights in another element type.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use half::{bf16, f16};
use karat_system::safetensors::Writer;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Value, json};

use super::{PIECE, encode, torch_name};
use crate::backend::Dtype;
use crate::fsio::{read_json, write_json};
use crate::{Error, Result};

/// Rounds the weights of the model in `folder` (one file) to `dtype`, to nearest with ties to even,
/// and says so in its `config.json`. The file is replaced when the new one is whole.
///
/// # Errors
/// Data, for weights that are no floats of one file, or hold a number that `dtype` cannot; I/O.
pub fn retype(folder: &Path, dtype: Dtype) -> Result<()> {
    let file = &folder.join("model.safetensors");
    let read = |e| Error::io("read", file, e);
    if !file.is_file() {
        return Err(Error::data("the weights lie in several files").at(folder.display()));
    }
    let mut source = File::open(file).map_err(read)?;
    let (start, metadata) = header(&mut source).map_err(read)?;
    let tensors: BTreeMap<String, &TensorInfo> = metadata.tensors().into_iter().collect();
    let entries = tensors.iter().map(|(name, info)| encode::entry(name, &info.shape, dtype)).collect();
    // In the folder itself, so that the new file can take the old one's place at once.
    let rest = tempfile::Builder::new().prefix(".karat-").tempdir_in(folder);
    let rest = rest.map_err(|e| Error::io("create a folder", folder, e))?;
    let mut writer = Writer::sharded(rest.path(), entries, u64::MAX);
    for (name, info) in &tensors {
        let (first, end) = info.data_offsets;
        source.seek(SeekFrom::Start(start + first as u64)).map_err(read)?;
        let mut left = end - first;
        while left > 0 {
            let mut bytes = vec![0; left.min(4 * PIECE)];
            source.read_exact(&mut bytes).map_err(read)?;
            left -= bytes.len();
            let values: Vec<f32> = match info.dtype {
                safetensors::Dtype::F32 => {
                    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
                }
                safetensors::Dtype::BF16 => {
                    bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
                }
                safetensors::Dtype::F16 => {
                    bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
                }
                other => {
                    let what = format!("tensor {name} is {other:?}; F32, BF16 and F16 are rounded");
                    return Err(Error::data(what).at(file.display()));
                }
            };
            encode::write(&mut writer, dtype, &values)?;
        }
    }
    writer.finish()?;
    let name = file.file_name().unwrap_or_default();
    std::fs::rename(rest.path().join(name), file).map_err(|e| Error::io("replace", file, e))?;
    let path = folder.join("config.json");
    let mut config: Value = read_json(&path)?;
    if let Some(config) = config.as_object_mut() {
        let key = if config.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
        config.insert(key.into(), json!(torch_name(dtype)));
    }
    write_json(&path, &config)
}

/// The header of a safetensors file, which says what lies where, and where its data starts.
fn header(file: &mut File) -> io::Result<(u64, Metadata)> {
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    let mut text = Vec::new();
    if file.take(length).read_to_end(&mut text)? as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let metadata = serde_json::from_slice(&text)?;
    Ok((length + 8, metadata))
}
