//! The gate: what passes, what fails and by which name; baselines and their history; the files
//! other tools read.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "report/fixture.rs"]
mod fixture;

use std::path::Path;

use karat::eval::stats::MarginVerdict;
use karat::gate::{
    Check, Checks, Gated, Noise, Rules, annotations::annotations, baseline, baseline::Statement, check, junit::junit,
    plan, text,
};
use karat::report::{Report, build};

fn rules(margins: &[(&str, f64)]) -> Rules {
    Rules { margins: margins.iter().map(|(k, v)| (k.to_string(), *v)).collect(), ..Rules::default() }
}

/// The fixture's report with `f` applied to one metric of one model.
fn with(model: &str, metric: &str, f: impl Fn(usize, f64) -> f64) -> Report {
    let mut report = fixture::report();
    for (i, item) in report.items.iter_mut().enumerate() {
        let values = &mut item.models.get_mut(model).unwrap().metrics;
        values.entry(metric.into()).and_modify(|v| *v = v.map(|x| f(i, x)));
    }
    report
}

fn find<'a>(checks: &'a Checks, model: &str, metric: &str) -> &'a Check {
    checks.checks.iter().find(|c| c.model == model && c.metric == metric).unwrap()
}

#[test]
fn a_report_passes_against_itself() {
    let report = fixture::report();
    let checks = check(&report, &report, &rules(&[("exact", 0.1)])).unwrap();
    assert_eq!(checks.verdict, MarginVerdict::Pass);
    // One headline metric has a unit with a default margin; one was given; three models.
    assert_eq!(checks.checks.len(), 6);
    assert!(checks.ungated.contains(&"bleu_zh".to_string()) && !checks.ungated.contains(&"length".to_string()));
}

#[test]
fn the_verdict_is_the_interval_against_the_margin() {
    let baseline = fixture::report();
    let judge = |shift: f64, spread: f64, margin: f64| {
        let report = with("lora", "nll_answer", |i, x| x + shift + if i % 2 == 0 { spread } else { -spread });
        let checks = check(&report, &baseline, &rules(&[("nll_answer", margin)])).unwrap();
        find(&checks, "lora", "nll_answer").clone()
    };
    let pass = judge(0.01, 0.001, 0.02);
    assert_eq!(pass.verdict, MarginVerdict::Pass);
    assert!((pass.value.unwrap() - pass.baseline.unwrap() - 0.01).abs() < 1e-9);
    assert!((pass.gate.unwrap().gain + 0.01).abs() < 1e-9, "a higher NLL is a loss");
    assert_eq!(judge(0.05, 0.001, 0.02).verdict, MarginVerdict::Regress);
    let unclear = judge(0.01, 0.1, 0.02);
    assert_eq!(unclear.verdict, MarginVerdict::Inconclusive, "not significantly worse is no pass");
    assert!(unclear.gate.unwrap().minimum_detectable.unwrap() > 0.02);
    // A gain of any size passes, also without margin.
    assert_eq!(judge(-0.5, 0.1, 0.0).verdict, MarginVerdict::Pass);
}

/// `report` with items that share nothing.
fn singly(mut report: Report) -> Report {
    report.items.iter_mut().for_each(|item| item.cluster = None);
    report
}

/// `report` with six items a source.
fn of_four_sources(mut report: Report) -> Report {
    for (i, item) in report.items.iter_mut().enumerate() {
        item.cluster = Some(format!("source {}", i / 6));
    }
    report
}

