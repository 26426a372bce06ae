//! A head that is said to be the embedding, beside a head in the file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use crate::checkpoint::{CheckpointLayout, Location};
use half::{bf16, f16};
use karat_backend::{BackendError, Dtype};
use serde_json::{Map, Value};

use crate::config::ModelConfig;
use crate::{EMBEDDING, HEAD};

/// Numbers that are compared at once.
const STRETCH: usize = 1 << 20;

impl ModelConfig {
    /// Settles whether the head is the embedding. Where `config.json` says so and the files hold a
    /// head of their own with other numbers, both are kept apart, as `PreTrainedModel.tie_weights`
    /// of transformers 5 has it, and a warning says so; what is written of this model then says
    /// that they are not tied. A head with the same numbers stays tied.
    ///
    /// # Errors
    /// A head or an embedding that is misshapen or unreadable.
    pub fn settle_head(&mut self, files: &CheckpointLayout) -> Result<(), BackendError> {
        let said = Said { tied: &mut self.tied, raw: &mut self.raw, warnings: &mut self.warnings };
        said.settle(files, [self.vocab_size, self.hidden_size])
    }
}

/// A configuration's word on its head.
pub(crate) struct Said<'a> {
    /// The head is the embedding.
    pub tied: &'a mut bool,
    /// Every key of `config.json`.
    pub raw: &'a mut Map<String, Value>,
    /// Warnings of how the folder was read.
    pub warnings: &'a mut Vec<String>,
}

impl Said<'_> {
    /// [`ModelConfig::settle_head`] of a model whose embedding has `shape`.
    ///
    /// # Errors
    /// As there.
    pub fn settle(self, files: &CheckpointLayout, shape: [usize; 2]) -> Result<(), BackendError> {
        if *self.tied
            && let Some(said) = head_differs(files, shape)?
        {
            *self.tied = false;
            self.raw.insert("tie_word_embeddings".into(), Value::Bool(false));
            self.warnings.push(said);
        }
        Ok(())
    }
}

/// A warning if `files` hold a head of `shape` beside an embedding with other numbers.
///
/// # Errors
/// A head or an embedding that is misshapen or unreadable.
fn head_differs(files: &CheckpointLayout, shape: [usize; 2]) -> Result<Option<String>, BackendError> {
    if files.shape(HEAD).is_none() {
        return Ok(None);
    }
    let mut pair = [EMBEDDING, HEAD].map(|name| Numbers::open(files, name, &shape));
    let [Ok(embedding), Ok(head)] = &mut pair else {
        return Err(pair.into_iter().find_map(Result::err).unwrap_or_else(BackendError::cancelled));
    };
    let (mut left, mut equal) = (shape[0] * shape[1], true);
    while left > 0 && equal {
        let n = left.min(STRETCH);
        // The sign of a zero does not count, and no number equals one that is not a number.
        equal = embedding.next(n)? == head.next(n)?;
        left -= n;
    }
    Ok((!equal).then(|| {
        format!(
            "config.json says tie_word_embeddings, but {HEAD} in the file differs from the embedding: both are kept apart, \
             as in transformers 5; write false there to say what is so"
        )
    }))
}

/// A tensor that is read from its beginning, widened to f32.
struct Numbers {
    file: File,
    path: std::path::PathBuf,
    dtype: Dtype,
}

impl Numbers {
    fn open(files: &CheckpointLayout, name: &str, shape: &[usize]) -> Result<Self, BackendError> {
        let Location { file, dtype, bytes } = files.find(name, shape)?;
        let path = files.files()[file].clone();
        let opened = File::open(&path).and_then(|mut file| file.seek(SeekFrom::Start(bytes.start)).map(|_| file));
        match opened {
            Ok(file) => Ok(Numbers { file, path, dtype }),
            Err(e) => Err(BackendError::failed(format!("{}: could not open it", path.display())).because(&e)),
        }
    }

    fn next(&mut self, n: usize) -> Result<Vec<f32>, BackendError> {
        let mut raw = vec![0; n * if self.dtype == Dtype::F32 { 4 } else { 2 }];
        self.file
            .read_exact(&mut raw)
            .map_err(|e| BackendError::failed(format!("{}: could not read it", self.path.display())).because(&e))?;
        Ok(match self.dtype {
            Dtype::F32 => raw.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::Bf16 => raw.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::F16 => raw.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        })
    }
}
