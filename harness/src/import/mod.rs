//! Bringing a model in: a GGUF file becomes a folder in the Hugging Face layout.
//!
//! GGUF is what small quantized models are handed around in; backends read safetensors.
//! [`import_gguf`] dequantizes every tensor, renames it, puts llama's rotated rows back in order,
//! and writes `config.json`, the tokenizer and the chat template from the file's metadata. It works
//! through the file a few rows at a time: memory does not grow with the model. The folder appears
//! whole under its name or not at all.
//!
//! What is not known is refused by name — an architecture, an element type, a pre-tokenizer, a
//! tensor without a place — because a model that is almost right gives numbers that are wrong
//! without any error.

mod decoder;
mod encode;
mod gguf;
mod quant;
mod retype;
mod tokenizer;
mod view;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use karat_system::safetensors::Writer;
use serde::Serialize;
use serde_json::Value as Json;

pub use gguf::{Gguf, GgufTensor, Value};
pub use quant::GgmlType;
pub use retype::retype;
pub use view::{gguf_in, gguf_view, has_gguf_weights};

use crate::backend::Dtype;
use crate::data::template::ChatTemplate;
use crate::data::tokens::Tokenizer;
use crate::fsio::{PassingFolder, write_json};
use crate::{Error, ErrorKind, Result};
use decoder::{GgufDecoder, Placed, unpermute};

/// Values that are held at once.
const PIECE: usize = 1 << 21;

/// The name of an element type in PyTorch, as `config.json` has it.
fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::Bf16 => "bfloat16",
        Dtype::F16 => "float16",
    }
}

/// Largest weight file before it is cut into shards, in bytes (that of transformers 4).
pub const MAX_SHARD: u64 = 5_000_000_000;

/// What an import made.
#[derive(Clone, Debug, Serialize)]
pub struct Imported {
    /// The model folder.
    pub folder: PathBuf,
    /// `llama`, `qwen2`, `qwen3`.
    pub architecture: String,
    /// The model's own name, if the file tells it.
    pub name: Option<String>,
    /// Its license, if the file tells it.
    pub license: Option<String>,
    /// Parameters, the tied head counted once.
    pub parameters: u64,
    /// Element types of the file's tensors and how many there are of each.
    pub source_types: BTreeMap<String, usize>,
    /// Element type of what was written.
    pub dtype: Dtype,
    /// Weight files written.
    pub weight_files: usize,
    /// Entries of the tokenizer's vocabulary.
    pub tokens: usize,
    /// What the reader should know: no chat template, one that does not compile.
    pub notes: Vec<String>,
}

/// How to import.
#[derive(Clone, Copy, Debug)]
pub struct ImportOptions {
    /// Element type to write. Only [`Dtype::F32`] keeps every dequantized value as it is.
    pub dtype: Dtype,
    /// Weight files larger than this are cut into shards, in bytes.
    pub max_shard: u64,
}

impl Default for ImportOptions {
    fn default() -> Self {
        ImportOptions { dtype: Dtype::F32, max_shard: MAX_SHARD }
    }
}

