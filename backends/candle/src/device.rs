//! candle's devices by the names that Karat gives them.

use candle_core::Device;
use karat_backend::BackendError;

use crate::Result;

/// Devices beside the CPU: their names, the feature each is built with, what that takes.
const OTHERS: [(&str, bool, &str); 2] =
    [("cuda", cfg!(feature = "cuda"), "nvcc"), ("metal", cfg!(feature = "metal"), "macOS")];

/// The devices that this build has, in order of preference.
pub fn built() -> impl Iterator<Item = &'static str> {
    OTHERS.into_iter().filter(|(_, built, _)| *built).map(|(name, ..)| name).chain(["cpu"])
}

/// A device, its full name, and what to say of the choice.
pub struct Opened {
    /// candle's handle.
    pub device: Device,
    /// `cpu`, `cuda:0`.
    pub name: String,
    /// Why `auto` came to be the CPU in a build that has another device.
    pub remark: Option<String>,
}

/// Opens the device `asked`: `cpu`, `auto`, `cuda`, `cuda:1`, `metal`.
///
/// # Errors
/// Unsupported for a device that is none, or not of this build, with how to build it; failed for
/// one that is not there.
pub fn open(asked: &str) -> Result<Opened> {
    let cpu = |remark| Opened { device: Device::Cpu, name: "cpu".into(), remark };
    match asked {
        "cpu" => Ok(cpu(None)),
        "auto" => match OTHERS.iter().find(|(_, built, _)| *built) {
            None => Ok(cpu(None)),
            Some((kind, ..)) => {
                Ok(other(kind, 0).unwrap_or_else(|e| cpu(Some(format!("device auto is the CPU here: {e}")))))
            }
        },
        _ => {
            let (kind, number) = asked.split_once(':').unwrap_or((asked, "0"));
            let known = OTHERS.iter().find(|(name, ..)| *name == kind);
            let (Some((kind, built, needs)), Ok(number)) = (known, number.parse::<u8>()) else {
                return Err(BackendError::unsupported(format!(
                    "device \"{asked}\" is none of this backend (known: cpu, auto, and built with their features cuda:0, metal:0 and so on)"
                )));
            };
            if !built {
                return Err(BackendError::unsupported(format!(
                    "device \"{asked}\": the candle backend was built without {kind}; build it with `cargo build --release -p \
                     karat-candle --features {kind}` (it takes {needs}), or use the CPU"
                )));
            }
            other(kind, number.into())
        }
    }
}

fn other(kind: &str, number: usize) -> Result<Opened> {
    let name = format!("{kind}:{number}");
    let device = if kind == "cuda" { Device::new_cuda(number) } else { Device::new_metal(number) };
    let device = device.map_err(|e| BackendError::failed(format!("device {name} cannot be opened")).because(&e))?;
    Ok(Opened { device, name, remark: None })
}
