//! The candle backend: training (full and LoRA), scoring and generation with candle's tensors,
//! autograd and devices as they are.
//!
//! It is deliberately simple and allowed to be slow: rows go through the decoder one at a time,
//! every operation is candle's, and the backward pass is candle's autograd. So it is an opinion
//! independent of the native engine and of ONNX Runtime
//! (`karat compare --backends native,candle,onnxruntime`), and an example of a backend that trains.
//!
//! Mistral, Gemma, Phi-3, Qwen's mixtures of experts, GLM-4, Granite and OLMo 2 are scored and
//! generated with, adapters put into their weights when they are loaded (`families`).
//!
//! On the CPU the numbers depend neither on the number of threads nor on the batch, and a resumed
//! run is bit by bit the run that never stopped. With the features `cuda` and `metal` it computes
//! on candle's other devices, which promise neither.
//!
//! Products run on the session's threads, cut into one part a core (`RAYON_NUM_THREADS`). For
//! element-wise operations candle keeps threads of its own, one a core (`CANDLE_NUM_THREADS`),
//! which spin while they wait for each other: on a machine that other programs load,
//! `CANDLE_NUM_THREADS=1` is faster.

mod causal;
mod device;
mod dropout;
mod families;
mod generate;
mod lora;
mod model;
mod session;
mod train;
mod weights;

use std::collections::BTreeMap;

use karat_backend::{Backend, BackendError, Capability, Descriptor, Dtype, OpenConfig, Session};
use karat_model::Architecture;

/// Short name of this backend.
pub const NAME: &str = "candle";
/// The version of candle that it is built with.
const CANDLE: &str = "0.11.1";

type Result<T, E = BackendError> = std::result::Result<T, E>;

/// The error of an operation of candle's.
fn failed(error: candle_core::Error) -> BackendError {
    BackendError::failed("candle could not compute it").because(&error)
}

/// The backend; stateless.
#[derive(Clone, Copy, Debug, Default)]
pub struct CandleBackend;

impl Backend for CandleBackend {
    fn describe(&self) -> Descriptor {
        Descriptor {
            name: NAME.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            capabilities: vec![
                Capability::Score,
                Capability::Generate,
                Capability::TrainFull,
                Capability::TrainLora,
                Capability::Adapter,
                Capability::Merge,
                Capability::FromScratch,
                Capability::Gguf,
            ],
            devices: device::built().map(String::from).collect(),
            dtypes: vec![Dtype::F32],
            model_families: karat_model::Family::NAMES
                .into_iter()
                .chain(Architecture::names())
                .map(String::from)
                .collect(),
            build: BTreeMap::from([("candle-core".to_owned(), CANDLE.to_owned())]),
        }
    }

    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>> {
        Ok(Box::new(session::CandleSession::open(config)?))
    }
}

karat_backend::export_backend!(CandleBackend);
