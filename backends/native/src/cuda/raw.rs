//! Device memory and graphs as the driver knows them, without an owner.

use crate::error::Result;

/// Device memory without an owner. In the emulator the address is the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawBuffer {
    /// Where it begins, aligned to 256 bytes at least.
    pub address: u64,
    /// How long it is; never 0.
    pub bytes: usize,
}

/// A recording without an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RawGraph(pub u64);

/// A device as the memory that pools ask for.
pub trait DeviceMemory: Send + Sync {
    /// `bytes` bytes (at least 1) with any contents; the emulator fills them with NaN.
    ///
    /// # Errors
    /// If there is no room.
    fn alloc(&self, bytes: usize) -> Result<RawBuffer>;

    /// Gives memory of [`DeviceMemory::alloc`] back, once what is queued has used it.
    fn free(&self, buffer: RawBuffer);

    /// A buffer of a pool is given out again: its contents mean nothing.
    fn lent(&self, _: RawBuffer) {}

    /// A buffer waits in a pool, a private one or the device's own: nobody may use it but a
    /// recording with memory of the former.
    fn parked(&self, _: RawBuffer, _private: bool) {}
}
