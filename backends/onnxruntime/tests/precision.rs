//! The cost of each weight format: log-probabilities against those of f32, for every family and
//! head.

#![allow(clippy::unwrap_used)]

mod support;

use karat_backend::{Dtype, GenerateConfig};
use karat_onnxruntime::export::{Request, export_cached};
use karat_onnxruntime::manifest::{DATA, Exported};
use karat_onnxruntime::weight_format::WeightFormat;
use serde_json::json;
use support::*;

/// Mean and largest distance of log-probabilities.
fn distance(a: &[f32], b: &[f32]) -> (f32, f32) {
    let distances = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    let (sum, most) = distances.fold((0f32, 0f32), |(sum, most), d| (sum + d, most.max(d)));
    (sum / a.len() as f32, most)
}

#[test]
fn fewer_bits_cost_as_much_as_they_should_and_no_more() {
    if !runtime_is_there() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let rows = tiny_rows(&[40, 25, 60, 2]);
    for (family, tied) in [("qwen3", true), ("qwen3", false), ("qwen2", false), ("llama", true)] {
        let model = tiny_model(family, tied);
        let scored = |weights: WeightFormat| {
            let set =
                |c: &mut karat_backend::OpenConfig| drop(c.options.insert("weights".into(), json!(weights.name())));
            let mut session = open(model.path(), cache.path(), set).unwrap();
            assert_eq!(session.info().dtype, weights.activations());
            assert!(session.info().kernels[0].ends_with(&format!("weights {weights}")));
            // Steps over the cache find what whole rows find: the cache has the model's element
            // type.
            let texts = generate(&mut session, &rows[..3], &GenerateConfig::greedy(5, Vec::new()));
            let continued: Vec<Vec<u32>> =
                rows.iter().zip(&texts).map(|(row, text)| row.iter().chain(&text.ids).copied().collect()).collect();
            let greedy = score(&mut session, &continued).greedy;
            let ends = continued.iter().scan(0, |end, row| {
                *end += row.len() - 1;
                Some(*end)
            });
            if weights == WeightFormat::F32 {
                assert!(ends.into_iter().all(|end| greedy[end - 5..end].iter().all(|&g| g)));
            }
            score(&mut session, &rows).logprobs
        };
        let exact = scored(WeightFormat::F32);
        let [half, eight, four] = [WeightFormat::F16, WeightFormat::Int8, WeightFormat::Int4].map(|weights| {
            let (mean, most) = distance(&scored(weights), &exact);
            println!("{family} tied {tied} {weights}: mean {mean:.5}, largest {most:.5}");
            mean
        });
        assert!(half > 0.0 && half < 0.005, "{half}");
        assert!(eight > half && eight < 0.06, "{eight}");
        assert!(four > eight && four < 0.6, "{four}");
    }
}

#[test]
fn files_shrink_with_the_bits_and_a_tied_head_is_stored_once_in_each() {
    let cache = tempfile::tempdir().unwrap();
    let bytes = |tied, weights| {
        let model = tiny_model("qwen3", tied);
        let request = Request { weights, ..Request::new(model.path()) };
        export_cached(&request, cache.path()).unwrap().manifest.data_bytes
    };
    for weights in WeightFormat::ALL {
        let own = bytes(false, weights) - bytes(true, weights);
        // Weights of the head, and with blocks of 32 their scales and zero points; each tensor is
        // aligned to 4096.
        let head = match weights {
            WeightFormat::F32 => VOCAB * 32 * 4,
            WeightFormat::F16 | WeightFormat::Bf16 => VOCAB * 32 * 2,
            WeightFormat::Int8 | WeightFormat::Int4 => VOCAB * (32 + 4 + 1),
        } as u64;
        assert!((head..head + 3 * 4096).contains(&own), "{weights}: {own} for {head}");
    }
}

#[test]
fn a_weight_that_f16_cannot_hold_is_named() {
    let (model, cache) = (tiny_model("qwen3", true), tempfile::tempdir().unwrap());
    let mut weights = tiny_weights(&tiny_shapes("qwen3", true), 11);
    let name = "model.layers.1.mlp.up_proj.weight";
    weights.get_mut(name).unwrap().1[7] = 1e6;
    write_tensors(&model.path().join("model.safetensors"), &weights, safetensors::tensor::Dtype::F32);
    let request = Request { weights: WeightFormat::F16, ..Request::new(model.path()) };
    let error = export_cached(&request, cache.path()).unwrap_err().to_string();
    assert!(error.contains(name) && error.contains("1000000") && error.contains("f16"), "{error}");
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
    // bf16 has the range.
    let request = Request { weights: WeightFormat::Bf16, ..request };
    export_cached(&request, cache.path()).unwrap();
}

#[test]
fn an_exported_folder_keeps_its_element_type_and_says_so_when_asked_for_another() {
    if !runtime_is_there() {
        return;
    }
    let (model, cache) = (tiny_model("llama", true), tempfile::tempdir().unwrap());
    let folder =
        |weights| export_cached(&Request { weights, ..Request::new(model.path()) }, cache.path()).unwrap().folder;
    let int4 = folder(WeightFormat::Int4);
    open(&int4, cache.path(), |_| {}).unwrap();
    let error = refusal(open(&int4, cache.path(), |c| drop(c.options.insert("weights".into(), json!("int8")))));
    assert!(error.message.contains("already exported as int4"), "{error}");
    let error = refusal(open(&int4, cache.path(), |c| c.dtype = Dtype::F16));
    assert!(error.message.contains("computes in f32 with weights in int4, not in f16"), "{error}");
    assert_eq!(
        open(&folder(WeightFormat::F16), cache.path(), |c| c.dtype = Dtype::F16).unwrap().info().dtype,
        Dtype::F16
    );
    let error = refusal(open(&folder(WeightFormat::Bf16), cache.path(), |_| {}));
    assert!(error.message.contains("bf16 on the CPU"), "{error}");
}

#[test]
fn an_export_made_by_two_processes_at_once_is_made_once() {
    let (model, cache) = (tiny_model("qwen3", false), tempfile::tempdir().unwrap());
    let made: Vec<Exported> = std::thread::scope(|scope| {
        let start = || export_cached(&Request::new(model.path()), cache.path()).unwrap();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let times = made.iter().map(|e| std::fs::metadata(e.folder.join(DATA)).unwrap().modified().unwrap());
    assert_eq!(times.collect::<std::collections::BTreeSet<_>>().len(), 1);
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 1, "one export and no lock is left");
}
