//! The model that an adapter of a training is opened on.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Watch;
use crate::backend::peft::ADAPTER_CONFIG;
use crate::error::{Error, Result};
use crate::fsio;
use crate::model_dir::ModelDir;

/// The model below the adapter in `folder`: the one that was typed, else the suite's base, if that
/// is the one that the adapter names. Beside it what was taken for granted, for people.
///
/// # Errors
/// Usage, for an adapter of another base, naming both; a configuration that cannot be read.
pub fn base_of(folder: &Path, watch: &Watch<'_>) -> Result<(PathBuf, Option<String>)> {
    let ours = &watch.suite.model.base;
    if let Some(typed) = &watch.adapter_base {
        return Ok((typed.clone(), None));
    }
    let config: Value = fsio::read_json(&folder.join(ADAPTER_CONFIG))?;
    let Some(named) = config["base_model_name_or_path"].as_str().filter(|name| !name.is_empty()) else {
        let said = format!("the adapters name no base: they are opened on the suite's, {}", ours.display());
        return Ok((ours.clone(), Some(said)));
    };
    match ModelDir::resolve(folder, None) {
        Ok(found) if same_model(&found.model, ours)? => Ok((ours.clone(), None)),
        Ok(found) => Err(other_base(folder, named, Some(&found.model), ours)),
        // What it names is on another machine: names are all there is.
        Err(_) if is_called(ours, named) => {
            let said = format!("{named:?}, the base that the adapters name, is taken to be {}", ours.display());
            Ok((ours.clone(), Some(said)))
        }
        Err(_) => Err(other_base(folder, named, None, ours)),
    }
}

fn other_base(folder: &Path, named: &str, found: Option<&Path>, ours: &Path) -> Error {
    let whose = match found {
        Some(found) => format!("{named:?} ({})", found.display()),
        None => format!("{named:?}, which is not on this machine"),
    };
    Error::usage(format!("this adapter is of another base: of {whose}, and the suite's base is {}", ours.display()))
        .at(folder.join(ADAPTER_CONFIG).display())
        .help("give the suite the adapter's base (--set model.base=DIR), or say on which model the adapters lie: --adapter-base DIR")
}

/// Whether two folders hold the same configuration and weights.
fn same_model(one: &Path, other: &Path) -> Result<bool> {
    let real = |path: &Path| path.canonicalize().map_err(|e| Error::io("resolve", path, e));
    if real(one)? == real(other)? {
        return Ok(true);
    }
    let digests = |folder| fsio::digests(folder, |name| name == "config.json" || name.ends_with(".safetensors"));
    Ok(digests(one)? == digests(other)?)
}

/// Whether the folder of a model, or of a snapshot in a cache of the hub, is called as an adapter
/// calls its base: a path or an id of the hub.
fn is_called(model: &Path, named: &str) -> bool {
    let last = |path: &str| path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().map(str::to_string);
    let cached = format!("models--{}", named.replace('/', "--"));
    let folder = model.file_name().map(|name| name.to_string_lossy().into_owned());
    let config: Value = fsio::read_json(&model.join("config.json")).unwrap_or_default();
    folder == last(named)
        || model.components().any(|part| *part.as_os_str() == *cached)
        || config["_name_or_path"].as_str() == Some(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_known_by_its_folder_its_place_in_a_cache_or_what_it_calls_itself() {
        let folder = tempfile::tempdir().unwrap();
        let put = |place: &str, config: &str| {
            let model = folder.path().join(place);
            std::fs::create_dir_all(&model).unwrap();
            std::fs::write(model.join("config.json"), config).unwrap();
            model
        };
        let plain = put("models/Qwen3-0.6B", "{}");
        let cached = put("models--Qwen--Qwen3-0.6B/snapshots/abc", "{}");
        let called = put("mine", r#"{"_name_or_path": "Qwen/Qwen3-0.6B"}"#);
        for model in [&plain, &cached, &called] {
            assert!(is_called(model, "Qwen/Qwen3-0.6B"), "{}", model.display());
            assert!(!is_called(model, "Qwen/Qwen3-1.7B"), "{}", model.display());
        }
        assert!(is_called(&plain, "/workspace/models/Qwen3-0.6B/"));
    }
}
