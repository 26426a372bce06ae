//! The report as a whole: golden JSON and Markdown, pages that stay inert, edges that stay honest.

#![allow(clippy::unwrap_used)]

#[path = "report/fixture.rs"]
mod fixture;

use karat::eval::Item;
use karat::report::*;

fn golden(report: &Report) -> String {
    report.without_environment().to_json().unwrap()
}

#[test]
fn the_json_is_as_committed() {
    insta::assert_snapshot!("json", golden(&fixture::report()));
}

#[test]
fn the_markdown_is_as_committed() {
    insta::assert_snapshot!("markdown", markdown::render(&fixture::report().without_environment()));
}

#[test]
fn the_chinese_markdown_is_as_committed() {
    let mut report = fixture::report().without_environment();
    report.language = Language::Chinese;
    insta::assert_snapshot!("markdown_zh", markdown::render(&report));
}

#[test]
fn json_read_back_is_the_same_report_and_the_same_bytes() {
    let report = fixture::report();
    let text = report.to_json().unwrap();
    let read = Report::from_json(&text, "report.json").unwrap();
    assert_eq!(read, report);
    assert_eq!(read.to_json().unwrap(), text);
}

#[test]
fn keys_are_sorted_at_every_depth() {
    fn check(value: &serde_json::Value) {
        match value {
            serde_json::Value::Object(map) => {
                let keys: Vec<_> = map.keys().collect();
                assert!(keys.is_sorted(), "{keys:?}");
                map.values().for_each(check);
            }
            serde_json::Value::Array(list) => list.iter().for_each(check),
            _ => {}
        }
    }
    check(&serde_json::from_str(&fixture::report().to_json().unwrap()).unwrap());
}

#[test]
fn nothing_outside_environment_is_volatile() {
    let items = fixture::items(24);
    let mut slower = fixture::three_models(&items);
    for model in &mut slower {
        model.cost.generate_seconds = Some(99.0);
        let session = model.session.as_mut().unwrap();
        session.threads = 64;
        session.kernels.clear();
        if let Some(training) = &mut model.training {
            training.summary.seconds *= 3.0;
            training.summary.peak_memory = None;
            training.summary.last_checkpoint = "/another/machine/checkpoint-120".into();
            training.events.iter_mut().for_each(|e| e.seconds *= 3.0);
        }
    }
    let other = build(&fixture::inputs(&items, slower)).unwrap();
    assert_ne!(other, fixture::report());
    assert_eq!(golden(&other), golden(&fixture::report()));
}

#[test]
fn equal_reports_are_equal_bytes_in_every_form() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for folder in &folders {
        write(&fixture::report(), folder.path()).unwrap();
    }
    for name in ["report.json", "report.md", "report.html", "items.csv", "metrics.svg", "curves.svg"] {
        let [a, b] = [0, 1].map(|i| std::fs::read(folders[i].path().join(name)).unwrap());
        assert!(a == b && !a.is_empty(), "{name}");
    }
    assert_eq!(Report::load(folders[0].path()).unwrap(), fixture::report());
    assert_eq!(std::fs::read_dir(folders[0].path()).unwrap().count(), 6, "no temporary file may stay");
}

#[test]
fn another_schema_version_is_refused_with_what_to_do() {
    let old = fixture::report()
        .to_json()
        .unwrap()
        .replace(&format!("\"schema_version\": {SCHEMA_VERSION}"), "\"schema_version\": 99");
    let error = Report::from_json(&old, "x/report.json").unwrap_err();
    assert!(error.to_string().contains("version 99"), "{error}");
    assert_eq!(error.place(), Some("x/report.json"));
    assert!(error.help_text().unwrap().contains("newer"));
    for text in ["{}", "no json", "[1]", "{\"schema_version\": \"1\"}"] {
        assert!(Report::from_json(text, "r").unwrap_err().to_string().contains("no report"), "{text}");
    }
    let error = Report::from_json(&format!("{{\"schema_version\": {SCHEMA_VERSION}}}"), "r").unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
}

const HOSTILE: &str = "</script><img src=x onerror=alert(1)>\"'`{{ 7*7 }}{% raw %}\n\n| a | b |\n<!-- karat:begin x -->\u{0}\u{202e}<svg/onload=alert(1)>";

