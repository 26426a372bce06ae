//! The functions of NVIDIA's driver and of cuBLAS that are called, looked up by name in the libraries that were found.
//!
//! Signatures and numbers are those of `cuda.h` and `cublas_v2.h` (13.0), which have not changed since 11.4.
#![allow(unsafe_code, non_snake_case)]

use std::ffi::{c_char, c_int, c_longlong, c_uint, c_ulonglong, c_void};

use libloading::Library;

/// `CUdeviceptr`.
pub type Address = u64;
/// A pointer to something of the driver's.
pub type Handle = *mut c_void;
/// `CUresult`, `cublasStatus_t`; 0 is success.
pub type Status = c_int;

/// Declares a table of functions and how it is filled from a library.
macro_rules! functions {
    ($(#[$about:meta])* $table:ident { $($name:ident($($argument:ty),*) -> $result:ty;)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug)]
        pub struct $table {
            $(#[doc = concat!("`", stringify!($name), "`")] pub $name: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl $table {
            /// Looks all of them up.
            ///
            /// # Errors
            /// The name of one that is missing.
            ///
            /// # Safety
            /// `library` must be the library that the table is of, and must stay loaded as long as the table is used.
            pub unsafe fn of(library: &Library) -> Result<Self, &'static str> {
                Ok($table {
                    $($name: {
                        // SAFETY: the signatures are those of the library's header; the caller says that it is that one.
                        let found = unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) };
                        *found.map_err(|_| stringify!($name))?
                    },)*
                })
            }
        }
    };
}

functions! {
    /// `libcuda`, the driver.
    Cuda {
        cuInit(c_uint) -> Status;
        cuDriverGetVersion(*mut c_int) -> Status;
        cuGetErrorName(Status, *mut *const c_char) -> Status;
        cuGetErrorString(Status, *mut *const c_char) -> Status;
        cuDeviceGetCount(*mut c_int) -> Status;
        cuDeviceGet(*mut c_int, c_int) -> Status;
        cuDeviceGetName(*mut c_char, c_int, c_int) -> Status;
        cuDeviceTotalMem_v2(*mut usize, c_int) -> Status;
        cuDeviceGetAttribute(*mut c_int, c_int, c_int) -> Status;
        cuDevicePrimaryCtxRetain(*mut Handle, c_int) -> Status;
        cuDevicePrimaryCtxRelease_v2(c_int) -> Status;
        cuCtxSetCurrent(Handle) -> Status;
        cuStreamCreate(*mut Handle, c_uint) -> Status;
        cuStreamSynchronize(Handle) -> Status;
        cuStreamDestroy_v2(Handle) -> Status;
        cuStreamBeginCapture_v2(Handle, c_int) -> Status;
        cuStreamEndCapture(Handle, *mut Handle) -> Status;
        cuGraphInstantiateWithFlags(*mut Handle, Handle, c_ulonglong) -> Status;
        cuGraphDestroy(Handle) -> Status;
        cuGraphLaunch(Handle, Handle) -> Status;
        cuGraphExecDestroy(Handle) -> Status;
        cuMemAllocAsync(*mut Address, usize, Handle) -> Status;
        cuMemFreeAsync(Address, Handle) -> Status;
        cuMemcpyHtoDAsync_v2(Address, *const c_void, usize, Handle) -> Status;
        cuMemcpyDtoHAsync_v2(*mut c_void, Address, usize, Handle) -> Status;
        cuMemcpyDtoDAsync_v2(Address, Address, usize, Handle) -> Status;
        cuMemsetD8Async(Address, u8, usize, Handle) -> Status;
        cuDeviceGetDefaultMemPool(*mut Handle, c_int) -> Status;
        cuMemPoolSetAttribute(Handle, c_int, *mut c_void) -> Status;
        cuMemPoolGetAttribute(Handle, c_int, *mut c_void) -> Status;
        cuModuleLoadDataEx(*mut Handle, *const c_void, c_uint, *mut c_int, *mut *mut c_void) -> Status;
        cuModuleGetFunction(*mut Handle, Handle, *const c_char) -> Status;
        cuModuleUnload(Handle) -> Status;
        cuFuncSetAttribute(Handle, c_int, c_int) -> Status;
        cuLaunchKernel(
            Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
        ) -> Status;
    }
}

