//! Safetensors files: mapped and read tensor by tensor, and the tensors here as files take them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use karat_backend::BackendError;
use karat_kernels::memory::mmap::{ElementType, Elements, Mapping};
use karat_model::checkpoint::{CheckpointLayout, Location};
use karat_model::publish::{Put, Shapes};

use crate::error::Result;
use crate::tensor::StoredWeight;
use crate::weight::Weight;

/// An error about a file.
pub fn at(path: &Path, what: impl std::fmt::Display) -> BackendError {
    BackendError::failed(format!("{}: {what}", path.display()))
}

fn io<T>(path: &Path, what: &str, result: std::io::Result<T>) -> Result<T> {
    result.map_err(|e| at(path, what).because(&e))
}

/// The tensors of one or several safetensors files, mapped.
pub struct TensorFiles {
    layout: CheckpointLayout,
    mappings: Vec<Mapping>,
}

impl TensorFiles {
    /// Maps the weights of a model's folder.
    ///
    /// # Errors
    /// As [`CheckpointLayout::of_folder`]; if a file cannot be mapped.
    pub fn of_folder(folder: &Path) -> Result<Self> {
        Self::map(CheckpointLayout::of_folder(folder)?)
    }

    fn map(layout: CheckpointLayout) -> Result<Self> {
        let map = |path: &PathBuf| io(path, "could not map it", File::open(path).and_then(|file| Mapping::new(&file)));
        let mappings = layout.files().iter().map(map).collect::<Result<_>>()?;
        Ok(TensorFiles { layout, mappings })
    }

    /// Where they lie.
    pub fn layout(&self) -> &CheckpointLayout {
        &self.layout
    }

    /// A tensor as it lies in its file: nothing is read before it is used, and nothing is held
    /// twice.
    ///
    /// # Errors
    /// As [`CheckpointLayout::find`].
    pub fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let Location { file, dtype, bytes } = self.layout.find(name, shape)?;
        let (mapping, path) = (&self.mappings[file], &self.layout.files()[file]);
        let range = bytes.start as usize..bytes.end as usize;
        let kind = match dtype {
            karat_backend::Dtype::F32 => ElementType::F32,
            karat_backend::Dtype::Bf16 => ElementType::Bf16,
            karat_backend::Dtype::F16 => ElementType::F16,
        };
        if let Some(numbers) = mapping.numbers(range.clone(), kind) {
            return Ok(Weight::Mapped { numbers, shape: shape.to_vec() });
        }
        // The format does not ask for alignment; most writers keep it.
        let bytes = mapping.bytes(range).ok_or_else(|| at(path, format!("was shortened while {name} was read")))?;
        let data = match kind {
            ElementType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            ElementType::Bf16 => {
                bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            }
            ElementType::F16 => {
                bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            }
        };
        crate::tensor::tensor(data, shape).map(Weight::Owned)
    }
}

/// Names and shapes of `tensors`.
pub fn shapes<T: StoredWeight>(tensors: &BTreeMap<String, T>) -> Shapes {
    tensors.iter().map(|(name, t)| (name.clone(), t.dims().to_vec())).collect()
}

/// Reads the tensor of a name, widened to f32 piece by piece.
pub fn reader<T: StoredWeight>(tensors: &BTreeMap<String, T>) -> impl Fn(&str, &mut Put<'_>) -> Result<()> + '_ {
    |name, put| {
        let tensor = tensors.get(name).ok_or_else(|| BackendError::failed(format!("there is no tensor {name}")))?;
        match tensor.view()?.elements() {
            Elements::F32(data) => put(data),
            elements => {
                let mut wide = Vec::new();
                (0..elements.len()).step_by(PIECE).try_for_each(|from| {
                    let piece = elements.slice(from..elements.len().min(from + PIECE));
                    wide.resize(piece.len(), 0.0);
                    piece.widen(&mut wide);
                    put(&wide)
                })
            }
        }
    }
}

/// Numbers that are widened at once.
const PIECE: usize = 1 << 20;

/// Writes tensors as f32.
///
/// # Errors
/// If the file cannot be written.
pub fn write_tensors<T: StoredWeight>(path: &Path, tensors: &BTreeMap<String, T>) -> Result<()> {
    karat_model::publish::write_tensors(path, &shapes(tensors), &reader(tensors))
}
