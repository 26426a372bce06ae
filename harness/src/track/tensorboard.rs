//! TensorBoard's event files: length-prefixed records of `tensorflow.Event`, with masked CRC-32C.
//!
//! A file is only ever appended to. A training that goes on from a checkpoint gets a new one in the
//! same folder, that begins with `SessionLog.START`: TensorBoard then drops what it has of that step
//! and later ones.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::entry::{Ending, Entry, Kind, Timed};
use super::sink::{Opening, Sink, Start};
use super::wire::{Message, crc32c};
use crate::error::{Error, Result};

/// How the names of event files begin.
const PREFIX: &str = "events.out.tfevents.";
/// How those end that are written here, by which they are told from those of others.
const SUFFIX: &str = ".karat";

/// The event file of a model.
pub(super) struct EventFile {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventFile {
    /// Opens a new file in the model's folder.
    ///
    /// # Errors
    /// I/O.
    pub fn open(opening: &Opening) -> Result<EventFile> {
        let folder = opening.of_model();
        std::fs::create_dir_all(&folder).map_err(|e| Error::io("create the folder", &folder, e))?;
        let earlier = own_files(&folder)?;
        // Files are read in the order of their names, so a later one has a later second.
        let last = earlier.iter().filter_map(|path| second(path)).max();
        let resumed = match opening.start {
            Start::After(step) if !earlier.is_empty() => Some(step),
            _ => None,
        };
        let began = if resumed.is_some() { opening.now } else { opening.began };
        let seconds = began.as_secs().max(last.map_or(0, |last| last + 1));
        let (host, pid) = (&opening.origin.host, opening.origin.pid);
        let path = folder.join(format!("{PREFIX}{seconds}.{host}.{pid}.0{SUFFIX}"));
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = BufWriter::new(file.map_err(|e| Error::io("create the event file", &path, e))?);
        let mut events = EventFile { path, file };
        events.put(&event(began, 0).text(3, "brain.Event:2"))?;
        if !earlier.is_empty() {
            // TensorBoard keeps what is below the step of a start.
            let step = resumed.map_or(0, |step| step + 1);
            events.put(&event(began, step).message(7, &Message::new().int(1, 1)))?;
        }
        if resumed.is_none() {
            let config = format!("{:#}", opening.config);
            events.put(&text_event(began, 0, "args/text_summary", &fenced(&config)))?;
            opening.history.iter().try_for_each(|entry| events.write(entry))?;
            events.flush()?;
            for path in earlier {
                std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            }
        }
        events.flush()?;
        Ok(events)
    }

    fn put(&mut self, event: &Message) -> Result<()> {
        let framed = framed(event.bytes());
        self.file.write_all(&framed).map_err(|e| Error::io("write", &self.path, e))
    }
}

impl Sink for EventFile {
    fn write(&mut self, (at, entry): &Timed) -> Result<()> {
        match entry {
            Entry::Scalars { kind, step, values } => {
                let mut summary = Message::new();
                for (tag, value) in values {
                    let tag = match kind {
                        Kind::Totals => format!("train/{tag}"),
                        _ => tag.clone(),
                    };
                    summary = summary.message(1, &Message::new().text(1, tag).float(2, *value as f32));
                }
                self.put(&event(*at, *step).message(5, &summary))
            }
            Entry::Texts { tag, step, texts } => texts.iter().enumerate().try_for_each(|(i, text)| {
                let shown = format!("`{}`\n\n{}", text.caption.replace('`', "'"), fenced(&text.text));
                self.put(&text_event(*at, *step, &format!("{tag}/{}/text_summary", i + 1), &shown))
            }),
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(|e| Error::io("write", &self.path, e))
    }

    /// The format has no word for it.
    fn end(&mut self, _: Duration, _: Ending, _: &str) -> Result<()> {
        self.flush()
    }
}

fn event(at: Duration, step: usize) -> Message {
    Message::new().double(1, at.as_secs_f64()).int(2, step as i64)
}

/// A summary of the plugin `text`: a tensor of one string.
fn text_event(at: Duration, step: usize, tag: &str, text: &str) -> Message {
    let plugin = Message::new().text(1, "text");
    let shape = Message::new().message(2, &Message::new().int(1, 1));
    let tensor = Message::new().int(1, 7).message(2, &shape).text(8, text);
    let metadata = Message::new().message(1, &plugin);
    let value = Message::new().text(1, tag).message(8, &tensor).message(9, &metadata);
    event(at, step).message(5, &Message::new().message(1, &value))
}

/// The text in a fence that nothing in it closes: TensorBoard shows Markdown, in which tags such as
/// `<think>` would vanish.
fn fenced(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}\n{text}\n{fence}")
}

fn framed(data: &[u8]) -> Vec<u8> {
    let masked = |bytes: &[u8]| crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8).to_le_bytes();
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), data, &masked(data)].concat()
}

/// The event files in `folder` that were written here, by name.
fn own_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io("read the folder", folder, e))?;
    let is_own = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(PREFIX) && name.ends_with(SUFFIX)
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_own).collect();
    files.sort();
    Ok(files)
}

/// The second in the name of an event file.
fn second(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
}
