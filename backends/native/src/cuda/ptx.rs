//! PTX of the kernels, for the driver's JIT.

use std::ffi::CStr;

const TEXT: &str = concat!(include_str!("../../cuda/kernels.ptx"), "\0");

/// PTX of all kernels in `cuda/`, for compute capability 8.0 and later, made by
/// `scripts/cuda-kernels`. A driver of CUDA 13.0 (580) or later compiles it for the GPU at hand and
/// remembers the result.
pub fn kernels() -> &'static CStr {
    CStr::from_bytes_with_nul(TEXT.as_bytes()).expect("a text with one zero, at its end")
}
