//! The tiny models of `references.json`, drawn by the rule of `config_references.py` of the tools;
//! the tests of every decoder backend read them.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part; a test that cannot go on should stop")]

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::Value;

/// What transformers says.
pub fn references() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("model/tests/references.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Numbers in [-1, 1), each a function of the name and its place: 24 bits of a 32-bit mix
/// (lowbias32).
pub fn uniform(name: &str, n: usize) -> impl Iterator<Item = f32> {
    let key = name.bytes().fold(0x811c_9dc5u32, |key, byte| (key ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (0..n as u32).map(move |i| {
        let mut x = i.wrapping_mul(0x9e37_79b9).wrapping_add(key);
        for (shift, factor) in [(16, 0x7feb_352du32), (15, 0x846c_a68b)] {
            x = (x ^ (x >> shift)).wrapping_mul(factor);
        }
        (((x ^ (x >> 16)) >> 8) as f64 / f64::from(1 << 23) - 1.0) as f32
    })
}

/// Writes f32 tensors.
pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) {
    let bytes: BTreeMap<&String, Vec<u8>> =
        tensors.iter().map(|(name, (_, v))| (name, v.iter().flat_map(|x| x.to_le_bytes()).collect())).collect();
    let views = tensors
        .iter()
        .map(|(name, (shape, _))| (name, TensorView::new(Dtype::F32, shape.clone(), &bytes[name]).unwrap()));
    serialize_to_file(views, None, path).unwrap();
}

/// Draws tensors of these shapes: matrices in [-0.35, 0.35), norms around 1.
pub fn drawn(shapes: impl IntoIterator<Item = (String, Vec<usize>)>) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let draw = |(name, shape): (String, Vec<usize>)| {
        let middle = if name.contains("norm") { 1.0 } else { 0.0 };
        let values = uniform(&name, shape.iter().product()).map(|x| x * 0.35 + middle).collect();
        (name, (shape, values))
    };
    shapes.into_iter().map(draw).collect()
}

/// Writes a model of `references.json` into `folder`.
pub fn write_model(folder: &Path, model: &Value) {
    std::fs::write(folder.join("config.json"), model["config"].to_string()).unwrap();
    let shapes = model["tensors"].as_object().unwrap().iter();
    let shapes = shapes.map(|(name, shape)| (name.clone(), serde_json::from_value(shape.clone()).unwrap()));
    write_tensors(&folder.join("model.safetensors"), &drawn(shapes));
}

/// The rows of a model and their log-probabilities under it, back to back.
pub fn rows_and_logprobs(model: &Value) -> (Vec<Vec<u32>>, Vec<f64>) {
    let rows = serde_json::from_value(model["rows"].clone()).unwrap();
    let logprobs: Vec<Vec<f64>> = serde_json::from_value(model["logprobs"].clone()).unwrap();
    (rows, logprobs.concat())
}
