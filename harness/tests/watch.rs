//! What happens to a checkpoint while it is read: it is removed, it is overwritten, its backend
//! fails; and that each is opened once.

#![allow(clippy::unwrap_used)]

mod tiny;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use karat::ErrorKind;
use karat::backend::{Backend, BackendError, Descriptor, OpenConfig, Session};
use karat::gate::Rules;
use karat::report::timeline::{Entry, Status, Timeline};
use karat::run::{Backends, Cancel, LoadedBackend, Notice, Origin};
use karat::suite::Suite;
use karat::watch::{Outcome, Watch, watch};
use karat_hostile::Bigram;
use serde_json::json;

/// What is done to the folder of a model before it is opened.
type Before = Box<dyn Fn(&Path) -> Result<(), BackendError> + Send + Sync>;

/// A backend before whose eyes files change.
struct Meanwhile {
    before: Before,
    opened: Mutex<Vec<String>>,
}

impl Backend for Meanwhile {
    fn describe(&self) -> Descriptor {
        Bigram.describe()
    }

    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>, BackendError> {
        let name = config.model.file_name().unwrap().to_string_lossy().into_owned();
        self.opened.lock().unwrap().push(name);
        (self.before)(&config.model)?;
        Bigram.open(config)
    }
}

struct These(Arc<Meanwhile>);

impl Backends for These {
    fn backend(&self, _: &str) -> karat::Result<LoadedBackend> {
        Ok(LoadedBackend { backend: self.0.clone(), origin: Origin::default() })
    }
}

/// A folder with a base and a suite of held-out items alone.
fn place() -> (tempfile::TempDir, Suite) {
    let folder = tempfile::tempdir().unwrap();
    tiny::model(&folder.path().join("base"));
    let item = |i: u32| json!({"question": format!("q{i}"), "answer": format!("a{}", i % 7)}).to_string() + "\n";
    std::fs::write(folder.path().join("items.jsonl"), (0..8).map(item).collect::<String>()).unwrap();
    let text = "name = \"tiny\"\n[data]\nheldout = \"items.jsonl\"\noutput = \"recipe\"\n[model]\nbase = \"base\"\n\
        backend = \"bigram\"\n[stats]\nresamples = 100\n[eval]\nmax_new_tokens = 4\nmetrics = [\"nll\", \"bleu\"]\n";
    let suite = Suite::parse(text, &folder.path().join("suite.toml"), &[]).unwrap();
    (folder, suite)
}

/// A checkpoint of a bigram model, told from others by the bytes of a safetensors file beside it.
fn save(folder: &Path, name: &str, byte: u8) -> PathBuf {
    let checkpoint = folder.join("out").join(name);
    std::fs::create_dir_all(&checkpoint).unwrap();
    for entry in std::fs::read_dir(folder.join("base")).unwrap().map(|entry| entry.unwrap().path()) {
        std::fs::copy(&entry, checkpoint.join(entry.file_name().unwrap())).unwrap();
    }
    let header = br#"{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header, &[byte]].concat();
    std::fs::write(checkpoint.join("model.safetensors"), bytes).unwrap();
    checkpoint
}

struct Found {
    outcome: karat::Result<Outcome>,
    entries: Vec<Entry>,
    opened: Vec<String>,
    said: String,
}

fn once(folder: &Path, suite: &Suite, before: Before) -> Found {
    let backend = Arc::new(Meanwhile { before, opened: Mutex::default() });
    let watched = Watch {
        folder: folder.join("out"),
        out: folder.join("watch"),
        suite,
        baseline: None,
        rules: Rules::default(),
        adapter_base: None,
        interval: Duration::from_millis(10),
        quiet: Duration::from_millis(40),
        once: true,
        fail_fast: false,
    };
    let (mut entries, mut said) = (Vec::new(), String::new());
    let mut observer = |notice: Notice<'_>| said.push_str(&format!("{notice:?}\n"));
    let mut each = |_: &Timeline, entry: &Entry| {
        entries.push(entry.clone());
        Ok(())
    };
    let outcome = watch(&watched, &These(backend.clone()), &mut observer, &mut each, &Cancel::new());
    let opened = backend.opened.lock().unwrap().clone();
    Found { outcome, entries, opened, said }
}

fn status(entries: &[Entry]) -> Vec<(&str, Status)> {
    entries.iter().map(|entry| (entry.name.as_str(), entry.status)).collect()
}

