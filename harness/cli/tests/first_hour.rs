//! A user's first hour: prompts on the command line, an adapter's folder as a model,
//! the wrong path, a key with a slip, a number out of range. Each works, or is one error that says
//! what to do.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

fn base() -> String {
    repository().join("suites/medical-r1/base").to_str().unwrap().to_string()
}

fn karat_in(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_karat")).args(args).current_dir(folder).stdin(Stdio::null()).output().unwrap()
}

fn karat(args: &[&str]) -> Output {
    karat_in(&repository(), args)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn ok(args: &[&str]) -> String {
    let output = karat(args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The command is refused with this exit code and says all of these words.
fn refused(args: &[&str], code: i32, words: &[&str]) {
    let output = karat(args);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{args:?} does not say {word:?}: {said}");
    }
}

fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A folder with rows of ids to train on, and a trained adapter of rank 3 if it is asked for.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        let line = |row: u32| {
            let ids: Vec<u32> = (0..6 + row).map(|i| (row * 37 + i * i * 11) % 400).collect();
            json!({"input_ids": ids, "labels": ids}).to_string() + "\n"
        };
        std::fs::write(place.folder.path().join("rows.jsonl"), (0..6).map(line).collect::<String>()).unwrap();
        place
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_string()
    }

    fn train(&self, out: &str, more: &[&str]) -> Output {
        let (base, data, out) = (base(), self.path("rows.jsonl"), self.path(out));
        let mut args = vec!["train", "--model", &base, "--ids", "--data", &data, "--out", &out];
        args.extend(["--set", "max_steps=2", "--set", "accumulation=1", "--set", "learning_rate=0.01"]);
        args.extend(more);
        karat(&args)
    }

    fn adapter(&self) -> String {
        let done = self.train("lora", &["--set", "r=3", "--set", "target_modules=[\"q_proj\", \"down_proj\"]"]);
        assert!(done.status.success(), "{}", said(&done));
        self.path("lora/checkpoint-2")
    }
}

fn adapter_config(folder: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(Path::new(folder).join("adapter_config.json")).unwrap()).unwrap()
}

#[test]
fn training_an_adapter_on_takes_its_own_configuration_and_refuses_another_rank_by_name() {
    let place = Place::new();
    let adapter = place.adapter();
    let on = place.train("on", &["--init-adapter", &adapter]);
    assert!(on.status.success(), "{}", said(&on));
    let (before, after) = (adapter_config(&adapter), adapter_config(&place.path("on/checkpoint-2")));
    for key in ["r", "lora_alpha", "target_modules", "use_rslora", "lora_dropout"] {
        assert_eq!(before[key], after[key], "{key}");
    }
    assert_eq!(after["r"], 3);
    // What is no part of its shape may be set.
    let dropout = place.train("dropout", &["--init-adapter", &adapter, "--set", "lora_dropout=0.25"]);
    assert!(dropout.status.success(), "{}", said(&dropout));
    for (set, words) in [
        ("r=16", ["r = 16 contradicts", "r = 3"]),
        ("use_dora=true", ["use_dora = true contradicts", "use_dora = none"]),
        ("target_modules=[\"q_proj\"]", ["target_modules", "down_proj"]),
    ] {
        let output = place.train("other", &["--init-adapter", &adapter, "--set", set]);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(words.iter().all(|word| said(&output).contains(word)), "{set}: {}", said(&output));
    }
    let nowhere = place.train("other", &["--init-adapter", &place.path("nowhere")]);
    assert_eq!(nowhere.status.code(), Some(2), "{}", said(&nowhere));
}

