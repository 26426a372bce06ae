//! Karat's inference backend on ONNX Runtime: a Hugging Face checkpoint is exported to ONNX once,
//! without Python, and then scored and generated with.
//!
//! [`OnnxRuntimeBackend`] opens a model folder. The weights are streamed into an ONNX model of the
//! runtime's own attention operator ([`export`]), kept in a cache under the hash of what it was
//! made from; an adapter is merged on the way. The runtime library is loaded when it is first
//! needed ([`runtime`]); a wheel of the pinned version is fetched where there is none. A folder
//! that already is such an export opens directly.
//!
//! Scoring pads rows on the right in batches of similar length; generation decodes many rows at
//! once over one key-value buffer and fills the place of a finished row with the next prompt.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod adapter;
pub mod config;
pub mod export;
pub mod manifest;
pub mod operators;
pub mod options;
pub mod runtime;

mod adapter_inputs;
mod decoder;
mod error;
mod files;
mod generate;
mod kv_cache;
mod logits;
pub mod proto;
mod provider;
mod score;
mod session;
mod static_buffers;
pub mod weight_format;

use std::collections::BTreeMap;
use std::path::Path;

use karat_backend::{
    Backend, BackendError, Capability, Descriptor, Dtype, EventSink, ExportConfig, ExportSummary, OpenConfig,
    Provisions, Session, Weights, worker_threads,
};

use karat_kernels::gemm::isa::Isa;
use manifest::Exported;
use operators::Operators;
use provider::Provider;
pub use runtime::fetch_runtime;

/// The backend `onnxruntime`.
#[derive(Clone, Copy, Debug, Default)]
pub struct OnnxRuntimeBackend;

karat_backend::export_backend!(OnnxRuntimeBackend);

impl Backend for OnnxRuntimeBackend {
    fn describe(&self) -> Descriptor {
        let build = [
            ("onnx opset", "21, com.microsoft 1".to_string()),
            ("onnxruntime needed", format!("1.{} or newer", ort::MINOR_VERSION)),
            ("onnxruntime pinned", runtime::PINNED_VERSION.to_string()),
        ];
        Descriptor {
            name: "onnxruntime".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            capabilities: vec![
                Capability::Score,
                Capability::Generate,
                Capability::Adapter,
                Capability::Merge,
                Capability::Export,
                Capability::ExchangeAdapter,
            ],
            devices: vec!["cpu".into(), "cuda".into()],
            dtypes: vec![Dtype::F32, Dtype::F16, Dtype::Bf16],
            model_families: karat_model::Family::NAMES.map(String::from).to_vec(),
            build: build.into_iter().map(|(k, v)| (k.to_string(), v)).collect::<BTreeMap<_, _>>(),
        }
    }

    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>, BackendError> {
        let options = options::Options::parse(&config.options)?;
        // Before an export, which may take long.
        worker_threads(config.threads)?;
        let refuse = |what: String| Err(BackendError::unsupported(format!("the onnxruntime backend {what}")));
        let asked = Provider::asked(&config.device, options.provider.as_deref())?;
        // Before the export, which may take long, and be for nothing.
        let wants_bf16 = config.dtype == Dtype::Bf16 || options.weights == Some(weight_format::WeightFormat::Bf16);
        if wants_bf16 && asked == Some(Provider::Cpu) && options.operators == Some(Operators::Standard) {
            return Err(provider::no_bf16());
        }
        if config.weights == Weights::Random {
            return refuse("draws no weights; train a model with another backend first".into());
        }
        let on_cuda = matches!(asked, Some(Provider::Cuda { .. }));
        let loaded = runtime::load(options.library.as_deref(), options.fetch_runtime, on_cuda)?;
        Provider::offers(asked, &loaded)?;
        let merged = config.merge_into.as_deref().map(|folder| merge(config, folder)).transpose()?;
        let (config, said) = merged.unwrap_or_else(|| (config.clone(), Vec::new()));
        let config = &config;
        let (provider, operators) = settle(config, &options, asked, &loaded)?;
        if operators == Operators::Karat {
            Isa::chosen().as_ref().map_err(BackendError::unsupported)?;
        }
        let exported = export::open_or_export(config, &options, operators)?;
        let weights = exported.manifest.weights;
        // f32 is also what is asked for when nobody asks.
        if config.dtype != Dtype::F32 && config.dtype != weights.activations() {
            return refuse(format!(
                "computes in {} with weights in {weights}, not in {}",
                weights.activations(),
                config.dtype
            ));
        }
        Ok(Box::new(session::OnnxSession::open(config, &options, exported, &loaded, provider, said)?))
    }

