//! A LoRA adapter in the PEFT layout, read strictly and merged into the weights: `W + s B A`, in f32.
//!
//! PEFT's configuration has many switches that change what an adapter means. Those that cannot matter here are listed;
//! any other key must be off, or the adapter is refused by that key's name. A wrong merge would look like a result.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use karat::backend::BackendError;
use rayon::prelude::*;
use serde_json::{Map, Value};

use crate::checkpoint::Checkpoint;

/// Keys that do not change what the stored tensors mean at inference.
const INERT: [&str; 16] = [
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "target_modules",
    "task_type",
];

/// An opened adapter.
#[derive(Debug)]
pub struct Adapter {
    folder: PathBuf,
    weights: Checkpoint,
    scale: f64,
    /// Module path (`model.layers.0.self_attn.q_proj`) -> rank.
    ranks: BTreeMap<String, usize>,
    parameters: u64,
}

impl Adapter {
    /// Reads `adapter_config.json` and the header of `adapter_model.safetensors`.
    ///
    /// # Errors
    /// Unsupported for a variant of LoRA that is not implemented, failed for broken or missing files.
    pub fn open(folder: &Path) -> Result<Self, BackendError> {
        let path = folder.join("adapter_config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| {
            BackendError::failed(format!(
                "could not read {}: {e}; the adapter must be a folder in the PEFT layout",
                path.display()
            ))
        })?;
        let config: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|e| BackendError::failed(format!("{} is not a JSON object: {e}", path.display())))?;
        let scale = read_scale(&config, &path)?;
        let weights = Checkpoint::open_file(&folder.join("adapter_model.safetensors"))?;
        let mut adapter =
            Adapter { folder: folder.to_path_buf(), weights, scale, ranks: BTreeMap::new(), parameters: 0 };
        adapter.collect_modules()?;
        if let Some(Value::Array(targets)) = config.get("target_modules") {
            for target in targets.iter().filter_map(Value::as_str) {
                let hit = |module: &String| module == target || module.ends_with(&format!(".{target}"));
                if !adapter.ranks.keys().any(hit) {
                    return Err(adapter.broken(&format!("target_modules names {target}, but no tensor belongs to it")));
                }
            }
        }
        Ok(adapter)
    }

    fn broken(&self, what: &str) -> BackendError {
        BackendError::failed(format!("the adapter {}: {what}", self.folder.display()))
    }

    fn collect_modules(&mut self) -> Result<(), BackendError> {
        for name in self.weights.names() {
            let module = name
                .strip_prefix("base_model.model.")
                .and_then(|rest| rest.strip_suffix(".lora_A.weight").or_else(|| rest.strip_suffix(".lora_B.weight")));
            let Some(module) = module else {
                return Err(BackendError::unsupported(format!(
                    "the adapter {}: the tensor {name} is no LoRA matrix of a linear layer; such adapters are not implemented",
                    self.folder.display()
                )));
            };
            let side = |x: &str| self.weights.shape(&format!("base_model.model.{module}.lora_{x}.weight"));
            let (Some(&[rank, input]), Some(&[output, rank_b])) = (side("A"), side("B")) else {
                return Err(self.broken(&format!("{module} needs both lora_A and lora_B, each with two dimensions")));
            };
            if rank != rank_b || rank == 0 {
                return Err(self.broken(&format!("{module}: lora_A has rank {rank}, lora_B {rank_b}")));
            }
            if self.ranks.insert(module.to_string(), rank).is_none() {
                self.parameters += (rank * (input + output)) as u64;
            }
        }
        match self.ranks.is_empty() {
            true => Err(self.broken("it holds no tensors")),
            false => Ok(()),
        }
    }

    /// Numbers in all LoRA matrices.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Module paths that carry a LoRA.
    pub fn modules(&self) -> BTreeSet<&str> {
        self.ranks.keys().map(String::as_str).collect()
    }

    /// Adds `s B A` to `weight` (`[output, input]`) if `module` carries a LoRA.
    ///
    /// # Errors
    /// If the shapes do not fit: the adapter belongs to another base model.
    pub fn merge(&self, module: &str, weight: &mut [f32], output: usize, input: usize) -> Result<(), BackendError> {
        let Some(&rank) = self.ranks.get(module) else { return Ok(()) };
        let other_base =
            |e: BackendError| self.broken("it does not fit this model; was it trained on another base?").because(&e);
        let name = |x: &str| format!("base_model.model.{module}.lora_{x}.weight");
        let a = self.weights.read(&name("A"), &[rank, input]).map_err(other_base)?;
        let b = self.weights.read(&name("B"), &[output, rank]).map_err(other_base)?;
        let scale = self.scale as f32;
        weight.par_chunks_exact_mut(input).zip(b.par_chunks_exact(rank)).for_each(|(row, b)| {
            // The delta is summed before it is scaled and added, as PEFT's merge does.
            let mut delta = vec![0f32; input];
            for (&b, a) in b.iter().zip(a.chunks_exact(input)) {
                delta.iter_mut().zip(a).for_each(|(d, &a)| *d += b * a);
            }
            row.iter_mut().zip(&delta).for_each(|(w, &d)| *w += scale * d);
        });
        Ok(())
    }
}

