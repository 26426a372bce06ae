//! Importing GGUF: numbers to the bit, tokens to the id, and one clear error for every file that is
//! wrong.

#![allow(clippy::unwrap_used)]

#[path = "import/writer.rs"]
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine;
use karat::backend::Dtype;
use karat::data::template::{ChatTemplate, Message, RenderOptions};
use karat::data::tokens::Tokenizer;
use karat::import::{Gguf, ImportOptions, Imported, import_gguf};
use karat::{Error, ErrorKind, fsio};
use serde_json::Value;
use writer::{File, Meta};

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import")
}

fn read(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_string()).collect()
}

fn base64(value: &Value) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap()).unwrap()
}

/// A model of one of the families with the vocabulary of the vectors.
fn model(family: &str, tied: bool) -> File {
    let tokens = read(vectors().join("tokens.json"));
    writer::model(family, tied, &strings(&tokens["tokens"]), &strings(&tokens["merges"]), 3)
}

fn import_with(file: &File, out: &Path, options: ImportOptions) -> karat::Result<Imported> {
    let source = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(source.path(), file.bytes()).unwrap();
    import_gguf(source.path(), out, options, &mut |_, _| Ok(()))
}

fn import(file: &File, out: &Path) -> karat::Result<Imported> {
    import_with(file, out, ImportOptions::default())
}

/// Shape, element type and bytes of a tensor, and in which file it lies.
type Stored = (Vec<u64>, String, Vec<u8>, String);

/// Every tensor of a checkpoint by name.
fn checkpoint(folder: &Path) -> BTreeMap<String, Stored> {
    let mut found = BTreeMap::new();
    let mut files: Vec<_> = folder.read_dir().unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "safetensors"));
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!(length % 8, 0, "tensors lie aligned");
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        for (name, info) in header.as_object().unwrap().iter().filter(|(n, _)| *n != "__metadata__") {
            let numbers =
                |key: &str| -> Vec<u64> { info[key].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect() };
            let at = numbers("data_offsets");
            let data = &bytes[8 + length..][at[0] as usize..at[1] as usize];
            let place = file.file_name().unwrap().to_string_lossy().into_owned();
            let entry = (numbers("shape"), info["dtype"].as_str().unwrap().to_string(), data.to_vec(), place);
            assert!(found.insert(name.clone(), entry).is_none());
        }
    }
    found
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn blocks_of_every_type_are_the_python_packages_to_the_bit() {
    let rows = read(vectors().join("blocks.json"));
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 13);
    let numbers = BTreeMap::from([
        ("F32", 0),
        ("F16", 1),
        ("Q4_0", 2),
        ("Q4_1", 3),
        ("Q5_0", 6),
        ("Q5_1", 7),
        ("Q8_0", 8),
        ("Q2_K", 10),
        ("Q3_K", 11),
        ("Q4_K", 12),
        ("Q5_K", 13),
        ("Q6_K", 14),
        ("BF16", 30),
    ]);
    for row in rows {
        let name = row["type"].as_str().unwrap();
        let (bytes, expected) = (base64(&row["bytes"]), base64(&row["values"]));
        let mut file = File::default();
        file.tensor("x", &[expected.len() as u64 / 4], numbers[name], bytes);
        let source = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(source.path(), file.bytes()).unwrap();
        let gguf = Gguf::open(source.path()).unwrap();
        let tensor = &gguf.tensors()[0];
        assert_eq!(format!("{:?}", tensor.kind), name);
        let mut found = vec![0.0; expected.len() / 4];
        gguf.rows(tensor, 0, &mut Vec::new(), &mut found).unwrap();
        for (i, (a, b)) in found.iter().zip(floats(&expected)).enumerate() {
            assert_eq!(a.to_bits(), b.to_bits(), "{name} element {i}: {a} {b}");
        }
    }
}

