//! Folders of runs: a run takes up only what it left there; files of others stay.

#![allow(clippy::unwrap_used)]

mod tiny;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use karat::ErrorKind;
use karat::backend::{
    Backend, BackendError, Completion, Descriptor, Evaluator, EventSink, GenerateConfig, Method, OpenConfig, Scores,
    Session, SessionInfo, Tokens, TokensView,
};
use karat::data::examples::LabelledRows;
use karat::run::{
    Backends, Base, Brought, Cancel, LoadedBackend, Notice, Origin, ParityJob, TrainJob, Trained, evaluate_brought,
    evaluator, parity, plan, run, scores, train,
};
use karat::suite::{Hyperparameters, Suite};
use karat_hostile::Bigram;
use serde_json::json;
use tiny::{Only, model};

/// A folder with a model, items and a suite that trains all parameters.
fn place() -> (tempfile::TempDir, Suite) {
    let folder = tempfile::tempdir().unwrap();
    model(&folder.path().join("base"));
    let items =
        (0..30).map(|i| json!({"question": format!("q{i}"), "answer": format!("a{}", i % 7)}).to_string() + "\n");
    std::fs::write(folder.path().join("all.jsonl"), items.collect::<String>()).unwrap();
    let suite = Suite::parse(SUITE, &folder.path().join("suite.toml"), &[]).unwrap();
    (folder, suite)
}

const SUITE: &str = "name = \"tiny\"\n[data]\nfile = \"all.jsonl\"\noutput = \"recipe\"\nsplit = \"1:1\"\n\
    [model]\nbase = \"base\"\nbackend = \"bigram\"\n[train]\nmax_steps = 4\nlearning_rate = 0.05\neval_every = 2\n\
    save_every = 2\n[train.full]\n[stats]\nresamples = 100\n[eval]\nmax_new_tokens = 4\nmetrics = [\"nll\"]\n";

fn quiet(_: Notice<'_>) {}

/// Every file below a folder.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for path in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn a_folder_that_no_run_made_is_refused_and_nothing_in_it_changes() {
    let (folder, suite) = place();
    std::fs::write(folder.path().join("suite.toml"), format!("# three hours of notes\n{SUITE}")).unwrap();
    std::fs::write(folder.path().join("data.json"), "mine").unwrap();
    let others = tempfile::tempdir().unwrap();
    std::fs::create_dir(others.path().join("report")).unwrap();
    std::fs::write(others.path().join("report/report.md"), "mine").unwrap();
    for at in [folder.path(), others.path()] {
        let before = files(at);
        let error = run(&suite, at, &Only, &mut quiet, &Cancel::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("no run folder"), "{error}");
        let brought = Brought { name: "m".into(), model: suite.model.base.clone(), adapter: None };
        let error = evaluate_brought(&suite, brought, at, &Only, &mut quiet, &Cancel::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(files(at) == before);
    }
}

#[test]
fn an_empty_folder_a_run_and_a_copy_of_one_without_its_hidden_files_are_taken() {
    let (folder, suite) = place();
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join(".gitkeep"), "").unwrap();
    for _ in 0..2 {
        run(&suite, &out, &Only, &mut quiet, &Cancel::new()).unwrap();
        // Notes of the user's, and the log of a batch system, are in nobody's way.
        std::fs::write(out.join("slurm-1.out"), "a log").unwrap();
    }
    std::fs::remove_file(out.join(".lock")).unwrap();
    run(&suite, &out, &Only, &mut quiet, &Cancel::new()).unwrap();
    assert_eq!(std::fs::read_to_string(out.join("slurm-1.out")).unwrap(), "a log");
    // The stored suite is one, and repeats its run where it lies.
    let stored = Suite::load(out.join("suite.toml").to_str().unwrap(), &[]).unwrap();
    assert_eq!(stored, suite);
    run(&stored, &out, &Only, &mut quiet, &Cancel::new()).unwrap();
}

#[test]
fn what_a_killed_run_left_half_written_is_removed_by_the_next() {
    let (folder, suite) = place();
    let out = folder.path().join("out");
    run(&suite, &out, &Only, &mut quiet, &Cancel::new()).unwrap();
    let rests = [".karat-merged-x/merged/model.safetensors", "results/.karat-aaaaaa", "eval/.karat-bbbbbb"];
    for rest in rests.map(|rest| out.join(rest)) {
        std::fs::create_dir_all(rest.parent().unwrap()).unwrap();
        std::fs::write(rest, "x").unwrap();
    }
    run(&suite, &out, &Only, &mut quiet, &Cancel::new()).unwrap();
    let left: Vec<PathBuf> =
        files(&out).into_keys().filter(|path| path.to_string_lossy().contains("/.karat-")).collect();
    assert!(left.is_empty(), "{left:?}");
}

