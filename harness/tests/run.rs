//! A whole run on a real, if tiny, backend: what is stored is reused, what is interrupted goes on,
//! and the report is the one of a run that never stopped.

#![allow(clippy::unwrap_used)]

mod tiny;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use karat::ErrorKind;
use karat::backend::{Backend, BackendError, Descriptor, Event, Method, OpenConfig, Session, StopReason};
use karat::data::examples::LabelledRows;
use karat::report::{Environment, Report};
use karat::run::{
    Backends, Base, Brought, Cancel, LoadedBackend, Notice, Origin, Recorded, TrainJob, evaluate_brought, plan,
    prepare, remove, report_recorded, run, start_from_adapter, train,
};
use karat::suite::{Hyperparameters, Suite};
use karat_hostile::Bigram;
use serde_json::json;
use tiny::{Only, model};

/// A folder with a model, 90 items and a suite that trains all parameters.
fn place(eval: &str) -> (tempfile::TempDir, Suite) {
    let folder = tempfile::tempdir().unwrap();
    model(&folder.path().join("base"));
    let items: String = (0..90)
        .map(|i| {
            json!({"question": format!("q{i}"), "think": "ab", "answer": format!("a{}", i % 7)}).to_string() + "\n"
        })
        .collect();
    std::fs::write(folder.path().join("all.jsonl"), items).unwrap();
    let suite = suite(folder.path(), eval, &[]);
    (folder, suite)
}

fn suite(folder: &Path, eval: &str, overrides: &[&str]) -> Suite {
    let text = format!(
        "name = \"tiny\"\n[data]\nfile = \"all.jsonl\"\noutput = \"recipe\"\nsplit = \"1:8\"\n\
         [model]\nbase = \"base\"\nbackend = \"bigram\"\n[train]\nepochs = 2\nlearning_rate = 0.05\neval_every = 2\n\
         save_every = 2\nbatch_size = 2\naccumulation = 1\n[train.full]\n\
         [stats]\nresamples = 200\n[eval]\nmax_new_tokens = 12\nmetrics = [\"nll\", \"bleu\", \"exact_match\"]\n{eval}\n"
    );
    let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
    Suite::parse(&text, &folder.join("suite.toml"), &overrides).unwrap()
}