#[test]
fn an_adapters_folder_as_the_model_is_the_adapter_on_its_base_in_every_command() {
    let place = Place::new();
    let (base, adapter) = (base(), place.adapter());
    for command in ["score", "generate"] {
        let both = ok(&[command, "--model", &base, "--adapter", &adapter, "二甲双胍用于2型糖尿病。"]);
        assert_eq!(ok(&[command, "--model", &adapter, "二甲双胍用于2型糖尿病。"]), both, "{command}");
    }
    // Two steps change every score; a greedy text may stay as it was.
    let score = |model: &str| ok(&["score", "--model", model, "二甲双胍用于2型糖尿病。"]);
    assert_ne!(score(&base), score(&adapter));
    let (a, b) = (place.path("merged-a"), place.path("merged-b"));
    ok(&["merge", "--model", &base, "--adapter", &adapter, "--out", &a]);
    ok(&["merge", "--model", &adapter, "--out", &b]);
    let weights = |folder: &str| std::fs::read(Path::new(folder).join("model.safetensors")).unwrap();
    assert!(weights(&a) == weights(&b));
    // Half the size, rounded once.
    let half = place.path("merged-bf16");
    ok(&["merge", "--model", &adapter, "--dtype", "bf16", "--out", &half]);
    let size = |folder: &str| weights(folder).len();
    assert!(size(&half) < size(&a) * 11 / 20, "{} and {}", size(&half), size(&a));
    let config = std::fs::read_to_string(Path::new(&half).join("config.json")).unwrap();
    assert!(config.contains("bfloat16"), "{config}");
    let sum =
        |model: &str| rows(&ok(&["score", "--model", model, "二甲双胍用于2型糖尿病。"]))[0]["sum"].as_f64().unwrap();
    assert!((sum(&half) - sum(&a)).abs() < 0.02 * sum(&a).abs() && sum(&half) != sum(&a));
    assert_eq!(
        std::fs::read_dir(&half).unwrap().count(),
        std::fs::read_dir(&a).unwrap().count(),
        "nothing is left over"
    );
    refused(&["merge", "--model", &adapter, "--dtype", "int4", "--out", &place.path("i")], 2, &["karat export"]);
    let eval = |more: &[&str]| {
        let out = place.path("eval");
        let _ = std::fs::remove_dir_all(&out);
        let fixed = ["--json", "eval", "medical-r1", "--set", "eval.items=2", "--set", "eval.max_new_tokens=4"];
        let report: Value = serde_json::from_str(&ok(&[&fixed[..], &["--out", &out], more].concat())).unwrap();
        report["report"]["models"][0].clone()
    };
    let both = eval(&["--model", &base, "--adapter", &adapter]);
    let alone = eval(&["--model", &adapter]);
    assert_eq!((&both["metrics"], &both["checkpoint_sha256"]), (&alone["metrics"], &alone["checkpoint_sha256"]));

    refused(&["score", "--model", &adapter, "--adapter", &adapter, "x"], 2, &["adapter itself"]);
    refused(&["merge", "--model", &base, "--out", &place.path("c")], 2, &["no adapter to merge", "--adapter DIR"]);
    let data = place.path("rows.jsonl");
    let train = ["train", "--model", &adapter, "--ids", "--data", &data, "--out", &place.path("d")];
    refused(&train, 2, &["--init-adapter", "karat merge --model"]);
    let set = format!("model.base={adapter}");
    refused(&["run", "medical-r1", "--set", &set, "--out", &place.path("e")], 2, &["model.base", "karat merge"]);

    // An adapter of a base that is not on this machine.
    let mut config = adapter_config(&adapter);
    config["base_model_name_or_path"] = json!("Qwen/Qwen3-0.6B");
    std::fs::write(Path::new(&adapter).join("adapter_config.json"), config.to_string()).unwrap();
    refused(&["score", "--model", &adapter, "x"], 2, &["hf:Qwen/Qwen3-0.6B", "ms:Qwen/Qwen3-0.6B", "as the adapter"]);
}

#[test]
fn a_model_that_is_an_id_of_the_hub_is_said_to_be_one_before_anything_is_missing_in_it() {
    let place = Place::new();
    let (id, out, rows) = ("Qwen/Qwen3-0.6B", place.path("out"), place.path("rows.jsonl"));
    let words =
        ["no such folder", "name on a hub", "hf:Qwen/Qwen3-0.6B (Hugging Face) or ms:Qwen/Qwen3-0.6B (ModelScope)"];
    let set = format!("model.base={id}");
    for args in [
        &["score", "--model", id, "x"][..],
        &["generate", "--model", id, "--chat", "x"],
        &["generate", "--model", id, "--input", &rows],
        &["train", "--model", id, "--data", &rows, "--out", &out],
        &["eval", "medical-r1", "--model", id],
        &["export", "--model", id, "--out", &out],
        &["merge", "--model", id, "--adapter", id, "--out", &out],
        &["compare", "--backends", "native,native", "--model", id],
        &["doctor", "--determinism", "--model", id],
        &["run", "medical-r1", "--set", &set, "--out", &out],
        &["data", "medical-r1", "--set", &set],
    ] {
        refused(args, 2, &words);
    }
    // As the base of a suite's file.
    let suite = place.folder.path().join("suite.toml");
    std::fs::write(&suite, format!("name = \"x\"\n[data]\nfile = \"rows.jsonl\"\n[model]\nbase = \"{id}\"\n")).unwrap();
    refused(&["run", suite.to_str().unwrap(), "--out", &out], 2, &words);
}

