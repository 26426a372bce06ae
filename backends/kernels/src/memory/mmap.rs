//! Numbers in a file, mapped into memory read-only: the pages are the system's to keep or drop, and
//! processes share them.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;

/// Numbers as they are stored.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// IEEE half.
    F16(&'a [f16]),
}

impl<'a> Elements<'a> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Elements::F32(x) => x.len(),
            Elements::Bf16(x) => x.len(),
            Elements::F16(x) => x.len(),
        }
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// A part of them.
    pub fn slice(self, range: Range<usize>) -> Self {
        match self {
            Elements::F32(x) => Elements::F32(&x[range]),
            Elements::Bf16(x) => Elements::Bf16(&x[range]),
            Elements::F16(x) => Elements::F16(&x[range]),
        }
    }
    /// Widens to f32, exactly.
    pub fn widen(self, out: &mut [f32]) {
        match self {
            Elements::F32(x) => out.copy_from_slice(x),
            Elements::Bf16(x) => out.iter_mut().zip(x).for_each(|(o, x)| *o = x.to_f32()),
            Elements::F16(x) => out.iter_mut().zip(x).for_each(|(o, x)| *o = x.to_f32()),
        }
    }
}

/// How a number is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

impl ElementType {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            ElementType::F32 => 4,
            ElementType::Bf16 | ElementType::F16 => 2,
        }
    }
}

/// A whole file, mapped.
#[derive(Clone, Debug)]
pub struct Mapping(Arc<Mmap>);

impl Mapping {
    /// Maps `file`.
    ///
    /// The file must not be cut short while it is mapped. Checkpoints are replaced by renaming,
    /// never written over, so those of Karat are not.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn new(file: &File) -> std::io::Result<Self> {
        // SAFETY: the mapping is private to this value and never written through; that nobody else
        // shortens or changes the file meanwhile is what the documentation above asks for.
        let map = unsafe { Mmap::map(file)? };
        Ok(Mapping(Arc::new(map)))
    }

    /// The bytes of `range` as numbers, or nothing if they lie outside the file or are not aligned
    /// for them.
    pub fn numbers(&self, range: Range<usize>, kind: ElementType) -> Option<MappedSlice> {
        let numbers = MappedSlice { mapping: self.clone(), range, kind };
        numbers.get().is_some().then_some(numbers)
    }

    /// The bytes of `range`, if they lie inside the file.
    pub fn bytes(&self, range: Range<usize>) -> Option<&[u8]> {
        self.0.get(range)
    }
}

/// Numbers in a mapped file.
#[derive(Clone, Debug)]
pub struct MappedSlice {
    mapping: Mapping,
    range: Range<usize>,
    kind: ElementType,
}

impl MappedSlice {
    fn get(&self) -> Option<Elements<'_>> {
        let bytes = self.mapping.0.get(self.range.clone())?;
        match self.kind {
            ElementType::F32 => bytemuck::try_cast_slice(bytes).ok().map(Elements::F32),
            ElementType::Bf16 => bytemuck::try_cast_slice(bytes).ok().map(Elements::Bf16),
            ElementType::F16 => bytemuck::try_cast_slice(bytes).ok().map(Elements::F16),
        }
    }
    /// The numbers.
    pub fn elements(&self) -> Elements<'_> {
        self.get().expect("`numbers` has checked bounds and alignment")
    }
    /// How they are stored.
    pub fn kind(&self) -> ElementType {
        self.kind
    }
}
