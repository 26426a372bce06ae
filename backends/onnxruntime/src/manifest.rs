//! The manifest of an export folder, and the check that the export is whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use karat_backend::{AdapterMode, BackendError, Dtype};
use karat_system::fsio;
use serde::{Deserialize, Serialize};

use crate::operators::Operators;
use crate::proto;
use crate::weight_format::WeightFormat;

/// The model file in an export folder.
pub const MODEL: &str = "model.onnx";
/// Its weights.
pub const DATA: &str = "model.onnx.data";
/// The manifest in an export folder.
pub const MANIFEST: &str = "karat-onnx.json";
/// Adapters beside the model, a folder each.
pub const ADAPTERS: &str = "adapters";

/// Raised when the graph or the manifest changes: older exports in a cache are then left alone and
/// made anew.
pub const FORMAT: u32 = 5;
/// Raised when the same files come to mean another model: what an earlier version read of them is
/// made anew, while its exports are still opened. 1: rope scaling that earlier versions passed
/// over, heads that only the configuration ties. 2: merged adapters in the bits of karat-model,
/// what calibration reads. 3: calibration by Karat's own GEMM.
pub const READING: u32 = 3;

/// Contents of `karat-onnx.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of graph and manifest.
    pub format: u32,
    /// SHA-256 over the content of model and adapter, the element type, the adapter mode and the
    /// format.
    pub key: String,
    /// SHA-256 over the files of the base model's folder.
    pub base: String,
    /// Weight format.
    pub weights: WeightFormat,
    /// In whose operators the graph is.
    #[serde(default)]
    pub operators: Operators,
    /// How an adapter gets in.
    pub adapter_mode: AdapterMode,
    /// Linear layers whose LoRA may be fed (`{module}.lora_A.weight` `[input, rank]`,
    /// `{module}.lora_B.weight` `[rank, output]`, the scale in B), with `[input, output]`. None in
    /// the mode `merge`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub adapter_inputs: BTreeMap<String, [usize; 2]>,
    /// Names of the adapters that lie beside the model in `adapters/`, with a SHA-256 over the
    /// files of each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub adapters: BTreeMap<String, String>,
    /// Layers.
    pub layers: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Number of logits.
    pub vocab: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Parameters of the base model.
    pub parameters: u64,
    /// Parameters of the adapter that was merged, or 0.
    pub adapter_parameters: u64,
    /// Bytes of `model.onnx`.
    pub model_bytes: u64,
    /// SHA-256 of `model.onnx`.
    pub model_sha256: String,
    /// Bytes of `model.onnx.data`.
    pub data_bytes: u64,
    /// Warnings of how the checkpoint and its adapter were read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Manifest {
    /// Whether the files are large enough for the sizes that are said: what is allocated for them
    /// is bounded so.
    fn fits_its_files(&self) -> bool {
        let [layers, heads, dim, vocab, positions] =
            [self.layers, self.kv_heads, self.head_dim, self.vocab, self.max_positions].map(|n| n as u128);
        let data = u128::from(self.data_bytes);
        // A layer has some twenty nodes with their names; every projection to the keys, row of the
        // head and angle its bytes.
        let inputs = self.adapter_inputs.values().flatten().all(|n| (*n as u128) < 8 * data);
        let all = [layers, heads, dim, vocab, positions].iter().all(|n| *n > 0);
        all && inputs
            && 256 * layers <= u128::from(self.model_bytes)
            && layers * heads * dim <= 8 * data
            && vocab <= 8 * data
            && positions * dim <= data
    }

    /// The element type of activations, the key-value cache and an adapter that is fed. Karat's own
    /// operators round what they multiply, and nothing else.
    pub fn activations(&self) -> Dtype {
        match self.operators {
            Operators::Standard => self.weights.activations(),
            Operators::Karat => Dtype::F32,
        }
    }
}

/// An export on disk whose files are as long as its manifest says.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The folder.
    pub folder: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
}

impl Exported {
    /// Opens an export folder and checks that it is whole.
    ///
    /// # Errors
    /// Missing or broken manifest, another format or opset, missing, truncated or changed files.
    pub fn open(folder: &Path) -> Result<Self, BackendError> {
        let path = folder.join(MANIFEST);
        if !path.is_file() {
            return Err(BackendError::failed(format!(
                "{} is no whole export of karat: {MANIFEST} is missing; write one with `karat export`",
                folder.display()
            )));
        }
        let broken = |what: String| {
            BackendError::failed(format!(
                "the export {} is broken: {what}; remove it and export again",
                folder.display()
            ))
        };
        let json: serde_json::Value = fsio::read_json(&path).map_err(|e| broken(e.to_string()).because(&e))?;
        let format = &json["format"];
        if format != FORMAT {
            return Err(broken(format!("its format is {format}, this version reads {FORMAT}")));
        }
        let manifest: Manifest = serde_json::from_value(json).map_err(|e| broken(format!("{MANIFEST}: {e}")))?;
        for (name, expected) in [(MODEL, manifest.model_bytes), (DATA, manifest.data_bytes)] {
            let length = fs::metadata(folder.join(name)).map_err(|e| broken(format!("{name}: {e}")))?.len();
            if length != expected {
                return Err(broken(format!("{name} has {length} bytes, it was written with {expected}")));
            }
        }
        if !manifest.fits_its_files() {
            return Err(broken(format!("the sizes in {MANIFEST} do not fit the files")));
        }
        // The graph is small and decides everything; the weights are only measured, hashing them
        // would cost seconds.
        let model = fs::read(folder.join(MODEL)).map_err(|e| broken(format!("{MODEL}: {e}")))?;
        if fsio::sha256(&model) != manifest.model_sha256 {
            return Err(broken(format!("{MODEL} is not what was written")));
        }
        proto::check_opsets(&model).map_err(|what| broken(format!("{MODEL}: {what}")))?;
        proto::check_external_data(&model, DATA).map_err(|what| broken(format!("{MODEL}: {what}")))?;
        Ok(Exported { folder: folder.to_path_buf(), manifest })
    }

    /// Whether a folder is meant as an export: it has a manifest or an ONNX model, and no
    /// safetensors to export from.
    pub fn is_meant_by(folder: &Path) -> bool {
        (folder.join(MANIFEST).is_file() || folder.join(MODEL).is_file())
            && !folder.join("model.safetensors").is_file()
            && !folder.join("model.safetensors.index.json").is_file()
    }
}