#[test]
fn a_wrong_path_is_the_users_and_what_is_near_it_is_said() {
    let place = Place::new();
    let (base, out) = (base(), place.path("out"));
    let (near, gone) = (base.replace("base", "bsae"), place.path("rowz.jsonl"));
    let rows = place.path("rows.jsonl");
    refused(&["score", "--model", &near, "x"], 2, &["no such folder", "did you mean", "medical-r1/base?"]);
    refused(&["score", "--model", &base, "--adapter", &place.path("nowhere"), "x"], 2, &["no such folder"]);
    for args in [
        &["score", "--model", &base, "--input", &gone][..],
        &["generate", "--model", &base, "--input", &gone],
        &["metrics", "--input", &gone],
        &["train", "--model", &base, "--ids", "--data", &gone, "--out", &out],
        &["train", "--model", &base, "--ids", "--data", &rows, "--eval-data", &gone, "--out", &out],
        &["compare", &gone, &gone],
        &["report", &gone],
        &["eval", "medical-r1", "--predictions", &gone],
        &["import", "--gguf", &gone, "--out", &out],
        &["compare", "--backends", "native,native", "--model", &base, "--input", &gone],
    ] {
        refused(args, 2, &["rowz.jsonl", "did you mean", "rows.jsonl?"]);
    }
    let weights = Path::new(&base).join("model.safetensors");
    refused(&["score", "--model", weights.to_str().unwrap(), "x"], 2, &["this is a file", "give its folder"]);
    let empty = place.path("empty");
    std::fs::create_dir(&empty).unwrap();
    refused(&["score", "--model", &empty, "x"], 2, &["no config.json", "no model"]);
    refused(&["train", "--model", &base, "--data", "-", "--out", &out], 2, &["standard input"]);
    let folder = Path::new(&base).parent().unwrap();
    refused(&["score", "--model", folder.to_str().unwrap(), "x"], 2, &["no config.json", "medical-r1/base"]);
    let suite = place.folder.path().join("suite.toml");
    std::fs::write(&suite, format!("name = \"x\"\n[data]\nfile = \"rowz.jsonl\"\n[model]\nbase = \"{base}\"\n"))
        .unwrap();
    refused(&["data", suite.to_str().unwrap()], 2, &["no such data file", "rows.jsonl?", "relative to the suite"]);
}

#[test]
fn texts_that_are_not_utf_8_are_bad_data_in_every_command_that_reads_some() {
    let place = Place::new();
    let base = base();
    let broken = place.path("broken.jsonl");
    std::fs::write(&broken, b"{\"id\": 1, \"text\": \"\xff\xfe\", \"reference\": \"a\", \"candidate\": \"b\"}\n")
        .unwrap();
    for args in [
        &["score", "--model", &base, "--input", &broken][..],
        &["generate", "--model", &base, "--input", &broken],
        &["metrics", "--input", &broken],
        &["compare", &broken, &broken],
        &["report", "reports/medical-r1", "--splice", &broken],
        &["train", "--model", &base, "--text", "--data", &broken, "--out", &place.path("out"), "--strict"],
    ] {
        let output = karat(args);
        assert!(matches!(output.status.code(), Some(2 | 6)), "{args:?}: {}", said(&output));
    }
}

