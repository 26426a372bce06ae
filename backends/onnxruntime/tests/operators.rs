//! Karat's own operators against the standard graph of the same weights.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use karat_backend::{Dtype, GenerateConfig, Scores, Session};
use karat_onnxruntime::manifest::{DATA, Exported};
use serde_json::json;
use support::*;

const FAMILIES: [(&str, bool); 4] = [("qwen3", true), ("qwen3", false), ("qwen2", false), ("llama", true)];

/// A tiny model whose matrices are stored in bf16, as checkpoints are published, or in f32.
fn model(family: &str, tied: bool, stored: safetensors::tensor::Dtype) -> tempfile::TempDir {
    let folder = tiny_model(family, tied);
    let weights = tiny_weights(&tiny_shapes(family, tied), 11);
    write_tensors(&folder.path().join("model.safetensors"), &weights, stored);
    folder
}

fn session(model: &Path, cache: &Path, operators: &str, dtype: Dtype, threads: usize) -> Box<dyn Session> {
    let change = |config: &mut karat_backend::OpenConfig| {
        config.options.insert("operators".into(), json!(operators));
        config.dtype = dtype;
        config.threads = threads;
    };
    open(model, cache, change).unwrap()
}

fn largest_difference(a: &Scores, b: &Scores) -> f32 {
    assert_eq!(a.logprobs.len(), b.logprobs.len());
    a.logprobs.iter().zip(&b.logprobs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn f32_scores_and_texts_are_those_of_the_standard_graph_and_bf16_weights_are_stored_as_such() {
    if !runtime_is_there() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let rows = tiny_rows(&[40, 1, 25, 60, 2, 0, 17]);
    for (family, tied) in FAMILIES {
        let mut sizes = Vec::new();
        for stored in [safetensors::tensor::Dtype::F32, safetensors::tensor::Dtype::BF16] {
            let folder = model(family, tied, stored);
            let mut standard = session(folder.path(), cache.path(), "standard", Dtype::F32, 2);
            let mut own = session(folder.path(), cache.path(), "karat", Dtype::F32, 2);
            assert_eq!((standard.info().kernels.len(), own.info().kernels.len()), (1, 2));
            let (wanted, scores) = (score(&mut standard, &rows), score(&mut own, &rows));
            let worst = largest_difference(&scores, &wanted);
            println!("{family} tied {tied} {stored:?}: largest difference {worst:.2e}");
            assert!(worst < 2e-5, "{worst}");
            assert_eq!(scores.greedy, wanted.greedy);
            let prompts: Vec<Vec<u32>> = rows.iter().filter(|row| !row.is_empty()).cloned().collect();
            let greedy = GenerateConfig::greedy(20, vec![]);
            assert_eq!(generate(&mut own, &prompts, &greedy), generate(&mut standard, &prompts, &greedy));
            sizes.push(largest_file(cache.path(), folder.path()));
        }
        assert!(sizes[1] < sizes[0], "{sizes:?}: bf16 takes fewer bytes");
    }
}

/// Bytes of the data of the export in Karat's operators that was made of `model`.
fn largest_file(cache: &Path, model: &Path) -> u64 {
    let base = karat_system::fsio::sha256_model(model).unwrap();
    let exports = std::fs::read_dir(cache).unwrap().map(|entry| Exported::open(&entry.unwrap().path()).unwrap());
    let own = exports.filter(|export| export.manifest.base == base && export.manifest.operators.name() == "karat");
    own.map(|export| std::fs::metadata(export.folder.join(DATA)).unwrap().len()).max().unwrap()
}

#[test]
fn bf16_rounds_what_is_multiplied_and_keeps_the_choice_of_operators_apart_in_the_cache() {
    if !runtime_is_there() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let rows = tiny_rows(&[40, 25, 60, 2]);
    for (family, tied) in FAMILIES {
        let folder = model(family, tied, safetensors::tensor::Dtype::BF16);
        let mut exact = session(folder.path(), cache.path(), "standard", Dtype::F32, 2);
        let mut own = session(folder.path(), cache.path(), "karat", Dtype::Bf16, 2);
        assert_eq!(own.info().dtype, Dtype::Bf16);
        assert!(own.info().kernels[1].contains("bf16, f32 sums"), "{:?}", own.info().kernels);
        let scores = score(&mut own, &rows);
        let worst = largest_difference(&scores, &score(&mut exact, &rows));
        println!("{family} tied {tied}: bf16 differs by {worst:.2e} at most");
        // Operands have 8 bits; it is not f32 under another name either.
        assert!(worst > 1e-4 && worst < 0.1, "{worst}");

        // Threads, the rows that stand beside and the size of a batch change no bits.
        let mut alone = session(folder.path(), cache.path(), "karat", Dtype::Bf16, 1);
        assert!(score(&mut alone, &rows) == scores);
        // The chunked cache finds what whole rows find.
        let texts = generate(&mut own, &rows, &GenerateConfig::greedy(8, vec![]));
        let singly: Vec<_> = rows
            .iter()
            .map(|row| generate(&mut alone, std::slice::from_ref(row), &GenerateConfig::greedy(8, vec![])).remove(0))
            .collect();
        assert_eq!(texts, singly);
    }
}

#[test]
fn an_export_in_karats_operators_opens_by_itself_and_nowhere_else() {
    if !runtime_is_there() {
        return;
    }
    let (folder, out) = (model("llama", true, safetensors::tensor::Dtype::BF16), tempfile::tempdir().unwrap());
    let exported = out.path().join("own");
    let mut first = open(folder.path(), out.path(), |config| {
        config.options.insert("export_dir".into(), json!(exported));
    })
    .unwrap();
    let rows = tiny_rows(&[30, 12]);
    let scores = score(&mut first, &rows);
    let mut again = open(&exported, out.path(), |_| {}).unwrap();
    assert!(score(&mut again, &rows) == scores);
    let refused = |key: &str, value: &str| {
        let refused = open(&exported, out.path(), |config| drop(config.options.insert(key.into(), json!(value))));
        refusal(refused).message
    };
    assert!(refused("operators", "standard").contains("already exported in karat operators"));
    assert!(refused("provider", "cuda").contains("cuda"));
}
