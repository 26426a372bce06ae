//! Sessions opened by several threads at the same moment. Alone in its process: the runtime learns
//! of Karat's operators once.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Barrier;

use karat_onnxruntime::export::{Request, export_cached};
use karat_onnxruntime::operators::Operators;
use support::*;

#[test]
fn sessions_that_open_at_the_same_moment_all_open() {
    if !runtime_is_there() {
        return;
    }
    let (model, cache) = (tiny_model("qwen3", true), tempfile::tempdir().unwrap());
    // The export is there, so that nothing but the session is left to make.
    let request = Request { operators: Operators::Karat, ..Request::new(model.path()) };
    export_cached(&request, cache.path()).unwrap();
    let started = Barrier::new(8);
    let scores = std::thread::scope(|scope| {
        let open_one = |_| {
            scope.spawn(|| {
                started.wait();
                let mut session = open(model.path(), cache.path(), |_| {}).unwrap();
                score(&mut session, &tiny_rows(&[20, 7])).logprobs
            })
        };
        let threads: Vec<_> = (0..8).map(open_one).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(scores.iter().all(|other| *other == scores[0]));
}
