//! Where the tensors of a checkpoint lie: safetensors headers read and checked, shards found by
//! their index. Only headers are kept in memory; a tensor is read when it is asked for, or mapped
//! by a backend where it is told to lie.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use rayon::prelude::*;

use karat_backend::{BackendError, Dtype};
use karat_system::fsio::regular;
use karat_system::safetensors::{Dtype as Element, read_header};

pub use karat_system::safetensors::{INDEX, WEIGHTS};

fn at(path: &Path, what: impl std::fmt::Display) -> BackendError {
    BackendError::failed(format!("{}: {what}", path.display()))
}

fn io<T>(path: &Path, what: &str, result: std::io::Result<T>) -> Result<T, BackendError> {
    result.map_err(|e| at(path, what).because(&e))
}

/// What is wrong with a file, with its path and causes.
fn broken(error: &karat_system::Error) -> BackendError {
    let told = BackendError::failed(error.to_string());
    match std::error::Error::source(error) {
        Some(cause) => told.because(cause),
        None => told,
    }
}

/// The tensors of one or several safetensors files.
#[derive(Clone, Debug)]
pub struct CheckpointLayout {
    /// A folder, or the only file.
    place: PathBuf,
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, StoredTensor>,
}

#[derive(Clone, Debug)]
struct StoredTensor {
    file: usize,
    dtype: Element,
    shape: Vec<usize>,
    bytes: Range<u64>,
}

/// A tensor of numbers that Karat computes with, row-major and little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Its file, by its place in [`CheckpointLayout::files`].
    pub file: usize,
    /// How an element is stored.
    pub dtype: Dtype,
    /// Its first byte in the file and the one after its last; as many as its shape asks for.
    pub bytes: Range<u64>,
}

impl CheckpointLayout {
    /// The tensors of a model's folder: those of [`WEIGHTS`], or of the shards that [`INDEX`]
    /// names.
    ///
    /// # Errors
    /// If neither is there, a shard is missing or lacks what it is said to hold, or as
    /// [`CheckpointLayout::of_file`].
    pub fn of_folder(folder: &Path) -> Result<Self, BackendError> {
        let (single, index) = (folder.join(WEIGHTS), folder.join(INDEX));
        if single.is_file() {
            return Self::of_files(folder, vec![single]);
        }
        if !index.is_file() {
            let what = format!("holds neither {WEIGHTS} nor {INDEX}; other formats of weights are not read");
            return Err(at(folder, what));
        }
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = regular(&index).and_then(|()| std::fs::read_to_string(&index));
        let text: String = io(&index, "could not read it", text)?;
        let Index { weight_map } =
            serde_json::from_str(&text).map_err(|e| at(&index, "not an index of shards").because(&e))?;
        if let Some((name, shard)) = weight_map.iter().find(|(_, s)| Path::new(s).file_name() != Some(s.as_ref())) {
            return Err(at(&index, format!("shard {shard:?} of {name:?} is not a file name")));
        }
        let shards: BTreeSet<&String> = weight_map.values().collect();
        let mut layout = Self::of_files(folder, shards.into_iter().map(|shard| folder.join(shard)).collect())?;
        let held = |name: &str, shard: &str| {
            layout.tensors.get(name).is_some_and(|t| layout.files[t.file].file_name() == Some(shard.as_ref()))
        };
        if let Some((name, shard)) = weight_map.iter().find(|(name, shard)| !held(name, shard)) {
            return Err(at(&index, format!("it promises {name:?} in {shard:?}, where it is not")));
        }
        // What the index does not name is not of the model.
        layout.tensors.retain(|name, _| weight_map.contains_key(name));
        Ok(layout)
    }

    /// The tensors of one file.
    ///
    /// # Errors
    /// For a missing, truncated or broken file.
    pub fn of_file(path: &Path) -> Result<Self, BackendError> {
        Self::of_files(path, vec![path.to_owned()])
    }

