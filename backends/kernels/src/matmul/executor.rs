//! Who carries out the tasks of a product.

use rayon::prelude::*;

use super::Threads;

/// Runs independent tasks on whatever threads it has. Which thread takes which task, and when, decides no bits.
pub trait Executor {
    /// Calls `task` with every number below `count` once, and returns when all calls have.
    fn each(&self, count: usize, task: &(dyn Fn(usize) + Sync));
}

impl Executor for Threads {
    fn each(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        match self {
            Threads::One => (0..count).for_each(task),
            Threads::Pool => (0..count).into_par_iter().with_max_len(1).for_each(task),
        }
    }
}
