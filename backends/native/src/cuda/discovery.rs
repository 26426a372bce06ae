//! Device discovery: opening a GPU, and CUDA on this machine.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::Arc;

use super::device::{Element, Gpu};
use super::driver::{self, Driver};
#[cfg(feature = "emulator")]
use super::emulator::Emulator;
use super::{Cuda, ptx};
use crate::device::Precision;
use crate::error::Result;

/// A GPU, with what a report says of it.
#[derive(Clone, Debug)]
pub struct CudaFound {
    /// The GPU.
    pub device: Cuda,
    /// `cuda:0`, `cuda:emulated`.
    pub name: String,
    /// Its kernels.
    pub facts: Vec<String>,
}

/// Opens GPU `number`, with GEMMs in `precision` and steps of generation recorded if `graphs`.
///
/// # Errors
/// If it is not there, naming what is missing.
pub fn open(number: usize, precision: Precision, graphs: bool) -> Result<CudaFound> {
    let driver = Driver::open(number, ptx::kernels())?;
    let (facts, cublas) = (driver.facts().clone(), driver.cublas_version());
    let (major, minor) = facts.compute_capability;
    let text = vec![
        format!("{}, compute capability {major}.{minor}", facts.name),
        match precision {
            Precision::F32 => format!("matmul: cuBLAS {cublas} f32 (no TF32)"),
            Precision::Bf16 => format!("matmul: cuBLAS {cublas} bf16, f32 sums"),
        },
        "attention, elementwise: Karat's CUDA kernels".into(),
    ];
    Ok(CudaFound { device: of(Arc::new(driver), precision, graphs), name: format!("cuda:{number}"), facts: text })
}

/// Opens the emulator.
///
/// # Errors
/// As [`Emulator::new`].
#[cfg(feature = "emulator")]
pub fn emulated(precision: Precision, graphs: bool) -> Result<CudaFound> {
    let emulator = Emulator::new()?;
    let facts = vec![format!("{}: it says nothing of a GPU's speed", emulator.facts().name)];
    Ok(CudaFound { device: of(emulator, precision, graphs), name: "cuda:emulated".into(), facts })
}

fn of(gpu: Arc<dyn Gpu>, precision: Precision, graphs: bool) -> Cuda {
    let activations = match precision {
        Precision::F32 => Element::F32,
        Precision::Bf16 => Element::Bf16,
    };
    Cuda { gpu, activations, graphs }
}

/// CUDA on this machine and the kernels that this plugin brings: for `karat doctor`.
pub fn provisions() -> BTreeMap<String, String> {
    let mut facts = driver::found();
    facts.insert("cuda kernels".into(), about(ptx::kernels()));
    facts
}

/// The target and version that the kernels' text names.
fn about(ptx: &CStr) -> String {
    let text = ptx.to_string_lossy();
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("?").trim().to_owned();
    format!("PTX {} for {} and later", line(".version"), line(".target"))
}
