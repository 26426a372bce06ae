//! The file of weights: tensors one after the other, each at an aligned offset, written as they
//! come.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use karat_backend::BackendError;
use rayon::prelude::*;

use crate::proto::{DataType, ProtoMessage, external_tensor};

/// Tensors start at multiples of this, so that the runtime can map them.
const ALIGNMENT: u64 = 4096;

/// A file of weights under construction.
pub struct ExternalDataFile {
    path: PathBuf,
    name: String,
    file: BufWriter<File>,
    offset: u64,
}

/// Where the bytes of a tensor lie.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    offset: u64,
    length: u64,
}

impl ExternalDataFile {
    /// A new file at `path`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(path: &Path) -> Result<Self, BackendError> {
        let file = File::create(path).map_err(|e| disk(path, &e))?;
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(ExternalDataFile {
            path: path.to_path_buf(),
            name,
            file: BufWriter::with_capacity(1 << 20, file),
            offset: 0,
        })
    }

    /// Starts a tensor; its bytes are those that are put before the next one starts.
    ///
    /// # Errors
    /// A disk error.
    pub fn begin(&mut self) -> Result<u64, BackendError> {
        let padding = self.offset.next_multiple_of(ALIGNMENT) - self.offset;
        self.put(&vec![0; padding as usize])?;
        Ok(self.offset)
    }

    /// Where the tensor that began at `offset` lies.
    pub fn end(&self, offset: u64) -> Placed {
        Placed { offset, length: self.offset - offset }
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// A disk error.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), BackendError> {
        self.file.write_all(bytes).map_err(|e| disk(&self.path, &e))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Appends floats, rounded to the element type; `tensor` names them in the error.
    ///
    /// # Errors
    /// A value that the element type cannot hold; a disk error.
    pub fn put_floats(&mut self, tensor: &str, values: &[f32], element: DataType) -> Result<(), BackendError> {
        for chunk in values.chunks(1 << 20) {
            let mut bytes = vec![0; chunk.len() * element.bytes()];
            let places = bytes.par_chunks_exact_mut(element.bytes()).zip(chunk.par_iter());
            places.for_each(|(place, &v)| match element {
                DataType::F16 => place.copy_from_slice(&f16::from_f32(v).to_le_bytes()),
                DataType::Bf16 => place.copy_from_slice(&bf16::from_f32(v).to_le_bytes()),
                _ => place.copy_from_slice(&v.to_le_bytes()),
            });
            let overflow = match element {
                DataType::F16 => chunk.iter().find(|&&v| !f16::from_f32(v).is_finite()),
                DataType::Bf16 => chunk.iter().find(|&&v| !bf16::from_f32(v).is_finite()),
                _ => None,
            };
            if let Some(value) = overflow {
                return Err(beyond(tensor, *value, element));
            }
            self.put(&bytes)?;
        }
        Ok(())
    }

    /// The declaration of a tensor.
    pub fn initializer(&self, name: &str, element: DataType, shape: &[usize], placed: Placed) -> ProtoMessage {
        external_tensor(name, element, shape, &self.name, placed.offset, placed.length)
    }

    /// Writes everything out; returns the number of bytes.
    ///
    /// # Errors
    /// A disk error.
    pub fn finish(self) -> Result<u64, BackendError> {
        let file = self.file.into_inner().map_err(|e| disk(&self.path, e.error()))?;
        file.sync_all().map_err(|e| disk(&self.path, &e))?;
        Ok(self.offset)
    }
}

/// A value that the element type cannot hold.
pub(super) fn beyond(tensor: &str, value: f32, element: DataType) -> BackendError {
    BackendError::failed(format!("{tensor} holds {value}, which {} cannot hold; export it as f32", element.name()))
}

fn disk(path: &Path, error: &std::io::Error) -> BackendError {
    BackendError::failed(format!("could not write {}: {error}", path.display()))
}
