//! Karat's inference backend on ONNX Runtime: a Hugging Face checkpoint is exported to ONNX once, without Python, and then
//! scored and generated with.
//!
//! [`OnnxRuntimeBackend`] opens a model folder. The weights are streamed into an ONNX model of the runtime's own
//! attention operator ([`export`]), kept in a cache under the hash of what it was made from; an adapter is merged on the
//! way. The runtime library is loaded when it is first needed ([`runtime`]); a wheel of the pinned version is fetched
//! where there is none. A folder that already is such an export opens directly.
//!
//! Scoring pads rows on the right in batches of similar length; generation decodes many rows at once over one key-value
//! buffer and fills the place of a finished row with the next prompt.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod adapter;
pub mod checkpoint;
pub mod config;
pub mod export;
pub mod options;
pub mod runtime;

mod decoder;
mod generate;
mod kv;
mod logits;
mod lora;
mod sampling;
mod score;
mod session;

use std::collections::BTreeMap;

use karat::backend::{
    Backend, BackendError, Capability, Descriptor, Dtype, EventSink, ExportConfig, ExportSummary, OpenConfig, Session,
    Weights,
};

pub use runtime::fetch_runtime;

/// The backend `onnxruntime`.
#[derive(Clone, Copy, Debug, Default)]
pub struct OnnxRuntimeBackend;

karat::export_backend!(OnnxRuntimeBackend);

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
                Capability::Export,
                Capability::ExchangeAdapter,
            ],
            devices: vec!["cpu".into()],
            dtypes: vec![Dtype::F32, Dtype::F16],
            model_families: config::Family::NAMES.map(String::from).to_vec(),
            build: build.into_iter().map(|(k, v)| (k.to_string(), v)).collect::<BTreeMap<_, _>>(),
        }
    }

    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>, BackendError> {
        let options = options::Options::parse(&config.options)?;
        let refuse = |what: String| Err(BackendError::unsupported(format!("the onnxruntime backend {what}")));
        if !matches!(config.device.as_str(), "cpu" | "auto") {
            return refuse(format!("runs on cpu, not on {:?}", config.device));
        }
        let no_bf16 = || {
            refuse("cannot compute in bf16 on the CPU (ONNX Runtime has no such kernels there); use f32 or f16".into())
        };
        if config.dtype == Dtype::Bf16 || options.weights == Some(export::Precision::Bf16) {
            return no_bf16();
        }
        if config.weights == Weights::Random {
            return refuse("draws no weights; train a model with another backend first".into());
        }
        let exported = export::open_or_export(config, &options)?;
        let weights = exported.manifest.weights;
        if weights == export::Precision::Bf16 {
            return no_bf16();
        }
        // f32 is also what is asked for when nobody asks.
        if config.dtype != Dtype::F32 && config.dtype != weights.activations() {
            return refuse(format!(
                "computes in {} with weights in {weights}, not in {}",
                weights.activations(),
                config.dtype
            ));
        }
        Ok(Box::new(session::OnnxSession::open(config, &options, exported)?))
    }

    fn export(&self, config: &ExportConfig, sink: &mut dyn EventSink) -> Result<ExportSummary, BackendError> {
        export::export(config, sink)
    }
}