#[test]
fn items_of_one_source_are_no_more_than_the_source() {
    // Every source moves as one: up, down, up, down.
    let report = with("lora", "nll_answer", |i, x| x + if (i / 6) % 2 == 0 { 0.1 } else { -0.1 });
    let rules = rules(&[("nll_answer", 0.06)]);
    let judge = |report: &Report, baseline: &Report| {
        let checks = check(report, baseline, &rules).unwrap();
        find(&checks, "lora", "nll_answer").clone()
    };
    let alone = judge(&singly(report.clone()), &singly(fixture::report()));
    assert_eq!(
        (alone.verdict, alone.sources),
        (MarginVerdict::Pass, None),
        "24 items that know nothing of each other: {alone:?}"
    );
    let together = judge(&of_four_sources(report.clone()), &of_four_sources(fixture::report()));
    assert_eq!((together.verdict, together.sources), (MarginVerdict::Inconclusive, Some(4)), "{together:?}");
    let (alone, gate) = (alone.gate.unwrap(), together.gate.unwrap());
    assert_eq!((gate.n, gate.gain), (24, alone.gain));
    // Student's with three degrees of freedom: 3.18 times a standard error of 0.0577.
    let ends = [gate.interval.low + 0.1837, gate.interval.high - 0.1837];
    assert!(ends.iter().all(|d| d.abs() < 1e-3), "{gate:?}");
    assert!(
        gate.minimum_detectable.is_none() && alone.minimum_detectable.is_some(),
        "four sources can show nothing: {gate:?}"
    );
    // A baseline of before sources were kept is judged by the report's.
    assert_eq!(judge(&of_four_sources(report), &singly(fixture::report())), together);
    let said = text::sentence(&together, 0.95);
    let needed = gate.needed.unwrap();
    // (1.96 + 0.84)^2 times the sources' variance over the margin's square, and some for Student.
    assert!((28..34).contains(&needed), "{needed}");
    assert!(said.contains("24 items of 4 sources cannot tell"), "{said}");
    assert!(said.contains(&format!("about {needed} such sources would decide four times out of five")), "{said}");
    assert!(
        text::table(&check(&of_four_sources(fixture::report()), &of_four_sources(fixture::report()), &rules).unwrap())
            .contains("would decide")
    );
}

#[test]
fn items_that_are_all_of_one_source_say_nothing() {
    let mut report = fixture::report();
    report.items.iter_mut().for_each(|item| item.cluster = Some("the only one".into()));
    let checks = check(&report, &report, &Rules::default()).unwrap();
    let check = find(&checks, "lora", "nll_answer");
    assert_eq!((check.verdict, check.sources), (MarginVerdict::Inconclusive, Some(1)));
    let said = text::sentence(check, 0.95);
    assert!(said.contains("24 items of 1 source cannot tell") && !said.contains("NaN"), "{said}");
}

#[test]
fn few_equal_outcomes_are_no_proof_unless_the_model_is_the_same() {
    let baseline = singly(fixture::report());
    let rules = rules(&[("exact", 0.1)]);
    let judge = |report: &Report| find(&check(report, &baseline, &rules).unwrap(), "lora", "exact").clone();
    let same = judge(&baseline);
    assert!(same.unchanged && same.verdict == MarginVerdict::Pass, "{same:?}");
    assert!(text::sentence(&same, 0.95).contains("the model answering as the baseline's"));
    // Another model that happens to be right on the same items.
    let other = judge(&singly(with("lora", "rouge_l", |_, x| x + 0.05)));
    assert_eq!((other.unchanged, other.verdict), (false, MarginVerdict::Inconclusive), "{other:?}");
    // Likelihoods alone say nothing of texts.
    assert!(judge(&singly(with("lora", "nll_answer", |_, x| x + 0.5))).unchanged);
    let gate = other.gate.unwrap();
    assert!(gate.interval.low < -0.13 && gate.needed == Some(35), "{gate:?}");
    assert!(text::sentence(&other, 0.95).contains("about 35 items would decide"), "{}", text::sentence(&other, 0.95));
}

#[test]
fn what_a_backend_changes_by_itself_is_no_evidence() {
    let baseline = fixture::report();
    let report = with("lora", "nll_answer", |_, x| x + 0.03);
    let judge = |drift: f64, flips: f64| {
        let noise = Noise { logprob_drift: drift, flip_rate: flips };
        let rules = Rules { noise: Some(noise), ..rules(&[("nll_answer", 0.02), ("vocab_f1", 0.02)]) };
        let checks = check(&report, &baseline, &rules).unwrap();
        (find(&checks, "lora", "nll_answer").clone(), find(&checks, "lora", "vocab_f1").clone())
    };
    let (nll, f1) = judge(0.0, 0.0);
    assert_eq!((nll.verdict, f1.verdict), (MarginVerdict::Regress, MarginVerdict::Pass));
    let (nll, f1) = judge(0.005, 0.01);
    assert_eq!((nll.verdict, f1.verdict), (MarginVerdict::Regress, MarginVerdict::Pass));
    assert_eq!(f1.allowance, Some(0.01));
    // This much drift explains the loss, this many flipped texts could hide one.
    let (nll, f1) = judge(0.02, 0.03);
    assert_eq!((nll.verdict, f1.verdict), (MarginVerdict::Inconclusive, MarginVerdict::Inconclusive));
    assert!(text::sentence(&f1, 0.95).contains("0.0300 each way"), "{}", text::sentence(&f1, 0.95));
}

