//! ONNX Runtime's file of an adapter: a FlatBuffer of named tensors.
//!
//! The schema (`adapter_schema.fbs`, file identifier `TORT`): a table of format version, adapter
//! version, model version and parameters; a parameter has a name, dimensions, an element type
//! (ONNX's number) and raw bytes aligned to 8.

use std::collections::BTreeMap;

use half::{bf16, f16};
use karat_backend::{BackendError, Dtype};

use crate::adapter::Transposed;
use crate::weight_format::WeightFormat;

/// Version of the format that is written.
const FORMAT_VERSION: u32 = 1;
/// Where the one layout of tables lies: after the offset of the root and the identifier.
const VTABLE: usize = 8;
/// That layout: its own size, the size of a table, and where in a table its four fields are. The
/// root and a parameter both have four fields of four bytes, so they share it.
const LAYOUT: [u16; 6] = [12, 20, 4, 8, 12, 16];

/// The file for the factors of `modules`, in the element type of the model's activations.
///
/// # Errors
/// A value that this element type cannot hold.
pub fn adapter_file(
    modules: &[(String, Transposed)],
    shapes: &BTreeMap<String, [usize; 2]>,
    precision: WeightFormat,
) -> Result<Vec<u8>, BackendError> {
    let mut file = File(Vec::new());
    let root = file.u32(0);
    file.0.extend(b"TORT");
    LAYOUT.iter().for_each(|n| file.0.extend(n.to_le_bytes()));
    file.point(root);
    let fields = file.table();
    // Versions of adapter and model are for their makers to count; ours are told apart by hash.
    [FORMAT_VERSION, 1, 1].iter().enumerate().for_each(|(i, version)| file.set(fields + 4 * i, *version));
    file.point(fields + 12);
    file.u32(2 * modules.len());
    let mut places: Vec<usize> = (0..2 * modules.len()).map(|_| file.u32(0)).collect();
    places.reverse();
    for (module, factors) in modules {
        let [input, output] = shapes[module];
        for (side, dims, values) in
            [("A", [input, factors.rank], &factors.a), ("B", [factors.rank, output], &factors.b)]
        {
            let name = format!("{module}.lora_{side}.weight");
            let bytes = encode(values, precision.activations());
            let bytes = bytes.ok_or_else(|| {
                BackendError::failed(format!("{name} of the adapter holds values that {precision} cannot hold"))
            })?;
            if let Some(place) = places.pop() {
                file.parameter(place, &name, dims, precision.element() as u32, &bytes);
            }
        }
    }
    Ok(file.0)
}

fn encode(values: &[f32], dtype: Dtype) -> Option<Vec<u8>> {
    let finite = match dtype {
        Dtype::F32 => true,
        Dtype::F16 => values.iter().all(|&v| f16::from_f32(v).is_finite()),
        Dtype::Bf16 => values.iter().all(|&v| bf16::from_f32(v).is_finite()),
    };
    finite.then(|| match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
    })
}

/// A FlatBuffer written from the front: offsets point forward and are set once their target's place
/// is known.
struct File(Vec<u8>);

impl File {
    /// Appends a number; returns its place.
    fn u32(&mut self, value: usize) -> usize {
        self.0.extend((value as u32).to_le_bytes());
        self.0.len() - 4
    }
    fn set(&mut self, place: usize, value: u32) {
        self.0[place..place + 4].copy_from_slice(&value.to_le_bytes());
    }
    /// Makes the offset at `place` point at what comes next.
    fn point(&mut self, place: usize) {
        self.set(place, (self.0.len() - place) as u32);
    }
    /// Appends zeros until what follows `ahead` more bytes is aligned.
    fn align(&mut self, alignment: usize, ahead: usize) {
        while !(self.0.len() + ahead).is_multiple_of(alignment) {
            self.0.push(0);
        }
    }
    /// Appends a table of four zeros; returns the place of the first.
    fn table(&mut self) -> usize {
        let back = self.0.len() - VTABLE;
        self.u32(back);
        (0..4).map(|_| self.u32(0)).min().unwrap_or_default()
    }
    /// Appends a vector whose elements are aligned to 8, and makes the offset at `place` point at
    /// it.
    fn vector(&mut self, place: usize, length: usize, bytes: &[u8]) {
        self.align(8, 4);
        self.point(place);
        self.u32(length);
        self.0.extend(bytes);
    }
    fn parameter(&mut self, place: usize, name: &str, dims: [usize; 2], element: u32, bytes: &[u8]) {
        self.align(4, 0);
        self.point(place);
        let fields = self.table();
        self.vector(fields, name.len(), name.as_bytes());
        // A string ends with a zero that its length does not count.
        self.0.push(0);
        let sizes: Vec<u8> = dims.iter().flat_map(|&n| (n as i64).to_le_bytes()).collect();
        self.vector(fields + 4, dims.len(), &sizes);
        self.set(fields + 8, element);
        self.vector(fields + 12, bytes.len(), bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_raw_bytes_of_every_parameter_are_aligned_and_found_by_following_offsets() {
        let factors = |n: usize| Transposed { rank: 2, a: vec![n as f32; 6], b: vec![0.5; 8] };
        let modules = [("a.b".to_string(), factors(3)), ("long.name".to_string(), factors(7))];
        let shapes = modules.iter().map(|(name, _)| (name.clone(), [3, 4])).collect();
        let file = adapter_file(&modules, &shapes, WeightFormat::F32).unwrap();
        assert_eq!(&file[4..8], b"TORT");
        let u32 = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
        let follow = |at: usize| at + u32(at);
        let root = follow(0);
        assert_eq!((root - u32(root), u32(root + 4)), (VTABLE, 1));
        let parameters = follow(root + 16);
        assert_eq!(u32(parameters), 4);
        let third = follow(parameters + 4 + 2 * 4);
        let name = follow(third + 4);
        assert_eq!(&file[name + 4..name + 4 + u32(name)], b"long.name.lora_A.weight");
        let data = follow(third + 16);
        assert_eq!((u32(data), (data + 4) % 8, u32(third + 12)), (24, 0, 1));
        assert_eq!(file[data + 4..data + 8], 7f32.to_le_bytes());
    }

    #[test]
    fn a_factor_beyond_f16_is_named() {
        let modules = [("m".to_string(), Transposed { rank: 1, a: vec![1e6], b: vec![1.0] })];
        let error = adapter_file(&modules, &BTreeMap::from([("m".into(), [1, 1])]), WeightFormat::F16).unwrap_err();
        assert!(error.message.contains("m.lora_A.weight"), "{error}");
    }
}