fn quiet(_: Notice<'_>) {}

fn whole(suite: &Suite, out: &Path) -> Report {
    run(suite, out, &Only, &mut quiet, &Cancel::new()).unwrap()
}

/// Runs, and stops at the `at`th event that `which` names.
fn stopped(suite: &Suite, out: &Path, which: fn(&Event) -> bool, at: usize) {
    let cancel = Cancel::new();
    let mut seen = 0;
    let stop = cancel.clone();
    let mut observer = move |notice: Notice<'_>| {
        if let Notice::Backend { event, .. } = notice
            && which(event)
        {
            seen += 1;
            if seen == at {
                stop.request();
            }
        }
    };
    let error = run(suite, out, &Only, &mut observer, &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
}

fn same(a: &Report, b: &Report) {
    let text = |r: &Report| r.without_environment().to_json().unwrap();
    assert!(text(a) == text(b), "the reports differ");
}

fn is_step(event: &Event) -> bool {
    matches!(event, Event::Step(_))
}

fn is_completion(event: &Event) -> bool {
    matches!(event, Event::Completion { .. })
}

fn is_scored(event: &Event) -> bool {
    matches!(event, Event::Progress { stage, .. } if stage == "score")
}

#[test]
fn a_run_that_was_stopped_anywhere_ends_with_the_report_of_one_that_was_not() {
    for eval in ["", "temperature = 0.9"] {
        let (folder, suite) = place(eval);
        let once = whole(&suite, &folder.path().join("once"));
        let out = folder.path().join("often");
        stopped(&suite, &out, is_step, 3);
        stopped(&suite, &out, is_scored, 70);
        stopped(&suite, &out, is_completion, 5);
        stopped(&suite, &out, is_completion, 70);
        let often = whole(&suite, &out);
        same(&once, &often);
        // What earlier calls did counts.
        let tokens = |r: &Report| r.environment.costs["base"].generated_tokens.unwrap();
        assert_eq!(tokens(&once), tokens(&often), "{eval}");
        let steps = |out: &Path| karat::train::log::read(&stage(out).join("events.jsonl")).unwrap();
        assert_eq!(steps(&out).steps.len(), often.model("full").unwrap().training.as_ref().unwrap().steps);
        let seconds = often.environment.costs["full"].train_seconds.unwrap();
        assert!(seconds >= steps(&out).seconds(), "{seconds} of {}", steps(&out).seconds());
    }
}

/// The folder of the full training.
fn stage(out: &Path) -> PathBuf {
    let mut stages: Vec<PathBuf> = std::fs::read_dir(out.join("train")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(stages.len(), 1);
    stages.remove(0)
}

#[test]
fn a_run_of_the_same_inputs_reuses_everything_and_of_others_nothing_of_it() {
    let (folder, suite) = place("");
    let out = folder.path().join("out");
    let first = whole(&suite, &out);
    let count = |suite: &Suite| {
        let (mut reused, mut begun) = (Vec::new(), Vec::new());
        let mut observer = |notice: Notice<'_>| match notice {
            Notice::Reused { name, .. } => reused.push(name.to_string()),
            Notice::Stage { name, .. } => begun.push(name.to_string()),
            _ => {}
        };
        let report = run(suite, &out, &Only, &mut observer, &Cancel::new()).unwrap();
        (report, reused, begun)
    };
    let (second, reused, begun) = count(&suite);
    same(&first, &second);
    assert_eq!(
        (reused, begun),
        (vec!["train full".into(), "eval base".into(), "eval full".into()], vec!["data".into()])
    );
    let other = self::suite(folder.path(), "", &["train.epochs=1"]);
    let (_, reused, begun) = count(&other);
    assert_eq!(
        (reused, begun),
        (vec!["eval base".to_string()], vec!["data".into(), "train full".into(), "eval full".into()])
    );
    // A device is part of what decides the numbers.
    let (_, reused, _) = count(&self::suite(folder.path(), "", &["model.device=auto"]));
    assert!(reused.is_empty(), "{reused:?}");
}

#[test]
fn the_stored_suite_repeats_the_run_and_recorded_results_its_report() {
    let (folder, suite) = place("show = 2");
    let out = folder.path().join("out");
    let report = whole(&suite, &out);
    assert_eq!(report.examples.len(), 2);
    let stored = Suite::load(out.join("suite.toml").to_str().unwrap(), &[]).unwrap();
    assert_eq!(stored, suite);
    let prepared = prepare(&stored).unwrap();
    let recorded = Recorded::read_all(&out.join("results")).unwrap();
    let again = report_recorded(&stored, &prepared, recorded, Environment::default()).unwrap();
    same(&report, &again);
    // A suite that trains nothing has a report too, and results of models it does not have are
    // gone.
    let mut none = suite.clone();
    none.train.full = None;
    none.eval.show = 0;
    let report = whole(&none, &out);
    assert_eq!((report.models.len(), report.examples.len()), (1, 0));
    assert_eq!(Recorded::read_all(&out.join("results")).unwrap().len(), 1);
}

#[test]
fn a_prompt_that_fills_the_context_costs_only_its_own_item() {
    let (folder, _) = place("");
    let items: String = ["q".to_string(), "q".repeat(80)]
        .iter()
        .map(|q| json!({"question": q, "answer": "x"}).to_string() + "\n")
        .collect();
    std::fs::write(folder.path().join("heldout.jsonl"), items).unwrap();
    let text = "name = \"long\"\n[data]\ntrain = \"all.jsonl\"\nheldout = \"heldout.jsonl\"\noutput = \"recipe\"\n\
                max_length = 60\n[model]\nbase = \"base\"\n[stats]\nresamples = 200\n\
                [eval]\nmax_new_tokens = 3\nmetrics = [\"nll\", \"exact_match\"]\n";
    let suite = Suite::parse(text, &folder.path().join("suite.toml"), &[]).unwrap();
    let report = whole(&suite, &folder.path().join("out"));
    let values: Vec<_> = report.items.iter().map(|i| &i.models["base"]).collect();
    assert_eq!((values[0].stop, values[0].tokens), (Some(StopReason::Length), Some(3)));
    assert_eq!((values[1].stop, values[1].tokens), (Some(StopReason::Context), Some(0)));
    // Nothing of its reference is within the maximum length.
    assert!(values[0].metrics["nll"].is_some() && values[1].metrics["nll"].is_none());
}

#[test]
fn fresh_removes_a_run_and_nothing_else() {
    let (folder, suite) = place("");
    let out = folder.path().join("out");
    whole(&suite, &out);
    let refused = |at: &Path, suite: &Suite, word: &str| {
        let before = std::fs::read_dir(at).unwrap().count();
        let error = remove(at, suite).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(std::fs::read_dir(at).unwrap().count(), before);
    };
    // A folder with a suite of its own is no run folder.
    std::fs::write(folder.path().join("suite.toml"), "").unwrap();
    refused(folder.path(), &suite, "no run folder");
    std::fs::write(out.join("notes.txt"), "mine").unwrap();
    refused(&out, &suite, "notes.txt");
    std::fs::remove_file(out.join("notes.txt")).unwrap();
    let mut within = suite.clone();
    within.model.base =
        std::fs::read_dir(stage(&out)).unwrap().map(|e| e.unwrap().path()).find(|p| p.is_dir()).unwrap();
    refused(&out, &within, "reads");
    let held = karat::fsio::lock(&out).unwrap();
    refused(&out, &suite, "another karat");
    drop(held);
    remove(&out, &suite).unwrap();
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1, "only the lock is left");
    whole(&suite, &out);
}