#[test]
fn a_certificate_is_read_and_an_inconclusive_check_says_how_many_items_it_takes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("certificate.json");
    let put = |text: &str| std::fs::write(&file, text).unwrap();
    put("{\"backend\": \"native\", \"flip_rate\": 0.25, \"logprob_drift\": 1e-5, \"deterministic\": false}");
    let noise = Noise::read(&file).unwrap();
    assert_eq!(noise, Noise { flip_rate: 0.25, logprob_drift: 1e-5 });
    for broken in ["{}", "{\"flip_rate\": 2, \"logprob_drift\": 0}", "{\"flip_rate\": 0, \"logprob_drift\": -1}", "x"] {
        put(broken);
        assert_eq!(Noise::read(&file).unwrap_err().kind(), karat::ErrorKind::Data, "{broken}");
    }
    let report = with("lora", "nll_answer", |i, x| x + if i % 2 == 0 { 0.1 } else { -0.1 });
    let checks = check(&singly(report), &singly(fixture::report()), &Rules::default()).unwrap();
    let said = text::sentence(find(&checks, "lora", "nll_answer"), 0.95);
    let gate = find(&checks, "lora", "nll_answer").gate.unwrap();
    let needed = gate.needed.unwrap();
    assert!((190..215).contains(&needed), "{needed}");
    assert!(
        said.ends_with(&format!("about {needed} items would decide four times out of five if the two are equal")),
        "{said}"
    );
}

#[test]
fn a_missing_model_metric_or_item_is_a_regression_by_name() {
    let baseline = fixture::report();
    let missing = |report: &Report, model: &str| {
        let checks = check(report, &baseline, &Rules::default()).unwrap();
        assert_eq!(checks.verdict, MarginVerdict::Regress);
        let check = find(&checks, model, "nll_answer").clone();
        assert_eq!((check.verdict, check.gate), (MarginVerdict::Regress, None));
        check.missing.unwrap()
    };
    let mut report = fixture::report();
    report.models.retain(|m| m.name != "full");
    assert!(missing(&report, "full").contains("no model `full`"));
    let mut report = fixture::report();
    report.metrics.retain(|m| m.name != "nll_answer");
    assert!(missing(&report, "base").contains("no metric `nll_answer`"));
    let mut report = fixture::report();
    report.items.retain(|i| i.id != "med-003" && i.id != "med-017");
    let said = missing(&report, "base");
    assert!(said.contains("2 of 24 items: `med-003`, `med-017`"), "{said}");
    let mut report = fixture::report();
    report.items[5].models.get_mut("lora").unwrap().metrics.insert("nll_answer".into(), None);
    assert!(missing(&report, "lora").contains("1 of 24 items: `med-005`"));
    let mut report = fixture::report();
    report.metrics[0].unit = "bits/byte".into();
    assert!(missing(&report, "lora").contains("another metric"));
}

#[test]
fn a_report_of_another_question_is_refused_by_name() {
    let baseline = fixture::report();
    let said = |change: fn(&mut Report)| {
        let mut report = fixture::report();
        change(&mut report);
        let error = check(&report, &baseline, &Rules::default()).unwrap_err();
        assert!(error.help_text().unwrap().contains("--bless"));
        error.to_string()
    };
    assert!(
        said(|r| r.fingerprints.template = "99".repeat(32)).contains("template (f3f3f3f3f3f3 against 999999999999)")
    );
    assert!(said(|r| r.fingerprints.decoding.clear()).contains("decoding (a4a4a4a4a4a4 against unknown)"));
    let both = said(|r| {
        r.fingerprints.data = "99".repeat(32);
        r.fingerprints.prompts = "99".repeat(32);
    });
    assert!(both.contains("data (") && both.contains("prompts (") && !both.contains("template"), "{both}");
}

