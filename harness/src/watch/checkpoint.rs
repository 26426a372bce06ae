//! The checkpoints in a trainer's output folder: which there are, and when one is whole.
//!
//! Trainers write a checkpoint under its final name (transformers' `Trainer` does, shard by shard,
//! the index last) or under a temporary one that they rename. So neither a name nor a file says
//! that the writing has ended: the files that a model is read from must all be there with the size
//! that their headers state, and nothing of them may have changed for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use karat_system::safetensors::{INDEX, WEIGHTS, read_header};
use serde_json::Value;

use crate::backend::peft::ADAPTER_CONFIG;
use crate::error::{Error, Result};
use crate::fsio::{self, is_of_model, sha256};
use crate::model_dir::is_weights;

/// The name of a model that lies in the output folder itself.
pub const FINAL: &str = "final";
/// What a checkpoint's folder is called before its step.
const PREFIXES: [&str; 3] = ["checkpoint", "global_step", "step"];
/// The file that says what a model is.
const CONFIG: &str = "config.json";
/// The weights of an adapter.
const ADAPTER: &str = "adapter_model.safetensors";
/// Where transformers' `Trainer` keeps the step.
const TRAINER_STATE: &str = "trainer_state.json";

/// A folder that is, or is becoming, a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// What it is called in the history: its folder's name, [`FINAL`] for the output folder itself.
    pub name: String,
    /// The optimizer step after which it was written; none where nobody says.
    pub step: Option<u64>,
    /// Its folder.
    pub path: PathBuf,
}

/// How far a checkpoint has come.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// All that a model is read from is there.
    Whole(Seen),
    /// Something is not there yet, which the text says.
    Partial(String, Seen),
    /// The folder, or a file of it, went away while it was looked at.
    Gone,
}

/// What a look at the files of a checkpoint saw, without reading their content.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// A digest of names, sizes and times: as long as it is the same, nothing was written.
    pub stamp: String,
    /// When something of it last changed, by the file system's clock.
    pub changed: SystemTime,
    /// Whether it is an adapter.
    pub adapter: bool,
}

impl Seen {
    /// Whether the last change is `quiet` ago by this machine's clock. A time in the future is of
    /// another clock, and says nothing.
    pub fn is_quiet(&self, quiet: Duration) -> bool {
        SystemTime::now().duration_since(self.changed).is_ok_and(|ago| ago >= quiet)
    }
}

/// The checkpoints below `folder` and the model in it, in the order of their steps; a model of
/// unknown step comes last. Folders under temporary names are none.
///
/// # Errors
/// I/O, but for a folder that is not there: it holds none.
pub fn find(folder: &Path) -> Result<Vec<Checkpoint>> {
    let fail = |e| Error::io("read the folder", folder, e);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(fail(e)),
    };
    let (mut found, mut own) = (Vec::new(), false);
    for entry in entries {
        let entry = entry.map_err(fail)?;
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        own |= is_weights(&name);
        if let Some(step) = step_of(&name).filter(|_| path.is_dir()) {
            found.push(Checkpoint { name, step: Some(step), path });
        }
    }
    // Steps are numbers: checkpoint-1000 comes after checkpoint-200.
    found.sort_by(|a, b| (a.step, &a.name).cmp(&(b.step, &b.name)));
    if own {
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        found.push(match step_of(&name) {
            // A checkpoint was named, not the folder that it lies in.
            Some(step) => Checkpoint { name, step: Some(step), path: folder.into() },
            None => Checkpoint { name: FINAL.into(), step: stated_step(folder), path: folder.into() },
        });
    }
    Ok(found)
}

/// The step in a folder's name, such as `checkpoint-200`.
fn step_of(name: &str) -> Option<u64> {
    let rest = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix))?;
    rest.strip_prefix(['-', '_']).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
}

/// The step that the trainer's own state says.
fn stated_step(folder: &Path) -> Option<u64> {
    fsio::read_json::<Value>(&folder.join(TRAINER_STATE)).ok()?["global_step"].as_u64()
}

/// Whether a model is read from a file of this name. Trainers keep logs and results beside a model,
/// which go on changing.
fn is_read(name: &str) -> bool {
    const OTHERS: [&str; 10] = [
        CONFIG,
        ADAPTER_CONFIG,
        INDEX,
        "pytorch_model.bin.index.json",
        "generation_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
    ];
    is_of_model(name) && (is_weights(name) || OTHERS.contains(&name) || name.starts_with("tokenizer"))
}

