//! Which device a run computes on: what its configuration asks for, and what this machine has.

use std::sync::Arc;

use karat_backend::BackendError;

use crate::cpu::Cpu;
use crate::cuda::discovery::{self as cuda, CudaFound};
use crate::device::{Device, Precision};
use crate::error::Result;

/// The device that a configuration asks for.
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
pub struct SelectedDevice {
    /// The device.
    pub device: Arc<dyn Device>,
    /// `cpu`, `cuda:0`, `cuda:emulated`.
    pub name: String,
    /// Its kernels, and why it is the CPU where a GPU would have been taken.
    pub facts: Vec<String>,
}

impl From<CudaFound> for SelectedDevice {
    fn from(CudaFound { device, name, facts }: CudaFound) -> Self {
        SelectedDevice { device: Arc::new(device), name, facts }
    }
}

/// Opens what `asked` names, with GEMMs in `precision`, and on a GPU steps of generation recorded
/// if `graphs`.
///
/// # Errors
/// If it is not there, naming what is missing; never for [`Asked::Auto`].
pub fn open(asked: Asked, precision: Precision, graphs: bool) -> Result<SelectedDevice> {
    let cpu = |remark: Option<String>| {
        let kernels = Cpu { precision }.kernels();
        SelectedDevice {
            device: Cpu::device(precision),
            name: "cpu".into(),
            facts: kernels.into_iter().chain(remark).collect(),
        }
    };
    match asked {
        Asked::Cpu => Ok(cpu(None)),
        Asked::Cuda(number) => cuda::open(number, precision, graphs).map(SelectedDevice::from),
        Asked::Auto => Ok(match cuda::open(0, precision, graphs) {
            Ok(found) => found.into(),
            Err(e) => cpu(Some(format!("device auto is the CPU here: {}", e.message))),
        }),
        #[cfg(feature = "emulator")]
        Asked::Emulated => cuda::emulated(precision, graphs).map(SelectedDevice::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_read_strictly() {
        assert_eq!(Asked::of("cuda").unwrap(), Asked::Cuda(0));
        assert_eq!(Asked::of("cuda:3").unwrap(), Asked::Cuda(3));
        assert_eq!(Asked::of("auto").unwrap(), Asked::Auto);
        for name in ["gpu", "cuda:", "cuda:x", "cuda0", "CUDA:0", "cuda:-1"] {
            assert!(Asked::of(name).unwrap_err().message.contains(name), "{name}");
        }
    }

    #[test]
    fn the_emulator_is_there_for_tests_alone() {
        let emulated = cfg!(feature = "emulator");
        match Asked::of("cuda:emulated") {
            Ok(_) if emulated => {}
            Ok(asked) => panic!("{asked:?} is taken without the emulator"),
            Err(error) => {
                assert!(!emulated, "{error}");
                assert!(error.message.contains("not part of this plugin"), "{error}");
            }
        }
    }

    #[test]
    fn the_automatic_choice_says_why_it_is_the_cpu() {
        let opened = open(Asked::Auto, Precision::Bf16, true).unwrap();
        match open(Asked::Cuda(0), Precision::Bf16, true) {
            Ok(_) => assert_eq!(opened.name, "cuda:0"),
            Err(error) => {
                assert_eq!(opened.name, "cpu");
                assert!(opened.facts.last().unwrap().contains(&error.message), "{:?}", opened.facts);
            }
        }
    }
}
