//! The registry: what the runner asks of metrics.

use std::collections::BTreeMap;

use karat::ErrorKind;
use karat::backend::StopReason;
use karat::eval::metric::{self, Direction, Reads};
use karat::eval::think::ThinkTags;
use karat::eval::{Item, ItemResult, PartScore, Prediction, ReferenceScore};

fn item() -> Item {
    Item {
        id: "1".into(),
        question: "肾功能不全患者能否使用二甲双胍？".into(),
        think: "eGFR低于30时禁用二甲双胍。".into(),
        answer: "重度肾功能不全患者禁用二甲双胍，eGFR应不低于30。".into(),
        cluster: "1".into(),
        choice: None,
    }
}

fn prediction(text: &str, stop: StopReason) -> Prediction {
    Prediction { id: "1".into(), text: text.into(), ids: vec![1, 2, 3], stop }
}

fn reference(think: f64, answer: f64) -> ReferenceScore {
    ReferenceScore {
        id: "1".into(),
        think: PartScore { logprob: think, tokens: 10, bytes: 40, greedy: 5 },
        answer: PartScore { logprob: answer, tokens: 30, bytes: 60, greedy: 25 },
        options: Vec::new(),
    }
}

fn all_names() -> Vec<String> {
    metric::registry().iter().map(|m| m.name.to_string()).collect()
}

fn value(name: &str, text: &str, stop: StopReason) -> Option<f64> {
    let values = metric::evaluate(&[name.to_string()], &item(), &prediction(text, stop), None).expect("known");
    values[name]
}

#[test]
fn every_registered_metric_is_computed_and_stays_in_its_range() {
    let names = all_names();
    assert!(names.len() > 100);
    let texts = [
        "<think>eGFR低于30时禁用二甲双胍。</think>\n重度肾功能不全患者禁用二甲双胍，eGFR应不低于30。",
        "<think>eGFR低于30",
        "可以使用二甲双胍，每日3次。可以使用二甲双胍，每日3次。可以使用二甲双胍，每日3次。可以使用二甲双胍，每日3次。",
        "",
    ];
    for text in texts {
        let prediction = prediction(text, StopReason::Stop);
        let values = metric::evaluate(&names, &item(), &prediction, Some(&reference(-10.0, -20.0))).expect("known");
        assert_eq!(values.len(), names.len());
        for (name, value) in &values {
            let (low, high) = metric::info(name).expect("registered").range;
            if let Some(value) = value {
                assert!((low - 1e-9..=high + 1e-9).contains(value), "{name} of {text:?}: {value}");
            }
        }
    }
}

#[test]
fn the_perfect_answer_has_the_best_value_of_every_overlap_metric() {
    let text = "<think>eGFR低于30时禁用二甲双胍。</think>\n重度肾功能不全患者禁用二甲双胍，eGFR应不低于30。";
    for name in [
        "rouge1",
        "rouge2",
        "rougeL",
        "rougeL_jieba",
        "think_rougeL",
        "vocab_f1",
        "exact_match",
        "key_points",
        "think_key_points",
        "format",
        "length_ratio",
    ] {
        assert_eq!(value(name, text, StopReason::Stop), Some(1.0), "{name}");
    }
    assert!((value("bleu", text, StopReason::Stop).expect("defined") - 100.0).abs() < 1e-9);
    for name in ["contradictions", "truncated", "repetition"] {
        assert_eq!(value(name, text, StopReason::Stop), Some(0.0), "{name}");
    }
}

#[test]
fn a_truncated_reasoning_scores_as_an_empty_answer_and_is_counted() {
    // Its words are the answer's, but it is no answer.
    let text = "<think>重度肾功能不全患者禁用二甲双胍，eGFR应不低于30。";
    for name in ["rouge1", "bleu", "vocab_recall", "exact_match", "key_points", "format"] {
        assert_eq!(value(name, text, StopReason::Length), Some(0.0), "{name}");
    }
    assert_eq!(value("truncated", text, StopReason::Length), Some(1.0));
    assert_eq!(value("truncated", text, StopReason::Context), Some(1.0));
}

#[test]
fn a_negated_answer_overlaps_and_contradicts() {
    let text = "<think>想</think>重度肾功能不全患者可用二甲双胍，eGFR应不低于30。";
    assert!(value("rouge1", text, StopReason::Stop).expect("defined") > 0.85);
    assert!(value("contradictions", text, StopReason::Stop).expect("defined") > 0.0);
}