/// Looks at a checkpoint's files, of weights at their headers alone.
///
/// # Errors
/// I/O, but for what is not there.
pub fn look(checkpoint: &Checkpoint) -> Result<State> {
    let folder = &checkpoint.path;
    let gone_or = |error: Error| match folder.is_dir() {
        true => Err(error),
        false => Ok(State::Gone),
    };
    let seen = match see(checkpoint) {
        Ok(seen) => seen,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(State::Gone),
        Err(e) => return gone_or(Error::io("read the folder", folder, e)),
    };
    let missing = missing(folder, seen.adapter);
    if !folder.is_dir() {
        return Ok(State::Gone);
    }
    Ok(match missing {
        None => State::Whole(seen),
        Some(what) => State::Partial(what, seen),
    })
}

fn see(checkpoint: &Checkpoint) -> io::Result<Seen> {
    let folder = &checkpoint.path;
    let mut files: BTreeMap<String, Metadata> = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_read(&name) {
            // Through a link, as it will be read.
            files.insert(name, fs::metadata(entry.path())?);
        }
    }
    let mut changed = UNIX_EPOCH;
    // A new name in a checkpoint's own folder is a change too; the output folder has others.
    if checkpoint.name != FINAL {
        changed = last_change(&fs::metadata(folder)?);
    }
    let mut text = String::new();
    for (name, file) in &files {
        changed = changed.max(last_change(file));
        text.push_str(&format!("{name}\0{}\0{}\n", file.len(), identity(file)));
    }
    let model = files.keys().any(|name| is_weights(name) && !name.starts_with("adapter_model"));
    let adapter = files.contains_key(ADAPTER_CONFIG) && !model;
    Ok(Seen { stamp: sha256(text.as_bytes())[..16].into(), changed, adapter })
}

/// When a file was last written, or came to be here: a copy may keep the times of its original, but
/// not the time of its inode.
#[cfg(unix)]
fn last_change(file: &Metadata) -> SystemTime {
    use std::os::unix::fs::MetadataExt;
    let since = |seconds: i64, nanos: i64| {
        UNIX_EPOCH + Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanos).unwrap_or(0))
    };
    since(file.ctime(), file.ctime_nsec()).max(since(file.mtime(), file.mtime_nsec()))
}

#[cfg(not(unix))]
fn last_change(file: &Metadata) -> SystemTime {
    file.modified().unwrap_or(UNIX_EPOCH)
}

/// What changes when a file of one length takes the place of another.
#[cfg(unix)]
fn identity(file: &Metadata) -> String {
    use std::os::unix::fs::MetadataExt;
    format!("{}.{} {}.{} {}", file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec(), file.ino())
}

#[cfg(not(unix))]
fn identity(file: &Metadata) -> String {
    format!("{:?}", file.modified().ok())
}

/// What of a checkpoint is not there yet; none where all is.
fn missing(folder: &Path, adapter: bool) -> Option<String> {
    let config = if adapter { ADAPTER_CONFIG } else { CONFIG };
    if !folder.join(config).is_file() {
        return Some(match adapter {
            false => format!("there is neither {CONFIG} nor {ADAPTER_CONFIG}"),
            true => format!("there is no {config}"),
        });
    }
    if adapter {
        return match (folder.join(ADAPTER).is_file(), folder.join("adapter_model.bin").is_file()) {
            (true, _) => unfinished(folder, ADAPTER),
            (false, true) => None,
            (false, false) => Some(format!("there is no {ADAPTER}")),
        };
    }
    if folder.join(INDEX).is_file() {
        return unfinished_shards(folder);
    }
    if folder.join(WEIGHTS).is_file() {
        return unfinished(folder, WEIGHTS);
    }
    let names = names(folder);
    if names.iter().any(|name| name.starts_with("model-") && name.ends_with(".safetensors")) {
        return Some(format!("there are shards, and no {INDEX}"));
    }
    // torch's own format states no sizes; a backend says whether it reads it.
    match names.iter().any(|name| name.starts_with("pytorch_model") && name.ends_with(".bin")) {
        true => None,
        false => Some(format!("there are no weights ({WEIGHTS})")),
    }
}

