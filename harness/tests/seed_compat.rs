//! The published comparison's table: its numbers from its texts, its layout character for
//! character.
//!
//! The published files lie outside the repository (`shared/data`, found through `KARAT_SHARED` or
//! beside a folder above this crate); where they are absent those tests say so and pass.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use karat::report::seed_compat::{CompatNumbers, CompatSample, Quantitative, Results, beside, perplexity, printed};
use serde_json::Value;

fn shared(inner: &str) -> Option<PathBuf> {
    let given = std::env::var_os("KARAT_SHARED").map(PathBuf::from);
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|a| a.join("shared")).find(|s| s.is_dir());
    let found = given.or(above).map(|s| s.join(inner)).filter(|p| p.exists());
    if found.is_none() {
        println!("skipped: no shared/{inner} beside a folder above this crate; set KARAT_SHARED");
    }
    found
}

fn sample(reference: &str, base: &str, tuned: &str) -> CompatSample {
    CompatSample {
        question: "头痛怎么办？".into(),
        reference: reference.into(),
        base_model: base.into(),
        finetuned_model: tuned.into(),
    }
}

#[test]
fn the_layout_is_that_of_the_script_with_its_trailing_blanks() {
    let numbers = |perplexity, x: f64| CompatNumbers {
        perplexity,
        bleu: x,
        rouge_1_f: x / 2.0,
        rouge_l_f: x / 2.0,
        f1: 0.44695,
        precision: 0.5,
        recall: 1.0 - x,
        ..CompatNumbers::default()
    };
    let results = Results {
        quantitative: Quantitative {
            base_model: numbers(Some(1.9060346651077271), 0.123456),
            finetuned_model: numbers(Some(2.0241732096672056), 0.1),
        },
        qualitative: vec![sample(&"长".repeat(250), "短", "")],
    };
    // As Python 3.11 prints it.
    let expected = format!(
        "\n{double}\n模型对比结果\n{double}\n\n定量指标对比:\n{single}\n{header}\n{single}\n{rows}\n\n定性对比 (前5个样本):\n{long}\n\n\
         样本 1:\n问题: 头痛怎么办？\n参考回答: {reference}...\n基础模型: 短...\n微调模型: ...\n{short}\n",
        double = "=".repeat(80),
        single = "-".repeat(60),
        long = "-".repeat(80),
        short = "-".repeat(40),
        reference = "长".repeat(200),
        header = "指标                   基础模型            微调模型            提升        ",
        rows = [
            "困惑度                  1.9060          2.0242          -0.1181   ",
            "BLEU                 0.1235          0.1000          -0.0235   ",
            "ROUGE-1 F1           0.0617          0.0500          -0.0117   ",
            "ROUGE-2 F1           0.0000          0.0000          +0.0000   ",
            "ROUGE-L F1           0.0617          0.0500          -0.0117   ",
            "词汇F1                 0.4470          0.4470          +0.0000   ",
            "精确率                  0.5000          0.5000          +0.0000   ",
            "召回率                  0.8765          0.9000          +0.0235   ",
        ]
        .join("\n"),
    );
    assert_eq!(printed(&results), expected);
    let (again, _) = results.recomputed();
    assert!(printed(&again).contains("困惑度                  –               –               –         \n"));
}

#[test]
fn one_pair_that_rouge_raises_on_zeroes_the_corpus_and_is_named() {
    let fine = sample("甲 乙 丙", "甲 乙", "甲 乙 丙");
    let (one, hidden) = Results { qualitative: vec![fine.clone()], ..Results::default() }.recomputed();
    assert_eq!(hidden, [None, None]);
    assert!(one.quantitative.finetuned_model.rouge_1_f > 0.99);
    let texts = vec![fine, sample("甲 乙", "...", "甲 乙")];
    let (two, hidden) = Results { qualitative: texts, ..Results::default() }.recomputed();
    assert_eq!(hidden, [Some("ValueError"), None]);
    let base = &two.quantitative.base_model;
    assert_eq!((base.rouge_1_f, base.rouge_1_r, base.rouge_l_p), (0.0, 0.0, 0.0));
    assert!(base.f1 > 0.0, "the other numbers stay");
    assert!(two.quantitative.finetuned_model.rouge_1_f > 0.99, "the other model too");
}

