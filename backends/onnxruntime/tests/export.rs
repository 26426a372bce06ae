//! Exports: whole or not there, reused, and one clear error for everything that is broken.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use karat_backend::{
    AdapterMode, Backend, BackendError, BackendErrorKind, Event, ExportConfig, Flow, Level, OpenConfig, Weights,
};
use karat_onnxruntime::OnnxRuntimeBackend;
use karat_onnxruntime::export::{Request, export_cached, export_to, unheard};
use karat_onnxruntime::manifest::{DATA, Exported, MANIFEST, MODEL};
use safetensors::tensor::Dtype;
use serde_json::json;
use support::*;

/// Files of a folder, hidden ones included.
fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A one-rank adapter on `module` for the tiny model.
fn adapter(module: &str, output: usize, input: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 2, "bias": "none", "target_modules": [module.trim_start_matches("model.layers.")]});
    std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    let mut noise = Noise(8);
    let mut matrix = |shape: [usize; 2]| (shape.to_vec(), (0..shape[0] * shape[1]).map(|_| noise.next()).collect());
    let name = |side: &str| format!("base_model.model.{module}.lora_{side}.weight");
    let tensors = BTreeMap::from([(name("A"), matrix([1, input])), (name("B"), matrix([output, 1]))]);
    write_tensors(&folder.path().join("adapter_model.safetensors"), &tensors, Dtype::F32);
    folder
}

const Q_PROJ: &str = "model.layers.1.self_attn.q_proj";

#[test]
fn an_export_is_made_once_and_its_key_is_its_content() {
    let cache = tempfile::tempdir().unwrap();
    let model = tiny_model("qwen3", true);
    let first = export_cached(&Request::new(model.path()), cache.path()).unwrap();
    let written = std::fs::metadata(first.folder.join(DATA)).unwrap().modified().unwrap();
    let second = export_cached(&Request::new(model.path()), cache.path()).unwrap();
    assert_eq!(second.folder, first.folder);
    assert_eq!(std::fs::metadata(second.folder.join(DATA)).unwrap().modified().unwrap(), written);

    // The same content elsewhere is the same export; an adapter or other weights are another.
    let copy = tiny_model("qwen3", true);
    assert_eq!(export_cached(&Request::new(copy.path()), cache.path()).unwrap().folder, first.folder);
    let lora = adapter(Q_PROJ, 64, 32);
    let adapted = export_cached(&Request::new(model.path()).merging(Some(lora.path())), cache.path()).unwrap();
    assert_ne!(adapted.folder, first.folder);
    assert_eq!((adapted.manifest.adapter_parameters, first.manifest.adapter_parameters), (96, 0));
    let shapes = tiny_shapes("qwen3", true);
    write_tensors(&copy.path().join("model.safetensors"), &tiny_weights(&shapes, 12), Dtype::F32);
    assert_ne!(export_cached(&Request::new(copy.path()), cache.path()).unwrap().folder, first.folder);
    assert_eq!(entries(cache.path()).len(), 3);

    // Two exports of one model are the same bytes.
    let elsewhere = tempfile::tempdir().unwrap();
    let again = export_to(&Request::new(model.path()), &elsewhere.path().join("out"), &mut unheard).unwrap();
    for name in [MODEL, DATA, MANIFEST] {
        assert_eq!(std::fs::read(again.folder.join(name)).unwrap(), std::fs::read(first.folder.join(name)).unwrap());
    }
}

#[test]
fn a_tied_head_is_stored_once_and_counted_once() {
    let cache = tempfile::tempdir().unwrap();
    let [tied, own] = [true, false]
        .map(|tied| export_cached(&Request::new(tiny_model("qwen3", tied).path()), cache.path()).unwrap().manifest);
    let table = (VOCAB * 32) as u64;
    assert_eq!(own.parameters - tied.parameters, table);
    assert!((4 * table..4 * table + 4096).contains(&(own.data_bytes - tied.data_bytes)));
}

