//! `history.jsonl`: one line a checkpoint, appended and never changed.
//!
//! A line ends with a digest of itself. It is written whole and is on the disk before anything goes
//! on; a last line that a kill or a power cut tore is dropped when the file is opened again, and its
//! checkpoint, whose answers are stored beside, is entered anew.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::checkpoint::Checkpoint;
use crate::calendar::date;
use crate::error::{Error, Result};
use crate::exit;
use crate::fsio::sha256;
use crate::report::timeline::{Entry, Status};

/// The file's name.
pub const HISTORY: &str = "history.jsonl";
/// How often bytes that a backend fails on are tried.
const ATTEMPTS: usize = 3;
/// What stands between a line and its digest.
const SEAL: &str = ",\"sha256\":\"";

/// An open history.
pub struct History {
    path: PathBuf,
    file: File,
    entries: Vec<Entry>,
    /// Digests of what was tried since it was opened.
    tried: BTreeSet<String>,
}

impl History {
    /// Opens the history in `folder`, making it if it is not there.
    ///
    /// # Errors
    /// I/O; [`ErrorKind::Data`](crate::ErrorKind::Data) for a whole line that is broken or was
    /// changed, with its number.
    pub fn open(folder: &Path) -> Result<History> {
        let path = folder.join(HISTORY);
        let fail = |e| Error::io("open the history", &path, e);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(fail)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(fail)?;
        // What follows the last line end is no line.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let mut entries = Vec::new();
        for (number, line) in text[..whole].split_inclusive(|byte| *byte == b'\n').enumerate() {
            entries
                .push(read(&line[..line.len() - 1]).map_err(|e| e.at(format!("{}:{}", path.display(), number + 1)))?);
        }
        if whole < text.len() {
            file.set_len(whole as u64).map_err(fail)?;
        }
        file.seek(SeekFrom::Start(whole as u64)).map_err(fail)?;
        // The name must survive a power cut as the lines do.
        #[cfg(unix)]
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)?;
        Ok(History { path, file, entries, tried: BTreeSet::new() })
    }

    /// Adds an entry; it is on the disk when this returns. A mistake of the command line that is the
    /// last word already is not said twice.
    ///
    /// # Errors
    /// I/O, such as a full disk; the lines before it stay.
    pub fn append(&mut self, entry: Entry) -> Result<()> {
        self.tried.insert(entry.digest.clone());
        let again =
            |last: &Entry| (last.status, &last.digest, &last.error) == (entry.status, &entry.digest, &entry.error);
        if entry.error.as_ref().is_some_and(|e| e.exit_code == exit::USAGE) && self.last(&entry.name).is_some_and(again)
        {
            return Ok(());
        }
        let fail = |e| Error::io("append to the history", &self.path, e);
        let line = line(&entry)?;
        let end = self.file.stream_position().map_err(fail)?;
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Half a line would be in the way of the next one.
            let _ = self.file.set_len(end);
            let _ = self.file.seek(SeekFrom::Start(end));
            return Err(fail(error));
        }
        self.entries.push(entry);
        Ok(())
    }

    /// All entries, the oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The last entry of a checkpoint of this name.
    pub fn last(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().rev().find(|entry| entry.name == name)
    }

    /// The last word on these bytes, under whatever name: that they were measured, or could not be.
    /// A failure of the backend may have had to do with the machine (its memory was taken), so that
    /// later calls try again, but not for ever; one of the command line may be mended there.
    pub fn of_digest(&self, digest: &str) -> Option<&Entry> {
        let of_it = |entry: &&Entry| entry.digest == digest && entry.status != Status::Vanished;
        let last = self.entries.iter().rev().find(of_it)?;
        if last.status != Status::Failed || self.tried.contains(digest) {
            return Some(last);
        }
        let settled = match last.error.as_ref().map(|error| error.exit_code) {
            Some(exit::DATA) => true,
            Some(exit::USAGE) => false,
            _ => self.entries.iter().filter(of_it).count() >= ATTEMPTS,
        };
        settled.then_some(last)
    }

    /// Whether the files of a checkpoint are those that its last entry was made of, by their names,
    /// sizes and times.
    pub fn knows(&self, checkpoint: &Checkpoint, stamp: &str) -> bool {
        let same = self.last(&checkpoint.name).filter(|entry| entry.stamp == stamp && entry.status != Status::Vanished);
        same.is_some_and(|entry| self.of_digest(&entry.digest).is_some())
    }
}

/// An entry as a line, sealed.
fn line(entry: &Entry) -> Result<String> {
    let mut text = serde_json::to_string(entry).map_err(|e| Error::failed("could not write JSON").because(e))?;
    text.pop();
    let seal = sha256(text.as_bytes());
    Ok(format!("{text}{SEAL}{}\"}}\n", &seal[..16]))
}

