//! The rules of every backend, in process and across the plugin boundary.

#![allow(clippy::unwrap_used)]

mod support;

use karat::plugin::{Search, find};
use karat_backend::OpenConfig;
use karat_backend::conformance::{Fixture, check};
use karat_onnxruntime::OnnxRuntimeBackend;
use serde_json::json;
use support::*;

#[test]
fn the_backend_keeps_the_rules_on_both_sides_of_the_boundary() {
    if !runtime_is_there() {
        return;
    }
    let (model, cache) = (tiny_model("qwen3", true), tempfile::tempdir().unwrap());
    let mut config = OpenConfig::new(model.path());
    config.options.insert("cache_dir".into(), json!(cache.path()));
    let fixture = Fixture::new(config);
    check(&OnnxRuntimeBackend, &fixture).assert();
    let plugin = find("onnxruntime", &Search::from_env()).unwrap();
    check(&plugin, &fixture).assert();
}
