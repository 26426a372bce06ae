//! Dependencies of ONNX Runtime's CUDA provider: the driver and some libraries of the CUDA toolkit.
//!
//! The provider is a library of its own beside the runtime's, loaded when a session first asks for
//! it; what that needs and does not find is told one at a time, by the system's loader, in the
//! middle of a longer message. So everything is loaded here first, from where the system looks and
//! from NVIDIA's Python packages, and what is missing is named at once.

use std::path::{Path, PathBuf};

use karat_backend::BackendError;

use super::CUDA_REMEDY;

/// The library of the provider.
pub const PROVIDER: &str = "libonnxruntime_providers_cuda.so";

/// Libraries that the pinned provider is linked to, each after those that it needs itself, and
/// where they come from.
const NEEDED: [(&str, &str); 5] = [
    ("libcuda.so.1", "the NVIDIA driver, 580 or newer"),
    ("libcudart.so.13", "the package nvidia-cuda-runtime"),
    ("libcublasLt.so.13", "the package nvidia-cublas"),
    ("libcublas.so.13", "the package nvidia-cublas"),
    ("libcurand.so.10", "the package nvidia-curand"),
];

/// Loads what the CUDA provider beside the runtime's `library` needs.
///
/// # Errors
/// Names everything that is missing, and what to do.
pub fn ready(library: &Path) -> Result<(), BackendError> {
    let real = library.canonicalize().unwrap_or_else(|_| library.to_path_buf());
    let folder = real.parent().unwrap_or(Path::new("."));
    if !folder.join(PROVIDER).is_file() {
        return Err(BackendError::unsupported(format!("{PROVIDER} is not in {}; {CUDA_REMEDY}", folder.display())));
    }
    let mut packages = None;
    let missing: Vec<String> = NEEDED
        .iter()
        .filter(|(library, _)| {
            // What is loaded stays loaded; the provider finds it by its name.
            ort::util::preload_dylib(*library).is_err()
                && !packages
                    .get_or_insert_with(nvidia_packages)
                    .iter()
                    .any(|folder| ort::util::preload_dylib(folder.join(library)).is_ok())
        })
        .map(|(library, from)| format!("{library} ({from})"))
        .collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(BackendError::unsupported(format!(
            "what CUDA needs is not there: {}, neither where the system looks for libraries nor in NVIDIA's packages of \
             python3; install the driver with your system's packages, the others with `python3 -m pip install \
             nvidia-cuda-runtime nvidia-cublas nvidia-curand` (CUDA 13)",
            missing.join(", ")
        ))),
    }
}

/// The library folders of NVIDIA's packages in the Python that `python3` starts.
fn nvidia_packages() -> Vec<PathBuf> {
    let program = "import importlib.util as u, glob; s = u.find_spec('nvidia'); \
                   print('\\n'.join(f for p in (s.submodule_search_locations if s else []) \
                   for f in sorted(glob.glob(p + '/*/lib'))))";
    let output = super::python3().args(["-c", program]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().filter(|line| !line.is_empty()).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_that_is_not_there_and_what_it_lacks_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libonnxruntime.so.1.31.1");
        let error = ready(&library).unwrap_err().to_string();
        assert!(error.contains(PROVIDER) && error.contains("doctor --fix --device cuda"), "{error}");
        std::fs::write(folder.path().join(PROVIDER), "").unwrap();
        if ort::util::preload_dylib(NEEDED[0].0).is_ok() {
            println!("skipped: this machine has a driver");
            return;
        }
        let error = ready(&library).unwrap_err().to_string();
        assert!(error.contains("libcuda.so.1 (the NVIDIA driver") && error.contains("nvidia-cublas"), "{error}");
    }
}
