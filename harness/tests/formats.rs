//! The forms of a report that other programs and other readers take: LaTeX, CSV, JUnit,
//! github-action-benchmark, Chinese.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "report/fixture.rs"]
mod fixture;

use std::collections::BTreeSet;

use karat::eval::Item;
use karat::eval::metric::Bounds;
use karat::report::{
    Direction, Language, Report, Role, SplitRule, Warning, benchmark, build, csv, html, junit, latex, markdown, plot,
};

/// Items that share no source with another: differences of this size are significant then.
fn items() -> Vec<Item> {
    let own = |item: Item| Item { cluster: item.id.clone(), ..item };
    fixture::items(24).into_iter().map(own).collect()
}

fn report() -> Report {
    let items = items();
    build(&fixture::inputs(&items, fixture::three_models(&items))).unwrap()
}

#[test]
fn the_latex_table_has_a_row_a_metric_and_balanced_braces() {
    for language in [Language::English, Language::Chinese] {
        let mut report = report();
        report.language = language;
        report.metrics[0].unit = "100 %_{x}$&#\\input{/etc/passwd}".into();
        // What unclosed reasoning can have done is a table of its own.
        report.metrics.iter_mut().flat_map(|m| m.models.values_mut()).for_each(|value| value.truncation = None);
        let tex = latex::table(&report);
        let rows: Vec<&str> = tex.lines().filter(|l| l.ends_with("\\\\")).collect();
        assert_eq!(rows.len(), 1 + report.metrics.len());
        // Three models, two improvements, n; no ampersand of a stranger makes a column.
        assert!(rows.iter().all(|r| r.replace("\\&", "").matches('&').count() == 6), "{tex}");
        let bare = tex.replace("\\{", "").replace("\\}", "");
        assert_eq!(bare.matches('{').count(), bare.matches('}').count());
        assert!(!tex.contains("\\input") && tex.contains("\\textbackslash{}input\\{"));
        assert!(tex.contains("\\textbf{") && tex.contains("$\\pm$") && tex.contains("\\textsuperscript{**}"), "{tex}");
        for part in ["\\toprule", "\\midrule", "\\bottomrule", "\\label{tab:medical-r1}"] {
            assert_eq!(tex.matches(part).count(), 1, "{part}");
        }
        assert!(!tex.contains(['±', '−', '↑', '↓']), "signs that a text font may lack are in math mode");
    }
}

#[test]
fn what_unclosed_reasoning_can_have_done_is_a_latex_table_too() {
    let mut report = report();
    report.metrics.iter_mut().flat_map(|m| m.models.values_mut()).for_each(|value| value.truncation = None);
    let metric = &mut report.metrics[0];
    let (name, decimals) = (metric.name.clone(), metric.decimals);
    let value = metric.models.get_mut("lora").unwrap();
    value.truncation = Some(Bounds { all: 0.25, completed: Some(0.5), n_completed: 3, low: 0.125, high: 0.75 });
    let tex = latex::table(&report);
    let (results, unclosed) = tex.split_once("\\label{tab:medical-r1-unclosed}").unwrap();
    assert_eq!(results.matches("\\begin{table}").count(), 2);
    let rows: Vec<&str> = unclosed.lines().filter(|l| l.ends_with("\\\\")).collect();
    assert!(rows.len() == 2 && rows.iter().all(|r| r.matches('&').count() == 5), "{unclosed}");
    for part in [format!("{:.decimals$} (n = 3)", 0.5), format!("{:.decimals$}", 0.125), "lora".to_string()] {
        assert!(rows[1].contains(&part), "{name}: {} lacks {part}", rows[1]);
    }
}

#[test]
fn every_metric_of_every_model_is_a_row_of_the_csv_in_full_precision() {
    let report = report();
    let text = csv::metrics(&report);
    let rows: Vec<Vec<&str>> = text.lines().map(|l| l.split(',').collect()).collect();
    assert_eq!(rows.len(), 1 + report.metrics.len() * 3);
    assert!(rows.iter().all(|r| r.len() == rows[0].len()), "{text}");
    let column = |name: &str| rows[0].iter().position(|c| *c == name).unwrap();
    let lora = rows.iter().find(|r| r[0] == "nll_answer" && r[3] == "lora").unwrap();
    let metric = report.metric("nll_answer").unwrap();
    assert_eq!(lora[column("value")].parse::<f64>().ok(), metric.models["lora"].value);
    let c = &report.comparison("base", "lora").unwrap().metrics["nll_answer"];
    assert_eq!(lora[column("difference")].parse::<f64>().ok(), c.difference);
    assert_eq!((lora[column("against")], lora[column("verdict")]), ("base", "better"));
    let base = rows.iter().find(|r| r[0] == "nll_answer" && r[3] == "base").unwrap();
    assert_eq!((base[column("against")], base[column("difference")]), ("", ""));
}

#[test]
fn a_benchmark_file_holds_one_direction_and_defined_values() {
    let report = report();
    let entries = |better| -> Vec<serde_json::Value> {
        serde_json::from_str(&benchmark::github(&report, better).unwrap()).unwrap()
    };
    let lower = entries(Direction::Lower);
    assert_eq!(lower.len(), 2 * 3);
    for entry in &lower {
        assert!(entry["name"].as_str().unwrap().starts_with("nll_"));
        assert_eq!(entry["unit"], "nats/token");
        assert!(entry["value"].is_f64() && entry["range"].as_str().unwrap().starts_with("± "));
        assert!(entry["extra"].as_str().unwrap().starts_with("n = 24\n95 % interval ["), "{entry}");
    }
    assert!(entries(Direction::Higher).iter().all(|e| e["unit"].as_str().is_some_and(|u| !u.is_empty())));
    let mut only = report.clone();
    only.metrics.retain(|m| m.direction == Direction::Lower);
    assert!(benchmark::github(&only, Direction::Higher).unwrap_err().help_text().unwrap().contains("--better"));
}

