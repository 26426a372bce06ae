//! A checkpoint becomes a folder with an ONNX model, once.
//!
//! # The folder
//! | file | what |
//! |---|---|
//! | `model.onnx` | the graph: IR version 10, opset 21 of ONNX and 1 of `com.microsoft` |
//! | `model.onnx.data` | all weights, each aligned to 4096 bytes |
//! | `karat-onnx.json` | the [`Manifest`]: what the model was made from, sizes and hashes |
//! | `genai_config.json` | by which onnxruntime-genai finds its way |
//! | `config.json`, `tokenizer.json`, ... | copies of the checkpoint's |
//! | `adapters/NAME/` | in the mode `runtime`: the adapter (PEFT layout), `NAME.onnx_adapter` for onnxruntime-genai, and which base it belongs to |
//!
//! It is written under a temporary name beside its final place and renamed, so a folder that is
//! there is whole. Weights go from safetensors to the data file a tensor at a time, the embedding
//! and the head in stretches of rows: writing SmolLM2-135M (538 MB) takes 50 MB of memory.
//!
//! # Inputs and outputs
//! `T` is the element type of activations: f32 for `f32`, `int8` and `int4`, else the type itself.
//!
//! | input | shape | |
//! |---|---|---|
//! | `input_ids` | i64 `[batch, seq]` | |
//! | `attention_mask` | i64 `[batch, total]` | ones, then zeros: rows are padded on the right; `total` counts past and new |
//! | `past_key_values.{i}.key`, `.value` | T `[batch, kv_heads, past, head_dim]` | `past` is 0 at first, or a buffer that is long enough |
//! | `first_logit` | i64 `[1]` | may be left out (0: every position); -1: the last position alone |
//! | `{module}.lora_A.weight` | T `[input, rank]` | mode `runtime`; may be left out (rank 0) |
//! | `{module}.lora_B.weight` | T `[rank, output]` | the same; holds the scale |
//!
//! | output | shape | |
//! |---|---|---|
//! | `logits` | f32 `[batch, seq, vocab]`, or `[batch, 1, vocab]` | |
//! | `present.{i}.key`, `.value` | T `[batch, kv_heads, max(past, total), head_dim]` | bind the buffer of the past and nothing is copied |
//!
//! A `module` is the checkpoint's path of a linear layer, `model.layers.0.self_attn.q_proj`. Rotary
//! positions are counted from the mask inside the attention operator, which takes several new
//! tokens after a past for one row at a time only.
//!
//! # Element types
//! See [`WeightFormat`]. In standard operators f32, f16, int8 and int4 run on the CPU; bf16 is for
//! other providers.
//!
//! # Whose operators
//! `karat export` writes the operators of ONNX and of the runtime, so that others can run the
//! model. What a session on the CPU exports for itself in f32 or bf16 is in Karat's own
//! ([`crate::operators`]): weights packed for its kernels, in bf16 where that loses nothing, so f32
//! reads half the bytes a token and computes what it did. Such a model has one input more,
//! `targets` i64 (none by default), and gives their `logprobs` and `greedy` without logits;
//! activations, the key-value cache and adapters are f32 in bf16 too.

mod builder;
mod calibrate;
mod custom_ops;
mod external_data;
mod flatbuffer;
mod folder;
mod genai;
mod graph;
mod packed_weight;
mod quantize;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use karat_backend::{
    AdapterMode, BackendError, Event, EventSink, ExportConfig, ExportSummary, Flow, Level, NamedAdapter, OpenConfig,
    TEMPORARY_MODEL,
};
use karat_model::ModelConfig;
use karat_model::checkpoint::CheckpointLayout;
use karat_model::peft::Adapter;
use karat_model::publish::COMPANIONS;
use karat_system::fsio::{self, PassingFolder};

use crate::config;
use crate::files::publish;
use crate::manifest::{ADAPTERS, DATA, Exported, FORMAT, MANIFEST, MODEL, Manifest, READING};
use crate::operators::{self, Operators};
use crate::options::Options;
use crate::runtime::cache_root;
use crate::weight_format::WeightFormat;
use builder::Source;
use folder::Lock;
use graph::write_decoder;