fn rows() -> LabelledRows {
    let mut rows = LabelledRows::default();
    (0..12).for_each(|_| rows.push(&[1, 2, 1, 2], &[-100, 2, -100, 2]).unwrap());
    rows
}

fn trained(base: &Path, out: &Path, h: &Hyperparameters) -> karat::Result<Trained> {
    let backend = Only.backend("bigram").unwrap();
    let rows = rows();
    let base = Base::of(OpenConfig::new(base))?;
    let mut plan = plan(&rows, &rows, Method::Full, h, 1, &backend, &base)?;
    plan.output_dir = out.into();
    let job = TrainJob { name: "full", backend: &backend, base, train: &rows, eval: &rows, plan };
    train(job, &mut quiet, &Cancel::new())
}

fn settings() -> Hyperparameters {
    Hyperparameters { max_steps: 6, learning_rate: 0.05, eval_every: 2, save_every: 2, ..Default::default() }
}

#[test]
fn a_checkpoint_that_was_changed_is_neither_reused_nor_gone_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let (base, out) = (folder.path().join("base"), folder.path().join("out"));
    model(&base);
    let first = trained(&base, &out, &settings()).unwrap();
    assert_eq!(trained(&base, &out, &settings()).unwrap().summary, first.summary);
    let last = out.join(&first.summary.last_checkpoint);
    let weights = last.join("bigram.json");
    let bytes = std::fs::read(&weights).unwrap();
    let mut other = bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    // Of a finished training, and of one that was interrupted behind this checkpoint.
    for finished in [true, false] {
        if !finished {
            std::fs::remove_file(out.join("done.json")).unwrap();
        }
        for (changed, word) in [(Some(&other), "bigram.json was changed"), (None, "bigram.json is gone")] {
            match changed {
                Some(changed) => std::fs::write(&weights, changed).unwrap(),
                None => std::fs::remove_file(&weights).unwrap(),
            }
            let error = trained(&base, &out, &settings()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Data);
            assert!(error.to_string().contains(word), "{error}");
            assert!(error.place().unwrap().contains("checkpoint-6") && error.help_text().is_some(), "{error:?}");
        }
        std::fs::write(&weights, &bytes).unwrap();
    }
    // Put back it is what it was; a note beside it changes nothing.
    std::fs::write(last.join("notes.txt"), "mine").unwrap();
    trained(&base, &out, &settings()).unwrap();
}

#[test]
fn a_changed_checkpoint_is_named_by_the_run_and_never_reported() {
    let (folder, suite) = place();
    let out = folder.path().join("out");
    let first = run(&suite, &out, &Only, &mut quiet, &Cancel::new()).unwrap();
    let stage = std::fs::read_dir(out.join("train")).unwrap().next().unwrap().unwrap().path();
    let checkpoint = |step: u32| stage.join(format!("checkpoint-{step}"));
    let kept = std::fs::read(checkpoint(4).join("bigram.json")).unwrap();
    std::fs::copy(checkpoint(2).join("bigram.json"), checkpoint(4).join("bigram.json")).unwrap();
    let error = run(&suite, &out, &Only, &mut quiet, &Cancel::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.to_string().contains("not what training left"), "{error}");
    // Who brings it along on purpose is told, and gets its numbers.
    let mut said = Vec::new();
    let mut listen = |notice: Notice<'_>| {
        if let Notice::Warning(text) = notice {
            said.push(text);
        }
    };
    let brought = Brought { name: "m".into(), model: checkpoint(4), adapter: None };
    evaluate_brought(&suite, brought, &folder.path().join("brought"), &Only, &mut listen, &Cancel::new()).unwrap();
    assert!(said.iter().any(|text| text.contains("checkpoint-4 is not what training left there")), "{said:?}");
    std::fs::write(checkpoint(4).join("bigram.json"), kept).unwrap();
    let again = run(&suite, &out, &Only, &mut quiet, &Cancel::new()).unwrap();
    let text = |r: &karat::report::Report| r.without_environment().to_json().unwrap();
    assert!(text(&first) == text(&again));
}

/// Changes `file` once `stage` is done.
fn changing(stage: &'static str, file: PathBuf) -> impl FnMut(Notice<'_>) {
    move |notice| {
        if let Notice::Done { name, .. } = notice
            && name == stage
        {
            let mut bytes = std::fs::read(&file).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(&file, bytes).unwrap();
        }
    }
}

