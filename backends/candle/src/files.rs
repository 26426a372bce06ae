//! Safetensors files and folders on disk: mapped and read tensor by tensor, written whole folders at once.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use karat::backend::BackendError;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::nn::{Result, Stored, Tensor};
use crate::ops::mapped::{Elements, Kind, Mapping};
use crate::weight::{Weight, WeightView};

/// No header is larger; the format says so.
const LARGEST_HEADER: u64 = 100_000_000;

/// An error about a file.
pub fn at(path: &Path, what: impl std::fmt::Display) -> BackendError {
    BackendError::failed(format!("{}: {what}", path.display()))
}

fn io<T>(path: &Path, what: &str, result: std::io::Result<T>) -> Result<T> {
    result.map_err(|e| at(path, what).because(&e))
}

/// A safetensors file whose header was read and checked against the file's length.
pub struct TensorFile {
    path: PathBuf,
    mapping: Mapping,
    data_start: u64,
    metadata: Metadata,
}

impl TensorFile {
    /// Opens `path` and reads its header.
    ///
    /// # Errors
    /// For a missing, truncated or broken file.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = io(path, "could not open it", File::open(path))?;
        let length = io(path, "could not read it", file.metadata())?.len();
        let truncated = |needed: u64| at(path, format!("truncated: {length} bytes, {needed} are needed"));
        let mut prefix = [0u8; 8];
        if length < 8 {
            return Err(truncated(8));
        }
        io(path, "could not read it", file.read_exact(&mut prefix))?;
        let header = u64::from_le_bytes(prefix);
        let data_start = header.saturating_add(8);
        if data_start > length {
            return Err(truncated(data_start));
        }
        if header > LARGEST_HEADER {
            return Err(at(path, format!("not a safetensors file: a header of {header} bytes")));
        }
        let mut buffer = vec![0; header as usize];
        io(path, "could not read it", file.read_exact(&mut buffer))?;
        let metadata: Metadata =
            serde_json::from_slice(&buffer).map_err(|e| at(path, "not a safetensors file").because(&e))?;
        let end = metadata.tensors().values().map(|t| t.data_offsets.1 as u64).max().unwrap_or(0);
        match data_start + end {
            needed if needed > length => return Err(truncated(needed)),
            needed if needed < length => {
                return Err(at(path, format!("{} bytes after the last tensor", length - needed)));
            }
            _ => {}
        }
        let mapping = io(path, "could not map it", Mapping::new(&file))?;
        Ok(TensorFile { path: path.to_owned(), mapping, data_start, metadata })
    }

    /// Names of the tensors in it.
    pub fn names(&self) -> Vec<String> {
        self.metadata.tensors().into_keys().collect()
    }

    /// A tensor as it lies in the file: nothing is read before it is used, and nothing is held twice.
    ///
    /// # Errors
    /// If it is missing, of another shape than `shape`, or of an integer type.
    pub fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let Some(info) = self.metadata.info(name) else {
            return Err(at(&self.path, format!("tensor {name} is missing")));
        };
        if info.shape != shape {
            return Err(at(&self.path, format!("tensor {name} is {:?}, the configuration says {shape:?}", info.shape)));
        }
        let kind = match info.dtype {
            Dtype::F32 => Kind::F32,
            Dtype::BF16 => Kind::Bf16,
            Dtype::F16 => Kind::F16,
            other => return Err(at(&self.path, format!("tensor {name} is {other:?}; F32, BF16 and F16 are read"))),
        };
        let (start, end) =
            (self.data_start as usize + info.data_offsets.0, self.data_start as usize + info.data_offsets.1);
        if let Some(numbers) = self.mapping.numbers(start..end, kind) {
            return Ok(Weight::Mapped { numbers, shape: shape.to_vec() });
        }
        // The format does not ask for alignment; most writers keep it.
        let bytes = self.mapping.bytes(start..end).ok_or_else(|| at(&self.path, format!("{name} lies outside")))?;
        let data = match kind {
            Kind::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Kind::Bf16 => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Kind::F16 => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        };
        crate::nn::tensor(data, shape).map(Weight::Owned)
    }

    /// A copy of a tensor, widened to f32.
    ///
    /// # Errors
    /// As [`TensorFile::weight`].
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.weight(name, shape)?.own()
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The tensors of a model folder: `model.safetensors`, or the shards its index names.
pub struct ModelFiles {
    files: Vec<TensorFile>,
    place: BTreeMap<String, usize>,
    folder: PathBuf,
}

impl ModelFiles {
    /// Opens all files of `folder`.
    ///
    /// # Errors
    /// For missing or broken files.
    pub fn open(folder: &Path) -> Result<Self> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        if !single.is_file() && index.is_file() {
            return Self::open_shards(folder, &index);
        }
        let file = TensorFile::open(&single)?;
        let place = file.names().into_iter().map(|name| (name, 0)).collect();
        Ok(ModelFiles { files: vec![file], place, folder: folder.to_owned() })
    }

    fn open_shards(folder: &Path, index: &Path) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = io(index, "could not read it", std::fs::read_to_string(index))?;
        let parsed: Index = serde_json::from_str(&text).map_err(|e| at(index, "not an index of shards").because(&e))?;
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut files, mut place) = (Vec::new(), BTreeMap::new());
        for (name, shard) in &parsed.weight_map {
            if Path::new(shard).components().count() != 1 {
                return Err(at(index, format!("shard \"{shard}\" of {name} is not a file name")));
            }
            let number = match numbers.get(shard.as_str()) {
                Some(number) => *number,
                None => {
                    files.push(TensorFile::open(&folder.join(shard))?);
                    numbers.insert(shard, files.len() - 1);
                    files.len() - 1
                }
            };
            place.insert(name.clone(), number);
        }
        Ok(ModelFiles { files, place, folder: folder.to_owned() })
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.place.keys().map(String::as_str)
    }

    /// A tensor as [`TensorFile::weight`].
    ///
    /// # Errors
    /// As there.
    pub fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        match self.place.get(name) {
            Some(&file) => self.files[file].weight(name, shape),
            None => Err(at(&self.folder, format!("tensor {name} is missing from the model's safetensors"))),
        }
    }
}

