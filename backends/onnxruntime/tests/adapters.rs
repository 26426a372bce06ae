//! Adapters: every variant merged as its formula says, and exchanged on one resident base.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use karat_backend::abi::Foreign;
use karat_backend::{
    AdapterMode, Backend, BackendErrorKind, ExportConfig, GenerateConfig, NamedAdapter, OpenConfig, Session,
    TEMPORARY_MODEL,
};
use karat_onnxruntime::OnnxRuntimeBackend;
use karat_onnxruntime::export::unheard;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use support::*;

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

const Q: &str = "model.layers.1.self_attn.q_proj";
const DOWN: &str = "model.layers.0.mlp.down_proj";
/// `[output, input]` of these in the tiny model.
const SHAPES: [(&str, [usize; 2]); 2] = [(Q, [64, 32]), (DOWN, [32, 48])];

/// Factors on two modules, of the given ranks.
fn factors(seed: u64, ranks: [usize; 2]) -> Tensors {
    let mut noise = Noise(seed);
    let mut tensors = Tensors::new();
    for ((module, [output, input]), rank) in SHAPES.into_iter().zip(ranks) {
        for (side, shape) in [("A", [rank, input]), ("B", [output, rank])] {
            let values = (0..shape[0] * shape[1]).map(|_| 0.3 * noise.next()).collect();
            tensors.insert(format!("base_model.model.{module}.lora_{side}.weight"), (shape.to_vec(), values));
        }
    }
    tensors
}

fn config(change: Value) -> Value {
    let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none",
        "target_modules": ["1.self_attn.q_proj", "0.mlp.down_proj"], "base_model_name_or_path": "somewhere"});
    config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    config
}

fn write_adapter(folder: &Path, config: &Value, tensors: &Tensors) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    write_tensors(&folder.join("adapter_model.safetensors"), tensors, Dtype::F32);
}

fn adapter(config: &Value, tensors: &Tensors) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_adapter(folder.path(), config, tensors);
    folder
}

/// The tiny model's weights with `scales[i] B A` added to the two modules, and rows set to
/// `magnitude` if there is one.
fn merged(model: &Tensors, tensors: &Tensors, scales: [f64; 2], magnitude: Option<&dyn Fn(usize) -> f64>) -> Tensors {
    let mut weights = model.clone();
    for ((module, [output, input]), scale) in SHAPES.into_iter().zip(scales) {
        let side = |x: &str| &tensors[&format!("base_model.model.{module}.lora_{x}.weight")];
        let ((_, a), (shape, b)) = (side("A"), side("B"));
        let weight = &mut weights.get_mut(&format!("{module}.weight")).unwrap().1;
        for o in 0..output {
            let row: Vec<f64> = (0..input)
                .map(|i| {
                    let delta: f64 =
                        (0..shape[1]).map(|r| f64::from(b[o * shape[1] + r]) * f64::from(a[r * input + i])).sum();
                    f64::from(weight[o * input + i]) + scale * delta
                })
                .collect();
            let norm = row.iter().map(|w| w * w).sum::<f64>().sqrt();
            for (i, w) in row.into_iter().enumerate() {
                weight[o * input + i] = magnitude.map_or(w, |m| w * m(o) / norm) as f32;
            }
        }
    }
    weights
}

fn weights_of(family: &str, tied: bool) -> Tensors {
    tiny_weights(&tiny_shapes(family, tied), 11)
}