/// Checks every key of the configuration; returns `s`.
fn read_scale(config: &Map<String, Value>, path: &Path) -> Result<f64, BackendError> {
    let place = path.display();
    let unsupported =
        |what: String| BackendError::unsupported(format!("{place}: the onnxruntime backend does not implement {what}"));
    if config.get("peft_type").and_then(Value::as_str) != Some("LORA") {
        let found = config.get("peft_type").unwrap_or(&Value::Null);
        return Err(unsupported(format!("peft_type {found}; only LORA")));
    }
    match config.get("init_lora_weights") {
        None | Some(Value::Bool(_) | Value::Null) => {}
        Some(Value::String(how)) if how == "gaussian" => {}
        // PiSSA, OLoRA and the like change the base weights too.
        Some(other) => return Err(unsupported(format!("init_lora_weights {other}"))),
    }
    for (key, value) in config {
        let off = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(items) => items.is_empty(),
            Value::String(text) => text.is_empty() || (key == "bias" && text == "none"),
            _ => false,
        };
        if !off && key != "use_rslora" && !INERT.contains(&key.as_str()) {
            return Err(unsupported(format!("{key} = {value}")));
        }
    }
    let number = |key: &str| {
        let value = config.get(key).and_then(Value::as_f64).filter(|x| x.is_finite() && *x > 0.0);
        value.ok_or_else(|| BackendError::failed(format!("{place}: {key} must be a positive number")))
    };
    let (r, alpha) = (number("r")?, number("lora_alpha")?);
    let rslora = config.get("use_rslora").and_then(Value::as_bool).unwrap_or(false);
    Ok(alpha / if rslora { r.sqrt() } else { r })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(change: impl FnOnce(&mut Map<String, Value>)) -> Result<f64, BackendError> {
        let mut config = serde_json::json!({"peft_type": "LORA", "r": 8, "lora_alpha": 32, "bias": "none",
            "use_dora": false, "loftq_config": {}, "init_lora_weights": true, "target_modules": ["q_proj"]});
        let config = config.as_object_mut().unwrap();
        change(config);
        read_scale(config, Path::new("adapter_config.json"))
    }

    #[test]
    fn the_scale_is_pefts() {
        assert_eq!(scale(|_| {}).unwrap(), 4.0);
        let rank_stabilized = scale(|c| drop(c.insert("use_rslora".into(), true.into()))).unwrap();
        assert!((rank_stabilized - 32.0 / 8f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn variants_are_refused_by_the_name_of_their_key() {
        for (key, value) in [
            ("use_dora", serde_json::json!(true)),
            ("bias", serde_json::json!("all")),
            ("modules_to_save", serde_json::json!(["lm_head"])),
            ("rank_pattern", serde_json::json!({"q_proj": 4})),
            ("fan_in_fan_out", serde_json::json!(true)),
            ("init_lora_weights", serde_json::json!("pissa")),
            ("peft_type", serde_json::json!("ADALORA")),
            ("a_key_of_tomorrow", serde_json::json!(3)),
        ] {
            let error = scale(|c| drop(c.insert(key.into(), value))).unwrap_err();
            assert!(error.message.contains(key), "{error}");
        }
    }
}
