//! Memory for large tensors: in large pages where the system has them, and for activations used again instead of given
//! back.
//!
//! A training step makes the same few hundred buffers over and over. Fresh memory of that size costs a page fault for
//! every 4 KiB, which takes as long as a good part of the arithmetic; a buffer that was used before costs nothing.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Idle buffers by capacity. Every element of every one has been initialised.
static IDLE: Mutex<BTreeMap<usize, Vec<Vec<f32>>>> = Mutex::new(BTreeMap::new());

/// Buffers below this many elements are left to the allocator, which is quick with them.
const SMALL: usize = 1 << 12;

/// Memory from this size on asks for large pages.
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
        // SAFETY: the range lies inside `data`; advice changes no contents. That it is refused does no harm.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        // Written once, so that the pages are there: one that is read first and then written costs two faults and
        // makes every other processor flush its table.
        data.fill(0.0);
    }
    data
}

/// A buffer of `n` elements with *any* contents: whoever takes it writes all of it.
pub fn take(n: usize) -> Vec<f32> {
    if n < SMALL {
        return vec![0.0; n];
    }
    let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    // The smallest that is large enough, unless it is so large that another use will want it.
    let fits = idle.range(n..=2 * n).next().map(|(capacity, _)| *capacity);
    if let Some(mut buffer) = fits.and_then(|capacity| pop(&mut idle, capacity)) {
        // SAFETY: all elements up to the capacity were initialised when it was made (below), and `n` is within it.
        unsafe { buffer.set_len(n) };
        return buffer;
    }
    // One that is too small makes room for the new one, so that rows of rising length leave no litter.
    if let Some((&largest, _)) = idle.range(..n).next_back() {
        drop(pop(&mut idle, largest));
    }
    drop(idle);
    // A few sizes in place of very many: up to an eighth more than is asked for.
    let step = (n.next_power_of_two() / 16).max(1);
    let mut buffer = zeroed(n.next_multiple_of(step));
    buffer.truncate(n);
    buffer
}

fn pop(idle: &mut BTreeMap<usize, Vec<Vec<f32>>>, capacity: usize) -> Option<Vec<f32>> {
    let same = idle.get_mut(&capacity)?;
    let buffer = same.pop();
    if same.is_empty() {
        idle.remove(&capacity);
    }
    buffer
}

/// Gives back a buffer that [`take`] made, for its next use.
pub fn give(buffer: Vec<f32>) {
    let capacity = buffer.capacity();
    if capacity >= SMALL {
        IDLE.lock().unwrap_or_else(PoisonError::into_inner).entry(capacity).or_default().push(buffer);
    }
}

/// Gives all idle buffers back to the system.
pub fn clear() {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_the_length_asked_for_and_comes_back() {
        for n in [0, 5, SMALL, SMALL + 1, 100_000] {
            let buffer = take(n);
            assert_eq!(buffer.len(), n);
            assert!(buffer.capacity() >= n);
            give(buffer);
        }
        let mut shorter = take(SMALL + 3);
        shorter.fill(1.0);
        give(shorter);
        assert_eq!(take(99_000).len(), 99_000);
    }
}
