//! The worker threads of a session.

use karat_backend::{BackendError, worker_threads};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// A pool of `asked` threads (0: one a core), called `karat-{backend}-0` and so on.
///
/// # Errors
/// As [`worker_threads`]; if the system starts no more.
pub fn thread_pool(backend: &'static str, asked: usize) -> Result<ThreadPool, BackendError> {
    let threads = worker_threads(asked)?;
    let pool =
        ThreadPoolBuilder::new().num_threads(threads).thread_name(move |i| format!("karat-{backend}-{i}")).build();
    pool.map_err(|e| BackendError::failed(format!("could not start {threads} threads")).because(&e))
}