#[test]
fn one_item_or_nothing_to_check_is_no_pass() {
    let items = fixture::items(1);
    let one = build(&fixture::inputs(&items, fixture::three_models(&items))).unwrap();
    assert_eq!(check(&one, &one, &Rules::default()).unwrap().verdict, MarginVerdict::Inconclusive);
    let items = fixture::items(4);
    let nothing = build(&fixture::inputs(&items, vec![])).unwrap();
    assert!(check(&nothing, &nothing, &Rules::default()).unwrap_err().to_string().contains("nothing to check"));
}

#[test]
fn loops_truncation_contradictions_and_wrong_decisions_are_guarded_without_being_asked_for() {
    use karat::report::MetricInfo;
    let items: Vec<_> =
        fixture::items(60).into_iter().map(|i| karat::eval::Item { cluster: i.id.clone(), ..i }).collect();
    let report = |shares: [f64; 5]| {
        let names = ["repetition", "truncated", "contradictions", "decision", "decision_yes_to_no"];
        let mut models = fixture::three_models(&items);
        for (i, result) in models.iter_mut().flat_map(|m| m.items.iter_mut().enumerate()) {
            for (name, share) in names.iter().zip(shares) {
                result.metrics.insert((*name).into(), Some(f64::from(u8::from((i as f64) < share * 60.0))));
            }
        }
        let mut inputs = fixture::inputs(&items, models);
        let like = inputs.metrics[5].clone();
        inputs.metrics.extend(names.map(|name| MetricInfo {
            name: name.into(),
            unit: "share".into(),
            direction: if name == "decision" {
                karat::report::Direction::Higher
            } else {
                karat::report::Direction::Lower
            },
            headline: false,
            ..like.clone()
        }));
        build(&inputs).unwrap()
    };
    let baseline = report([0.15, 0.0, 0.0, 0.9, 0.0]);
    assert_eq!(check(&baseline, &baseline, &Rules::default()).unwrap().verdict, MarginVerdict::Pass);
    for (worse, metric) in [
        ([0.9, 0.0, 0.0, 0.9, 0.0], "repetition"),
        ([0.15, 0.5, 0.0, 0.9, 0.0], "truncated"),
        ([0.15, 0.0, 0.5, 0.9, 0.0], "contradictions"),
        ([0.15, 0.0, 0.0, 0.3, 0.0], "decision"),
        ([0.15, 0.0, 0.0, 0.9, 0.4], "decision_yes_to_no"),
    ] {
        let checks = check(&report(worse), &baseline, &Rules::default()).unwrap();
        assert_eq!(find(&checks, "full", metric).verdict, MarginVerdict::Regress, "{metric}");
        assert_eq!(checks.verdict, MarginVerdict::Regress);
    }
}

#[test]
fn what_the_baseline_has_no_value_of_does_not_count_and_is_named() {
    let without = |report: &mut Report, model: &str| {
        for item in &mut report.items {
            item.models.get_mut(model).unwrap().metrics.insert("nll_answer".into(), None);
        }
    };
    let mut report = fixture::report();
    without(&mut report, "lora");
    let checks = check(&report, &report, &Rules::default()).unwrap();
    assert_eq!(checks.verdict, MarginVerdict::Pass, "neither side has a value");
    assert_eq!(checks.undefined, ["lora nll_answer"]);
    assert!(text::table(&checks).contains("not checked, the baseline having no value: lora nll_answer\n"));
    assert!(text::markdown(&checks, "s", "main").contains("\nNot checked, the baseline having no value: lora"));
    // A value that was there and is not any more is a regression, as before.
    assert_eq!(check(&report, &fixture::report(), &Rules::default()).unwrap().verdict, MarginVerdict::Regress);
    // Where nothing is left to be checked nothing passes.
    for model in ["base", "full"] {
        without(&mut report, model);
    }
    let checks = check(&report, &report, &Rules::default()).unwrap();
    assert_eq!((checks.verdict, checks.checks.len()), (MarginVerdict::Inconclusive, 0));
    assert!(text::summary(&checks).contains("nothing could be checked"));
}

