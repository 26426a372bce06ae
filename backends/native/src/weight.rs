//! A parameter of the model: numbers in a mapped file while it is frozen, f32 of its own once it is
//! trained.

use karat_backend::Dtype;

use crate::device::Device;
use crate::error::Result;
pub use crate::tensor::WeightView;
use crate::tensor::{StoredWeight, Tensor, tensor, view};
use karat_kernels::memory::arena;
use karat_kernels::memory::mmap::{ElementType, MappedSlice};

/// A matrix or vector of parameters.
#[derive(Clone, Debug)]
pub enum Weight {
    /// In memory, as f32; training may change it, and every clone sees the change.
    Owned(Tensor),
    /// In a file, as it is stored there; frozen.
    Mapped {
        /// The numbers, row-major.
        numbers: MappedSlice,
        /// Rows and columns, or the length.
        shape: Vec<usize>,
    },
    /// On a device in the element type of its products, frozen; the file's numbers stay mapped.
    Placed {
        /// On the device.
        tensor: Tensor,
        /// The numbers, row-major.
        numbers: MappedSlice,
    },
}

impl Weight {
    /// Shape.
    pub fn dims(&self) -> &[usize] {
        match self {
            Weight::Owned(t) => t.dims(),
            Weight::Mapped { shape, .. } => shape,
            Weight::Placed { tensor, .. } => tensor.dims(),
        }
    }
    /// Number of elements.
    pub fn elem_count(&self) -> usize {
        self.dims().iter().product()
    }
    /// Bytes that they take in host memory, those of a mapped file included.
    pub fn bytes(&self) -> u64 {
        (self.elem_count() * self.kind().size()) as u64
    }
    /// How the elements are stored.
    pub fn kind(&self) -> ElementType {
        match self {
            Weight::Owned(_) => ElementType::F32,
            Weight::Mapped { numbers, .. } | Weight::Placed { numbers, .. } => numbers.kind(),
        }
    }
    /// The same as an element type.
    pub fn dtype(&self) -> Dtype {
        match self.kind() {
            ElementType::F32 => Dtype::F32,
            ElementType::Bf16 => Dtype::Bf16,
            ElementType::F16 => Dtype::F16,
        }
    }
    /// The elements.
    ///
    /// # Errors
    /// If the tensor is not one that the CPU's kernels can read.
    pub fn view(&self) -> Result<WeightView<'_>> {
        Ok(match self {
            Weight::Owned(t) => WeightView::Owned(view(t)?),
            Weight::Mapped { numbers, .. } | Weight::Placed { numbers, .. } => WeightView::Mapped(numbers.elements()),
        })
    }
    /// Brings it to `device`: what is in a file in the element type of products, what is in memory
    /// as it is.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn place(&mut self, device: &dyn Device) -> Result<()> {
        match self {
            Weight::Owned(t) => *self = Weight::Owned(device.place(t)?),
            Weight::Mapped { numbers, shape } => {
                if let Some(tensor) = device.frozen(numbers.elements(), shape)? {
                    *self = Weight::Placed { tensor, numbers: numbers.clone() };
                }
            }
            Weight::Placed { .. } => {}
        }
        Ok(())
    }
    /// A copy of its own on the CPU in f32, exactly the same numbers.
    ///
    /// # Errors
    /// If there is no room.
    pub fn widened(&self) -> Result<Tensor> {
        let mut data = arena::zeroed(self.elem_count());
        self.view()?.elements().widen(&mut data);
        tensor(data, self.dims())
    }
    /// Makes it trainable: f32 of its own, the same numbers. The returned tensor shares them.
    ///
    /// # Errors
    /// If there is no room.
    pub fn own(&mut self) -> Result<Tensor> {
        match self {
            Weight::Owned(t) => Ok(t.clone()),
            Weight::Mapped { .. } => {
                let t = self.widened()?;
                *self = Weight::Owned(t.clone());
                Ok(t)
            }
            Weight::Placed { tensor, numbers } => {
                let mut data = arena::zeroed(tensor.elem_count());
                numbers.elements().widen(&mut data);
                let t = tensor.storage().master(data, tensor.dims())?;
                *self = Weight::Owned(t.clone());
                Ok(t)
            }
        }
    }
}

impl StoredWeight for Weight {
    fn dims(&self) -> &[usize] {
        self.dims()
    }
    fn view(&self) -> Result<WeightView<'_>> {
        self.view()
    }
    fn tensor(&self) -> Option<&Tensor> {
        match self {
            Weight::Owned(tensor) | Weight::Placed { tensor, .. } => Some(tensor),
            Weight::Mapped { .. } => None,
        }
    }
}

impl From<Tensor> for Weight {
    fn from(t: Tensor) -> Self {
        Weight::Owned(t)
    }
}
