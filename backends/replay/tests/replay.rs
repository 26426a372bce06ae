//! A replayed model cannot be told from the recorded one, and nothing is made up.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use karat::plugin::{Search, find};
use karat_backend::abi::Foreign;
use karat_backend::conformance::{Fixture, check};
use karat_backend::{Backend, BackendErrorKind, Event, Flow, GenerateConfig, OpenConfig, Session, Tokens};
use karat_hostile::Bigram;
use karat_replay::{FILE, Recorder, Recording, Replay};
use tempfile::TempDir;

fn go_on(_: Event) -> Flow {
    Flow::Continue
}

fn model() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    Bigram::write_model(folder.path(), 19, 3).unwrap();
    folder
}

fn rows(rows: &[&[u32]]) -> Tokens {
    rows.iter().collect()
}

/// A recording of a few rows.
fn recorded(rows: &Tokens, config: &GenerateConfig) -> Recorder {
    let model = model();
    let recorder = Recorder::new(Bigram);
    let mut session = recorder.open(&OpenConfig::new(model.path())).unwrap();
    let evaluator = session.evaluator().unwrap();
    evaluator.score(rows.view(), &mut go_on).unwrap();
    evaluator.generate(rows.view(), config, &mut go_on).unwrap();
    recorder
}

fn open(folder: &Path) -> Box<dyn Session> {
    Replay.open(&OpenConfig::new(folder)).unwrap()
}

#[test]
fn a_recording_conforms_in_process_and_across_the_boundary() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let recorder = Recorder::new(Bigram);
    let outcome = check(&recorder, &Fixture::new(OpenConfig::new(model.path())));
    // The rules for opening open other models, which a recorder may refuse; what they record is
    // enough.
    outcome.assert();
    recorder.write(folder.path()).unwrap();
    drop(model);
    let fixture = Fixture { score_tolerance: 0.0, ..Fixture::new(OpenConfig::new(folder.path())) };
    let plugin = find("replay", &Search::from_env()).unwrap();
    assert_eq!(plugin.descriptor().name, "replay");
    for backend in [&Replay as &dyn Backend, &Foreign::in_process::<Replay>().unwrap(), &plugin] {
        let replayed = check(backend, &fixture);
        replayed.assert();
        assert_eq!(replayed.held, outcome.held);
    }
}

#[test]
fn the_same_answers_make_the_same_bytes_in_any_order() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let greedy = GenerateConfig::greedy(5, vec![1]);
    let a = recorded(&rows(&[&[1, 2, 3], &[4, 5]]), &greedy).write(a.path()).map(fs::read).unwrap().unwrap();
    let b = recorded(&rows(&[&[4, 5], &[1, 2, 3], &[4, 5]]), &greedy).write(b.path()).map(fs::read).unwrap().unwrap();
    assert_eq!(String::from_utf8(a).unwrap(), String::from_utf8(b).unwrap());
}

#[test]
fn every_bit_survives_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let recorder = recorded(&rows(&[&[1, 2, 3, 9, 18, 0], &[4, 5]]), &GenerateConfig::greedy(5, vec![]));
    let mut recording = recorder.recording().unwrap();
    let awkward = [-f32::MIN_POSITIVE, -1e-45, -0.1, f32::MIN, -16_777_217.0, -0.0];
    recording.add_scores(&[1, 1, 1, 1, 1, 1, 1], &awkward, &[true; 6]).unwrap();
    recording.write(folder.path()).unwrap();
    let read = Recording::read(folder.path()).unwrap();
    assert_eq!(read, recording);
    let replayed = open(folder.path()).evaluator().unwrap().score(rows(&[&[1; 7]]).view(), &mut go_on).unwrap();
    let bits = |floats: &[f32]| floats.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&replayed.logprobs), bits(&awkward));
}

#[test]
fn a_row_that_was_not_recorded_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let greedy = GenerateConfig::greedy(5, vec![1]);
    recorded(&rows(&[&[1, 2, 3], &[4, 5]]), &greedy).write(folder.path()).unwrap();
    let mut session = open(folder.path());
    let evaluator = session.evaluator().unwrap();
    let error = evaluator.score(rows(&[&[1, 2, 3], &[4, 6]]).view(), &mut go_on).unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Failed);
    assert!(error.message.contains("row 1") && error.message.contains("2 ids, 4 6;"), "{error}");
    assert!(error.message.contains(FILE), "{error}");
    // The prompt is known, but not with this configuration.
    for config in [
        GenerateConfig::greedy(6, vec![1]),
        GenerateConfig::greedy(5, vec![1, 2]),
        GenerateConfig { temperature: 1.0, ..greedy.clone() },
    ] {
        let error = evaluator.generate(rows(&[&[1, 2, 3]]).view(), &config, &mut go_on).unwrap_err();
        assert!(error.message.contains("generating from row 0"), "{config:?}: {error}");
    }
    // Greedy text depends on none of these.
    let same = GenerateConfig { seed: 9, batch_size: 3, top_k: 4, ..greedy.clone() };
    assert!(evaluator.generate(rows(&[&[4, 5], &[1, 2, 3]]).view(), &same, &mut go_on).is_ok());
}

#[test]
fn a_sampled_row_is_known_by_its_number_too() {
    let folder = tempfile::tempdir().unwrap();
    let sampled = GenerateConfig { temperature: 1.0, seed: 4, ..GenerateConfig::greedy(5, vec![]) };
    recorded(&rows(&[&[1, 2, 3], &[4, 5]]), &sampled).write(folder.path()).unwrap();
    let mut session = open(folder.path());
    let evaluator = session.evaluator().unwrap();
    assert!(evaluator.generate(rows(&[&[1, 2, 3]]).view(), &sampled, &mut go_on).is_ok());
    assert!(evaluator.generate(rows(&[&[4, 5]]).view(), &sampled, &mut go_on).is_err());
    let other = GenerateConfig { seed: 5, ..sampled };
    assert!(evaluator.generate(rows(&[&[1, 2, 3]]).view(), &other, &mut go_on).is_err());
}

#[test]
fn a_broken_line_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let greedy = GenerateConfig::greedy(5, vec![]);
    let path = recorded(&rows(&[&[1, 2, 3], &[4, 5]]), &greedy).write(folder.path()).unwrap();
    let good = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    assert_eq!(lines.len(), 5);
    let twice = format!("{good}{}\n", lines[2]);
    for (text, wanted) in [
        (String::new(), ":1: the file is empty"),
        (good.replace("\"format\":1", "\"format\":2"), ":1: format 2"),
        (good.replace(lines[0], "{}"), ":1: the first line"),
        (good.replace(lines[3], "not JSON"), ":4: this line is no answer"),
        (good.replace(lines[1], "{\"key\":\"00\"}"), ":2: this line is neither"),
        (twice, ":6: this key"),
    ] {
        fs::write(&path, text).unwrap();
        let error = Replay.open(&OpenConfig::new(folder.path())).err().unwrap().to_string();
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
}

#[test]
fn a_recorder_records_one_model_only() {
    let (one, other) = (model(), model());
    let recorder = Recorder::new(Bigram);
    assert!(recorder.write(one.path()).is_err());
    recorder.open(&OpenConfig::new(one.path())).unwrap();
    let error = recorder.open(&OpenConfig::new(other.path())).err().unwrap();
    assert!(error.message.contains("one model"), "{error}");
}