/// Makes the model folder `out` of the GGUF file `path`. `watch` is told how many values are
/// written, of how many; an error it returns ends the import.
///
/// # Errors
/// `out` exists and is not empty ([`ErrorKind::Usage`]); a file that is broken or of a kind that is
/// not known ([`ErrorKind::Data`]); I/O. Nothing is left behind.
pub fn import_gguf(
    path: &Path,
    out: &Path,
    options: ImportOptions,
    watch: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Imported> {
    let out = crate::fsio::new_folder(out)?;
    let gguf = Gguf::open(path)?;
    let decoder = GgufDecoder::read(&gguf)?;
    let tokenizer = tokenizer::read(&gguf, decoder.vocab, decoder.context)?;

    // Dropping it removes it, whatever fails below.
    let temporary = PassingFolder::beside(&out, "import").map_err(|e| Error::io("create a folder beside", &out, e))?;
    let folder = temporary.path();

    let notes = write_companions(&gguf, &decoder, &tokenizer, options.dtype, folder)?;
    let weight_files = write_weights(&gguf, &decoder.tensors, folder, options, watch)?;

    // An empty folder may be there; anything else that came meanwhile is left alone and the rename
    // fails.
    temporary.publish(&out).map_err(|e| Error::io("name the folder", &out, e))?;
    let mut source_types = BTreeMap::new();
    for tensor in gguf.tensors() {
        *source_types.entry(format!("{:?}", tensor.kind)).or_default() += 1;
    }
    let text = |key: &str| gguf.text(key).ok().flatten().map(str::to_string);
    Ok(Imported {
        folder: out,
        architecture: text("general.architecture").unwrap_or_default(),
        name: text("general.name"),
        license: text("general.license"),
        parameters: decoder.tensors.iter().map(|t| values(t.source)).sum(),
        source_types,
        dtype: options.dtype,
        weight_files,
        tokens: tokenizer.tokens,
        notes,
    })
}

/// Writes what a model's folder has beside its weights: the configuration, which names `dtype`, the
/// tokenizer, the template. Returns what the reader should know.
fn write_companions(
    gguf: &Gguf,
    decoder: &GgufDecoder<'_>,
    tokenizer: &tokenizer::GgufTokenizer,
    dtype: Dtype,
    folder: &Path,
) -> Result<Vec<String>> {
    write_json(&folder.join("config.json"), &decoder.config(torch_name(dtype), tokenizer.ids.iter().cloned()))?;
    write_json(&folder.join("generation_config.json"), &tokenizer.generation)?;
    write_json(&folder.join("tokenizer.json"), &tokenizer.tokenizer)?;
    write_json(&folder.join("tokenizer_config.json"), &tokenizer.config)?;
    if let Some(template) = &tokenizer.template {
        crate::fsio::write_atomic(&folder.join("chat_template.jinja"), template.as_bytes())?;
    }
    proof_read(folder, gguf, tokenizer)
}

fn values(tensor: &GgufTensor) -> u64 {
    tensor.shape.iter().product::<usize>() as u64
}

/// Reads what was written as every command will: the tokenizer must load and give every token its
/// id; a chat template that is missing or does not compile is noted, since scoring needs none.
fn proof_read(folder: &Path, gguf: &Gguf, written: &tokenizer::GgufTokenizer) -> Result<Vec<String>> {
    let read = Tokenizer::from_model_dir(folder).map_err(|e| {
        Error::new(ErrorKind::Data, "the file's tokenizer does not make a working one")
            .at(gguf.path().display())
            .because(e)
    })?;
    let entries = written.tokenizer["model"]["vocab"].as_object();
    for (text, id) in entries.into_iter().flatten() {
        if read.id_of(text).map(Json::from).as_ref() != Some(id) {
            return Err(gguf.error(format!("the token {text:?} does not keep its id {id}")));
        }
    }
    Ok(match ChatTemplate::from_model_dir(folder) {
        Ok(_) => Vec::new(),
        Err(_) if written.template.is_none() => {
            vec!["the file has no chat template: messages cannot be rendered".into()]
        }
        Err(error) => vec![format!("the chat template does not compile: {error}")],
    })
}

/// Streams every tensor into the checkpoint; returns the number of weight files.
fn write_weights(
    gguf: &Gguf,
    tensors: &[Placed<'_>],
    folder: &Path,
    options: ImportOptions,
    watch: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<usize> {
    let entries = tensors.iter().map(|t| encode::entry(&t.name, &t.source.shape, options.dtype)).collect();
    let mut writer = Writer::sharded(folder, entries, options.max_shard);
    let total = tensors.iter().map(|t| values(t.source)).sum();
    let mut done = 0;
    let (mut raw, mut piece, mut ordered) = (Vec::new(), Vec::new(), Vec::new());
    for Placed { source, heads, .. } in tensors {
        let all = values(source) as usize;
        let head = heads.map(|heads| all / heads);
        // A matrix goes piece by piece, a vector (one row of the file) whole.
        let step = match head {
            Some(head) if source.rows() > 1 => head,
            _ => (PIECE / source.columns()).clamp(1, source.rows()) * source.columns(),
        };
        let columns = if source.rows() > 1 { source.columns() } else { 1 };
        for at in (0..all).step_by(step) {
            piece.resize(step.min(all - at), 0.0);
            gguf.rows(source, at / source.columns(), &mut raw, &mut piece)?;
            if let Some(head) = head {
                ordered.resize(piece.len(), 0.0);
                let heads = piece.chunks_exact(head).zip(ordered.chunks_exact_mut(head));
                heads.for_each(|(rows, out)| unpermute(rows, columns, out));
                std::mem::swap(&mut piece, &mut ordered);
            }
            let located = |e: Error| if e.place().is_none() { e.at(gguf.path().display()) } else { e };
            encode::write(&mut writer, options.dtype, &piece).map_err(located)?;
            done += piece.len() as u64;
            watch(done, total)?;
        }
    }
    let files = writer.files();
    writer.finish()?;
    Ok(files)
}
