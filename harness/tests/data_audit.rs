//! The audit finds repeated and leaking questions, and its search misses no pair that a comparison
//! of all pairs finds.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use karat::data::audit::{AuditOptions, DataAudit, Lengths, audit, normalize};
use karat::data::record::Record;
use proptest::prelude::*;

fn records(questions: &[&str]) -> Vec<Record> {
    let row = |(i, question): (usize, &&str)| Record {
        id: format!("{i}"),
        instruction: None,
        history: Vec::new(),
        trained: Vec::new(),
        question_keys: Default::default(),
        answer_keys: Default::default(),
        question: (*question).to_string(),
        think: String::new(),
        answer: "a".into(),
        cluster: format!("{i}"),
        choice: None,
        decision: None,
        file: 0,
        line: i + 1,
    };
    questions.iter().enumerate().map(row).collect()
}

fn pairs(found: &[karat::data::audit::Pair]) -> Vec<(String, String, bool)> {
    let name = |p: &karat::data::audit::RowPlace| format!("{}{}", p.split, p.id);
    found.iter().map(|p| (name(&p.first), name(&p.second), p.exact)).collect()
}

#[test]
fn equal_questions_are_found_within_and_across_splits() {
    let train = records(&["高血压 能吃布洛芬吗?", "糖尿病的饮食", "糖尿病的饮食"]);
    let validation = records(&["高血压\u{3000}能吃布洛芬吗？", "痛风"]);
    let found = audit(&[("train", &train), ("validation", &validation)], AuditOptions::default());
    assert_eq!(pairs(&found.duplicates), [("train1".into(), "train2".into(), true)]);
    assert_eq!(pairs(&found.leaks), [("train0".into(), "validation0".into(), true)]);
    assert_eq!(found.leaks[0].similarity, 1.0);
    assert_eq!(found.splits["train"].records, 3);
}

#[test]
fn near_copies_are_found_by_their_jaccard_index() {
    let train = records(&["布洛芬可以和阿司匹林一起服用吗"]);
    let validation = records(&["布洛芬可以和阿司匹林一起服用么", "完全无关的问题是什么呢"]);
    let at = |threshold| {
        let splits = [("train", &train[..]), ("validation", &validation[..])];
        audit(&splits, AuditOptions { ngram: 3, threshold }).leaks
    };
    // 13 trigrams each, 12 shared: 12 / 14.
    assert_eq!(pairs(&at(0.85)), [("train0".into(), "validation0".into(), false)]);
    assert_eq!(at(0.85)[0].similarity, 12.0 / 14.0);
    assert!(at(0.86).is_empty());
}

#[test]
fn normalisation_folds_width_and_white_space_only() {
    assert_eq!(normalize("  ＡＢＣ\u{3000}１２\t３\n"), "ABC 12 3");
    assert_ne!(normalize("a"), normalize("A"));
}

#[test]
fn lengths_are_nearest_rank_statistics() {
    let lengths = Lengths::of((1..=100).rev()).unwrap();
    assert_eq!((lengths.min, lengths.median, lengths.p95, lengths.max, lengths.sum), (1, 50, 95, 100, 5050));
    assert_eq!(lengths.mean, 50.5);
    assert_eq!(Lengths::of([7]).unwrap().p95, 7);
    assert!(Lengths::of([]).is_none());
}

#[test]
fn every_pair_is_counted_and_only_the_first_are_listed() {
    // 300 questions that are all near each other, halved: 150 * 149 / 2 pairs in each part, 150 *
    // 150 across.
    let question = |i: usize| format!("布洛芬可以和阿司匹林一起服用吗，患者的编号是第{i}号，请说明理由并给出建议");
    let questions: Vec<String> = (0..300).map(question).collect();
    let questions: Vec<&str> = questions.iter().map(String::as_str).collect();
    let (train, heldout) = (records(&questions[..150]), records(&questions[150..]));
    let found = audit(&[("train", &train), ("heldout", &heldout)], AuditOptions { ngram: 3, threshold: 0.7 });
    assert_eq!((found.counts.duplicates, found.counts.near_leaks, found.counts.exact_leaks), (2 * 11_175, 22_500, 0));
    assert_eq!((found.duplicates.len(), found.leaks.len()), (DataAudit::LISTED, DataAudit::LISTED));
    let places = |pairs: &[karat::data::audit::Pair]| -> Vec<(usize, usize)> {
        pairs.iter().map(|p| (p.first.line - 1, p.second.line - 1)).collect()
    };
    let first: Vec<(usize, usize)> = (0..150).flat_map(|i| (i + 1..150).map(move |j| (i, j))).take(200).collect();
    assert_eq!(places(&found.duplicates), first);
    let first: Vec<(usize, usize)> = (0..2).flat_map(|i| (0..150).map(move |j| (i, j))).take(200).collect();
    assert_eq!(places(&found.leaks), first);
}

#[test]
fn the_audit_survives_json() {
    let train = records(&["问题一号", "问题一号"]);
    let found = audit(&[("train", &train)], AuditOptions::default());
    let json = serde_json::to_string(&found).unwrap();
    assert_eq!(serde_json::from_str::<DataAudit>(&json).unwrap(), found);
}

/// Jaccard index by the definition.
fn jaccard(a: &str, b: &str, n: usize) -> f64 {
    let grams = |text: &str| -> BTreeSet<String> {
        let chars: Vec<char> = text.chars().collect();
        if chars.len() < n {
            return BTreeSet::from([text.to_string()]);
        }
        chars.windows(n).map(|w| w.iter().collect()).collect()
    };
    let (a, b) = (grams(a), grams(b));
    a.intersection(&b).count() as f64 / a.union(&b).count() as f64
}

proptest! {
    #[test]
    fn the_search_finds_exactly_the_pairs_that_comparing_all_finds(
        texts in proptest::collection::vec("[ab]{1,9}", 1..30), n in 1usize..4, threshold in 0.05f64..1.0,
    ) {
        let texts: BTreeSet<String> = texts.into_iter().collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let rows = records(&texts);
        let found = audit(&[("t", &rows)], AuditOptions { ngram: n, threshold });
        let ours: Vec<(String, String, f64)> =
            found.duplicates.iter().map(|p| (p.first.id.clone(), p.second.id.clone(), p.similarity)).collect();
        let mut expected = Vec::new();
        for i in 0..texts.len() {
            for j in i + 1..texts.len() {
                let similarity = jaccard(texts[i], texts[j], n);
                if similarity >= threshold {
                    expected.push((i.to_string(), j.to_string(), similarity));
                }
            }
        }
        prop_assert_eq!(found.counts.duplicates, expected.len() as u64);
        expected.truncate(DataAudit::LISTED);
        prop_assert_eq!(ours, expected);
    }
}
