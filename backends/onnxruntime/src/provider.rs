//! Where the operators run: the execution provider.
//!
//! Which one is asked for is decided by the device of the configuration and the option `provider`. A provider that was asked
//! for and is not there is an error: ONNX Runtime's own habit is to fall back to the CPU without a word. Nothing here was run
//! on CUDA; what can be checked without a GPU is.

use karat::backend::{BackendError, Dtype};
use ort::ep::{self, ExecutionProvider};
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session;
use ort::session::builder::SessionBuilder;

use crate::runtime::{Loaded, PINNED_VERSION};

/// An execution provider of the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// The processor.
    Cpu,
    /// A GPU by its number.
    Cuda(i32),
}

/// The names of the option `provider`.
pub const NAMES: [&str; 3] = ["cpu", "cuda", "cuda-graph"];

impl Provider {
    /// What `device` (`cpu`, `cuda`, `cuda:1`, `auto`) and the option `provider` ask for; `None` leaves it to the library:
    /// CUDA where it has it.
    ///
    /// # Errors
    /// A device that is none, a provider that contradicts it, or one that is not implemented.
    pub fn asked(device: &str, option: Option<&str>) -> Result<Option<Provider>, BackendError> {
        let unsupported = |what: String| BackendError::unsupported(format!("the onnxruntime backend {what}"));
        let by_device = match device.split_once(':') {
            None if device == "auto" => None,
            None if device == "cpu" => Some(Provider::Cpu),
            None if device == "cuda" => Some(Provider::Cuda(0)),
            Some(("cuda", number)) if number.parse::<u16>().is_ok() => {
                Some(Provider::Cuda(number.parse::<u16>().map(i32::from).unwrap_or_default()))
            }
            _ => return Err(unsupported(format!("runs on cpu, cuda:N or auto, not on {device:?}"))),
        };
        match (option, by_device) {
            (None, asked) => Ok(asked),
            (Some("cpu"), None | Some(Provider::Cpu)) => Ok(Some(Provider::Cpu)),
            (Some("cuda"), None) => Ok(Some(Provider::Cuda(0))),
            (Some("cuda"), Some(Provider::Cuda(number))) => Ok(Some(Provider::Cuda(number))),
            // A captured graph replays shapes and addresses as they were: wrong here would look like a result.
            (Some("cuda-graph"), None | Some(Provider::Cuda(_))) => {
                Err(unsupported("does not capture CUDA graphs yet; use the provider cuda".into()))
            }
            (Some(name), _) if NAMES.contains(&name) => Err(BackendError::failed(format!(
                "the provider {name:?} contradicts the device {device:?}; set one of them"
            ))),
            (Some(name), _) => Err(unsupported(format!("has no provider {name:?} (known: {})", NAMES.join(", ")))),
        }
    }

    /// Whether the library has the provider asked for.
    ///
    /// # Errors
    /// It has not.
    pub fn offers(asked: Option<Provider>, loaded: &Loaded) -> Result<(), BackendError> {
        match asked {
            Some(Provider::Cuda(number)) if !has_cuda() => Err(BackendError::unsupported(format!(
                "cuda:{number} was asked for and {} has no CUDA: it offers {}; run `python3 -m pip install onnxruntime-gpu=={PINNED_VERSION}` and set \
                 KARAT_ONNXRUNTIME to the libonnxruntime.so.{PINNED_VERSION} in it",
                loaded.path.display(),
                offered().join(", ")
            ))),
            _ => Ok(()),
        }
    }

    /// The provider that will run a model with activations in `dtype`.
    ///
    /// # Errors
    /// The one asked for is not there, or cannot compute in `dtype`.
    pub fn settle(asked: Option<Provider>, loaded: &Loaded, dtype: Dtype) -> Result<Provider, BackendError> {
        Self::offers(asked, loaded)?;
        match asked {
            Some(Provider::Cuda(_)) if dtype == Dtype::F32 => Err(BackendError::unsupported(
                "ONNX Runtime has no f32 kernel of GroupQueryAttention on CUDA; use the element type f16",
            )),
            Some(provider) => Ok(provider),
            // What has no CUDA kernel runs where it can.
            None if has_cuda() && dtype != Dtype::F32 => Ok(Provider::Cuda(0)),
            None => Ok(Provider::Cpu),
        }
    }

    /// Asks a session for this provider.
    ///
    /// # Errors
    /// If it cannot be had; nothing falls back.
    pub fn register(self, builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        match self {
            Provider::Cpu => Ok(builder),
            Provider::Cuda(number) => {
                let cuda = ep::CUDA::default().with_device_id(number).build().error_on_failure();
                Ok(builder.with_execution_providers([cuda])?)
            }
        }
    }

    /// Where this provider's sessions keep tensors that stay between steps.
    ///
    /// # Errors
    /// If the runtime has no allocator for it.
    pub fn allocator(self, session: &Session) -> ort::Result<Allocator> {
        match self {
            Provider::Cpu => Ok(Allocator::default()),
            Provider::Cuda(number) => Allocator::new(
                session,
                MemoryInfo::new(AllocationDevice::CUDA, number, AllocatorType::Device, MemoryType::Default)?,
            ),
        }
    }

    /// The runtime's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Provider::Cpu => ep::CPU::NAME,
            Provider::Cuda(_) => ep::CUDA::NAME,
        }
    }

    /// The device as configurations name it.
    pub fn device(self) -> String {
        match self {
            Provider::Cpu => "cpu".into(),
            Provider::Cuda(number) => format!("cuda:{number}"),
        }
    }
}

fn has_cuda() -> bool {
    ep::CUDA::is_available().unwrap_or(false)
}

/// The providers of the loaded library that this backend knows of.
pub fn offered() -> Vec<&'static str> {
    let has = |available: ort::Result<bool>| available.unwrap_or(false);
    let all = [(ep::CPU::NAME, has(ep::CPU::is_available())), (ep::CUDA::NAME, has(ep::CUDA::is_available()))];
    all.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_and_option_name_one_provider_or_contradict_each_other() {
        let asked = |device, option| Provider::asked(device, option).map_err(|e| e.to_string());
        assert_eq!(asked("cpu", None), Ok(Some(Provider::Cpu)));
        assert_eq!(asked("auto", None), Ok(None));
        assert_eq!(asked("auto", Some("cpu")), Ok(Some(Provider::Cpu)));
        assert_eq!(asked("auto", Some("cuda")), Ok(Some(Provider::Cuda(0))));
        assert_eq!(asked("cuda", None), Ok(Some(Provider::Cuda(0))));
        assert_eq!(asked("cuda:3", Some("cuda")), Ok(Some(Provider::Cuda(3))));
        for (device, option, word) in [
            ("cuda:x", None, "cuda:N"),
            ("tpu", None, "tpu"),
            ("cpu", Some("cuda"), "contradicts"),
            ("cuda:0", Some("cpu"), "contradicts"),
            ("cpu", Some("cuda-graph"), "contradicts"),
            ("cuda:0", Some("cuda-graph"), "graph"),
            ("cpu", Some("rocm"), "known: cpu, cuda, cuda-graph"),
        ] {
            let error = asked(device, option).unwrap_err();
            assert!(error.contains(word), "{device} {option:?}: {error}");
        }
    }
}