fn hostile_report() -> Report {
    let mut items = fixture::items(3);
    for item in &mut items {
        item.question = format!("q {HOSTILE}");
        item.think = HOSTILE.into();
        item.answer = HOSTILE.into();
    }
    let mut models = fixture::three_models(&items);
    models[1].name = HOSTILE.into();
    models[1].items[0].prediction.text = format!("<think>{HOSTILE}</think>{HOSTILE} and more");
    let mut inputs = fixture::inputs(&items, models);
    inputs.suite.title = HOSTILE.into();
    inputs.suite.description = HOSTILE.into();
    inputs.metrics[0].title_en = HOSTILE.into();
    inputs.metrics[0].unit = HOSTILE.into();
    inputs.data.bad_rows[0].reason = HOSTILE.into();
    inputs.warnings.push(Warning::Other { text: HOSTILE.into() });
    build(&inputs).unwrap()
}

#[test]
fn hostile_texts_stay_inert_in_the_page() {
    let page = html::render(&hostile_report()).unwrap();
    assert!(page.contains("onerror=alert(1)"), "the text itself must be shown");
    assert!(!page.contains("<img"), "no tag of a stranger");
    assert!(!page.contains("<svg/"), "no tag of a stranger");
    assert_eq!(page.matches("<script").count(), 1);
    assert_eq!(page.matches("</script").count(), 1);
    assert!(page.contains("{{ 7*7 }}"), "templates in data are text");
    // Wherever the text stands in an attribute, its quotes are entities.
    assert!(!page.contains("alert(1)>\""));
    assert!(!page.contains(['\0', '\u{202e}']), "nothing unseen turns other words about");
}

#[test]
fn hostile_texts_stay_inert_in_markdown_and_svg() {
    let report = hostile_report();
    let page = markdown::render(&report);
    for tag in ["<img", "<svg", "<script", "<!--"] {
        assert!(!page.contains(tag), "{tag}");
    }
    // Every row of a pipe table has as many cells as its header.
    let mut columns = None;
    for line in page.lines() {
        let bars = line.replace("\\|", "").matches('|').count();
        if !line.starts_with('|') {
            columns = None;
        } else {
            assert_eq!(*columns.get_or_insert(bars), bars, "{line}");
        }
    }
    for svg in [plot::metric_bars(&report).unwrap(), plot::training_curves(&report).unwrap()] {
        assert!(
            !svg.contains("<img") && !svg.contains("onload=alert(1)>") && !svg.contains(['\0', '\u{202e}']),
            "{svg}"
        );
    }
}

#[test]
fn the_page_needs_nothing_else() {
    let page = html::render(&fixture::report()).unwrap();
    for outside in ["src=", "@import", "url(", "<link", "fetch(", "//cdn"] {
        assert!(!page.contains(outside), "{outside}");
    }
    let hrefs = page.match_indices("href=\"").map(|(at, m)| &page[at + m.len()..]);
    assert!(hrefs.into_iter().all(|target| target.starts_with('#')), "links stay on the page");
    assert_eq!(page.replace("http://www.w3.org/2000/svg", "").matches("http").count(), 1, "http-equiv alone");
}

#[test]
fn lower_is_better_where_a_metric_says_so() {
    let report = fixture::report();
    let nll = &report.comparison("base", "lora").unwrap().metrics["nll_answer"];
    assert!(nll.difference.unwrap() < 0.0);
    assert!(nll.improvement_percent.unwrap() > 0.0);
    assert_eq!(nll.wins, 24);
    // The 24 items come from six sources: six observations cannot be significant after Holm's
    // correction.
    assert_eq!((nll.clusters, nll.verdict), (Some(6), Verdict::Unclear));
    assert_eq!(report.metric("nll_answer").unwrap().best, ["full"]);
    assert!(report.metric("length").unwrap().best.is_empty(), "a length is neither good nor bad");
}

#[test]
fn an_undefined_metric_is_counted_not_guessed() {
    let report = fixture::report();
    let metric = report.metric("key_points").unwrap();
    let base = &metric.models["base"];
    assert!(base.missing > 0 && base.n + base.missing == 24);
    let paired = &report.comparison("base", "lora").unwrap().metrics["key_points"];
    assert_eq!((paired.n, paired.missing), (base.n, base.missing));
    let told = |w: &Warning| matches!(w, Warning::Missing { model, metrics, .. } if model == "base" && *metrics == [("key_points".to_string(), base.missing)]);
    assert!(report.warnings.iter().any(told));
}

