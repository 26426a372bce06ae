//! The bytes of a data file as its rows are written in: `.gz` and `.zst` unpacked on the way, the
//! digest of the file itself taken, nothing held.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Bytes that are read at a time.
const BUFFER: usize = 1 << 18;
/// A file may unpack to so many bytes, whatever its own size.
const ALWAYS: u64 = 1 << 28;
/// Beyond that it may unpack to so many times its size: text that repeats itself packs a hundredfold,
/// what is made to fill memory and time a thousandfold and more.
const RATIO: u64 = 200;

/// Whether a file of so many bytes may unpack to so many.
pub(super) fn sensible(unpacked: u64, file: u64) -> bool {
    unpacked <= ALWAYS || unpacked / RATIO <= file
}

/// How a file is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packed {
    Not,
    Gzip,
    Zstd,
}

/// What the end of a name says of the packing, and the name without it.
fn packed(name: &str) -> (Packed, &str) {
    let lower = name.to_ascii_lowercase();
    let found = [(".gz", Packed::Gzip), (".zst", Packed::Zstd)].into_iter().find(|(end, _)| lower.ends_with(end));
    found.map_or((Packed::Not, name), |(end, packed)| (packed, &name[..name.len() - end.len()]))
}

/// The ending of a file's name that says how its rows are written, in lower case, and whether the
/// file is packed.
pub(super) fn ending(path: &Path) -> (String, bool) {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let (packed, plain) = packed(&name);
    let end = plain.rsplit_once('.').map_or("", |(_, end)| end);
    (end.to_ascii_lowercase(), packed != Packed::Not)
}

/// What has been read of the file itself.
#[derive(Default)]
struct Tally {
    digest: Sha256,
    bytes: u64,
    /// The file could not be read, which is no fault of what stands in it.
    failed: bool,
}

/// A file that is hashed as it is read.
struct Hashed {
    file: File,
    tally: Rc<RefCell<Tally>>,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer);
        let mut tally = self.tally.borrow_mut();
        match &read {
            Ok(n) => {
                tally.digest.update(&buffer[..*n]);
                tally.bytes += *n as u64;
            }
            Err(e) => tally.failed |= e.kind() != io::ErrorKind::Interrupted,
        }
        read
    }
}

/// What a packed file unpacks to, up to what is sensible.
struct Bounded<R> {
    inner: R,
    tally: Rc<RefCell<Tally>>,
    bytes: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.bytes += n as u64;
        if !sensible(self.bytes, self.tally.borrow().bytes) {
            let what = format!("it unpacks to more than {RATIO} times its size, which no rows do");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(n)
    }
}

/// An open data file.
pub(super) struct Unpacked {
    /// Its bytes, unpacked.
    pub(super) text: Box<dyn BufRead>,
    rest: Hashed,
    name: String,
}

/// Opens a file.
///
/// # Errors
/// If it cannot be opened.
pub(super) fn open(path: &Path) -> Result<Unpacked> {
    let fail = |e| Error::io("read the data set", path, e);
    if path.is_dir() {
        return Err(fail(io::ErrorKind::IsADirectory.into()));
    }
    let file = File::open(path).map_err(fail)?;
    let tally = Rc::new(RefCell::new(Tally::default()));
    // Both go on in the same file from where the other is.
    let rest = Hashed { file: file.try_clone().map_err(fail)?, tally: tally.clone() };
    let raw = BufReader::with_capacity(BUFFER, Hashed { file, tally: tally.clone() });
    let name = path.display().to_string();
    fn bounded(inner: impl Read + 'static, tally: Rc<RefCell<Tally>>) -> Box<dyn BufRead> {
        Box::new(BufReader::with_capacity(BUFFER, Bounded { inner, tally, bytes: 0 }))
    }
    let text: Box<dyn BufRead> = match packed(&name).0 {
        Packed::Not => Box::new(raw),
        Packed::Gzip => bounded(flate2::bufread::MultiGzDecoder::new(raw), tally),
        Packed::Zstd => bounded(zstd::stream::read::Decoder::with_buffer(raw).map_err(fail)?, tally),
    };
    Ok(Unpacked { text, rest, name })
}

impl Unpacked {
    /// The error that reading met: the system's, or that the file is broken.
    pub(super) fn failed(&self, error: io::Error) -> Error {
        if self.rest.tally.borrow().failed || packed(&self.name).0 == Packed::Not {
            return Error::io("read the data set", &self.name, error);
        }
        Error::data(format!("the file cannot be unpacked: {error}"))
            .at(&self.name)
            .help("copy it again; `gzip -t` or `zstd -t` says whether it is whole")
    }

    /// SHA-256 of the whole file, in hexadecimal: what is left of it is read.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn sha256(mut self) -> Result<String> {
        drop(self.text);
        let mut buffer = vec![0; BUFFER];
        loop {
            match self.rest.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("read the data set", &self.name, e)),
            }
        }
        let digest = std::mem::take(&mut self.rest.tally.borrow_mut().digest).finalize();
        Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}
