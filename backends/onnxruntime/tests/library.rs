//! The runtime library: what is said where it is missing, broken or too old. Nothing here may load
//! a good one: a process keeps the library it has loaded.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use karat_onnxruntime::runtime;

fn refusal(library: &Path) -> String {
    match runtime::load(Some(library), true, false) {
        Ok(loaded) => panic!("{} was loaded", loaded.path.display()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_named_library_that_is_missing_or_broken_is_refused_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let missing = refusal(&folder.path().join("libonnxruntime.so"));
    assert!(missing.contains("no such file") && missing.contains(runtime::REMEDY), "{missing}");
    let text = folder.path().join("text.so");
    std::fs::write(&text, "not a library").unwrap();
    let broken = refusal(&text);
    assert!(broken.contains("text.so") && broken.contains(runtime::REMEDY), "{broken}");
}

/// Builds a shared library from Rust source, as rustc is always there when tests run.
fn shared_library(folder: &Path, name: &str, source: &str) -> std::path::PathBuf {
    let (from, to) = (folder.join(format!("{name}.rs")), folder.join(format!("lib{name}.so")));
    std::fs::write(&from, source).unwrap();
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let built = Command::new(rustc)
        .args(["--edition", "2024", "--crate-type", "cdylib", "-C", "panic=abort", "-o"])
        .args([&to, &from])
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    to
}

#[test]
fn a_library_that_is_too_old_is_refused_with_both_versions() {
    let folder = tempfile::tempdir().unwrap();
    let old = shared_library(
        folder.path(),
        "old",
        r#"
        use std::ffi::c_void;
        #[repr(C)]
        pub struct Base { api: extern "C" fn(u32) -> *const c_void, version: extern "C" fn() -> *const u8 }
        extern "C" fn api(_: u32) -> *const c_void { std::ptr::null() }
        extern "C" fn version() -> *const u8 { c"1.17.1".as_ptr().cast() }
        static BASE: Base = Base { api, version };
        #[unsafe(no_mangle)]
        pub extern "C" fn OrtGetApiBase() -> *const Base { &BASE }
        "#,
    );
    let error = refusal(&old);
    let needed = format!("1.{} or newer", ort::MINOR_VERSION);
    assert!(error.contains("1.17.1") && error.contains(&needed) && error.contains("libold.so"), "{error}");
}

#[test]
fn a_library_that_is_not_onnx_runtime_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let other = shared_library(folder.path(), "other", "#[unsafe(no_mangle)] pub extern \"C\" fn other() {}");
    let error = refusal(&other);
    assert!(error.contains("OrtGetApiBase"), "{error}");
    let null = "#[unsafe(no_mangle)] pub extern \"C\" fn OrtGetApiBase() -> *const u8 { std::ptr::null() }";
    let error = refusal(&shared_library(folder.path(), "null", null));
    assert!(error.contains("does not behave like ONNX Runtime"), "{error}");
}

/// Run as a child with a changed environment; a process cannot safely change its own.
#[test]
#[ignore = "started by the next test"]
fn child_loads_what_it_finds() {
    match runtime::load(None, true, false) {
        Ok(loaded) => println!("LOADED {}", loaded.path.display()),
        Err(error) => println!("ERROR {error}"),
    }
}

#[test]
fn without_library_python_or_network_the_error_names_every_place_and_one_command() {
    let cache = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_loads_what_it_finds", "--ignored", "--nocapture"])
        .env("PATH", "")
        .env("KARAT_CACHE", cache.path())
        .env_remove("KARAT_ONNXRUNTIME")
        .env_remove("ORT_DYLIB_PATH")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let error = text.lines().find(|line| line.contains("ERROR ")).unwrap_or_else(|| panic!("{text}"));
    for word in [runtime::REMEDY, "no such file", "libonnxruntime.so.1.31.1", "python3 does not start"] {
        assert!(error.contains(word), "{error:?} should say {word:?}");
    }
    assert_eq!(error.matches("pip install").count(), 1, "{error:?}");
}

/// Output of a process that is told to load `library`, and that loading may take a second.
fn told_to_load(library: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_loads_what_it_finds", "--ignored", "--nocapture"])
        .env("KARAT_ONNXRUNTIME", library)
        .env(runtime::LOAD_LIMIT, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    // The process ended by itself: what hung did not take it along.
    assert!(output.status.success(), "{text}");
    text.lines().find_map(|line| Some(line.split_once("ERROR ")?.1.to_string())).unwrap_or_else(|| panic!("{text}"))
}

/// A library whose constructor runs `body`.
fn with_constructor(folder: &Path, name: &str, body: &str) -> std::path::PathBuf {
    let source = format!(
        r#"
        extern "C" fn constructor() {{ {body} }}
        #[used]
        #[unsafe(link_section = ".init_array")]
        static CONSTRUCTOR: extern "C" fn() = constructor;
        "#
    );
    shared_library(folder, name, &source)
}

#[cfg(target_os = "linux")]
#[test]
fn a_library_that_hangs_while_it_is_loaded_is_an_error_and_not_a_hanging_process() {
    let folder = tempfile::tempdir().unwrap();
    let sleep = "std::thread::sleep(std::time::Duration::from_secs(100));";
    let error = told_to_load(&with_constructor(folder.path(), "sleeper", sleep));
    for word in ["libsleeper.so", "did not end within 1 s", runtime::LOAD_LIMIT, runtime::REMEDY] {
        assert!(error.contains(word), "{error:?} should say {word:?}");
    }
    let late =
        format!("#[unsafe(no_mangle)] pub extern \"C\" fn OrtGetApiBase() -> *const u8 {{ {sleep} std::ptr::null() }}");
    let error = told_to_load(&shared_library(folder.path(), "late", &late));
    assert!(error.contains("liblate.so") && error.contains("did not answer within 1 s"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_library_that_crashes_while_it_is_loaded_is_an_error_and_not_a_crashing_process() {
    let folder = tempfile::tempdir().unwrap();
    let error = told_to_load(&with_constructor(folder.path(), "crasher", "std::process::abort();"));
    assert!(error.contains("libcrasher.so") && error.contains("signal 6"), "{error}");
}
