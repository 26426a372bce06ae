//! Reading a GGUF file: its metadata, where its tensors lie, and their bytes on demand.
//!
//! The format is that of ggml's `docs/gguf.md`, versions 2 and 3, little-endian. Nothing in the
//! file is believed before it is checked against the file's length: a count or a length that the
//! rest of the file cannot hold is an error before any memory is asked for. Tensors are read (not
//! mapped) a few rows at a time, so memory stays bounded whatever the model's size, and a file that
//! changes under us gives an error and no undefined behaviour.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::quant::GgmlType;
use crate::{Error, Result};

/// Most dimensions of a tensor.
const MAX_DIMS: u32 = 4;
/// Alignment where the file names none.
const ALIGNMENT: u64 = 32;

/// A metadata value. Integers of every width are one kind, and so are floats.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any integer.
    Integer(i128),
    /// A 32-bit float.
    Float32(f32),
    /// A 64-bit float.
    Float64(f64),
    /// True or false.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// Anything else in a row.
    Array(Vec<Value>),
}

/// Where a tensor lies and what it holds.
#[derive(Clone, Debug)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// How its elements are stored.
    pub kind: GgmlType,
    /// Row-major shape (the reverse of the order in the file): the last dimension is contiguous.
    pub shape: Vec<usize>,
    /// From the start of the file.
    offset: u64,
    bytes: u64,
}

impl GgufTensor {
    /// Elements of a contiguous row.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
    /// How many rows.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }
    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.columns() / self.kind.block_len() * self.kind.block_bytes()
    }
}

/// An open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    file: File,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<GgufTensor>,
}

impl Gguf {
    /// Reads everything but the tensors' bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Data`](crate::ErrorKind::Data): no GGUF file, a version that is not read,
    /// truncated, counts that the file cannot hold, a tensor type that is not read (by name),
    /// tensors that overlap or lie outside.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("open the GGUF file", path, e))?;
        let metadata = file.metadata().map_err(|e| Error::io("read", path, e))?;
        if !metadata.is_file() {
            return Err(Error::data("not a file").at(path.display()).help("give --gguf one .gguf file"));
        }
        let reader = file.try_clone().map_err(|e| Error::io("open the GGUF file", path, e))?;
        let length = metadata.len();
        let mut header = Header { path, input: BufReader::new(reader), at: 0, length };
        let (metadata, tensors) = header.read()?;
        Ok(Gguf { path: path.to_path_buf(), file, metadata, tensors })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// All tensors, in the file's order.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }
    /// A metadata value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }
    /// Keys with their values, by name.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// An error about this file.
    pub fn error(&self, what: impl Into<String>) -> Error {
        Error::data(what).at(self.path.display())
    }

    fn wrong(&self, key: &str, want: &str) -> Error {
        self.error(format!("the metadata {key:?} is not {want}"))
    }

    /// A text, if it is there.
    ///
    /// # Errors
    /// If it is something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    /// A count, if it is there.
    ///
    /// # Errors
    /// If it is no integer from 0 to 2^32 - 1.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Integer(n)) if u32::try_from(*n).is_ok() => Ok(Some(*n as usize)),
            Some(_) => Err(self.wrong(key, "a whole number")),
        }
    }

    /// A count that must be there and not be 0.
    ///
    /// # Errors
    /// If it is not.
    pub fn positive(&self, key: &str) -> Result<usize> {
        match self.count(key)? {
            Some(n) if n > 0 => Ok(n),
            Some(_) => Err(self.wrong(key, "more than 0")),
            None => Err(self.error(format!("the metadata {key:?} is missing"))),
        }
    }

    /// A number, if it is there. A 32-bit float is read as its shortest decimal: 1e-5 is meant, not
    /// 9.999999747378752e-06.
    ///
    /// # Errors
    /// If it is something else, or not finite.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let number = match self.get(key) {
            None => return Ok(None),
            Some(Value::Float32(x)) => x.to_string().parse().unwrap_or(f64::from(*x)),
            Some(Value::Float64(x)) => *x,
            Some(Value::Integer(n)) => *n as f64,
            Some(_) => return Err(self.wrong(key, "a number")),
        };
        if number.is_finite() { Ok(Some(number)) } else { Err(self.wrong(key, "a finite number")) }
    }

    /// True or false, if it is there.
    ///
    /// # Errors
    /// If it is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// Texts that must be there.
    ///
    /// # Errors
    /// If they are not.
    pub fn texts(&self, key: &str) -> Result<&[String]> {
        match self.get(key) {
            Some(Value::Texts(texts)) => Ok(texts),
            Some(Value::Array(values)) if values.is_empty() => Ok(&[]),
            Some(_) => Err(self.wrong(key, "a list of texts")),
            None => Err(self.error(format!("the metadata {key:?} is missing"))),
        }
    }

    /// Reads `rows` rows of a tensor from row `first` on, widened to f32, into `out`; `raw` is room
    /// that is kept between calls.
    ///
    /// # Errors
    /// I/O.
    pub fn rows(&self, tensor: &GgufTensor, first: usize, raw: &mut Vec<u8>, out: &mut [f32]) -> Result<()> {
        use rayon::prelude::*;
        let (width, columns) = (tensor.row_bytes(), tensor.columns());
        raw.resize(out.len() / columns * width, 0);
        let fail = |e| Error::io(&format!("read the tensor {}", tensor.name), &self.path, e);
        let mut file = &self.file;
        file.seek(SeekFrom::Start(tensor.offset + (first * width) as u64)).map_err(fail)?;
        file.read_exact(raw).map_err(fail)?;
        let pairs = raw.par_chunks_exact(width).zip(out.par_chunks_exact_mut(columns));
        pairs.for_each(|(raw, out)| tensor.kind.dequantize(raw, out));
        Ok(())
    }
}

