//! A model folder's weights in another element type.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use half::{bf16, f16};
use serde_json::{Value, json};

use super::checkpoint::{Entry, Writer};
use super::{PIECE, torch_name};
use crate::backend::{BackendError, Dtype};
use crate::checkpoint::Layout;
use crate::fsio::{read_json, write_json};
use crate::{Error, Result};

/// Rounds the weights of the model in `folder` (one file) to `dtype`, to nearest with ties to even,
/// and says so in its `config.json`. The file is replaced when the new one is whole.
///
/// # Errors
/// Data, for weights that are no floats of one file, or hold a number that `dtype` cannot; I/O.
pub fn retype(folder: &Path, dtype: Dtype) -> Result<()> {
    let broken = |e: BackendError| Error::data("could not read the weights").at(folder.display()).because(e);
    let layout = Layout::of_folder(folder).map_err(broken)?;
    let [file] = layout.files() else {
        return Err(Error::data("the weights lie in several files").at(folder.display()));
    };
    let entry = |name: &str| Entry { name: name.into(), shape: layout.shape(name).unwrap_or_default().to_vec() };
    let entries: Vec<Entry> = layout.names().map(entry).collect();
    // In the folder itself, so that the new file can take the old one's place at once.
    let rest = tempfile::Builder::new().prefix(".karat-").tempdir_in(folder);
    let rest = rest.map_err(|e| Error::io("create a folder", folder, e))?;
    let mut writer = Writer::new(rest.path(), dtype, &entries, u64::MAX);
    let read = |e| Error::io("read", file, e);
    let mut source = File::open(file).map_err(read)?;
    for entry in &entries {
        let place = layout.find(&entry.name, &entry.shape).map_err(broken)?;
        source.seek(SeekFrom::Start(place.bytes.start)).map_err(read)?;
        let mut left = (place.bytes.end - place.bytes.start) as usize;
        while left > 0 {
            let mut bytes = vec![0; left.min(4 * PIECE)];
            source.read_exact(&mut bytes).map_err(read)?;
            left -= bytes.len();
            let values: Vec<f32> = match place.dtype {
                Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
                Dtype::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
                Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            };
            writer.write(&values)?;
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