#[test]
fn a_prompt_on_the_command_line_is_the_same_as_one_in_a_file() {
    let place = Place::new();
    let base = base();
    let (texts, turns) = (place.path("texts.jsonl"), place.path("turns.jsonl"));
    std::fs::write(&texts, "{\"text\": \"二甲双胍\"}\n{\"text\": \"Ibuprofen \\\"x\\\"\"}\n").unwrap();
    let turn = json!({"messages": [{"role": "user", "content": "二甲双胍"}]});
    std::fs::write(&turns, format!("{turn}\n")).unwrap();
    for command in ["generate", "score"] {
        let sorted = |text: String| {
            let mut rows = rows(&text);
            rows.sort_by_key(|row| row["id"].as_u64());
            rows
        };
        let typed = ok(&[command, "--model", &base, "二甲双胍", "Ibuprofen \"x\""]);
        assert_eq!(sorted(typed), sorted(ok(&[command, "--model", &base, "--input", &texts])), "{command}");
        let chat = ok(&[command, "--model", &base, "--chat", "二甲双胍"]);
        assert_eq!(sorted(chat), sorted(ok(&[command, "--model", &base, "--input", &turns])), "{command}");
        refused(&[command, "--model", &base], 2, &["--input", "TEXT"]);
        refused(&[command, "--model", &base, "-"], 2, &["--input -"]);
        let file = karat(&[command, "--model", &base, &texts]);
        assert!(file.status.success() && said(&file).contains("is taken as a text"), "{}", said(&file));
    }
}

#[test]
fn every_command_that_opens_a_model_can_choose_its_element_type_and_options() {
    let place = Place::new();
    let base = base();
    let sum = |more: &[&str]| {
        let args = [&["score", "--model", &base, "二甲双胍用于2型糖尿病。"][..], more].concat();
        rows(&ok(&args))[0]["sum"].as_f64().unwrap()
    };
    let (f32, bf16) = (sum(&[]), sum(&["--dtype", "bf16"]));
    assert!(f32 != bf16 && (f32 - bf16).abs() < 0.1 * f32.abs(), "{f32} and {bf16}");
    assert_eq!(sum(&["--dtype", "f32"]), f32);

    let loss = |out: &str, more: &[&str]| {
        let done = place.train(out, more);
        assert!(done.status.success(), "{}", said(&done));
        let log = std::fs::read_to_string(Path::new(&place.path(out)).join("events.jsonl")).unwrap();
        rows(&log).into_iter().find(|event| event["type"] == "step").unwrap()["loss"].as_f64().unwrap()
    };
    let f32 = loss("f32", &[]);
    assert_ne!(loss("flag", &["--dtype", "bf16"]), f32);
    assert_eq!(loss("set", &["--set", "model.dtype=bf16"]), loss("flag", &["--dtype", "bf16"]));

    let refuse = |args: &[&str], words: &[&str]| refused(args, 2, words);
    for command in ["score", "generate"] {
        refuse(&[command, "--model", &base, "x", "--dtype", "int4"], &["native computes in f32, bf16", "onnxruntime"]);
        refuse(&[command, "--model", &base, "x", "--dtype", "fp16"], &["f32, bf16, f16, int8, int4"]);
        refuse(&[command, "--model", &base, "x", "--option", "spin"], &["KEY=VALUE"]);
        refuse(&[command, "--model", &base, "x", "--option", "onnxruntime.spin=true"], &["the backend is native"]);
        refused(&[command, "--model", &base, "x", "--option", "spin=true"], 5, &["spin", "cuda_graph"]);
    }
    let train = |more: &[&str], words: &[&str]| {
        let output = place.train("refused", more);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {}", said(&output));
        assert!(words.iter().all(|word| said(&output).contains(word)), "{more:?}: {}", said(&output));
    };
    let output = place.train("refused", &["--backend", "onnxruntime"]);
    assert!(output.status.code() == Some(5) && said(&output).contains("cannot train"), "{}", said(&output));
    train(&["--dtype", "int8"], &["int8", "nothing is trained in"]);
    train(&["--set", "model.dtype=int3"], &["model.dtype", "f32, bf16, f16, int8, int4"]);
    train(&["--set", "model.dtype=bf16", "--dtype", "f32"], &["model.dtype is given twice"]);
    let parity = ["compare", "--backends", "native,onnxruntime", "--model", &base, "--dtype", "int4"];
    refuse(&parity, &["--option onnxruntime.weights=int4"]);
    refuse(&["compare", "reports/medical-r1", "reports/medical-r1", "--device", "cpu"], &["--backends"]);
    refuse(&["report", "reports/medical-r1", "--dtype", "bf16"], &["seed-compat"]);
    // One device and one type for the whole of a suite.
    let (out, eval) = (place.path("eval"), ["eval.items=1", "eval.max_new_tokens=2", "eval.device=cuda:7"]);
    let mut args = vec!["--json", "eval", "medical-r1", "--out", &out, "--device", "cpu", "--dtype", "bf16"];
    eval.iter().for_each(|set| args.extend(["--set", set]));
    let report: Value = serde_json::from_str(&ok(&args)).unwrap();
    let text = report.to_string();
    assert!(text.contains("\"dtype\":\"bf16\"") && text.contains("\"device\":\"cpu\""), "{text}");
    for command in ["train", "score", "generate", "eval", "run", "merge", "compare", "doctor", "report"] {
        let help = ok(&[command, "--help"]);
        assert!(["--dtype", "--option", "--device"].iter().all(|flag| help.contains(flag)), "{command}: {help}");
    }
}