/// An export as it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The checkpoint's folder (Hugging Face layout).
    pub model: &'a Path,
    /// An adapter's folder (PEFT layout), merged into the weights.
    pub adapter: Option<&'a Path>,
    /// Weight format.
    pub weights: WeightFormat,
    /// Whether adapters may be fed to the exported model.
    pub adapter_mode: AdapterMode,
    /// In whose operators.
    pub operators: Operators,
    /// Adapters to lie beside the model, in the mode `runtime`.
    pub beside: &'a [NamedAdapter],
}

impl<'a> Request<'a> {
    /// The base model alone, in f32, in standard operators.
    pub fn new(model: &'a Path) -> Self {
        Request {
            model,
            adapter: None,
            weights: WeightFormat::F32,
            adapter_mode: AdapterMode::Merge,
            operators: Operators::Standard,
            beside: &[],
        }
    }

    /// With an adapter merged, if there is one.
    #[must_use]
    pub fn merging(self, adapter: Option<&'a Path>) -> Self {
        Request { adapter, ..self }
    }

    fn keys(&self) -> Result<Keys, BackendError> {
        let hash = |folder: &Path| {
            let failed = |e| BackendError::failed(format!("could not hash {}", folder.display())).because(&e);
            fsio::sha256_model(folder).map_err(failed)
        };
        let base = hash(self.model)?;
        let adapter = self.adapter.map(hash).transpose()?.unwrap_or_default();
        let mut beside = BTreeMap::new();
        for NamedAdapter { name, path } in self.beside {
            if beside.insert(name.clone(), hash(path)?).is_some() {
                return Err(BackendError::failed(format!(
                    "two adapters are called {name:?}: give each a name of its own, NAME=DIR"
                )));
            }
        }
        let (weights, mode) = (self.weights, self.adapter_mode.name());
        let operators = match self.operators {
            Operators::Standard => String::new(),
            Operators::Karat => format!(" {} {}", operators::DOMAIN, operators::VERSION),
        };
        let all = format!("karat-onnx {FORMAT}.{READING} {weights} {mode}{operators}\n{base}\n{adapter}\n{beside:?}\n");
        Ok(Keys { base, beside, key: fsio::sha256(all.as_bytes()) })
    }
}

/// Content hashes that name an export.
struct Keys {
    /// Hash of the base model.
    base: String,
    /// Hashes of the adapters beside it.
    beside: BTreeMap<String, String>,
    /// A hash over everything that decides the bytes.
    key: String,
}

/// [`karat_backend::Backend::export`].
///
/// # Errors
/// As [`export_to`]; several adapters to merge, names that are no file names.
pub fn export(config: &ExportConfig, sink: &mut dyn EventSink) -> Result<ExportSummary, BackendError> {
    let mut request = Request::new(&config.model);
    request.weights = config.weights.parse()?;
    request.adapter_mode = config.adapter_mode;
    match (config.adapter_mode, config.adapters.as_slice()) {
        (AdapterMode::Runtime, adapters) => request.beside = adapters,
        (AdapterMode::Merge, []) => {}
        (AdapterMode::Merge, [one]) => request.adapter = Some(&one.path),
        (AdapterMode::Merge, several) => {
            return Err(BackendError::unsupported(format!(
                "{} adapters cannot be merged into one model: export each alone, or use the adapter mode runtime",
                several.len()
            )));
        }
    }
    let plain = |name: &str| {
        !name.is_empty() && !name.starts_with('.') && name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c))
    };
    if let Some(adapter) = request.beside.iter().find(|adapter| !plain(&adapter.name)) {
        return Err(BackendError::failed(format!(
            "{:?} is no name for an adapter: use letters, digits, - and _",
            adapter.name
        )));
    }
    let reused = config.out.join(MANIFEST).is_file();
    let exported = export_to(&request, &config.out, sink)?;
    for message in &exported.manifest.warnings {
        // It is done; who wants to stop has nothing to stop any more.
        let _ = sink.event(Event::Log { level: Level::Warn, message: message.clone() });
    }
    let mut adapter_parameters = exported.manifest.adapter_parameters;
    for adapter in request.beside {
        adapter_parameters += Adapter::open(&adapter.path, &exported.manifest.adapter_inputs)?.parameters();
    }
    let mut files = BTreeMap::new();
    folder::list(&exported.folder, "", &mut files)
        .map_err(|e| BackendError::failed(format!("could not read {}: {e}", exported.folder.display())))?;
    Ok(ExportSummary { files, parameters: exported.manifest.parameters, adapter_parameters, reused })
}

