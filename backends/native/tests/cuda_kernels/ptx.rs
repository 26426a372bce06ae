//! The committed PTX: made from these sources, with every kernel that the emulator runs.

use std::collections::BTreeMap;

use karat_native::cuda::emulator::Emulator;
use karat_native::cuda::ptx;
use sha2::{Digest, Sha256};

/// Each kernel's parameters in PTX: `.u64`, `.u32` or `.f32`, as far as size and kind go.
fn entries(ptx: &str) -> BTreeMap<&str, Vec<&str>> {
    let entries = ptx.split(".visible .entry ").skip(1).map(|text| {
        let (name, rest) = text.split_once('(').unwrap();
        let parameters = rest.split_once(')').unwrap().0;
        let kinds = parameters.split(".param ").skip(1).map(|p| p.split([' ', ',']).next().unwrap());
        (name, kinds.collect())
    });
    entries.collect()
}

#[test]
fn the_committed_ptx_is_of_these_sources() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let named = |name: &str| name.ends_with(".cu") || (name.ends_with(".h") && name != "emulate.h");
    let mut names: Vec<String> = folder
        .read_dir()
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| named(n))
        .collect();
    names.sort();
    let mut hash = Sha256::new();
    names.iter().for_each(|name| hash.update(std::fs::read(folder.join(name)).unwrap()));
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let first = ptx::kernels().to_str().unwrap().lines().next().unwrap();
    assert!(first.ends_with(&hash), "run backends/native/scripts/cuda-kernels and commit cuda/kernels.ptx");
}

#[test]
fn the_ptx_has_the_emulators_kernels_with_the_same_parameters() {
    let emulator = match Emulator::new() {
        Ok(emulator) => emulator,
        Err(e) => return eprintln!("skipped: {}", e.message),
    };
    let entries = entries(ptx::kernels().to_str().unwrap());
    let kernels = emulator.kernels();
    assert_eq!(entries.keys().copied().collect::<Vec<_>>(), kernels);
    for name in &kernels {
        let kind = |t: &str| match t {
            "i32" | "u32" => ".u32",
            "f32" => ".f32",
            _ => ".u64",
        };
        let signature = emulator.signature(name).unwrap();
        let want: Vec<&str> = signature.split(',').map(kind).collect();
        assert_eq!(entries[name.as_str()], want, "{name}");
    }
}
