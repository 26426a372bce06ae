//! A caching pool of device memory: buffers that were given back wait for the next request of their
//! size.
//!
//! All work of a device is done in the order of one queue, so what is given back can be given out
//! again at once. A step that asks for the same sizes as the one before it so allocates nothing.
//! What waits counts as taken: with what is in use it stays below the most that ever was in use and
//! a little more (`SLACK`); beyond that the oldest goes back to the device.
//!
//! A pool of its own ([`super::arena::Arena`]) is for work that is recorded once and played again
//! ([`super::graph`]): nobody else gets that memory while the recording lives.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::raw::{DeviceMemory, RawBuffer};
use crate::error::Result;

/// Bytes that may wait beyond the most that was in use at once: what a layer of a large batch works
/// with waits while the head works, and the other way round.
const SLACK: usize = 256 << 20;

/// Memory given back.
#[derive(Debug, Default)]
pub struct Pool {
    state: Mutex<State>,
    private: bool,
}

#[derive(Debug, Default)]
struct State {
    /// Waiting buffers, by when they were given back.
    waiting: BTreeMap<u64, RawBuffer>,
    /// When buffers of a size were given back, the last one last.
    by_size: BTreeMap<usize, Vec<u64>>,
    clock: u64,
    idle: usize,
    in_use: usize,
    most: usize,
    closed: bool,
}

impl State {
    fn take(&mut self, bytes: usize) -> Option<RawBuffer> {
        let at = self.by_size.get_mut(&bytes)?.pop()?;
        let raw = self.waiting.remove(&at)?;
        self.idle -= raw.bytes;
        Some(raw)
    }

    /// The buffer that has waited longest.
    fn oldest(&mut self) -> Option<RawBuffer> {
        let (at, raw) = self.waiting.pop_first()?;
        if let Some(same) = self.by_size.get_mut(&raw.bytes) {
            same.retain(|other| *other != at);
            if same.is_empty() {
                self.by_size.remove(&raw.bytes);
            }
        }
        self.idle -= raw.bytes;
        Some(raw)
    }

    fn lend(&mut self, bytes: usize) {
        self.in_use += bytes;
        self.most = self.most.max(self.in_use);
    }

    fn drain(&mut self) -> Vec<RawBuffer> {
        self.by_size.clear();
        self.idle = 0;
        std::mem::take(&mut self.waiting).into_values().collect()
    }
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pool whose memory nobody else gets.
    pub fn private() -> Self {
        Pool { private: true, ..Pool::default() }
    }

    /// `bytes` bytes with any contents, of what waits or of the device.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn get(&self, gpu: &dyn DeviceMemory, bytes: usize) -> Result<RawBuffer> {
        let mut state = self.state();
        if let Some(raw) = state.take(bytes) {
            state.lend(bytes);
            drop(state);
            gpu.lent(raw);
            return Ok(raw);
        }
        if !self.private {
            let (would, most) = (state.in_use + bytes, state.most.max(state.in_use + bytes));
            while would + state.idle > most + SLACK
                && let Some(raw) = state.oldest()
            {
                gpu.free(raw);
            }
        }
        let raw = match gpu.alloc(bytes) {
            Err(_) if !self.private && state.idle > 0 => {
                state.drain().into_iter().for_each(|raw| gpu.free(raw));
                gpu.alloc(bytes)?
            }
            got => got?,
        };
        state.lend(bytes);
        Ok(raw)
    }

    /// Takes back what [`Pool::get`] gave; returns what is to be freed because nobody will ask here
    /// again.
    pub fn give(&self, gpu: &dyn DeviceMemory, raw: RawBuffer) -> Option<RawBuffer> {
        let mut state = self.state();
        state.in_use -= raw.bytes;
        if state.closed {
            return Some(raw);
        }
        // Before anybody else can get it.
        gpu.parked(raw, self.private);
        let at = state.clock;
        state.clock += 1;
        state.idle += raw.bytes;
        state.waiting.insert(at, raw);
        state.by_size.entry(raw.bytes).or_default().push(at);
        None
    }

    /// Takes out all that waits, to be freed, and forgets how much was once in use.
    pub fn drain(&self) -> Vec<RawBuffer> {
        let mut state = self.state();
        state.most = state.in_use;
        state.drain()
    }

    /// As [`Pool::drain`]; what comes back later is not kept either.
    pub fn close(&self) -> Vec<RawBuffer> {
        self.state().closed = true;
        self.drain()
    }
}

/// The pools of a device: its own, and which one is asked now.
#[derive(Debug, Default)]
pub struct Pools {
    own: Arc<Pool>,
    chosen: Mutex<Option<Arc<Pool>>>,
}

impl Pools {
    /// The one that is asked now.
    pub fn current(&self) -> Arc<Pool> {
        self.chosen().as_ref().unwrap_or(&self.own).clone()
    }
    /// The device's own.
    pub fn own(&self) -> &Pool {
        &self.own
    }
    /// The pool that is asked instead of the device's own, if there is one.
    pub fn chosen(&self) -> MutexGuard<'_, Option<Arc<Pool>>> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