#[test]
fn a_file_of_the_python_package_becomes_the_model_it_was_made_of() {
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("deep/tiny");
    let imported =
        import_gguf(&vectors().join("tiny.gguf"), &folder, ImportOptions::default(), &mut |_, _| Ok(())).unwrap();
    assert_eq!(imported.notes, [] as [&str; 0]);
    assert_eq!(imported.name.as_deref(), Some("tiny"));
    let expected = read(vectors().join("tiny.json"));
    let found = checkpoint(&folder);
    assert!(found.keys().eq(expected.as_object().unwrap().keys()));
    for (name, (shape, dtype, bytes, _)) in &found {
        assert_eq!(dtype, "F32");
        assert_eq!(serde_json::json!(shape), expected[name]["shape"], "{name}");
        assert_eq!(fsio::sha256(bytes), expected[name]["sha256"].as_str().unwrap(), "{name}");
    }
    let config = read(folder.join("config.json"));
    for (key, value) in [
        ("model_type", serde_json::json!("llama")),
        ("rms_norm_eps", serde_json::json!(1e-5)),
        ("rope_theta", serde_json::json!(10000.0)),
        ("head_dim", serde_json::json!(16)),
        ("tie_word_embeddings", serde_json::json!(true)),
        ("eos_token_id", serde_json::json!(2)),
        ("vocab_size", serde_json::json!(519)),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    let tokenizer = Tokenizer::from_model_dir(&folder).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (Some(1), Some(2), Some(0)));
    assert_eq!(tokenizer.stop_ids(), [0, 2]);
    let template = ChatTemplate::from_model_dir(&folder).unwrap();
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let text = template.render(&[Message::new("user", "Hi")], &options).unwrap();
    assert_eq!(text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    let ids = tokenizer.encode(&text).unwrap();
    assert_eq!((ids[0], ids.iter().filter(|&&id| id < 3).count()), (1, 3));
    // Nothing but the folder is left where it was made.
    assert_eq!(out.path().join("deep").read_dir().unwrap().count(), 1);
}

#[test]
fn every_pre_tokenizer_gives_the_ids_of_the_plain_algorithm() {
    let vectors = read(vectors().join("tokens.json"));
    let texts = strings(&vectors["texts"]);
    for (pre, expected) in vectors["ids"].as_object().unwrap() {
        let mut file = model("qwen3", true);
        file.set("tokenizer.ggml.pre", pre.as_str());
        let out = tempfile::tempdir().unwrap();
        import(&file, &out.path().join("m")).unwrap();
        let tokenizer = Tokenizer::from_model_dir(out.path().join("m")).unwrap();
        for (text, ids) in texts.iter().zip(expected.as_array().unwrap()) {
            let found = tokenizer.encode(text).unwrap();
            assert_eq!(serde_json::json!(found), *ids, "{pre} on {text:?}");
            if pre != "qwen2" {
                assert_eq!(tokenizer.decode(&found, false).unwrap(), *text, "{pre}");
            }
        }
    }
}

#[test]
fn a_qwen_tokenizer_that_went_through_gguf_cuts_as_before() {
    let given = std::env::var_os("KARAT_SHARED").map(PathBuf::from);
    let mut beside = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|a| a.join("shared"));
    let Some(shared) = given.or_else(|| beside.find(|s| s.is_dir())) else {
        println!("skipped: no shared/ beside the repository (KARAT_SHARED)");
        return;
    };
    let original = shared.join("reference/qwen3-tiny");
    let json = read(original.join("tokenizer.json"));
    let mut tokens = vec![String::new(); 4096];
    let mut kinds = vec![1; 4096];
    for (text, id) in json["model"]["vocab"].as_object().unwrap() {
        tokens[id.as_u64().unwrap() as usize] = text.clone();
    }
    for added in json["added_tokens"].as_array().unwrap() {
        let id = added["id"].as_u64().unwrap() as usize;
        tokens[id] = added["content"].as_str().unwrap().to_string();
        kinds[id] = if added["special"].as_bool().unwrap() { 3 } else { 4 };
    }
    let merges: Vec<String> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
        .collect();
    let mut file = writer::model("qwen3", true, &tokens, &merges, 0);
    file.set("tokenizer.ggml.token_type", Meta::I32s(kinds));
    file.set("tokenizer.ggml.bos_token_id", 4091u32).set("tokenizer.ggml.eos_token_id", 4093u32);
    let template = std::fs::read_to_string(original.join("chat_template.jinja")).unwrap();
    file.set("tokenizer.chat_template", template.as_str());
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("m");
    import(&file, &folder).unwrap();

    let (before, after) = (Tokenizer::from_model_dir(&original).unwrap(), Tokenizer::from_model_dir(&folder).unwrap());
    assert_eq!(after.stop_ids(), before.stop_ids());
    let mut texts = strings(&read(vectors().join("tokens.json"))["texts"]);
    texts.extend(["<think>\n三个\n</think>\n\n答".to_string(), template]);
    for part in ["reference/qwen3_tiny_forward.json", "reference/smollm2_forward.json", "design/evaluation.md"] {
        texts.push(std::fs::read_to_string(shared.join(part)).unwrap());
    }
    let data = shared.join("data/medical-r1");
    for entry in data.read_dir().into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "json" || e == "jsonl") {
            texts.extend(std::fs::read_to_string(path).unwrap().lines().take(300).map(str::to_string));
        }
    }
    let mut count = 0;
    for text in &texts {
        let (a, b) = (before.encode(text).unwrap(), after.encode(text).unwrap());
        assert_eq!(a, b, "{text:?}");
        assert_eq!(before.decode(&a, true).unwrap(), after.decode(&a, true).unwrap());
        count += a.len();
    }
    println!("{} texts, {count} tokens: the same ids", texts.len());
}

