//! Adapter inputs: LoRA factors that are fed to a resident base.
//!
//! A model exported in the adapter mode `runtime` has, for every linear layer, the inputs
//! `{module}.lora_A.weight` `[input, rank]` and `{module}.lora_B.weight` `[rank, output]`, whose
//! defaults have rank 0. Feeding an adapter's factors makes it active; feeding none leaves the
//! base, to the bit. One session has at most one adapter, so the names of two never meet; which
//! base an adapter belongs to is checked by names and shapes and, where it says so, by the base's
//! hash.

use std::path::Path;

use half::{bf16, f16};
use karat_backend::{BackendError, Dtype};
use karat_model::peft::Adapter;
use karat_system::fsio;
use ort::value::{DynTensor, Tensor};
use serde::{Deserialize, Serialize};

use crate::adapter::transposed;
use crate::error::failed;
use crate::manifest::Manifest;

/// Beside an adapter that was exported with a base: which base that was.
pub const BASE: &str = "karat-base.json";

/// Contents of [`BASE`].
#[derive(Debug, Serialize, Deserialize)]
pub struct BaseRecord {
    /// SHA-256 over the files of the base model's folder.
    pub base: String,
}

/// Tensors to feed beside the ids.
#[derive(Default)]
pub struct AdapterInputs {
    /// Input names and values.
    pub tensors: Vec<(String, DynTensor)>,
    /// Parameters of the adapter.
    pub parameters: u64,
    /// Warnings of how it was read.
    pub warnings: Vec<String>,
}

impl AdapterInputs {
    /// Reads the adapter in `folder` for the exported `model`.
    ///
    /// # Errors
    /// A model exported without such inputs; a broken adapter, one of another base, or one that
    /// must be merged.
    pub fn read(folder: &Path, model: &Manifest) -> Result<AdapterInputs, BackendError> {
        if model.adapter_inputs.is_empty() {
            return Err(BackendError::unsupported(format!(
                "the adapter {} cannot be applied to a model whose adapters are merged at export: use the option \
                 adapter_mode = \"runtime\"",
                folder.display()
            )));
        }
        check_base(folder, &model.base)?;
        let adapter = Adapter::open(folder, &model.adapter_inputs)?;
        let tensor = failed::<ort::Error>("could not make a tensor of the adapter");
        let mut tensors = Vec::new();
        for (module, factors) in transposed(&adapter, &model.adapter_inputs)? {
            let [input, output] = model.adapter_inputs[&module];
            for (side, shape, values) in
                [("A", [input, factors.rank], factors.a), ("B", [factors.rank, output], factors.b)]
            {
                let made = match model.activations() {
                    Dtype::F16 => {
                        let narrow: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
                        if narrow.iter().any(|v| !v.is_finite()) {
                            return Err(BackendError::failed(format!(
                                "the adapter {}: {module}.lora_{side} holds values that f16 cannot hold",
                                folder.display()
                            )));
                        }
                        Tensor::from_array((shape, narrow)).map(Tensor::upcast)
                    }
                    Dtype::Bf16 => {
                        let narrow: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
                        Tensor::from_array((shape, narrow)).map(Tensor::upcast)
                    }
                    Dtype::F32 => Tensor::from_array((shape, values)).map(Tensor::upcast),
                };
                tensors.push((format!("{module}.lora_{side}.weight"), made.map_err(&tensor)?));
            }
        }
        Ok(AdapterInputs { tensors, parameters: adapter.parameters(), warnings: adapter.warnings().to_vec() })
    }
}

/// An adapter that says which base it belongs to must belong to this one.
pub fn check_base(folder: &Path, base: &str) -> Result<(), BackendError> {
    let path = folder.join(BASE);
    if !path.is_file() {
        return Ok(());
    }
    let broken =
        |e: karat_system::Error| BackendError::failed(format!("{} cannot be read", path.display())).because(&e);
    let said: BaseRecord = fsio::read_json(&path).map_err(broken)?;
    match said.base == base {
        true => Ok(()),
        false => Err(BackendError::failed(format!(
            "the adapter {} belongs to another base: {BASE} names {}, the model was made from {}",
            folder.display(),
            said.base.get(..12).unwrap_or(&said.base),
            base.get(..12).unwrap_or(base)
        ))),
    }
}