/// Exports into `folder`, or reuses what is there if it was made from the same content.
///
/// # Errors
/// A broken or unsupported checkpoint or adapter, a folder that holds something else, a disk error.
/// Nothing half-written stays under the final name.
pub fn export_to(request: &Request<'_>, folder: &Path, sink: &mut dyn EventSink) -> Result<Exported, BackendError> {
    let occupied = folder.is_file() || fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    if occupied && !folder.join(MANIFEST).is_file() {
        return Err(BackendError::usage(format!(
            "{} is there and no whole export of karat ({MANIFEST} is missing); nothing was written: give a new folder, or an \
             empty one",
            folder.display()
        )));
    }
    let config = config::read(request.model)?;
    let keys = request.keys()?;
    if occupied {
        let there = Exported::open(folder)?;
        return match there.manifest.key == keys.key {
            true => Ok(there),
            false => Err(BackendError::usage(format!(
                "{} already holds the export of another model, adapter or element type; remove it or choose another \
                 folder",
                folder.display()
            ))),
        };
    }
    write(config, request, keys, folder, sink)
}

/// Exports into `cache`, under a name made of the content; an earlier export of the same content is
/// reused, and one that was damaged since is replaced. Of several processes that want the same
/// export one makes it, the others wait.
///
/// # Errors
/// As [`export_to`].
pub fn export_cached(request: &Request<'_>, cache: &Path) -> Result<Exported, BackendError> {
    let config = config::read(request.model)?;
    let keys = request.keys()?;
    let folder = cache.join(&keys.key);
    let whole = || Exported::open(&folder).ok().filter(|exported| exported.manifest.key == keys.key);
    // A cache that may only be read serves what it has.
    if let Some(exported) = whole() {
        return Ok(exported);
    }
    let _lock = Lock::take(cache, &keys.key)?;
    if let Some(exported) = whole() {
        return Ok(exported);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|e| {
            BackendError::failed(format!("could not remove the damaged export {}: {e}", folder.display()))
        })?;
    }
    write(config, request, keys, &folder, &mut unheard)
}

/// Passes over the events of an export that is made on the way to something else.
pub fn unheard(_: Event) -> Flow {
    Flow::Continue
}

