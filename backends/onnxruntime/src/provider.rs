//! Where the operators run: the execution provider.
//!
//! Which one is asked for is decided by the device of the configuration and the option `provider`.
//! A provider that was asked for and is not there is an error: ONNX Runtime's own habit is to fall
//! back to the CPU without a word.
//!
//! # CUDA
//! `cuda` keeps the key-value cache in device memory; ids, masks and logits cross over at each
//! step. `cuda-graph` captures the decode step once for every number of slots and replays it:
//! shapes and addresses must never change, so ids, mask and logits have buffers of their own in
//! device memory and the mask is as wide as the cache ([`crate::static_buffers`]). Prompts and
//! scoring have shapes of all sizes and run uncaptured. The types are f16 and bf16: the attention
//! operator has no f32 kernel there, which quantized weights would need too.
//!
//! Nothing of this was run on a GPU. What was run is the same code over the CPU's memory (option
//! `fixed_buffers`), and every way to fail without a GPU. Untried are: opening a session with the
//! CUDA provider and its kernels' numbers, the allocator of device memory, copies between host and
//! device and views of device memory as targets of copies, the capture and replay of a graph, and
//! that nodes of shapes left on the CPU do not keep a graph from being captured.

use karat_backend::{BackendError, Dtype};
use ort::ep::{self, ExecutionProvider};
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session;
use ort::session::builder::SessionBuilder;

use crate::runtime::{CUDA_REMEDY, Loaded, cuda};

/// An execution provider of the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// The processor.
    Cpu,
    /// A GPU by its number.
    Cuda {
        /// Which one.
        device: i32,
        /// Whether decode steps are captured and replayed.
        graph: bool,
    },
}

/// The names of the option `provider`.
pub const NAMES: [&str; 3] = ["cpu", "cuda", "cuda-graph"];

impl Provider {
    /// The provider that `device` (`cpu`, `cuda`, `cuda:1`, `auto`) and the option `provider` ask
    /// for; `None` leaves it to the library: CUDA where it has it.
    ///
    /// # Errors
    /// A device that is none, a provider that contradicts it, or one that is not implemented.
    pub fn asked(device: &str, option: Option<&str>) -> Result<Option<Provider>, BackendError> {
        let unsupported = |what: String| BackendError::unsupported(format!("the onnxruntime backend {what}"));
        let cuda = |device| Provider::Cuda { device, graph: option == Some("cuda-graph") };
        let by_device = match device.split_once(':') {
            None if device == "auto" => None,
            None if device == "cpu" => Some(Provider::Cpu),
            None if device == "cuda" => Some(cuda(0)),
            Some(("cuda", number)) if number.parse::<u16>().is_ok() => {
                Some(cuda(number.parse::<u16>().map(i32::from).unwrap_or_default()))
            }
            _ => return Err(unsupported(format!("runs on cpu, cuda:N or auto, not on {device:?}"))),
        };
        match (option, by_device) {
            (None, asked) => Ok(asked),
            (Some("cpu"), None | Some(Provider::Cpu)) => Ok(Some(Provider::Cpu)),
            (Some("cuda" | "cuda-graph"), None) => Ok(Some(cuda(0))),
            (Some("cuda" | "cuda-graph"), Some(asked @ Provider::Cuda { .. })) => Ok(Some(asked)),
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
            Some(Provider::Cuda { device, .. }) if !has_cuda() => Err(BackendError::unsupported(format!(
                "cuda:{device} was asked for and {} has no CUDA: it offers {}; {CUDA_REMEDY}",
                loaded.path.display(),
                offered().join(", ")
            ))),
            // It says that it has CUDA; whether what that needs is on this machine is another
            // matter.
            Some(Provider::Cuda { device, .. }) => cuda::ready(&loaded.path).map_err(|mut error| {
                error.message = format!("cuda:{device} was asked for, and {}", error.message);
                error
            }),
            _ => Ok(()),
        }
    }