#[test]
fn every_variant_is_merged_as_its_formula_says() {
    if !runtime_is_there() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let (model, rows) = (tiny_model("qwen3", false), tiny_rows(&[30, 11]));
    let base = weights_of("qwen3", false);
    let magnitude = |o: usize| 0.5 + (o % 5) as f64 * 0.3;
    let mut dora = factors(5, [2, 2]);
    for (module, [output, _]) in SHAPES {
        let values = (0..output).map(|o| magnitude(o) as f32).collect();
        dora.insert(format!("base_model.model.{module}.lora_magnitude_vector"), (vec![output], values));
    }
    let head: Vec<f32> = base["lm_head.weight"].1.iter().map(|w| 0.5 - w).collect();
    let mut saved = factors(6, [2, 2]);
    saved.insert("base_model.model.lm_head.weight".into(), (vec![VOCAB, 32], head.clone()));
    let mut with_head = merged(&base, &saved, [3.0, 3.0], None);
    with_head.get_mut("lm_head.weight").unwrap().1 = head;

    let plain = |seed, ranks, scales| (factors(seed, ranks), merged(&base, &factors(seed, ranks), scales, None));
    let root = 6.0 / 2f64.sqrt();
    let cases = [
        ("plain", json!({}), plain(1, [2, 2], [3.0, 3.0])),
        ("rslora", json!({"use_rslora": true}), plain(2, [2, 2], [root, root])),
        (
            "patterns",
            json!({"rank_pattern": {"down_proj": 4}, "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 1}}),
            plain(3, [2, 4], [0.5, 1.5]),
        ),
        (
            "a pattern for targets",
            json!({"target_modules": r".*(1.self_attn.q|0.mlp.down)_proj"}),
            plain(4, [2, 2], [3.0, 3.0]),
        ),
        ("dora", json!({"use_dora": true}), (dora.clone(), merged(&base, &dora, [3.0, 3.0], Some(&magnitude)))),
        ("modules_to_save", json!({"modules_to_save": ["lm_head"]}), (saved, with_head)),
    ];
    let untouched = score(&mut open(model.path(), cache.path(), |_| {}).unwrap(), &rows);
    for (name, change, (tensors, expected)) in cases {
        let lora = adapter(&config(change), &tensors);
        let with = |c: &mut OpenConfig| c.adapter = Some(lora.path().to_path_buf());
        let found = score(&mut open(model.path(), cache.path(), with).unwrap(), &rows);
        let other = tiny_model("qwen3", false);
        write_tensors(&other.path().join("model.safetensors"), &expected, Dtype::F32);
        let wanted = score(&mut open(other.path(), cache.path(), |_| {}).unwrap(), &rows);
        let far = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let (near, moved) = (far(&found.logprobs, &wanted.logprobs), far(&found.logprobs, &untouched.logprobs));
        println!("{name}: {near:.1e} from the formula, {moved:.2} from the base");
        assert!(near < 2e-5 && moved > 0.1, "{name}: {near} {moved}");

        // Written as it would be shipped it is the same model, whoever reads it.
        let into = cache.path().join(format!("merged {name}"));
        let merging = |c: &mut OpenConfig| (with(c), c.merge_into = Some(into.clone())).1;
        let opened = score(&mut open(model.path(), cache.path(), merging).unwrap(), &rows);
        let written = score(&mut open(&into, cache.path(), |_| {}).unwrap(), &rows);
        assert_eq!((&opened, &written), (&found, &found), "{name}");
        let (base, said) = (read_json(&model.path().join("config.json")), read_json(&into.join("config.json")));
        let kept = base.as_object().unwrap().iter().filter(|(key, _)| !key.ends_with("dtype"));
        assert!(kept.into_iter().all(|(key, value)| said[key] == *value), "{said}");
        let error = refusal(open(model.path(), cache.path(), merging));
        assert!(error.message.contains("already holds something"), "{error}");
    }
    let nothing = cache.path().join("nothing");
    let error = refusal(open(model.path(), cache.path(), |c| c.merge_into = Some(nothing.clone())));
    assert!(error.message.contains("no adapter") && !nothing.exists(), "{error}");
}

#[test]
fn what_is_exported_of_a_temporary_model_goes_with_it() {
    if !runtime_is_there() {
        return;
    }
    let (model, home) = (tiny_model("llama", true), tempfile::tempdir().unwrap());
    let there = home.path().join(format!("{TEMPORARY_MODEL}abc")).join("merged");
    std::fs::create_dir_all(&there).unwrap();
    for entry in std::fs::read_dir(model.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), there.join(entry.file_name())).unwrap();
    }
    let cache = home.path().join("cache");
    let (rows, none) = (tiny_rows(&[9]), |_: &mut OpenConfig| {});
    let found = score(&mut open(&there, &cache, none).unwrap(), &rows);
    assert!(!cache.exists());
    assert_eq!(found, score(&mut open(model.path(), &cache, none).unwrap(), &rows));
    assert!(cache.exists());
}

