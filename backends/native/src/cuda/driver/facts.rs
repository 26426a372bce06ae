//! Facts of the driver and its devices: versions, properties, what a status means.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::ptr;

use karat_backend::BackendError;

use super::api::{self, Cuda, CudaStatus};
use super::{Driver, library};
use crate::cuda::device::Facts;
use crate::error::Result;

/// The oldest driver whose compiler takes the kernels: that of CUDA 13.0.
pub(super) const OLDEST_DRIVER: i32 = 13_000;

pub(super) fn missing(what: impl std::fmt::Display) -> BackendError {
    BackendError::unsupported(format!("no CUDA device can be used: {what}"))
}

/// CUDA on this machine, for `karat doctor`: facts by name.
pub fn found() -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    let mut fact = |name: &str, value: String| facts.insert(name.to_owned(), value);
    let cublas = match library::cublas() {
        Ok(found) => found.place.display().to_string(),
        Err(e) => e.to_owned(),
    };
    fact("cuda cublas", cublas);
    match Driver::load() {
        Err(e) => fact("cuda driver", e.message),
        Ok((cuda, place)) => {
            let version = driver_version(&cuda);
            let names = format!("{} (CUDA {})", place.display(), version_text(version));
            fact("cuda driver", if version < OLDEST_DRIVER { format!("{names}, too old") } else { names });
            match count(&cuda) {
                Err(e) => fact("cuda devices", e.message),
                Ok(count) => {
                    for ordinal in 0..count {
                        let text = device_facts(&cuda, ordinal).map_or_else(|e| e.message, |facts| facts_text(&facts));
                        fact(&format!("cuda:{ordinal}"), text);
                    }
                    None
                }
            }
        }
    };
    facts
}

pub(super) fn facts_text(facts: &Facts) -> String {
    let (major, minor) = facts.compute_capability;
    let gib = facts.memory as f64 / f64::from(1 << 30);
    format!(
        "{}, {gib:.0} GiB, compute capability {major}.{minor}, {} multiprocessors",
        facts.name, facts.multiprocessors
    )
}

pub(super) fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

pub(super) fn driver_version(cuda: &Cuda) -> i32 {
    let mut version = 0;
    // SAFETY: the pointer is to an integer that lives through the call.
    unsafe { (cuda.cuDriverGetVersion)(&mut version) };
    version
}

/// Name and meaning of a status of the driver's.
pub(super) fn status_text(cuda: &Cuda, status: CudaStatus) -> String {
    let text = |f: unsafe extern "C" fn(CudaStatus, *mut *const c_char) -> CudaStatus| {
        let mut text: *const c_char = ptr::null();
        // SAFETY: the driver writes a pointer to a constant text, or nothing.
        unsafe {
            f(status, &mut text);
            if text.is_null() { None } else { Some(CStr::from_ptr(text).to_string_lossy().into_owned()) }
        }
    };
    match (text(cuda.cuGetErrorName), text(cuda.cuGetErrorString)) {
        (Some(name), Some(meaning)) => format!("{name}: {meaning}"),
        _ => format!("status {status}"),
    }
}

pub(super) fn ok(cuda: &Cuda, what: &str, status: CudaStatus) -> Result<()> {
    match status {
        0 => Ok(()),
        _ => Err(BackendError::failed(format!("CUDA failed to {what}: {}", status_text(cuda, status)))),
    }
}

pub(super) fn count(cuda: &Cuda) -> Result<i32> {
    let mut count = 0;
    // SAFETY: initialised by `Driver::load`; the pointer is to an integer that lives through the
    // call.
    match unsafe { (cuda.cuDeviceGetCount)(&mut count) } {
        0 if count > 0 => Ok(count),
        0 | api::status::NO_DEVICE => Err(missing(
            "the driver is there but finds no device (is it hidden by \
                                                   CUDA_VISIBLE_DEVICES, or not given to this container?)",
        )),
        status => Err(missing(status_text(cuda, status))),
    }
}

pub(super) fn device_facts(cuda: &Cuda, ordinal: i32) -> Result<Facts> {
    let mut device = 0;
    let mut name = [0 as c_char; 256];
    let mut memory = 0usize;
    // SAFETY: the pointers are to values that live through the calls; `name` is as long as is said.
    unsafe {
        ok(cuda, "find the device", (cuda.cuDeviceGet)(&mut device, ordinal))?;
        ok(cuda, "name the device", (cuda.cuDeviceGetName)(name.as_mut_ptr(), 255, device))?;
        ok(cuda, "ask for its memory", (cuda.cuDeviceTotalMem_v2)(&mut memory, device))?;
    }
    let ask = |attribute: i32| -> Result<u32> {
        let mut value = 0;
        // SAFETY: as above.
        ok(cuda, "ask the device", unsafe { (cuda.cuDeviceGetAttribute)(&mut value, attribute, device) })?;
        Ok(value as u32)
    };
    // SAFETY: the driver ends the name with a zero, and the last byte was never given to it.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    Ok(Facts {
        name,
        ordinal: ordinal as usize,
        compute_capability: (ask(api::attribute::MAJOR)?, ask(api::attribute::MINOR)?),
        memory: memory as u64,
        multiprocessors: ask(api::attribute::MULTIPROCESSORS)?,
        shared_memory: ask(api::attribute::SHARED_MEMORY)?,
        emulated: false,
    })
}
