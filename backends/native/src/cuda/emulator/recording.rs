//! The emulator's queue: launches, GEMMs and copies with owned arguments, so that a graph can
//! replay them, and counts of each.

use super::super::device::{Arg, Element, Gemm, Launch, Matrix, RawBuffer};

/// Something queued.
#[derive(Clone, Debug)]
pub enum Op {
    /// A kernel.
    Launch {
        /// Its name.
        kernel: &'static str,
        /// Its geometry.
        launch: Launch,
        /// Its arguments.
        arguments: Vec<Word>,
    },
    /// A GEMM.
    Gemm(GemmCopy),
    /// A copy within the device.
    Copy {
        /// Buffer and first byte.
        from: (RawBuffer, usize),
        /// As `from`.
        to: (RawBuffer, usize),
        /// How many.
        bytes: usize,
    },
    /// Zeros.
    Zero {
        /// Buffer and first byte.
        to: (RawBuffer, usize),
        /// How many.
        bytes: usize,
    },
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Word {
    /// An address, as a buffer and so many bytes from its start.
    Buffer(RawBuffer, usize),
    /// Any other, in its low bytes.
    Value(u64),
}

impl From<&Arg<'_>> for Word {
    fn from(argument: &Arg<'_>) -> Self {
        match *argument {
            Arg::Buffer(buffer, offset) => Word::Buffer(buffer.raw(), offset),
            Arg::Null => Word::Value(0),
            Arg::I32(x) => Word::Value(u64::from(x as u32)),
            Arg::U32(x) => Word::Value(u64::from(x)),
            Arg::I64(x) => Word::Value(x as u64),
            Arg::U64(x) => Word::Value(x),
            Arg::F32(x) => Word::Value(u64::from(x.to_bits())),
        }
    }
}

/// A [`Gemm`].
#[derive(Clone, Copy, Debug)]
pub struct GemmCopy {
    /// `m`, `n`, `k`.
    pub shape: [usize; 3],
    /// Factors of the product and of what was there.
    pub factors: [f32; 2],
    /// The operands and the result.
    pub matrices: [MatrixCopy; 3],
    /// How many.
    pub batch: usize,
}

/// A [`Matrix`].
#[derive(Clone, Copy, Debug)]
pub struct MatrixCopy {
    /// Where its numbers lie.
    pub buffer: RawBuffer,
    /// Its first element.
    pub first: usize,
    /// How they are stored.
    pub element: Element,
    /// From one row to the next.
    pub stride: usize,
    /// From one matrix to the next.
    pub batch_stride: usize,
    /// It takes part transposed.
    pub transposed: bool,
}

impl From<&Matrix<'_>> for MatrixCopy {
    fn from(m: &Matrix<'_>) -> Self {
        let Matrix { buffer, first, element, stride, batch_stride, transposed } = *m;
        MatrixCopy { buffer: buffer.raw(), first, element, stride, batch_stride, transposed }
    }
}

impl From<&Gemm<'_>> for GemmCopy {
    fn from(g: &Gemm<'_>) -> Self {
        GemmCopy {
            shape: [g.m, g.n, g.k],
            factors: [g.alpha, g.beta],
            matrices: [&g.a, &g.b, &g.c].map(MatrixCopy::from),
            batch: g.batch,
        }
    }
}

/// How often a device was asked for what, since it was opened. What a recording does when it is
/// played counts once, as `played`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounts {
    /// Memory from the device.
    pub allocated: u64,
    /// Memory back to the device.
    pub freed: u64,
    /// Copies from the host.
    pub uploads: u64,
    /// Copies to the host; each waits.
    pub downloads: u64,
    /// Other waits.
    pub waits: u64,
    /// Copies within the device and zeros.
    pub fills: u64,
    /// Kernels.
    pub launches: u64,
    /// Products.
    pub products: u64,
    /// Recordings made.
    pub recorded: u64,
    /// Recordings played.
    pub played: u64,
}

impl std::ops::Sub for DeviceCounts {
    type Output = DeviceCounts;
    fn sub(self, o: DeviceCounts) -> DeviceCounts {
        DeviceCounts {
            allocated: self.allocated - o.allocated,
            freed: self.freed - o.freed,
            uploads: self.uploads - o.uploads,
            downloads: self.downloads - o.downloads,
            waits: self.waits - o.waits,
            fills: self.fills - o.fills,
            launches: self.launches - o.launches,
            products: self.products - o.products,
            recorded: self.recorded - o.recorded,
            played: self.played - o.played,
        }
    }
}
