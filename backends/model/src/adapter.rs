//! The tensors of an adapter under the names that PEFT gives them when it saves.
//!
//! A training script that writes `state_dict()` itself leaves more in the names: the adapter's own
//! name (`lora_A.default.weight`), and what wraps a module for compilation or several devices
//! (`_orig_mod.`, `module.`).

use std::collections::BTreeSet;
use std::path::Path;

use crate::checkpoint::CheckpointLayout;
use crate::peft::ADAPTER_WEIGHTS;
use karat_backend::BackendError;

/// Parts of a name that `torch.compile`, DistributedDataParallel, FSDP and activation checkpointing
/// put in.
const WRAPPERS: [&str; 4] = ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// The name that PEFT stores a tensor under, and the adapter's name in it, if there was one.
pub fn canonical(name: &str) -> (String, Option<String>) {
    let mut parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
    let tail = |parts: &[&str], key: &str| parts.iter().rposition(|part| *part == key).map(|at| (at, parts.len() - at));
    let mut adapter = None;
    for key in ["lora_A", "lora_B"] {
        // lora_A, the adapter's name, weight.
        if let Some((at, 3)) = tail(&parts, key) {
            adapter = Some(parts.remove(at + 1).to_owned());
        }
    }
    if let Some((at, length)) = tail(&parts, "lora_magnitude_vector") {
        if length == 3 || (length == 2 && parts[at + 1] != "weight") {
            adapter = Some(parts[at + 1].to_owned());
        }
        parts.truncate(at + 1);
    }
    match tail(&parts, "modules_to_save") {
        Some((at, 3)) => {
            adapter = Some(parts[at + 1].to_owned());
            parts.drain(at..at + 2);
        }
        // Older versions of PEFT.
        Some((at, 2)) => drop(parts.remove(at)),
        _ => {}
    }
    (parts.join("."), adapter)
}

/// The tensors of the adapter in `folder` under PEFT's names, and what to say if they had others.
///
/// # Errors
/// As [`CheckpointLayout::of_file`]; tensors of several adapters, or two under one name.
pub fn adapter_tensors(folder: &Path) -> Result<(CheckpointLayout, Option<String>), BackendError> {
    let path = folder.join(ADAPTER_WEIGHTS);
    let files = CheckpointLayout::of_file(&path)?;
    let adapters: BTreeSet<String> = files.names().filter_map(|name| canonical(name).1).collect();
    if adapters.len() > 1 {
        let names: Vec<String> = adapters.into_iter().collect();
        return Err(BackendError::failed(format!(
            "{}: holds tensors of several adapters ({}); save each into a folder of its own",
            path.display(),
            names.join(", ")
        )));
    }
    let changed: Vec<String> = files.names().filter(|name| canonical(name).0 != **name).map(String::from).collect();
    let Some(first) = changed.first() else { return Ok((files, None)) };
    let said = format!(
        "{ADAPTER_WEIGHTS}: {} tensor names are not those that PEFT saves and are read as if they were, as {first} for {}",
        changed.len(),
        canonical(first).0
    );
    Ok((files.renamed(|name| canonical(name).0)?, Some(said)))
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn names_of_training_scripts_become_those_that_peft_saves() {
        let of = "base_model.model.model.layers.0.self_attn.q_proj";
        for (theirs, ours) in [
            (format!("{of}.lora_A.default.weight"), format!("{of}.lora_A.weight")),
            (format!("_orig_mod.{of}.lora_B.weight"), format!("{of}.lora_B.weight")),
            (format!("module.{of}.lora_B.my.weight"), format!("{of}.lora_B.weight")),
            (of.replace("model.model", "model._orig_mod.model") + ".lora_A.weight", format!("{of}.lora_A.weight")),
            (format!("{of}.lora_magnitude_vector.default.weight"), format!("{of}.lora_magnitude_vector")),
            (format!("{of}.lora_magnitude_vector.default"), format!("{of}.lora_magnitude_vector")),
            (format!("{of}.lora_magnitude_vector.weight"), format!("{of}.lora_magnitude_vector")),
            (
                "base_model.model.lm_head.modules_to_save.default.weight".into(),
                "base_model.model.lm_head.weight".into(),
            ),
            ("base_model.model.lm_head.modules_to_save.weight".into(), "base_model.model.lm_head.weight".into()),
        ] {
            assert_eq!(canonical(&theirs).0, ours, "{theirs}");
            assert_eq!(canonical(&ours), (ours.clone(), None));
        }
    }
}
