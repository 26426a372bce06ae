//! Which device a run computes on: what its configuration asks for, and what this machine has.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::Arc;

use karat::backend::{BackendError, Dtype};

use super::device::{Element, Gpu};
use super::driver::{self, Driver};
#[cfg(feature = "emulator")]
use super::emulator::Emulator;
use super::{Device, ptx};
use crate::error::Result;

/// What a configuration's `device` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// `cpu`.
    Cpu,
    /// `auto`: the first GPU that can be used, else the CPU.
    Auto,
    /// `cuda` or `cuda:N`.
    Cuda(usize),
    /// `cuda:emulated`: the kernels of the GPU run on the CPU, slowly; for tests.
    #[cfg(feature = "emulator")]
    Emulated,
}

impl Asked {
    /// Reads the name of a device.
    ///
    /// # Errors
    /// If there is no device of that name.
    pub fn of(device: &str) -> Result<Self> {
        let wrong = || {
            BackendError::unsupported(format!(
                "device \"{device}\" is none of this backend (known: cpu, cuda:0 and so on, auto)"
            ))
        };
        Ok(match (device, device.strip_prefix("cuda:")) {
            ("cpu", _) => Asked::Cpu,
            ("auto", _) => Asked::Auto,
            ("cuda", _) => Asked::Cuda(0),
            #[cfg(feature = "emulator")]
            (_, Some("emulated")) => Asked::Emulated,
            #[cfg(not(feature = "emulator"))]
            (_, Some("emulated")) => {
                return Err(BackendError::unsupported(
                    "device \"cuda:emulated\" is for Karat's own tests and not part of this plugin: ask for cpu, cuda:0 and so \
                     on, or auto, or build karat-native with the cargo feature emulator",
                ));
            }
            (_, Some(number)) => Asked::Cuda(number.parse::<u8>().map_err(|_| wrong())?.into()),
            _ => return Err(wrong()),
        })
    }
}

/// A device, with what a report says of it.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Nothing where the CPU computes.
    pub device: Option<Arc<Device>>,
    /// `cpu`, `cuda:0`, `cuda:emulated`.
    pub name: String,
    /// Kernels of the device, or why it is the CPU where a GPU would have been taken.
    pub facts: Vec<String>,
}

/// Opens what `asked` names, to compute in `dtype`, with steps of generation recorded if `graphs`.
///
/// # Errors
/// If it is not there, naming what is missing; never for [`Asked::Auto`].
pub fn open(asked: Asked, dtype: Dtype, graphs: bool) -> Result<Opened> {
    let cpu = |facts| Opened { device: None, name: "cpu".into(), facts };
    match asked {
        Asked::Cpu => Ok(cpu(Vec::new())),
        Asked::Cuda(number) => on(number, dtype, graphs),
        Asked::Auto => {
            Ok(on(0, dtype, graphs)
                .unwrap_or_else(|e| cpu(vec![format!("device auto is the CPU here: {}", e.message)])))
        }
        #[cfg(feature = "emulator")]
        Asked::Emulated => {
            let emulator: Arc<dyn Gpu> = Emulator::new()?;
            let facts = vec![format!("{}: it says nothing of a GPU's speed", emulator.facts().name)];
            Ok(with(emulator, (dtype, graphs), "cuda:emulated".into(), facts))
        }
    }
}

fn on(number: usize, dtype: Dtype, graphs: bool) -> Result<Opened> {
    let driver = Driver::open(number, ptx::kernels())?;
    let (facts, cublas) = (driver.facts().clone(), driver.cublas_version());
    let (major, minor) = facts.compute_capability;
    let text = vec![
        format!("{}, compute capability {major}.{minor}", facts.name),
        match dtype {
            Dtype::F32 => format!("matmul: cuBLAS {cublas} f32 (no TF32)"),
            _ => format!("matmul: cuBLAS {cublas} bf16, f32 sums"),
        },
        "attention, elementwise: Karat's CUDA kernels".into(),
    ];
    Ok(with(Arc::new(driver), (dtype, graphs), format!("cuda:{number}"), text))
}

fn with(gpu: Arc<dyn Gpu>, (dtype, graphs): (Dtype, bool), name: String, facts: Vec<String>) -> Opened {
    let activations = if dtype == Dtype::F32 { Element::F32 } else { Element::Bf16 };
    Opened { device: Some(Arc::new(Device { gpu, activations, graphs })), name, facts }
}

/// What was found of CUDA on this machine and what this plugin brings: for `karat doctor`.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_read_strictly() {
        assert_eq!(Asked::of("cuda").unwrap(), Asked::Cuda(0));
        assert_eq!(Asked::of("cuda:3").unwrap(), Asked::Cuda(3));
        assert_eq!(Asked::of("auto").unwrap(), Asked::Auto);
        assert_eq!(Asked::of("cuda:emulated").unwrap(), Asked::Emulated);
        for name in ["gpu", "cuda:", "cuda:x", "cuda0", "CUDA:0", "cuda:-1"] {
            assert!(Asked::of(name).unwrap_err().message.contains(name), "{name}");
        }
    }

    #[test]
    fn the_automatic_choice_says_why_it_is_the_cpu() {
        let opened = open(Asked::Auto, Dtype::Bf16, true).unwrap();
        match open(Asked::Cuda(0), Dtype::Bf16, true) {
            Ok(_) => assert_eq!(opened.name, "cuda:0"),
            Err(error) => {
                assert_eq!(opened.name, "cpu");
                assert!(opened.facts[0].contains(&error.message), "{:?}", opened.facts);
            }
        }
    }
}