    fn provide(&self, fix: bool, device: &str) -> Result<Provisions, BackendError> {
        let on_cuda = matches!(Provider::asked(device, None)?, Some(Provider::Cuda { .. }));
        if on_cuda && fix {
            runtime::fetch_cuda_runtime()?;
        }
        let loaded = match runtime::load(None, fix, on_cuda) {
            Err(mut error) if !fix && !on_cuda => {
                error.message = "no usable ONNX Runtime library; run `cargo karat doctor --fix`".into();
                return Err(error);
            }
            loaded => loaded?,
        };
        Provider::offers(Provider::asked(device, None)?, &loaded)?;
        let facts = [
            ("library", loaded.path.display().to_string()),
            ("version", runtime::version(&loaded)),
            ("providers", provider::offered().join(", ")),
        ];
        Ok(Provisions { facts: facts.map(|(k, v)| (k.to_string(), v)).into() })
    }

    fn export(&self, config: &ExportConfig, sink: &mut dyn EventSink) -> Result<ExportSummary, BackendError> {
        export::export(config, sink)
    }
}

/// Where the model of `config` will run, and in whose operators: those it was exported in, or those
/// it will be.
///
/// # Errors
/// A provider that is not there or cannot run such operators in such an element type.
fn settle(
    config: &OpenConfig,
    options: &options::Options,
    asked: Option<Provider>,
    loaded: &runtime::Loaded,
) -> Result<(Provider, Operators), BackendError> {
    let (weights, wanted) = match Exported::is_meant_by(&config.model) {
        true => {
            let there = Exported::open(&config.model)?.manifest;
            (there.weights, Some(there.operators))
        }
        false => (options.weights.unwrap_or(config.dtype.into()), options.operators),
    };
    let asked = if wanted == Some(Operators::Karat) { Some(asked.unwrap_or(Provider::Cpu)) } else { asked };
    let own = wanted != Some(Operators::Standard);
    let provider = Provider::settle(asked, loaded, weights.activations(), own)?;
    let possible = provider == Provider::Cpu
        && matches!(weights, weight_format::WeightFormat::F32 | weight_format::WeightFormat::Bf16);
    match wanted {
        Some(Operators::Karat) if !possible => Err(BackendError::unsupported(format!(
            "Karat's operators in ONNX Runtime compute in f32 and bf16 on the CPU, not in {weights} on {}; leave out the option \
             operators",
            provider.device()
        ))),
        Some(operators) => Ok((provider, operators)),
        None if possible => Ok((provider, Operators::Karat)),
        None => Ok((provider, Operators::Standard)),
    }
}

/// Writes the model of `config` with its adapter merged into `folder`; what to open then, and what
/// its user should know.
fn merge(config: &OpenConfig, folder: &Path) -> Result<(OpenConfig, Vec<String>), BackendError> {
    let Some(adapter) = &config.adapter else {
        return Err(BackendError::failed("there is no adapter to merge into the weights; name one"));
    };
    let said = adapter::merge::write(&config.model, adapter, folder)?;
    Ok((OpenConfig { model: folder.to_path_buf(), adapter: None, merge_into: None, ..config.clone() }, said))
}
