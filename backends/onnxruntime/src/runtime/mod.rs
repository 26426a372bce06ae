//! The ONNX Runtime library: found, checked and loaded once a process.
//!
//! Nothing is linked; the library is looked for where people put it, in this order: the option
//! `library`, the environment variables `KARAT_ONNXRUNTIME` and `ORT_DYLIB_PATH`, Karat's cache,
//! the Python that `python3` starts. What the user named must work; what was merely come across may
//! be passed over, and the error lists every place with its reason. One that hangs or crashes while
//! it is loaded is found out before it can take this process with it ([`LOAD_LIMIT`]). If nothing
//! serves, the pinned version is fetched from its Python wheel ([`fetch_runtime`]).

pub mod cuda;
mod fetch;
mod probe;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError};

use karat_backend::BackendError;
use ort::LoadDynamicError;
use ort::environment::Environment;

pub use fetch::{PINNED_VERSION, fetch_cuda_runtime, fetch_runtime, fetched_cuda_path, fetched_path};
pub use probe::LIMIT as LOAD_LIMIT;

/// The remedy for a missing library.
pub const REMEDY: &str =
    "run `python3 -m pip install onnxruntime==1.31.1` (or set KARAT_ONNXRUNTIME to the library's path)";

/// The remedy for a missing CUDA provider.
pub const CUDA_REMEDY: &str = "run `cargo karat doctor --fix --device cuda` (fetches the library for CUDA 13: 256 MB)";

/// The library in use: it cannot be unloaded or exchanged within a process.
#[derive(Clone)]
pub struct Loaded {
    /// Needed to make sessions.
    pub environment: Environment,
    /// Where the library lies.
    pub path: PathBuf,
}

/// The version of the loaded library by its file's name (`libonnxruntime.so.1.31.1`, as wheels and
/// distributions have it); else what it says of its build.
pub fn version(loaded: &Loaded) -> String {
    let real = loaded.path.canonicalize().unwrap_or_else(|_| loaded.path.clone());
    let name = real.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    match name.split_once(".so.") {
        Some((_, version)) if version.contains('.') => version.to_string(),
        _ => format!("({})", ort::info()),
    }
}

static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

/// The folder Karat caches in: `$KARAT_CACHE`, `$XDG_CACHE_HOME/karat` or `~/.cache/karat`.
///
/// # Errors
/// If none of these variables is set.
pub fn cache_root() -> Result<PathBuf, BackendError> {
    karat_system::cache_root().map_err(|e| BackendError::failed(e.to_string()))
}

/// Loads the library, or returns the one already loaded; `on_cuda` looks for one with CUDA first.
///
/// # Errors
/// No library found (and none fetched, or fetching not allowed); one that was named is broken, too
/// old or not the one already loaded.
pub fn load(library: Option<&Path>, may_fetch: bool, on_cuda: bool) -> Result<Loaded, BackendError> {
    let mut loaded = LOADED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(loaded) = loaded.as_ref() {
        return match library {
            Some(other) if !same_file(other, &loaded.path) => Err(BackendError::failed(format!(
                "the option library names {}, but this process has already loaded {}; use one library a process",
                other.display(),
                loaded.path.display()
            ))),
            _ => Ok(loaded.clone()),
        };
    }
    let found = find_and_load(library, may_fetch, on_cuda)?;
    *loaded = Some(found.clone());
    Ok(found)
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

fn find_and_load(library: Option<&Path>, may_fetch: bool, on_cuda: bool) -> Result<Loaded, BackendError> {
    let variable = |name: &'static str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(|path| (format!("the variable {name}"), PathBuf::from(path)))
    };
    let named = library
        .map(|path| ("the option library".to_string(), path.to_path_buf()))
        .or_else(|| variable("KARAT_ONNXRUNTIME"))
        .or_else(|| variable("ORT_DYLIB_PATH"));
    if let Some((by, path)) = named {
        return try_load(&path).map_err(|reason| {
            BackendError::failed(format!("the ONNX Runtime library named by {by}: {reason}; {REMEDY}"))
        });
    }
    let mut trace = Vec::new();
    let candidates = match on_cuda {
        // Without CUDA it may serve for nothing but to say what is missing.
        true => [Some(fetched_cuda_path()?), in_python(), Some(fetched_path()?)],
        false => [Some(fetched_path()?), in_python(), None],
    };
    for candidate in candidates.into_iter().flatten() {
        match try_load(&candidate) {
            Ok(loaded) => return Ok(loaded),
            Err(reason) => trace.push(reason),
        }
    }
    if on_cuda {
        let mut error = BackendError::failed(format!("no usable ONNX Runtime library with CUDA; {CUDA_REMEDY}"));
        error.causes = trace;
        return Err(error);
    }
    if may_fetch {
        match fetch_runtime() {
            Ok(path) => return try_load(&path).map_err(BackendError::failed),
            Err(error) => trace.push(error.to_string()),
        }
    } else {
        trace.push("fetching is switched off (option fetch_runtime)".into());
    }
    let mut error = BackendError::failed(format!("no usable ONNX Runtime library; {REMEDY}"));
    error.causes = trace;
    Err(error)
}

