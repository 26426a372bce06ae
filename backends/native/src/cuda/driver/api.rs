//! The functions of NVIDIA's driver and of cuBLAS that are called, looked up by name in the
//! libraries that were found.
//!
//! Signatures and numbers are those of `cuda.h` and `cublas_v2.h` (13.0), which have not changed
//! since 11.4.
#![allow(unsafe_code, non_snake_case)]

use std::ffi::{c_char, c_int, c_longlong, c_uint, c_ulonglong, c_void};

use libloading::Library;

/// `CUdeviceptr`.
pub type Address = u64;
/// A pointer to something of the driver's.
pub type Handle = *mut c_void;
/// `CUresult`, `cublasStatus_t`; 0 is success.
pub type CudaStatus = c_int;

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
            /// `library` must be the library that the table is of, and must stay loaded as long as
            /// the table is used.
            pub unsafe fn of(library: &Library) -> Result<Self, &'static str> {
                Ok($table {
                    $($name: {
                        // SAFETY: the signatures are those of the library's header; the caller says
                        // that it is that one.
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
        cuInit(c_uint) -> CudaStatus;
        cuDriverGetVersion(*mut c_int) -> CudaStatus;
        cuGetErrorName(CudaStatus, *mut *const c_char) -> CudaStatus;
        cuGetErrorString(CudaStatus, *mut *const c_char) -> CudaStatus;
        cuDeviceGetCount(*mut c_int) -> CudaStatus;
        cuDeviceGet(*mut c_int, c_int) -> CudaStatus;
        cuDeviceGetName(*mut c_char, c_int, c_int) -> CudaStatus;
        cuDeviceTotalMem_v2(*mut usize, c_int) -> CudaStatus;
        cuDeviceGetAttribute(*mut c_int, c_int, c_int) -> CudaStatus;
        cuDevicePrimaryCtxRetain(*mut Handle, c_int) -> CudaStatus;
        cuDevicePrimaryCtxRelease_v2(c_int) -> CudaStatus;
        cuCtxSetCurrent(Handle) -> CudaStatus;
        cuStreamCreate(*mut Handle, c_uint) -> CudaStatus;
        cuStreamSynchronize(Handle) -> CudaStatus;
        cuStreamDestroy_v2(Handle) -> CudaStatus;
        cuStreamBeginCapture_v2(Handle, c_int) -> CudaStatus;
        cuStreamEndCapture(Handle, *mut Handle) -> CudaStatus;
        cuGraphInstantiateWithFlags(*mut Handle, Handle, c_ulonglong) -> CudaStatus;
        cuGraphDestroy(Handle) -> CudaStatus;
        cuGraphLaunch(Handle, Handle) -> CudaStatus;
        cuGraphExecDestroy(Handle) -> CudaStatus;
        cuMemAllocAsync(*mut Address, usize, Handle) -> CudaStatus;
        cuMemFreeAsync(Address, Handle) -> CudaStatus;
        cuMemcpyHtoDAsync_v2(Address, *const c_void, usize, Handle) -> CudaStatus;
        cuMemcpyDtoHAsync_v2(*mut c_void, Address, usize, Handle) -> CudaStatus;
        cuMemcpyDtoDAsync_v2(Address, Address, usize, Handle) -> CudaStatus;
        cuMemsetD8Async(Address, u8, usize, Handle) -> CudaStatus;
        cuDeviceGetDefaultMemPool(*mut Handle, c_int) -> CudaStatus;
        cuMemPoolSetAttribute(Handle, c_int, *mut c_void) -> CudaStatus;
        cuMemPoolGetAttribute(Handle, c_int, *mut c_void) -> CudaStatus;
        cuModuleLoadDataEx(*mut Handle, *const c_void, c_uint, *mut c_int, *mut *mut c_void) -> CudaStatus;
        cuModuleGetFunction(*mut Handle, Handle, *const c_char) -> CudaStatus;
        cuModuleUnload(Handle) -> CudaStatus;
        cuFuncSetAttribute(Handle, c_int, c_int) -> CudaStatus;
        cuLaunchKernel(
            Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
        ) -> CudaStatus;
    }
}

functions! {
    /// `libcublas`.
    Blas {
        cublasCreate_v2(*mut Handle) -> CudaStatus;
        cublasDestroy_v2(Handle) -> CudaStatus;
        cublasSetStream_v2(Handle, Handle) -> CudaStatus;
        cublasSetWorkspace_v2(Handle, *mut c_void, usize) -> CudaStatus;
        cublasSetMathMode(Handle, c_int) -> CudaStatus;
        cublasGetVersion_v2(Handle, *mut c_int) -> CudaStatus;
        cublasGetStatusString(CudaStatus) -> *const c_char;
        cublasGemmEx(
            Handle, c_int, c_int, c_int, c_int, c_int, *const c_void, *const c_void, c_int, c_int, *const c_void, c_int,
            c_int, *const c_void, *mut c_void, c_int, c_int, c_int, c_int
        ) -> CudaStatus;
        cublasGemmStridedBatchedEx(
            Handle, c_int, c_int, c_int, c_int, c_int, *const c_void, *const c_void, c_int, c_int, c_longlong,
            *const c_void, c_int, c_int, c_longlong, *const c_void, *mut c_void, c_int, c_int, c_longlong, c_int, c_int,
            c_int
        ) -> CudaStatus;
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
    /// `CUDA_ERROR_UNSUPPORTED_PTX_VERSION`: the driver is older than the compiler that made the
    /// kernels.
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