#[test]
fn families_keep_what_is_theirs() {
    for (family, tied) in [("qwen3", true), ("qwen2", false), ("llama", false), ("qwen2", true)] {
        let file = model(family, tied);
        let out = tempfile::tempdir().unwrap();
        let folder = out.path().join("m");
        let imported = import(&file, &folder).unwrap();
        let found = checkpoint(&folder);
        assert_eq!(found.contains_key("lm_head.weight"), !tied);
        assert_eq!(found.contains_key("model.layers.1.self_attn.q_norm.weight"), family == "qwen3");
        assert_eq!(found.contains_key("model.layers.1.self_attn.k_proj.bias"), family == "qwen2");
        assert_eq!(imported.parameters, found.values().map(|t| t.0.iter().product::<u64>()).sum::<u64>());
        let stored = |name: &str| floats(&file.tensors.iter().find(|t| t.name == name).unwrap().bytes);
        let q = floats(&found["model.layers.1.self_attn.q_proj.weight"].2);
        let from = stored("blk.1.attn_q.weight");
        // Head 3 (rows 24 to 31): in a llama row 1 comes from row 2, row 4 from row 1.
        let row = |values: &[f32], row: usize| values[row * 32..(row + 1) * 32].to_vec();
        match family {
            "llama" => {
                assert_eq!(row(&q, 25), row(&from, 26));
                assert_eq!(row(&q, 28), row(&from, 25));
                assert_eq!(row(&q, 24), row(&from, 24));
            }
            _ => assert_eq!(q, from),
        }
        assert_eq!(floats(&found["model.layers.0.mlp.down_proj.weight"].2), stored("blk.0.ffn_down.weight"));
        let config = read(folder.join("config.json"));
        assert_eq!(config["tie_word_embeddings"], tied);
        assert_eq!(config["rope_theta"], 500_000.0);
        assert_eq!(config["rms_norm_eps"], 1e-6);
        assert_eq!(config["num_key_value_heads"], 2);
    }
}

#[test]
fn biases_of_a_llama_go_the_way_of_their_rows() {
    let mut file = model("llama", true);
    for layer in 0..2 {
        for (name, rows) in [("attn_q", 32), ("attn_k", 16), ("attn_v", 16), ("attn_output", 32)] {
            let values: Vec<f32> = (0..rows).map(|i| i as f32).collect();
            file.floats(&format!("blk.{layer}.{name}.bias"), &[rows], &values);
        }
    }
    let out = tempfile::tempdir().unwrap();
    import(&file, &out.path().join("m")).unwrap();
    let found = checkpoint(&out.path().join("m"));
    let head = [0, 2, 4, 6, 1, 3, 5, 7];
    let expected: Vec<f32> = (0..2).flat_map(|h| head.map(|i| (h * 8 + i) as f32)).collect();
    assert_eq!(floats(&found["model.layers.0.self_attn.k_proj.bias"].2), expected);
    assert_eq!(floats(&found["model.layers.0.self_attn.v_proj.bias"].2), (0..16).map(|i| i as f32).collect::<Vec<_>>());
    assert_eq!(read(out.path().join("m/config.json"))["attention_bias"], true);
}