#[test]
fn a_head_that_an_adapter_brings_unties_a_tied_one_and_an_embedding_is_refused() {
    if !runtime_is_there() {
        return;
    }
    let (model, cache) = (tiny_model("llama", true), tempfile::tempdir().unwrap());
    let table: Vec<f32> = weights_of("llama", true)["model.embed_tokens.weight"].1.iter().map(|w| w * 0.5).collect();
    let brings = |module: &str, tensor: &str| {
        let mut tensors = factors(6, [2, 2]);
        tensors.insert(format!("base_model.model.{tensor}"), (vec![VOCAB, 32], table.clone()));
        adapter(&config(json!({"modules_to_save": [module]})), &tensors)
    };
    let head = brings("lm_head", "lm_head.weight");
    let opened = open(model.path(), cache.path(), |c| c.adapter = Some(head.path().to_path_buf()));
    let rows = tiny_rows(&[30]);
    let scores = score(&mut opened.unwrap(), &rows);
    let untied = tiny_model("llama", false);
    let mut weights = merged(&weights_of("llama", true), &factors(6, [2, 2]), [3.0, 3.0], None);
    weights.insert("lm_head.weight".into(), (vec![VOCAB, 32], table.clone()));
    write_tensors(&untied.path().join("model.safetensors"), &weights, Dtype::F32);
    let wanted = score(&mut open(untied.path(), cache.path(), |_| {}).unwrap(), &rows);
    assert!(scores.logprobs.iter().zip(&wanted.logprobs).all(|(a, b)| (a - b).abs() < 2e-5));
    // The folder it is merged into says so.
    let into = cache.path().join("merged");
    let merging =
        |c: &mut OpenConfig| (c.adapter, c.merge_into) = (Some(head.path().to_path_buf()), Some(into.clone()));
    assert_eq!(score(&mut open(model.path(), cache.path(), merging).unwrap(), &rows), scores);
    assert_eq!(read_json(&into.join("config.json"))["tie_word_embeddings"], false);

    let embedding = brings("embed_tokens", "model.embed_tokens.weight");
    let error = refusal(open(model.path(), cache.path(), |c| c.adapter = Some(embedding.path().to_path_buf())));
    assert!(error.kind == BackendErrorKind::Unsupported && error.message.contains("modules_to_save"), "{error}");
}

fn runtime_mode(c: &mut OpenConfig) {
    c.options.insert("adapter_mode".into(), json!("runtime"));
}

#[test]
fn two_adapters_and_the_base_are_served_by_one_session() {
    if !runtime_is_there() {
        return;
    }
    let (cache, rows) = (tempfile::tempdir().unwrap(), tiny_rows(&[30, 11, 45]));
    let greedy = GenerateConfig::greedy(12, Vec::new());
    for (family, tied, weights, near) in
        [("qwen3", true, "f32", 1e-5), ("qwen2", false, "f32", 1e-5), ("llama", true, "f16", 0.05)]
    {
        let model = tiny_model(family, tied);
        let one = adapter(&config(json!({})), &factors(1, [2, 2]));
        let two = adapter(&config(json!({"rank_pattern": {"down_proj": 5}})), &factors(2, [2, 5]));
        let typed = |c: &mut OpenConfig| drop(c.options.insert("weights".into(), json!(weights)));
        let merged = |lora: Option<&Path>| {
            let mut session = open(model.path(), cache.path(), |c| {
                typed(c);
                c.adapter = lora.map(Path::to_path_buf);
            })
            .unwrap();
            (score(&mut session, &rows), generate(&mut session, &rows, &greedy))
        };
        let mut session = Foreign::in_process::<OnnxRuntimeBackend>()
            .unwrap()
            .open(&{
                let mut c = OpenConfig::new(model.path());
                c.options.insert("cache_dir".into(), json!(cache.path()));
                runtime_mode(&mut c);
                typed(&mut c);
                c
            })
            .unwrap();
        let found: Vec<_> = [None, Some(one.path()), Some(two.path()), Some(one.path()), None]
            .into_iter()
            .map(|lora| {
                session.set_adapter(lora).unwrap();
                assert_eq!(session.info().adapter_parameters > 0, lora.is_some());
                let scores = score(&mut session, &rows);
                let (wanted, texts) = merged(lora);
                let far = |(a, b): (&f32, &f32)| (a - b).abs();
                let far = scores.logprobs.iter().zip(&wanted.logprobs).map(far).fold(0.0, f32::max);
                println!("{family} {weights}: {far:.1e} from the merged one");
                assert!(far < near, "{family} {weights}: {far}");
                if weights == "f32" {
                    assert_eq!(generate(&mut session, &rows, &greedy), texts);
                }
                scores
            })
            .collect();
        // Exchanging leaves no trace, and no two are alike.
        assert!(found[0] == found[4] && found[1] == found[3]);
        assert!(found[0] != found[1] && found[1] != found[2] && found[0] != found[2]);
    }
}

