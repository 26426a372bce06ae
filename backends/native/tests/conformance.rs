//! The rules of every backend, in process and across the plugin boundary.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use karat::plugin::{Search, find};
use karat_backend::OpenConfig;
use karat_backend::conformance::{Fixture, check};
use karat_native::NativeBackend;

#[test]
fn the_backend_keeps_the_rules_on_both_sides_of_the_boundary() {
    // A model that is on disk: the shipped base of the suite medical-r1.
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../suites/medical-r1/base");
    let fixture = Fixture::new(OpenConfig::new(base));
    let outcome = check(&NativeBackend, &fixture);
    assert!(outcome.held.iter().any(|rule| rule.contains("lora")), "the LoRA rules ran: {:?}", outcome.held);
    outcome.assert();
    check(&find("native", &Search::from_env()).unwrap(), &fixture).assert();
}
