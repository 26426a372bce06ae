//! An arena: a private pool for work that is recorded as a graph and played again.

use std::sync::Arc;

use super::device::Gpu;
use super::pool::{Pool, Pools};

/// Gives what waits in the device's own pool back to the device: for the end of a piece of work,
/// and where what comes next wants the memory in other sizes.
pub fn trim(gpu: &dyn Gpu) {
    gpu.pools().own().drain().into_iter().for_each(|raw| gpu.free(raw));
}

/// A pool whose memory nobody else gets as long as it lives.
pub struct Arena {
    gpu: Arc<dyn Gpu>,
    pool: Arc<Pool>,
}

impl Arena {
    /// With nothing in it.
    pub fn new(gpu: &Arc<dyn Gpu>) -> Self {
        Arena { gpu: gpu.clone(), pool: Arc::new(Pool::private()) }
    }

    /// Does `work` with memory of this pool.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Back<'a>(&'a Pools, Option<Arc<Pool>>);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                *self.0.chosen() = self.1.take();
            }
        }
        let pools = self.gpu.pools();
        let before = pools.chosen().replace(self.pool.clone());
        let _back = Back(pools, before);
        work()
    }
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.pool.fmt(f)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.pool.close().into_iter().for_each(|raw| self.gpu.free(raw));
    }
}