#[test]
fn what_neither_side_knows_is_equal_and_what_may_differ_is_named() {
    let mut report = fixture::report();
    report.fingerprints.decoding.clear();
    let checks = check(&report, &report, &Rules::default()).unwrap();
    assert_eq!((checks.verdict, checks.unchecked.as_slice()), (MarginVerdict::Pass, &["decoding".to_string()][..]));
    let error = check(&report, &fixture::report(), &Rules::default()).unwrap_err();
    assert!(error.help_text().unwrap().contains("--allow decoding"), "{error:?}");
    let rules = Rules { allow: vec!["decoding".into()], ..Rules::default() };
    let checks = check(&report, &fixture::report(), &rules).unwrap();
    assert_eq!(checks.verdict, MarginVerdict::Pass);
    assert_eq!(checks.allowed.iter().map(|m| m.what.as_str()).collect::<Vec<_>>(), ["decoding"]);
}

#[test]
fn margins_that_mean_nothing_are_refused() {
    let report = fixture::report();
    let said = |margins: &[(&str, f64)]| plan(&report, &rules(margins)).unwrap_err().to_string();
    assert!(said(&[("typo", 0.1)]).contains("no metric `typo`"));
    assert!(said(&[("length", 1.0)]).contains("neither better high nor low"));
    assert!(said(&[("nll_answer", -0.1)]).contains("at least 0"));
    assert!(said(&[("nll_answer", f64::NAN)]).contains("at least 0"));
}

fn statement(reason: &str) -> Statement {
    Statement { reason: reason.into(), by: Some("a reviewer".into()), at: Some("2026-11-21".into()), commit: None }
}

#[test]
fn a_baseline_judges_as_the_report_it_was_made_of_and_keeps_no_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = baseline::file(folder.path(), "medical-r1", "main").unwrap();
    let report = fixture::report();
    baseline::accept(&report, &path, &statement("the first")).unwrap();
    let kept = baseline::load(&path).unwrap();
    let worse = with("full", "nll_answer", |_, x| x + 0.3);
    let rules = rules(&[("exact", 0.1), ("key_points", 0.1)]);
    assert_eq!(check(&worse, &kept, &rules).unwrap(), check(&worse, &report, &rules).unwrap());
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("抑制肝糖输出"), "no text of the data is kept, the names of its sources are");
    assert_eq!(text.lines().filter(|l| l.contains("\"id\":\"med-0")).count(), 24, "one line an item");
    // The same acceptance is the same bytes.
    let again = baseline::file(folder.path(), "elsewhere", "main").unwrap();
    baseline::accept(&report, &again, &statement("the first")).unwrap();
    assert_eq!(std::fs::read_to_string(&again).unwrap(), text);
}

#[test]
fn the_history_says_who_when_why_and_what_changed_and_only_grows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("main.json");
    baseline::accept(&fixture::report(), &path, &statement("the first")).unwrap();
    let first = std::fs::read_to_string(baseline::history(&path)).unwrap();
    let file = karat::fsio::sha256_file(&path).unwrap();
    let mut better = fixture::report();
    better.metrics[0].models.get_mut("lora").unwrap().value = Some(0.5);
    better.metrics.pop();
    better.fingerprints.template = "99".repeat(32);
    baseline::accept(&better, &path, &statement("trained longer")).unwrap();
    let history = std::fs::read_to_string(baseline::history(&path)).unwrap();
    assert!(history.starts_with(&first), "what was written stays");
    let line: baseline::Acceptance = serde_json::from_str(history.lines().nth(1).unwrap()).unwrap();
    assert_eq!(line.reason, "trained longer");
    assert_eq!(line.environment["by"], "a reviewer");
    assert_eq!(line.environment["at"], "2026-11-21");
    assert_eq!(line.previous_sha256.as_deref(), Some(file.as_str()));
    assert_eq!(line.changed, ["template"]);
    let before = fixture::report().metrics[0].models["lora"].value;
    let change = line.values["lora"]["nll_answer"];
    assert_eq!((change.old, change.new), (before, Some(0.5)));
    assert_eq!(line.values["lora"]["length"].new, None, "a metric that is gone is seen to be");
}

#[test]
fn nothing_is_accepted_without_reason_or_over_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("main.json");
    let error = baseline::accept(&fixture::report(), &path, &statement("  ")).unwrap_err();
    assert!(error.help_text().unwrap().contains("--reason"));
    assert!(!path.exists() && !baseline::history(&path).exists());
    std::fs::write(&path, fixture::report().to_json().unwrap()).unwrap();
    let error = baseline::accept(&fixture::report(), &path, &statement("why not")).unwrap_err();
    assert!(error.to_string().contains("not a baseline"), "{error}");
    assert_eq!(Report::load(&path).unwrap(), fixture::report());
}

