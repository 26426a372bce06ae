//! The kernels' sources compiled for the host, once for all processes.

use std::ffi::{CStr, OsString, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use karat_backend::BackendError;
use karat_kernels::philox::name_key;
use libloading::Library;

use crate::error::Result;

/// The sources, by their names in `cuda/`.
const SOURCES: &[(&str, &str)] = &[
    ("emulate.cpp", include_str!("../../../cuda/emulate.cpp")),
    ("emulate.h", include_str!("../../../cuda/emulate.h")),
    ("common.h", include_str!("../../../cuda/common.h")),
    ("ptx.h", include_str!("../../../cuda/ptx.h")),
    ("kernels.h", include_str!("../../../cuda/kernels.h")),
    ("attention.h", include_str!("../../../cuda/attention.h")),
    ("philox.h", include_str!("../../../cuda/philox.h")),
    ("attention_backward.cu", include_str!("../../../cuda/attention_backward.cu")),
    ("attention_forward.cu", include_str!("../../../cuda/attention_forward.cu")),
    ("attention_plain.cu", include_str!("../../../cuda/attention_plain.cu")),
    ("cross_entropy.cu", include_str!("../../../cuda/cross_entropy.cu")),
    ("decode.cu", include_str!("../../../cuda/decode.cu")),
    ("dropout.cu", include_str!("../../../cuda/dropout.cu")),
    ("elementwise.cu", include_str!("../../../cuda/elementwise.cu")),
    ("embedding.cu", include_str!("../../../cuda/embedding.cu")),
    ("low_rank.cu", include_str!("../../../cuda/low_rank.cu")),
    ("norm.cu", include_str!("../../../cuda/norm.cu")),
    ("optimizer.cu", include_str!("../../../cuda/optimizer.cu")),
    ("rope.cu", include_str!("../../../cuda/rope.cu")),
    ("sample.cu", include_str!("../../../cuda/sample.cu")),
];

const FLAGS: &[&str] =
    &["-std=c++20", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off", "-w", "-DKARAT_EMULATE"];

/// The compiled kernels.
pub struct Kernels {
    /// The library.
    pub library: Library,
}

type Signature = unsafe extern "C" fn(*const c_char) -> *const c_char;
pub type Run = unsafe extern "C" fn(
    *const c_char,
    *const c_uint,
    *const c_uint,
    c_uint,
    *mut *mut c_void,
    u64,
    *mut c_char,
) -> c_int;

impl Kernels {
    /// Compiled once a process; kept from process to process under a name made of what went into
    /// them.
    pub fn get() -> Result<&'static Kernels> {
        static KERNELS: OnceLock<Result<Kernels, String>> = OnceLock::new();
        let kernels = KERNELS.get_or_init(|| {
            let path = compile()?;
            // SAFETY: a library of our own sources; loading it runs the constructors of its table
            // of kernels only.
            unsafe { Library::new(&path) }
                .map(|library| Kernels { library })
                .map_err(|e| format!("{}: {e}", path.display()))
        });
        kernels.as_ref().map_err(|e| BackendError::unsupported(format!("no emulated CUDA device: {e}")))
    }

    /// The types of a kernel's parameters.
    pub fn signature(&self, kernel: &CStr) -> Option<&'static str> {
        // SAFETY: emulate.cpp exports it with this type; what it returns lives as long as the
        // library, which stays.
        let signature = unsafe {
            let f = self.library.get::<Signature>(b"karat_emulate_signature").ok()?;
            let text = f(kernel.as_ptr());
            if text.is_null() {
                return None;
            }
            CStr::from_ptr(text)
        };
        signature.to_str().ok()
    }

    /// The names of all kernels.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        // SAFETY: emulate.cpp exports it with this type and returns names that live as long as the
        // library, or null.
        unsafe {
            let Ok(next) = self.library.get::<Signature>(b"karat_emulate_next") else { return names };
            let mut name = next(std::ptr::null());
            while !name.is_null() {
                names.push(CStr::from_ptr(name).to_string_lossy().into_owned());
                name = next(name);
            }
        }
        names.sort();
        names
    }
}

/// Where compiled kernels are kept, by the variables of the environment. A folder that others may
/// write to, as the system's for temporary files, is none: what lies there is loaded and run.
///
/// # Errors
/// If no variable names a folder, with what to do.
fn cache(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, String> {
    let from = |name: &str| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    from("KARAT_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|p| p.join("karat")))
        .or_else(|| from("HOME").map(|p| p.join(".cache/karat")))
        .map(|folder| folder.join("cuda"))
        .ok_or_else(|| {
            "there is no folder for compiled kernels, as neither KARAT_CACHE, XDG_CACHE_HOME nor HOME is set: set KARAT_CACHE \
             to a folder that only you can write to"
                .into()
        })
}

/// Compiles the sources if that is not done yet; where the library lies.
fn compile() -> Result<PathBuf, String> {
    let compiler = std::env::var("CXX").ok().filter(|c| !c.is_empty()).unwrap_or_else(|| "g++".into());
    let version = Command::new(&compiler)
        .arg("--version")
        .output()
        .map_err(|e| format!("the C++ compiler {compiler:?} does not run ({e}); install g++ or set CXX"))?;
    let mut key = String::from_utf8_lossy(&version.stdout).into_owned() + &FLAGS.join(" ");
    SOURCES.iter().for_each(|(name, text)| key = format!("{key}\n{name}\n{text}"));
    let folder = cache(|name| std::env::var_os(name))?;
    let library = folder.join(format!("emulator-{:016x}.so", name_key(&key)));
    if library.exists() {
        return Ok(library);
    }
    let at = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
    let work = folder.join(format!("emulator-{:016x}-{}", name_key(&key), std::process::id()));
    std::fs::create_dir_all(&work).map_err(|e| at(&work, e))?;
    let build = || {
        for (name, text) in SOURCES {
            std::fs::write(work.join(name), text).map_err(|e| at(&work.join(name), e))?;
        }
        let output = Command::new(&compiler)
            .args(FLAGS)
            .args(["-x", "c++", "emulate.cpp", "-o", "emulator.so"])
            .current_dir(&work)
            .output()
            .map_err(|e| format!("{compiler}: {e}"))?;
        if !output.status.success() {
            return Err(format!("{compiler} fails:\n{}", String::from_utf8_lossy(&output.stderr)));
        }
        std::fs::rename(work.join("emulator.so"), &library).map_err(|e| at(&library, e))
    };
    let built = build();
    let _ = std::fs::remove_dir_all(&work);
    built.map(|()| library)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_loaded_never_lies_where_everybody_can_write() {
        let with = |set: &'static [(&str, &str)]| {
            cache(move |name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
        };
        assert_eq!(with(&[("KARAT_CACHE", "/a"), ("HOME", "/b")]).unwrap(), Path::new("/a/cuda"));
        assert_eq!(with(&[("KARAT_CACHE", ""), ("HOME", "/b")]).unwrap(), Path::new("/b/.cache/karat/cuda"));
        assert!(with(&[("HOME", "")]).unwrap_err().contains("set KARAT_CACHE"));
    }
}
