//! An arena for activations and gradients, in huge pages where the system has them.
//!
//! A training step makes the same few hundred buffers over and over. Fresh memory of that size
//! costs a page fault for every 4 KiB, which takes as long as a good part of the arithmetic; memory
//! that was used before costs nothing. So all buffers lie in one stretch of addresses, reserved
//! once and never moved, of which only what was ever in use takes memory: a buffer of any size goes
//! where others were before (`free_list`), and the most that a run takes is the most that it has in
//! use at once.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::free_list::FreeList;

/// Elements of a unit that [`FreeList`] counts in: a page of the system.
const UNIT: usize = 1 << 10;

/// Buffers below this many elements are left to the allocator, which is quick with them.
const SMALL: usize = 1 << 12;

/// A cache line. What vectors and tiles read begins with one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct CacheLine(pub(crate) [u32; 16]);

// SAFETY: 64 bytes of integers, without padding, valid in every pattern.
unsafe impl bytemuck::Zeroable for CacheLine {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for CacheLine {}

/// Memory from this many bytes on asks for large pages.
const LARGE: usize = 1 << 20;

/// `n` zeros.
pub fn zeroed(n: usize) -> Vec<f32> {
    #[allow(unused_mut, reason = "written to where pages are made")]
    let mut data = vec![0.0f32; n];
    #[cfg(target_os = "linux")]
    if n * 4 >= LARGE {
        const PAGE: usize = 4096;
        let start = (data.as_ptr() as usize).next_multiple_of(PAGE);
        let end = (data.as_ptr() as usize + n * 4) / PAGE * PAGE;
        // SAFETY: the range lies inside `data`; advice changes no contents. That it is refused does
        // no harm.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        // Written once, so that the pages are there: one that is read first and then written costs
        // two faults and makes every other processor flush its table.
        data.fill(0.0);
    }
    data
}

/// Numbers that are lent for a while; dropped, their memory serves the next.
pub struct Buffer(Held);

enum Held {
    /// Below [`SMALL`]: so many numbers of these.
    Small(Vec<CacheLine>, usize),
    /// Where there is no stretch of addresses.
    Heap(Vec<f32>),
    /// `len` elements from `start`, which is unit `at` of the reservation.
    Lent { start: NonNull<f32>, len: usize, at: usize },
}

// SAFETY: the elements of a lent buffer belong to it alone until it is dropped; nothing in it is
// bound to a thread.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared, it is only read.
unsafe impl Sync for Buffer {}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match &self.0 {
            Held::Small(lines, len) => &bytemuck::cast_slice(lines)[..*len],
            Held::Heap(data) => data,
            // SAFETY: `lend` took these units for this buffer alone and made them accessible; fresh
            // pages are zeros and used ones hold what was written, so every element is initialised.
            Held::Lent { start, len, .. } => unsafe { std::slice::from_raw_parts(start.as_ptr(), *len) },
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &mut self.0 {
            Held::Small(lines, len) => &mut bytemuck::cast_slice_mut(lines)[..*len],
            Held::Heap(data) => data,
            // SAFETY: as for reading; `&mut self` makes this the only access.
            Held::Lent { start, len, .. } => unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), *len) },
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let (Held::Lent { len, at, .. }, Some(mut reservation)) = (&self.0, reservation()) {
            reservation.free.give(*at, len.div_ceil(UNIT));
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} numbers", self.len())
    }
}

/// A buffer of `n` elements with *any* contents, for what is soon gone: whoever takes it writes all
/// of it.
pub fn alloc(n: usize) -> Buffer {
    lend(n, FreeList::take_low)
}

/// A buffer of `n` elements with *any* contents, for what outlives the activations around it:
/// gradients.
pub fn alloc_gradient(n: usize) -> Buffer {
    lend(n, FreeList::take_high)
}

fn lend(n: usize, place: fn(&mut FreeList, usize) -> Option<usize>) -> Buffer {
    if n < SMALL {
        return Buffer(Held::Small(vec![CacheLine([0; 16]); n.div_ceil(16)], n));
    }
    let units = n.div_ceil(UNIT);
    if let Some(mut reservation) = reservation()
        && let Some(at) = place(&mut reservation.free, units)
    {
        match reservation.open(at + units) {
            true => return Buffer(Held::Lent { start: reservation.address(at), len: n, at }),
            false => reservation.free.give(at, units),
        }
    }
    Buffer(Held::Heap(zeroed(n)))
}

/// Gives what is not in use back to the system.
pub fn clear() {
    if let Some(mut reservation) = reservation() {
        reservation.clear();
    }
}

/// Says how many bytes will be in use at once at most, as far as is known: what lasts is then put
/// at their end from the start. No memory is taken for that.
pub fn expect(bytes: usize) {
    if let Some(mut reservation) = reservation() {
        reservation.free.expect(bytes.div_ceil(UNIT * size_of::<f32>()));
    }
}

/// Reserved addresses, of which a part from their start on is memory.
struct Reservation {
    start: NonNull<f32>,
    /// Units that may be read and written.
    open: usize,
    free: FreeList,
}

// SAFETY: the addresses are the process's; nothing about them is bound to a thread.
unsafe impl Send for Reservation {}

