//! A library is tried in a process of its own before it is loaded into this one.
//!
//! A library's constructors run while the system's loader holds its lock: one that hangs there
//! takes every later load with it, and even the end of the process, and one that crashes takes the
//! process. So the loader of another process, which does nothing else, goes first. That costs some
//! ten milliseconds.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Programs that end at once.
const NOTHING: [&str; 2] = ["/bin/true", "/usr/bin/true"];

/// Loads the library at `path` in a process that ends at once.
///
/// Only what is sure is an error; where this system has no way to try, or the library is refused in
/// an orderly way, the load itself will tell.
///
/// # Errors
/// It did not come back within `limit`, or it ended the process.
pub fn survives(path: &Path, limit: Duration) -> Result<(), String> {
    let Some(program) = NOTHING.iter().find(|program| Path::new(program).is_file()) else { return Ok(()) };
    // The variable separates paths by these; such a path is not tried.
    let text = path.to_string_lossy();
    if !cfg!(target_os = "linux") || text.contains([' ', ':']) {
        return Ok(());
    }
    let mut command = Command::new(program);
    command.env("LD_PRELOAD", path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return Ok(()) };
    match ended(&mut child, limit) {
        None => {
            let _ = child.kill();
            let _ = child.wait();
            Err(format!("loading it did not end within {} s ({LIMIT} sets the limit)", limit.as_secs_f32()))
        }
        Some(status) => match status.signal() {
            Some(signal) => Err(format!("loading it crashes: a process that tried ended with signal {signal}")),
            None => Ok(()),
        },
    }
}

/// The variable that sets how long a library may take to load, in seconds.
pub const LIMIT: &str = "KARAT_ONNXRUNTIME_SECONDS";

/// How long a library may take to load: generous, for a cold file on a slow disk.
pub fn limit() -> Duration {
    let given = std::env::var(LIMIT).ok().and_then(|text| text.parse::<f64>().ok());
    Duration::from_secs_f64(given.filter(|s| s.is_finite() && *s > 0.0).unwrap_or(30.0).min(1e6))
}

fn ended(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let began = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if began.elapsed() < limit => std::thread::sleep(Duration::from_millis(2)),
            _ => return None,
        }
    }
}
