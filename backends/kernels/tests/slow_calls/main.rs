//! No function of the built plugins calls the C library or the compiler's own functions for what
//! the instruction set does.
//!
//! Rust's default for x86-64 is a CPU without FMA and without SSE 4.1. Where code is compiled for
//! that by oversight, outside of `#[target_feature]` and of `simd`, `mul_add` becomes a call of
//! `fmaf` for every element, which is slower by a factor of ten and shows in no result. It shows in
//! the machine code:
//!
//! ```text
//! KARAT_PLUGINS=target/release cargo test -p karat-kernels --test slow_calls
//! ```

#![allow(clippy::unwrap_used)]

mod allowed;
mod binary;

use std::path::Path;

use allowed::{ALLOWED, Allowed, SLOW};
use karat_kernels::simd::simd;

/// Calls that nothing in `allowed` lets pass, each said in a line.
fn complaints(bytes: &[u8], allowed: &[Allowed], used: &mut [bool]) -> Result<Vec<String>, String> {
    let mut complaints = Vec::new();
    for ((function, callee), count) in binary::calls(bytes, &|name| SLOW.contains(&name))? {
        // These are what is looked for, or call each other.
        if function.starts_with("compiler_builtins::") || SLOW.contains(&function.as_str()) {
            continue;
        }
        let lets = |a: &Allowed| {
            function.contains(a.within) && (a.calls.is_empty() || a.calls.contains(&&*callee)) && count <= a.most
        };
        match allowed.iter().position(lets) {
            Some(place) => used[place] = true,
            None => complaints.push(format!("{function} calls {callee} in {count} places")),
        }
    }
    Ok(complaints)
}

/// A step that is compiled for a CPU without FMA.
#[inline(never)]
fn planted(a: f32, b: f32, c: f32) -> f32 {
    a.mul_add(b, c)
}

/// Many of them, in a loop: the address of the function is taken once.
#[inline(never)]
fn planted_in_a_loop(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = x.mul_add(*x, 1.0).floor());
}

/// The same steps as they should be.
#[inline(never)]
fn in_vectors(x: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for x in x {
                *x = x.mul_add(*x, 1.0).floor();
            }
        },
    );
}

#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(target_feature = "fma")))]
fn a_call_that_is_planted_is_found_and_a_clean_function_is_not() {
    let mut x = std::hint::black_box([0.5, 1.5]);
    planted_in_a_loop(&mut x);
    let sum = planted(x[0], x[1], 1.0);
    in_vectors(&mut x);
    std::hint::black_box((x, sum));
    let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let found = complaints(&own, &[], &mut []).unwrap();
    let says = |function: &str, callee: &str| {
        found.iter().any(|line| line.contains(function) && line.contains(&format!(" calls {callee} ")))
    };
    assert!(says("slow_calls::planted ", "fmaf"), "{found:?}");
    assert!(says("planted_in_a_loop", "fmaf") && says("planted_in_a_loop", "floorf"), "{found:?}");
    assert!(says("karat_kernels::simd::without_vectors", "fmaf"), "{found:?}");
    assert!(!found.iter().any(|line| line.contains("slow_calls::in_vectors")), "{found:?}");
    let allowed =
        [Allowed { within: "planted", calls: &["fmaf", "floorf"], most: 9, reason: "to see that it is found" }];
    let left = complaints(&own, &allowed, &mut [false]).unwrap();
    assert!(left.len() < found.len() && !left.iter().any(|line| line.contains("planted")), "{left:?}");
    let few = [Allowed { most: 0, ..allowed[0] }];
    assert_eq!(complaints(&own, &few, &mut [false]).unwrap(), found);
}

#[test]
fn a_program_that_cannot_be_read_is_an_error() {
    assert!(complaints(b"not a program", &[], &mut []).is_err());
}

#[test]
fn no_function_of_the_built_plugins_calls_a_library_for_what_the_instruction_set_does() {
    let Some(folder) = std::env::var_os("KARAT_PLUGINS") else {
        eprintln!("skipped: KARAT_PLUGINS names no folder with plugins built for release");
        return;
    };
    let mut used = vec![false; ALLOWED.len()];
    let mut all = Vec::new();
    // Not candle: its code is a framework's, which is measured as it is.
    for name in ["native", "onnxruntime", "replay"] {
        let file = Path::new(&folder).join("deps").join(format!("libkarat_{name}.so"));
        let bytes = std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let found = complaints(&bytes, ALLOWED, &mut used).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        all.extend(found.into_iter().map(|line| format!("{name}: {line}")));
    }
    for (allowed, used) in ALLOWED.iter().zip(used) {
        let state = if used { "allowed" } else { "allowed, but not there any more" };
        println!("{state}: {} in {}: {}", allowed.calls.join(", "), allowed.within, allowed.reason);
    }
    assert!(
        all.is_empty(),
        "{}\ncompile these for what the CPU has (`simd`, `#[target_feature]`), or say in allowed.rs why they may be",
        all.join("\n")
    );
}