    fn of_files(place: &Path, files: Vec<PathBuf>) -> Result<Self, BackendError> {
        let mut tensors = BTreeMap::new();
        for (file, path) in files.iter().enumerate() {
            let header = read_header(path).map_err(|e| broken(&e))?;
            for (name, tensor) in header {
                let stored = StoredTensor { file, dtype: tensor.dtype, shape: tensor.shape, bytes: tensor.bytes };
                match tensors.entry(name) {
                    Entry::Vacant(free) => drop(free.insert(stored)),
                    Entry::Occupied(there) => {
                        return Err(at(path, format!("{:?} is in another shard too", there.key())));
                    }
                }
            }
        }
        Ok(CheckpointLayout { place: place.to_owned(), files, tensors })
    }

    /// The folder of the files, or the only one.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// The files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.shape.as_slice())
    }

    /// How the elements of a tensor of `shape` are stored, if it is there.
    pub fn dtype(&self, name: &str, shape: &[usize]) -> Option<Dtype> {
        self.find(name, shape).ok().map(|location| location.dtype)
    }

    /// Reads a tensor that must have `shape`, widened to f32.
    ///
    /// # Errors
    /// As [`CheckpointLayout::read_rows`].
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, BackendError> {
        self.read_rows(name, shape, 0..shape.first().copied().unwrap_or(1))
    }

    /// Reads `rows` (of the first dimension) of a tensor that must have `shape`, widened to f32. A
    /// file that changes meanwhile gives an error and no undefined behaviour.
    ///
    /// # Errors
    /// As [`CheckpointLayout::find`]; numbers that are not finite, a file that cannot be read.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn read_rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Vec<f32>, BackendError> {
        let Location { file, dtype, bytes } = self.find(name, shape)?;
        let path = &self.files[file];
        let row = shape.iter().skip(1).product::<usize>() * if dtype == Dtype::F32 { 4 } else { 2 };
        let mut raw = vec![0u8; rows.len() * row];
        let read = File::open(path).and_then(|mut file| {
            file.seek(SeekFrom::Start(bytes.start + (rows.start * row) as u64))?;
            file.read_exact(&mut raw)
        });
        read.map_err(|e| at(path, format!("tensor {name} could not be read")).because(&e))?;
        let values: Vec<f32> = match dtype {
            Dtype::Bf16 => raw.par_chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::F16 => raw.par_chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::F32 => raw.par_chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        };
        match values.par_iter().all(|v| v.is_finite()) {
            true => Ok(values),
            false => Err(at(path, format!("tensor {name} has values that are not finite; the checkpoint is broken"))),
        }
    }

    /// The same tensors, each under the name that `name` gives for its own.
    ///
    /// # Errors
    /// If two come to have one name.
    pub fn renamed(self, name: impl Fn(&str) -> String) -> Result<Self, BackendError> {
        let mut tensors = BTreeMap::new();
        for (old, stored) in self.tensors {
            let path = &self.files[stored.file];
            let new = name(&old);
            if tensors.contains_key(&new) {
                return Err(at(path, format!("{old:?} and another tensor are both {new:?}")));
            }
            tensors.insert(new, stored);
        }
        Ok(CheckpointLayout { tensors, ..self })
    }

    /// Where the tensor `name` lies, which must have `shape`.
    ///
    /// # Errors
    /// If it is missing, of another shape, or of a type that is not computed with.
    pub fn find(&self, name: &str, shape: &[usize]) -> Result<Location, BackendError> {
        let Some(stored) = self.tensors.get(name) else {
            return Err(at(&self.place, format!("tensor {name} is missing")));
        };
        let path = &self.files[stored.file];
        if stored.shape != shape {
            let what = format!("tensor {name} is {:?}, the configuration says {shape:?}", stored.shape);
            return Err(at(path, what));
        }
        let dtype = match stored.dtype {
            Element::F32 => Dtype::F32,
            Element::BF16 => Dtype::Bf16,
            Element::F16 => Dtype::F16,
            other => return Err(at(path, format!("tensor {name} is {other:?}; F32, BF16 and F16 are read"))),
        };
        Ok(Location { file: stored.file, dtype, bytes: stored.bytes.clone() })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use safetensors::tensor::TensorView;

    use super::*;

    fn shard(folder: &Path, name: &str, tensors: &[(&str, &[usize])]) {
        let bytes: Vec<Vec<u8>> =
            tensors.iter().map(|(_, shape)| vec![0; shape.iter().product::<usize>() * 2]).collect();
        let view = |i: usize| {
            TensorView::new(safetensors::Dtype::BF16, tensors[i].1.to_vec(), &bytes[i]).expect("as long as its shape")
        };
        let views: HashMap<&str, TensorView<'_>> = (0..tensors.len()).map(|i| (tensors[i].0, view(i))).collect();
        safetensors::serialize_to_file(views, None, &folder.join(name)).unwrap();
    }

    fn index(folder: &Path, map: &[(&str, &str)]) {
        let map: BTreeMap<_, _> = map.iter().copied().collect();
        std::fs::write(folder.join(INDEX), serde_json::json!({"weight_map": map}).to_string()).unwrap();
    }

    #[test]
    fn every_tensor_is_found_in_its_shard_and_nothing_that_does_not_fit() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path();
        shard(place, "1.safetensors", &[("a", &[2, 3])]);
        shard(place, "2.safetensors", &[("b", &[4]), ("c", &[1, 1])]);
        index(place, &[("a", "1.safetensors"), ("b", "2.safetensors"), ("c", "2.safetensors")]);
        let layout = CheckpointLayout::of_folder(place).unwrap();
        assert_eq!(layout.names().collect::<Vec<_>>(), ["a", "b", "c"]);
        for (name, shape) in [("a", vec![2, 3]), ("b", vec![4]), ("c", vec![1, 1])] {
            let Location { file, dtype, bytes } = layout.find(name, &shape).unwrap();
            let length = std::fs::metadata(&layout.files()[file]).unwrap().len();
            assert!(dtype == Dtype::Bf16 && bytes.end <= length);
            assert_eq!(bytes.end - bytes.start, 2 * shape.iter().product::<usize>() as u64);
        }
        let error = |name: &str, shape: &[usize]| layout.find(name, shape).unwrap_err().message;
        assert!(error("d", &[1]).contains("tensor d is missing"));
        assert!(error("a", &[3, 2]).contains("1.safetensors: tensor a is [2, 3], the configuration says [3, 2]"));
    }

    #[test]
    fn an_index_that_lies_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path();
        let error = || CheckpointLayout::of_folder(place).unwrap_err().message;
        assert!(error().contains("holds neither model.safetensors nor"), "{}", error());
        shard(place, "1.safetensors", &[("a", &[2]), ("b", &[2])]);
        shard(place, "2.safetensors", &[("c", &[2])]);
        index(place, &[("a", "1.safetensors"), ("b", "2.safetensors")]);
        assert!(error().contains(r#"promises "b" in "2.safetensors""#), "{}", error());
        index(place, &[("a", "1.safetensors"), ("d", "2.safetensors")]);
        assert!(error().contains(r#"promises "d" in "2.safetensors""#), "{}", error());
        index(place, &[("a", "../1.safetensors")]);
        assert!(error().contains(r#""../1.safetensors" of "a" is not a file name"#), "{}", error());
        index(place, &[("a", "1.safetensors"), ("c", "3.safetensors")]);
        assert!(error().contains("3.safetensors: could not read"), "{}", error());
        shard(place, "2.safetensors", &[("a", &[2])]);
        index(place, &[("a", "1.safetensors"), ("b", "2.safetensors")]);
        assert!(error().contains("\"a\" is in another shard too"), "{}", error());
        // What a stranger wrote stays within its quotes and its line.
        index(place, &[("a\n::error::x", "../1\u{1b}[31m.safetensors")]);
        assert!(error().contains(r#""../1\u{1b}[31m.safetensors" of "a\n::error::x""#), "{}", error());
        std::fs::write(place.join(INDEX), "{}").unwrap();
        assert!(error().contains("index.json: not an index of shards"), "{}", error());
    }
}