/// Whether a folder holds weights, if only in part: one without any is no broken checkpoint but a new
/// one, or one of another kind.
pub fn has_weights(checkpoint: &Checkpoint) -> bool {
    names(&checkpoint.path).iter().any(|name| is_weights(name))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Whether `name` is shorter than its header says. A file that is no safetensors file at all is
/// taken for whole: it stays what it is, and whoever opens it says what is wrong with it.
fn unfinished(folder: &Path, name: &str) -> Option<String> {
    let path = folder.join(name);
    match read_header(&path) {
        Ok(_) => None,
        Err(_) if !path.is_file() => Some(format!("{name} is not there")),
        Err(error) => {
            let cut = error.what().starts_with("truncated") && !states_nonsense(&path);
            cut.then(|| format!("{name} is {}", error.what()))
        }
    }
}

/// Whether a file begins with the length of a header that no safetensors file has: it will not
/// become one by what is still written.
fn states_nonsense(path: &Path) -> bool {
    const LARGEST_HEADER: u64 = 100_000_000;
    let mut length = [0; 8];
    let read = fs::File::open(path).and_then(|mut file| file.read_exact(&mut length));
    read.is_ok() && u64::from_le_bytes(length) > LARGEST_HEADER
}

/// What is missing of the shards that the index names; none of an index that cannot be read, which
/// whoever opens the model says.
fn unfinished_shards(folder: &Path) -> Option<String> {
    let index = fsio::read_json::<Value>(&folder.join(INDEX)).ok()?;
    let named: BTreeSet<&str> = index["weight_map"].as_object()?.values().filter_map(Value::as_str).collect();
    // What is no file name is for whoever opens it to refuse.
    let mut shards = named.iter().filter(|name| !name.contains(['/', '\\']));
    let what = shards.find_map(|name| unfinished(folder, name))?;
    Some(format!("{what}; the index names {} shards", named.len()))
}

/// SHA-256 over the content of all that a model is read from: weights, configuration, tokenizer.
///
/// # Errors
/// I/O.
pub fn digest(checkpoint: &Checkpoint) -> Result<String> {
    Ok(fsio::sha256_digests(&fsio::digests(&checkpoint.path, is_read)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_dir::check_files;
    use serde_json::json;

    /// A safetensors file with one tensor of `name`.
    fn weights(name: &str) -> Vec<u8> {
        let header = json!({name: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).to_string();
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[1; 4]].concat()
    }

    fn put(folder: &Path, files: &[(&str, &[u8])]) {
        fs::create_dir_all(folder).unwrap();
        files.iter().for_each(|(name, bytes)| fs::write(folder.join(name), bytes).unwrap());
    }

    fn at(path: &Path) -> Checkpoint {
        Checkpoint { name: "checkpoint-1".into(), step: Some(1), path: path.into() }
    }

    /// What is missing; none where all is there.
    fn lacks(path: &Path) -> Option<String> {
        match look(&at(path)).unwrap() {
            State::Whole(_) => None,
            State::Partial(what, _) => Some(what),
            State::Gone => panic!("gone"),
        }
    }

    #[test]
    fn checkpoints_are_found_in_the_order_of_their_steps_and_other_folders_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let others =
            ["tmp-checkpoint-9", "checkpoint-best", "checkpoint-", "runs", "checkpoint-3.old", ".checkpoint-4"];
        for name in ["checkpoint-1000", "checkpoint-200", "step_30", "global_step-4"].iter().chain(&others) {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("checkpoint-7"), "a file").unwrap();
        let names = || find(folder.path()).unwrap().into_iter().map(|c| (c.name, c.step)).collect::<Vec<_>>();
        let in_order: Vec<(String, Option<u64>)> =
            [("global_step-4", 4), ("step_30", 30), ("checkpoint-200", 200), ("checkpoint-1000", 1000)]
                .map(|(name, step)| (name.to_string(), Some(step)))
                .into();
        assert_eq!(names(), in_order);
        put(folder.path(), &[("adapter_model.safetensors", b""), ("trainer_state.json", br#"{"global_step": 1000}"#)]);
        assert_eq!(names()[4..], [(FINAL.to_string(), Some(1000))]);
        fs::remove_file(folder.path().join("trainer_state.json")).unwrap();
        assert_eq!(names()[4..], [(FINAL.to_string(), None)]);
        assert_eq!(find(&folder.path().join("missing")).unwrap(), []);
        let own = folder.path().join("checkpoint-200");
        put(&own, &[("model.safetensors", b"")]);
        assert_eq!(find(&own).unwrap()[0].step, Some(200), "one checkpoint may be named itself");
    }

    #[test]
    fn a_checkpoint_is_whole_when_its_last_byte_is_there_in_whatever_order_files_come() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint-1");
        let index = json!({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}).to_string();
        let (a, b) = (weights("a"), weights("b"));
        let files: [(&str, &[u8]); 4] =
            [("config.json", b"{}"), ("1.safetensors", &a), ("2.safetensors", &b), (INDEX, index.as_bytes())];
        for first in 0..4 {
            let _ = fs::remove_dir_all(&path);
            for k in 0..4 {
                let (name, bytes) = files[(first + k) % 4];
                // Half of a shard is seen by its size; half of a small file by the quiet time alone.
                put(&path, &[(name, &bytes[..bytes.len() / 2])]);
                assert!(lacks(&path).is_some() || !name.ends_with(".safetensors"), "half of {name}");
                put(&path, &[(name, bytes)]);
                assert_eq!(lacks(&path).is_none(), k == 3, "{name}: {:?}", lacks(&path));
            }
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint-1");
        let whole = weights("a");
        type Files<'a> = &'a [(&'a str, &'a [u8])];
        let cases: [(Files<'_>, &str); 7] = [
            (&[("optimizer.pt", b"x")], "there is neither config.json nor adapter_config.json"),
            (&[("config.json", b"{}")], "there are no weights (model.safetensors)"),
            (&[("config.json", b"{}"), ("model-00001-of-00002.safetensors", &whole)], "there are shards, and no"),
            (&[("config.json", b"{}"), (WEIGHTS, &whole[..whole.len() - 1])], "model.safetensors is truncated"),
            (&[("config.json", b"{}"), (WEIGHTS, b"")], "model.safetensors is truncated: 0 bytes"),
            (&[("adapter_config.json", b"{}")], "there is no adapter_model.safetensors"),
            (&[("adapter_config.json", b"{}"), (ADAPTER, &whole[..9])], "adapter_model.safetensors is truncated"),
        ];
        for (files, word) in cases {
            let _ = fs::remove_dir_all(&path);
            put(&path, files);
            let what = lacks(&path).unwrap();
            assert!(what.starts_with(word), "{what}");
        }
        // What will never be whole is for whoever opens it to refuse.
        for bytes in [&[7; 64][..], &[0; 64]] {
            put(&path, &[("config.json", b"{}"), (WEIGHTS, bytes)]);
            assert_eq!(lacks(&path), None);
            assert_eq!(check_files(&path).unwrap_err().kind(), crate::ErrorKind::Data);
        }
        fs::remove_dir_all(&path).unwrap();
        assert_eq!(look(&at(&path)).unwrap(), State::Gone);
    }

    #[test]
    fn a_checkpoint_is_known_by_what_a_model_is_read_from_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_path_buf();
        put(&path, &[("config.json", b"{}"), (WEIGHTS, &weights("a")), ("tokenizer.json", b"{}")]);
        let final_model = Checkpoint { name: FINAL.into(), ..at(&path) };
        let seen = |checkpoint: &Checkpoint| match look(checkpoint).unwrap() {
            State::Whole(seen) => seen,
            other => panic!("{other:?}"),
        };
        let (before, bytes) = (seen(&final_model), digest(&final_model).unwrap());
        put(
            &path,
            &[("trainer_log.jsonl", b"{}"), ("all_results.json", b"{}"), ("README.md", b"#"), ("optimizer.pt", b"")],
        );
        assert_eq!((seen(&final_model), digest(&final_model).unwrap()), (before.clone(), bytes.clone()));
        // Written anew with the same bytes it looks different and is the same.
        put(&path, &[("tokenizer.json", b"{}")]);
        assert_ne!(seen(&final_model).stamp, before.stamp);
        assert_eq!(digest(&final_model).unwrap(), bytes);
        put(&path, &[("tokenizer.json", b"[]")]);
        assert_ne!(digest(&final_model).unwrap(), bytes);
        assert!(!seen(&final_model).is_quiet(Duration::from_secs(60)) && seen(&final_model).is_quiet(Duration::ZERO));
    }
}
