//! Shared by the tests of CUDA kernels: devices, tensors on them, hard inputs, comparisons.

#![allow(dead_code, reason = "each file of tests uses its part")]

use std::sync::{Arc, OnceLock};

pub use karat_kernels::testing::noise;
use karat_native::cuda::device::{Arg, DeviceBuffer, Element, Gpu};
use karat_native::cuda::driver::Driver;
use karat_native::cuda::emulator::{BlockOrder, Emulator};
use karat_native::cuda::{join, ptx, split};

pub const BOTH: [Element; 2] = [Element::F32, Element::Bf16];

/// A device to test on.
pub struct Bench {
    gpu: Arc<dyn Gpu>,
    emulator: Option<Arc<Emulator>>,
}

/// A tensor on a device.
pub struct Held {
    pub buffer: DeviceBuffer,
    pub element: Element,
    pub len: usize,
}

impl Held {
    pub fn arg(&self) -> Arg<'_> {
        Arg::Buffer(&self.buffer, 0)
    }
    /// From element `i` on.
    pub fn from(&self, i: usize) -> Arg<'_> {
        Arg::Buffer(&self.buffer, i * self.element.size())
    }
}

impl Bench {
    pub fn gpu(&self) -> &dyn Gpu {
        &*self.gpu
    }
    pub fn shared_gpu(&self) -> &Arc<dyn Gpu> {
        &self.gpu
    }
    /// The first `n` f32 of a buffer.
    pub fn floats(&self, buffer: &DeviceBuffer, n: usize) -> Vec<f32> {
        let mut floats = vec![0f32; n];
        self.gpu.download(buffer.raw(), 0, bytemuck::cast_slice_mut(&mut floats)).unwrap();
        floats
    }
    pub fn emulated(&self) -> bool {
        self.emulator.is_some()
    }
    fn hold(&self, bytes: &[u8], element: Element, len: usize) -> Held {
        let buffer = DeviceBuffer::new(&self.gpu, bytes.len()).unwrap();
        if !bytes.is_empty() {
            self.gpu.upload(bytes, buffer.raw(), 0).unwrap();
        }
        Held { buffer, element, len }
    }
    /// `x` on the device; in bf16, rounded.
    pub fn put(&self, x: &[f32], element: Element) -> Held {
        match element {
            Element::F32 => self.hold(bytemuck::cast_slice(x), element, x.len()),
            Element::Bf16 => {
                let x: Vec<half::bf16> = x.iter().map(|x| half::bf16::from_f32(*x)).collect();
                self.hold(bytemuck::cast_slice(&x), element, x.len())
            }
        }
    }
    pub fn put_f32(&self, x: &[f32]) -> Held {
        self.put(x, Element::F32)
    }
    /// `x` as a matrix that is trained beside activations of the type `t`: split where they are
    /// bf16, else with nothing in the second place.
    pub fn put_trained(&self, x: &[f32], t: Element) -> (Held, Option<Held>) {
        let (upper, lower): (Vec<u16>, Vec<u16>) = x.iter().map(|x| split(*x)).unzip();
        let half = |x: Vec<u16>| self.hold(bytemuck::cast_slice(&x), Element::Bf16, x.len());
        match t {
            Element::F32 => (self.put_f32(x), None),
            Element::Bf16 => (half(upper), Some(half(lower))),
        }
    }
    /// A tensor put there by [`Bench::put_trained`].
    pub fn get_trained(&self, (x, lower): &(Held, Option<Held>)) -> Vec<f32> {
        let half = |held: &Held| -> Vec<u16> {
            let mut bytes = vec![0u8; held.len * 2];
            self.gpu.download(held.buffer.raw(), 0, &mut bytes).unwrap();
            bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect()
        };
        match lower {
            None => self.get(x),
            Some(lower) => half(x).into_iter().zip(half(lower)).map(|(upper, lower)| join(upper, lower)).collect(),
        }
    }
    pub fn put_u32(&self, x: &[u32]) -> Held {
        self.hold(bytemuck::cast_slice(x), Element::F32, x.len())
    }
    pub fn put_u64(&self, x: &[u64]) -> Held {
        self.hold(bytemuck::cast_slice(x), Element::F32, x.len() * 2)
    }
    /// `n` elements full of NaN.
    pub fn fresh(&self, n: usize, element: Element) -> Held {
        self.put(&vec![f32::NAN; n], element)
    }
    pub fn get(&self, t: &Held) -> Vec<f32> {
        let mut bytes = vec![0u8; t.len * t.element.size()];
        if !bytes.is_empty() {
            self.gpu.download(t.buffer.raw(), 0, &mut bytes).unwrap();
        }
        match t.element {
            Element::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Element::Bf16 => bytes.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
        }
    }
    pub fn get_u32(&self, t: &Held) -> Vec<u32> {
        self.get(t).iter().map(|x| x.to_bits()).collect()
    }
}