#[test]
fn a_baseline_is_a_name_a_file_or_a_report_and_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let file = |spec: &str| baseline::file(folder.path(), "s", spec);
    assert_eq!(file("main").unwrap(), folder.path().join("s/main.json"));
    assert_eq!(file("x/y.json").unwrap(), Path::new("x/y.json"));
    for bad in ["", ".hidden", "a b", "main?"] {
        assert!(file(bad).unwrap_err().to_string().contains("cannot name"), "{bad}");
    }
    let error = baseline::load(&file("main").unwrap()).unwrap_err();
    assert_eq!(error.kind(), karat::ErrorKind::Data);
    assert!(error.help_text().unwrap().contains("--save-baseline"));
    let path = folder.path().join("broken.json");
    std::fs::write(&path, "{\"baseline_version\": 1, \"reprot\": {}}").unwrap();
    assert!(baseline::load(&path).unwrap_err().to_string().contains("damaged"));
    std::fs::write(&path, "{\"baseline_version\": 7}").unwrap();
    assert!(baseline::load(&path).unwrap_err().to_string().contains("version 7"));
    std::fs::write(&path, "not json").unwrap();
    assert!(baseline::load(&path).unwrap_err().to_string().contains("no report"));
}

#[test]
fn a_baseline_of_an_older_schema_is_refused_with_what_to_do_and_can_be_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("main.json");
    baseline::accept(&fixture::report(), &path, &statement("the first")).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let current = format!("\"schema_version\": {}", karat::report::SCHEMA_VERSION);
    assert!(text.contains(&current));
    std::fs::write(&path, text.replace(&current, "\"schema_version\": 0")).unwrap();
    let error = baseline::load(&path).unwrap_err();
    assert!(error.to_string().contains("schema version 0"), "{error}");
    assert!(error.help_text().unwrap().contains("--bless"));
    let acceptance = baseline::accept(&fixture::report(), &path, &statement("another karat")).unwrap();
    let change = acceptance.values["lora"]["nll_answer"];
    assert!(change.old.is_some() && change.old == change.new, "{change:?}");
    assert!(baseline::load(&path).is_ok());
}

/// Two regressions, one inconclusive check and a hostile name.
fn mixed() -> (Checks, Report) {
    let baseline = fixture::report();
    let mut report = with("lora", "nll_answer", |_, x| x + 0.5);
    report.items[5].models.get_mut("full").unwrap().metrics.insert("exact".into(), None);
    let mut checks = check(&report, &baseline, &rules(&[("exact", 0.02)])).unwrap();
    checks.checks[0].verdict = MarginVerdict::Inconclusive;
    checks.checks[0].metric = "a<b>&\"c'\u{1},%\n::error::".into();
    (checks, report)
}

#[test]
fn junit_xml_reads_back_with_its_counts_and_texts() {
    let (checks, report) = mixed();
    let xml = junit(&checks, &report, "main", "if this is meant: do it");
    let document = roxmltree::Document::parse(&xml).unwrap();
    let suite = document.descendants().find(|n| n.has_tag_name("testsuite")).unwrap();
    let cases: Vec<_> = suite.children().filter(|n| n.has_tag_name("testcase")).collect();
    let count = |name: &str| cases.iter().filter(|c| c.children().any(|n| n.has_tag_name(name))).count();
    let stated = |name: &str| suite.attribute(name).unwrap().parse::<usize>().unwrap();
    assert_eq!((stated("tests"), stated("failures"), stated("errors"), stated("skipped")), (6, 2, 1, 0));
    assert_eq!((cases.len(), count("failure"), count("error")), (6, 2, 1));
    let lora = cases.iter().find(|c| c.attribute("classname") == Some("medical-r1.lora")).unwrap();
    let failure = lora.children().find(|n| n.has_tag_name("failure")).unwrap();
    assert_eq!(failure.attribute("type"), Some("regress"));
    assert!(failure.attribute("message").unwrap().contains("gain -0.5000"));
    assert!(failure.text().unwrap().ends_with("if this is meant: do it"));
    let full = cases.iter().rfind(|c| c.attribute("classname") == Some("medical-r1.full")).unwrap();
    assert!(full.descendants().any(|n| n.attribute("type") == Some("missing")));
    // What the strict schema of Ant's reports asks for, in its order.
    for name in ["name", "package", "id", "hostname", "timestamp", "tests", "failures", "errors", "time"] {
        assert!(suite.attribute(name).is_some_and(|v| !v.is_empty()), "{name}");
    }
    let order: Vec<_> = suite.children().filter(|n| n.is_element()).map(|n| n.tag_name().name()).collect();
    assert_eq!((order[0], order[1]), ("properties", "testcase"));
    assert_eq!(order[order.len() - 2..], ["system-out", "system-err"]);
}

