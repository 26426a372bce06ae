//! Fetching the pinned ONNX Runtime from its Python wheel, through pip, into Karat's cache.
//!
//! The wheel of one fixed Python version is asked for whatever Python runs pip, so the bytes are always the same; the
//! library inside must have the digest written here. Only pip talks to the network, with the user's own settings.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use karat::backend::BackendError;
use karat::fsio;

use super::{REMEDY, cache_root};

/// The version that is fetched and tested with.
pub const PINNED_VERSION: &str = "1.31.1";

/// Wheel platform and SHA-256 of `libonnxruntime.so.1.31.1`, by Rust's name of the architecture (Linux with glibc).
const PINNED: [(&str, &str, &str); 2] = [
    ("x86_64", "manylinux_2_28_x86_64", "fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3"),
    ("aarch64", "manylinux_2_28_aarch64", "8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467"),
];

/// One fetch at a time in a process; between processes the rename decides.
static FETCHING: Mutex<()> = Mutex::new(());

/// Where a fetched library lies: `{cache}/onnxruntime/{version}/libonnxruntime.so.{version}`.
///
/// # Errors
/// If there is no folder to cache in.
pub fn fetched_path() -> Result<PathBuf, BackendError> {
    let folder = cache_root()?.join("onnxruntime").join(PINNED_VERSION);
    Ok(folder.join(format!("libonnxruntime.so.{PINNED_VERSION}")))
}

/// Fetches the pinned library unless it is there; returns its path.
///
/// # Errors
/// No wheel is known for this platform, pip is missing or fails (its last words are in the message), or what it brought
/// has another digest.
pub fn fetch_runtime() -> Result<PathBuf, BackendError> {
    let _alone = FETCHING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let target = fetched_path()?;
    if target.is_file() {
        return Ok(target);
    }
    let arch = std::env::consts::ARCH;
    let known = PINNED.iter().find(|(name, ..)| *name == arch && cfg!(all(target_os = "linux", target_env = "gnu")));
    let Some((_, platform, digest)) = known else {
        let os = std::env::consts::OS;
        return Err(BackendError::unsupported(format!("no pinned ONNX Runtime for {os} on {arch}; {REMEDY}")));
    };
    let folder = target.parent().unwrap_or(Path::new("."));
    let disk = |e: std::io::Error| {
        BackendError::failed(format!("could not write the ONNX Runtime library into {}", folder.display())).because(&e)
    };
    std::fs::create_dir_all(folder).map_err(disk)?;
    let temporary = tempfile::Builder::new().prefix(".fetch-").tempdir_in(folder).map_err(disk)?;
    let wheels = temporary.path().join("wheel");
    let package = format!("onnxruntime=={PINNED_VERSION}");
    #[rustfmt::skip]
    python(Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"])
        .args(["--python-version", "3.12", "--implementation", "cp", "--abi", "cp312", "--platform", platform])
        .arg("--dest").arg(&wheels).arg(&package))?;
    let wheel = std::fs::read_dir(&wheels).map_err(disk)?.filter_map(|e| Some(e.ok()?.path())).next();
    let wheel = wheel.ok_or_else(|| BackendError::failed(format!("pip brought no wheel of {package}; {REMEDY}")))?;
    let unpacked = temporary.path().join("unpacked");
    python(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked))?;

    let library = unpacked.join("onnxruntime/capi").join(format!("libonnxruntime.so.{PINNED_VERSION}"));
    let found = fsio::sha256_file(&library)
        .map_err(|e| BackendError::failed(format!("the wheel {} holds no library", wheel.display())).because(&e))?;
    if found != *digest {
        return Err(BackendError::failed(format!(
            "the library in {package} has SHA-256 {found}, {digest} is pinned; it was not installed. If you trust it, \
             set KARAT_ONNXRUNTIME to a copy"
        )));
    }
    std::fs::File::open(&library).and_then(|file| file.sync_all()).map_err(disk)?;
    std::fs::rename(&library, &target).map_err(disk)?;
    Ok(target)
}

/// Runs a Python command; a failure carries the end of what it said.
fn python(command: &mut Command) -> Result<(), BackendError> {
    let fail =
        |what: String| BackendError::failed(format!("could not fetch ONNX Runtime {PINNED_VERSION}: {what}; {REMEDY}"));
    let output = command.output().map_err(|e| fail(format!("python3 does not start ({e})")))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let last = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(fail(format!("python3 ended with {}: {}", output.status, last.trim())))
}
