//! The rules of every backend, in process and across the plugin boundary.

#![allow(clippy::unwrap_used)]

mod support;

use karat::plugin::{Search, find};
use karat_backend::OpenConfig;
use karat_backend::conformance::{Fixture, check};
use karat_candle::CandleBackend;

#[test]
fn the_backend_keeps_the_rules_on_both_sides_of_the_boundary() {
    let fixture = Fixture::new(OpenConfig::new(support::base()));
    let outcome = check(&CandleBackend, &fixture);
    assert!(outcome.held.iter().any(|rule| rule.contains("lora")), "the LoRA rules ran: {:?}", outcome.held);
    outcome.assert();
    check(&find("candle", &Search::from_env()).unwrap(), &fixture).assert();
}
