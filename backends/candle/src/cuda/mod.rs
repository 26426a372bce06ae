//! The CUDA device: kernels of our own, matrix products of cuBLAS, both found at run time.
//!
//! Nothing here is linked: the plugin loads on a machine without a driver, and what is missing is said by name when a
//! device is opened. [`device::Gpu`] is what is asked of a device; the driver is one, and an emulator that runs the same
//! kernel sources on the CPU is the other, so that all that is written above it is tested where there is no GPU.

pub mod device;
pub mod emulator;
pub mod kernels;
pub mod ptx;