/// The part before the tensors' bytes.
struct Header<'a> {
    path: &'a Path,
    input: BufReader<File>,
    at: u64,
    length: u64,
}

impl Header<'_> {
    fn error(&self, what: impl Into<String>) -> Error {
        Error::data(what).at(self.path.display())
    }

    fn truncated(&self, what: &str) -> Error {
        self.error(format!("the file ends within {what}: truncated? ({} bytes)", self.length))
            .help("fetch or copy the file again")
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8], what: &str) -> Result<()> {
        match self.input.read_exact(bytes) {
            Ok(()) => self.at += bytes.len() as u64,
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Err(self.truncated(what)),
            Err(e) => return Err(Error::io("read", self.path, e)),
        }
        Ok(())
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }
    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes(what)?))
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, what: &str, least: u64) -> Result<usize> {
        let count = self.u64(what)?;
        let left = self.length - self.at;
        if count > left / least {
            return Err(self.error(format!(
                "it claims {count} {what}, more than the {left} bytes that are left can hold: broken or truncated"
            )));
        }
        Ok(count as usize)
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let length = self.count(&format!("bytes of {what}"), 1)?;
        let mut bytes = vec![0; length];
        self.fill(&mut bytes, what)?;
        String::from_utf8(bytes).map_err(|_| self.error(format!("{what} is not UTF-8")))
    }

    fn read(&mut self) -> Result<(BTreeMap<String, Value>, Vec<GgufTensor>)> {
        let magic: [u8; 4] = self.bytes("its magic number")?;
        if &magic != b"GGUF" {
            return Err(self.error(format!("not a GGUF file: it begins with {:?}", String::from_utf8_lossy(&magic))));
        }
        match self.u32("its version")? {
            2 | 3 => {}
            big if (1..=3).contains(&big.swap_bytes()) => {
                return Err(self.error("a big-endian GGUF file; little-endian ones are read"));
            }
            other => {
                return Err(self
                    .error(format!("GGUF version {other}; versions 2 and 3 are read"))
                    .help("convert the model again with a current llama.cpp"));
            }
        }
        // A tensor's entry has a name's length, dimensions, one of them, a type and an offset; a
        // pair a length and a type.
        let tensor_count = self.count("tensors", 8 + 4 + 8 + 4 + 8)?;
        let pair_count = self.count("metadata pairs", 8 + 4 + 1)?;
        let mut metadata = BTreeMap::new();
        for _ in 0..pair_count {
            let key = self.text("a metadata key")?;
            let kind = self.u32(&key)?;
            let value = self.value(kind, &key)?;
            if metadata.contains_key(&key) {
                return Err(self.error(format!("the metadata {key:?} stands there twice")));
            }
            metadata.insert(key, value);
        }
        if let Some(Value::Integer(parts @ 2..)) = metadata.get("split.count") {
            return Err(self
                .error(format!("one of {parts} parts of a model; whole files are read"))
                .help("join the parts first: llama-gguf-split --merge FIRST-PART OUT.gguf"));
        }
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT,
            Some(Value::Integer(n)) if (1..=1 << 20).contains(n) && n.count_ones() == 1 => *n as u64,
            Some(_) => return Err(self.error("general.alignment is no power of two up to 2^20")),
        };
        let mut tensors = Vec::new();
        for _ in 0..tensor_count {
            tensors.push(self.tensor(alignment)?);
        }
        let start = self.at.next_multiple_of(alignment);
        for tensor in &mut tensors {
            tensor.offset = tensor
                .offset
                .checked_add(start)
                .filter(|from| from.checked_add(tensor.bytes).is_some_and(|end| end <= self.length))
                .ok_or_else(|| self.truncated(&format!("the tensor {}", tensor.name)))?;
        }
        self.check_apart(&tensors)?;
        Ok((metadata, tensors))
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.bytes(key)?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.bytes(key)?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.bytes(key)?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.bytes(key)?).into()),
            4 => Value::Integer(self.u32(key)?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.bytes(key)?).into()),
            6 => Value::Float32(f32::from_le_bytes(self.bytes(key)?)),
            7 => match self.bytes::<1>(key)?[0] {
                byte @ (0 | 1) => Value::Bool(byte == 1),
                other => return Err(self.error(format!("the metadata {key:?} is {other}, neither true nor false"))),
            },
            8 => Value::Text(self.text(&format!("the metadata {key:?}"))?),
            9 => self.array(key)?,
            10 => Value::Integer(self.u64(key)?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.bytes(key)?).into()),
            12 => Value::Float64(f64::from_le_bytes(self.bytes(key)?)),
            other => return Err(self.error(format!("the metadata {key:?} has type number {other}, which is unknown"))),
        })
    }

    fn array(&mut self, key: &str) -> Result<Value> {
        let kind = self.u32(key)?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err(self.error(format!("the metadata {key:?} is a list of lists, which no model needs"))),
            other => {
                return Err(self.error(format!("the metadata {key:?} lists type number {other}, which is unknown")));
            }
        };
        let count = self.count(&format!("entries of {key:?}"), least)?;
        if kind == 8 {
            let what = format!("the metadata {key:?}");
            return (0..count).map(|_| self.text(&what)).collect::<Result<_>>().map(Value::Texts);
        }
        (0..count).map(|_| self.value(kind, key)).collect::<Result<_>>().map(Value::Array)
    }

    /// A tensor's entry; its offset is still from the start of the data.
    fn tensor(&mut self, alignment: u64) -> Result<GgufTensor> {
        let name = self.text("a tensor's name")?;
        let dims = self.u32(&name)?;
        if !(1..=MAX_DIMS).contains(&dims) {
            return Err(self.error(format!("the tensor {name} has {dims} dimensions; 1 to {MAX_DIMS} make sense")));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            shape.push(self.u64(&name)?);
        }
        let kind = GgmlType::from_number(self.u32(&name)?).map_err(|kind| {
            self.error(format!("the tensor {name} has element type {kind}, which is not read"))
                .help(format!("convert the model to one of {}", GgmlType::names()))
        })?;
        let offset = self.u64(&name)?;
        if offset % alignment != 0 {
            return Err(self.error(format!("the tensor {name} begins at {offset}, no multiple of {alignment}")));
        }
        let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        let blocks = elements.filter(|&n| n > 0 && shape[0] % kind.block_len() as u64 == 0);
        let bytes = blocks.and_then(|n| (n / kind.block_len() as u64).checked_mul(kind.block_bytes() as u64));
        let bytes = bytes.ok_or_else(|| {
            self.error(format!("the tensor {name} of type {kind:?} has dimensions {shape:?}, which cannot be"))
        })?;
        if bytes > self.length {
            return Err(self.truncated(&format!("the tensor {name}")));
        }
        let shape = shape.into_iter().rev().map(|d| d as usize).collect();
        Ok(GgufTensor { name, kind, shape, offset, bytes })
    }

    fn check_apart(&self, tensors: &[GgufTensor]) -> Result<()> {
        let mut names = BTreeSet::new();
        let mut order: Vec<&GgufTensor> = tensors.iter().collect();
        order.sort_by_key(|t| t.offset);
        for (i, tensor) in order.iter().enumerate() {
            if !names.insert(&tensor.name) {
                return Err(self.error(format!("the tensor {} stands there twice", tensor.name)));
            }
            if let Some(next) = order.get(i + 1).filter(|next| tensor.offset + tensor.bytes > next.offset) {
                return Err(self.error(format!("the tensors {} and {} overlap", tensor.name, next.name)));
            }
        }
        Ok(())
    }
}
