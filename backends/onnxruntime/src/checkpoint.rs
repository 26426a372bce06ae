//! Weights in safetensors files, read one tensor at a time.
//!
//! Only headers are kept in memory; a tensor is read (not mapped) when it is asked for, so the peak is one tensor, and a
//! file that changes under us gives an error and no undefined behaviour.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use karat_backend::{BackendError, Dtype};
use karat_model::checkpoint::{Layout, Location};
use rayon::prelude::*;

/// Named tensors in one or several safetensors files.
#[derive(Debug)]
pub struct Checkpoint(Layout);

impl Checkpoint {
    /// The weights of a model's folder.
    ///
    /// # Errors
    /// As [`Layout::of_folder`].
    pub fn open(folder: &Path) -> Result<Self, BackendError> {
        Layout::of_folder(folder).map(Checkpoint)
    }

    /// These tensors.
    pub fn of(layout: Layout) -> Self {
        Checkpoint(layout)
    }

    /// Where they lie.
    pub fn layout(&self) -> &Layout {
        &self.0
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.names()
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.0.shape(name)
    }

    /// How the elements of a tensor of `shape` are stored, if it is there.
    pub fn dtype(&self, name: &str, shape: &[usize]) -> Option<Dtype> {
        self.0.find(name, shape).ok().map(|location| location.dtype)
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
    /// As [`Layout::find`]; numbers that are not finite, a file that cannot be read.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn read_rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Vec<f32>, BackendError> {
        let Location { file, dtype, bytes } = self.0.find(name, shape)?;
        let path = &self.0.files()[file];
        let fail = |what: String| BackendError::failed(format!("{}: tensor {name} {what}", path.display()));
        let row = shape.iter().skip(1).product::<usize>() * if dtype == Dtype::F32 { 4 } else { 2 };
        let mut raw = vec![0u8; rows.len() * row];
        File::open(path)
            .and_then(|mut file| {
                file.seek(SeekFrom::Start(bytes.start + (rows.start * row) as u64))?;
                file.read_exact(&mut raw)
            })
            .map_err(|e| fail(format!("could not be read: {e}")))?;
        let values: Vec<f32> = match dtype {
            Dtype::Bf16 => raw.par_chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::F16 => raw.par_chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::F32 => raw.par_chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        };
        match values.par_iter().all(|v| v.is_finite()) {
            true => Ok(values),
            false => Err(fail("has values that are not finite; the checkpoint is broken".into())),
        }
    }
}