#[test]
fn an_adapter_that_cannot_be_fed_leaves_the_one_that_is_there() {
    if !runtime_is_there() {
        return;
    }
    let (model, cache, rows) = (tiny_model("qwen3", true), tempfile::tempdir().unwrap(), tiny_rows(&[20]));
    let good = adapter(&config(json!({})), &factors(1, [2, 2]));
    let mut session = open(model.path(), cache.path(), |c| {
        runtime_mode(c);
        c.adapter = Some(good.path().to_path_buf());
    })
    .unwrap();
    let before = score(&mut session, &rows);

    let mut wide = factors(1, [2, 2]);
    wide.insert(format!("base_model.model.{Q}.lora_A.weight"), (vec![2, 48], vec![0.1; 96]));
    let mut elsewhere = factors(1, [2, 2]);
    for side in ["A", "B"] {
        let moved = elsewhere.remove(&format!("base_model.model.{Q}.lora_{side}.weight")).unwrap();
        elsewhere.insert(format!("base_model.model.model.layers.9.self_attn.q_proj.lora_{side}.weight"), moved);
    }
    let mut dora = factors(1, [2, 2]);
    for (module, [output, _]) in SHAPES {
        let name = format!("base_model.model.{module}.lora_magnitude_vector");
        dora.insert(name, (vec![output], vec![1.0; output]));
    }
    let told = adapter(&config(json!({})), &factors(1, [2, 2]));
    std::fs::write(told.path().join("karat-base.json"), json!({"base": "0".repeat(64)}).to_string()).unwrap();
    let empty = tempfile::tempdir().unwrap();
    for (lora, word) in [
        (&adapter(&config(json!({})), &wide), "another base"),
        (&adapter(&config(json!({})), &elsewhere), "model.layers.9.self_attn.q_proj"),
        (&adapter(&config(json!({"use_dora": true})), &dora), "merge"),
        (&adapter(&config(json!({"r": 3})), &factors(1, [2, 2])), "has rank 2, adapter_config.json says 3"),
        (&told, "belongs to another base"),
        (&empty, "adapter_config.json"),
    ] {
        let error = session.set_adapter(Some(lora.path())).unwrap_err();
        assert!(error.to_string().contains(word), "{word}: {error}");
        assert!(score(&mut session, &rows) == before, "{word}");
    }

    let mut merged = open(model.path(), cache.path(), |c| c.adapter = Some(good.path().to_path_buf())).unwrap();
    let error = merged.set_adapter(None).unwrap_err();
    assert!(error.kind == BackendErrorKind::Unsupported && error.message.contains("runtime"), "{error}");
}

fn named(name: &str, folder: &Path) -> NamedAdapter {
    NamedAdapter { name: name.into(), path: folder.to_path_buf() }
}

