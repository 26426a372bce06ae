//! The golden reports of the shipped suite: made from committed results, and held against a live
//! slice.
//!
//! `golden/*.json` below the suite's folder are the results of one run (`results/` of its run
//! folder): predictions, scores, curves. From them the report is made again on every test run,
//! without a model. A change that moves a number shows here; if it is meant,
//! `cargo karat run medical-r1` and a copy of `runs/medical-r1/results/*.json` renew the results,
//! and `KARAT_RENEW=1 cargo test --workspace --test golden` what is made from them.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use karat::backend::{Event, Flow, GenerateConfig, Method, OpenConfig, Tokens};
use karat::eval::stats::MarginVerdict;
use karat::report::splice::{self, SpliceMode};
use karat::report::{Environment, REPORT_JSON, Report, Role, gate, markdown};
use karat::run::{Base, LoadedBackend, Origin, Prepared, Recorded, plan, prepare, report_recorded};
use karat::suite::Suite;
use karat::{plugin, report};
use serde_json::Value;

fn suite_dir() -> PathBuf {
    karat_suites::dir().join("medical-r1")
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn golden() -> (Suite, Prepared, Vec<Recorded>) {
    let suite = Suite::load(suite_dir().join("suite.toml").to_str().unwrap(), &[]).unwrap();
    let prepared = prepare(&suite).unwrap();
    let recorded = Recorded::read_all(&suite_dir().join("golden")).unwrap();
    (suite, prepared, recorded)
}

/// Made once for all tests: its resamples take a while.
fn golden_report() -> Report {
    static MADE: OnceLock<Report> = OnceLock::new();
    let make = || {
        let (suite, prepared, recorded) = golden();
        report_recorded(&suite, &prepared, recorded, Environment::default()).unwrap().without_environment()
    };
    MADE.get_or_init(make).clone()
}

/// By how much numbers may differ: the last bits of another machine's `exp` and `ln`. What is
/// discrete must be equal.
const RELATIVE: f64 = 1e-9;

fn nearly_equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(x), Some(y)) => a == b || (x - y).abs() <= RELATIVE * x.abs().max(y.abs()),
            _ => a == b,
        },
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| nearly_equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| nearly_equal(v, w)))
        }
        _ => a == b,
    }
}

/// What a reader does first: subtract one column of the table from another.
#[test]
fn every_difference_is_that_of_the_values_in_the_table() {
    let report = golden_report();
    let general = report.general.as_ref().unwrap();
    let mut seen = 0;
    for (comparisons, metrics) in [(&report.comparisons, &report.metrics), (&general.comparisons, &general.metrics)] {
        for comparison in comparisons {
            for metric in metrics {
                let value = |model: &str| metric.models[model].value;
                let c = &comparison.metrics[&metric.name];
                let (Some(a), Some(b), Some(d)) =
                    (value(&comparison.baseline), value(&comparison.candidate), c.difference)
                else {
                    continue;
                };
                let what = format!("{} of {} against {}", metric.name, comparison.candidate, comparison.baseline);
                let n = |model: &str| metric.models[model].n;
                assert_eq!((n(&comparison.baseline), n(&comparison.candidate)), (c.n, c.n), "{what}");
                assert!((b - a - d).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0), "{what}: {b} - {a} is not {d}");
                let (low, high) = (c.ci_low.unwrap(), c.ci_high.unwrap());
                assert!(low <= d && d <= high, "{what}: {d} is outside [{low}, {high}]");
                seen += 1;
            }
        }
    }
    assert_eq!(seen, 3 * (report.metrics.len() + general.metrics.len()));
}

