//! Stored predictions and scores: append-only JSON lines that survive a crash.
//!
//! A file begins with a header line that holds its key: everything that decides the content
//! (weights, adapter, tokenizer, template, decode settings, backend). A store with another key is
//! never read as an answer; it is an error, since the folder's name comes from the key. Each
//! further line is one row, written whole, and on the disk within a second; a last line that a
//! crash cut short is dropped on opening and its item is done again.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::error::{Error, Result};
use crate::fsio::sha256;

/// An open store of rows `T`, by item id.
pub struct Store<T> {
    path: PathBuf,
    file: File,
    rows: BTreeMap<String, T>,
    /// Rows that the system has and the disk may not have.
    unsynced: usize,
    synced: Instant,
}

/// Rows are brought to the disk after so many, or after the time below: what a power cut may cost.
/// A sync takes about a millisecond on a local disk, a row of generation a hundred and more, so
/// this costs less than one in a thousand.
const SYNC_ROWS: usize = 64;
/// See [`SYNC_ROWS`].
const SYNC_EVERY: Duration = Duration::from_secs(1);

#[derive(Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Header {
    karat_store: u32,
    key: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<T> {
    id: String,
    row: T,
    /// [`seal`] of what stands before it; a line of an earlier version has none.
    #[serde(default, skip_serializing)]
    sha256: Option<String>,
}

/// What a seal adds to a line before its digest and after it.
const SEAL: [&[u8]; 2] = [b",\"sha256\":\"", b"\"}"];

/// The digest of a line up to itself, so that a row which was changed afterwards is not taken for
/// an answer.
fn seal(line: &[u8]) -> String {
    sha256(line)[..16].to_string()
}

const VERSION: u32 = 1;

impl<T: Serialize + DeserializeOwned> Store<T> {
    /// Opens the store at `path`, making it if it is not there.
    ///
    /// # Errors
    /// I/O; a store of another key (which differs is named); a broken line that is not the last
    /// one.
    pub fn open(path: &Path, key: &BTreeMap<String, String>) -> Result<Store<T>> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io("create the folder", folder, e))?;
        }
        let fail = |e| Error::io("open the store", path, e);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(fail)?;
        let (rows, good) = read_rows(&file, path, |header| check_key(&header, path, key))?;
        file.set_len(good).map_err(fail)?;
        file.seek(SeekFrom::Start(good)).map_err(fail)?;
        let mut store = Store { path: path.into(), file, rows, unsynced: 0, synced: Instant::now() };
        if good == 0 {
            let header = store.json(&Header { karat_store: VERSION, key: key.clone() })?;
            store.append(header)?;
            store.sync()?;
            // The name must survive a power cut as the rows do.
            if let Some(folder) = path.parent() {
                File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)?;
            }
        }
        Ok(store)
    }

    /// Adds a row and makes sure that the system has it.
    ///
    /// # Errors
    /// I/O, such as a full disk; the rows before it stay.
    pub fn put(&mut self, id: &str, row: T) -> Result<()> {
        let line = Line { id: id.into(), row, sha256: None };
        let mut text = self.json(&line)?;
        text.pop();
        let seal = seal(&text);
        text.extend([SEAL[0], seal.as_bytes(), SEAL[1]].concat());
        self.append(text)?;
        self.rows.insert(line.id, line.row);
        self.unsynced += 1;
        if self.unsynced >= SYNC_ROWS || self.synced.elapsed() >= SYNC_EVERY {
            self.sync()?;
        }
        Ok(())
    }

    /// Waits until all rows are on the disk.
    ///
    /// # Errors
    /// I/O.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io("write", &self.path, e))?;
        (self.unsynced, self.synced) = (0, Instant::now());
        Ok(())
    }

    /// The row of an item.
    pub fn get(&self, id: &str) -> Option<&T> {
        self.rows.get(id)
    }

    /// All rows, in the order of their ids.
    pub fn rows(&self) -> impl Iterator<Item = &T> {
        self.rows.values()
    }

    /// How many rows are there.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn json(&self, line: &impl Serialize) -> Result<Vec<u8>> {
        serde_json::to_vec(line).map_err(|e| Error::failed("could not write JSON").at(self.path.display()).because(e))
    }

    fn append(&mut self, mut text: Vec<u8>) -> Result<()> {
        text.push(b'\n');
        // One write of the whole line: a crash leaves a prefix, which `open` recognises by the
        // missing newline.
        self.file
            .write_all(&text)
            .map_err(|e| Error::io("write", &self.path, e).help("free some space and run again: what was stored stays"))
    }
}