#[test]
fn rope_scaling_is_named_from_metadata_and_from_frequencies() {
    let scaling = |file: &File| -> karat::Result<Value> {
        let out = tempfile::tempdir().unwrap();
        import(file, &out.path().join("m"))?;
        Ok(read(out.path().join("m/config.json"))["rope_scaling"].clone())
    };
    let mut file = model("llama", true);
    assert_eq!(scaling(&file).unwrap(), Value::Null);
    file.set("llama.rope.scaling.type", "linear").set("llama.rope.scaling.factor", 2.5f32);
    assert_eq!(scaling(&file).unwrap(), serde_json::json!({"rope_type": "linear", "factor": 2.5}));
    file.set("llama.rope.scaling.type", "yarn");
    assert!(scaling(&file).unwrap_err().what().contains("yarn"));
    // Llama 3.2's divisors for theta 500000 and heads of 8: wavelengths 2 pi theta^(j/4) are 6.28,
    // 167, 4442.9, 118142.
    let mut file = model("llama", true);
    let smooth = (8192.0 / (std::f64::consts::TAU * 500_000f64.sqrt()) - 1.0) / 3.0;
    let third = (1.0 / ((1.0 - smooth) / 32.0 + smooth)) as f32;
    file.floats("rope_freqs.weight", &[4], &[1.0, 1.0, third, 32.0]);
    let found = scaling(&file).unwrap();
    assert_eq!((&found["rope_type"], &found["factor"]), (&"llama3".into(), &32.0.into()));
    file.tensors.last_mut().unwrap().bytes[12] = 1;
    file.tensors.last_mut().unwrap().bytes[14] = 99;
    assert!(scaling(&file).unwrap_err().what().contains("rope_freqs"));
}

#[test]
fn narrow_types_are_the_rounded_values_and_shards_hold_the_same() {
    let file = model("qwen3", false);
    let out = tempfile::tempdir().unwrap();
    let of = |name: &str, dtype: Dtype, max_shard: u64| {
        let folder = out.path().join(name);
        let imported = import_with(&file, &folder, ImportOptions { dtype, max_shard }).unwrap();
        (imported.weight_files, checkpoint(&folder), folder)
    };
    let (one, whole, _) = of("f32", Dtype::F32, u64::MAX);
    let (many, cut, folder) = of("cut", Dtype::F32, 40_000);
    assert_eq!(one, 1);
    assert!(many > 3, "{many}");
    let index = read(folder.join("model.safetensors.index.json"));
    let total: usize = whole.values().map(|t| t.2.len()).sum();
    assert_eq!(index["metadata"]["total_size"], total);
    assert_eq!(index["weight_map"].as_object().unwrap().len(), whole.len());
    for (name, (shape, dtype, bytes, _)) in &whole {
        let (s, d, b, place) = &cut[name];
        assert_eq!((shape, dtype, bytes), (s, d, b), "{name}");
        assert_eq!(index["weight_map"][name], place.as_str(), "{name}");
    }
    let mut shards = BTreeMap::new();
    for (_, _, bytes, place) in cut.values() {
        shards.entry(place).or_insert_with(Vec::new).push(bytes.len());
    }
    assert_eq!(shards.len(), many);
    assert!(shards.values().all(|s| s.len() == 1 || s.iter().sum::<usize>() <= 40_000), "{shards:?}");

    let (_, bf16, folder) = of("bf16", Dtype::Bf16, u64::MAX);
    assert_eq!(read(folder.join("config.json"))["torch_dtype"], "bfloat16");
    let (_, f16, _) = of("f16", Dtype::F16, u64::MAX);
    for (name, (_, _, bytes, _)) in &whole {
        for ((x, b), h) in floats(bytes).iter().zip(bf16[name].2.chunks(2)).zip(f16[name].2.chunks(2)) {
            assert_eq!(half::bf16::from_f32(*x).to_le_bytes(), b);
            assert_eq!(half::f16::from_f32(*x).to_le_bytes(), h);
        }
    }
}

#[test]
fn padding_rows_have_no_token_and_turn_ends_stop() {
    let mut file = model("qwen3", true);
    let vectors = read(vectors().join("tokens.json"));
    let mut tokens = strings(&vectors["tokens"]);
    tokens[1] = "<|eot_id|>".into();
    let last = tokens.len() - 1;
    let mut kinds: Vec<i32> = (0..tokens.len()).map(|i| if i < 3 { 3 } else { 1 }).collect();
    kinds[last] = 5;
    // The merge that made the last token goes with it.
    let merges = strings(&vectors["merges"]);
    let used = merges.iter().filter(|m| m.replace(' ', "") != tokens[last]).cloned().collect();
    file.set("tokenizer.ggml.tokens", Meta::Texts(tokens.clone()));
    file.set("tokenizer.ggml.merges", Meta::Texts(used));
    file.set("tokenizer.ggml.token_type", Meta::I32s(kinds));
    file.set("tokenizer.chat_template", "{{ messages[0].content }}<|eot_id|>");
    let out = tempfile::tempdir().unwrap();
    let imported = import(&file, &out.path().join("m")).unwrap();
    assert_eq!(imported.tokens, last);
    let tokenizer = Tokenizer::from_model_dir(out.path().join("m")).unwrap();
    assert_eq!(tokenizer.id_of(&tokens[last]), None);
    assert_eq!(tokenizer.stop_ids(), [0, 1, 2]);
    assert_eq!(read(out.path().join("m/generation_config.json"))["eos_token_id"], serde_json::json!([2, 1, 0]));
}