fn read(line: &[u8]) -> Result<Entry> {
    let broken = |what: &str| {
        Error::data(format!("broken line of the history: {what}"))
            .help("put the line back as it was, or take it out to have its checkpoint evaluated again")
    };
    let line = std::str::from_utf8(line).map_err(|e| broken("invalid UTF-8").because(e))?;
    let (text, seal) = line.rsplit_once(SEAL).ok_or_else(|| broken("it has no digest"))?;
    if seal.strip_suffix("\"}") != Some(&sha256(text.as_bytes())[..16]) {
        return Err(broken("it was changed afterwards"));
    }
    let value: Value = serde_json::from_str(&format!("{text}}}")).map_err(|e| broken("no JSON").because(e))?;
    serde_json::from_value(value).map_err(|e| broken("not an entry").because(e))
}

/// The time as RFC 3339 writes it, in UTC.
pub fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    let (year, month, day) = date(seconds / 86_400);
    let [hour, minute, second] = [seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60];
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::timeline::Failure;

    fn entry(name: &str, digest: &str, status: Status, exit_code: Option<u8>) -> Entry {
        Entry {
            name: name.into(),
            step: Some(1),
            status,
            digest: digest.into(),
            stamp: format!("stamp of {digest}"),
            verdict: None,
            metrics: Default::default(),
            gate: None,
            same_as: None,
            replaces: None,
            error: exit_code.map(|exit_code| Failure { exit_code, what: "a \"quoted\",\"sha256\":\"word\"".into() }),
            report: None,
            seconds: 0.1,
            at: now(),
        }
    }

    #[test]
    fn a_torn_last_line_is_dropped_wherever_it_was_torn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(HISTORY);
        let mut history = History::open(folder.path()).unwrap();
        history.append(entry("checkpoint-1", "a", Status::Measured, None)).unwrap();
        let one = std::fs::read(&path).unwrap();
        history.append(entry("checkpoint-2", "b", Status::Failed, Some(6))).unwrap();
        drop(history);
        let two = std::fs::read(&path).unwrap();
        for end in one.len()..two.len() {
            std::fs::write(&path, &two[..end]).unwrap();
            let mut history = History::open(folder.path()).unwrap();
            assert_eq!(history.entries().len(), 1, "{end}");
            assert_eq!(std::fs::read(&path).unwrap(), one);
            history.append(entry("checkpoint-2", "b", Status::Failed, Some(6))).unwrap();
            assert_eq!(History::open(folder.path()).unwrap().entries().len(), 2);
        }
    }

    #[test]
    fn a_line_that_was_changed_is_an_error_with_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(HISTORY);
        let mut history = History::open(folder.path()).unwrap();
        for name in ["checkpoint-1", "checkpoint-2"] {
            history.append(entry(name, name, Status::Measured, None)).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to) in [("\"checkpoint-2\"", "\"checkpoint-3\""), ("{\"name\":\"checkpoint-2\"", "{")] {
            std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
            let error = History::open(folder.path()).err().unwrap();
            assert_eq!(error.kind(), crate::ErrorKind::Data);
            assert!(error.to_string().contains("history.jsonl:2: broken line"), "{error}");
        }
    }

    #[test]
    fn what_was_measured_is_known_by_its_bytes_and_failures_of_the_machine_are_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut history = History::open(folder.path()).unwrap();
        history.append(entry("checkpoint-1", "measured", Status::Measured, None)).unwrap();
        history.append(entry("checkpoint-2", "broken", Status::Failed, Some(6))).unwrap();
        history.append(entry("checkpoint-3", "memory", Status::Failed, Some(5))).unwrap();
        history.append(entry("checkpoint-4", "gone", Status::Vanished, None)).unwrap();
        let known = |history: &History| {
            ["measured", "broken", "memory", "gone", "other"].map(|digest| history.of_digest(digest).is_some())
        };
        assert_eq!(known(&history), [true, true, true, false, false], "not twice in one call");
        let mut history = History::open(folder.path()).unwrap();
        assert_eq!(known(&history), [true, true, false, false, false]);
        for known_then in [false, true] {
            history.append(entry("checkpoint-3", "memory", Status::Failed, Some(5))).unwrap();
            history = History::open(folder.path()).unwrap();
            assert_eq!(known(&history)[2], known_then, "it is not tried for ever");
        }
        for _ in 0..5 {
            history.append(entry("checkpoint-5", "base", Status::Failed, Some(2))).unwrap();
            history = History::open(folder.path()).unwrap();
            assert_eq!(
                (history.of_digest("base"), history.entries().len()),
                (None, 7),
                "the same words stand there once"
            );
        }
        let at = |name: &str| Checkpoint { name: name.into(), step: None, path: PathBuf::new() };
        assert!(history.knows(&at("checkpoint-1"), "stamp of measured"));
        assert!(!history.knows(&at("checkpoint-1"), "stamp of another"));
        assert!(!history.knows(&at("checkpoint-5"), "stamp of base"));
    }

    #[test]
    fn days_have_dates() {
        for (days, of) in [(0, (1970, 1, 1)), (59, (1970, 3, 1)), (11_016, (2000, 2, 29)), (20_787, (2026, 11, 30))] {
            assert_eq!(date(days), of, "{days}");
        }
    }
}