impl<T> Drop for Store<T> {
    /// Of a call that failed or was interrupted as well.
    fn drop(&mut self) {
        if self.unsynced > 0 {
            let _ = self.file.sync_data();
        }
    }
}

/// What a store holds: its key, and its rows by their names.
pub type Stored<T> = (BTreeMap<String, String>, BTreeMap<String, T>);

/// Reads a store without opening it for writing, whatever its key.
///
/// # Errors
/// I/O; no store, or a broken line that is not the last one.
pub fn read_store<T: DeserializeOwned>(path: &Path) -> Result<Stored<T>> {
    let file = File::open(path).map_err(|e| Error::io("open the store", path, e))?;
    let mut found = None;
    let (rows, _) = read_rows(&file, path, |header| {
        check_version(&header, path)?;
        found = Some(header.key);
        Ok(())
    })?;
    let key =
        found.ok_or_else(|| Error::data("this is no store of predictions: it has no header").at(path.display()))?;
    Ok((key, rows))
}

/// Whether the file's first line is the header of a store.
pub fn is_store(path: &Path) -> bool {
    let first = File::open(path).and_then(|file| {
        let mut line = Vec::new();
        BufReader::new(file.take(1 << 20)).read_until(b'\n', &mut line)?;
        Ok(line)
    });
    first.is_ok_and(|line| serde_json::from_slice::<Header>(&line).is_ok())
}

/// Reads all whole rows; returns them and the length of the good part of the file. `check` sees the
/// header.
fn read_rows<T: DeserializeOwned>(
    file: &File,
    path: &Path,
    mut check: impl FnMut(Header) -> Result<()>,
) -> Result<(BTreeMap<String, T>, u64)> {
    let mut reader = BufReader::new(file);
    let mut rows = BTreeMap::new();
    let mut good = 0;
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let n = reader.read_until(b'\n', &mut line).map_err(|e| Error::io("read the store", path, e))?;
        if n == 0 || line.last() != Some(&b'\n') {
            break;
        }
        let broken = |e: serde_json::Error| {
            Error::data("broken line in a store of predictions")
                .at(format!("{}:{number}", path.display()))
                .because(e)
                .help("remove the file, or run with --fresh")
        };
        if number == 1 {
            let header: Header = serde_json::from_slice(&line).map_err(broken)?;
            check(header)?;
        } else {
            let Line { id, row, sha256 } = serde_json::from_slice(&line).map_err(broken)?;
            if let Some(said) = sha256 {
                let end = SEAL[0].len() + said.len() + SEAL[1].len() + 1;
                if line.get(..line.len().saturating_sub(end)).map(seal) != Some(said) {
                    return Err(Error::data("this row is not what was written: it was changed afterwards")
                        .at(format!("{}:{number}", path.display()))
                        .help("remove the file, or run with --fresh"));
                }
            }
            rows.insert(id, row);
        }
        good += n as u64;
    }
    Ok((rows, good))
}

fn check_version(header: &Header, path: &Path) -> Result<()> {
    if header.karat_store == VERSION {
        return Ok(());
    }
    Err(Error::data(format!("this store is of version {}, not {VERSION}", header.karat_store))
        .at(path.display())
        .help("remove the file, or run with --fresh"))
}

