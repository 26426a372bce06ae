//! The native backend: supervised fine-tuning (full and LoRA), scoring and generation on the CPU or a CUDA GPU.
//!
//! The decoder is our own and its backward pass is written out layer by layer: see [`nn`] for why, [`layer`] for the formulas, [`ops`] for the kernels. What one wants from a training
//! backend that is to be compared with others holds here to the bit: the numbers do not depend on the number of
//! threads, a row's not on its batch, recomputing activations changes nothing, and a resumed run is the run that
//! never stopped.

pub mod adapter;
pub mod config;
pub mod cuda;
pub mod error;
pub mod files;
pub mod generate;
pub mod layer;
pub mod linear;
pub mod memory;
pub mod model;
pub mod nn;
pub mod ops;
pub mod profile;
pub mod rng;
pub mod session;
pub mod train;
pub mod weight;

use std::collections::BTreeMap;

use karat::backend::{Backend, BackendError, Capability, Descriptor, Dtype, OpenConfig, Provisions, Session};

/// Short name of this backend.
pub const NAME: &str = "native";

/// The backend; stateless.
#[derive(Clone, Copy, Debug, Default)]
pub struct NativeBackend;

/// The instructions that products are made with, and what is known of them.
fn instructions() -> String {
    use ops::matmul::{check, kernel::Set};

    if let Err(message) = Set::chosen() {
        return message.clone();
    }
    let asked = std::env::var(ops::matmul::kernel::VARIABLE).is_ok_and(|name| !name.is_empty());
    let set = Set::of_this_cpu().name();
    let by = if asked { format!(" (by {})", ops::matmul::kernel::VARIABLE) } else { String::new() };
    let remark = Set::remark().map(|remark| format!("; {remark}")).unwrap_or_default();
    match check::products() {
        Ok(()) => format!("{set}{by}, self-check passed{remark}"),
        Err(what) => format!("{set}{by}, SELF-CHECK FAILED: {what}{remark}"),
    }
}

/// Kernels as this CPU runs them.
fn kernels(precision: nn::Precision) -> Vec<String> {
    use ops::matmul::kernel::Set;

    // The instruction set's name is all that is wanted of a long list of features.
    let set = format!("{:?}", pulp::Arch::new());
    let set = set.split('(').next().unwrap_or_default().to_ascii_lowercase();
    let chosen = Set::of_this_cpu();
    let mut matmul = match (precision, chosen) {
        (nn::Precision::F32, Set::Portable) => format!("f32 ({set})"),
        (nn::Precision::F32, _) => "f32 (avx512f)".into(),
        (nn::Precision::Bf16, Set::Portable) => format!("bf16 widened to f32 ({set})"),
        (nn::Precision::Bf16, Set::Avx512) => "bf16 widened to f32 (avx512f)".into(),
        (nn::Precision::Bf16, _) => format!("bf16, f32 sums ({})", chosen.name()),
    };
    if let (nn::Precision::Bf16, Some(remark)) = (precision, Set::remark()) {
        matmul.push_str(&format!("; {remark}"));
    }
    let others = match precision {
        nn::Precision::F32 => format!("attention, elementwise: f32 ({set})"),
        nn::Precision::Bf16 => format!("attention: products as above, softmax f32; elementwise: f32 ({set})"),
    };
    vec![format!("matmul: {matmul}"), others]
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
        let mut facts = cuda::open::provisions();
        facts.insert("cpu kernels".into(), instructions());
        Ok(Provisions { facts })
    }

    fn measure(&self, device: &str) -> Result<Provisions, BackendError> {
        if device.starts_with("cuda") {
            return Err(BackendError::unsupported("the speed of CUDA kernels is not measured yet; --device cpu is"));
        }
        ops::matmul::kernel::Set::chosen().as_ref().map_err(BackendError::unsupported)?;
        Ok(Provisions { facts: ops::speed::facts() })
    }

    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>, BackendError> {
        Ok(Box::new(session::NativeSession::open(config)?))
    }
}

karat::export_backend!(NativeBackend);
