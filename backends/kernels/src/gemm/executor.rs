//! The executor of a GEMM's tasks: a rayon pool, the calling thread, or a runtime's own threads.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

/// Runs independent tasks on whatever threads it has. Which thread takes which task, and when,
/// decides no bits.
pub trait Executor {
    /// Calls `task` with every number below `count` once, and returns when all calls have.
    fn each(&self, count: usize, task: &(dyn Fn(usize) + Sync));
}

impl Executor for Threads {
    fn each(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        match self {
            Threads::One => (0..count).for_each(task),
            Threads::Pool if count == 1 => task(0),
            // Each takes the next one: nobody waits for longer than a task.
            Threads::Pool => {
                let next = AtomicUsize::new(0);
                let threads = rayon::current_num_threads().min(count);
                (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
                    loop {
                        match next.fetch_add(1, Ordering::Relaxed) {
                            number if number < count => task(number),
                            _ => break,
                        }
                    }
                });
            }
        }
    }
}

/// Whether a product may use the threads of the current rayon pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread alone: for gemms inside a parallel loop.
    One,
    /// All of the pool.
    Pool,
}

/// A product is cut in so many tasks at least, if it is large enough; more threads than that find
/// nothing to do.
pub(super) const TASKS: usize = 16;
/// Rows of a task at least: packing a panel is paid by so many.
pub(super) const ROWS: usize = 96;
