//! Scratch memory of each thread, for panels that are packed and read at once.

use std::cell::RefCell;

use super::tile::LANES;
use crate::memory::arena::CacheLine;

thread_local! {
    static LINES: RefCell<Vec<CacheLine>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of this thread's own with room for so many units, of any contents.
pub(super) fn with_lines(units: usize, f: impl FnOnce(&mut [u32])) {
    LINES.with_borrow_mut(|lines| {
        if lines.len() * LANES < units {
            lines.resize(units.div_ceil(LANES), CacheLine([0; LANES]));
        }
        f(bytemuck::cast_slice_mut(lines));
    });
}
