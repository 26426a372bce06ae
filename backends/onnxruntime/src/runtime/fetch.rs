//! Fetching the pinned ONNX Runtime from its Python wheel, through pip, into Karat's cache.
//!
//! The wheel of one fixed Python version is asked for whatever Python runs pip, so the bytes are
//! always the same; the library inside must have the digest written here. Only pip talks to the
//! network, with the user's own settings.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use karat_backend::BackendError;
use karat_system::fsio::{self, PassingFolder};

use super::{cache_root, cuda};

/// The version that is fetched and tested with.
pub const PINNED_VERSION: &str = "1.31.1";

/// A package on PyPI and what is taken from its wheel for one architecture (Rust's name of it;
/// Linux with glibc).
struct Pinned {
    package: &'static str,
    arch: &'static str,
    platform: &'static str,
    /// Files of `onnxruntime/capi` and their SHA-256; the first is the library itself.
    files: &'static [(&'static str, &'static str)],
}

const LIBRARY: &str = "libonnxruntime.so.1.31.1";

const FOR_CPU: [Pinned; 2] = [
    Pinned {
        package: "onnxruntime",
        arch: "x86_64",
        platform: "manylinux_2_28_x86_64",
        files: &[(LIBRARY, "fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3")],
    },
    Pinned {
        package: "onnxruntime",
        arch: "aarch64",
        platform: "manylinux_2_28_aarch64",
        files: &[(LIBRARY, "8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467")],
    },
];

/// For CUDA 13. The wheel has 256 MB, the files 313 MB.
const FOR_CUDA: [Pinned; 1] = [Pinned {
    package: "onnxruntime-gpu",
    arch: "x86_64",
    platform: "manylinux_2_28_x86_64",
    files: &[
        (LIBRARY, "5104254339ecadae808da771bd0b63b240f0dbd466514234905e54372435c303"),
        (cuda::PROVIDER, "8387867e857499e045caff5d13ac6a5de29571c801562fa2dde0e45f1f31de52"),
        ("libonnxruntime_providers_shared.so", "086ec1d5388f64153d9c63470d126693db9a182c8ce236d3a1119068471b8a0d"),
    ],
}];

/// One fetch at a time in a process; between processes the rename decides.
static FETCHING: Mutex<()> = Mutex::new(());

/// Where a fetched library lies: `{cache}/onnxruntime/{version}/libonnxruntime.so.{version}`.
///
/// # Errors
/// If there is no folder to cache in.
pub fn fetched_path() -> Result<PathBuf, BackendError> {
    let folder = cache_root()?.join("onnxruntime").join(PINNED_VERSION);
    Ok(folder.join(LIBRARY))
}

/// The same for the library with CUDA:
/// `{cache}/onnxruntime/{version}-cuda/libonnxruntime.so.{version}`.
///
/// # Errors
/// As [`fetched_path`].
pub fn fetched_cuda_path() -> Result<PathBuf, BackendError> {
    Ok(cache_root()?.join("onnxruntime").join(format!("{PINNED_VERSION}-cuda")).join(LIBRARY))
}

/// Fetches the pinned library unless it is there; returns its path.
///
/// # Errors
/// No wheel is known for this platform, pip is missing or fails (its last words are in the
/// message), or what it brought has another digest. What to do instead is for the caller to say:
/// [`super::REMEDY`].
pub fn fetch_runtime() -> Result<PathBuf, BackendError> {
    fetch(&FOR_CPU, fetched_path()?)
}

/// Fetches the pinned library with CUDA and its provider unless it is there; returns the library's
/// path.
///
/// # Errors
/// As [`fetch_runtime`].
pub fn fetch_cuda_runtime() -> Result<PathBuf, BackendError> {
    fetch(&FOR_CUDA, fetched_cuda_path()?).map_err(|mut error| {
        error.message.push_str("; or set KARAT_ONNXRUNTIME to the path of a library with CUDA");
        error
    })
}

fn fetch(pinned: &[Pinned], target: PathBuf) -> Result<PathBuf, BackendError> {
    let _alone = FETCHING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if target.is_file() {
        return Ok(target);
    }
    let arch = std::env::consts::ARCH;
    let known = pinned.iter().find(|p| p.arch == arch && cfg!(all(target_os = "linux", target_env = "gnu")));
    let Some(Pinned { package, platform, files, .. }) = known else {
        let os = std::env::consts::OS;
        return Err(BackendError::unsupported(format!("no pinned ONNX Runtime for {os} on {arch}")));
    };
    let folder = target.parent().unwrap_or(Path::new("."));
    let disk = |e: std::io::Error| {
        BackendError::failed(format!("could not write the ONNX Runtime library into {}", folder.display())).because(&e)
    };
    let temporary = PassingFolder::beside(folder, "wheel").map_err(disk)?;
    // Python runs in another folder.
    let temporary_path = std::path::absolute(temporary.path()).map_err(disk)?;
    let wheels = temporary_path.join("wheel");
    let package = format!("{package}=={PINNED_VERSION}");
    #[rustfmt::skip]
    python(super::python3()
        .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"])
        .args(["--python-version", "3.12", "--implementation", "cp", "--abi", "cp312", "--platform", platform])
        .arg("--dest").arg(&wheels).arg(&package))?;
    let wheel = std::fs::read_dir(&wheels).map_err(disk)?.filter_map(|e| Some(e.ok()?.path())).next();
    let wheel = wheel.ok_or_else(|| BackendError::failed(format!("pip brought no wheel of {package}")))?;
    let unpacked = temporary_path.join("unpacked");
    python(super::python3().args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked))?;

    let unpacked = unpacked.join("onnxruntime/capi");
    for (name, digest) in *files {
        let found = fsio::sha256_file(&unpacked.join(name))
            .map_err(|e| BackendError::failed(format!("the wheel {} holds no {name}", wheel.display())).because(&e))?;
        if found != *digest {
            return Err(BackendError::failed(format!(
                "{name} in {package} has SHA-256 {found}, {digest} is pinned; nothing was installed. If you trust it, set \
                 KARAT_ONNXRUNTIME to a copy"
            )));
        }
    }
    let ready = PassingFolder::beside(folder, "runtime").map_err(disk)?;
    for (name, _) in *files {
        let from = unpacked.join(name);
        std::fs::File::open(&from).and_then(|file| file.sync_all()).map_err(disk)?;
        std::fs::rename(&from, ready.path().join(name)).map_err(disk)?;
    }
    // Another process may have been faster.
    if !target.is_file() {
        ready.replace(folder).map_err(disk)?;
    }
    Ok(target)
}

/// Runs a Python command; a failure carries the end of what it said.
fn python(command: &mut Command) -> Result<(), BackendError> {
    let fail = |what: String| BackendError::failed(format!("could not fetch ONNX Runtime {PINNED_VERSION}: {what}"));
    let output = command.output().map_err(|e| fail(format!("python3 does not start ({e})")))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let last = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(fail(format!("python3 ended with {}: {}", output.status, last.trim())))
}