#[test]
fn a_model_with_a_tokenizer_of_its_own_is_asked_in_its_own_tokens() {
    let (folder, suite) = place("");
    let other = folder.path().join("other");
    model(&other);
    let file = other.join("tokenizer.json");
    // The tokens of two bytes change places.
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("\"q\":113", "\"q\":0.5").replace("\"a\":97", "\"a\":113").replace("\"q\":0.5", "\"q\":97");
    let evaluate = |model: &Path, name: &str, out: &str| {
        let brought = Brought { name: name.into(), model: model.into(), adapter: None };
        evaluate_brought(&suite, brought, &folder.path().join(out), &Only, &mut quiet, &Cancel::new())
    };
    let same_tokens = evaluate(&other, "other", "one").unwrap();
    let base = evaluate(&suite.model.base, "base", "two").unwrap();
    assert_eq!(same_tokens.fingerprints, base.fingerprints);
    std::fs::write(&file, text).unwrap();
    let own_tokens = evaluate(&other, "other", "three").unwrap();
    assert_ne!(own_tokens.fingerprints.prompts, base.fingerprints.prompts);
    let error = evaluate(&other, "../other", "four").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
}

/// Rows that teach 1 -> 2, and others that say 1 -> 3: the loss on them rises.
fn rows(after_one: u32) -> LabelledRows {
    let mut rows = LabelledRows::default();
    for _ in 0..12 {
        rows.push(&[1, after_one, 1, after_one], &[-100, after_one as i32, -100, after_one as i32]).unwrap();
    }
    rows
}

