//! A suite whose model and data are named by ids of a hub: what it becomes, what is stored of it,
//! and what happens when a branch moves.
#![cfg(feature = "hub")]
#![allow(clippy::unwrap_used)]

#[path = "../hub/tests/mock/mod.rs"]
mod mock;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use karat::hub::client::{Settings, Silent};
use karat::hub::{Access, allow, moved};
use karat::suite::{Overrides, Paths, Suite};
use karat::{ErrorKind, Result};
use mock::MockHub;

/// How ids are fetched is one thing in a process: one test at a time.
static ONE: Mutex<()> = Mutex::new(());

struct Place {
    folder: tempfile::TempDir,
    hub: MockHub,
    _one: MutexGuard<'static, ()>,
}

impl Place {
    fn new() -> Place {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let place = Place { folder: tempfile::tempdir().unwrap(), hub: MockHub::start(), _one: one };
        place.push_model(b"{}");
        let card = b"---\nlicense: cc0-1.0\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: a.jsonl\n  - split: test\n    path: b.jsonl\n---\n";
        place.hub.push("datasets/o/d", "main", &[("README.md", card), ("a.jsonl", b"{}\n"), ("b.jsonl", b"{}\n")]);
        place.hub.push("datasets/o/two", "main", &[("train-0.jsonl", b"{}\n"), ("train-1.jsonl", b"{}\n")]);
        place.go(false);
        place
    }

    fn push_model(&self, config: &[u8]) -> String {
        self.hub.push("models/o/m", "main", &[("config.json", config), ("model.safetensors", b"weights")])
    }

    fn go(&self, offline: bool) {
        let mut settings = Settings::of(&|_| None);
        settings.hf_endpoint.clone_from(&self.hub.url);
        settings.hf_cache = self.folder.path().join("hf");
        settings.offline = offline;
        allow(Access { settings, progress: Arc::new(Silent) });
    }

    fn suite(&self, data: &str, pins: &BTreeMap<String, String>) -> Result<Suite> {
        let text = format!("name = \"x\"\n[data]\n{data}\n[model]\nbase = \"hf:o/m\"\n");
        self.parse(&text, pins)
    }

    fn parse(&self, text: &str, pins: &BTreeMap<String, String>) -> Result<Suite> {
        let overrides = Overrides { pins: pins.clone(), ..Overrides::default() };
        Suite::parse_with(text, &self.folder.path().join("suite.toml"), &overrides)
    }
}

const BOTH: &str = "train = \"hf:o/d\"\nheldout = \"hf:o/d\"";

fn named(paths: &Option<Paths>) -> &str {
    let path = paths.iter().flat_map(Paths::iter).next().unwrap();
    path.file_name().unwrap().to_str().unwrap()
}

#[test]
fn ids_become_paths_and_are_stored_as_ids_with_their_commits() {
    let place = Place::new();
    let suite = place.suite(BOTH, &BTreeMap::new()).unwrap();
    assert!(suite.model.base.join("config.json").is_file());
    assert_eq!((named(&suite.data.train), named(&suite.data.heldout)), ("a.jsonl", "b.jsonl"));
    let keys: Vec<&str> = suite.sources.iter().map(|source| source.key.as_str()).collect();
    assert_eq!(keys, ["data.train", "data.heldout", "model.base"]);
    assert_eq!(suite.sources[0].licence.as_deref(), Some("cc0-1.0"));
    assert_eq!(suite.sources[0].files.len(), 1);
    let stored = suite.to_toml().unwrap();
    assert!(stored.contains("base = \"hf:o/m\"") && stored.contains("[pins]"), "{stored}");
    assert!(!stored.contains(place.folder.path().to_str().unwrap()), "{stored}");
    assert_eq!(suite.pins["hf:o/m"], suite.sources[2].state);
    // From what is stored the same suite comes, and nobody is asked anything.
    place.hub.take_requests();
    assert_eq!(place.parse(&stored, &BTreeMap::new()).unwrap(), suite);
    assert_eq!(place.hub.take_requests(), Vec::<String>::new());
    place.go(true);
    assert_eq!(place.suite(BOTH, &BTreeMap::new()).unwrap().sources, suite.sources);
}

