//! The floors of this crate: kernels, tensors, the device trait, devices, layers. Each knows those
//! below alone.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Every source file, as its path below `src/`, with its lines of code.
fn sources() -> BTreeMap<String, Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut folders) = (BTreeMap::new(), vec![PathBuf::new()]);
    while let Some(folder) = folders.pop() {
        for entry in root.join(&folder).read_dir().unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            if root.join(&path).is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(root.join(&path)).unwrap();
                let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                files.insert(path.to_string_lossy().replace('\\', "/"), code.map(str::to_owned).collect());
            }
        }
    }
    assert!(files.len() > 50, "the search finds nothing any more");
    files
}

/// The module at the root that a file is of.
fn floor(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap()
}

/// The modules at the root that a line names.
fn named(line: &str) -> impl Iterator<Item = &str> {
    line.split("crate::").skip(1).map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap())
}

#[test]
fn no_floor_imports_one_above_it() {
    let below: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("error", &[][..]),
        ("tensor", &["error", "ops", "profile"]),
        ("device", &["error", "ops", "tensor"]),
        ("cpu", &["device", "error", "ops", "profile", "tensor"]),
        ("cuda", &["device", "error", "ops", "rng", "tensor"]),
    ]);
    for (file, lines) in sources() {
        let Some(below) = below.get(floor(&file)) else { continue };
        for line in &lines {
            for name in named(line) {
                assert!(name == floor(&file) || below.contains(&name), "{file} knows {name}: {line}");
            }
        }
    }
}

#[test]
fn the_layers_ask_no_tensor_where_it_lies_and_name_no_gpu() {
    for (file, lines) in sources() {
        for line in &lines {
            let devices = ["cpu", "cuda", "tensor"].contains(&floor(&file));
            assert!(devices || !line.contains("storage_as"), "{file} asks: {line}");
            // Devices are opened in one place, and what the machine has of CUDA is shown in
            // another.
            let opens = ["cuda", "select", "lib"].contains(&floor(&file));
            assert!(opens || !named(line).any(|name| name == "cuda"), "{file} names a GPU: {line}");
        }
    }
}

#[test]
fn no_modules_know_each_other() {
    let mut knows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let sources = sources();
    let floors: BTreeSet<&str> = sources.keys().map(|file| floor(file)).collect();
    for (file, lines) in &sources {
        let of = floor(file);
        let names = lines.iter().flat_map(|line| named(line)).filter(|name| *name != of && floors.contains(name));
        knows.entry(of.to_owned()).or_default().extend(names.map(str::to_owned));
    }
    assert!(knows["layer"].contains("linear") && knows["cuda"].contains("device"), "{knows:?}");
    // What knows nothing that is left goes, until all is gone or nothing can go.
    while let Some(lowest) = knows.iter().find(|(_, below)| below.is_empty()).map(|(name, _)| name.clone()) {
        knows.remove(&lowest);
        for below in knows.values_mut() {
            below.remove(&lowest);
        }
    }
    assert!(knows.is_empty(), "these know each other: {knows:#?}");
}
