//! Software prefetch of the next panel: a weight comes from main memory each time it is used, and a
//! processor that waits for it computes nothing.
#![allow(unsafe_code)]

use std::ops::Range;

use super::matrix::Mat;
use crate::memory::mmap::Elements;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Rows of a matrix that are read soon, those asked for so far taken off.
pub struct Prefetcher {
    /// Where the next run of cache lines starts.
    run: *const u8,
    /// Bytes from the start of one run to that of the next.
    stride: usize,
    /// Runs that are left, this one among them.
    runs: usize,
    /// Cache lines of a run.
    lines: usize,
    /// Lines of this run that were asked for.
    done: usize,
}

impl Prefetcher {
    /// Nothing.
    pub fn nothing() -> Self {
        Prefetcher { run: std::ptr::null(), stride: 0, runs: 0, lines: 0, done: 0 }
    }

    /// Some rows and columns of `m`, whose rows or columns lie without gaps inside; nothing of
    /// another matrix.
    pub fn of(m: &Mat<'_>, rows: Range<usize>, cols: Range<usize>) -> Self {
        let (data, size) = match m.data {
            Elements::F32(x) => (x.as_ptr().cast::<u8>(), 4),
            Elements::Bf16(x) => (x.as_ptr().cast(), 2),
            Elements::F16(x) => (x.as_ptr().cast(), 2),
        };
        let first = data.wrapping_add((rows.start * m.row_stride + cols.start) * size);
        let (runs, along, stride) = match (m.row_stride, m.col_stride) {
            (stride, 1) => (rows.len(), cols.len(), stride),
            (1, stride) => (cols.len(), rows.len(), stride),
            _ => return Self::nothing(),
        };
        if runs == 0 || along == 0 {
            return Self::nothing();
        }
        // The first run's place in its cache line stands for that of all.
        let offset = first as usize % LINE;
        let lines = (offset + along * size).div_ceil(LINE);
        Prefetcher { run: first.wrapping_sub(offset), stride: stride * size, runs, lines, done: 0 }
    }

    /// Cache lines that are left.
    pub fn lines(&self) -> usize {
        self.runs * self.lines - self.done
    }

    /// Asks for the next `count` lines, as far as there are any.
    #[inline(always)]
    pub fn fetch(&mut self, count: usize) {
        for _ in 0..count {
            if self.runs == 0 {
                return;
            }
            prefetch(self.run.wrapping_add(self.done * LINE));
            self.done += 1;
            if self.done == self.lines {
                (self.run, self.runs, self.done) = (self.run.wrapping_add(self.stride), self.runs - 1, 0);
            }
        }
    }
}

/// Asks for the cache line of an address, which need not be one of this process; nothing happens
/// where that cannot be.
#[inline(always)]
pub fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch touches no memory that the program can see and never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// [`prefetch`] of what is written soon: the line comes as this core's own.
#[inline(always)]
pub fn prefetch_to_write(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above. The intrinsic makes a read of it, unless a feature says that there is such
    // an instruction; it does nothing where there is none.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) address, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