#[test]
fn a_checkpoint_that_is_removed_while_it_is_read_is_said_and_the_others_are_measured() {
    let (folder, suite) = place();
    let place = folder.path();
    (1..=3).for_each(|step| drop(save(place, &format!("checkpoint-{step}"), step)));
    let rotate = |model: &Path| {
        if model.ends_with("checkpoint-2") {
            std::fs::remove_dir_all(model).unwrap();
        }
        Ok(())
    };
    let found = once(place, &suite, Box::new(rotate));
    assert_eq!(found.outcome.unwrap().exit_code(), 0);
    let gone =
        [("checkpoint-1", Status::Measured), ("checkpoint-2", Status::Vanished), ("checkpoint-3", Status::Measured)];
    assert_eq!(status(&found.entries), gone);
    assert_eq!(found.opened, ["base", "checkpoint-1", "checkpoint-2", "checkpoint-3"]);
    // Written once more, it is measured.
    save(place, "checkpoint-2", 2);
    let found = once(place, &suite, Box::new(|_| Ok(())));
    assert_eq!(status(&found.entries), [("checkpoint-2", Status::Measured)]);
    assert_eq!(found.opened, ["checkpoint-2"]);
}

#[test]
fn a_checkpoint_that_is_overwritten_while_it_is_read_is_measured_as_it_is_then() {
    let (folder, suite) = place();
    let place = folder.path().to_path_buf();
    save(&place, "checkpoint-1", 1);
    let times = AtomicUsize::new(0);
    let overwrite = move |model: &Path| {
        if model.ends_with("checkpoint-1") && times.fetch_add(1, Ordering::SeqCst) == 0 {
            save(&place, "checkpoint-1", 9);
        }
        Ok(())
    };
    let found = once(folder.path(), &suite, Box::new(overwrite));
    assert_eq!(status(&found.entries), [("checkpoint-1", Status::Measured)]);
    assert!(found.said.contains("checkpoint-1 changed while it was read"), "{}", found.said);
    assert_eq!(found.opened, ["base", "checkpoint-1", "checkpoint-1"]);
    let digest = &found.entries[0].digest;
    save(folder.path(), "checkpoint-1", 1);
    let other = once(folder.path(), &suite, Box::new(|_| Ok(())));
    assert_ne!(*digest, other.entries[0].digest, "what was measured first was not what had been hashed");
}

#[test]
fn a_failure_of_the_backend_is_tried_again_by_a_later_call_and_not_by_the_same() {
    let (folder, suite) = place();
    let place = folder.path();
    (1..=2).for_each(|step| drop(save(place, &format!("checkpoint-{step}"), step)));
    let full = || -> Before {
        Box::new(|model: &Path| match model.ends_with("checkpoint-1") {
            true => Err(BackendError::failed("out of memory")),
            false => Ok(()),
        })
    };
    let found = once(place, &suite, full());
    let both = [("checkpoint-1", Status::Failed), ("checkpoint-2", Status::Measured)];
    assert_eq!(status(&found.entries), both);
    assert_eq!(found.opened, ["base", "checkpoint-1", "checkpoint-2"]);
    let outcome = found.outcome.unwrap();
    assert_eq!(outcome.exit_code(), ErrorKind::Backend.exit_code());
    assert!(outcome.failure.unwrap().what.contains("out of memory"));
    assert_eq!(once(place, &suite, full()).opened, ["checkpoint-1"]);
    let found = once(place, &suite, Box::new(|_| Ok(())));
    assert_eq!(status(&found.entries), [("checkpoint-1", Status::Measured)]);
    assert_eq!(found.outcome.unwrap().exit_code(), 0);
}

#[test]
fn a_base_that_was_changed_since_is_no_baseline_of_this_history() {
    let (folder, suite) = place();
    let place = folder.path();
    save(place, "checkpoint-1", 1);
    once(place, &suite, Box::new(|_| Ok(()))).outcome.unwrap();
    let config = place.join("base/config.json");
    // The same bytes under another time are the same base.
    std::fs::write(&config, std::fs::read(&config).unwrap()).unwrap();
    once(place, &suite, Box::new(|_| Ok(()))).outcome.unwrap();
    std::fs::write(&config, "{ }").unwrap();
    let error = once(place, &suite, Box::new(|_| Ok(()))).outcome.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.what().contains("another model than the one"), "{error}");
}
