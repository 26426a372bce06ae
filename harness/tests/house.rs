//! The house rules that a compiler does not check.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

#[test]
fn the_harness_has_no_ml_framework_in_its_tree() {
    without_frameworks("karat");
}

#[test]
fn the_contract_has_neither_an_ml_framework_nor_a_tokenizer_in_its_tree() {
    let tree = without_frameworks("karat-backend");
    for name in ["karat", "tokenizers", "onig", "jieba-rs", "minijinja", "toml", "libloading", "tempfile"] {
        assert!(!tree.contains(name), "the contract depends on {name}");
    }
}

#[test]
fn a_backend_builds_on_the_contract_and_not_on_the_harness() {
    for backend in [
        "karat-kernels",
        "karat-model",
        "karat-native",
        "karat-candle",
        "karat-onnxruntime",
        "karat-replay",
        "karat-hostile",
    ] {
        assert!(!tree(backend).contains("karat"), "{backend} depends on the harness");
    }
}

#[test]
fn the_tree_of_a_small_backend_has_at_most_forty_crates() {
    let tree = tree("karat-replay");
    assert!(tree.len() <= 40, "{} crates: {tree:?}", tree.len());
}

#[test]
fn the_library_has_no_network_in_its_tree_and_the_client_of_the_hubs_a_small_one() {
    let library = tree("karat");
    for name in ["karat-hub", "ureq", "rustls", "ring", "tokio", "hyper", "reqwest"] {
        assert!(!library.contains(name), "the library depends on {name} without its feature hub");
    }
    let client = tree("karat-hub");
    assert!(!client.contains("tokio") && client.len() <= 64, "{} crates: {client:?}", client.len());
}

/// The names of the crates that `package` is built from, itself among them.
fn tree(package: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--package", package, "--edges", "normal,build", "--prefix", "none", "--locked", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(tree.starts_with(&format!("{package} v")), "{tree}");
    tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// The tree of `package`, in which there must be no ML framework.
fn without_frameworks(package: &str) -> BTreeSet<String> {
    let frameworks = ["candle", "ort", "onnx", "tch", "burn", "gemm", "cudarc", "tract", "ndarray"];
    let tree = tree(package);
    for name in &tree {
        let family = name.split(['-', '_']).next().unwrap();
        assert!(!frameworks.contains(&family), "{package} depends on {name}");
    }
    tree
}

#[test]
fn the_command_line_links_no_backend() {
    // Its dependency on the backends only makes cargo build them: no code of theirs may be named.
    for file in rust_files(&root().join("harness/cli/src")) {
        let text = std::fs::read_to_string(&file).unwrap();
        for name in ["karat_native", "karat_candle", "karat_onnxruntime", "karat_replay"] {
            assert!(!text.contains(name), "{} names {name}", file.display());
        }
    }
}

/// The files that hold unsafe code.
const UNSAFE: [&str; 43] = [
    // CPU kernels: vector instructions, prefetch, huge pages, mapped files.
    "backends/kernels/src/gemm.rs",
    "backends/kernels/src/gemm/amx.rs",
    "backends/kernels/src/gemm/amx/emulated.rs",
    "backends/kernels/src/gemm/amx/hardware.rs",
    "backends/kernels/src/gemm/amx/tests.rs",
    "backends/kernels/src/gemm/amx/trapped.rs",
    "backends/kernels/src/gemm/fused/linear_log_prob.rs",
    "backends/kernels/src/gemm/fused/softmax.rs",
    "backends/kernels/src/gemm/fused/swiglu.rs",
    "backends/kernels/src/gemm/isa.rs",
    "backends/kernels/src/gemm/microkernel.rs",
    "backends/kernels/src/gemm/microkernel/x86.rs",
    "backends/kernels/src/gemm/mixed.rs",
    "backends/kernels/src/gemm/pack.rs",
    "backends/kernels/src/gemm/pack/tiled.rs",
    "backends/kernels/src/gemm/pack/whole.rs",
    "backends/kernels/src/gemm/pack/x86.rs",
    "backends/kernels/src/gemm/prefetch.rs",
    "backends/kernels/src/gemm/prepacked.rs",
    "backends/kernels/src/gemm/skinny.rs",
    "backends/kernels/src/memory/arena.rs",
    "backends/kernels/src/memory/mmap.rs",
    "backends/kernels/src/speed/limit.rs",
    // A product of the gemm crate beside ours.
    "backends/native/benches/kernels.rs",
    // The CUDA driver's functions, found at run time, and their emulation.
    "backends/native/src/cuda/driver.rs",
    "backends/native/src/cuda/driver/api.rs",
    "backends/native/src/cuda/driver/cublas.rs",
    "backends/native/src/cuda/driver/facts.rs",
    "backends/native/src/cuda/driver/library.rs",
    "backends/native/src/cuda/emulator.rs",
    "backends/native/src/cuda/emulator/library.rs",
    // Vector instructions.
    "backends/native/src/ops/dropout.rs",
    "backends/native/src/ops/dropout/avx512.rs",
    // Views of slots in memory of a device.
    "backends/onnxruntime/src/kv_cache.rs",
    // The text of a broken library that this test compiles and loads.
    "backends/onnxruntime/tests/library.rs",
    // The plugin boundary.
    "harness/backend/src/abi.rs",
    "harness/backend/src/abi/export.rs",
    "harness/backend/src/abi/export/tests.rs",
    "harness/backend/src/abi/foreign.rs",
    "harness/src/plugin.rs",
    "harness/tests/hostile/src/table.rs",
    // Handlers of signals.
    "harness/cli/src/signals.rs",
    // The words that this test searches for.
    "harness/tests/house.rs",
];

#[test]
fn unsafe_stands_only_in_the_named_files() {
    let root = root();
    let mut found = Vec::new();
    for folder in ["harness", "backends", "suites"] {
        for file in rust_files(&root.join(folder)) {
            let path = file.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&file).unwrap();
            let mut code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let words = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "#[unsafe("];
            if code.any(|line| words.iter().any(|word| line.contains(word))) {
                found.push(path);
            }
        }
    }
    found.sort();
    let mut named = UNSAFE.to_vec();
    named.sort_unstable();
    assert_eq!(found, named);
}