#[test]
fn a_step_summary_and_annotations_hold_every_failure_and_no_foreign_markup() {
    let (checks, _) = mixed();
    let page = text::markdown(&checks, "medical-r1", "main");
    assert!(
        page.starts_with("### ❌ medical-r1 against main\n\nregress: 2 of 6 checks regress, 1 inconclusive, 3 pass\n")
    );
    assert!(!page.contains("<b>"));
    let bars = |line: &str| line.replace("\\|", "").matches('|').count();
    let table: Vec<&str> = page.lines().filter(|l| l.starts_with('|')).collect();
    assert_eq!(table.len(), 2 + 6);
    assert!(table.iter().all(|line| bars(line) == 11), "{page}");
    let commands = annotations(&checks, "medical-r1", Path::new("suites/medical-r1/suite.toml"));
    assert_eq!(commands.lines().count(), 4, "{commands}");
    for (line, level) in commands.lines().zip(["warning", "error", "error", "notice"]) {
        assert!(
            line.starts_with(&format!("::{level} file=suites/medical-r1/suite.toml,title=medical-r1%3A ")),
            "{line}"
        );
    }
}

#[test]
fn a_gate_is_one_named_test_a_model_and_metric() {
    let folder = tempfile::tempdir().unwrap();
    let baselines = folder.path().join("baselines");
    let put = |name: &str, report: &Report| {
        let path = folder.path().join(name);
        std::fs::write(&path, report.to_json().unwrap()).unwrap();
        path.to_str().unwrap().to_string()
    };
    let same = put("same.json", &fixture::report());
    let worse = put("worse.json", &with("lora", "nll_answer", |_, x| x + 0.5));
    let mut other = fixture::report();
    other.fingerprints.data = "99".repeat(32);
    let other = put("other.json", &other);
    let run = |gated: &Gated| {
        // The failures that are meant are not for the log of this test.
        let log = folder.path().join("log").to_str().map(String::from);
        let arguments = libtest_mimic::Arguments { quiet: true, logfile: log, ..Default::default() };
        let outcome = libtest_mimic::run(&arguments, gated.trials());
        (outcome.num_passed, outcome.num_failed, outcome.num_ignored)
    };
    let gated = |what: &str| Gated::new(what).baselines(&baselines).margin("exact", 0.02);
    // Without a baseline the gate fails: it guards nothing.
    let trials = gated(&same).trials();
    assert_eq!(trials.iter().map(|t| t.name()).collect::<Vec<_>>(), ["medical-r1::baseline"]);
    assert_eq!(run(&gated(&same)), (0, 1, 0));

    let path = baseline::file(&baselines, "medical-r1", "main").unwrap();
    baseline::accept(&fixture::report(), &path, &statement("the first")).unwrap();
    let names: Vec<String> = gated(&same).trials().iter().map(|t| t.name().to_string()).collect();
    assert_eq!(names[0], "medical-r1::base::nll_answer");
    assert_eq!(names.len(), 6);
    assert_eq!(run(&gated(&same)), (6, 0, 0));
    assert_eq!(run(&gated(&worse)), (5, 1, 0));
    assert_eq!(run(&gated(&other)), (0, 6, 0), "what cannot be compared fails every test, also a filtered one");
    assert_eq!(run(&gated(&same).margin("typo", 1.0)), (0, 1, 0));

    // A suite that was never run here: its tests are there, ignored, with the reason.
    let path = baseline::file(&baselines, "never-run", "main").unwrap();
    baseline::accept(&fixture::report(), &path, &statement("from another machine")).unwrap();
    let trials = gated("never-run").trials();
    assert!(trials.iter().all(|t| t.has_ignored_flag() && t.kind().contains("karat run never-run")));
    assert_eq!(run(&gated("never-run")), (0, 0, 6));
}
