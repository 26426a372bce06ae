//! Target modules: the linear layers that a LoRA configuration trains.

use std::collections::{BTreeMap, BTreeSet};

use karat_backend::BackendError;
use karat_backend::LoraConfig;
use karat_backend::lora::{AdapterShape, Matcher, Modules};

use crate::config::ModelConfig;

/// Modules of one model that are trained under a configuration.
#[derive(Debug, PartialEq)]
pub struct TargetModules {
    /// The adapted modules by their paths.
    pub modules: BTreeMap<String, AdapterShape>,
    /// Whether they have magnitudes.
    pub dora: bool,
    /// Names of the tensors that are trained whole.
    pub whole: BTreeSet<String>,
}

impl TargetModules {
    /// Checks a configuration against the model.
    ///
    /// # Errors
    /// Names the module or the key that does not fit.
    pub fn new(model: &ModelConfig, config: &LoraConfig) -> Result<Self, BackendError> {
        config.check()?;
        let matcher = config.matcher()?;
        let linears = model.linears();
        let paths = || linears.keys().map(String::as_str);
        for path in ["lm_head", "model.embed_tokens"] {
            if let Modules::Names(names) = &config.target_modules
                && names.iter().any(|name| path == name || path.ends_with(&format!(".{name}")))
            {
                return Err(BackendError::unsupported(match (path, model.tied) {
                    ("lm_head", true) => {
                        "target module lm_head: the head is tied to the embedding, an adapter on it would change both; \
                         leave it out"
                            .to_owned()
                    }
                    _ => format!(
                        "an adapter on target module {path} is not implemented; modules_to_save trains it whole"
                    ),
                }));
            }
        }
        if let Some(target) = matcher.without_module(paths()) {
            return Err(BackendError::failed(format!("target module {target} is not a linear layer of this model")));
        }
        let whole = whole(model, config, &matcher)?;
        let mut modules = BTreeMap::new();
        for path in paths() {
            if let Some(shape) = matcher.adapter(path)? {
                if matcher.trained_whole(path) {
                    return Err(BackendError::unsupported(format!(
                        "modules_to_save: {path} would be trained whole and have an adapter; name it more exactly"
                    )));
                }
                modules.insert(path.to_owned(), shape);
            }
        }
        if modules.is_empty() {
            return Err(BackendError::failed(
                "no module gets an adapter: exclude_modules, modules_to_save and layers_to_transform leave none of the \
                 target_modules",
            ));
        }
        Ok(TargetModules { modules, dora: config.use_dora, whole })
    }
}

/// The tensors of the modules that are trained whole.
fn whole(model: &ModelConfig, config: &LoraConfig, matcher: &Matcher<'_>) -> Result<BTreeSet<String>, BackendError> {
    let mut found = BTreeSet::new();
    for (name, _) in model.tensors() {
        if matcher.trained_whole(super::module_of(&name)) {
            found.insert(name);
        }
    }
    if model.tied
        && let Some(path) = ["lm_head", "model.embed_tokens"].into_iter().find(|path| matcher.trained_whole(path))
    {
        let elsewhere = if path == "lm_head" { "; onnxruntime applies an adapter that brings a head" } else { "" };
        return Err(BackendError::unsupported(format!(
            "modules_to_save: {path} is tied (head and embedding are one tensor); PEFT would train a copy of one and so \
             untie them, which is not implemented{elsewhere}"
        )));
    }
    for wanted in &config.modules_to_save {
        let path = |name: &String| name.rsplit_once('.').is_some_and(|(path, _)| path.ends_with(wanted.as_str()));
        if !found.iter().any(path) {
            return Err(BackendError::failed(format!(
                "modules_to_save: {wanted} names no module of this model that has weights of its own"
            )));
        }
    }
    Ok(found)
}
