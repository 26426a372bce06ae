//! The native backend: supervised fine-tuning (full and LoRA), scoring and generation on the CPU or
//! a CUDA GPU.
//!
//! The decoder is our own and its backward pass is written out layer by layer: see [`device`] for
//! why, [`layer`] for the formulas, [`ops`] for the kernels. What one wants from a training backend
//! that is to be compared with others holds here to the bit: the numbers do not depend on the
//! number of threads, a row's not on its batch, recomputing activations changes nothing, and a
//! resumed run is the run that never stopped.

pub mod adapter;
pub mod config;
pub mod cpu;
pub mod cuda;
pub mod device;
pub mod error;
pub mod files;
pub mod generate;
pub mod layer;
pub mod linear;
pub mod memory;
pub mod model;
pub mod ops;
pub mod profile;
pub mod select;
pub mod session;
pub mod tensor;
pub mod train;
pub mod weight;

use std::collections::BTreeMap;

use karat_backend::{Backend, BackendError, Capability, Descriptor, Dtype, OpenConfig, Provisions, Session};

/// Short name of this backend.
pub const NAME: &str = "native";

/// The backend; stateless.
#[derive(Clone, Copy, Debug, Default)]
pub struct NativeBackend;

/// The instructions that products are made with, and what is known of them.
fn instructions() -> String {
    use karat_kernels::gemm::{isa::Isa, self_check};

    if let Err(message) = Isa::chosen() {
        return message.clone();
    }
    let asked = std::env::var(karat_kernels::gemm::isa::VARIABLE).is_ok_and(|name| !name.is_empty());
    let set = Isa::of_this_cpu().name();
    let by = if asked { format!(" (by {})", karat_kernels::gemm::isa::VARIABLE) } else { String::new() };
    let remark = Isa::remark().map(|remark| format!("; {remark}")).unwrap_or_default();
    match self_check::gemms() {
        Ok(()) => format!("{set}{by}, self-check passed{remark}"),
        Err(what) => format!("{set}{by}, SELF-CHECK FAILED: {what}{remark}"),
    }
}

impl Backend for NativeBackend {
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
            ],
            devices: vec!["cuda".into(), "cpu".into()],
            dtypes: vec![Dtype::F32, Dtype::Bf16],
            model_families: karat_model::Family::NAMES.map(String::from).to_vec(),
            build: BTreeMap::new(),
        }
    }

    fn provide(&self, _fix: bool, _device: &str) -> Result<Provisions, BackendError> {
        let mut facts = cuda::discovery::provisions();
        facts.insert("cpu kernels".into(), instructions());
        Ok(Provisions { facts })
    }

    fn measure(&self, device: &str) -> Result<Provisions, BackendError> {
        if device.starts_with("cuda") {
            return Err(BackendError::unsupported("the speed of CUDA kernels is not measured yet; --device cpu is"));
        }
        karat_kernels::gemm::isa::Isa::chosen().as_ref().map_err(BackendError::unsupported)?;
        Ok(Provisions { facts: karat_kernels::speed::facts() })
    }

    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>, BackendError> {
        Ok(Box::new(session::NativeSession::open(config)?))
    }
}

karat_backend::export_backend!(NativeBackend);