fn reservation() -> Option<MutexGuard<'static, Reservation>> {
    static RESERVATION: OnceLock<Option<Mutex<Reservation>>> = OnceLock::new();
    let reservation = RESERVATION.get_or_init(|| Reservation::reserve().map(Mutex::new));
    reservation.as_ref().map(|s| s.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Reservation {
    /// Where unit `at` starts.
    fn address(&self, at: usize) -> NonNull<f32> {
        // SAFETY: `FreeList` hands out units below its limit alone, and all of these lie inside the
        // reservation.
        unsafe { self.start.add(at * UNIT) }
    }

    #[cfg(not(unix))]
    fn reserve() -> Option<Self> {
        None
    }

    /// Addresses for twice the machine's memory, or for as much of that as the system allows;
    /// `None` where that is next to nothing.
    #[cfg(unix)]
    fn reserve() -> Option<Self> {
        const LEAST: usize = 1 << 28;
        // SAFETY: asks for two numbers.
        let (pages, page) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
        let memory = usize::try_from(pages).ok()?.checked_mul(usize::try_from(page).ok()?)?;
        let mut bytes = memory.saturating_mul(2).min(isize::MAX as usize / 2).next_multiple_of(UNIT * 4);
        while bytes >= LEAST {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            // SAFETY: a new mapping at an address of the system's choice; without access it takes
            // no memory.
            let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
            if start != libc::MAP_FAILED {
                let start = NonNull::new(start.cast::<f32>())?;
                return Some(Reservation { start, open: 0, free: FreeList::new(bytes / (UNIT * 4)) });
            }
            bytes = (bytes / 2).next_multiple_of(UNIT * 4);
        }
        None
    }

    #[cfg(not(unix))]
    fn open(&mut self, units: usize) -> bool {
        units <= self.open
    }

    /// Makes the first `units` memory that can be read and written; whether the system has let it.
    #[cfg(unix)]
    fn open(&mut self, units: usize) -> bool {
        /// Units that are opened at once: 64 MiB.
        const STEP: usize = (64 << 20) / (UNIT * 4);
        if units <= self.open {
            return true;
        }
        let more = (units - self.open).next_multiple_of(STEP).min(self.free.limit() - self.open);
        let (start, bytes) = (self.address(self.open).as_ptr().cast(), more * UNIT * 4);
        // SAFETY: the range lies inside the reservation, and nothing in it was lent yet.
        if unsafe { libc::mprotect(start, bytes, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
            return false;
        }
        #[cfg(target_os = "linux")]
        // SAFETY: advice changes no contents. That it is refused does no harm.
        unsafe {
            libc::madvise(start, bytes, libc::MADV_HUGEPAGE)
        };
        self.open += more;
        true
    }

    fn clear(&mut self) {
        for (at, units) in self.free.trim() {
            self.give_back(at, units.min(self.open.saturating_sub(at)));
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn give_back(&self, _: usize, _: usize) {}

    /// Lets the system have the memory of units that are open and free.
    #[cfg(target_os = "linux")]
    fn give_back(&self, at: usize, units: usize) {
        // SAFETY: nobody holds these units, and they are of this private mapping: they read as
        // zeros from now on.
        unsafe { libc::madvise(self.address(at).as_ptr().cast(), units * UNIT * 4, libc::MADV_DONTNEED) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_the_length_asked_for_and_its_memory_serves_again() {
        for n in [0, 5, SMALL - 1, SMALL, SMALL + 1, 100_000] {
            for alloc in [alloc, alloc_gradient] {
                let mut buffer = alloc(n);
                assert_eq!(buffer.len(), n);
                buffer.fill(1.5);
                assert!(buffer.iter().all(|x| *x == 1.5));
            }
        }
    }

    #[test]
    #[cfg(unix)]
    fn a_buffer_of_any_size_begins_a_cache_line() {
        let held: Vec<Buffer> = [1, 5, 16, 100, SMALL - 1, SMALL, 3 * SMALL + 1].into_iter().map(alloc).collect();
        assert!(held.iter().all(|buffer| (buffer.as_ptr() as usize).is_multiple_of(64)));
    }

    #[test]
    fn buffers_in_use_at_once_share_nothing_on_any_threads() {
        let threads: Vec<_> = (0..4u32)
            .map(|thread| {
                std::thread::spawn(move || {
                    let mut held: Vec<(Buffer, f32)> = Vec::new();
                    for i in 0..300u32 {
                        let mark = (thread * 1000 + i) as f32;
                        let n = 3000 + (i as usize * 7919) % 60_000;
                        let mut buffer = if i % 3 == 0 { alloc_gradient(n) } else { alloc(n) };
                        buffer.fill(mark);
                        held.push((buffer, mark));
                        if held.len() > 8 {
                            let (buffer, mark) = held.swap_remove(i as usize % 8);
                            assert!(buffer.iter().all(|x| *x == mark));
                        }
                        if i % 100 == 50 {
                            clear();
                        }
                    }
                    assert!(held.iter().all(|(buffer, mark)| buffer.iter().all(|x| x == mark)));
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
    }
}
