//! Every value that the Python packages gave, against ours.
//!
//! The large set of vectors lies outside the repository (`shared/conformance/metrics`, found
//! through `KARAT_SHARED` or beside a folder above this crate); where it is absent those tests say
//! so and pass. A small set of our own is committed and always read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use karat::eval::metric::conformance::Texts;
use karat::eval::metric::corpus::corpus_row;
use serde_json::Value;

/// The vectors' folder, or `None` with a printed reason.
fn shared() -> Option<PathBuf> {
    let wanted = Path::new("conformance/metrics");
    let found = match std::env::var_os("KARAT_SHARED") {
        Some(shared) => Some(PathBuf::from(shared).join(wanted)).filter(|p| p.is_dir()),
        None => Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .map(|folder| folder.join("shared").join(wanted))
            .find(|folder| folder.is_dir()),
    };
    if found.is_none() {
        println!("skipped: no shared/conformance/metrics beside a folder above this crate; set KARAT_SHARED");
    }
    found
}

/// What was compared, by group.
#[derive(Default)]
struct Tally {
    values: BTreeMap<String, usize>,
    largest: BTreeMap<String, f64>,
    wrong: Vec<String>,
}

impl Tally {
    fn number(&mut self, group: &str, place: &str, expected: f64, found: f64) {
        *self.values.entry(group.to_string()).or_default() += 1;
        let deviation = (expected - found).abs();
        let largest = self.largest.entry(group.to_string()).or_default();
        *largest = largest.max(deviation);
        // Numbers up to 100 (percent): absolute below 1, relative above.
        let close = deviation <= 1e-9 * expected.abs().max(1.0);
        if !close {
            self.wrong.push(format!("{place}: expected {expected}, found {found}"));
        }
    }

    fn exact(&mut self, group: &str, place: &str, expected: &Value, found: &Value) {
        *self.values.entry(group.to_string()).or_default() += 1;
        if expected != found {
            let short = |v: &Value| v.to_string().chars().take(120).collect::<String>();
            self.wrong.push(format!("{place}: expected {}, found {}", short(expected), short(found)));
        }
    }

    /// Compares what `expected` has; an exception by its name alone, its message not being stable.
    fn walk(&mut self, group: &str, place: &str, expected: &Value, found: &Value) {
        match (expected, found) {
            (Value::Object(object), _) if object.contains_key("error") => {
                self.exact(group, place, &object["error"], &found["error"]);
            }
            (Value::Object(object), Value::Object(_)) => {
                for (key, value) in object {
                    self.walk(group, &format!("{place}.{key}"), value, &found[key]);
                }
            }
            (Value::Array(list), Value::Array(other)) if list.len() == other.len() => {
                for (n, (value, other)) in list.iter().zip(other).enumerate() {
                    self.walk(group, &format!("{place}[{n}]"), value, other);
                }
            }
            (Value::Number(number), Value::Number(other)) => {
                let double = |n: &serde_json::Number| n.as_f64().expect("a double");
                self.number(group, place, double(number), double(other));
            }
            _ => self.exact(group, place, expected, found),
        }
    }

    fn finish(self, what: &str) {
        let total: usize = self.values.values().sum();
        println!("{what}: {total} values compared, {} wrong", self.wrong.len());
        for (group, n) in &self.values {
            println!("  {group}: {n}, largest deviation {:.1e}", self.largest.get(group).copied().unwrap_or(0.0));
        }
        assert!(total > 0, "{what}: nothing was compared");
        let shown: Vec<&String> = self.wrong.iter().take(40).collect();
        assert!(self.wrong.is_empty(), "{what}: {} of {total} values are wrong:\n{shown:#?}", self.wrong.len());
    }
}

/// `extract` gives long texts by length and hash only.
fn compare_extract(tally: &mut Tally, place: &str, expected: &Value, found: &Value) {
    for side in ["ref", "cand"] {
        for part in ["think", "answer"] {
            let place = format!("{place}.{side}.{part}");
            let text = found[side][part].as_str().expect("a text");
            let object = expected[side].as_object().expect("an object");
            if let Some(whole) = object.get(part) {
                tally.exact("extract", &place, whole, &Value::from(text));
            } else {
                tally.exact("extract", &place, &object[&format!("{part}_chars")], &Value::from(text.chars().count()));
                tally.exact("extract", &place, &object[&format!("{part}_sha256")], &Value::from(sha256(text)));
            }
        }
    }
}

fn sha256(text: &str) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lines end at `\n` alone: texts may hold other separators.
fn pairs(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let lines = text.split('\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

fn compare_pairs(file: &Path) {
    let mut tally = Tally::default();
    for pair in pairs(file) {
        let text = |key: &str| pair[key].as_str().expect("a text");
        let texts = Texts::new(text("reference"), text("candidate"));
        for (group, expected) in pair["metrics"].as_object().expect("an object") {
            // How the vectors were made, not a metric.
            if group == "rouge_lcs_impl" {
                continue;
            }
            let place = format!("{} {group}", text("id"));
            let found = texts.group(group).unwrap_or_else(|| panic!("{place}: no such group"));
            match group.as_str() {
                "extract" => compare_extract(&mut tally, &place, expected, &found),
                _ => tally.walk(group, &place, expected, &found),
            }
        }
    }
    tally.finish(&file.file_name().expect("a name").to_string_lossy());
}

/// The committed set: `metrics_vectors.py` says how it was made.
#[test]
fn every_value_of_our_own_pairs_is_that_of_the_python_packages() {
    compare_pairs(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/metrics_vectors.jsonl"));
}

#[test]
fn every_value_of_the_real_pairs_is_that_of_the_python_packages() {
    if let Some(shared) = shared() {
        compare_pairs(&shared.join("pairs_real.jsonl"));
    }
}

#[test]
fn every_value_of_the_cross_pairs_is_that_of_the_python_packages() {
    if let Some(shared) = shared() {
        compare_pairs(&shared.join("pairs_cross.jsonl"));
    }
}

#[test]
fn every_value_of_the_edge_pairs_is_that_of_the_python_packages() {
    if let Some(shared) = shared() {
        compare_pairs(&shared.join("pairs_edge.jsonl"));
    }
}

#[test]
fn every_aggregate_is_that_of_the_python_packages() {
    let Some(shared) = shared() else { return };
    let text = std::fs::read_to_string(shared.join("aggregates.json")).expect("readable");
    let aggregates: Value = serde_json::from_str(&text).expect("JSON");
    let mut tally = Tally::default();
    for (file, groups) in aggregates.as_object().expect("an object") {
        let pairs = pairs(&shared.join(format!("{file}.jsonl")));
        for (name, expected) in groups.as_object().expect("an object") {
            let text = |pair: &Value, key: &str| pair[key].as_str().expect("a text").to_string();
            // In the order of `ids`: nltk's method 5 depends on which pair is the last.
            let ids = expected["ids"].as_array().expect("ids").iter().map(|id| id.as_str().expect("an id"));
            let of_group: Vec<(String, String)> = ids
                .map(|id| {
                    let pair = pairs.iter().find(|p| p["id"] == id).unwrap_or_else(|| panic!("{file}: no pair {id}"));
                    (text(pair, "reference"), text(pair, "candidate"))
                })
                .collect();
            let found = corpus_row(&of_group);
            for (key, expected) in expected.as_object().expect("an object").iter().filter(|(key, _)| *key != "ids") {
                tally.walk(key, &format!("{file} {name} {key}"), expected, &found[key]);
            }
        }
    }
    tally.finish("aggregates.json");
}