#[test]
fn a_number_out_of_range_is_refused_under_the_name_it_was_typed_by() {
    let base = base();
    let generate = ["generate", "--model", &base, "x"];
    for (flag, values) in [
        ("--temperature", &["NaN", "-1", "inf", "warm"][..]),
        ("--top-p", &["0", "2", "-0.5", "NaN"]),
        ("--top-k", &["-1", "1.5"]),
        ("--max-new-tokens", &["0", "1000000000000", "-3"]),
        ("--batch-size", &["-1", "1000000000000"]),
        ("--seed", &["-1", "x", "18446744073709551616"]),
        ("--threads", &["-1", "10000"]),
    ] {
        for value in values {
            refused(
                &[&generate[..], &[flag, value]].concat(),
                2,
                &[flag, value, "must be"].map(|w| match w {
                    "must be" if flag == "--seed" => "a seed is",
                    other => other,
                }),
            );
        }
    }
    // Without a temperature nothing is sampled: these would do nothing.
    refused(&[&generate[..], &["--top-p", "0.9"]].concat(), 2, &["--temperature"]);
    refused(&[&generate[..], &["--top-k", "5"]].concat(), 2, &["--temperature"]);
    for (key, value) in [
        ("eval.temperature", "-1"),
        ("eval.temperature", "nan"),
        ("eval.top_p", "0"),
        ("eval.top_p", "2"),
        ("eval.max_new_tokens", "0"),
        ("eval.max_new_tokens", "1000000000000"),
        ("eval.batch_size", "1000000000000"),
        ("seed", "-1"),
        ("train.batch_size", "0"),
        ("train.epochs", "nan"),
    ] {
        let set = format!("{key}={value}");
        let last = key.rsplit('.').next().unwrap();
        refused(&["data", "medical-r1", "--set", &set], 2, &[last]);
    }
    let place = Place::new();
    for set in ["batch_size=0", "learning_rate=nan", "epochs=-1", "r=0", "lora_dropout=1"] {
        let output = place.train("out", &["--set", set]);
        let key = set.split('=').next().unwrap();
        assert_eq!(output.status.code(), Some(2), "{set}: {}", said(&output));
        assert!(said(&output).contains(key), "{set}: {}", said(&output));
    }
}

