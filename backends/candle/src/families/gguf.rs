//! Quantized Qwen3, Qwen2 and Llama as they lie in a GGUF file: matrices stay in their blocks and
//! are multiplied so.
//!
//! The folder has the file beside a `config.json`, which says what is computed, as for every model.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QMatMul, gguf_file::Content};
use karat_backend::{BackendError, OpenConfig, Weights};
use karat_model::checkpoint::{INDEX, WEIGHTS};
use karat_model::{Architecture, EMBEDDING, Family, HEAD, ModelConfig};

use super::{Decoder, Opened, Stored};
use crate::{Result, failed};

/// Names in a layer, there and in a GGUF file.
const NAMES: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];
/// Frequencies of Llama 3, which `config.json` says by other words.
const FREQUENCIES: &str = "rope_freqs.weight";

/// Whether candle multiplies rows of `columns` in the blocks of `kind`. Its CPU products of the
/// older kinds take two blocks at a time and panic over an odd one; other kinds than these have
/// none.
fn is_multiplied(kind: GgmlDType, columns: usize) -> bool {
    match kind {
        GgmlDType::Q4_0 | GgmlDType::Q4_1 | GgmlDType::Q5_0 | GgmlDType::Q5_1 | GgmlDType::Q8_0 => {
            columns.is_multiple_of(64)
        }
        GgmlDType::Q2K | GgmlDType::Q3K | GgmlDType::Q4K | GgmlDType::Q5K | GgmlDType::Q6K => true,
        _ => false,
    }
}

/// The name in a GGUF file of the tensor `name`.
fn stored_name(name: &str) -> Option<String> {
    match name {
        EMBEDDING => return Some("token_embd.weight".into()),
        HEAD => return Some("output.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    let (_, there) = NAMES.into_iter().find(|(here, _)| *here == module)?;
    Some(format!("blk.{layer}.{there}.{kind}"))
}

/// The GGUF file that holds the weights of the model in `folder`, if no others do.
///
/// # Errors
/// For several of them.
pub fn file_in(folder: &Path) -> Result<Option<PathBuf>> {
    if folder.join(WEIGHTS).is_file() || folder.join(INDEX).is_file() {
        return Ok(None);
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "gguf")).collect();
    files.sort();
    match files.as_slice() {
        [] => Ok(None),
        [_] => Ok(files.pop()),
        [first, second, ..] => Err(BackendError::failed(format!(
            "{}: {} and {} lie there; which is meant? keep one GGUF file in the folder",
            folder.display(),
            first.display(),
            second.display()
        ))),
    }
}

/// Opens the model in `file`.
///
/// # Errors
/// An adapter, weights to draw; tensors that are missing, of another shape, without a place or of a
/// type that candle does not multiply, by name.
pub fn open(file: &Path, opened: &OpenConfig, device: &Device) -> Result<Opened> {
    let at = |what: String| BackendError::failed(format!("{}: {what}", file.display()));
    if opened.adapter.is_some() {
        return Err(BackendError::unsupported(format!(
            "{}: an adapter is merged into weights, and those of a GGUF file stay quantized; make a folder of it with karat \
             import, and apply the adapter to that",
            file.display()
        )));
    }
    if opened.weights == Weights::Random {
        return Err(BackendError::unsupported("drawing weights for a folder with a GGUF file is not implemented"));
    }
    let config = ModelConfig::read(&opened.model)?;
    let mut architecture = Architecture::from(&config);
    // ggml has the two halves of a Llama's head interleaved, rows of both projections alike.
    let interleaved = config.family == Family::Llama;
    architecture.rotations.iter_mut().for_each(|rotation| rotation.interleaved = interleaved);

    let io = |e: std::io::Error| at("could not open it".into()).because(&e);
    let mut reader = BufReader::new(File::open(file).map_err(io)?);
    let broken = |e: candle_core::Error| at("not a GGUF file that candle reads".into()).because(&e);
    let content = Content::read(&mut reader).map_err(broken)?;
    let mut left: Vec<&str> = content.tensor_infos.keys().map(String::as_str).filter(|n| *n != FREQUENCIES).collect();
    let (mut tensors, mut kinds, mut parameters) = (BTreeMap::new(), BTreeMap::<String, usize>::new(), 0);
    for (name, shape) in architecture.tensors() {
        let there = stored_name(&name).filter(|there| content.tensor_infos.contains_key(there));
        let there = there.ok_or_else(|| at(format!("the tensor of {name} is missing")))?;
        let info = &content.tensor_infos[&there];
        if info.shape.dims() != shape {
            let what = format!("tensor {there} is {:?}, config.json says {shape:?}", info.shape.dims());
            return Err(at(what));
        }
        let tensor = content.tensor(&mut reader, &there, device).map_err(broken)?;
        *kinds.entry(format!("{:?}", tensor.dtype())).or_default() += 1;
        parameters += tensor.shape().elem_count() as u64;
        let stored = match shape.len() == 2 && is_multiplied(tensor.dtype(), shape[1]) {
            true => Stored::Quantized(QMatMul::from_qtensor(tensor).map_err(failed)?),
            false => Stored::Plain(tensor.dequantize(device).map_err(failed)?),
        };
        tensors.insert(name, stored);
        left.retain(|name| *name != there);
    }
    if let Some(name) = left.iter().min() {
        return Err(at(format!("tensor {name} has no place in the model that config.json describes")));
    }
    let weights = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", ");
    let decoder = Decoder::new(architecture, tensors, device).map_err(failed)?;
    Ok(Opened { decoder, parameters, adapter: None, weights: Some(format!("weights as in the GGUF file: {weights}")) })
}
