//! The models of a suite as they are opened: where each lies, and whose tokenizer and template ask
//! them.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::import::{gguf_in, gguf_view};
use crate::model_dir::{ModelDir, adapter_folder};
use crate::suite::{ModelRole, NamedModel, Suite, SuiteModel};

/// Where a model that exists lies: its folder, and an adapter on it. A GGUF file is the folder that
/// stands for it.
///
/// # Errors
/// As [`ModelDir::resolve`]; usage, for a model that has no folder.
pub fn locate(entry: &NamedModel) -> Result<ModelDir> {
    let adapter = entry.adapter.as_deref();
    let named = match (&entry.path, adapter) {
        (Some(named), _) => named,
        (None, Some(adapter)) => return ModelDir::of_adapter(adapter),
        (None, None) => return Err(Error::usage("this model has no folder").help("give path or adapter")),
    };
    if let Some(adapter) = adapter {
        adapter_folder(adapter)?;
    }
    match gguf_in(named) {
        Some(file) => Ok(ModelDir { model: gguf_view(&file)?, adapter: adapter.map(Into::into) }),
        None => ModelDir::resolve(named, adapter),
    }
}

/// The folder whose tokenizer and template ask all models that do not bring their own: the base of
/// the suite, else its first model that exists.
///
/// # Errors
/// As [`ModelDir::resolve`]; usage, for a suite of texts alone.
pub fn rendering(suite: &Suite) -> Result<PathBuf> {
    if suite.model.has_base() {
        return Ok(suite.model.base.clone());
    }
    let models = suite.all_models();
    let exists = |model: &&SuiteModel| model.entry.path.is_some() || model.entry.adapter.is_some();
    let of = |role| models.iter().filter(exists).find(|model| model.entry.role == Some(role));
    match of(ModelRole::Base).or_else(|| models.iter().find(exists)) {
        Some(model) => Ok(locate(&model.entry)?.model),
        None => Err(Error::usage("no model of this suite has a folder, so there is no tokenizer and no chat template")
            .help("name the model that wrote the texts, or its base: [model] base = \"FOLDER\"")),
    }
}
