//! The split is Python's, bit for bit: `vectors/python_random.json` was made by CPython
//! (`make_vectors.py`).

#![allow(clippy::unwrap_used)]

use std::path::Path;

use karat::data::split::{PyRandom, SplitParts, cut, split};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn vectors() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/python_random.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn seed(case: &Value) -> i128 {
    case["seed"].as_str().unwrap().parse().unwrap()
}

fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(number).collect()
}

fn digest(rows: &[usize]) -> String {
    let text = rows.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn shuffle_is_pythons_for_every_seed_and_size() {
    let vectors = vectors();
    let cases = vectors["shuffles"].as_array().unwrap();
    assert_eq!(cases.len(), 9 * 7);
    for case in cases {
        let mut rows: Vec<usize> = (0..number(&case["n"])).collect();
        PyRandom::new(seed(case)).shuffle(&mut rows);
        assert_eq!(rows[..rows.len().min(20)], numbers(&case["first"]), "{case}");
        assert_eq!(digest(&rows), case["sha256"].as_str().unwrap(), "{case}");
    }
}

#[test]
fn sample_is_pythons_on_both_sides_of_its_pool_and_set_border() {
    let vectors = vectors();
    let cases = vectors["samples"].as_array().unwrap();
    assert_eq!(cases.len(), 9 * 14);
    for case in cases {
        let picked = PyRandom::new(seed(case)).sample(number(&case["n"]), number(&case["k"])).unwrap();
        assert_eq!(picked, numbers(&case["picked"]), "seed {} n {} k {}", case["seed"], case["n"], case["k"]);
    }
    let error = PyRandom::new(42).sample(3, 4).unwrap_err();
    assert_eq!(error.kind(), karat::ErrorKind::Usage);
}

#[test]
fn one_generator_draws_pythons_numbers_below_any_bound() {
    for case in vectors()["draws"].as_array().unwrap() {
        let mut random = PyRandom::new(seed(case));
        for pair in case["below"].as_array().unwrap() {
            assert_eq!(random.below(number(&pair[0])), number(&pair[1]), "seed {} below {}", case["seed"], pair[0]);
        }
    }
}

#[test]
fn parts_are_cut_where_the_recipe_cuts() {
    for case in vectors()["splits"].as_array().unwrap() {
        let n = number(&case["n"]);
        let nine = split(n, 42, SplitParts::NINE_ONE);
        assert_eq!(nine.train.len(), number(&case["train_9_1"]));
        assert_eq!(digest(&nine.train), case["train_sha256"].as_str().unwrap());
        assert_eq!(nine.validation[..nine.validation.len().min(20)], numbers(&case["validation_9_1"]));
        assert!(nine.test.is_empty());

        let eight = split(n, 42, SplitParts::EIGHT_ONE_ONE);
        assert_eq!(eight.train.len(), number(&case["train_8_1_1"]));
        assert_eq!(eight.train.len() + eight.validation.len(), number(&case["validation_end_8_1_1"]));
        assert_eq!(eight.test[..eight.test.len().min(20)], numbers(&case["test_8_1_1"]));

        let mut all = [eight.train, eight.validation, eight.test].concat();
        all.sort_unstable();
        assert_eq!(all, (0..n).collect::<Vec<_>>(), "every row is in exactly one part");
    }
}

#[test]
fn parts_are_read_as_written_and_nonsense_is_refused() {
    assert_eq!("9:1".parse::<SplitParts>().unwrap(), SplitParts::NINE_ONE);
    assert_eq!("8:1:1".parse::<SplitParts>().unwrap(), SplitParts::EIGHT_ONE_ONE);
    assert_eq!(String::from(SplitParts::EIGHT_ONE_ONE), "8:1:1");
    for text in ["", "9", "9:", "0:0", "1:2:3:4", "-1:2", "0.9:0.1", "4000000000:1"] {
        let error = text.parse::<SplitParts>().unwrap_err();
        assert!(error.help_text().unwrap().contains("8:1:1"), "{text:?}");
    }
    let all = cut((0..5).collect(), "1:0".parse().unwrap());
    assert_eq!((all.train.len(), all.validation.len()), (5, 0));
    let none = cut((0..5).collect(), "0:1".parse().unwrap());
    assert_eq!((none.train.len(), none.validation.len()), (0, 5));
}
