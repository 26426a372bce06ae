//! `[model]`: what is trained and where.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::backend::Dtype;

/// Which chat template renders prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TemplateChoice {
    /// The base model's own.
    #[default]
    Model,
    /// The literal ChatML text of the published scripts.
    ChatmlRecipe,
}

/// The `[model]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// The base model's folder, or its id on a hub (`hf:owner/name`, `ms:owner/name`); empty where `[models]` names the models.
    #[serde(default, skip_serializing_if = "is_none")]
    pub base: PathBuf,
    /// The backend that trains.
    #[serde(default = "default_backend")]
    pub backend: String,
    /// Its device.
    #[serde(default = "default_device")]
    pub device: String,
    /// Its element type.
    #[serde(default)]
    pub dtype: Dtype,
    /// Worker threads; 0 is all cores.
    #[serde(default)]
    pub threads: usize,
}

fn is_none(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

impl ModelSettings {
    /// Whether a base is named here.
    pub fn has_base(&self) -> bool {
        !is_none(&self.base)
    }
}

impl Default for ModelSettings {
    fn default() -> Self {
        let (backend, device) = (default_backend(), default_device());
        ModelSettings { base: PathBuf::new(), backend, device, dtype: Dtype::default(), threads: 0 }
    }
}

fn default_backend() -> String {
    "native".into()
}

fn default_device() -> String {
    "cpu".into()
}
