//! The run folder that SwanLab writes offline, and that `swanlab sync` uploads: written for swanlab
//! 0.10 (format 2). SwanLab reads no other version of the format than its own.
//!
//! One file of records, as protocol buffers in LevelDB's log format, with media beside it. The file
//! is whole after each flush: a training that goes on from a checkpoint writes it anew, from Karat's
//! own log, without what is done again.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::entry::{Ending, Entry, Kind, Text, Timed};
use super::sink::{Opening, Sink};
use super::wire::{Message, crc32};
use super::yaml;
use crate::calendar::date;
use crate::error::{Error, Result};
use crate::fsio;

/// The version of the format.
const FORMAT: u8 = 2;
/// Bytes of a block of the log, counted from the start of the file.
const BLOCK: usize = 32_768;
/// Bytes before a piece of a record.
const HEADER: usize = 7;
/// The numbers of records that are no rows; rows count from 1.
const START: i64 = -1;
const FINISH: i64 = -2;
const CONFIG: i64 = -3;

/// The run folder of a model.
pub(super) struct RunFolder {
    folder: PathBuf,
    path: PathBuf,
    log: Log<BufWriter<File>>,
    rows: Rows,
}

/// What is known of the rows that were written.
#[derive(Default)]
struct Rows {
    last: i64,
    columns: BTreeSet<String>,
}

impl RunFolder {
    /// Opens the run's folder, which is new or of the same training, and writes its file anew.
    ///
    /// # Errors
    /// I/O.
    pub fn open(opening: &Opening) -> Result<RunFolder> {
        let folder = folder_of(opening)?;
        for inside in ["files", "media/text", "debug"] {
            let inside = folder.join(inside);
            std::fs::create_dir_all(&inside).map_err(|e| Error::io("create the folder", &inside, e))?;
        }
        fsio::write_atomic(&folder.join("files/config.yaml"), yaml::config(&opening.config).as_bytes())?;
        let path = folder.join(format!("run-{}.swanlab", opening.id));
        let (mut log, mut rows) = (Log::new(Vec::new()), Rows::default());
        let written = |e| Error::io("write", &path, e);
        log.begin().map_err(written)?;
        for record in preamble(opening, &folder) {
            log.put(record.bytes()).map_err(written)?;
        }
        for entry in &opening.history {
            for record in records(entry, &folder, &mut rows)? {
                log.put(record.bytes()).map_err(written)?;
            }
        }
        fsio::write_atomic(&path, &log.out)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| Error::io("open", &path, e))?;
        let log = Log { out: BufWriter::new(file), position: log.position };
        Ok(RunFolder { folder, path, log, rows })
    }

    fn put(&mut self, record: &Message) -> Result<()> {
        self.log.put(record.bytes()).map_err(|e| Error::io("write", &self.path, e))
    }
}

impl Sink for RunFolder {
    fn write(&mut self, entry: &Timed) -> Result<()> {
        let records = records(entry, &self.folder, &mut self.rows)?;
        records.iter().try_for_each(|record| self.put(record))
    }

    fn flush(&mut self) -> Result<()> {
        self.log.out.flush().map_err(|e| Error::io("write", &self.path, e))
    }

    fn end(&mut self, at: Duration, ending: Ending, why: &str) -> Result<()> {
        let state = match ending {
            Ending::Finished => 1,
            Ending::Crashed => 2,
            Ending::Stopped => 3,
        };
        let mut finish = Message::new().int(1, state);
        if !why.is_empty() {
            finish = finish.text(2, why);
        }
        self.put(&record(FINISH, at).message(11, &finish.message(3, &timestamp(at))))?;
        self.flush()
    }
}

/// The folder of a run: that of an earlier time, or one that is named after its begin.
fn folder_of(opening: &Opening) -> Result<PathBuf> {
    let of_model = opening.of_model();
    std::fs::create_dir_all(&of_model).map_err(|e| Error::io("create the folder", &of_model, e))?;
    let entries = std::fs::read_dir(&of_model).map_err(|e| Error::io("read the folder", &of_model, e))?;
    let ends = format!("-{}", opening.id);
    let is_run = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("run-") && name.ends_with(&ends)
    };
    let known = entries.flatten().map(|entry| entry.path()).filter(is_run).min();
    Ok(known.unwrap_or_else(|| of_model.join(format!("run-{}{ends}", calendar(opening.began)))))
}

/// A time as `20261129_060000`, in UTC.
fn calendar(at: Duration) -> String {
    let seconds = at.as_secs() as i64;
    let (year, month, day) = date(seconds / 86_400);
    let second = seconds % 86_400;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}_{hour:02}{minute:02}{second:02}")
}

