//! Stored scores and texts: what decides them finds them again or makes them anew, component by
//! component.

#![allow(clippy::unwrap_used)]

mod tiny;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use karat::backend::{
    Backend, BackendError, Completion, Descriptor, Dtype, Evaluator, EventSink, GenerateConfig, OpenConfig, Scores,
    Session, SessionInfo, TokensView,
};
use karat::run::{Backends, Brought, Cancel, LoadedBackend, Notice, Origin, evaluate_brought};
use karat::suite::Suite;
use karat_hostile::Bigram;
use serde_json::json;

/// Rows that were asked of the backend.
#[derive(Default)]
struct Asked {
    scored: AtomicUsize,
    generated: AtomicUsize,
}

/// The bigram backend under any description: counts what it is asked, and opens what it cannot do
/// as what it can.
#[derive(Clone)]
struct Counting {
    descriptor: Descriptor,
    /// SHA-256 of the plugin, if it were one.
    sha256: Option<String>,
    asked: Arc<Asked>,
}

struct Counted {
    session: Box<dyn Session>,
    asked: Arc<Asked>,
}

impl Backend for Counting {
    fn describe(&self) -> Descriptor {
        self.descriptor.clone()
    }
    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>, BackendError> {
        let plain = OpenConfig { dtype: Dtype::F32, adapter: None, ..config.clone() };
        Ok(Box::new(Counted { session: Bigram.open(&plain)?, asked: self.asked.clone() }))
    }
}

impl Session for Counted {
    fn evaluator(&mut self) -> Option<&mut dyn Evaluator> {
        Some(self)
    }
    fn info(&self) -> SessionInfo {
        self.session.info()
    }
}

impl Evaluator for Counted {
    fn score(&mut self, tokens: TokensView<'_>, sink: &mut dyn EventSink) -> Result<Scores, BackendError> {
        self.asked.scored.fetch_add(tokens.rows(), Ordering::Relaxed);
        self.session.evaluator().unwrap().score(tokens, sink)
    }
    fn generate(
        &mut self,
        prompts: TokensView<'_>,
        config: &GenerateConfig,
        sink: &mut dyn EventSink,
    ) -> Result<Vec<Completion>, BackendError> {
        self.asked.generated.fetch_add(prompts.rows(), Ordering::Relaxed);
        self.session.evaluator().unwrap().generate(prompts, config, sink)
    }
}

impl Backends for Counting {
    fn backend(&self, _: &str) -> karat::Result<LoadedBackend> {
        Ok(LoadedBackend {
            backend: Arc::new(self.clone()),
            origin: Origin { path: None, sha256: self.sha256.clone() },
        })
    }
}

const ITEMS: usize = 12;

/// A place with a model and items, whose parts can be changed one by one.
struct Place {
    folder: tempfile::TempDir,
    overrides: Vec<String>,
    backend: Counting,
    adapter: Option<PathBuf>,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        tiny::model(&folder.path().join("base"));
        let place = Place {
            folder,
            overrides: Vec::new(),
            backend: Counting { descriptor: Bigram.describe(), sha256: None, asked: Arc::default() },
            adapter: None,
        };
        place.questions(|i| format!("q{i}"));
        let train: String =
            (0..20).map(|i| json!({"question": format!("t{i}"), "answer": "u"}).to_string() + "\n").collect();
        std::fs::write(place.path("train.jsonl"), train).unwrap();
        for (name, a) in [("one", 1.0), ("two", 2.0)] {
            std::fs::create_dir(place.path(name)).unwrap();
            place.write_adapter(name, a);
            std::fs::write(place.path(name).join("adapter_config.json"), "{}").unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn questions(&self, question: impl Fn(usize) -> String) {
        let row = |i| json!({"id": format!("i{i}"), "question": question(i), "answer": format!("a{i}")}).to_string();
        std::fs::write(self.path("heldout.jsonl"), (0..ITEMS).map(|i| row(i) + "\n").collect::<String>()).unwrap();
    }

    /// An adapter that changes nothing, `B` being zero: this backend ignores it, and that must not
    /// be taken for a fault.
    fn write_adapter(&self, name: &str, a: f32) {
        let header = json!({
            "m.lora_A.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]},
            "m.lora_B.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [4, 8]},
        })
        .to_string();
        let parts = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &a.to_le_bytes(), &[0; 4]];
        std::fs::write(self.path(name).join("adapter_model.safetensors"), parts.concat()).unwrap();
    }

    fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.path("base").join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} has no {from}");
        std::fs::write(path, text.replace(from, to)).unwrap();
    }

    fn set(&mut self, overrides: &[&str]) {
        self.overrides.extend(overrides.iter().map(|o| (*o).to_string()));
    }

    /// Evaluates, and says how many rows were scored and generated for it.
    fn evaluate(&self) -> (usize, usize) {
        let text = "name = \"tiny\"\n[data]\ntrain = \"train.jsonl\"\nheldout = \"heldout.jsonl\"\noutput = \"recipe\"\n\
                    [model]\nbase = \"base\"\nbackend = \"bigram\"\n[stats]\nresamples = 100\n\
                    [eval]\nmax_new_tokens = 4\nmetrics = [\"nll\", \"exact_match\"]\n";
        let suite = Suite::parse(text, &self.path("suite.toml"), &self.overrides).unwrap();
        let before = self.counts();
        let brought = Brought { name: "m".into(), model: self.path("base"), adapter: self.adapter.clone() };
        let mut quiet = |_: Notice<'_>| {};
        evaluate_brought(&suite, brought, &self.path("out"), &self.backend, &mut quiet, &Cancel::new()).unwrap();
        let after = self.counts();
        (after.0 - before.0, after.1 - before.1)
    }

    fn counts(&self) -> (usize, usize) {
        let asked = &self.backend.asked;
        (asked.scored.load(Ordering::Relaxed), asked.generated.load(Ordering::Relaxed))
    }
}

/// Evaluates, changes one thing, evaluates, and again: how many rows were scored and generated
/// after the change. The same again must find everything.
fn after(change: impl Fn(&mut Place)) -> (usize, usize) {
    let mut place = Place::new();
    assert_eq!(place.evaluate(), (ITEMS, ITEMS));
    assert_eq!(place.evaluate(), (0, 0), "the same again");
    change(&mut place);
    let changed = place.evaluate();
    assert_eq!(place.evaluate(), (0, 0), "the changed again");
    changed
}

const ALL: (usize, usize) = (ITEMS, ITEMS);
/// With an adapter every item here is also a probe: scored with it and without; the texts are those of
/// the evaluation.
const PROVED: (usize, usize) = (3 * ITEMS, ITEMS);
/// The same where the base's scores of the probe are known from another adapter.
const PROVED_AGAIN: (usize, usize) = (2 * ITEMS, ITEMS);
const TEXTS: (usize, usize) = (0, ITEMS);
const NOTHING: (usize, usize) = (0, 0);

#[test]
fn other_weights_are_another_model() {
    assert_eq!(after(|p| Bigram::write_model(&p.path("base"), 258, 4).unwrap()), ALL);
}

#[test]
fn another_adapter_is_another_model_even_in_the_same_folder() {
    assert_eq!(after(|p| p.adapter = Some(p.path("one"))), PROVED);
    let with_adapter = |p: &mut Place, name: &str| p.adapter = Some(p.path(name));
    let mut place = Place::new();
    with_adapter(&mut place, "one");
    assert_eq!(place.evaluate(), PROVED);
    with_adapter(&mut place, "two");
    assert_eq!(place.evaluate(), PROVED_AGAIN);
    with_adapter(&mut place, "one");
    assert_eq!(place.evaluate(), NOTHING);
    place.write_adapter("one", 3.0);
    assert_eq!(place.evaluate(), PROVED_AGAIN);
}

#[test]
fn another_tokenizer_reads_the_same_ids_as_other_texts() {
    // Two tokens that occur nowhere change places: every rendered id stays as it was.
    let swap = |p: &mut Place| {
        p.edit("tokenizer.json", "\"X\":88", "\"X\":0.5");
        p.edit("tokenizer.json", "\"Y\":89", "\"Y\":88");
        p.edit("tokenizer.json", "\"X\":0.5", "\"X\":89");
    };
    assert_eq!(after(swap), ALL);
}

