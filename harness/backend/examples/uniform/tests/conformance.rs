//! The example keeps the contract: in process, and as the plugin that the host finds and loads.

#![allow(clippy::unwrap_used)]

use karat::plugin::{Search, find};
use karat_backend::conformance::{Fixture, check};
use karat_backend::{Backend, OpenConfig};
use karat_uniform::Uniform;

#[test]
fn the_example_conforms_in_process_and_as_a_plugin() {
    let model = tempfile::tempdir().unwrap();
    std::fs::write(model.path().join("vocab.txt"), "a\nb\nc\nd\ne\nf\ng\nh\ni\n").unwrap();
    let fixture = Fixture { score_tolerance: 0.0, ..Fixture::new(OpenConfig::new(model.path())) };
    let plugin = find("uniform", &Search::from_env()).unwrap();
    assert_eq!(plugin.descriptor(), Uniform.describe());
    let [here, loaded] = [check(&Uniform, &fixture), check(&plugin, &fixture)];
    here.assert();
    loaded.assert();
    assert_eq!(here.held, loaded.held);
    for rule in ["scores_are_log_probabilities", "sampling_depends_on_the_seed_and_the_row_only"] {
        assert!(here.held.contains(&rule), "{rule} was not tried: {:?}", here.held);
    }
}

#[test]
fn the_example_stays_within_a_hundred_lines_of_code() {
    let code = include_str!("../src/lib.rs").lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("//"));
    let lines = code.count();
    assert!((60..=100).contains(&lines), "{lines} lines");
}