#[test]
fn a_base_and_its_adapters_are_exported_together_and_used_from_there() {
    let (model, out) = (tiny_model("qwen3", true), tempfile::tempdir().unwrap());
    let (one, two) =
        (adapter(&config(json!({})), &factors(1, [2, 2])), adapter(&config(json!({})), &factors(2, [2, 2])));
    let place = out.path();
    let export = |adapters: Vec<NamedAdapter>, adapter_mode, name: &str| {
        let config = ExportConfig { adapters, adapter_mode, ..ExportConfig::new(model.path(), place.join(name)) };
        OnnxRuntimeBackend.export(&config, &mut unheard)
    };
    let both = vec![named("one", one.path()), named("two", two.path())];
    let summary = export(both.clone(), AdapterMode::Runtime, "both").unwrap();
    assert!(summary.files.contains_key("adapters/two/two.onnx_adapter"), "{:?}", summary.files);
    assert_eq!(summary.adapter_parameters, 2 * 2 * (64 + 32 + 32 + 48));
    assert!(export(both, AdapterMode::Runtime, "both").unwrap().reused);

    let same = vec![named("one", one.path()), named("one", two.path())];
    let slash = vec![named("../one", one.path())];
    for (adapters, mode, word) in [
        (same.clone(), AdapterMode::Runtime, "two adapters are called \"one\""),
        (slash, AdapterMode::Runtime, "no name for an adapter"),
        (same, AdapterMode::Merge, "2 adapters cannot be merged into one model"),
    ] {
        let error = export(adapters, mode, "none").unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert!(!place.join("none").exists());
    }

    if !runtime_is_there() {
        return;
    }
    let (rows, folder) = (tiny_rows(&[25]), place.join("both"));
    let mut session = open(&folder, out.path(), |c| c.adapter = Some(folder.join("adapters/two"))).unwrap();
    let from_there = score(&mut session, &rows);
    let mut merged = open(model.path(), out.path(), |c| c.adapter = Some(two.path().to_path_buf())).unwrap();
    assert!(score(&mut merged, &rows).logprobs.iter().zip(&from_there.logprobs).all(|(a, b)| (a - b).abs() < 1e-5));

    // The copies know their base: another model, of the same shapes, does not take them.
    let other = tiny_model("qwen3", true);
    write_tensors(&other.path().join("model.safetensors"), &tiny_weights(&tiny_shapes("qwen3", true), 99), Dtype::F32);
    let mut session: Box<dyn Session> = open(other.path(), out.path(), runtime_mode).unwrap();
    session.set_adapter(Some(one.path())).unwrap();
    let error = session.set_adapter(Some(&folder.join("adapters/one"))).unwrap_err();
    assert!(error.message.contains("belongs to another base"), "{error}");
}

#[test]
fn an_adapter_under_other_names_is_mapped_and_said_in_sessions_exports_and_merges() {
    if !runtime_is_there() {
        return;
    }
    let (model, cache) = (tiny_model("qwen3", true), tempfile::tempdir().unwrap());
    let plain = factors(3, [2, 2]);
    let theirs =
        plain.iter().map(|(name, t)| (format!("module.{}", name.replace(".weight", ".default.weight")), t.clone()));
    let (ours, theirs) =
        (adapter(&config(json!({})), &plain), adapter(&config(json!({"a_new_key": 1})), &theirs.collect()));
    let rows = tiny_rows(&[9, 17]);
    let opened = |folder: &Path, mode: &str, into: Option<std::path::PathBuf>| {
        let mut session = open(model.path(), cache.path(), |c| {
            c.adapter = Some(folder.to_path_buf());
            c.merge_into = into;
            c.options.insert("adapter_mode".into(), json!(mode));
        })
        .unwrap();
        (score(&mut session, &rows), session.info().warnings)
    };
    for mode in ["merge", "runtime"] {
        let (want, nothing) = opened(ours.path(), mode, None);
        assert!(nothing.is_empty(), "{nothing:?}");
        let (got, said) = opened(theirs.path(), mode, None);
        assert_eq!(got, want);
        assert!(said.iter().any(|w| w.contains("a_new_key")) && said.iter().any(|w| w.contains("module.")), "{said:?}");
    }
    let into = cache.path().join("merged");
    let (_, said) = opened(theirs.path(), "merge", Some(into.clone()));
    assert!(said.iter().any(|w| w.contains("module.")), "{said:?}");

    // A head of its own beside a configuration that ties it: merged, the folder says what is so.
    let mut weights = weights_of("qwen3", true);
    let mut head = weights["model.embed_tokens.weight"].clone();
    head.1.iter_mut().for_each(|x| *x *= 2.0);
    weights.insert("lm_head.weight".into(), head);
    write_tensors(&model.path().join("model.safetensors"), &weights, Dtype::BF16);
    let into = cache.path().join("merged-head");
    let (_, said) = opened(ours.path(), "merge", Some(into.clone()));
    assert!(said.iter().any(|w| w.contains("lm_head.weight")), "{said:?}");
    assert_eq!(read_json(&into.join("config.json"))["tie_word_embeddings"], false);
}
