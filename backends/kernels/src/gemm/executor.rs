//! The executor of a GEMM's tasks: a rayon pool, the calling thread, or a runtime's own threads.

use std::cell::Cell;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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
                let (next, at_work) = (AtomicUsize::new(0), AtomicUsize::new(0));
                let threads = rayon::current_num_threads().min(count);
                let caller = rayon::current_thread_index();
                (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
                    at_work.fetch_add(1, Ordering::Relaxed);
                    loop {
                        match next.fetch_add(1, Ordering::Relaxed) {
                            number if number < count => task(number),
                            _ => break,
                        }
                    }
                    at_work.fetch_sub(1, Ordering::Relaxed);
                    match rayon::current_thread_index() == caller {
                        true => await_others(&at_work),
                        false => linger(),
                    }
                });
            }
        }
    }
}

/// How long a thread waits, or looks for more to do, before it may give up its processor.
const PATIENCE: Duration = Duration::from_micros(200);

/// Waits for the others' last tasks, which are about to end: the pool's own way of waiting offers
/// the processor to other processes at once, and gets it back when these are done with it.
fn await_others(at_work: &AtomicUsize) {
    let started = Instant::now();
    while at_work.load(Ordering::Relaxed) > 0 && started.elapsed() < PATIENCE {
        spin_loop();
    }
    // What is left between an end and its notice.
    (0..20).for_each(|_| spin_loop());
}

thread_local! {
    /// Whether this thread lingers: what it does meanwhile need not ask for it again.
    static LINGERS: Cell<bool> = const { Cell::new(false) };
}

/// Keeps this thread awake for a while: one product follows the other, and to wake a thread takes
/// longer than a part of a small one. What there is to be done meanwhile it does at once.
fn linger() {
    let me = rayon::current_thread_index();
    if me.is_none() || LINGERS.get() {
        return;
    }
    // Not in this task: whoever waits for it is not to wait for longer.
    rayon::spawn(move || {
        if rayon::current_thread_index() != me {
            return;
        }
        LINGERS.set(true);
        let mut last = Instant::now();
        while last.elapsed() < PATIENCE {
            match rayon::yield_now() {
                Some(rayon::Yield::Executed) => last = Instant::now(),
                _ => spin_loop(),
            }
        }
        LINGERS.set(false);
    });
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