fn check_key(header: &Header, path: &Path, key: &BTreeMap<String, String>) -> Result<()> {
    let names: std::collections::BTreeSet<&String> = header.key.keys().chain(key.keys()).collect();
    let differs: Vec<&str> =
        names.into_iter().filter(|n| header.key.get(*n) != key.get(*n)).map(String::as_str).collect();
    check_version(header, path)?;
    if differs.is_empty() {
        return Ok(());
    }
    Err(Error::data(format!("these predictions were made with another {}", differs.join(", ")))
        .at(path.display())
        .help("remove the file, or run with --fresh"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(model: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("model".to_string(), model.to_string())])
    }

    #[test]
    fn rows_survive_and_a_torn_last_line_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.jsonl");
        let mut store = Store::<u32>::open(&path, &key("a")).unwrap();
        store.put("x", 1).unwrap();
        store.put("y", 2).unwrap();
        drop(store);
        let whole = std::fs::read(&path).unwrap();
        // Cut at every byte: what is whole is found, and the store can be written again.
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut store = Store::<u32>::open(&path, &key("a")).unwrap();
            let lines = whole[..cut].iter().filter(|&&b| b == b'\n').count();
            assert_eq!(store.len(), lines.saturating_sub(1), "cut at {cut}");
            store.put("x", 1).unwrap();
            store.put("y", 2).unwrap();
            drop(store);
            let again = Store::<u32>::open(&path, &key("a")).unwrap();
            assert_eq!((again.get("x"), again.get("y"), again.len()), (Some(&1), Some(&2), 2), "cut at {cut}");
        }
    }

    #[test]
    fn a_store_of_another_key_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.jsonl");
        Store::<u32>::open(&path, &key("a")).unwrap().put("x", 1).unwrap();
        let error = Store::<u32>::open(&path, &key("b")).err().unwrap();
        assert!(error.to_string().contains("another model"), "{error}");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"karat_store\":1", "\"karat_store\":7")).unwrap();
        let error = Store::<u32>::open(&path, &key("a")).err().unwrap();
        assert!(error.to_string().contains("version 7"), "{error}");
    }

    #[test]
    fn a_row_that_was_changed_afterwards_is_refused_by_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.jsonl");
        let mut store = Store::<u32>::open(&path, &key("a")).unwrap();
        store.put("x", 100).unwrap();
        store.put("y", 200).unwrap();
        drop(store);
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("\"row\":200", "\"row\":201"),
            ("\"id\":\"y\"", "\"id\":\"z\""),
            ("\"row\":200", "\"row\": 200"),
            ("\"sha256\":\"", "\"sha256\":\"0"),
        ] {
            let (head, last) = text.split_at(text.trim_end().rfind('\n').unwrap() + 1);
            std::fs::write(&path, format!("{head}{}", last.replace(from, to))).unwrap();
            for error in [Store::<u32>::open(&path, &key("a")).err(), read_store::<u32>(&path).err()] {
                let error = error.unwrap();
                assert_eq!(error.kind(), crate::ErrorKind::Data);
                assert!(error.to_string().contains("p.jsonl:3: this row is not what was written"), "{to}: {error}");
            }
        }
        // A store of an earlier version has no digests.
        let line = text.lines().nth(1).unwrap();
        let plain = format!("{}}}", line.split(",\"sha256\"").next().unwrap());
        std::fs::write(&path, text.replace(line, &plain)).unwrap();
        assert_eq!(Store::<u32>::open(&path, &key("a")).unwrap().get("x"), Some(&100));
    }

    #[test]
    fn a_broken_line_in_the_middle_is_an_error_with_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.jsonl");
        Store::<u32>::open(&path, &key("a")).unwrap().put("x", 1).unwrap();
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{broken}\n");
        std::fs::write(&path, &text).unwrap();
        let error = Store::<u32>::open(&path, &key("a")).err().unwrap();
        assert!(error.to_string().contains("p.jsonl:3"), "{error}");
    }
}
