//! Weights in safetensors files, read one tensor at a time.
//!
//! Only headers are kept in memory; a tensor is read (not mapped) when it is asked for, so the peak is one tensor, and a
//! file that changes under us gives an error and no undefined behaviour.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use karat::backend::BackendError;
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

/// Headers larger than this are not believed (the format's own limit).
const MAX_HEADER: u64 = 100_000_000;

/// Named tensors in one or several safetensors files.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, Stored>,
}

#[derive(Debug)]
struct Stored {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    offset: u64,
    bytes: usize,
}

impl Checkpoint {
    /// Opens `model.safetensors` of a model folder, or the shards its index names.
    ///
    /// # Errors
    /// If neither is there, a shard is missing, or a header does not fit its file.
    pub fn open(folder: &Path) -> Result<Self, BackendError> {
        let single = folder.join("model.safetensors");
        if single.is_file() {
            return Self::open_files(vec![single]);
        }
        let index = folder.join("model.safetensors.index.json");
        let text = std::fs::read_to_string(&index).map_err(|_| {
            BackendError::failed(format!(
                "{} holds neither model.safetensors nor model.safetensors.index.json; other weight formats are not read",
                folder.display()
            ))
        })?;
        let broken = |what: String| BackendError::failed(format!("{}: {what}", index.display()));
        let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| broken(format!("broken JSON: {e}")))?;
        let map = json["weight_map"].as_object().ok_or_else(|| broken("no weight_map".into()))?;
        let mut names = BTreeSet::new();
        for (tensor, file) in map {
            let file = file.as_str().filter(|f| Path::new(f).file_name() == Some(f.as_ref()));
            names.insert(file.ok_or_else(|| broken(format!("the file of {tensor} is not a plain file name")))?);
        }
        let checkpoint = Self::open_files(names.into_iter().map(|name| folder.join(name)).collect())?;
        match map.keys().find(|tensor| !checkpoint.tensors.contains_key(*tensor)) {
            Some(missing) => Err(broken(format!("it promises {missing}, which is in none of the shards"))),
            None => Ok(checkpoint),
        }
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// If it is missing or its header does not fit it.
    pub fn open_file(path: &Path) -> Result<Self, BackendError> {
        Self::open_files(vec![path.to_path_buf()])
    }

    fn open_files(files: Vec<PathBuf>) -> Result<Self, BackendError> {
        let mut tensors = BTreeMap::new();
        for (index, path) in files.iter().enumerate() {
            let (start, metadata) = read_header(path)?;
            for (name, info) in metadata.tensors() {
                let (from, to) = info.data_offsets;
                let stored = Stored {
                    file: index,
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    offset: start + from as u64,
                    bytes: to - from,
                };
                if tensors.insert(name.clone(), stored).is_some() {
                    return Err(BackendError::failed(format!("{}: {name} is stored twice", path.display())));
                }
            }
        }
        Ok(Checkpoint { files, tensors })
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.shape.as_slice())
    }

    /// Reads a tensor that must have `shape`, widened to f32.
    ///
    /// # Errors
    /// As [`Checkpoint::read_rows`].
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, BackendError> {
        self.read_rows(name, shape, 0..shape.first().copied().unwrap_or(1))
    }

    /// Reads `rows` (of the first dimension) of a tensor that must have `shape`, widened to f32.
    ///
    /// # Errors
    /// Missing, of another shape, of an element type that is no float of 16 or 32 bits, not finite, or unreadable.
    pub fn read_rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Vec<f32>, BackendError> {
        let place = self.files.first().and_then(|f| f.parent()).unwrap_or(Path::new(".")).display();
        let Some(stored) = self.tensors.get(name) else {
            return Err(BackendError::failed(format!("{place}: the tensor {name} is missing")));
        };
        let path = &self.files[stored.file];
        let fail = |what: String| BackendError::failed(format!("{}: {name} {what}", path.display()));
        if stored.shape != shape {
            return Err(fail(format!("has shape {:?}, the configuration asks for {shape:?}", stored.shape)));
        }
        let size = match stored.dtype {
            Dtype::F32 => 4,
            Dtype::BF16 | Dtype::F16 => 2,
            other => return Err(fail(format!("has element type {other:?}; F32, BF16 and F16 are read"))),
        };
        let row = shape.iter().skip(1).product::<usize>() * size;
        if stored.bytes != shape.iter().product::<usize>() * size || rows.end * row > stored.bytes {
            return Err(fail(format!("holds {} bytes, its shape {shape:?} needs another number", stored.bytes)));
        }
        let mut raw = vec![0u8; rows.len() * row];
        File::open(path)
            .and_then(|mut file| {
                file.seek(SeekFrom::Start(stored.offset + (rows.start * row) as u64))?;
                file.read_exact(&mut raw)
            })
            .map_err(|e| fail(format!("could not be read: {e}")))?;
        let values: Vec<f32> = match stored.dtype {
            Dtype::BF16 => raw.par_chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::F16 => raw.par_chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            _ => raw.par_chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        };
        match values.par_iter().all(|v| v.is_finite()) {
            true => Ok(values),
            false => Err(fail("has values that are not finite; the checkpoint is broken".into())),
        }
    }
}

/// The header of a safetensors file and where its data starts; checks that the file is as long as the header says.
fn read_header(path: &Path) -> Result<(u64, Metadata), BackendError> {
    let fail = |what: String| BackendError::failed(format!("{}: {what}", path.display()));
    let mut file = File::open(path).map_err(|e| fail(format!("could not be opened: {e}")))?;
    let length = file.metadata().map_err(|e| fail(e.to_string()))?.len();
    let mut size = [0u8; 8];
    file.read_exact(&mut size).map_err(|_| fail("is too short to be a safetensors file".into()))?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER || size + 8 > length {
        return Err(fail(format!(
            "its header claims {size} bytes of a file of {length}; truncated or no safetensors file"
        )));
    }
    let mut header = vec![0u8; size as usize];
    file.read_exact(&mut header).map_err(|e| fail(e.to_string()))?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| fail(format!("its header is broken: {e}")))?;
    let expected = 8 + size + metadata.data_len() as u64;
    match expected == length {
        true => Ok((8 + size, metadata)),
        false => Err(fail(format!("is {length} bytes long, its header asks for {expected}; truncated?"))),
    }
}
