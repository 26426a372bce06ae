//! The header of a safetensors file, held against the file: what it says may be believed
//! afterwards.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use safetensors::tensor::Metadata;

pub use safetensors::Dtype;

use crate::fsio::regular;
use crate::{Error, Result};

/// No header is larger; the format says so.
const LARGEST: u64 = 100_000_000;

/// Where a tensor lies in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its row-major shape.
    pub shape: Vec<usize>,
    /// Its first byte in the file and the one after its last; as many as its shape asks for.
    pub bytes: Range<u64>,
}

/// The tensors of the file `path` by their names. They follow each other without gaps, each is as
/// large as its shape says, and the file is as long as all of them.
///
/// # Errors
/// [`ErrorKind::Data`](crate::ErrorKind::Data) for a file that is missing, truncated, longer than
/// its tensors, or no safetensors file; I/O.
pub fn read_header(path: &Path) -> Result<BTreeMap<String, Stored>> {
    let read = |e| Error::io("read", path, e);
    let broken = |what: String| Error::data(what).at(path.display());
    let mut file = regular(path).and_then(|()| File::open(path)).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    let truncated = |needed: u64| broken(format!("truncated: {length} bytes, {needed} are needed"));
    if length < 8 {
        return Err(truncated(8));
    }
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix).map_err(read)?;
    let header = u64::from_le_bytes(prefix);
    let start = header.saturating_add(8);
    if start > length {
        return Err(truncated(start));
    }
    if header > LARGEST {
        return Err(broken(format!("not a safetensors file: a header of {header} bytes")));
    }
    let mut text = vec![0; header as usize];
    file.read_exact(&mut text).map_err(read)?;
    // It checks that the tensors follow each other without gaps and are as large as their shapes
    // say.
    let metadata: Metadata =
        serde_json::from_slice(&text).map_err(|e| broken("not a safetensors file".into()).because(e))?;
    match start.saturating_add(metadata.data_len() as u64) {
        needed if needed > length => return Err(truncated(needed)),
        needed if needed < length => return Err(broken(format!("{} bytes after the last tensor", length - needed))),
        _ => {}
    }
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let (from, to) = info.data_offsets;
        let bytes = start + from as u64..start + to as u64;
        (name, Stored { dtype: info.dtype, shape: info.shape.clone(), bytes })
    });
    Ok(tensors.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safetensors::{Entry, Writer};

    fn file(header: &str, data: usize) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0; data]);
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn what_was_written_is_found_where_it_lies() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let entries = vec![Entry::f32("b", &[2]), Entry::f32("none", &[0, 3]), Entry::new("a", &[3], "BF16", 2)];
        let mut writer = Writer::file(&path, entries);
        writer.write(&[1; 8]).unwrap();
        writer.write(&[2; 6]).unwrap();
        writer.finish().unwrap();
        let (tensors, bytes) = (read_header(&path).unwrap(), std::fs::read(&path).unwrap());
        let of = |name: &str| {
            let Stored { dtype, shape, bytes: at } = &tensors[name];
            (*dtype, shape.as_slice(), &bytes[at.start as usize..at.end as usize])
        };
        assert_eq!(of("b"), (Dtype::F32, &[2][..], &[1; 8][..]));
        assert_eq!(of("none"), (Dtype::F32, &[0, 3][..], &[][..]));
        assert_eq!(of("a"), (Dtype::BF16, &[3][..], &[2; 6][..]));
    }

    #[test]
    fn a_header_that_lies_is_refused_before_anything_is_allocated_for_it() {
        let tensor = |shape: &str, from: u64, to: u64| {
            format!(r#"{{"a": {{"dtype": "U8", "shape": {shape}, "data_offsets": [{from}, {to}]}}}}"#)
        };
        let max = u64::MAX;
        for (header, data, word) in [
            (tensor("[4]", 0, 4), 3, "truncated"),
            (tensor("[4]", 0, 4), 5, "1 bytes after the last tensor"),
            (tensor("[4]", 1, 5), 5, "not a safetensors file"),
            (tensor("[5]", 0, 4), 4, "not a safetensors file"),
            (tensor("[4]", 4, 0), 4, "not a safetensors file"),
            (tensor(&format!("[{}]", max / 16), 0, max / 16), 4, "truncated"),
            (tensor(&format!("[{max}]"), 0, max), 4, "not a safetensors file"),
            (tensor(&format!("[{max}, 2]"), 0, 4), 4, "not a safetensors file"),
            (tensor("[-1]", 0, 4), 4, "not a safetensors file"),
            (tensor("[1e30]", 0, 4), 4, "not a safetensors file"),
            ("null".into(), 0, "not a safetensors file"),
            ("[]".into(), 0, "not a safetensors file"),
            ("{".into(), 0, "not a safetensors file"),
        ] {
            let error = read_header(file(&header, data).path()).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Data);
            assert!(error.to_string().contains(word), "{header}: {error}");
        }
        let raw = |bytes: &[u8]| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            read_header(file.path()).unwrap_err().to_string()
        };
        assert!(raw(b"short").contains("8 are needed"));
        assert!(raw(&[0xff; 16]).contains("truncated"));
        assert_eq!(read_header(Path::new("/no/such")).unwrap_err().kind(), crate::ErrorKind::Data);
    }
}