#[test]
fn junit_of_a_report_fails_what_became_significantly_worse() {
    let items = items();
    let mut models = fixture::three_models(&items);
    // The "fine-tuned" full model is a base in disguise: worse than LoRA.
    models[2] = fixture::model("full", Role::Full, &items, 11);
    for result in &mut models[2].items {
        result.metrics.insert("nll_answer".into(), Some(4.5));
        result.metrics.insert("key_points".into(), None);
    }
    let report = build(&fixture::inputs(&items, models)).unwrap();
    let xml = junit::comparisons::junit(&report);
    let document = roxmltree::Document::parse(&xml).unwrap();
    let case = |class: &str, name: &str| {
        let is =
            |n: &roxmltree::Node<'_, '_>| n.attribute("classname") == Some(class) && n.attribute("name") == Some(name);
        document.descendants().find(is).unwrap()
    };
    let child = |class: &str, name: &str| {
        case(class, name).children().find(|n| n.is_element()).map(|n| n.tag_name().name().to_string())
    };
    assert_eq!(child("medical-r1.full-vs-lora", "nll_answer").as_deref(), Some("failure"));
    assert_eq!(child("medical-r1.full-vs-lora", "key_points").as_deref(), Some("skipped"));
    assert_eq!(child("medical-r1.lora-vs-base", "nll_answer"), None);
    let suite = document.descendants().find(|n| n.has_tag_name("testsuite")).unwrap();
    let cases = suite.children().filter(|n| n.has_tag_name("testcase")).count();
    assert_eq!(suite.attribute("tests"), Some(cases.to_string().as_str()));
    // A length is neither better nor worse.
    assert_eq!(cases, 3 * 8);
}

/// A report of Chinese data: whatever is not Chinese in its pages is ours.
fn chinese() -> Report {
    let items: Vec<_> = fixture::items(24).into_iter().filter(|i| !i.question.is_ascii()).collect();
    let mut models: Vec<_> = fixture::three_models(&items);
    for model in &mut models {
        model.session.as_mut().unwrap().kernels.clear();
    }
    let mut inputs = fixture::inputs(&items, models);
    inputs.language = Language::Chinese;
    inputs.suite.title = "小型医学推理".into();
    inputs.suite.description = "仅用于测试。".into();
    inputs.data.bad_rows[0].reason = "缺少字段".into();
    inputs.data.split_rule = Some(SplitRule::HeldoutFile { seed: 42, shares: "9:1".into() });
    inputs.data.audit.insert("exact_leaks".into(), 2);
    inputs.warnings = vec![Warning::Dropped { count: 3 }];
    for metric in &mut inputs.metrics {
        metric.unit = match metric.name.as_str() {
            "nll_answer" | "nll_think" => "nats/token".into(),
            "length" => "tokens".into(),
            _ => "share".into(),
        };
    }
    build(&inputs).unwrap()
}

/// Words of Latin letters in a page, its markup, style, script and attributes left out.
fn latin_words(page: &str) -> BTreeSet<String> {
    let mut text = page.to_string();
    for element in ["style", "script", "title"] {
        while let (Some(from), Some(to)) = (text.find(&format!("<{element}")), text.find(&format!("</{element}>"))) {
            text.replace_range(from..to + element.len() + 3, " ");
        }
    }
    let mut outside = String::new();
    let mut inside = false;
    for c in text.chars() {
        match c {
            '<' => inside = true,
            '>' => {
                inside = false;
                outside.push(' ');
            }
            c if !inside => outside.push(c),
            _ => {}
        }
    }
    outside
        // Markdown's escapes.
        .replace('\\', "")
        .replace("&#x2f;", "/")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/')))
        .filter(|w| w.chars().filter(|c| c.is_ascii_alphabetic()).count() > 1)
        // Hashes, paths, file names and item ids.
        .filter(|w| !(w.len() == 12 && w.bytes().all(|b| b.is_ascii_hexdigit())))
        .filter(|w| !w.starts_with('/') && !w.contains(".jsonl") && !w.starts_with("med-"))
        .map(String::from)
        .collect()
}

#[test]
fn every_word_of_a_chinese_report_is_chinese() {
    let report = chinese();
    // Names of things, of settings and of methods, which are the same in Chinese.
    let names = [
        "base",
        "lora",
        "full",
        "medical-r1",
        "karat",
        "native",
        "cpu",
        "CPU",
        "sha256",
        "f32",
        "Holm",
        "McNemar",
        "Python",
        "BLEU",
        "zh",
        "ROUGE-L",
        "F1",
        "eGFR",
        "INR",
        "nat/",
        "nat",
        "MiB",
        "min",
        "max_new_tokens",
        "max_length",
        "enable_thinking",
        "true",
        "chat_template.jinja",
        "LoRA",
        "VKORC1",
    ];
    for (form, page) in [
        ("md", markdown::render(&report)),
        ("html", html::render(&report).unwrap()),
        ("svg", plot::metric_bars(&report).unwrap() + &plot::training_curves(&report).unwrap()),
    ] {
        let left: Vec<String> = latin_words(&page).into_iter().filter(|w| !names.contains(&w.as_str())).collect();
        assert!(left.is_empty(), "{form} has words that are not Chinese: {left:?}");
    }
}