fn write(
    mut config: ModelConfig,
    request: &Request<'_>,
    keys: Keys,
    folder: &Path,
    sink: &mut dyn EventSink,
) -> Result<Exported, BackendError> {
    let checkpoint = CheckpointLayout::of_folder(request.model)?;
    config.check_tensors(&checkpoint)?;
    let said_tied = config.tied;
    config.settle_head(&checkpoint)?;
    let config = &config;
    let adapter = request.adapter.map(|folder| Adapter::open(folder, &config.linears())).transpose()?;

    let disk = |e: &dyn std::error::Error| {
        BackendError::failed(format!("could not write the export {}", folder.display())).because(e)
    };
    // Removed when dropped, whatever fails below.
    let temporary = PassingFolder::beside(folder, "onnx").map_err(|e| disk(&e))?;
    let inside = temporary.path();

    let source = Source {
        checkpoint: &checkpoint,
        adapter: adapter.as_ref(),
        adapter_inputs: request.adapter_mode == AdapterMode::Runtime,
        precision: request.weights,
        operators: request.operators,
    };
    let written = write_decoder(config, &source, &inside.join(DATA), sink)?;
    let bytes = written.model.into_bytes();
    fsio::write_atomic(&inside.join(MODEL), &bytes).map_err(|e| disk(&e))?;
    fsio::write_json(&inside.join("genai_config.json"), &genai::config(config, request.model)?)
        .map_err(|e| disk(&e))?;
    // So that the folder is usable on its own.
    for name in ["config.json"].into_iter().chain(COMPANIONS) {
        let from = request.model.join(name);
        if from.is_file() {
            let text = fs::read(&from).map_err(|e| disk(&e))?;
            fsio::write_atomic(&inside.join(name), &text).map_err(|e| disk(&e))?;
        }
    }
    if said_tied && !config.tied {
        fsio::write_json(&inside.join("config.json"), &config.raw).map_err(|e| disk(&e))?;
    }
    for named in request.beside {
        let inside = inside.join(ADAPTERS).join(&named.name);
        folder::write_adapter(named, &written.adapter_inputs, request.weights, &keys.base, &inside)?;
    }
    let manifest = Manifest {
        format: FORMAT,
        key: keys.key,
        base: keys.base,
        adapters: keys.beside,
        weights: request.weights,
        operators: request.operators,
        adapter_mode: request.adapter_mode,
        adapter_inputs: written.adapter_inputs,
        layers: config.layers,
        kv_heads: config.heads.keys,
        head_dim: config.heads.dim,
        vocab: config.vocab_size,
        max_positions: config.max_positions,
        parameters: written.parameters,
        adapter_parameters: adapter.as_ref().map_or(0, Adapter::parameters),
        model_bytes: bytes.len() as u64,
        model_sha256: fsio::sha256(&bytes),
        data_bytes: written.data_bytes,
        warnings: [config.warnings.as_slice(), adapter.as_ref().map_or(&[], Adapter::warnings)].concat(),
    };
    fsio::write_json(&inside.join(MANIFEST), &manifest).map_err(|e| disk(&e))?;
    publish(temporary, folder).map_err(|e| disk(&e))?;
    // Another process may have been faster; what is there was made from the same content.
    Exported::open(folder)
}

/// The export that a session runs on: one that is already there, or one made now where the options
/// say. In the adapter mode `runtime` the adapter is not part of it.
///
/// # Errors
/// As [`export_to`]; an adapter for an export that takes none; an element type that is not the
/// export's.
pub fn open_or_export(config: &OpenConfig, options: &Options, operators: Operators) -> Result<Exported, BackendError> {
    if Exported::is_meant_by(&config.model) {
        let exported = Exported::open(&config.model)?;
        let place = config.model.display();
        let (written, mode) = (exported.manifest.weights, exported.manifest.adapter_mode);
        if options.weights.is_some_and(|wanted| wanted != written) {
            return Err(BackendError::unsupported(format!("{place} is already exported as {written}")));
        }
        if options.operators.is_some_and(|wanted| wanted != exported.manifest.operators) {
            return Err(BackendError::unsupported(format!(
                "{place} is already exported in {} operators",
                exported.manifest.operators
            )));
        }
        if config.adapter.is_some() && mode == AdapterMode::Merge {
            return Err(BackendError::unsupported(format!(
                "{place} is already exported, and an adapter is merged when a model is exported; give the checkpoint \
                 instead, or export it with the adapter mode runtime"
            )));
        }
        return Ok(exported);
    }
    let request = Request {
        model: &config.model,
        adapter: config.adapter.as_deref().filter(|_| options.adapter_mode == AdapterMode::Merge),
        weights: options.weights.unwrap_or(config.dtype.into()),
        adapter_mode: options.adapter_mode,
        operators,
        beside: &[],
    };
    // The export of a model that is there for a moment goes with it.
    let temporary =
        |folder: &&Path| folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY_MODEL));
    match (&options.export_dir, &options.cache_dir) {
        (Some(folder), _) => export_to(&request, folder, &mut unheard),
        (None, _) if config.model.parent().as_ref().is_some_and(temporary) => {
            let beside = config.model.with_extension("onnx");
            export_cached(&request, &beside)
        }
        (None, Some(cache)) => export_cached(&request, cache),
        (None, None) => export_cached(&request, &cache_root()?.join("onnx")),
    }
}