#[test]
fn the_comparator_sees_a_changed_digit_and_forgives_the_last_bits() {
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert!(nearly_equal(&json(r#"{"x": [1.0, 2]}"#), &json(r#"{"x": [1.0000000000001, 2]}"#)));
    for other in [r#"{"x": [1.000001, 2]}"#, r#"{"x": [1.0, 3]}"#, r#"{"x": [1.0]}"#, r#"{"y": [1.0, 2]}"#] {
        assert!(!nearly_equal(&json(r#"{"x": [1.0, 2]}"#), &json(other)), "{other}");
    }
}

#[test]
fn the_committed_reports_are_those_of_the_committed_results() {
    let folder = repository().join("reports/medical-r1");
    // Whole pages are pure functions of the JSON; the others are left to `karat report`.
    const KEPT: [&str; 3] = [REPORT_JSON, "report.md", "metrics.svg"];
    let write = |report: &Report| {
        let made = tempfile::tempdir().unwrap();
        report::write(report, made.path()).unwrap();
        made
    };
    if std::env::var_os("KARAT_RENEW").is_some() {
        let report = golden_report();
        let made = write(&report);
        for name in KEPT {
            std::fs::copy(made.path().join(name), folder.join(name)).unwrap();
        }
        let block = markdown::results_block(&report);
        splice::file(&repository().join("README.md"), "medical-r1", &block, SpliceMode::Write, "").unwrap();
    }
    let committed: Value = serde_json::from_str(&std::fs::read_to_string(folder.join(REPORT_JSON)).unwrap()).unwrap();
    let made: Value = serde_json::from_str(&golden_report().to_json().unwrap()).unwrap();
    let renew = "renew it: KARAT_RENEW=1 cargo test --workspace --test golden";
    assert!(nearly_equal(&made, &committed), "reports/medical-r1/report.json is not current; {renew}");
    let again = write(&Report::load(&folder).unwrap());
    for name in KEPT {
        let same = std::fs::read(again.path().join(name)).unwrap() == std::fs::read(folder.join(name)).unwrap();
        assert!(same, "reports/medical-r1/{name} is not current; {renew}");
    }
}

/// The suite of five models, two of which are trained, from its committed results.
fn five_models() -> Report {
    static MADE: OnceLock<Report> = OnceLock::new();
    let make = || {
        let folder = karat_suites::dir().join("medical-r1-models");
        let suite = Suite::load(folder.join("suite.toml").to_str().unwrap(), &[]).unwrap();
        let prepared = prepare(&suite).unwrap();
        let recorded = Recorded::read_all(&folder.join("golden")).unwrap();
        report_recorded(&suite, &prepared, recorded, Environment::default()).unwrap().without_environment()
    };
    MADE.get_or_init(make).clone()
}

#[test]
fn the_report_of_five_models_is_that_of_its_committed_results() {
    let folder = repository().join("reports/medical-r1-models");
    const KEPT: [&str; 2] = [REPORT_JSON, "report.md"];
    let report = five_models();
    let made = tempfile::tempdir().unwrap();
    report::write(&report, made.path()).unwrap();
    if std::env::var_os("KARAT_RENEW").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        for name in KEPT {
            std::fs::copy(made.path().join(name), folder.join(name)).unwrap();
        }
    }
    let read = |folder: &Path, name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let json = |folder: &Path| serde_json::from_str::<Value>(&read(folder, REPORT_JSON)).unwrap();
    let renew = "renew it: KARAT_RENEW=1 cargo test --workspace --test golden";
    assert!(nearly_equal(&json(made.path()), &json(&folder)), "reports/medical-r1-models is not current; {renew}");
    report::write(&Report::load(&folder).unwrap(), made.path()).unwrap();
    assert_eq!(read(made.path(), "report.md"), read(&folder, "report.md"), "{renew}");
}

#[test]
fn five_models_are_told_apart_by_what_they_are() {
    let report = five_models();
    let models: Vec<(&str, Role)> = report.models.iter().map(|m| (m.name.as_str(), m.role)).collect();
    let roles = [Role::Base, Role::Lora, Role::Other, Role::Lora, Role::Full];
    let names = ["base", "earlier", "nearest", "lora", "full"];
    assert_eq!(models, names.into_iter().zip(roles).collect::<Vec<_>>());
    assert_eq!(report.comparisons.len(), 5);
    // Nobody knows how texts without a model were asked, and nothing of a model is claimed of them.
    let nearest = report.comparison("base", "nearest").unwrap();
    assert_eq!(nearest.allowed.len(), 3);
    assert!(report.comparison("base", "lora").unwrap().allowed.is_empty());
    assert!(nearest.metrics["nll"].difference.is_none());
    let model = report.model("nearest").unwrap();
    assert!(model.parameters.is_none() && model.checkpoint_sha256.is_empty());
    let recommendation = report.recommendation.as_ref().unwrap();
    assert!(["lora", "full"].contains(&recommendation.ship.as_deref().unwrap_or("lora")), "{recommendation:?}");
}

/// The answer of the training question that shares most pairs of characters with each held-out one.
#[test]
fn the_texts_without_a_model_are_those_of_the_nearest_training_question() {
    use std::collections::HashSet;
    let rows = |name: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(suite_dir().join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let pairs = |row: &Value| -> HashSet<(char, char)> {
        let question: Vec<char> = row["question"].as_str().unwrap().chars().collect();
        question.windows(2).map(|pair| (pair[0], pair[1])).collect()
    };
    let (train, heldout) = (rows("train.jsonl"), rows("heldout.jsonl"));
    let known: Vec<HashSet<(char, char)>> = train.iter().map(pairs).collect();
    let text = std::fs::read_to_string(karat_suites::dir().join("medical-r1-models/nearest.jsonl")).unwrap();
    for (line, row) in text.lines().zip(&heldout) {
        let asked = pairs(row);
        let likeness = |other: &HashSet<(char, char)>| {
            let both = asked.intersection(other).count() as f64;
            both / (asked.len() + other.len()) as f64
        };
        let best = (0..train.len()).rev().max_by(|&i, &j| likeness(&known[i]).total_cmp(&likeness(&known[j]))).unwrap();
        let part = |name: &str| train[best][name].as_str().unwrap().to_string();
        let candidate = format!("<think>{}</think>\n{}", part("think"), part("answer"));
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&line["id"], line["candidate"].as_str().unwrap()), (&row["id"], candidate.as_str()));
    }
    assert_eq!(text.lines().count(), heldout.len());
}

#[test]
fn the_table_in_the_readme_is_current() {
    let report = Report::load(&repository().join("reports/medical-r1")).unwrap();
    let command = "cargo karat report reports/medical-r1 --splice README.md --id medical-r1";
    let block = markdown::results_block(&report);
    splice::file(&repository().join("README.md"), "medical-r1", &block, SpliceMode::Check, command).unwrap();
}

#[test]
fn fine_tuning_is_clearly_better_than_the_base_on_held_out_items() {
    let report = golden_report();
    for candidate in ["lora", "full"] {
        let comparison = report.comparison("base", candidate).unwrap();
        for metric in ["nll", "nll_think", "nll_answer", "rougeL", "vocab_f1", "key_points", "format"] {
            let m = &comparison.metrics[metric];
            assert_eq!(m.verdict, report::Verdict::Better, "{candidate} {metric}: {m:?}");
            assert!(m.p_adjusted.unwrap() < 0.01, "{candidate} {metric}: {m:?}");
        }
    }
}

#[test]
fn a_yes_to_a_contraindicated_patient_is_counted_and_named_as_a_headline() {
    let report = golden_report();
    let value = |name: &str, model: &str| {
        let metric = report.metric(name).unwrap();
        let value = &metric.models[model];
        (value.n, (value.value.unwrap() * value.n as f64).round() as usize)
    };
    // 14 held-out items ask about a patient with a contraindication, 12 about one without.
    assert_eq!(value("decision_yes_to_no", "full"), (14, 5));
    assert_eq!(value("decision_yes_to_no", "lora"), (14, 5));
    assert_eq!(value("decision_yes_to_no", "base"), (14, 0));
    for model in ["base", "lora", "full"] {
        let count = |name: &str| value(name, model).1;
        assert_eq!((value("decision", model).0, value("decision_no_to_yes", model).0), (26, 12));
        let errors = count("decision_yes_to_no") + count("decision_no_to_yes") + count("decision_undecided");
        assert_eq!(count("decision") + errors, 26, "{model}: every item is right or one kind of error");
    }
    for name in ["decision", "decision_yes_to_no"] {
        assert!(report.metric(name).unwrap().headline, "{name}");
    }
    let contradicted = report.metric("contradictions").unwrap();
    assert!(contradicted.models["full"].value.unwrap() > 0.0, "a yes where the reference says no contradicts it");
}

#[test]
fn the_gate_passes_a_report_against_itself_and_finds_a_regression() {
    let report = golden_report();
    assert_eq!(gate::check(&report, &report, &Default::default()).unwrap().verdict, MarginVerdict::Pass);
    let mut worse = report.clone();
    for item in &mut worse.items {
        let metrics = &mut item.models.get_mut("full").unwrap().metrics;
        metrics.entry("nll".into()).and_modify(|v| *v = v.map(|x| x + 0.5));
    }
    let checks = gate::check(&worse, &report, &Default::default()).unwrap();
    assert_eq!(checks.verdict, MarginVerdict::Regress);
    let failed: Vec<_> = checks.checks.iter().filter(|c| c.verdict == MarginVerdict::Regress).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!((failed[0].model.as_str(), failed[0].metric.as_str()), ("full", "nll"));
    let mut missing = report.clone();
    missing.items.pop();
    assert_eq!(gate::check(&missing, &report, &Default::default()).unwrap().verdict, MarginVerdict::Regress);
}

/// The built native plugin, loaded as the command line loads it.
fn native() -> LoadedBackend {
    let plugin = plugin::find("native", &plugin::Search::from_env()).unwrap();
    let origin = Origin { path: Some(plugin.path().into()), sha256: Some(plugin.sha256().into()) };
    LoadedBackend { backend: std::sync::Arc::new(plugin), origin }
}

#[test]
fn a_live_slice_of_the_base_is_what_was_recorded() {
    let (suite, prepared, recorded) = golden();
    let base = recorded.iter().find(|r| r.role == Role::Base).unwrap();
    let mut session = native().backend.open(&OpenConfig::new(&suite.model.base)).unwrap();
    let evaluator = session.evaluator().unwrap();
    let queries = &prepared.queries[..12];
    let mut quiet = |_: Event| Flow::Continue;

    let references: Tokens = queries.iter().map(|q| &q.reference).collect();
    let scores = evaluator.score(references.view(), &mut quiet).unwrap();
    let mut start = 0;
    for (query, recorded) in queries.iter().zip(&base.references) {
        let end = start + query.reference.len() - 1;
        let answer = start + query.answer.start - 1..start + query.answer.end - 1;
        let sum: f64 = scores.logprobs[answer].iter().map(|&l| f64::from(l)).sum();
        assert_eq!(query.id, recorded.id);
        assert!((sum - recorded.answer.logprob).abs() < 1e-3 * query.answer.len() as f64, "{}: {sum}", query.id);
        start = end;
    }

    let prompts: Tokens = queries.iter().map(|q| &q.prompt).collect();
    let config = GenerateConfig::greedy(prepared.generation.max_new_tokens, prepared.formatter.stop_ids());
    let completions = evaluator.generate(prompts.view(), &config, &mut quiet).unwrap();
    let equal = completions.iter().zip(&base.predictions).filter(|(c, p)| Some(&c.ids) == p.ids.as_ref()).count();
    // Another machine's kernels may tip a near-tie of two tokens; most texts have none.
    assert!(equal >= 10, "only {equal} of 12 greedy texts are as recorded");
}

#[test]
fn the_first_live_steps_of_lora_are_those_of_the_recorded_curve() {
    let (suite, prepared, recorded) = golden();
    let lora = recorded.iter().find(|r| r.role == Role::Lora).unwrap();
    let curve = &lora.training.as_ref().unwrap().curves.steps;
    let backend = native();
    let open = OpenConfig { seed: suite.seed, ..OpenConfig::new(&suite.model.base) };
    let base = Base::of(open.clone()).unwrap();
    let section = suite.train.lora.as_ref().unwrap();
    let method = Method::Lora(section.adapter.clone());
    let mut plan =
        plan(&prepared.train, &prepared.validation, method, &section.hyperparameters, suite.seed, &backend, &base)
            .unwrap();
    let folder = tempfile::tempdir().unwrap();
    plan.output_dir = folder.path().to_path_buf();
    plan.steps.truncate(6);
    plan.learning_rates.truncate(6);
    plan.epochs.truncate(6);
    let mut session = backend.backend.open(&open).unwrap();
    let mut live = Vec::new();
    let mut keep = |event: Event| {
        if let Event::Step(step) = event {
            live.push(step);
        }
        Flow::Continue
    };
    let trainer = session.trainer().unwrap();
    trainer.train(prepared.train.view(), prepared.validation.view(), &plan, &mut keep).unwrap();
    assert_eq!(live.len(), 6);
    for (live, recorded) in live.iter().zip(curve) {
        assert!((live.loss - recorded.loss).abs() < 1e-3 * recorded.loss, "{live:?} against {recorded:?}");
        assert!((live.grad_norm - recorded.grad_norm).abs() < 1e-2 * recorded.grad_norm, "{live:?}, {recorded:?}");
    }
}