#[test]
fn another_template_renders_other_ids() {
    assert_eq!(after(|p| p.edit("chat_template.jinja", "}}|{%", "}}#{%")), ALL);
}

#[test]
fn a_changed_question_costs_its_own_row() {
    let change = |p: &mut Place| p.questions(|i| if i == 3 { "other".into() } else { format!("q{i}") });
    assert_eq!(after(change), (1, 1));
    // A reference is scored, not asked.
    let change = |p: &mut Place| {
        let path = p.path("heldout.jsonl");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, text.replace("\"answer\":\"a5\"", "\"answer\":\"b5\"")).unwrap();
    };
    assert_eq!(after(change), (1, 0));
}

#[test]
fn another_backend_version_or_build_is_another_model() {
    assert_eq!(after(|p| p.backend.descriptor.name = "other".into()), ALL);
    assert_eq!(after(|p| p.backend.descriptor.version = "9".into()), ALL);
    let build = BTreeMap::from([("blas".to_string(), "2".to_string())]);
    assert_eq!(after(|p| p.backend.descriptor.build.clone_from(&build)), ALL);
}

#[test]
fn answers_of_another_build_of_the_plugin_are_not_served() {
    assert_eq!(after(|p| p.backend.sha256 = Some("a".repeat(64))), ALL);
    let mut place = Place::new();
    for (sha256, asked) in [("a", ALL), ("b", ALL), ("a", NOTHING)] {
        place.backend.sha256 = Some(sha256.repeat(64));
        assert_eq!(place.evaluate(), asked, "{sha256}");
    }
    // What was found of an adapter is an answer too.
    place.adapter = Some(place.path("one"));
    for (sha256, asked) in [("a", PROVED), ("b", PROVED), ("a", NOTHING)] {
        place.backend.sha256 = Some(sha256.repeat(64));
        assert_eq!(place.evaluate(), asked, "{sha256} with an adapter");
    }
}

#[test]
fn another_device_or_element_type_is_another_model() {
    assert_eq!(after(|p| p.set(&["model.device=auto"])), ALL);
    assert_eq!(after(|p| p.set(&["model.dtype=bf16"])), ALL);
}

#[test]
fn decode_settings_decide_the_texts_and_find_the_scores_again() {
    for setting in ["eval.max_new_tokens=5", "eval.temperature=0.5", "seed=7", "eval.top_k=3", "eval.top_p=0.9"] {
        assert_eq!(after(|p| p.set(&[setting])), TEXTS, "{setting}");
    }
    // What ends a text is a decode setting too; the reference then ends otherwise as well.
    assert_eq!(after(|p| p.set(&["data.end=eos"])), ALL);
    for seed in ["seed=1", "seed=2"] {
        let mut place = Place::new();
        place.set(&["eval.temperature=0.5"]);
        assert_eq!(place.evaluate(), ALL);
        place.set(&[seed]);
        assert_eq!(place.evaluate(), TEXTS, "{seed}");
    }
}

#[test]
fn what_decides_nothing_is_no_part_of_the_key() {
    for setting in ["eval.batch_size=3", "model.threads=2", "eval.show=1", "stats.resamples=120", "title=x"] {
        assert_eq!(after(|p| p.set(&[setting])), NOTHING, "{setting}");
    }
}

#[test]
fn options_of_a_choice_are_scored_once_and_again_when_they_change() {
    let write = |p: &Place, other: &str| {
        let row = |i: usize| {
            let wrong = if i == 2 { other } else { "w" };
            json!({"id": format!("i{i}"), "question": format!("q{i}"), "answer": "r", "options": ["r", wrong, "x"]})
        };
        let text: String = (0..ITEMS).map(|i| row(i).to_string() + "\n").collect();
        std::fs::write(p.path("heldout.jsonl"), text).unwrap();
    };
    let mut place = Place::new();
    place.set(&["data.choices=text"]);
    write(&place, "w");
    assert_eq!(place.evaluate(), (4 * ITEMS, ITEMS), "the reference and three options");
    assert_eq!(place.evaluate(), NOTHING);
    write(&place, "v");
    // Hidden options change no prompt.
    assert_eq!(place.evaluate(), (4, 0));
    place.set(&["data.choices=letter"]);
    assert_eq!(place.evaluate(), (4 * ITEMS, ITEMS));
}