struct Out<'a> {
    view: WeightView<'a>,
    shape: &'a [usize],
}

impl safetensors::View for Out<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        match self.view.elements() {
            // The format is little-endian, and so is every machine that these kernels are built for.
            Elements::F32(data) if cfg!(target_endian = "little") => Cow::Borrowed(bytemuck::cast_slice(data)),
            elements => {
                let mut wide = vec![0.0; elements.len()];
                elements.widen(&mut wide);
                Cow::Owned(wide.iter().flat_map(|x| x.to_le_bytes()).collect())
            }
        }
    }
    fn data_len(&self) -> usize {
        self.view.elements().len() * 4
    }
}

/// Writes tensors as f32 with the metadata `{"format": "pt"}` that transformers and PEFT expect.
///
/// # Errors
/// If the file cannot be written.
pub fn write_tensors<T: Stored>(path: &Path, tensors: &BTreeMap<String, T>) -> Result<()> {
    let views = tensors.iter().map(|(name, t)| Ok((name.as_str(), Out { view: t.view()?, shape: t.dims() })));
    let views = views.collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path)
        .map_err(|e| at(path, "could not write it").because(&e))?;
    sync(path)
}

/// Writes a text file and flushes it to disk.
///
/// # Errors
/// If it cannot be written.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    io(path, "could not write it", std::fs::write(path, text))?;
    sync(path)
}

fn sync(path: &Path) -> Result<()> {
    io(path, "could not flush it to disk", File::open(path).and_then(|f| f.sync_all()))
}

/// What stands before the number of the process in the name of a folder that is being filled, or removed.
const PASSING: [&str; 2] = [".tmp-", ".old-"];

fn passing(folder: &Path, kind: &str) -> Result<PathBuf> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else {
        return Err(at(folder, "not a folder that can be written"));
    };
    Ok(parent.join(format!(".{}{kind}{}", name.to_string_lossy(), std::process::id())))
}

/// Fills a folder under a temporary name with `fill`, then gives it its name; a folder of that name is replaced. A
/// reader sees the whole folder or none, also after a kill at any moment.
///
/// # Errors
/// If `fill` fails or the folder cannot be written; nothing is left behind then, and what was there before stays.
pub fn publish_folder(folder: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = passing(folder, PASSING[0])?;
    let parent = folder.parent().unwrap_or(Path::new("."));
    io(parent, "could not create the folder", std::fs::create_dir_all(parent))?;
    let _ = std::fs::remove_dir_all(&temporary);
    io(&temporary, "could not create the folder", std::fs::create_dir(&temporary))?;
    let done = fill(&temporary).and_then(|()| sync(&temporary)).and_then(|()| {
        // A folder is not removed under its name: a kill half way through would leave half of it there.
        let old = passing(folder, PASSING[1])?;
        let replaces = folder.exists();
        if replaces {
            let _ = std::fs::remove_dir_all(&old);
            io(folder, "could not replace the folder", std::fs::rename(folder, &old))?;
        }
        if let Err(error) = std::fs::rename(&temporary, folder) {
            if replaces {
                let _ = std::fs::rename(&old, folder);
            }
            return Err(at(folder, "could not give the folder its name").because(&error));
        }
        let _ = std::fs::remove_dir_all(&old);
        Ok(())
    });
    if done.is_err() {
        let _ = std::fs::remove_dir_all(&temporary);
    }
    done.and_then(|()| sync(parent))
}

/// Removes a folder that [`publish_folder`] made; a reader sees the whole folder or none.
///
/// # Errors
/// If it cannot be removed.
pub fn remove_folder(folder: &Path) -> Result<()> {
    let old = passing(folder, PASSING[1])?;
    io(folder, "could not delete it", std::fs::rename(folder, &old))?;
    io(folder, "could not delete it", std::fs::remove_dir_all(&old))
}

/// Removes what processes that were killed left of folders in `parent`. The caller has `parent` to itself.
///
/// # Errors
/// If the folder cannot be read or a rest not be removed.
pub fn remove_rests(parent: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(at(parent, "could not list it").because(&e)),
    };
    for entry in entries {
        let path = io(parent, "could not list it", entry)?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let rest = |kind: &str| {
            name.rsplit_once(kind)
                .is_some_and(|(front, pid)| front.starts_with(".checkpoint-") && pid.parse::<u32>().is_ok())
        };
        if PASSING.into_iter().any(rest) {
            io(&path, "could not delete it", std::fs::remove_dir_all(&path))?;
        }
    }
    Ok(())
}