/// The error of importing `file`, after a look that nothing was left.
fn error(file: &File) -> Error {
    let out = tempfile::tempdir().unwrap();
    let error = import(file, &out.path().join("m")).unwrap_err();
    assert_eq!(out.path().read_dir().unwrap().count(), 0, "something is left after: {error}");
    assert_eq!(error.kind(), ErrorKind::Data, "{error}");
    assert!(error.place().is_some(), "{error}");
    error
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let change = |change: &dyn Fn(&mut File)| {
        let mut file = model("llama", true);
        change(&mut file);
        error(&file).what().to_string()
    };
    type Edit = dyn Fn(&mut File);
    let cases: [(&str, &Edit); 21] = [
        ("begins with \"GGML\"", &|f| f.magic = *b"GGML"),
        ("version 1", &|f| f.version = 1),
        ("version 77", &|f| f.version = 77),
        ("big-endian", &|f| f.version = 3u32.swap_bytes()),
        ("IQ2_XXS", &|f| f.tensors[0].kind = 16),
        ("number 4711", &|f| f.tensors[0].kind = 4711),
        ("\"gemma\"", &|f| _ = f.set("general.architecture", "gemma")),
        ("expert_count", &|f| _ = f.set("llama.expert_count", 8u32)),
        ("sliding_window", &|f| _ = f.set("llama.attention.sliding_window", 512u32)),
        ("SentencePiece", &|f| _ = f.set("tokenizer.ggml.model", "llama")),
        ("\"tekken\"", &|f| _ = f.set("tokenizer.ggml.pre", "tekken")),
        ("tokenizer.ggml.pre", &|f| _ = f.remove("tokenizer.ggml.pre")),
        ("no tokenizer", &|f| _ = f.remove("tokenizer.ggml.model")),
        ("blk.0.ffn_gate_exps.weight", &|f| _ = f.floats("blk.0.ffn_gate_exps.weight", &[1], &[0.0])),
        ("blk.1.ffn_up.weight is missing", &|f| f.tensors.retain(|t| t.name != "blk.1.ffn_up.weight")),
        ("llama.block_count", &|f| _ = f.remove("llama.block_count")),
        ("llama.block_count", &|f| _ = f.set("llama.block_count", "two")),
        ("has shape", &|f| _ = f.set("llama.feed_forward_length", 50u32)),
        ("tokenizer.ggml.eos_token_id is 5000", &|f| _ = f.set("tokenizer.ggml.eos_token_id", 5000u32)),
        ("holds NaN", &|f| f.tensors[3].bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes())),
        ("one of 3 parts", &|f| _ = f.set("split.count", 3u32)),
    ];
    for (words, edit) in cases {
        let said = change(edit);
        assert!(said.contains(words), "{said:?} does not say {words:?}");
    }
}