#[test]
fn a_key_with_a_slip_is_understood_and_all_keys_are_listed() {
    let place = Place::new();
    let train = |set: &str, words: &[&str]| {
        let output = place.train("out", &["--set", set]);
        assert_eq!(output.status.code(), Some(2), "{set}: {}", said(&output));
        assert!(words.iter().all(|word| said(&output).contains(word)), "{set}: {}", said(&output));
    };
    let all = ["lora_alpha", "learning_rate", "optimizer.beta1", "data.max_length", "fields.answer", "model.dtype"];
    train("learnin_rate=1", &["did you mean `learning_rate`?"]);
    train("nonsense=1", &all);
    train("max_length=5", &["did you mean `data.max_length`?"]);
    train("data.maxlength=5", &["did you mean `max_length`?", "system"]);
    train("model.dtyp=bf16", &["did you mean `dtype`?"]);
    train("epochs=many", &["epochs=many"]);
    let help = ok(&["train", "--help"]);
    // Wrapped at the terminal's width.
    let help: String = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(all.iter().all(|key| help.contains(key)), "{help}");

    refused(&["data", "medical-r1", "--set", "train.lora.ranks=4"], 2, &["`ranks`", "lora_alpha", "learning_rate"]);
    refused(&["data", "medical-r1", "--set", "eval.r=4"], 2, &["did you mean `train.lora.r`?"]);
    refused(&["data", "medical-r1", "--set", "seed=x"], 2, &["seed"]);
    refused(&["data", "medical-r1", "--set", "data.split=9-1"], 2, &["data.split", "9:1"]);
    refused(&["data", "medical-r1", "--set", "data.template=chatml"], 2, &["data.template", "chatml-recipe"]);
    refused(&["data", "medical-r1", "--set", "title=5"], 2, &["title", "quote a text"]);
    refused(&["scroe"], 2, &["score"]);
    refused(&["score", "--modle", "x"], 2, &["--model"]);

    let suite = place.folder.path().join("suite.toml");
    let base = base();
    let written = |train: &str| {
        let text = format!("name = \"x\"\n[data]\nfile = \"rows.jsonl\"\n[model]\nbase = \"{base}\"\n{train}");
        std::fs::write(&suite, text).unwrap();
    };
    let suite = suite.to_str().unwrap();
    written("[train.lora]\nr = 4\nlora_alfa = 8\n");
    refused(&["data", suite], 2, &["suite.toml:8:1", "lora_alfa = 8", "did you mean `lora_alpha`?", "epochs"]);
    written("[train]\nepochs = 1\n[train.full]\n[train.optimizer]\nbeta = 0.9\n");
    refused(&["data", suite], 2, &["suite.toml:10:1", "beta1", "weight_decay"]);
    written("[train.lora]\nr = \"four\"\n");
    refused(&["data", suite], 2, &["suite.toml:7:5", "`r`", "four"]);
    written("[train.full]\nschedule = \"cosin\"\n");
    refused(&["data", suite], 2, &["suite.toml:7:12", "`schedule`", "cosine"]);
}

#[test]
fn what_is_typed_with_quotes_and_lines_arrives_as_it_was_typed() {
    let title = |value: &str| {
        let place = Place::new();
        let out = place.path("run");
        let set = format!("title={value}");
        let args = ["eval", "medical-r1", "--out", &out, "--set", &set];
        let args = [&args[..], &["--set", "eval.items=1", "--set", "eval.max_new_tokens=1"]].concat();
        ok(&args);
        let stored = std::fs::read_to_string(Path::new(&out).join("suite.toml")).unwrap();
        stored.parse::<toml::Table>().unwrap()["title"].as_str().unwrap().to_string()
    };
    for text in ["He said \"yes\"", "two\nlines", "1 # one", "2026-11-29", "a = 1\nb = 2", "it's"] {
        assert_eq!(title(text), text);
    }
    assert_eq!(title("\"quoted\""), "quoted");
    // A device is a text, whatever it looks like; nothing of it becomes another setting.
    let args = ["data", "medical-r1", "--language", "zh", "--strict"];
    assert!(karat(&args).status.success());
    let run = ["run", "medical-r1", "--device", "cpu\"\nseed = 7", "--out"];
    let place = Place::new();
    refused(&[&run[..], &[&place.path("run")]].concat(), 2, &["was not built for cpu"]);
}

#[test]
fn every_command_shows_what_to_type() {
    for command in [
        "run", "data", "train", "score", "generate", "export", "eval", "compare", "report", "check", "power", "merge",
        "metrics", "import", "doctor",
    ] {
        let help = ok(&[command, "--help"]);
        assert!(
            help.contains("Examples:") && help.contains(&format!("karat {command}")) || command == "metrics",
            "{help}"
        );
    }
}

#[test]
fn a_backend_without_its_runtime_says_the_one_command_and_exports_all_the_same() {
    let place = Place::new();
    let without = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_karat"));
        command.args(args).env("KARAT_ONNXRUNTIME", place.path("nowhere")).current_dir(repository());
        command.output().unwrap()
    };
    for command in ["backends", "doctor"] {
        let output = without(&[command]);
        let page = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && page.contains("doctor --fix"), "{command}: {page}");
    }
    let page = ok(&["backends"]);
    assert!(page.contains("types f32, bf16\n") && page.contains("int8, int4"), "{page}");
    let out = place.path("onnx");
    let export = without(&["export", "--model", &base(), "--out", &out, "--dtype", "int8"]);
    assert!(export.status.success(), "{}", said(&export));
    let score = without(&["score", "--model", &base(), "--backend", "onnxruntime", "x"]);
    assert_eq!(score.status.code(), Some(5), "{}", said(&score));
    assert!(said(&score).contains("pip install") || said(&score).contains("doctor --fix"), "{}", said(&score));
}