/// The records before the rows: who it is, and where its settings are.
fn preamble(opening: &Opening, folder: &Path) -> [Message; 2] {
    let (title, model) = (&opening.title, &opening.model);
    let mut start = Message::new().text(1, &title.project);
    if !title.workspace.is_empty() {
        start = start.text(2, &title.workspace);
    }
    let start = start
        .text(4, format!("{}-{model}", title.name))
        .text(6, "karat")
        .text(7, &title.name)
        .text(8, model)
        .text(10, &opening.id)
        .message(12, &timestamp(opening.began));
    // No place of this machine: what is not found there is looked for in the run's own `files`.
    let run = folder.file_name().unwrap_or_default().to_string_lossy();
    let save = Message::new().text(1, "config").text(2, format!("{run}/files/config.yaml")).int(5, 1);
    let at = opening.began;
    [record(START, at).message(10, &start), record(CONFIG, at).message(20, &save)]
}

fn record(number: i64, at: Duration) -> Message {
    Message::new().int(1, number).message(2, &timestamp(at))
}

fn timestamp(at: Duration) -> Message {
    Message::new().int(1, at.as_secs() as i64).int(2, i64::from(at.subsec_nanos()))
}

/// The records of an entry; its texts are written beside them.
fn records((at, entry): &Timed, folder: &Path, rows: &mut Rows) -> Result<Vec<Message>> {
    const SCALAR: i64 = 1;
    const TEXT: i64 = 4;
    let mut records = Vec::new();
    match entry {
        Entry::Scalars { kind, step, values } => {
            let global = (*kind == Kind::Train).then(|| ("train/global_step".to_string(), *step as f64));
            for (key, value) in values.iter().chain(&global) {
                let data = Message::new().text(1, key).int(2, *step as i64).int(3, SCALAR).message(4, &timestamp(*at));
                let data = data.message(5, &Message::new().double(1, *value));
                rows.add(&mut records, *at, key, SCALAR, 13, &data);
            }
        }
        Entry::Texts { tag, step, texts } => {
            let mut items = Message::new();
            for Text { caption, text } in texts {
                let sha256 = fsio::sha256(text.as_bytes());
                let name = format!("{step:03}-{}.txt", &sha256[..8]);
                fsio::write_atomic(&folder.join("media/text").join(&name), text.as_bytes())?;
                let item = Message::new().text(1, &name).text(2, &sha256).int(3, text.len() as i64).text(4, caption);
                items = items.message(1, &item);
            }
            let data = Message::new().text(1, tag).int(2, *step as i64).int(3, TEXT).message(4, &timestamp(*at));
            rows.add(&mut records, *at, tag, TEXT, 14, &data.message(5, &items));
        }
    }
    Ok(records)
}

impl Rows {
    /// Adds a row of `kind` in the field `field`, before the first of a key its column.
    fn add(&mut self, records: &mut Vec<Message>, at: Duration, key: &str, kind: i64, field: u32, data: &Message) {
        if self.columns.insert(key.to_string()) {
            let mut column = Message::new().int(1, 1).int(2, kind).text(3, key);
            if let Some((section, _)) = key.split_once('/') {
                column = column.text(5, section);
            }
            self.last += 1;
            records.push(record(self.last, at).message(12, &column.int(6, 3)));
        }
        self.last += 1;
        records.push(record(self.last, at).message(field, data));
    }
}

/// LevelDB's log format under a header of SwanLab's.
struct Log<W> {
    out: W,
    position: usize,
}

impl<W: Write> Log<W> {
    fn new(out: W) -> Log<W> {
        Log { out, position: 0 }
    }

    fn begin(&mut self) -> std::io::Result<()> {
        self.write(b":SWL")?;
        self.write(&0xE1D6_u16.to_le_bytes())?;
        self.write(&[FORMAT])
    }

    /// Writes a record, in pieces where a block ends.
    fn put(&mut self, record: &[u8]) -> std::io::Result<()> {
        let (mut rest, mut first) = (record, true);
        loop {
            let mut room = BLOCK - self.position % BLOCK;
            if room < HEADER {
                self.write(&[0; HEADER][..room])?;
                room = BLOCK;
            }
            let (piece, after) = rest.split_at(rest.len().min(room - HEADER));
            let kind = match (first, after.is_empty()) {
                (true, true) => 1_u8,
                (true, false) => 2,
                (false, false) => 3,
                (false, true) => 4,
            };
            self.write(&crc32(&[&[kind], piece]).to_le_bytes())?;
            self.write(&(piece.len() as u16).to_le_bytes())?;
            self.write(&[kind])?;
            self.write(piece)?;
            if after.is_empty() {
                return Ok(());
            }
            (rest, first) = (after, false);
        }
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.out.write_all(bytes)?;
        self.position += bytes.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
