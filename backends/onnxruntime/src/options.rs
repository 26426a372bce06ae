//! The options of this backend (`OpenConfig::options`); an unknown key is an error that lists the
//! known ones.

use std::collections::BTreeMap;
use std::path::PathBuf;

use karat_backend::{AdapterMode, BackendError};
use serde_json::Value;

use crate::operators::Operators;
use crate::weight_format::WeightFormat;

/// Parsed options with their defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// `library`: path of the ONNX Runtime library; looked for if absent.
    pub library: Option<PathBuf>,
    /// `fetch_runtime`: fetch the pinned library if none is found (default true).
    pub fetch_runtime: bool,
    /// `export_dir`: export into this folder and open it from there, instead of the cache.
    pub export_dir: Option<PathBuf>,
    /// `cache_dir`: where exports are cached, instead of `onnx` in Karat's cache.
    pub cache_dir: Option<PathBuf>,
    /// `context`: longest sequence (prompt and continuation) held in generation, at most the
    /// model's own limit.
    pub context: Option<usize>,
    /// `provider`: `cpu`, `cuda` or `cuda-graph`; by the device if absent.
    pub provider: Option<String>,
    /// `fixed_buffers`: keep shapes and addresses from step to step, and copy as between devices,
    /// as `cuda-graph` must (default false): for trying that without a GPU.
    pub fixed_buffers: bool,
    /// `score_positions`: positions a scoring batch may have (default 4096; fewer where their
    /// logits would take more than 256 MiB). A row longer than that is scored in stretches over a
    /// cache.
    pub score_positions: usize,
    /// `spin`: let idle worker threads of the runtime spin as long as a call lasts, not just for
    /// the moment between two operators (default false): somewhat faster alone on a machine, much
    /// slower on a shared one.
    pub spin: bool,
    /// `weights`: what the weights of an exported checkpoint become: `f32`, `f16`, `bf16`, `int8`
    /// or `int4`; the element type of the session if absent.
    pub weights: Option<WeightFormat>,
    /// `operators`: `karat` (this backend's own, whose weights are packed for its kernels) or
    /// `standard` (ONNX's and the runtime's); by default `karat` on the CPU for f32 and bf16, else
    /// `standard`.
    pub operators: Option<Operators>,
    /// `adapter_mode`: `merge` (default) adds an adapter to the weights at export; `runtime` feeds
    /// it to a resident base, so that adapters can be exchanged.
    pub adapter_mode: AdapterMode,
}

impl Options {
    /// The known keys.
    pub const KEYS: [&'static str; 12] = [
        "adapter_mode",
        "cache_dir",
        "context",
        "export_dir",
        "fetch_runtime",
        "fixed_buffers",
        "library",
        "operators",
        "provider",
        "score_positions",
        "spin",
        "weights",
    ];

    /// Reads and checks all options.
    ///
    /// # Errors
    /// An unknown key, or a value of the wrong type.
    pub fn parse(options: &BTreeMap<String, Value>) -> Result<Self, BackendError> {
        if let Some(key) = options.keys().find(|key| !Self::KEYS.contains(&key.as_str())) {
            let known = Self::KEYS.join(", ");
            return Err(BackendError::failed(format!(
                "the onnxruntime backend has no option {key:?} (known: {known})"
            )));
        }
        let wrong = |key: &str, what: &str, value: &Value| {
            BackendError::failed(format!("the option {key} of the onnxruntime backend must be {what}, not {value}"))
        };
        let path = |key: &str| {
            let path = |v: &Value| match v.as_str().filter(|text| !text.is_empty()) {
                Some(text) => Ok(PathBuf::from(text)),
                None => Err(wrong(key, "a path", v)),
            };
            options.get(key).map(path).transpose()
        };
        let flag = |key: &str, default: bool| match options.get(key) {
            Some(v) => v.as_bool().ok_or_else(|| wrong(key, "true or false", v)),
            None => Ok(default),
        };
        let size = |key: &str| {
            let size = |v: &Value| match v.as_u64().filter(|n| *n > 0) {
                Some(n) => Ok(n as usize),
                None => Err(wrong(key, "a positive number", v)),
            };
            options.get(key).map(size).transpose()
        };
        let name = |v: &Value| v.as_str().map(String::from).ok_or_else(|| wrong("provider", "a name", v));
        let weights = |v: &Value| v.as_str().ok_or_else(|| wrong("weights", "the name of an element type", v))?.parse();
        let operators =
            |v: &Value| v.as_str().ok_or_else(|| wrong("operators", "\"karat\" or \"standard\"", v))?.parse();
        let mode = |v: &Value| {
            let mode = v.as_str().and_then(AdapterMode::parse);
            mode.ok_or_else(|| wrong("adapter_mode", "\"merge\" or \"runtime\"", v))
        };
        Ok(Options {
            provider: options.get("provider").map(name).transpose()?,
            weights: options.get("weights").map(weights).transpose()?,
            operators: options.get("operators").map(operators).transpose()?,
            adapter_mode: options.get("adapter_mode").map(mode).transpose()?.unwrap_or_default(),
            library: path("library")?,
            fetch_runtime: flag("fetch_runtime", true)?,
            export_dir: path("export_dir")?,
            cache_dir: path("cache_dir")?,
            context: size("context")?,
            score_positions: size("score_positions")?.unwrap_or(4096),
            spin: flag("spin", false)?,
            fixed_buffers: flag("fixed_buffers", false)?,
        })
    }
}
