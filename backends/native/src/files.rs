//! Safetensors files and folders on disk: mapped and read tensor by tensor, written whole folders at once.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use karat_backend::BackendError;
use karat_model::checkpoint::{Layout, Location};
use karat_system::fsio;
use safetensors::Dtype;

use crate::error::Result;
use crate::ops::mapped::{Elements, Kind, Mapping};
use crate::tensor::{Stored, Tensor};
use crate::weight::{Weight, WeightView};

/// An error about a file.
pub fn at(path: &Path, what: impl std::fmt::Display) -> BackendError {
    BackendError::failed(format!("{}: {what}", path.display()))
}

fn io<T>(path: &Path, what: &str, result: std::io::Result<T>) -> Result<T> {
    result.map_err(|e| at(path, what).because(&e))
}

/// The tensors of one or several safetensors files, mapped.
pub struct TensorFiles {
    layout: Layout,
    mappings: Vec<Mapping>,
}

impl TensorFiles {
    /// Maps the weights of a model's folder.
    ///
    /// # Errors
    /// As [`Layout::of_folder`]; if a file cannot be mapped.
    pub fn of_folder(folder: &Path) -> Result<Self> {
        Self::map(Layout::of_folder(folder)?)
    }

    /// Maps one file.
    ///
    /// # Errors
    /// As [`Layout::of_file`]; if it cannot be mapped.
    pub fn of_file(path: &Path) -> Result<Self> {
        Self::map(Layout::of_file(path)?)
    }

    /// Maps the files of `layout`.
    ///
    /// # Errors
    /// If one cannot be mapped.
    pub fn map(layout: Layout) -> Result<Self> {
        let map = |path: &PathBuf| io(path, "could not map it", File::open(path).and_then(|file| Mapping::new(&file)));
        let mappings = layout.files().iter().map(map).collect::<Result<_>>()?;
        Ok(TensorFiles { layout, mappings })
    }

    /// Where they lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.layout.names()
    }

    /// A tensor as it lies in its file: nothing is read before it is used, and nothing is held twice.
    ///
    /// # Errors
    /// As [`Layout::find`].
    pub fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let Location { file, dtype, bytes } = self.layout.find(name, shape)?;
        let (mapping, path) = (&self.mappings[file], &self.layout.files()[file]);
        let range = bytes.start as usize..bytes.end as usize;
        let kind = match dtype {
            karat_backend::Dtype::F32 => Kind::F32,
            karat_backend::Dtype::Bf16 => Kind::Bf16,
            karat_backend::Dtype::F16 => Kind::F16,
        };
        if let Some(numbers) = mapping.numbers(range.clone(), kind) {
            return Ok(Weight::Mapped { numbers, shape: shape.to_vec() });
        }
        // The format does not ask for alignment; most writers keep it.
        let bytes = mapping.bytes(range).ok_or_else(|| at(path, format!("was shortened while {name} was read")))?;
        let data = match kind {
            Kind::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Kind::Bf16 => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Kind::F16 => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
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
    // The library writes a temporary file, which is private, and renames it: what a new file may be read by is asked first.
    let permissions =
        io(path, "could not write it", File::create(path).and_then(|file| file.metadata()))?.permissions();
    safetensors::serialize_to_file(views, Some(metadata), path)
        .map_err(|e| at(path, "could not write it").because(&e))?;
    io(path, "could not make it as readable as other files", std::fs::set_permissions(path, permissions))?;
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
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    io(parent, "could not create the folder", std::fs::create_dir_all(parent))?;
    // What a killed process left of this folder, as a merged model of gigabytes.
    let front = format!(".{}{}", folder.file_name().unwrap_or_default().to_string_lossy(), PASSING[0]);
    fsio::remove_dead(parent, |name| name.strip_prefix(&front)?.parse().ok());
    let _ = std::fs::remove_dir_all(&temporary);
    io(&temporary, "could not create the folder", std::fs::create_dir(&temporary))?;
    let _held = fsio::hold(&temporary);
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