#[test]
fn likelihood_is_pooled_over_tokens_and_bytes_and_not_averaged_over_items() {
    let names: Vec<String> = ["nll", "nll_think", "nll_answer", "perplexity", "bits_per_byte"].map(String::from).into();
    let short =
        ReferenceScore { answer: PartScore { logprob: -2.0, tokens: 1, bytes: 4, greedy: 0 }, ..reference(-10.0, 0.0) };
    let results: Vec<ItemResult> = [reference(-10.0, -20.0), short]
        .into_iter()
        .map(|reference| {
            let prediction = prediction("", StopReason::Stop);
            let metrics = metric::evaluate(&names, &item(), &prediction, Some(&reference)).expect("known");
            ItemResult { prediction, reference: Some(reference), metrics }
        })
        .collect();
    let corpus = |name: &str| metric::aggregate(name, &results).expect("defined");
    let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    close(corpus("nll_answer"), 22.0 / 31.0);
    close(corpus("nll_think"), 20.0 / 20.0);
    close(corpus("nll"), 42.0 / 51.0);
    close(corpus("perplexity"), (42.0f64 / 51.0).exp());
    close(corpus("bits_per_byte"), 42.0 / std::f64::consts::LN_2 / 144.0);
    assert_eq!(metric::aggregate("rouge1", &results), None, "not evaluated");
    assert_eq!(metric::aggregate("no such metric", &results), None);
}

#[test]
fn without_a_reference_score_likelihood_is_undefined_and_not_zero() {
    for name in ["nll", "nll_think", "nll_answer", "perplexity", "bits_per_byte", "greedy_share"] {
        assert_eq!(metric::info(name).expect("registered").reads, Reads::Reference);
        assert_eq!(value(name, "答", StopReason::Stop), None);
    }
}

#[test]
fn truncation_bounds_enclose_the_value_over_all_items() {
    let names = vec!["rouge1".to_string()];
    let of = |text: &str, stop| {
        let prediction = prediction(text, stop);
        let metrics = metric::evaluate(&names, &item(), &prediction, None).expect("known");
        ItemResult { prediction, reference: None, metrics }
    };
    let results = [
        of("<think>想</think>重度肾功能不全患者禁用二甲双胍，eGFR应不低于30。", StopReason::Stop),
        of("<think>想", StopReason::Length),
    ];
    let bounds = metric::bounds(&ThinkTags::default(), "rouge1", &results).expect("defined");
    assert_eq!(
        (bounds.all, bounds.completed, bounds.n_completed, bounds.low, bounds.high),
        (0.5, Some(1.0), 1, 0.5, 1.0)
    );
}

#[test]
fn an_unknown_metric_is_a_usage_error_that_names_its_neighbours() {
    let names = vec!["rougel".to_string()];
    let error = metric::evaluate(&names, &item(), &prediction("", StopReason::Stop), None).expect_err("unknown");
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.help_text().expect("a help").contains("rougeL"), "{error:?}");
    let error = metric::conformance_row("甲", "乙", &["rouge_jeiba".to_string()]).expect_err("unknown");
    assert!(error.help_text().expect("a help").contains("rouge_jieba"), "{error:?}");
    assert!(metric::conformance_row("甲", "乙", &["rouge_jieba.rouge-7".to_string()]).is_err());
}

#[test]
fn a_row_has_what_was_asked_for_under_the_names_of_the_vectors() {
    let names = ["nltk_bleu_jieba.m4", "rouge_jieba.rouge-l.f", "vocab"].map(String::from);
    let row = metric::conformance_row("高血压患者", "高血压", &names).expect("known");
    assert_eq!(
        row.as_object().expect("an object").keys().collect::<Vec<_>>(),
        ["nltk_bleu_jieba", "rouge_jieba", "vocab"]
    );
    assert_eq!(row["nltk_bleu_jieba"].as_object().expect("an object").len(), 1);
    assert_eq!(row["vocab"]["p"], 1.0);
    assert_eq!(row["vocab"]["r"], 0.5);
    let error = metric::conformance_row("高血压", "", &["rouge_raw.rouge-1.f".to_string()]).expect("known");
    assert_eq!(error["rouge_raw"]["error"], "ValueError");
}

#[test]
fn names_are_unique_and_directions_are_those_of_the_field() {
    let names = all_names();
    let unique: BTreeMap<&String, ()> = names.iter().map(|n| (n, ())).collect();
    assert_eq!(unique.len(), names.len());
    for (name, direction) in [
        ("nll", Direction::Lower),
        ("perplexity", Direction::Lower),
        ("ter", Direction::Lower),
        ("bleu", Direction::Higher),
        ("nltk_bleu_jieba.m4", Direction::Higher),
        ("length_ratio", Direction::Neutral),
        ("truncated", Direction::Lower),
    ] {
        assert_eq!(metric::info(name).map(|m| m.direction), Some(direction), "{name}");
    }
}