#[test]
fn a_run_that_goes_on_stays_with_its_commit_and_one_that_begins_anew_does_not() {
    let place = Place::new();
    let first = place.suite(BOTH, &BTreeMap::new()).unwrap();
    let commit = place.push_model(b"{\"moved\": true}");
    let going_on = place.suite(BOTH, &first.pins).unwrap();
    assert_eq!((&going_on.sources, &going_on.model.base), (&first.sources, &first.model.base));
    let anew = place.suite(BOTH, &BTreeMap::new()).unwrap();
    assert_eq!(anew.pins["hf:o/m"], commit);
    let facts = moved(&first.sources, &anew.sources);
    assert_eq!(facts.len(), 1);
    assert!(facts[0].to_string().starts_with("main of hf:o/m moved from "), "{}", facts[0]);
    // Another revision is another thing: what `main` was pinned to says nothing of it.
    place.hub.push("models/o/m", "v2", &[("config.json", b"[]"), ("model.safetensors", b"other")]);
    let text = "name = \"x\"\n[data]\nfile = \"hf:o/d/a.jsonl\"\n[model]\nbase = \"hf:o/m@v2\"\n";
    assert_ne!(place.parse(text, &first.pins).unwrap().model.base, first.model.base);
}

#[test]
fn an_override_may_be_an_id_and_a_suite_may_pin_one_itself() {
    let place = Place::new();
    let first = place.suite(BOTH, &BTreeMap::new()).unwrap();
    place.push_model(b"{\"moved\": true}");
    let pin = &first.pins["hf:o/m"];
    let text = format!("name = \"x\"\n[data]\n{BOTH}\n[model]\nbase = \"hf:o/m\"\n[pins]\n\"hf:o/m\" = \"{pin}\"\n");
    assert_eq!(place.parse(&text, &BTreeMap::new()).unwrap().model.base, first.model.base);
    let set = Overrides { set: vec!["model.base=hf:o/m".into()], ..Overrides::default() };
    let text = format!("name = \"x\"\n[data]\n{BOTH}\n[model]\nbase = \"nowhere\"\n");
    let suite = Suite::parse_with(&text, &place.folder.path().join("suite.toml"), &set).unwrap();
    assert_eq!(suite.sources[2].id, "hf:o/m");
}

#[test]
fn several_files_of_a_split_are_read_from_their_folder() {
    let place = Place::new();
    let suite = place.suite("file = \"hf:o/two\"", &BTreeMap::new()).unwrap();
    let source = suite.sources.iter().find(|source| source.key == "data.file").unwrap();
    let used: Vec<&str> = source.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(used, ["train-0.jsonl", "train-1.jsonl"]);
    let found = karat::data::files::found(&source.local, karat::data::files::Part::Train).unwrap();
    let read: Vec<&str> = found.files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(read, used);
    let one = place.suite("file = \"hf:o/two/train-1.jsonl\"", &BTreeMap::new()).unwrap();
    assert_eq!(named(&one.data.file), "train-1.jsonl");
    let error =
        place.suite("train = \"hf:o/d\"\nvalidation = \"hf:o/d\"\nheldout = \"hf:o/d\"", &BTreeMap::new()).unwrap_err();
    assert!(error.what().contains("no files of the split \"validation\""), "{error}");
}

#[test]
fn what_the_hub_refuses_is_the_suites_error() {
    let place = Place::new();
    let text = "name = \"x\"\n[data]\nfile = \"hf:o/d/a.jsonl\"\n[model]\nbase = \"hf:o/nothing\"\n";
    let error = place.parse(text, &BTreeMap::new()).unwrap_err();
    assert!(error.kind() == ErrorKind::Usage && error.place() == Some("hf:o/nothing"), "{error}");
}
