//! Writing safetensors files whose tensors arrive a piece at a time.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde_json::{Map, Value as Json, json};

use crate::backend::Dtype;
use crate::{Error, Result};

/// What is going to be written: name and shape.
pub struct Entry {
    /// The tensor's name.
    pub name: String,
    /// Its row-major shape.
    pub shape: Vec<usize>,
}

impl Entry {
    fn bytes(&self, dtype: Dtype) -> u64 {
        self.shape.iter().product::<usize>() as u64 * width(dtype)
    }
}

fn width(dtype: Dtype) -> u64 {
    if dtype == Dtype::F32 { 4 } else { 2 }
}

/// Writes a checkpoint: `model.safetensors`, or shards and their index.
pub struct Writer<'a> {
    folder: &'a Path,
    dtype: Dtype,
    /// The entries of every file and its name.
    files: Vec<(String, &'a [Entry])>,
    /// File and entry that are being written.
    open: Option<(PathBuf, BufWriter<File>)>,
    next: (usize, usize),
    left: u64,
}

impl<'a> Writer<'a> {
    /// Plans the files: as few as keep each within `max_shard` bytes (one tensor may be larger), in the entries' order.
    pub fn new(folder: &'a Path, dtype: Dtype, entries: &'a [Entry], max_shard: u64) -> Self {
        let mut cuts = vec![0];
        let mut size = 0;
        for (i, entry) in entries.iter().enumerate() {
            let bytes = entry.bytes(dtype);
            if size > 0 && size + bytes > max_shard {
                cuts.push(i);
                size = 0;
            }
            size += bytes;
        }
        cuts.push(entries.len());
        let count = cuts.len() - 1;
        let files = cuts.windows(2).enumerate().map(|(i, cut)| {
            let name = match count {
                1 => "model.safetensors".to_string(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
            };
            (name, &entries[cut[0]..cut[1]])
        });
        Writer { folder, dtype, files: files.collect(), open: None, next: (0, 0), left: 0 }
    }

    /// How many files.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// Appends values of the current tensor; the next one begins where it is full.
    ///
    /// # Errors
    /// A value that the element type cannot hold; I/O.
    ///
    /// # Panics
    /// If more values come than were announced.
    pub fn write(&mut self, values: &[f32]) -> Result<()> {
        if self.left == 0 {
            self.begin()?;
        }
        let (file, entry) = self.next;
        let name = &self.files[file].1[entry].name;
        let bad = |x: f32| {
            let error = Error::data(format!("the tensor {name} holds {x}, which {} cannot hold", self.dtype));
            if x.is_finite() { error.help("import with --dtype bf16 or f32") } else { error.help("the file is broken") }
        };
        let mut bytes = Vec::with_capacity(values.len() * width(self.dtype) as usize);
        for &x in values {
            let fits = match self.dtype {
                Dtype::F32 => {
                    bytes.extend_from_slice(&x.to_le_bytes());
                    x.is_finite()
                }
                Dtype::Bf16 => {
                    let y = bf16::from_f32(x);
                    bytes.extend_from_slice(&y.to_le_bytes());
                    y.is_finite()
                }
                Dtype::F16 => {
                    let y = f16::from_f32(x);
                    bytes.extend_from_slice(&y.to_le_bytes());
                    y.is_finite()
                }
            };
            if !fits {
                return Err(bad(x));
            }
        }
        self.left = self.left.checked_sub(bytes.len() as u64).expect("no more values than announced");
        let Some((path, out)) = &mut self.open else { return Err(Error::failed("no file is open")) };
        out.write_all(&bytes).map_err(|e| Error::io("write", &*path, e))?;
        if self.left == 0 {
            self.next.1 += 1;
            if self.next.1 == self.files[file].1.len() {
                self.next = (file + 1, 0);
                self.close()?;
            }
        }
        Ok(())
    }

    /// Begins a tensor, and its file where it is the first there.
    fn begin(&mut self) -> Result<()> {
        let (file, entry) = self.next;
        let (name, entries) = &self.files[file];
        self.left = entries[entry].bytes(self.dtype);
        if entry > 0 {
            return Ok(());
        }
        let path = self.folder.join(name);
        let fail = |e| Error::io("write", &path, e);
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(fail)?);
        let header = header(entries, self.dtype);
        out.write_all(&(header.len() as u64).to_le_bytes()).map_err(fail)?;
        out.write_all(header.as_bytes()).map_err(fail)?;
        self.open = Some((path, out));
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let Some((path, out)) = self.open.take() else { return Ok(()) };
        let file = out.into_inner().map_err(|e| Error::io("write", &path, e.into_error()))?;
        file.sync_all().map_err(|e| Error::io("write", &path, e))
    }

    /// Writes the index of a sharded checkpoint.
    ///
    /// # Errors
    /// I/O.
    ///
    /// # Panics
    /// If a tensor is missing.
    pub fn finish(self) -> Result<()> {
        assert!(self.open.is_none() && self.next == (self.files.len(), 0), "every tensor is written");
        if self.files.len() == 1 {
            return Ok(());
        }
        let entries = || self.files.iter().flat_map(|(file, entries)| entries.iter().map(move |e| (file, e)));
        let total: u64 = entries().map(|(_, e)| e.bytes(self.dtype)).sum();
        let mut map: Map<String, Json> = entries().map(|(file, e)| (e.name.clone(), json!(file))).collect();
        map.sort_keys();
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        crate::fsio::write_json(&self.folder.join("model.safetensors.index.json"), &index)
    }
}

/// The header of a safetensors file, padded to a multiple of eight bytes with its length.
fn header(entries: &[Entry], dtype: Dtype) -> String {
    let name = match dtype {
        Dtype::F32 => "F32",
        Dtype::Bf16 => "BF16",
        Dtype::F16 => "F16",
    };
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut from = 0;
    for entry in entries {
        let to = from + entry.bytes(dtype);
        let info = json!({"dtype": name, "shape": entry.shape, "data_offsets": [from, to]});
        header.insert(entry.name.clone(), info);
        from = to;
    }
    let mut text = Json::Object(header).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    text
}