/// Runs `compute` on every device there is, in every order, and `check` on what it gave with the
/// device's name.
pub fn prove(compute: impl Fn(&Bench) -> Vec<Vec<f32>>, check: impl Fn(&str, &[Vec<f32>])) {
    let bits =
        |all: &[Vec<f32>]| -> Vec<Vec<u32>> { all.iter().map(|x| x.iter().map(|x| x.to_bits()).collect()).collect() };
    match Emulator::new() {
        Ok(emulator) => {
            let bench = Bench { gpu: emulator.clone(), emulator: Some(emulator.clone()) };
            let got = compute(&bench);
            check("emulator", &got);
            for order in [BlockOrder::Backward, BlockOrder::Shuffled(11)] {
                emulator.set_order(order);
                assert!(bits(&compute(&bench)) == bits(&got), "{order:?}: the order of threads shows");
            }
        }
        Err(e) => eprintln!("skipped on the emulator: {}", e.message),
    }
    if let Some(gpu) = driver() {
        let bench = Bench { gpu, emulator: None };
        let got = compute(&bench);
        check("GPU", &got);
        assert!(bits(&compute(&bench)) == bits(&got), "two runs on the GPU differ");
    }
}

/// The GPU of this machine, if there is one; with `KARAT_CUDA_TESTS` set there must be.
fn driver() -> Option<Arc<dyn Gpu>> {
    static GPU: OnceLock<Option<Arc<Driver>>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| match Driver::open(0, ptx::kernels()) {
        Ok(driver) => Some(Arc::new(driver)),
        Err(e) if std::env::var_os("KARAT_CUDA_TESTS").is_some() => panic!("{}", e.message),
        Err(_) => None,
    });
    gpu.clone().map(|gpu| gpu as Arc<dyn Gpu>)
}

pub fn scaled(mut x: Vec<f32>, by: f32) -> Vec<f32> {
    x.iter_mut().for_each(|x| *x *= by);
    x
}

/// `x` as the element type holds it.
pub fn rounded(x: Vec<f32>, element: Element) -> Vec<f32> {
    match element {
        Element::F32 => x,
        Element::Bf16 => x.into_iter().map(|x| half::bf16::from_f32(x).to_f32()).collect(),
    }
}

pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Half a unit in the last place of a result in this type, relative, with room for the f32 before
/// it.
pub fn ulp(element: Element) -> f64 {
    match element {
        Element::F32 => 2e-6,
        Element::Bf16 => 1.0 / 256.0,
    }
}

/// Every element within `relative` of itself or of `absolute`.
#[track_caller]
pub fn close(what: &str, got: &[f32], want: &[f64], relative: f64, absolute: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= relative * want.abs() + absolute, "{what}[{i}]: {got}, want {want}");
    }
}

/// `||got - want|| / ||want||`.
pub fn distance(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |x: f64| x * x;
    let error: f64 = got.iter().zip(want).map(|(g, w)| square(f64::from(*g) - w)).sum();
    let size: f64 = want.iter().map(|w| square(*w)).sum();
    if size == 0.0 { error.sqrt() } else { (error / size).sqrt() }
}