#[test]
fn perplexity_is_the_mean_over_texts_not_over_tokens() {
    let ln = |p: f32| p.ln();
    let texts = [vec![ln(0.5), ln(0.5)], vec![ln(0.25)]];
    assert!((perplexity(&texts).unwrap() - 3.0).abs() < 1e-6);
    assert_eq!(perplexity(&[vec![]]), None, "a text of one token has no loss");
    assert_eq!(perplexity(&[]), None);
}

#[test]
fn a_file_that_is_none_says_where() {
    let error = Results::from_json("{\"quantitative\": {}}", "x.json").unwrap_err();
    assert!(error.to_string().starts_with("x.json:1:"), "{error}");
    assert!(error.help_text().unwrap().contains("qualitative"));
}

/// The numbers of one side as the conformance vectors have them.
fn same(expected: &Value, ours: &CompatNumbers) {
    assert_eq!(expected["rouge"]["exception"], Value::Null);
    let rouge = |kind: &str, part: &str| expected["rouge"]["result"][kind][part].as_f64().unwrap();
    let pairs = [
        (expected["bleu"].as_f64().unwrap(), ours.bleu),
        (rouge("rouge-1", "f"), ours.rouge_1_f),
        (rouge("rouge-1", "p"), ours.rouge_1_p),
        (rouge("rouge-1", "r"), ours.rouge_1_r),
        (rouge("rouge-2", "f"), ours.rouge_2_f),
        (rouge("rouge-2", "p"), ours.rouge_2_p),
        (rouge("rouge-2", "r"), ours.rouge_2_r),
        (rouge("rouge-l", "f"), ours.rouge_l_f),
        (rouge("rouge-l", "p"), ours.rouge_l_p),
        (rouge("rouge-l", "r"), ours.rouge_l_r),
        (expected["f1"].as_f64().unwrap(), ours.f1),
        (expected["precision"].as_f64().unwrap(), ours.precision),
        (expected["recall"].as_f64().unwrap(), ours.recall),
    ];
    for (at, (theirs, ours)) in pairs.into_iter().enumerate() {
        assert!((theirs - ours).abs() < 1e-12, "number {at}: {theirs} against {ours}");
    }
}

#[test]
fn the_numbers_of_the_published_texts_are_those_of_the_script() {
    let Some(data) = shared("data/medical-r1") else { return };
    let Some(vectors) = shared("conformance/metrics/aggregates.json") else { return };
    let aggregates: Value = serde_json::from_str(&std::fs::read_to_string(vectors).unwrap()).unwrap();
    let mut compared = 0;
    for (kind, file) in
        [("lora", "model_comparison_results.json"), ("full", "full_param_model_comparison_results.json")]
    {
        let text = std::fs::read_to_string(data.join(file)).unwrap();
        let published = Results::from_json(&text, file).unwrap();
        assert_eq!(published.qualitative.len(), 5);
        // What is read is written again, number for number.
        let again: Value = serde_json::to_value(&published).unwrap();
        assert_eq!(again, serde_json::from_str::<Value>(&text).unwrap());
        for (side, name) in [("base", "base_model"), ("ft", "finetuned_model")] {
            // The vectors have a part of the texts: those that their ids name.
            let group = &aggregates["pairs_real"][&format!("{kind}-{side}")];
            let mut some = published.clone();
            let named = |i: usize| {
                let id = format!("real-{kind}-{i}-{side}");
                group["ids"].as_array().unwrap().iter().any(|n| n == &id)
            };
            some.qualitative =
                published.qualitative.iter().enumerate().filter(|(i, _)| named(*i)).map(|(_, s)| s.clone()).collect();
            assert!(!some.qualitative.is_empty());
            let (ours, _) = some.recomputed();
            let ours =
                if name == "base_model" { ours.quantitative.base_model } else { ours.quantitative.finetuned_model };
            same(&group["seed"], &ours);
            compared += 13;
        }
        // The published table prints as published, and ours stands beside it.
        let (ours, hidden) = published.recomputed();
        assert_eq!(hidden, [None, None]);
        let row = printed(&published).lines().find(|l| l.starts_with("BLEU")).unwrap().to_string();
        let q = &published.quantitative;
        assert!(
            row.contains(&format!("{:.4}", q.base_model.bleu))
                && row.contains(&format!("{:.4}", q.finetuned_model.bleu))
        );
        assert_eq!(beside(&published, &ours).lines().count(), 2 + 14);
    }
    println!("{compared} numbers compared");
}