#[test]
fn a_metric_undefined_throughout_says_nothing_anywhere() {
    let items = fixture::items(8);
    let mut models = fixture::three_models(&items);
    for result in models.iter_mut().flat_map(|m| &mut m.items) {
        result.metrics.insert("rouge_l".into(), None);
        result.metrics.insert("exact".into(), Some(f64::NAN));
        result.metrics.remove("vocab_f1");
    }
    let report = build(&fixture::inputs(&items, models)).unwrap();
    for name in ["rouge_l", "exact", "vocab_f1"] {
        let metric = report.metric(name).unwrap();
        assert!(metric.models.values().all(|v| v.value.is_none() && v.n == 0 && v.missing == 8), "{name}");
        assert!(metric.best.is_empty());
        for comparison in &report.comparisons {
            let c = &comparison.metrics[name];
            assert_eq!((c.verdict, c.p_value, c.improvement_percent), (Verdict::Undefined, None, None));
        }
    }
    assert_eq!(Report::from_json(&report.to_json().unwrap(), "r").unwrap(), report);
    render_all(&report);
}

#[test]
fn overfitting_and_truncation_are_named() {
    let report = fixture::report();
    assert_eq!(report.model("full").unwrap().training.as_ref().unwrap().overfitting, Some(true));
    assert_eq!(report.model("lora").unwrap().training.as_ref().unwrap().overfitting, Some(false));
    let overfit: Vec<&str> = report
        .warnings
        .iter()
        .filter_map(|w| match w {
            Warning::Overfitting { model, .. } => Some(model.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(overfit, ["full"]);
    let cut = |w: &Warning| matches!(w, Warning::Truncated { model, truncated, unclosed, .. } if model == "base" && truncated == unclosed && *truncated > 0);
    assert!(report.warnings.iter().any(cut));
}

#[test]
fn a_run_without_evaluations_is_not_said_to_fit_well() {
    let items = fixture::items(6);
    let mut models = fixture::three_models(&items);
    models[2].training.as_mut().unwrap().evaluations.clear();
    let report = build(&fixture::inputs(&items, models)).unwrap();
    assert_eq!(report.model("full").unwrap().training.as_ref().unwrap().overfitting, None);
    render_all(&report);
}

#[test]
fn a_model_that_says_yes_where_no_is_right_is_named_and_one_that_decides_nothing_is_not_the_best() {
    let items = fixture::items(10);
    let mut models = fixture::three_models(&items);
    // Of ten items four are to be answered with no; base decides nothing, full says yes to one of
    // them.
    for (m, model) in models.iter_mut().enumerate() {
        for (i, result) in model.items.iter_mut().enumerate() {
            let wrong = f64::from(u8::from(m == 2 && i == 0));
            result.metrics.insert("decision_yes_to_no".into(), (i < 4).then_some(wrong));
            result.metrics.insert("decision_undecided".into(), Some(f64::from(u8::from(m == 0 || (m == 2 && i == 9)))));
        }
    }
    let mut inputs = fixture::inputs(&items, models);
    for name in ["decision_yes_to_no", "decision_undecided"] {
        inputs.metrics.push(karat::report::MetricInfo {
            name: name.into(),
            title_en: name.into(),
            title_zh: name.into(),
            unit: "share".into(),
            direction: karat::report::Direction::Lower,
            decimals: 3,
            headline: false,
        });
    }
    let report = build(&inputs).unwrap();
    let named: Vec<&Warning> = report.warnings.iter().filter(|w| matches!(w, Warning::YesToNo { .. })).collect();
    let full = Warning::YesToNo { model: "full".into(), count: 1, of: 4, undecided: 1, decisions: 10 };
    assert_eq!(named, [&full]);
    assert_eq!(report.metric("decision_yes_to_no").unwrap().best, ["lora"]);
    let page = markdown::render(&report);
    assert!(page.contains("full says yes to 1 of 4 items whose right answer is no; 1 of 10 yes-or-no items"), "{page}");
    assert!(page.find("full says yes to").unwrap() < page.find("## Results").unwrap());
    render_all(&report);
}

#[test]
fn a_second_tag_of_reasoning_in_answers_is_said_on_the_page() {
    let items = fixture::items(6);
    let mut models = fixture::three_models(&items);
    models[1].items[2].prediction.text.push_str("</think> more");
    let report = build(&fixture::inputs(&items, models)).unwrap();
    let said = markdown::render(&report);
    assert!(said.contains("1 answers of lora hold a second tag of reasoning") && said.contains("med-002"), "{said}");
}

#[test]
fn a_diverged_run_still_has_a_report() {
    let items = fixture::items(6);
    let mut models = fixture::three_models(&items);
    let training = models[2].training.as_mut().unwrap();
    training.events[60..].iter_mut().for_each(|e| e.loss = f64::NAN);
    training.evaluations[3..].iter_mut().for_each(|e| e.1 = f64::INFINITY);
    let report = build(&fixture::inputs(&items, models)).unwrap();
    assert_eq!(report.model("full").unwrap().training.as_ref().unwrap().overfitting, Some(true));
    assert_eq!(Report::from_json(&report.to_json().unwrap(), "r").unwrap(), report);
    render_all(&report);
}

fn render_all(report: &Report) {
    for language in [Language::English, Language::Chinese] {
        let report = Report { language, ..report.clone() };
        for text in [
            markdown::render(&report),
            markdown::results_block(&report),
            // The page's script handles missing values under that name.
            html::render(&report).unwrap().split("<script>").next().unwrap().to_string(),
            csv::items(&report),
            plot::metric_bars(&report).unwrap_or_default(),
            plot::training_curves(&report).unwrap_or_default(),
        ] {
            assert!(!text.contains("NaN") && !text.contains("inf\""), "{text}");
        }
    }
}

#[test]
fn one_model_alone_is_measured_not_compared() {
    let items = fixture::items(10);
    let report = build(&fixture::inputs(&items, vec![fixture::model("base", Role::Base, &items, 11)])).unwrap();
    assert!(report.comparisons.is_empty());
    assert_eq!(report.warnings.iter().filter(|w| **w == Warning::OneModel).count(), 1);
    assert!(markdown::render(&report).contains("nothing to compare"));
    render_all(&report);
}

#[test]
fn items_that_changed_sides_are_listed_with_the_token_where_texts_part() {
    let items = fixture::items(6);
    let mut models = fixture::three_models(&items);
    let mut right = |model: usize, flags: [f64; 6]| {
        for (i, (result, flag)) in models[model].items.iter_mut().zip(flags).enumerate() {
            result.metrics.insert("exact_match".into(), Some(flag));
            // Model 1 parts from model 0 at the token of the item's number.
            result.prediction.ids = Some((0..8).map(|t| if model == 1 && t == i as u32 { 99 } else { t }).collect());
        }
    };
    right(0, [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]);
    right(1, [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
    right(2, [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]);
    let mut inputs = fixture::inputs(&items, models);
    let exact = MetricInfo { name: "exact_match".into(), ..inputs.metrics[5].clone() };
    inputs.metrics = vec![exact];
    inputs.tokens = [(99, "禁".to_string()), (1, "可".to_string())].into();
    let report = build(&inputs).unwrap();
    let table = |baseline: &str, candidate: &str| {
        report.flips.iter().find(|t| t.baseline == baseline && t.candidate == candidate).map(|t| &t.flips)
    };
    let flips = table("base", "lora").unwrap();
    assert_eq!(flips.right_to_wrong, ["med-001", "med-004"]);
    assert_eq!(flips.wrong_to_right, ["med-002"]);
    assert_eq!((flips.both_right, flips.both_wrong, flips.undecided), (1, 2, 0));
    assert_eq!(table("base", "full"), None, "nothing flipped");
    // Lora and full are a pair too: there item 2 became wrong.
    let ids: Vec<&str> = report.flipped.iter().map(|f| f.item.id.as_str()).collect();
    assert_eq!(ids, ["med-001", "med-002", "med-004"]);
    let parts = &report.flipped[0].divergences[0];
    assert_eq!((parts.baseline.as_str(), parts.candidate.as_str(), parts.at), ("base", "lora", 1));
    assert_eq!(parts.baseline_token, Some(Token { id: 1, text: "可".into() }));
    assert_eq!(parts.candidate_token, Some(Token { id: 99, text: "禁".into() }));
    let page = markdown::render(&report);
    assert!(page.contains("lora vs base, right → wrong: Exact match"), "{page}");
    assert!(page.contains("first different token 2: “可”"), "{page}");
    render_all(&report);
}

#[test]
fn forgetting_is_named_only_where_it_is_significant() {
    use karat::eval::PartScore;
    let items = fixture::items(24);
    let score = |nll: f64| PartScore { logprob: -nll, tokens: 10, bytes: 20, greedy: 0 };
    let noise = |i: usize| (i * 7 % 5) as f64 * 0.3;
    let base: Vec<PartScore> = (0..30).map(|i| score(20.0 + noise(i))).collect();
    let lora: Vec<PartScore> = (0..30).map(|i| score(25.0 + noise(i + 1))).collect();
    let full: Vec<PartScore> = (0..30).map(|i| score(20.0 + noise(i + 1))).collect();
    let mut inputs = fixture::inputs(&items, fixture::three_models(&items));
    inputs.general = Some(GeneralText {
        file: DataFile { name: "general.jsonl".into(), sha256: "ee".repeat(32), rows: 30, read_as: None },
        scores: [("base".to_string(), base), ("lora".to_string(), lora), ("full".to_string(), full)].into(),
    });
    let report = build(&inputs).unwrap();
    let general = report.general.as_ref().unwrap();
    assert_eq!((general.tokens, general.bytes, general.comparisons.len()), (300, 600, 3));
    let nll = general.metrics[0].models["base"].value.unwrap();
    let bits = general.metrics[1].models["base"].value.unwrap();
    assert!((bits - nll * 10.0 / 20.0 / std::f64::consts::LN_2).abs() < 1e-12);
    let named: Vec<&str> = report
        .warnings
        .iter()
        .filter_map(|w| match w {
            Warning::Forgetting { model, .. } => Some(model.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(named, ["lora"]);
    assert!(markdown::render(&report).contains("lora forgets"));
    render_all(&report);
}

#[test]
fn no_item_gives_a_report_that_says_so() {
    let items: Vec<Item> = vec![];
    let report = build(&fixture::inputs(&items, fixture::three_models(&items))).unwrap();
    assert!(report.warnings.contains(&Warning::NoItems));
    assert!(report.comparisons.iter().all(|c| c.metrics.values().all(|m| m.verdict == Verdict::Undefined)));
    assert!(markdown::render(&report).contains("No item was evaluated"));
    render_all(&report);
    let nothing = build(&fixture::inputs(&items, vec![])).unwrap();
    render_all(&nothing);
}

#[test]
fn without_a_base_the_others_are_compared_and_it_is_said() {
    let items = fixture::items(24);
    let models = fixture::three_models(&items).into_iter().skip(1).collect();
    let report = build(&fixture::inputs(&items, models)).unwrap();
    let pairs: Vec<_> = report.comparisons.iter().map(|c| (c.baseline.as_str(), c.candidate.as_str())).collect();
    assert_eq!(pairs, [("lora", "full")]);
    assert!(report.warnings.contains(&Warning::NoBase));
    render_all(&report);
}

#[test]
fn three_models_are_compared_in_three_pairs() {
    let report = fixture::report();
    let pairs: Vec<_> = report.comparisons.iter().map(|c| (c.baseline.as_str(), c.candidate.as_str())).collect();
    assert_eq!(pairs, [("base", "lora"), ("base", "full"), ("lora", "full")]);
}

#[test]
fn identical_models_are_not_told_apart() {
    let items = fixture::items(24);
    let mut models =
        vec![fixture::model("base", Role::Base, &items, 11), fixture::model("base", Role::Base, &items, 11)];
    models[1].name = "again".into();
    models[1].role = Role::Other;
    let report = build(&fixture::inputs(&items, models)).unwrap();
    for c in report.comparison("base", "again").unwrap().metrics.values() {
        assert_eq!((c.verdict, c.difference, c.p_value), (Verdict::Unclear, Some(0.0), Some(1.0)));
    }
}

/// A report of base, lora and full whose one metric, with two decimals, has these values on every
/// item.
fn of_values(values: [f64; 3]) -> Report {
    let items: Vec<Item> = fixture::items(8).into_iter().map(|i| Item { cluster: i.id.clone(), ..i }).collect();
    let mut models = fixture::three_models(&items);
    for (model, value) in models.iter_mut().zip(values) {
        for result in &mut model.items {
            result.metrics.insert("exact".into(), Some(value));
        }
    }
    let mut inputs = fixture::inputs(&items, models);
    inputs.metrics = vec![MetricInfo { decimals: 2, ..inputs.metrics[5].clone() }];
    build(&inputs).unwrap()
}

#[test]
fn what_is_printed_alike_is_not_told_apart_by_bold() {
    // All three are 0.00.
    let report = of_values([0.001, 0.0, 0.004]);
    assert!(report.metric("exact").unwrap().best.is_empty());
    let table = markdown::results_table(&report);
    assert!(!table.contains("**"), "{table}");
    assert!(!table.contains('%'), "from 0.00 to 0.00 is no change in percent: {table}");
    // Two are 0.90, and both are the best.
    let report = of_values([0.2, 0.901, 0.899]);
    assert_eq!(report.metric("exact").unwrap().best, ["lora", "full"]);
    let report = of_values([0.2, 0.91, 0.9]);
    assert_eq!(report.metric("exact").unwrap().best, ["lora"]);
}

#[test]
fn a_change_from_a_value_that_is_printed_as_zero_is_the_difference_itself() {
    let table = markdown::results_table(&of_values([0.001, 0.5, 0.0]));
    let row = table.lines().nth(2).unwrap();
    assert!(row.contains("| +0.50 ") && row.contains("| 0.00 \\*") && !row.contains('%'), "{row}");
    assert!(markdown::results_table(&of_values([0.1, 0.0, 0.2])).contains("−100.0 %"));
}

#[test]
fn one_item_has_a_value_and_a_difference_but_no_interval() {
    let items = fixture::items(1);
    let report = build(&fixture::inputs(&items, fixture::three_models(&items))).unwrap();
    let value = &report.metric("rouge_l").unwrap().models["lora"];
    assert!(value.value.is_some() && value.ci_low.is_none() && value.ci_high.is_none());
    let c = &report.comparison("base", "lora").unwrap().metrics["nll_answer"];
    assert!(c.difference.is_some() && c.ci_low.is_none() && c.ci_high.is_none());
    let page = markdown::render(&report);
    assert!(!page.contains(&format!("{0}]", karat_signed(c.difference.unwrap()))), "{page}");
    assert!(page.contains(&karat_signed(c.difference.unwrap())), "{page}");
    render_all(&report);
}

/// As pages write a difference with three decimals.
fn karat_signed(x: f64) -> String {
    format!("{x:+.3}").replace('-', "−")
}

#[test]
fn a_report_says_first_what_it_does_not_cover() {
    let items = fixture::items(24);
    let mut models = fixture::three_models(&items);
    models[1].items.truncate(5);
    let mut inputs = fixture::inputs(&items, models);
    inputs.data.bad_row_count = 0;
    let report = build(&inputs).unwrap();
    assert_eq!(coverage(&report).as_deref(), Some("Not everything was measured: lora answered 5 of 24 items."));
    assert!(markdown::results_block(&report).starts_with("Not everything was measured: lora answered 5 of 24 items."));
    inputs.models[1] = fixture::model("lora", Role::Lora, &items, 12);
    assert_eq!(coverage(&build(&inputs).unwrap()), None);
}

#[test]
fn two_unknowns_are_equal_and_an_unknown_is_not_a_known() {
    let (a, mut b) = (fixture::report(), fixture::report());
    b.fingerprints.decoding = String::new();
    assert_eq!(compare::mismatches(&a, &b).iter().map(|m| m.what.as_str()).collect::<Vec<_>>(), ["decoding"]);
    assert!(compare::mismatches(&b, &b).is_empty());
    assert_eq!(compare::unknown(&b, &b), ["decoding"]);
    assert!(compare::unknown(&a, &b).is_empty());
    assert!(b.to_json().unwrap().contains("\"decoding\": null"));
    assert_eq!(Report::from_json(&b.to_json().unwrap(), "r").unwrap(), b);
}

#[test]
fn csv_guards_formulas_and_leaves_numbers_as_they_are() {
    let mut report = fixture::report();
    let ids = ["=1", "-2", "+1e3", "-1-1", "@a", "\tx", "a\u{1b}b", "-inf", "\u{200b}=1", "　＝1", "－3", " -4", "a=1"];
    for (item, id) in report.items.iter_mut().zip(ids) {
        item.id = id.into();
    }
    let csv = csv::items(&report);
    let cells = ["'=1", "-2", "+1e3", "'-1-1", "'@a", "'\tx", "a\\u{1b}b", "'-inf"];
    for cell in cells.into_iter().chain(["'\u{200b}=1", "'　＝1", "'－3", "' -4", "a=1"]) {
        assert!(csv.contains(&format!("\n{cell},base,")), "{cell}");
    }
}

#[test]
fn predictions_of_other_data_and_doubled_ones_are_refused() {
    let items = fixture::items(4);
    let mut models = fixture::three_models(&items);
    models[1].items[2].prediction.id = "elsewhere".into();
    let error = build(&fixture::inputs(&items, models)).unwrap_err();
    assert!(error.to_string().contains("elsewhere") && error.to_string().contains("lora"), "{error}");
    let mut models = fixture::three_models(&items);
    models[2].items[2].prediction.id = items[0].id.clone();
    assert!(build(&fixture::inputs(&items, models)).unwrap_err().to_string().contains("two predictions"));
    let mut models = fixture::three_models(&items);
    models[2].name = "base".into();
    assert!(build(&fixture::inputs(&items, models)).unwrap_err().to_string().contains("two models"));
}

#[test]
fn csv_has_a_row_an_item_and_model_and_survives_quotes() {
    let csv = csv::items(&fixture::report());
    assert_eq!(csv.lines().count(), 1 + 24 * 3);
    assert!(csv.starts_with("id,model,thinking,stop,tokens,question,nll_answer,"));
    let hostile = csv::items(&hostile_report());
    assert!(hostile.contains("onerror=alert(1)>\"\"'"), "quotes are doubled");
}

#[test]
fn reports_of_different_questions_are_not_compared() {
    let a = fixture::report();
    let pairs = [("base", "lora"), ("base", "full"), ("lora", "full")].map(|(b, c)| ((&a, b), (&a, c)));
    let same = compare::compare_all(&pairs, &[]).unwrap();
    assert!(same == a.comparisons, "across reports as within one");
    // Fewer tests together are adjusted by less.
    let alone = compare::compare((&a, "base"), (&a, "lora"), &[]).unwrap();
    assert!(alone.metrics["exact"].p_adjusted < same[0].metrics["exact"].p_adjusted);
    let mut b = fixture::report();
    b.fingerprints.template = "00".repeat(32);
    b.fingerprints.decoding = String::new();
    let error = compare::compare((&a, "base"), (&b, "lora"), &[]).unwrap_err();
    assert!(error.to_string().contains("template (f3f3"), "{error}");
    assert!(error.to_string().contains("decoding") && error.to_string().contains("unknown"), "{error}");
    assert!(!error.to_string().contains("prompts"), "{error}");
    let template = ["template".to_string()];
    let error = compare::compare((&a, "base"), (&b, "lora"), &template).unwrap_err();
    assert!(!error.to_string().contains("template") && error.help_text().unwrap().ends_with("--allow decoding"));
    let both = ["template".to_string(), "decoding".to_string()];
    let allowed = compare::compare((&a, "base"), (&b, "lora"), &both).unwrap().allowed;
    // What was overlooked is part of the result.
    assert_eq!(allowed.iter().map(|m| m.what.as_str()).collect::<Vec<_>>(), both);
    assert_eq!(allowed[0].second, "00".repeat(32));
    b = fixture::report();
    b.items.pop();
    assert!(compare::compare((&a, "base"), (&b, "lora"), &[]).unwrap_err().to_string().contains("23 items"));
    let error = compare::compare((&a, "base"), (&a, "typo"), &[]).unwrap_err();
    assert!(error.help_text().unwrap().contains("base, lora, full"));
}

/// `KARAT_WRITE_REPORT=DIR` leaves the fixture's files there, to be looked at in a browser.
#[test]
fn the_fixture_can_be_looked_at() {
    let Some(folder) = std::env::var_os("KARAT_WRITE_REPORT") else {
        return;
    };
    let folder = std::path::Path::new(&folder);
    let report = fixture::report();
    write(&report, &folder.join("en")).unwrap();
    write(&Report { language: Language::Chinese, ..report }, &folder.join("zh")).unwrap();
    write(&hostile_report(), &folder.join("hostile")).unwrap();
}