#[test]
fn a_broken_file_gives_one_error_wherever_it_is_broken() {
    let change = |words: &str, change: &dyn Fn(&mut File)| {
        let mut file = model("qwen2", true);
        change(&mut file);
        let said = error(&file).what().to_string();
        assert!(said.contains(words), "{said:?} does not say {words:?}");
    };
    change("claims 18446744073709551615 tensors", &|f| f.tensor_count = Some(u64::MAX));
    change("metadata pairs", &|f| f.pair_count = Some(1 << 60));
    change("stands there twice", &|f| f.metadata.push(("general.name".into(), "again".into())));
    change("stands there twice", &|f| _ = f.floats("output_norm.weight", &[32], &[0.0; 32]));
    change("overlap", &|f| f.tensors[2].offset = Some(0));
    change("no multiple of 32", &|f| f.tensors[2].offset = Some(7));
    change("ends within the tensor", &|f| f.tensors[2].offset = Some(1 << 40));
    change("ends within the tensor", &|f| f.tensors[2].offset = Some(u64::MAX - 31));
    change("which cannot be", &|f| f.tensors[0].shape = vec![1 << 40, 1 << 40]);
    change("which cannot be", &|f| f.tensors[0].shape = vec![4, 0]);
    change("dimensions", &|f| f.tensors[0].shape = vec![1; 5]);
    change("list of lists", &|f| _ = f.set("x", Meta::Raw(9, [9u32.to_le_bytes(), [1; 4]].concat())));
    change("type number 13", &|f| _ = f.set("x", Meta::Raw(13, vec![])));
    change("neither true nor false", &|f| _ = f.set("x", Meta::Raw(7, vec![2])));
    change("not UTF-8", &|f| _ = f.set("x", Meta::Raw(8, [&1u64.to_le_bytes()[..], &[0xff]].concat())));
    change("entries of \"x\"", &|f| {
        _ = f.set("x", Meta::Raw(9, [&5u32.to_le_bytes()[..], &(1u64 << 50).to_le_bytes()].concat()))
    });
    change("bytes of", &|f| _ = f.set("x", Meta::Raw(8, (1u64 << 40).to_le_bytes().to_vec())));
    change("general.alignment", &|f| _ = f.set("general.alignment", 33u32));
    change("no pair of tokens", &|f| _ = f.set("tokenizer.ggml.merges", Meta::Texts(vec!["a zz9".into()])));
    change("stands twice", &|f| {
        let mut tokens = strings(&read(vectors().join("tokens.json"))["tokens"]);
        tokens[7] = tokens[8].clone();
        f.set("tokenizer.ggml.tokens", Meta::Texts(tokens));
    });

    // Cut short anywhere, it is an error that says so; the whole file is none.
    let whole = model("qwen2", true).bytes();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    for length in (0..600).chain((600..whole.len()).step_by(997)).chain([whole.len() - 64]) {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = Gguf::open(&path).unwrap_err();
        let said = error.what();
        assert!(said.contains("truncated") || said.contains("broken"), "{length}: {said}");
    }
    std::fs::write(&path, &whole).unwrap();
    Gguf::open(&path).unwrap();
}

#[test]
fn no_byte_of_the_header_can_make_it_panic() {
    let mut file = File::default();
    file.set("general.architecture", "llama").set("llama.rope.freq_base", 1e4f32).set("flag", true);
    file.set("texts", Meta::Texts(vec!["a".into(), "bc".into()])).set("numbers", Meta::I32s(vec![1, 2, 3]));
    file.floats("a", &[2, 4], &[0.5; 8]).tensor("b", &[32], 8, vec![1; 34]);
    let whole = file.bytes();
    let header = whole.len() - 96;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    for at in 0..header {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            std::fs::write(&path, &bytes).unwrap();
            // A changed name or number may still be a file; opening it must end, one way or the
            // other.
            let _ = Gguf::open(&path);
        }
    }
}

#[test]
fn the_folder_is_whole_or_not_there() {
    let file = model("qwen3", true);
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("m");
    // Stopped on the way.
    let source = out.path().join("s.gguf");
    std::fs::write(&source, file.bytes()).unwrap();
    let mut calls = 0;
    let stopped = import_gguf(&source, &folder, ImportOptions::default(), &mut |_, _| {
        calls += 1;
        if calls == 5 { Err(Error::interrupted()) } else { Ok(()) }
    });
    assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Interrupted);
    assert_eq!(out.path().read_dir().unwrap().count(), 1);
    // An empty folder may be there, one with something in it may not.
    std::fs::create_dir(&folder).unwrap();
    import(&file, &folder).unwrap();
    let again = import(&file, &folder).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Usage);
    assert!(again.what().contains("not empty"));
    let missing =
        import_gguf(&out.path().join("none"), &out.path().join("n"), ImportOptions::default(), &mut |_, _| Ok(()));
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::Data);
    // f16 ends at 65504.
    let mut large = model("qwen3", true);
    large.tensors[3].bytes[..4].copy_from_slice(&1e6f32.to_le_bytes());
    let options = ImportOptions { dtype: Dtype::F16, ..ImportOptions::default() };
    let error = import_with(&large, &out.path().join("f16"), options).unwrap_err();
    assert!(error.what().contains("f16 cannot hold"), "{error}");
}