/// `python3`, which must not take a package from the folder where a command was typed: `-c` and
/// `-m` look there first, and a folder called `onnxruntime` or `pip` in somebody's data would be
/// code that runs here.
fn python3() -> Command {
    let mut python = Command::new("python3");
    python.current_dir("/").env("PYTHONSAFEPATH", "1");
    python
}

/// The library inside the `onnxruntime` package of the Python that `python3` starts, if there is
/// one.
fn in_python() -> Option<PathBuf> {
    // Finding the package does not import it: that would cost a second and could fail.
    let program = "import importlib.util as u; s = u.find_spec('onnxruntime'); \
                   print(s.submodule_search_locations[0] if s else '')";
    let output = python3().args(["-c", program]).output().ok()?;
    let package = String::from_utf8(output.stdout).ok()?;
    if package.trim().is_empty() {
        return None;
    }
    let entries = std::fs::read_dir(Path::new(package.trim()).join("capi")).ok()?;
    let mut libraries: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("libonnxruntime.")))
        .collect();
    libraries.sort();
    libraries.pop()
}

fn try_load(path: &Path) -> Result<Loaded, String> {
    let place = path.display();
    if !path.is_file() {
        return Err(format!("{place}: there is no such file"));
    }
    let limit = probe::limit();
    let absolute = path.canonicalize().map_err(|e| format!("{place}: {e}"))?;
    probe::survives(&absolute, limit).map_err(|what| format!("{place}: {what}"))?;
    // Its constructors have come back once; what it does when it is first asked may still hang, so
    // another thread asks.
    let (sender, receiver) = mpsc::channel();
    let given = path.to_path_buf();
    std::thread::spawn(move || sender.send(load_here(&given)));
    match receiver.recv_timeout(limit) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(format!(
            "{place}: it was loaded, but did not answer within {} s ({LOAD_LIMIT} sets the limit)",
            limit.as_secs_f32()
        )),
        Err(RecvTimeoutError::Disconnected) => Err(format!("{place}: the thread that loaded it ended without a word")),
    }
}

fn load_here(path: &Path) -> Result<Loaded, String> {
    let place = path.display();
    // The binding asserts what it expects of a library; a library that breaks an assertion must not
    // end the process.
    let built = catch_unwind(AssertUnwindSafe(|| {
        let builder = ort::init_from(path).map_err(|error| match error {
            LoadDynamicError::BadVersion { version_str, .. } => format!(
                "{place}: it is ONNX Runtime {version_str}, 1.{} or newer is needed (tested with {PINNED_VERSION})",
                ort::MINOR_VERSION
            ),
            other => format!("{place}: {other}"),
        })?;
        let environment =
            builder.with_name("karat").with_telemetry(false).build().map_err(|e| format!("{place}: {e}"))?;
        environment.set_log_level(ort::logging::LogLevel::Error);
        Ok(environment)
    }));
    match built {
        Ok(Ok(environment)) => Ok(Loaded { environment, path: path.to_path_buf() }),
        Ok(Err(reason)) => Err(reason),
        Err(_) => Err(format!("{place}: it does not behave like ONNX Runtime")),
    }
}