#[test]
fn the_accuracies_are_those_of_the_sums_by_hand() {
    let place = Place::new();
    let row = json!({"id": "i", "question": "q", "answer": "bb", "options": ["a", "bb", "cé"]});
    std::fs::write(place.path("heldout.jsonl"), row.to_string() + "\n").unwrap();
    let text = "name = \"tiny\"\n[data]\ntrain = \"train.jsonl\"\nheldout = \"heldout.jsonl\"\noutput = \"recipe\"\n\
                choices = \"text\"\n[model]\nbase = \"base\"\nbackend = \"bigram\"\n\
                [eval]\nmax_new_tokens = 2\nmetrics = [\"acc\", \"acc_norm\", \"acc_bytes\", \"acc_extracted\", \"unparsed\"]\n";
    let suite = Suite::parse(text, &place.path("suite.toml"), &[]).unwrap();
    let brought = Brought { name: "m".into(), model: place.path("base"), adapter: None };
    let mut quiet = |_: Notice<'_>| {};
    let report =
        evaluate_brought(&suite, brought, &place.path("out"), &place.backend, &mut quiet, &Cancel::new()).unwrap();
    // A bigram model: the first byte follows the separator's last one, a space; every other its
    // predecessor.
    let table = table(&place.path("base"));
    let sum = |text: &str| {
        let bytes: Vec<usize> = std::iter::once(b' ').chain(text.bytes()).map(usize::from).collect();
        bytes.windows(2).map(|w| log_softmax(&table[w[0]])[w[1]]).sum::<f64>()
    };
    let options = ["a", "bb", "cé"];
    let best = |length: fn(&str) -> usize| {
        let value = |i: &usize| sum(options[*i]) / length(options[*i]) as f64;
        (0..3).max_by(|a, b| value(a).total_cmp(&value(b))).unwrap()
    };
    let metrics = &report.items[0].models["m"].metrics;
    let right = |at: usize| Some(f64::from(u8::from(at == 1)));
    assert_eq!(metrics["acc"], right(best(|_| 1)));
    assert_eq!(metrics["acc_norm"], right(best(|t| t.chars().count())));
    assert_eq!(metrics["acc_bytes"], right(best(str::len)));
    let recorded = karat::run::Recorded::read_all(&place.path("out/results")).unwrap();
    let scores = &recorded[0].references[0].options;
    for (score, text) in scores.iter().zip(options) {
        assert!((score.logprob - sum(text)).abs() < 1e-5, "{text}: {} against {}", score.logprob, sum(text));
        assert_eq!((score.tokens, score.bytes), (text.len() as u64, text.len() as u64));
        assert_eq!(score.characters, text.chars().count() as u64);
    }
    assert_eq!(scores.len(), 3);
}

/// The logits of the bigram model in a folder.
fn table(folder: &Path) -> Vec<Vec<f64>> {
    let text = std::fs::read_to_string(folder.join("bigram.json")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let vocab = value["vocab"].as_u64().unwrap() as usize;
    let logits: Vec<f64> = value["logits"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    logits.chunks(vocab).map(<[f64]>::to_vec).collect()
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|l| (l - top).exp()).sum();
    logits.iter().map(|l| l - top - sum.ln()).collect()
}

#[test]
fn metrics_of_choices_need_items_with_options() {
    let mut place = Place::new();
    place.set(&["eval.metrics=[\"acc_norm\"]"]);
    let suite = "name = \"tiny\"\n[data]\ntrain = \"train.jsonl\"\nheldout = \"heldout.jsonl\"\noutput = \"recipe\"\n\
                 [model]\nbase = \"base\"\nbackend = \"bigram\"\n";
    let suite = Suite::parse(suite, &place.path("suite.toml"), &place.overrides).unwrap();
    let error = karat::run::prepare(&suite).unwrap_err();
    assert_eq!(error.kind(), karat::ErrorKind::Usage);
    assert!(error.to_string().contains("acc_norm"), "{error}");
}