#[test]
fn shards_are_read_like_one_file() {
    let model = tiny_model("qwen3", false);
    let single = export_to(&Request::new(model.path()), &model.path().join("single"), &mut unheard).unwrap();
    let mut weights = tiny_weights(&tiny_shapes("qwen3", false), 11);
    let rest = weights.split_off("model.layers.1.input_layernorm.weight");
    let mut map = serde_json::Map::new();
    for (shard, tensors) in [("model-1.safetensors", &weights), ("model-2.safetensors", &rest)] {
        write_tensors(&model.path().join(shard), tensors, Dtype::F32);
        tensors.keys().for_each(|name| drop(map.insert(name.clone(), json!(shard))));
    }
    std::fs::remove_file(model.path().join("model.safetensors")).unwrap();
    let index = model.path().join("model.safetensors.index.json");
    std::fs::write(&index, json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    let sharded = export_to(&Request::new(model.path()), &model.path().join("sharded"), &mut unheard).unwrap();
    assert_eq!(std::fs::read(sharded.folder.join(DATA)).unwrap(), std::fs::read(single.folder.join(DATA)).unwrap());

    std::fs::remove_file(model.path().join("model-2.safetensors")).unwrap();
    let error = export_to(&Request::new(model.path()), &model.path().join("broken"), &mut unheard).unwrap_err();
    assert!(error.to_string().contains("model-2.safetensors"), "{error}");
}

/// Exports a tiny model that `change` has broken; nothing may be left behind.
fn broken(change: impl FnOnce(&Path)) -> BackendError {
    let (model, cache) = (tiny_model("qwen3", false), tempfile::tempdir().unwrap());
    change(model.path());
    let error = export_cached(&Request::new(model.path()), cache.path()).unwrap_err();
    assert_eq!(entries(cache.path()), Vec::<String>::new(), "{error}");
    error
}

fn edit_weights(folder: &Path, change: impl FnOnce(&mut BTreeMap<String, (Vec<usize>, Vec<f32>)>)) {
    let mut weights = tiny_weights(&tiny_shapes("qwen3", false), 11);
    change(&mut weights);
    write_tensors(&folder.join("model.safetensors"), &weights, Dtype::F32);
}

#[test]
fn a_broken_checkpoint_is_one_clear_error_and_nothing_half_written() {
    let norm = "model.layers.1.self_attn.k_norm.weight";
    let truncate = |folder: &Path, keep: usize| {
        let file = folder.join("model.safetensors");
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..keep.min(bytes.len() - 1)]).unwrap();
    };
    let cases: [(BackendError, &[&str]); 11] = [
        (broken(|f| std::fs::remove_file(f.join("config.json")).unwrap()), &["config.json"]),
        (broken(|f| std::fs::write(f.join("config.json"), "{\"model_type\": ").unwrap()), &["config.json", "JSON"]),
        (broken(|f| std::fs::write(f.join("config.json"), "{}").unwrap()), &["config.json", "model_type", "missing"]),
        (broken(|f| std::fs::remove_file(f.join("model.safetensors")).unwrap()), &["model.safetensors"]),
        (broken(|f| truncate(f, usize::MAX)), &["model.safetensors", "truncated"]),
        (broken(|f| truncate(f, 100)), &["model.safetensors", "truncated"]),
        (broken(|f| truncate(f, 3)), &["model.safetensors", "truncated"]),
        (broken(|f| edit_weights(f, |w| drop(w.remove(norm)))), &[norm, "missing"]),
        (broken(|f| edit_weights(f, |w| drop(w.insert(norm.into(), (vec![8], vec![1.0; 8]))))), &[norm, "[8]", "[16]"]),
        (broken(|f| edit_weights(f, |w| w.get_mut(norm).unwrap().1[3] = f32::NAN)), &[norm, "not finite"]),
        (
            broken(|f| edit_weights(f, |w| drop(w.insert("vision.weight".into(), (vec![1], vec![1.0]))))),
            &["vision.weight"],
        ),
    ];
    for (error, words) in &cases {
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text:?} should name {words:?}");
    }
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let (model, cache) = (tiny_model("qwen3", true), tempfile::tempdir().unwrap());
    for (lora, expected) in [
        (adapter(Q_PROJ, 128, 32), "another base"),
        (adapter(Q_PROJ, 64, 16), "another base"),
        (adapter("model.layers.7.self_attn.q_proj", 64, 32), "model.layers.7.self_attn.q_proj"),
        (adapter("model.q_proj", 64, 32), "model.q_proj"),
    ] {
        let error = export_cached(&Request::new(model.path()).merging(Some(lora.path())), cache.path()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert_eq!(entries(cache.path()), Vec::<String>::new());
}

#[test]
fn a_damaged_export_is_named_and_a_damaged_cache_is_replaced() {
    let model = tiny_model("qwen3", true);
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("onnx");
    let cut = |name: &str| {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        std::fs::write(folder.join(name), &bytes[..bytes.len() - 1]).unwrap();
    };
    let damages: [(&dyn Fn(), &str); 5] = [
        (&|| cut(MODEL), MODEL),
        (&|| cut(DATA), DATA),
        (&|| std::fs::remove_file(folder.join(DATA)).unwrap(), DATA),
        (&|| std::fs::remove_file(folder.join(MANIFEST)).unwrap(), MANIFEST),
        (
            &|| {
                let mut bytes = std::fs::read(folder.join(MODEL)).unwrap();
                bytes[200] ^= 1;
                std::fs::write(folder.join(MODEL), bytes).unwrap();
            },
            "not what was written",
        ),
    ];
    for (damage, expected) in damages {
        export_to(&Request::new(model.path()), &folder, &mut unheard).unwrap();
        damage();
        let error = export_to(&Request::new(model.path()), &folder, &mut unheard).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    let cached = export_cached(&Request::new(model.path()), out.path()).unwrap();
    std::fs::write(cached.folder.join(DATA), b"short").unwrap();
    let again = export_cached(&Request::new(model.path()), out.path()).unwrap();
    assert_eq!(again.folder, cached.folder);
    Exported::open(&again.folder).unwrap();
}

#[test]
fn a_model_of_another_opset_is_named_with_both_versions() {
    let (model, out) = (tiny_model("qwen3", true), tempfile::tempdir().unwrap());
    let folder = out.path().join("onnx");
    export_to(&Request::new(model.path()), &folder, &mut unheard).unwrap();
    let mut bytes = std::fs::read(folder.join(MODEL)).unwrap();
    // opset_import, a message of four bytes: no domain, version 21.
    let opset = [0x42, 4, 0x0a, 0, 0x10, 21];
    let at = bytes.windows(6).rposition(|window| window == opset).unwrap();
    bytes[at + 5] = 23;
    std::fs::write(folder.join(MODEL), &bytes).unwrap();
    let mut manifest = read_json(&folder.join(MANIFEST));
    manifest["model_sha256"] = json!(karat_system::fsio::sha256(&bytes));
    std::fs::write(folder.join(MANIFEST), manifest.to_string()).unwrap();
    let error = Exported::open(&folder).unwrap_err().to_string();
    assert!(error.contains("its opset of ai.onnx is 23, 21 is needed"), "{error}");

    // A model that another tool wrote is no export of Karat's.
    std::fs::remove_file(folder.join(MANIFEST)).unwrap();
    let error = Exported::open(&folder).unwrap_err().to_string();
    assert!(error.contains(MANIFEST) && error.contains("karat export"), "{error}");
}

#[test]
fn a_folder_with_something_else_in_it_is_not_overwritten() {
    let out = tempfile::tempdir().unwrap();
    let (one, other) = (tiny_model("qwen3", true), tiny_model("llama", true));
    export_to(&Request::new(one.path()), &out.path().join("onnx"), &mut unheard).unwrap();
    let error = export_to(&Request::new(other.path()), &out.path().join("onnx"), &mut unheard).unwrap_err();
    assert!(error.to_string().contains("another model"), "{error}");
    std::fs::create_dir(out.path().join("notes")).unwrap();
    std::fs::write(out.path().join("notes/diary.txt"), "mine").unwrap();
    export_to(&Request::new(one.path()), &out.path().join("notes"), &mut unheard).unwrap_err();
    assert_eq!(entries(&out.path().join("notes")), ["diary.txt"]);
}

#[test]
fn an_exported_folder_opens_like_the_checkpoint_it_was_made_from() {
    if !runtime_is_there() {
        return;
    }
    let (model, out) = (tiny_model("qwen3", true), tempfile::tempdir().unwrap());
    let lora = adapter(Q_PROJ, 64, 32);
    let folder = out.path().join("onnx");
    let mut made = open(model.path(), out.path(), |config| {
        config.options = BTreeMap::from([("export_dir".into(), json!(folder))]);
        config.adapter = Some(lora.path().to_path_buf());
    })
    .unwrap();
    assert!(entries(&folder).contains(&"genai_config.json".to_string()));
    let mut reopened = open(&folder, out.path(), |_| {}).unwrap();
    let mut base = open(model.path(), out.path(), |_| {}).unwrap();
    let rows = tiny_rows(&[20, 7]);
    assert_eq!(score(&mut made, &rows), score(&mut reopened, &rows));
    assert_ne!(score(&mut made, &rows), score(&mut base, &rows));
    assert_eq!(reopened.info(), made.info());

    let error = refusal(open(&folder, out.path(), |config| config.adapter = Some(lora.path().to_path_buf())));
    assert_eq!(error.kind, BackendErrorKind::Unsupported);
    assert!(error.message.contains("already exported"), "{error}");
}

#[test]
fn options_and_requests_that_are_not_served_are_named() {
    let (model, cache) = (tiny_model("qwen3", true), tempfile::tempdir().unwrap());
    let with_option = |key: &'static str, value: serde_json::Value| {
        move |config: &mut OpenConfig| drop(config.options.insert(key.into(), value))
    };
    let with_options = |pairs: [(&'static str, serde_json::Value); 2]| {
        move |config: &mut OpenConfig| {
            pairs.into_iter().for_each(|(key, value)| drop(config.options.insert(key.into(), value)))
        }
    };
    type Change = Box<dyn FnOnce(&mut OpenConfig)>;
    let cases: Vec<(Change, &str)> = vec![
        (Box::new(with_option("spinn", json!(true))), "\"spinn\" (known: adapter_mode, cache_dir"),
        (Box::new(with_option("spin", json!("yes"))), "spin"),
        (Box::new(with_option("context", json!(0))), "context"),
        (Box::new(with_option("library", json!(7))), "library"),
        (Box::new(|c| c.device = "cuda:0".into()), "cuda:0"),
        (Box::new(with_options([("operators", json!("standard")), ("weights", json!("bf16"))])), "bf16 on the CPU"),
        (Box::new(with_options([("operators", json!("karat")), ("weights", json!("int8"))])), "not in int8 on cpu"),
        (Box::new(with_options([("operators", json!("karat")), ("weights", json!("f16"))])), "not in f16 on cpu"),
        (Box::new(with_option("operators", json!("own"))), "\"karat\" or \"standard\", not \"own\""),
        (Box::new(with_option("weights", json!("int3"))), "\"int3\" (known: f32, f16, bf16, int8, int4)"),
        (Box::new(with_option("adapter_mode", json!("both"))), "\"merge\" or \"runtime\""),
        (Box::new(|c| c.weights = Weights::Random), "weights"),
    ];
    for (change, expected) in cases {
        let error = refusal(open(model.path(), cache.path(), change));
        assert!(error.message.contains(expected), "{error}");
    }
    assert_eq!(entries(cache.path()), Vec::<String>::new());
}

#[test]
fn sizes_of_a_manifest_are_held_against_its_files() {
    let (model, cache) = (tiny_model("qwen3", true), tempfile::tempdir().unwrap());
    let folder = export_cached(&Request::new(model.path()), cache.path()).unwrap().folder;
    let whole = read_json(&folder.join(MANIFEST));
    for key in ["layers", "kv_heads", "head_dim", "vocab", "max_positions"] {
        for value in [0u64, 1_000_000_000_000, u64::MAX] {
            let mut changed = whole.clone();
            changed[key] = json!(value);
            std::fs::write(folder.join(MANIFEST), changed.to_string()).unwrap();
            let error = Exported::open(&folder).unwrap_err().to_string();
            assert!(error.contains("do not fit the files"), "{key}: {error}");
        }
    }
    std::fs::write(folder.join(MANIFEST), whole.to_string()).unwrap();
    Exported::open(&folder).unwrap();
}

#[test]
fn an_export_of_a_head_of_its_own_says_so_in_its_configuration_and_its_log() {
    let model = tiny_model("qwen3", false);
    let config = tiny_config("qwen3", true);
    std::fs::write(model.path().join("config.json"), config.to_string()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let mut said = Vec::new();
    let mut sink = |event: Event| {
        if let Event::Log { level: Level::Warn, message } = event {
            said.push(message);
        }
        Flow::Continue
    };
    let config = ExportConfig {
        model: model.path().to_path_buf(),
        adapters: Vec::new(),
        adapter_mode: AdapterMode::Merge,
        weights: "f32".into(),
        out: out.path().join("export"),
    };
    OnnxRuntimeBackend.export(&config, &mut sink).unwrap();
    assert!(said.len() == 1 && said[0].contains("lm_head.weight"), "{said:?}");
    assert_eq!(read_json(&config.out.join("config.json"))["tie_word_embeddings"], false);
    // Both heads are there.
    let exported = Exported::open(&config.out).unwrap();
    let untied = export_to(&Request::new(tiny_model("qwen3", false).path()), &out.path().join("other"), &mut unheard);
    assert_eq!(exported.manifest.parameters, untied.unwrap().manifest.parameters);
}
