//! What is taken of repositories as they are on the hubs.
#![allow(clippy::unwrap_used)]

use super::*;

fn files(paths: &[&str]) -> Vec<RemoteFile> {
    paths.iter().map(|path| RemoteFile { path: path.to_string(), size: 1, hash: None }).collect()
}

fn id(text: &str) -> HubId {
    HubId::parse(text).unwrap()
}

fn paths(found: Vec<&RemoteFile>) -> Vec<&str> {
    found.into_iter().map(|file| file.path.as_str()).collect()
}

fn splits(found: Vec<(String, &RemoteFile)>) -> Vec<(String, &str)> {
    found.into_iter().map(|(split, file)| (split, file.path.as_str())).collect()
}

#[test]
fn of_a_model_weights_configuration_tokenizer_and_words_are_taken() {
    let all = files(&[
        ".gitattributes",
        "LICENSE",
        "README.md",
        "config.json",
        "consolidated.safetensors",
        "figures/x.png",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.fp16.safetensors",
        "model.safetensors.index.json",
        "modeling_x.py",
        "onnx/model.onnx",
        "pytorch_model.bin",
        "tokenizer.json",
        "training_args.bin",
        "unet/model.safetensors",
    ]);
    assert_eq!(
        paths(of_model(&all, &id("hf:o/n"), "page").unwrap()),
        [
            "LICENSE",
            "README.md",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json"
        ]
    );
    let odd = files(&["config.json", "weights.safetensors", "adapter_model.safetensors"]);
    assert_eq!(paths(of_model(&odd, &id("hf:o/n"), "").unwrap()), ["config.json", "weights.safetensors"]);
}

#[test]
fn weights_that_are_a_pickle_alone_are_refused_by_name() {
    let all = files(&["config.json", "pytorch_model.bin", "tokenizer.json"]);
    let error = of_model(&all, &id("hf:o/n"), "https://h.example/o/n").unwrap_err();
    assert!(error.what().contains("pytorch_model.bin alone, a pickle"), "{error}");
    assert!(error.help_text().unwrap().contains("hf:o/n@refs/pr/N"));
    let adapter = files(&["adapter_config.json", "adapter_model.bin"]);
    let error = of_model(&adapter, &id("hf:o/n"), "").unwrap_err();
    assert!(error.what().contains("adapter_model.bin"), "{error}");
}

#[test]
fn a_repository_of_gguf_files_says_how_one_is_named() {
    let all = files(&["README.md", "x-Q4_0.gguf", "x-Q8_0.gguf"]);
    let error = of_model(&all, &id("hf:o/n-GGUF"), "").unwrap_err();
    assert!(error.help_text().unwrap().contains("hf:o/n-GGUF/x-Q4_0.gguf"));
    assert_eq!(paths(at_path(&all, "x-Q8_0.gguf", &id("hf:o/n-GGUF")).unwrap()), ["x-Q8_0.gguf"]);
}

#[test]
fn a_file_or_a_folder_is_taken_by_its_path_and_code_never() {
    let all = files(&["data/a.jsonl", "data/b.jsonl", "data/load.py", "model.pt", "x.weird"]);
    assert_eq!(paths(at_path(&all, "data", &id("hf:o/n")).unwrap()), ["data/a.jsonl", "data/b.jsonl"]);
    for (path, why) in
        [("data/load.py", "code"), ("model.pt", "pickle"), ("x.weird", "no kind"), ("nothing", "no such")]
    {
        assert!(at_path(&all, path, &id("hf:o/n")).unwrap_err().what().contains(why), "{path}");
    }
}

#[test]
fn patterns_take_what_they_name_and_never_code() {
    let all = files(&["LICENSE", "a/config.json", "a/model.safetensors", "b.bin", "b.json", "run.py"]);
    let named = |patterns: &[&str]| {
        let patterns: Vec<String> = patterns.iter().map(|p| p.to_string()).collect();
        by_patterns(&all, &patterns, &id("hf:o/n")).map(paths)
    };
    assert_eq!(named(&["a/*"]).unwrap(), ["LICENSE", "a/config.json", "a/model.safetensors"]);
    assert_eq!(named(&["b*", "*.json"]).unwrap(), ["LICENSE", "a/config.json", "b.json"]);
    for (pattern, why) in [("*.py", "code"), ("*.bin", "pickle"), ("*.onnx", "names no file")] {
        assert!(named(&[pattern]).unwrap_err().what().contains(why), "{pattern}");
    }
}

#[test]
fn splits_come_from_names_of_files_and_folders() {
    let of = |paths: &[&str]| -> Vec<(String, String)> {
        let all = files(paths);
        let found = of_data(&all, &Card::default(), &id("hf:o/n")).unwrap();
        splits(found).into_iter().map(|(split, path)| (split, path.to_string())).collect()
    };
    let found =
        of(&["data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet", "dev.jsonl", "notes.csv"]);
    let named: Vec<(&str, &str)> = found.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    assert_eq!(
        named,
        [
            ("test", "data/test-00000-of-00001.parquet"),
            ("train", "data/train-00000-of-00001.parquet"),
            ("validation", "dev.jsonl")
        ]
    );
    assert_eq!(
        of(&["r1_data_example.jsonl", "dataset_infos.json"]),
        [("train".into(), "r1_data_example.jsonl".into())]
    );
    assert_eq!(of(&["validation/a.csv"])[0].0, "validation");
    // A word within another is none.
    assert_eq!(of(&["latest.csv", "contest.csv"]).iter().filter(|(split, _)| split == "train").count(), 2);
}

#[test]
fn a_card_says_which_file_is_which_split() {
    let all = files(&["a.csv", "b.csv", "c.csv", "script.py"]);
    let card = Card::parse("---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: [b.csv, a.csv]\n  - split: val\n    path: c.csv\n---\n").unwrap();
    let found = of_data(&all, &card, &id("hf:o/n")).unwrap();
    assert_eq!(
        splits(found),
        [("train".to_string(), "a.csv"), ("train".to_string(), "b.csv"), ("validation".to_string(), "c.csv")]
    );
    let two =
        "---\nconfigs:\n- config_name: en\n  data_files: \"en/*\"\n- config_name: zh\n  data_files: \"zh/*\"\n---\n";
    let error = of_data(&files(&["en/a.csv", "zh/a.csv"]), &Card::parse(two).unwrap(), &id("hf:o/n")).unwrap_err();
    assert!(error.what().contains("en, zh") && error.help_text().unwrap().contains("hf:o/n/en"), "{error}");
    // A path says more than the card.
    let all = files(&["en/a.csv", "zh/a.csv"]);
    assert_eq!(of_data(&all, &Card::parse(two).unwrap(), &id("hf:o/n/zh")).unwrap().len(), 1);
}

#[test]
fn data_that_a_script_makes_is_pointed_to_in_its_parquet_form() {
    let error = of_data(&files(&["README.md", "load.py"]), &Card::default(), &id("hf:o/n")).unwrap_err();
    assert!(error.help_text().unwrap().contains("hf:o/n@refs/convert/parquet"), "{error}");
    let error = of_data(&files(&["images.zip"]), &Card::default(), &id("hf:o/n")).unwrap_err();
    assert!(error.help_text().unwrap().contains("images.zip"));
}
