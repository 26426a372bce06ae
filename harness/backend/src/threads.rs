//! How many threads make sense on this machine.

use std::thread::available_parallelism;

use super::BackendError;

/// Most worker threads of a session: four times this machine's cores, and at least 16. More of them
/// only wait for each other: ten thousand are hours in which nothing seems to happen.
pub fn most_threads() -> usize {
    (4 * cores()).max(16)
}

fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// The worker threads that a session of `asked` threads starts: all cores for 0.
///
/// # Errors
/// More than [`most_threads`].
pub fn worker_threads(asked: usize) -> Result<usize, BackendError> {
    match asked {
        0 => Ok(cores()),
        n if n <= most_threads() => Ok(n),
        n => Err(BackendError::unsupported(format!(
            "{n} threads are more than this machine has a use for: it has {} cores, and at most {} threads are started; 0 is \
             one a core",
            cores(),
            most_threads()
        ))),
    }
}

/// What becomes of `asked` threads, a setting called `name`: no more than [`most_threads`], and
/// what to say where that is fewer. The numbers do not depend on it, so a suite of a larger machine
/// runs here.
pub fn bounded_threads(name: &str, asked: usize) -> (usize, Option<String>) {
    let most = most_threads();
    match asked <= most {
        true => (asked, None),
        false => {
            let cores = cores();
            (most, Some(format!("{name} = {asked}: this machine has {cores} cores, so {most} threads are started")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_bounded_by_the_cores_of_the_machine_and_the_cap_is_said() {
        assert_eq!(worker_threads(0).unwrap(), cores());
        assert_eq!(worker_threads(3).unwrap(), 3);
        let refused = worker_threads(10_000).unwrap_err().to_string();
        assert!(refused.contains("10000 threads") && refused.contains(&most_threads().to_string()), "{refused}");
        assert_eq!(bounded_threads("model.threads", 3), (3, None));
        let (threads, said) = bounded_threads("model.threads", usize::MAX);
        assert_eq!(threads, most_threads());
        assert!(said.unwrap().starts_with("model.threads = "));
    }
}