fn trained(base: &Path, out: &Path, epochs: f64, adapter: Option<&Path>) -> karat::Result<karat::run::Trained> {
    let backend = Only.backend("bigram").unwrap();
    let (train_rows, eval_rows) = (rows(2), rows(3));
    let base = Base::of(OpenConfig::new(base))?;
    let h = Hyperparameters { epochs, learning_rate: 0.05, eval_every: 2, save_every: 2, ..Default::default() };
    let mut plan = plan(&train_rows, &eval_rows, Method::Full, &h, 1, &backend, &base).unwrap();
    plan.output_dir = out.into();
    if let Some(adapter) = adapter {
        start_from_adapter(&mut plan, adapter)?;
    }
    let job = TrainJob { name: "full", backend: &backend, base, train: &train_rows, eval: &eval_rows, plan };
    train(job, &mut quiet, &Cancel::new())
}

#[test]
fn a_removed_checkpoint_is_made_again_or_named_and_never_reported() {
    let folder = tempfile::tempdir().unwrap();
    let (base, out) = (folder.path().join("base"), folder.path().join("out"));
    model(&base);
    let first = trained(&base, &out, 2.0, None).unwrap();
    let (best, last) = (first.summary.best_checkpoint.clone().unwrap(), first.summary.last_checkpoint.clone());
    assert_ne!(best, last, "the loss on the other rows rises");
    // The last one is made again from the one before it.
    std::fs::remove_dir_all(out.join(&last)).unwrap();
    let again = trained(&base, &out, 2.0, None).unwrap();
    assert!(out.join(&last).is_dir());
    let losses =
        |t: &karat::run::Trained| t.curves.evaluations.iter().map(|e| (e.step, e.loss, e.tokens)).collect::<Vec<_>>();
    assert_eq!(losses(&again), losses(&first));
    // The best one cannot be made from a later one.
    std::fs::remove_dir_all(out.join(&best)).unwrap();
    let error = trained(&base, &out, 2.0, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.to_string().contains(best.to_str().unwrap()), "{error}");
}

#[test]
fn a_folder_with_the_checkpoints_of_another_training_is_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let (base, out) = (folder.path().join("base"), folder.path().join("out"));
    model(&base);
    let first = trained(&base, &out, 2.0, None).unwrap();
    // As backends do that keep the state where the harness says.
    let state = json!({"version": 1, "fingerprint": first.fingerprint, "step": 2, "tokens": 1, "backend": "bigram"});
    for entry in std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()) {
        std::fs::write(entry.join("karat_state.json"), state.to_string()).unwrap();
    }
    let log = std::fs::read(out.join("events.jsonl")).unwrap();
    let error = trained(&base, &out, 3.0, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("another training"), "{error}");
    assert!(std::fs::read(out.join("events.jsonl")).unwrap() == log);
    assert_eq!(trained(&base, &out, 2.0, None).unwrap().fingerprint, first.fingerprint);
}

#[test]
fn another_adapter_to_start_from_is_another_training() {
    let folder = tempfile::tempdir().unwrap();
    let (base, adapter) = (folder.path().join("base"), folder.path().join("adapter"));
    model(&base);
    std::fs::create_dir(&adapter).unwrap();
    let backend = Only.backend("bigram").unwrap();
    let rows = rows(2);
    let fingerprint = |weights: &str| {
        std::fs::write(adapter.join("adapter_model.safetensors"), weights).unwrap();
        let h = Hyperparameters::default();
        let start = Base::of(OpenConfig::new(&base)).unwrap();
        let mut plan = plan(&rows, &rows, Method::Full, &h, 1, &backend, &start).unwrap();
        let without = plan.fingerprint.clone();
        start_from_adapter(&mut plan, &adapter).unwrap();
        assert_ne!(plan.fingerprint, without);
        plan.fingerprint
    };
    assert_eq!(fingerprint("one"), fingerprint("one"));
    assert_ne!(fingerprint("one"), fingerprint("two"));
    let missing = trained(&base, &folder.path().join("out"), 1.0, Some(&folder.path().join("missing"))).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Data);
}

/// A backend that takes an adapter and quietly does not apply it.
struct Deaf;

