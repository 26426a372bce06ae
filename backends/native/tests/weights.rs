//! Weights in other clothes: shards, narrow types and GGUF blocks stand for the same numbers, and
//! what is broken is named.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod small_runs;
#[path = "../../../harness/tests/import/writer.rs"]
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Content;
use karat::import::Gguf;
use karat_backend::*;
use karat_native::NativeBackend;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;
use small_runs::*;

type Weights = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A checkpoint of the small model, its numbers, and an empty folder with its configuration.
fn checkpoint(dir: &Path) -> (PathBuf, Weights) {
    let base = small_model(dir, "qwen2");
    let plan = plan(Method::Full, vec![vec![vec![0]]], 1e-3, &dir.join("out"));
    let folder = train(&base, &plan, &small_rows(&[9]), &Rows::default(), |_| false).0.unwrap().last_checkpoint;
    let weights = tensors(&folder.join("model.safetensors"));
    (folder, weights.into_iter().map(|(name, (_, shape, values))| (name, (shape, values))).collect())
}

/// A folder beside `folder` with its configuration and nothing else.
fn sibling(folder: &Path, name: &str) -> PathBuf {
    let other = folder.with_file_name(name);
    std::fs::create_dir_all(&other).unwrap();
    std::fs::copy(folder.join("config.json"), other.join("config.json")).unwrap();
    other
}

fn encode(values: &[f32], kind: Dtype) -> Vec<u8> {
    match kind {
        Dtype::BF16 => values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

fn write<'a>(path: &Path, weights: impl IntoIterator<Item = (&'a String, &'a (Vec<usize>, Vec<f32>))>, kind: Dtype) {
    let bytes: Vec<_> = weights.into_iter().map(|(name, (shape, x))| (name, shape, encode(x, kind))).collect();
    let views = bytes.iter().map(|(name, shape, bytes)| (name, TensorView::new(kind, shape.to_vec(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Writes shards of `kind`, tensors dealt out in turn, and their index.
fn write_shards(folder: &Path, weights: &Weights, kind: Dtype, shards: usize) -> Vec<String> {
    let names: Vec<String> = (1..=shards).map(|i| format!("model-{i:05}-of-{shards:05}.safetensors")).collect();
    let mut map = serde_json::Map::new();
    for (number, name) in names.iter().enumerate() {
        let part = weights.iter().enumerate().filter(|(i, _)| i % shards == number).map(|(_, w)| w);
        let part: Vec<_> = part.collect();
        part.iter().for_each(|(tensor, _)| drop(map.insert(tensor.to_string(), json!(name))));
        write(&folder.join(name), part, kind);
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    names
}

fn score(folder: &Path) -> Scores {
    let rows = small_rows(&[9, 17, 4, 30]);
    open(&OpenConfig { threads: 2, ..OpenConfig::new(folder) })
        .evaluator()
        .unwrap()
        .score(rows.tokens.view(), &mut ignore)
        .unwrap()
}

#[test]
fn shards_and_narrow_types_score_as_one_f32_file_of_the_same_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, weights) = checkpoint(dir.path());
    assert_eq!(weights.len(), 2 * 12 + 2);
    let mut seen = Vec::new();
    for kind in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        let round = |x: &f32| match kind {
            Dtype::BF16 => half::bf16::from_f32(*x).to_f32(),
            Dtype::F16 => half::f16::from_f32(*x).to_f32(),
            _ => *x,
        };
        let rounded: Weights =
            weights.iter().map(|(n, (shape, x))| (n.clone(), (shape.clone(), x.iter().map(round).collect()))).collect();
        let [wide, narrow, cut] = ["wide", "narrow", "cut"].map(|name| sibling(&folder, &format!("{kind:?}-{name}")));
        write(&wide.join("model.safetensors"), &rounded, Dtype::F32);
        write(&narrow.join("model.safetensors"), &rounded, kind);
        write_shards(&cut, &rounded, kind, 3);
        let expected = score(&wide);
        assert_eq!(score(&narrow), expected, "{kind:?}");
        assert_eq!(score(&cut), expected, "{kind:?}, sharded");
        seen.push(expected);
    }
    // Rounding shows, so the comparison can fail.
    assert!(seen[0] != seen[1] && seen[1] != seen[2]);
}

fn open_error(folder: &Path) -> String {
    let error = NativeBackend.open(&OpenConfig::new(folder)).err().expect("it should not open");
    let because = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
    format!("{error}{because}")
}

#[test]
fn a_broken_shard_or_index_gives_one_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, weights) = checkpoint(dir.path());
    let cut = sibling(&folder, "cut");
    let shards = write_shards(&cut, &weights, Dtype::F32, 2);
    let second = cut.join(&shards[1]);
    let whole = std::fs::read(&second).unwrap();
    score(&cut);

    for length in [0, 7, 40, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&second, &whole[..length]).unwrap();
        let error = open_error(&cut);
        assert!(error.contains(&shards[1]) && error.contains("truncated"), "{length}: {error}");
    }
    // Two tensors that claim the same bytes.
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut json: serde_json::Value = serde_json::from_slice(&whole[8..8 + header]).unwrap();
    let names: Vec<String> = json.as_object().unwrap().keys().filter(|k| *k != "__metadata__").cloned().collect();
    let begin = |json: &serde_json::Value, name: &str| json[name]["data_offsets"][0].as_u64().unwrap();
    let last = names.iter().max_by_key(|n| begin(&json, n)).unwrap().clone();
    json[&last]["data_offsets"][0] = json!(begin(&json, &last) - 4);
    let text = json.to_string();
    let broken = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &whole[8 + header..]].concat();
    std::fs::write(&second, broken).unwrap();
    let error = open_error(&cut);
    assert!(error.contains(&shards[1]) && error.contains("not a safetensors file"), "{error}");
    std::fs::remove_file(&second).unwrap();
    let error = open_error(&cut);
    assert!(error.contains(&shards[1]) && error.contains("No such file"), "{error}");
    std::fs::write(&second, &whole).unwrap();

    let index = cut.join("model.safetensors.index.json");
    let good = read_json(&index);
    let change = |words: &str, text: String| {
        std::fs::write(&index, text).unwrap();
        let error = open_error(&cut);
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    };
    change("model.safetensors.index.json: not an index", good.to_string()[..50].into());
    change("model.safetensors.index.json: not an index", "{}".into());
    let mut outside = good.clone();
    outside["weight_map"]["model.norm.weight"] = json!("../model.safetensors");
    change("is not a file name", outside.to_string());
    let mut missing = good.clone();
    missing["weight_map"].as_object_mut().unwrap().remove("model.norm.weight");
    change("model.norm.weight is missing", missing.to_string());
    // A tensor that is promised in the other shard.
    let mut swapped = good.clone();
    let place = swapped["weight_map"]["model.norm.weight"].clone();
    swapped["weight_map"]["model.norm.weight"] = json!(shards.iter().find(|s| place != s.as_str()).unwrap());
    change("it promises \"model.norm.weight\" in", swapped.to_string());
    std::fs::write(&index, good.to_string()).unwrap();
    score(&cut);
}