functions! {
    /// `libcublas`.
    Blas {
        cublasCreate_v2(*mut Handle) -> Status;
        cublasDestroy_v2(Handle) -> Status;
        cublasSetStream_v2(Handle, Handle) -> Status;
        cublasSetWorkspace_v2(Handle, *mut c_void, usize) -> Status;
        cublasSetMathMode(Handle, c_int) -> Status;
        cublasGetVersion_v2(Handle, *mut c_int) -> Status;
        cublasGetStatusString(Status) -> *const c_char;
        cublasGemmEx(
            Handle, c_int, c_int, c_int, c_int, c_int, *const c_void, *const c_void, c_int, c_int, *const c_void, c_int,
            c_int, *const c_void, *mut c_void, c_int, c_int, c_int, c_int
        ) -> Status;
        cublasGemmStridedBatchedEx(
            Handle, c_int, c_int, c_int, c_int, c_int, *const c_void, *const c_void, c_int, c_int, c_longlong,
            *const c_void, c_int, c_int, c_longlong, *const c_void, *mut c_void, c_int, c_int, c_longlong, c_int, c_int,
            c_int
        ) -> Status;
    }
}

/// `CUdevice_attribute`.
pub mod attribute {
    /// Multiprocessors.
    pub const MULTIPROCESSORS: i32 = 16;
    /// Major version of what the device can do.
    pub const MAJOR: i32 = 75;
    /// Minor version.
    pub const MINOR: i32 = 76;
    /// Shared memory that a block may ask for.
    pub const SHARED_MEMORY: i32 = 97;
    /// Whether memory can be allocated in the order of a stream.
    pub const MEMORY_POOLS: i32 = 115;
}

/// `CUmemPool_attribute`.
pub mod pool {
    /// Bytes that the pool keeps when nobody uses them.
    pub const RELEASE_THRESHOLD: i32 = 4;
    /// Most bytes in use at once since the last reset.
    pub const USED_HIGH: i32 = 8;
}

/// `CUfunction_attribute`: dynamic shared memory of a block.
pub const FUNCTION_SHARED_MEMORY: i32 = 8;
/// `CUjit_option`: where the compiler writes what is wrong.
pub const JIT_ERROR_LOG: i32 = 5;
/// `CUjit_option`: how much room there is.
pub const JIT_ERROR_LOG_BYTES: i32 = 6;
/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`: other threads may allocate meanwhile.
pub const CAPTURE_THIS_THREAD: i32 = 1;
/// `CU_STREAM_NON_BLOCKING`.
pub const STREAM_NON_BLOCKING: u32 = 1;

/// `CUresult` that are told apart.
pub mod status {
    /// `CUDA_ERROR_OUT_OF_MEMORY`.
    pub const OUT_OF_MEMORY: i32 = 2;
    /// `CUDA_ERROR_NO_DEVICE`.
    pub const NO_DEVICE: i32 = 100;
    /// `CUDA_ERROR_UNSUPPORTED_PTX_VERSION`: the driver is older than the compiler that made the kernels.
    pub const UNSUPPORTED_PTX: i32 = 222;
}

/// `cudaDataType`, `cublasComputeType_t` and the like.
pub mod blas {
    /// `CUDA_R_32F`.
    pub const F32: i32 = 0;
    /// `CUDA_R_16BF`.
    pub const BF16: i32 = 14;
    /// `CUBLAS_COMPUTE_32F`: f32 products are f32, never TF32.
    pub const COMPUTE_F32: i32 = 68;
    /// `CUBLAS_GEMM_DEFAULT`.
    pub const DEFAULT: i32 = -1;
    /// `CUBLAS_OP_N`.
    pub const AS_IS: i32 = 0;
    /// `CUBLAS_OP_T`.
    pub const TRANSPOSED: i32 = 1;
    /// `CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION`: parts of a sum are added in f32 too.
    pub const WHOLE_SUMS: i32 = 16;
}
