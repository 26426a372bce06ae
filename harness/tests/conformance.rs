//! The conformance suite holds for an honest backend, here and across the boundary, and finds each
//! fault of a bad one.

#![allow(clippy::unwrap_used)]

use karat::abi::Foreign;
use karat::backend::{Backend, OpenConfig};
use karat::conformance::{Fixture, check};
use karat::plugin::{Search, find};
use karat_hostile::{Bigram, Hostile};
use tempfile::TempDir;

fn model() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    Bigram::write_model(folder.path(), 23, 1).unwrap();
    folder
}

fn fixture(model: &TempDir) -> Fixture {
    Fixture { score_tolerance: 0.0, ..Fixture::new(OpenConfig::new(model.path())) }
}

#[test]
fn an_honest_backend_conforms_in_process_and_across_the_boundary() {
    let model = model();
    let in_process = check(&Bigram, &fixture(&model));
    in_process.assert();
    for rule in [
        "scores_are_log_probabilities",
        "greedy_text_scores_as_greedy",
        "full_training_stops_and_resumes_as_if_it_never_had",
    ] {
        assert!(in_process.held.contains(&rule), "{rule} was not tried: {:?}", in_process.held);
    }
    let across = check(&Foreign::in_process::<Bigram>().unwrap(), &fixture(&model));
    across.assert();
    let plugin = check(&find("hostile", &Search::from_env()).unwrap(), &fixture(&model));
    plugin.assert();
    assert_eq!(in_process.held, across.held);
    assert_eq!(in_process.held, plugin.held);
}

/// A fault of [`Hostile`] and the rules that must not hold with it.
const FAULTS: [(&str, &[&str]); 13] = [
    ("one_score_short", &["every_token_but_a_rows_first_is_scored"]),
    ("improbable_scores", &["scores_are_log_probabilities"]),
    ("row_number_in_scores", &["scores_do_not_depend_on_the_batch"]),
    ("score_panics", &["scoring_is_cancelled_at_the_first_event_and_the_session_lives_on"]),
    ("slow_cancel", &["scoring_is_cancelled_at_the_first_event_and_the_session_lives_on"]),
    ("deaf", &["scoring_is_cancelled_at_the_first_event_and_the_session_lives_on"]),
    (
        "silent",
        &["every_token_but_a_rows_first_is_scored", "scoring_is_cancelled_at_the_first_event_and_the_session_lives_on"],
    ),
    ("untold_completions", &["completions_are_of_the_asked_length_and_told_once_each"]),
    ("one_token_more", &["completions_are_of_the_asked_length_and_told_once_each"]),
    ("no_stop_ids", &["a_stop_id_ends_a_row_and_stays_its_last_id"]),
    ("no_seed", &["sampling_depends_on_the_seed_and_the_row_only"]),
    ("steps_untold", &["full_training_reports_and_saves_every_step_of_the_plan"]),
    ("resumes_wrong", &["full_training_stops_and_resumes_as_if_it_never_had"]),
];

#[test]
fn each_fault_is_found_in_process_and_across_the_boundary() {
    let model = model();
    let foreign = Foreign::in_process::<Hostile>().unwrap();
    for (fault, rules) in FAULTS {
        let mut fixture = fixture(&model);
        fixture.open.options.insert("fault".into(), fault.into());
        for (side, backend) in [("in process", &Hostile as &dyn Backend), ("across", &foreign)] {
            let broken: Vec<&str> = check(backend, &fixture).findings.iter().map(|finding| finding.rule).collect();
            for rule in rules {
                assert!(broken.contains(rule), "{fault}, {side}: {rule} held; broken were {broken:?}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "a_stop_id_ends_a_row")]
fn asserting_names_the_broken_rule() {
    let model = model();
    let mut fixture = fixture(&model);
    fixture.open.options.insert("fault".into(), "no_stop_ids".into());
    check(&Hostile, &fixture).assert();
}