#[test]
fn candle_reads_the_same_numbers_out_of_every_block() {
    // Number, elements and bytes of a block, where it has its halves.
    let kinds: [(u32, u64, usize, &[usize]); 12] = [
        (0, 1, 4, &[]),
        (1, 1, 2, &[0]),
        (2, 32, 18, &[0]),
        (3, 32, 20, &[0, 2]),
        (6, 32, 22, &[0]),
        (7, 32, 24, &[0, 2]),
        (8, 32, 34, &[0]),
        (10, 256, 84, &[80, 82]),
        (11, 256, 110, &[108]),
        (12, 256, 144, &[0, 2]),
        (13, 256, 176, &[0, 2]),
        (14, 256, 210, &[208]),
    ];
    let mut file = writer::File::default();
    let mut state = 9u32;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    for (number, length, size, halves) in kinds {
        let mut bytes = Vec::new();
        for _ in 0..6 * (256 / length) {
            let mut block: Vec<u8> = (0..size).map(|_| byte()).collect();
            for &at in halves {
                let scale = half::f16::from_f32((f32::from(byte()) - 127.5) / 500.0);
                block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
            if number == 0 {
                block = (f32::from(byte()) / 7.0 - 3.0).to_le_bytes().to_vec();
            }
            bytes.extend(block);
        }
        file.tensor(&format!("t{number}"), &[2, 768], number, bytes);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blocks.gguf");
    std::fs::write(&path, file.bytes()).unwrap();

    let ours = Gguf::open(&path).unwrap();
    let mut reader = std::fs::File::open(&path).unwrap();
    let theirs = Content::read(&mut reader).unwrap();
    for tensor in ours.tensors() {
        let mut found = vec![0.0; 2 * 768];
        ours.rows(tensor, 0, &mut Vec::new(), &mut found).unwrap();
        let cpu = candle_core::Device::Cpu;
        let expected = theirs.tensor(&mut reader, &tensor.name, &cpu).unwrap().dequantize(&cpu).unwrap();
        assert_eq!(expected.dims(), [2, 768]);
        let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
        let differ = found.iter().zip(&expected).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!(differ, 0, "{:?}", tensor.kind);
    }
}
