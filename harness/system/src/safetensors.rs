//! Safetensors files: their headers, read and checked ([`read_header`]), and files written a piece
//! at a time, so that of a large model no more than a piece is in memory ([`Writer`]).

#[cfg(feature = "headers")]
mod header;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

#[cfg(feature = "headers")]
pub use header::{Dtype, Stored, read_header};

use crate::fsio::write_json;
use crate::{Error, Result};

/// The weights of a model in one file.
pub const WEIGHTS: &str = "model.safetensors";
/// The file that says in which shard each tensor is.
pub const INDEX: &str = "model.safetensors.index.json";

/// A tensor that is going to be written.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its row-major shape.
    pub shape: Vec<usize>,
    /// The format's word for its element type: `F32`, `BF16`, `F16`.
    pub dtype: &'static str,
    /// Bytes of all its elements.
    pub bytes: u64,
}

impl Entry {
    /// A tensor of elements of `width` bytes.
    pub fn new(name: impl Into<String>, shape: &[usize], dtype: &'static str, width: u64) -> Self {
        let bytes = shape.iter().product::<usize>() as u64 * width;
        Entry { name: name.into(), shape: shape.to_vec(), dtype, bytes }
    }

    /// A tensor of 32-bit floats.
    pub fn f32(name: impl Into<String>, shape: &[usize]) -> Self {
        Self::new(name, shape, "F32", 4)
    }
}

/// A file, and the part of the entries that goes into it.
struct Part {
    path: PathBuf,
    entries: std::ops::Range<usize>,
}

/// Writes tensors one after the other, as `{"format": "pt"}`, which transformers and PEFT ask for.
pub struct Writer {
    folder: PathBuf,
    entries: Vec<Entry>,
    parts: Vec<Part>,
    /// The part that is written, its file once a byte of it is there.
    part: usize,
    open: Option<BufWriter<File>>,
    /// The tensor that is written, and how many of its bytes are missing.
    entry: usize,
    left: u64,
}

impl Writer {
    /// One file of tensors in the order of `entries`.
    pub fn file(path: &Path, entries: Vec<Entry>) -> Self {
        let part = Part { path: path.to_owned(), entries: 0..entries.len() };
        Self::new(path.parent().unwrap_or(Path::new("")), entries, vec![part])
    }

    /// A model's weights in `folder`: [`WEIGHTS`], or as few shards as keep each within `max_shard`
    /// bytes (one tensor may be larger), in the order of `entries`, and their [`INDEX`].
    pub fn sharded(folder: &Path, entries: Vec<Entry>, max_shard: u64) -> Self {
        let mut cuts = vec![0];
        let mut size = 0;
        for (i, entry) in entries.iter().enumerate() {
            if size > 0 && entry.bytes > 0 && size + entry.bytes > max_shard {
                cuts.push(i);
                size = 0;
            }
            size += entry.bytes;
        }
        cuts.push(entries.len());
        let count = cuts.len() - 1;
        let parts = cuts.windows(2).enumerate().map(|(i, cut)| {
            let name = match count {
                1 => WEIGHTS.to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
            };
            Part { path: folder.join(name), entries: cut[0]..cut[1] }
        });
        let parts = parts.collect();
        Self::new(folder, entries, parts)
    }

    fn new(folder: &Path, entries: Vec<Entry>, parts: Vec<Part>) -> Self {
        let left = entries.first().map_or(0, |entry| entry.bytes);
        Writer { folder: folder.to_owned(), entries, parts, part: 0, open: None, entry: 0, left }
    }

    /// How many files.
    pub fn files(&self) -> usize {
        self.parts.len()
    }

    /// The tensor that the next byte belongs to.
    pub fn next(&self) -> Option<&Entry> {
        let mut rest = self.entries[self.entry..].iter();
        // The current one is full, if it has any bytes.
        if self.left > 0 { rest.next() } else { rest.skip(1).find(|entry| entry.bytes > 0) }
    }

