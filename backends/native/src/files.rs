//! Safetensors files and folders on disk: mapped and read tensor by tensor, written whole folders at once.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use karat_backend::BackendError;
use karat_model::checkpoint::{CheckpointLayout, Location};
use karat_system::fsio::PassingFolder;
use karat_system::safetensors::{Entry, Writer};

use crate::error::Result;
use crate::tensor::{StoredWeight, Tensor};
use crate::weight::Weight;
use karat_kernels::memory::mmap::{ElementType, Elements, Mapping};

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

    /// Maps one file.
    ///
    /// # Errors
    /// As [`CheckpointLayout::of_file`]; if it cannot be mapped.
    pub fn of_file(path: &Path) -> Result<Self> {
        Self::map(CheckpointLayout::of_file(path)?)
    }

    /// Maps the files of `layout`.
    ///
    /// # Errors
    /// If one cannot be mapped.
    pub fn map(layout: CheckpointLayout) -> Result<Self> {
        let map = |path: &PathBuf| io(path, "could not map it", File::open(path).and_then(|file| Mapping::new(&file)));
        let mappings = layout.files().iter().map(map).collect::<Result<_>>()?;
        Ok(TensorFiles { layout, mappings })
    }

    /// Where they lie.
    pub fn layout(&self) -> &CheckpointLayout {
        &self.layout
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.layout.names()
    }

    /// A tensor as it lies in its file: nothing is read before it is used, and nothing is held twice.
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

    /// A copy of a tensor, widened to f32.
    ///
    /// # Errors
    /// As [`TensorFiles::weight`].
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.weight(name, shape)?.own()
    }
}

/// Writes tensors as f32.
///
/// # Errors
/// If the file cannot be written.
pub fn write_tensors<T: StoredWeight>(path: &Path, tensors: &BTreeMap<String, T>) -> Result<()> {
    let entries = tensors.iter().map(|(name, t)| Entry::f32(name, t.dims())).collect();
    let mut writer = Writer::file(path, entries);
    let mut put = |data: &[f32]| {
        // The format is little-endian, and so is every machine that these kernels are built for.
        writer.write(bytemuck::cast_slice(data)).map_err(|e| written(path, e))
    };
    let mut wide = Vec::new();
    for tensor in tensors.values() {
        match tensor.view()?.elements() {
            Elements::F32(data) => put(data)?,
            elements => {
                for from in (0..elements.len()).step_by(PIECE) {
                    let piece = elements.slice(from..elements.len().min(from + PIECE));
                    wide.resize(piece.len(), 0.0);
                    piece.widen(&mut wide);
                    put(&wide)?;
                }
            }
        }
    }
    writer.finish().map_err(|e| written(path, e))
}

/// Numbers that are widened at once.
const PIECE: usize = 1 << 20;

/// The error of a file that could not be written.
pub fn written(path: &Path, error: karat_system::Error) -> BackendError {
    at(path, "could not write it").because(&error)
}

/// Fills a folder with `fill` and gives it its name; a folder of that name is replaced. `purpose` is that of
/// [`PassingFolder::new_in`].
///
/// # Errors
/// If `fill` fails or the folder cannot be written; nothing is left behind then, and what was there before stays.
pub fn publish_folder(folder: &Path, purpose: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let passing = io(folder, "could not create a folder beside it", PassingFolder::beside(folder, purpose))?;
    fill(passing.path())?;
    io(folder, "could not give the folder its name", passing.replace(folder))
}
