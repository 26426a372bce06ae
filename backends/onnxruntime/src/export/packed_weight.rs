//! A weight of an export that is packed for the kernels.

use karat_kernels::gemm::prepacked::PackedType;

/// A packed weight `[n, k]` in the file.
#[derive(Clone, Debug)]
pub struct PackedWeight {
    pub name: String,
    pub n: usize,
    pub k: usize,
    pub storage: PackedType,
}

impl PackedWeight {
    /// The initializer's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}
