//! CUDA graphs: work that is recorded once and replayed in a single launch. A step of hundreds of
//! short launches needs it, because a launch costs the host a few microseconds and a graph of them
//! hardly more than one.
//!
//! A recording holds addresses. So what it works on must stay where it is as long as it lives:
//! inputs that change are written to the same places, and memory that comes and goes within it is
//! of an [`super::arena::Arena`] of its own. While recording, nothing is done, and whatever could
//! not be played again is refused: allocation, copies from and to the host, waiting.

use std::fmt;
use std::sync::Arc;

use super::device::Gpu;
use super::raw::RawGraph;
use crate::error::Result;

/// A recording.
pub struct CudaGraph {
    gpu: Arc<dyn Gpu>,
    raw: RawGraph,
}

impl CudaGraph {
    /// Records what `work` queues, which is not done. The same work must have been done once
    /// before, with the same sizes: a device loads kernels at their first launch, which it may
    /// refuse to do here.
    ///
    /// # Errors
    /// Of `work`; or if the device refuses to record it.
    pub fn record(gpu: &Arc<dyn Gpu>, work: impl FnOnce() -> Result<()>) -> Result<Self> {
        gpu.begin_graph()?;
        let done = work();
        let raw = gpu.end_graph();
        match done {
            Ok(()) => Ok(CudaGraph { gpu: gpu.clone(), raw: raw? }),
            Err(e) => {
                if let Ok(raw) = raw {
                    gpu.drop_graph(raw);
                }
                Err(e)
            }
        }
    }

    /// Queues all of it.
    ///
    /// # Errors
    /// If the device refuses; a fault while it runs shows at the next wait.
    pub fn play(&self) -> Result<()> {
        self.gpu.play_graph(self.raw)
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        self.gpu.drop_graph(self.raw);
    }
}

impl fmt::Debug for CudaGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {}", self.raw, self.gpu.facts().name)
    }
}