#[test]
fn what_changes_between_training_and_evaluation_of_one_run_is_not_evaluated() {
    let (folder, suite) = place();
    let out = folder.path().join("out");
    let find = |step: u32| {
        let stage = std::fs::read_dir(out.join("train")).unwrap().next().unwrap().unwrap().path();
        stage.join(format!("checkpoint-{step}/bigram.json"))
    };
    run(&suite, &out, &Only, &mut quiet, &Cancel::new()).unwrap();
    let checkpoint = find(4);
    std::fs::remove_dir_all(&out).unwrap();
    let error = run(&suite, &out, &Only, &mut changing("train full", checkpoint), &Cancel::new()).unwrap_err();
    assert!(error.to_string().contains("not what training left"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Data);
}

#[test]
fn resuming_with_other_settings_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let (base, out) = (folder.path().join("base"), folder.path().join("out"));
    model(&base);
    trained(&base, &out, &settings()).unwrap();
    let refused = |h: &Hyperparameters| {
        let error = trained(&base, &out, h).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        error.to_string()
    };
    let other = Hyperparameters { learning_rate: 0.1, ..settings() };
    assert!(refused(&other).ends_with("of another training: learning_rate = 0.1 (was 0.05)"), "{}", refused(&other));
    let other = Hyperparameters { max_grad_norm: 2.0, batch_size: 2, ..settings() };
    let said = refused(&other);
    assert!(said.contains("batch_size = 2 (was 1)") && said.contains("max_grad_norm = 2 (was 1)"), "{said}");
    let other = Hyperparameters { shuffle: false, ..settings() };
    assert!(refused(&other).ends_with("another training: order of the rows"), "{}", refused(&other));
    std::fs::write(base.join("config.json"), "{ }").unwrap();
    assert!(refused(&settings()).ends_with("another training: another model"), "{}", refused(&settings()));
}

#[test]
fn a_folder_that_no_training_made_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    model(&base);
    let before = files(folder.path());
    let error = trained(&base, folder.path(), &settings()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("no training wrote"), "{error}");
    assert!(files(folder.path()) == before);
    // A copy of a training without its hidden lock goes on.
    let out = folder.path().join("out");
    trained(&base, &out, &settings()).unwrap();
    std::fs::remove_file(out.join(".lock")).unwrap();
    trained(&base, &out, &settings()).unwrap();
}

#[test]
fn a_summary_that_names_a_folder_elsewhere_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (base, out) = (folder.path().join("base"), folder.path().join("out"));
    model(&base);
    let first = trained(&base, &out, &settings()).unwrap();
    let text = std::fs::read_to_string(out.join("done.json")).unwrap();
    let name = first.summary.last_checkpoint.to_str().unwrap();
    for elsewhere in [base.to_str().unwrap(), "../base"] {
        let led =
            text.replace(&format!("\"last_checkpoint\": \"{name}\""), &format!("\"last_checkpoint\": {elsewhere:?}"));
        assert_ne!(led, text);
        std::fs::write(out.join("done.json"), &led).unwrap();
        let error = trained(&base, &out, &settings()).unwrap_err();
        assert!(error.kind() == ErrorKind::Data && error.to_string().contains("changed afterwards"), "{error}");
        // One of an earlier version has no digest.
        let mut object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&led).unwrap();
        object.remove("sha256").unwrap();
        std::fs::write(out.join("done.json"), serde_json::to_string(&object).unwrap()).unwrap();
        assert_eq!(trained(&base, &out, &settings()).unwrap().summary.last_checkpoint.to_str().unwrap(), name);
    }
}

/// A backend whose scores are not numbers from the third on.
struct Broken;

struct BrokenSession(Box<dyn Session>);

impl Backend for Broken {
    fn describe(&self) -> Descriptor {
        Bigram.describe()
    }
    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>, BackendError> {
        Ok(Box::new(BrokenSession(Bigram.open(config)?)))
    }
}

impl Session for BrokenSession {
    fn evaluator(&mut self) -> Option<&mut dyn Evaluator> {
        Some(self)
    }
    fn info(&self) -> SessionInfo {
        self.0.info()
    }
}

impl Evaluator for BrokenSession {
    fn score(&mut self, tokens: TokensView<'_>, sink: &mut dyn EventSink) -> Result<Scores, BackendError> {
        let mut scores = self.0.evaluator().unwrap().score(tokens, sink)?;
        scores.logprobs.iter_mut().skip(2).for_each(|logprob| *logprob = f32::NAN);
        Ok(scores)
    }
    fn generate(
        &mut self,
        prompts: TokensView<'_>,
        config: &GenerateConfig,
        sink: &mut dyn EventSink,
    ) -> Result<Vec<Completion>, BackendError> {
        self.0.evaluator().unwrap().generate(prompts, config, sink)
    }
}

