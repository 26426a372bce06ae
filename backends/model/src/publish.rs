//! Model folders written: every tensor of a backend in f32, with what lies beside the weights of
//! the folder that it came from; whole or not at all.

use std::collections::BTreeMap;
use std::path::Path;

use karat_backend::BackendError;
use karat_system::fsio::{self, PassingFolder};
use karat_system::safetensors::{Entry, Writer};
use serde_json::{Map, Value, json};

use crate::checkpoint::WEIGHTS;

type Result<T, E = BackendError> = std::result::Result<T, E>;

/// Files of the tokenizer and of generation that lie beside a model's weights and go with them
/// unchanged.
pub const COMPANIONS: [&str; 10] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// Takes the elements of a tensor, row-major, in one piece or several.
pub type Put<'a> = dyn FnMut(&[f32]) -> Result<()> + 'a;

/// Reads the elements of the tensor of a name.
pub type Read<'a> = dyn Fn(&str, &mut Put<'_>) -> Result<()> + 'a;

/// Names of tensors with their shapes.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// An error about a file or folder.
pub(crate) fn at(path: &Path, what: impl std::fmt::Display) -> BackendError {
    BackendError::failed(format!("{}: {what}", path.display()))
}

fn unwritten(path: &Path) -> impl Fn(karat_system::Error) -> BackendError + '_ {
    |error| at(path, "could not write it").because(&error)
}

/// Fills a folder with `fill` and gives it its name; a folder of that name is replaced. `purpose`
/// is that of [`PassingFolder::new_in`].
///
/// # Errors
/// If `fill` fails or the folder cannot be written; nothing is left behind then, and what was there
/// before stays.
pub fn publish_folder(folder: &Path, purpose: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let io = |what: &'static str| move |e: std::io::Error| at(folder, what).because(&e);
    let passing = PassingFolder::beside(folder, purpose).map_err(io("could not create a folder beside it"))?;
    fill(passing.path())?;
    passing.replace(folder).map_err(io("could not give the folder its name"))
}

fn miscounted(name: &str, put: usize, expected: usize) -> BackendError {
    BackendError::failed(format!("{name} has {expected} elements, and {put} were to be written"))
}

/// Elements that are brought into the byte order of files at once.
const PIECE: usize = 1 << 20;

/// Writes the tensors of `shapes` as f32, in the order of their names, one after the other.
///
/// # Errors
/// If `read` fails or the file cannot be written.
pub fn write_tensors(path: &Path, shapes: &Shapes, read: &Read<'_>) -> Result<()> {
    let mut writer = Writer::file(path, shapes.iter().map(|(name, shape)| Entry::f32(name, shape)).collect());
    let mut bytes = Vec::new();
    for (name, shape) in shapes {
        let (expected, mut put) = (shape.iter().product::<usize>(), 0);
        read(name, &mut |elements| {
            put += elements.len();
            if put > expected {
                return Err(miscounted(name, put, expected));
            }
            for piece in elements.chunks(PIECE) {
                bytes.resize(4 * piece.len(), 0);
                bytes.chunks_exact_mut(4).zip(piece).for_each(|(bytes, x)| bytes.copy_from_slice(&x.to_le_bytes()));
                writer.write(&bytes).map_err(unwritten(path))?;
            }
            Ok(())
        })?;
        if put < expected {
            return Err(miscounted(name, put, expected));
        }
    }
    writer.finish().map_err(unwritten(path))
}

/// Writes JSON.
///
/// # Errors
/// If the file cannot be written.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    fsio::write_json(path, value).map_err(unwritten(path))
}

/// Copies the [`COMPANIONS`] of the folder `source` that are `wanted` into `folder`.
///
/// # Errors
/// If one cannot be copied.
pub fn copy_companions(source: &Path, folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    for name in COMPANIONS.into_iter().filter(|name| wanted(name)) {
        let from = source.join(name);
        if from.is_file() {
            std::fs::copy(&from, folder.join(name)).map_err(|e| at(&from, "could not copy it").because(&e))?;
        }
    }
    Ok(())
}

/// Writes a model's weights into `folder`, and the configuration that was read as `raw`.
///
/// # Errors
/// As [`write_tensors`].
pub fn write_model(raw: &Map<String, Value>, shapes: &Shapes, read: &Read<'_>, folder: &Path) -> Result<()> {
    write_tensors(&folder.join(WEIGHTS), shapes, read)?;
    write_json(&folder.join("config.json"), &Value::Object(written_in_f32(raw)))
}

/// Writes a model without training state into `folder`, with what the folder `source`, from which
/// it came, has beside its weights; it appears whole or not at all.
///
/// # Errors
/// If a file cannot be written.
pub fn publish_model(
    raw: &Map<String, Value>,
    shapes: &Shapes,
    read: &Read<'_>,
    source: &Path,
    folder: &Path,
) -> Result<()> {
    publish_folder(folder, "merge", |folder| {
        write_model(raw, shapes, read, folder)?;
        copy_companions(source, folder, |_| true)
    })
}

/// Every key of the `config.json` that was read as `raw`, with the element type that this crate
/// writes.
pub fn written_in_f32(raw: &Map<String, Value>) -> Map<String, Value> {
    let mut raw = raw.clone();
    let key = if raw.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
    raw.insert(key.into(), json!("float32"));
    raw
}