    /// Appends to the current tensor, which takes no more than it has room for; the next one begins
    /// where it is full.
    ///
    /// # Errors
    /// I/O.
    ///
    /// # Panics
    /// If more comes than was announced.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        while self.left == 0 {
            self.advance()?;
        }
        self.left = self.left.checked_sub(bytes.len() as u64).expect("no more bytes than announced");
        self.begin()?;
        let path = &self.parts[self.part].path;
        let Some(out) = &mut self.open else { return Err(Error::failed("no file is open")) };
        out.write_all(bytes).map_err(|e| Error::io("write", path, e))
    }

    /// Goes to the next tensor, and its file.
    fn advance(&mut self) -> Result<()> {
        self.entry += 1;
        while self.part + 1 < self.parts.len() && self.entry >= self.parts[self.part].entries.end {
            self.end()?;
        }
        self.left = self.entries.get(self.entry).expect("no more tensors than announced").bytes;
        Ok(())
    }

    /// Opens the current file with its header, if it is not.
    fn begin(&mut self) -> Result<()> {
        if self.open.is_some() {
            return Ok(());
        }
        let Part { path, entries } = &self.parts[self.part];
        let fail = |e| Error::io("write", path, e);
        let mut out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(fail)?);
        let header = header(&self.entries[entries.clone()]);
        out.write_all(&(header.len() as u64).to_le_bytes()).map_err(fail)?;
        out.write_all(header.as_bytes()).map_err(fail)?;
        self.open = Some(out);
        Ok(())
    }

    /// Closes the current file, which has its header even if its tensors are empty, and goes to the
    /// next.
    fn end(&mut self) -> Result<()> {
        self.begin()?;
        let path = &self.parts[self.part].path;
        let fail = |e| Error::io("write", path, e);
        if let Some(out) = self.open.take() {
            let file = out.into_inner().map_err(|e| fail(e.into_error()))?;
            file.sync_all().map_err(fail)?;
        }
        self.part += 1;
        Ok(())
    }

    /// Flushes what is written to disk and adds the index of shards.
    ///
    /// # Errors
    /// I/O.
    ///
    /// # Panics
    /// If a tensor is missing.
    pub fn finish(mut self) -> Result<()> {
        let rest = self.entries.get(self.entry + 1..).unwrap_or_default();
        assert!(self.left == 0 && rest.iter().all(|entry| entry.bytes == 0), "every tensor is written");
        while self.part < self.parts.len() {
            self.end()?;
        }
        if self.parts.len() == 1 {
            return Ok(());
        }
        let mut map = Map::new();
        for Part { path, entries } in &self.parts {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            map.extend(self.entries[entries.clone()].iter().map(|entry| (entry.name.clone(), json!(file))));
        }
        let total: u64 = self.entries.iter().map(|entry| entry.bytes).sum();
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        write_json(&self.folder.join(INDEX), &index)
    }
}

/// The header of a file, padded to a multiple of eight bytes.
fn header(entries: &[Entry]) -> String {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut from = 0;
    for Entry { name, shape, dtype, bytes } in entries {
        let to = from + bytes;
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [from, to]}));
        from = to;
    }
    let mut text = Value::Object(header).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_formats_whatever_the_pieces_are() {
        let folder = tempfile::tempdir().unwrap();
        let entries = || vec![Entry::f32("a", &[2, 2]), Entry::f32("none", &[0, 3]), Entry::new("b", &[3], "BF16", 2)];
        let bytes: Vec<u8> = (0..22).collect();
        let mut files = Vec::new();
        for size in [1, 5, 22] {
            let path = folder.path().join(format!("{size}.safetensors"));
            let mut writer = Writer::file(&path, entries());
            let (a, b) = bytes.split_at(16);
            for tensor in [a, b] {
                tensor.chunks(size).for_each(|piece| writer.write(piece).unwrap());
            }
            writer.finish().unwrap();
            files.push(std::fs::read(path).unwrap());
        }
        let text = "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},\
            \"none\":{\"dtype\":\"F32\",\"shape\":[0,3],\"data_offsets\":[16,16]},\
            \"b\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[16,22]}}";
        let length = text.len().next_multiple_of(8);
        for file in files {
            assert_eq!(file[..8], (length as u64).to_le_bytes());
            assert_eq!(std::str::from_utf8(&file[8..8 + length]).unwrap().trim_end(), text);
            assert_eq!(file[8 + length..], bytes);
        }
    }

    #[test]
    fn shards_hold_what_fits_and_the_index_says_where_all_is() {
        let folder = tempfile::tempdir().unwrap();
        let entries =
            [("a", 4), ("b", 4), ("large", 40), ("empty", 0)].map(|(name, n)| Entry::f32(name, &[n])).to_vec();
        let mut writer = Writer::sharded(folder.path(), entries, 32);
        assert_eq!(writer.files(), 2);
        for length in [16, 16, 160] {
            assert_eq!(writer.next().map(|entry| entry.bytes), Some(length));
            writer.write(&vec![7; length as usize]).unwrap();
        }
        writer.finish().unwrap();
        let index: Value = crate::fsio::read_json(&folder.path().join(INDEX)).unwrap();
        let [first, second] = [1, 2].map(|i| format!("model-0000{i}-of-00002.safetensors"));
        assert_eq!(index["weight_map"], json!({"a": first, "b": first, "large": second, "empty": second}));
        assert_eq!(index["metadata"]["total_size"], 192);
        for name in [first, second] {
            let file = std::fs::read(folder.path().join(name)).unwrap();
            let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            let header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
            let ends = header.as_object().unwrap().values().filter_map(|t| t["data_offsets"][1].as_u64());
            assert_eq!(ends.max().unwrap() as usize, file.len() - 8 - length);
        }
    }

    #[test]
    fn no_tensors_make_an_empty_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        Writer::file(&path, Vec::new()).finish().unwrap();
        assert_eq!(std::fs::read(path).unwrap().len() % 8, 0);
    }

    #[test]
    #[should_panic(expected = "every tensor is written")]
    fn a_file_that_lacks_a_tensor_is_not_finished() {
        let folder = tempfile::tempdir().unwrap();
        let _ = Writer::file(&folder.path().join("x.safetensors"), vec![Entry::f32("a", &[1])]).finish();
    }
}