    /// The provider that will run a model in `dtype`, in Karat's operators where that may be
    /// (`own`).
    ///
    /// # Errors
    /// The one asked for is not there, or cannot compute in `dtype`.
    pub fn settle(asked: Option<Provider>, loaded: &Loaded, dtype: Dtype, own: bool) -> Result<Provider, BackendError> {
        Self::offers(asked, loaded)?;
        match asked {
            Some(Provider::Cuda { .. }) if dtype == Dtype::F32 => Err(BackendError::unsupported(
                "ONNX Runtime has no f32 kernel of GroupQueryAttention on CUDA (quantized weights compute in f32 too); use the \
                 element type f16 or bf16",
            )),
            Some(Provider::Cpu) if dtype == Dtype::Bf16 && !own => Err(no_bf16()),
            Some(provider) => Ok(provider),
            // What has no CUDA kernel runs where it can.
            None if dtype != Dtype::F32 && has_cuda() && cuda::ready(&loaded.path).is_ok() => {
                Ok(Provider::Cuda { device: 0, graph: false })
            }
            None if dtype == Dtype::Bf16 && !own => Err(no_bf16()),
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
            Provider::Cuda { device, graph } => {
                let cuda = ep::CUDA::default().with_device_id(device).with_cuda_graph(graph);
                Ok(builder.with_execution_providers([cuda.build().error_on_failure()])?)
            }
        }
    }

    /// Whether what its sessions keep between steps is memory that the host can read.
    pub fn is_host(self) -> bool {
        self == Provider::Cpu
    }

    /// Whether decode steps are captured.
    pub fn captures(self) -> bool {
        matches!(self, Provider::Cuda { graph: true, .. })
    }

    /// The memory in which this provider's sessions keep tensors that stay between steps.
    ///
    /// # Errors
    /// If the runtime cannot describe it.
    pub fn memory(self) -> ort::Result<MemoryInfo<'static>> {
        let (device, number) = match self {
            Provider::Cpu => (AllocationDevice::CPU, 0),
            Provider::Cuda { device, .. } => (AllocationDevice::CUDA, device),
        };
        MemoryInfo::new(device, number, AllocatorType::Device, MemoryType::Default)
    }

    /// An allocator of that memory.
    ///
    /// # Errors
    /// If the runtime has none.
    pub fn allocator(self, session: &Session) -> ort::Result<Allocator> {
        match self {
            Provider::Cpu => Ok(Allocator::default()),
            Provider::Cuda { .. } => Allocator::new(session, self.memory()?),
        }
    }

    /// The runtime's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Provider::Cpu => ep::CPU::NAME,
            Provider::Cuda { .. } => ep::CUDA::NAME,
        }
    }

    /// The device as configurations name it.
    pub fn device(self) -> String {
        match self {
            Provider::Cpu => "cpu".into(),
            Provider::Cuda { device, .. } => format!("cuda:{device}"),
        }
    }
}

/// bf16 in standard operators where there is no CUDA.
pub fn no_bf16() -> BackendError {
    BackendError::unsupported(
        "the onnxruntime backend cannot compute in bf16 on the CPU in standard operators (ONNX Runtime has no such kernels there); \
         use operators = \"karat\" with the checkpoint, or f32 or f16",
    )
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
        let cuda = |device, graph| Ok(Some(Provider::Cuda { device, graph }));
        assert_eq!(asked("auto", Some("cuda")), cuda(0, false));
        assert_eq!(asked("cuda", None), cuda(0, false));
        assert_eq!(asked("cuda:3", Some("cuda")), cuda(3, false));
        assert_eq!(asked("cuda:1", Some("cuda-graph")), cuda(1, true));
        assert_eq!(asked("auto", Some("cuda-graph")), cuda(0, true));
        for (device, option, word) in [
            ("cuda:x", None, "cuda:N"),
            ("tpu", None, "tpu"),
            ("cpu", Some("cuda"), "contradicts"),
            ("cuda:0", Some("cpu"), "contradicts"),
            ("cpu", Some("cuda-graph"), "contradicts"),
            ("cpu", Some("rocm"), "known: cpu, cuda, cuda-graph"),
        ] {
            let error = asked(device, option).unwrap_err();
            assert!(error.contains(word), "{device} {option:?}: {error}");
        }
    }
}
