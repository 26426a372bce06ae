//! Values in the element type of the checkpoint that is written.

use half::{bf16, f16};
use karat_system::safetensors::{Entry, Writer};

use crate::backend::Dtype;
use crate::{Error, Result};

/// A tensor of `dtype` that is going to be written.
pub fn entry(name: &str, shape: &[usize], dtype: Dtype) -> Entry {
    match dtype {
        Dtype::F32 => Entry::new(name, shape, "F32", 4),
        Dtype::Bf16 => Entry::new(name, shape, "BF16", 2),
        Dtype::F16 => Entry::new(name, shape, "F16", 2),
    }
}

/// Rounds `values` to `dtype` and appends them to the tensor that `writer` is at.
///
/// # Errors
/// A value that the element type cannot hold; I/O.
pub fn write(writer: &mut Writer, dtype: Dtype, values: &[f32]) -> Result<()> {
    let mut bytes = Vec::with_capacity(values.len() * if dtype == Dtype::F32 { 4 } else { 2 });
    for &x in values {
        let fits = match dtype {
            Dtype::F32 => {
                bytes.extend_from_slice(&x.to_le_bytes());
                x.is_finite()
            }
            Dtype::Bf16 => {
                let y = bf16::from_f32(x);
                bytes.extend_from_slice(&y.to_le_bytes());
                y.is_finite()
            }
            Dtype::F16 => {
                let y = f16::from_f32(x);
                bytes.extend_from_slice(&y.to_le_bytes());
                y.is_finite()
            }
        };
        if !fits {
            let name = writer.next().map_or("", |entry| &entry.name);
            let error = Error::data(format!("the tensor {name} holds {x}, which {dtype} cannot hold"));
            return Err(match x.is_finite() {
                true => error.help("import with --dtype bf16 or f32"),
                false => error.help("the file is broken"),
            });
        }
    }
    writer.write(&bytes)
}