/// What a crate declares and no file of it names costs every build and says nothing.
#[test]
fn every_declared_dependency_is_used() {
    // Cargo builds their libraries beside the binary and the tests that load them.
    let loaded = ["karat-candle", "karat-hostile", "karat-native", "karat-onnxruntime", "karat-replay"];
    let root = root();
    let members = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let members: toml::Table = members.parse().unwrap();
    let mut seen = 0;
    for member in members["workspace"]["members"].as_array().unwrap() {
        let member = root.join(member.as_str().unwrap());
        let manifest: toml::Table = std::fs::read_to_string(member.join("Cargo.toml")).unwrap().parse().unwrap();
        let inner =
            |file: &Path| file.ancestors().take_while(|f| **f != member).any(|f| f.join("Cargo.toml").is_file());
        let files = rust_files(&member).into_iter().filter(|file| !inner(file));
        let code: String = files.map(|file| with_shared_modules(&file)).collect();
        let targets = manifest.get("target").and_then(toml::Value::as_table).into_iter().flat_map(|t| t.values());
        let tables = targets.filter_map(toml::Value::as_table).chain([&manifest]);
        let listed = |table: &toml::Table, key: &str| -> Vec<String> {
            table.get(key).and_then(toml::Value::as_table).into_iter().flat_map(|t| t.keys().cloned()).collect()
        };
        for table in tables {
            for name in [listed(table, "dependencies"), listed(table, "dev-dependencies")].concat() {
                let word = name.replace('-', "_");
                let named = ["::", ";", " as ", "}", ",", ")"].iter().any(|end| code.contains(&format!("{word}{end}")));
                assert!(named || loaded.contains(&name.as_str()), "{} does not use {name}", member.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 50, "the search finds nothing any more");
}

/// A file of code with those that it takes from other crates' tests by `#[path]`.
fn with_shared_modules(file: &Path) -> String {
    let mut code = std::fs::read_to_string(file).unwrap();
    let shared: Vec<PathBuf> = code
        .lines()
        .filter_map(|line| line.strip_prefix("#[path = \"")?.strip_suffix("\"]"))
        .map(|path| file.with_file_name(path))
        .collect();
    code.extend(shared.iter().map(|path| with_shared_modules(path)));
    code
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}