impl Backends for Broken {
    fn backend(&self, _: &str) -> karat::Result<LoadedBackend> {
        Ok(LoadedBackend { backend: Arc::new(Broken), origin: Origin::default() })
    }
}

#[test]
fn a_score_that_is_no_number_is_an_error_wherever_it_arrives() {
    let (folder, suite) = place();
    let loaded = Broken.backend("").unwrap();
    let refused = |error: karat::Error, place: &str| {
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(error.to_string().contains("not a number"), "{error}");
        assert!(error.place().unwrap().contains(place), "{error}");
    };
    // A row of texts that somebody gives.
    let mut session = loaded.open(&OpenConfig::new(&suite.model.base)).unwrap();
    let rows: Tokens = [[1u32, 2].as_slice(), &[3], &[4, 5, 6]].iter().collect();
    let place = |row: usize| format!("row {row}");
    let mut sink = |_: karat::backend::Event| karat::backend::Flow::Continue;
    let asked = scores(evaluator(&mut session, "").unwrap(), rows.view(), "scoring failed", &place, &mut sink);
    refused(asked.unwrap_err(), "row 2");
    // The items of a suite.
    let brought = Brought { name: "m".into(), model: suite.model.base.clone(), adapter: None };
    let out = folder.path().join("out");
    refused(evaluate_brought(&suite, brought, &out, &Broken, &mut quiet, &Cancel::new()).unwrap_err(), "item ");
    // Two backends on one model.
    let open = OpenConfig::new(&suite.model.base);
    let rows = [vec![1, 2, 3, 4]];
    let generate = GenerateConfig::greedy(1, vec![]);
    let job = ParityJob { open: [open.clone(), open], rows: &rows, prompts: &[], generate, tolerance: 1e-3 };
    let good = Only.backend("").unwrap();
    refused(parity(&job, [&good, &loaded], &mut quiet, &Cancel::new()).unwrap_err(), "row 0");
}

#[test]
fn more_threads_than_make_sense_are_capped_and_said() {
    let (folder, mut suite) = place();
    suite.model.threads = 10_000;
    let mut said = Vec::new();
    let mut listen = |notice: Notice<'_>| {
        if let Notice::Warning(text) = notice {
            said.push(text);
        }
    };
    run(&suite, &folder.path().join("out"), &Only, &mut listen, &Cancel::new()).unwrap();
    assert_eq!(said.iter().filter(|text| text.starts_with("model.threads = 10000")).count(), 1, "{said:?}");
}

#[test]
fn a_suite_names_backends_by_name_and_no_code_at_all() {
    let (folder, _) = place();
    let parse = |text: &str, overrides: &[&str]| {
        let overrides: Vec<String> = overrides.iter().map(|o| (*o).to_string()).collect();
        Suite::parse(text, &folder.path().join("suite.toml"), &overrides)
    };
    for path in ["./x.so", "/x/libkarat_x.so", "x.so", "..", ""] {
        let text = SUITE.replace("backend = \"bigram\"", &format!("backend = {path:?}"));
        let error = parse(&text, &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("model.backend"), "{error}");
        assert!(error.help_text().unwrap().contains("--backend-path"), "{error:?}");
    }
    for key in ["model.backend", "eval.backend"] {
        assert!(parse(SUITE, &[&format!("{key}=./x.so")]).unwrap_err().to_string().contains(key));
    }
    let code = format!("{SUITE}[eval.options]\nspin = true\nlibrary = \"./x.so\"\n");
    let error = parse(&code, &[]).unwrap_err();
    assert!(error.to_string().contains("eval.options.library names code"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Usage);
    let folders = format!("{SUITE}[eval.options]\nexport_dir = \"../elsewhere\"\n");
    let error = parse(&folders, &[]).unwrap_err();
    assert!(error.to_string().contains("eval.options.export_dir names a folder to write"), "{error}");
    // Who types the command may.
    assert!(parse(SUITE, &["eval.options.library=/opt/lib.so"]).is_ok());
    assert!(parse(SUITE, &["eval.options.export_dir=/opt/exported"]).is_ok());
}

#[test]
fn a_suite_that_is_no_utf8_says_where() {
    let (folder, _) = place();
    let path = folder.path().join("suite.toml");
    std::fs::write(&path, [SUITE.as_bytes(), b"# caf\xe9\n"].concat()).unwrap();
    let error = Suite::load(path.to_str().unwrap(), &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    let line = SUITE.lines().count() + 1;
    assert!(error.place().unwrap().ends_with(&format!("suite.toml:{line}")), "{error}");
}
