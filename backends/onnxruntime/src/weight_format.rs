//! Weight formats of an export: floating-point types and block-quantized int8 and int4.

use std::fmt;
use std::str::FromStr;

use karat_backend::{BackendError, Dtype};
use serde::{Deserialize, Serialize};

use crate::proto::DataType;

/// Storage format of the weights of an export.
///
/// `f32`, `f16` and `bf16` are casts (to nearest, ties to even) of everything: weights,
/// activations, key-value cache. `int8` and `int4` store the matrices of all linear layers in
/// blocks of 32 with a scale and a zero point each (`MatMulNBits`); embedding and head are 8-bit in
/// both, since a small model suffers most from these, and norms, biases, rotation tables, scales
/// and activations stay f32. In `int4` the layers that suffer most from few bits have 8 as well:
/// all value projections, which are small, and half of the down projections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightFormat {
    /// 32-bit float.
    #[default]
    F32,
    /// IEEE half. A weight beyond 65504 is an error.
    F16,
    /// bfloat16. ONNX Runtime's CPU provider has no kernels for it.
    Bf16,
    /// 8-bit blocks.
    Int8,
    /// 4-bit blocks.
    Int4,
}

impl WeightFormat {
    /// All of them.
    pub const ALL: [WeightFormat; 5] =
        [WeightFormat::F32, WeightFormat::F16, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4];

    /// The name, as written on the command line and in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            WeightFormat::F32 => "f32",
            WeightFormat::F16 => "f16",
            WeightFormat::Bf16 => "bf16",
            WeightFormat::Int8 => "int8",
            WeightFormat::Int4 => "int4",
        }
    }

    /// The element type of activations, norms, biases and the key-value cache.
    pub fn activations(self) -> Dtype {
        match self {
            WeightFormat::F16 => Dtype::F16,
            WeightFormat::Bf16 => Dtype::Bf16,
            WeightFormat::F32 | WeightFormat::Int8 | WeightFormat::Int4 => Dtype::F32,
        }
    }

    /// ONNX's number for [`WeightFormat::activations`].
    pub(crate) fn element(self) -> DataType {
        match self.activations() {
            Dtype::F32 => DataType::F32,
            Dtype::F16 => DataType::F16,
            Dtype::Bf16 => DataType::Bf16,
        }
    }

    /// Bits of a weight of a linear layer, if they are quantized.
    pub(crate) fn linear_bits(self) -> Option<usize> {
        match self {
            WeightFormat::Int8 => Some(8),
            WeightFormat::Int4 => Some(4),
            _ => None,
        }
    }

    /// Bits of a weight of the linear layer `module` of a model of `layers` blocks, if it is
    /// quantized. Which layers of a 4-bit model get 8 is llama.cpp's choice (`use_more_bits`), with
    /// all value projections: for 8 % more bytes it halves the divergence of SmolLM2-135M.
    pub(crate) fn layer_bits(self, module: &str, layers: usize) -> Option<usize> {
        let index = module.split('.').find_map(|part| part.parse::<usize>().ok()).unwrap_or(0);
        let edge = index < layers / 8 || index >= 7 * layers / 8;
        let more = edge || (index - layers / 8) % 3 == 2;
        let sensitive = module.ends_with(".v_proj") || (module.ends_with(".down_proj") && more);
        self.linear_bits().map(|bits| if sensitive { 8 } else { bits })
    }

    /// Bits of a weight of the embedding and the head, if they are quantized.
    pub(crate) fn head_bits(self) -> Option<usize> {
        self.linear_bits().map(|_| 8)
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<Dtype> for WeightFormat {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => WeightFormat::F32,
            Dtype::F16 => WeightFormat::F16,
            Dtype::Bf16 => WeightFormat::Bf16,
        }
    }
}

impl FromStr for WeightFormat {
    type Err = BackendError;

    fn from_str(text: &str) -> Result<Self, BackendError> {
        Self::ALL.into_iter().find(|precision| precision.name() == text).ok_or_else(|| {
            let known = Self::ALL.map(WeightFormat::name).join(", ");
            BackendError::unsupported(format!("the onnxruntime backend exports no {text:?} (known: {known})"))
        })
    }
}