impl Backend for Deaf {
    fn describe(&self) -> Descriptor {
        Bigram.describe()
    }
    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>, BackendError> {
        Bigram.open(&OpenConfig { adapter: None, ..config.clone() })
    }
}

struct OnlyDeaf;

impl Backends for OnlyDeaf {
    fn backend(&self, _: &str) -> karat::Result<LoadedBackend> {
        Ok(LoadedBackend { backend: Arc::new(Deaf), origin: Origin::default() })
    }
}

/// An adapter with one `lora_B` of this value.
fn adapter(folder: &Path, b: f32) {
    let header = json!({"m.lora_B.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(b.to_le_bytes());
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("adapter_model.safetensors"), bytes).unwrap();
}

#[test]
fn an_adapter_that_says_something_and_changes_nothing_fails_the_run() {
    let (folder, suite) = place("");
    let evaluate = |b: f32, out: &str| {
        let adapter_folder = folder.path().join(format!("adapter {b}"));
        adapter(&adapter_folder, b);
        let brought = Brought { name: "lora".into(), model: suite.model.base.clone(), adapter: Some(adapter_folder) };
        evaluate_brought(&suite, brought, &folder.path().join(out), &OnlyDeaf, &mut quiet, &Cancel::new())
    };
    let error = evaluate(0.5, "one").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Backend);
    assert!(error.to_string().contains("was not applied"), "{error}");
    // An adapter of zeros changes nothing rightly.
    let report = evaluate(0.0, "two").unwrap();
    let check = report.models[0].adapter.as_ref().unwrap();
    assert_eq!((check.items, check.largest_change, &check.merged), (12, 0.0, &None));
    assert!(check.tokens > 0);
}

#[test]
fn general_text_is_scored_beside_the_items_every_token_once() {
    let (folder, _) = place("");
    let texts = ["plain text, a line", "x", &"long ".repeat(100)];
    let lines: String = texts.iter().map(|t| json!({"text": t}).to_string() + "\n").collect();
    std::fs::write(folder.path().join("general.jsonl"), lines).unwrap();
    let eval = "[eval.general]\nfile = \"general.jsonl\"\n";
    let suite = suite(folder.path(), eval, &["data.max_length=32"]);
    let out = folder.path().join("out");
    let report = whole(&suite, &out);
    let general = report.general.as_ref().unwrap();
    // A token of this tokenizer is a byte, and a start token stands before each text.
    let bytes: usize = texts.iter().map(|t| t.len()).sum();
    assert_eq!((general.file.rows, general.tokens, general.bytes), (3, bytes as u64, bytes as u64));
    for model in ["base", "full"] {
        let value = |i: usize| general.metrics[i].models[model].value.unwrap();
        assert!((value(0) / std::f64::consts::LN_2 - value(1)).abs() < 1e-12, "{model}");
    }
    let pair = &general.comparisons[0].metrics["general_bits_per_byte"];
    assert_eq!((pair.n, pair.missing), (3, 0));
    assert_ne!(pair.difference, Some(0.0), "training moved the model");
    // From stored results alone, and again from the stores.
    let recorded = Recorded::read_all(&out.join("results")).unwrap();
    let again = report_recorded(&suite, &prepare(&suite).unwrap(), recorded, Environment::default()).unwrap();
    same(&report, &again);
    same(&report, &whole(&suite, &out));
    // Without the table nothing of it is said, and the items' numbers are the same.
    let without = whole(&self::suite(folder.path(), "", &["data.max_length=32"]), &folder.path().join("without"));
    assert!(without.general.is_none());
    assert_eq!(without.metrics, report.metrics);
    let error = Suite::parse(
        "name = \"x\"\n[data]\nfile = \"all.jsonl\"\n[model]\nbase = \"base\"\n[eval.general]\nfile = \"none.txt\"\n",
        &folder.path().join("suite.toml"),
        &[],
    );
    assert!(error.unwrap_err().to_string().contains("none.txt"));
}
