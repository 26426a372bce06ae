//! `[models.NAME]` and `[[compare]]`: the models of a suite by name, and which are compared.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Hyperparameters, Suite, TemplateChoice};
use crate::backend::{Dtype, LoraConfig, Method};

/// The `[models]` table, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NamedModels(pub Vec<(String, NamedModel)>);

/// A `[models.NAME]` table: one of `train`, `path`, `adapter` and `predictions` says what the model
/// is. What else is there overrides the suite for this model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NamedModel {
    /// A model that exists: a folder in the Hugging Face layout, a GGUF file, a folder of exported
    /// graphs, `RUN:NAME`, an id on a hub (`hf:owner/name`). The folder of an adapter is that adapter on the base it names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// An adapter that exists (PEFT layout), on `path`, or without it on the base that it names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// Texts that are there already, in any form that `karat eval --predictions` reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predictions: Option<PathBuf>,
    /// A model that is trained here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<TrainModel>,
    /// Whether the others are compared with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<ModelRole>,
    /// The backend that evaluates it, and trains it if it is trained here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Its device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Its element type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// Options of the backend that evaluates it; they replace those of `[eval]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<BTreeMap<String, serde_json::Value>>,
    /// Its chat template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<TemplateChoice>,
    /// Its system turn; empty for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
}

/// What the others are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelRole {
    /// The model before fine-tuning.
    Base,
    /// Another model that the others are measured by, such as the one in use.
    Baseline,
}

/// The `train` table of a named model. In a file the keys of the adapter and of the hyperparameters
/// stand beside `method`, over those of `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainModel {
    /// What is trained.
    pub method: TrainMethod,
    /// The model that it starts from; absent, the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The adapter of [`TrainMethod::Lora`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<LoraConfig>,
    /// How it is trained.
    #[serde(default)]
    pub hyperparameters: Hyperparameters,
}

/// What of a model is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrainMethod {
    /// A LoRA adapter.
    Lora,
    /// All parameters.
    Full,
}

/// A `[[compare]]` entry: one more pair of models to be compared, beside every model with the
/// baseline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComparePair {
    /// The model in question.
    pub candidate: String,
    /// The model that it is compared with.
    pub baseline: String,
}

/// A model of a suite, in whichever form it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct SuiteModel {
    /// Unique within the suite.
    pub name: String,
    /// What it is; exactly one of its four sources is there. `train.from` is filled in.
    pub entry: NamedModel,
    /// The recipe that it is a replicate of, where that is trained with several seeds.
    pub recipe: Option<String>,
    /// The seed of its training.
    pub seed: u64,
}

impl TrainModel {
    /// The method with its adapter.
    pub fn backend_method(&self) -> Method {
        match self.method {
            TrainMethod::Lora => Method::Lora(self.adapter.clone().unwrap_or_default()),
            TrainMethod::Full => Method::Full,
        }
    }
}

impl Suite {
    /// All models, in the order of the columns: the base of `[model]`, `lora` and `full` of
    /// `[train]`, then those of `[models]`. Where none has a role, the one that the first trained
    /// model starts from is the base.
    pub fn all_models(&self) -> Vec<SuiteModel> {
        let mut models = Vec::new();
        let seed = self.seed;
        let mut push = |name: &str, entry: NamedModel| {
            models.push(SuiteModel { name: name.into(), entry, recipe: None, seed });
        };
        if self.model.has_base() {
            let path = Some(self.model.base.clone());
            push(BASE, NamedModel { path, role: Some(ModelRole::Base), ..NamedModel::default() });
        }
        if let Some(lora) = &self.train.lora {
            let (method, adapter) = (TrainMethod::Lora, Some(lora.adapter.clone()));
            let train = TrainModel { method, from: None, adapter, hyperparameters: lora.hyperparameters.clone() };
            push("lora", NamedModel { train: Some(train), ..NamedModel::default() });
        }
        if let Some(full) = &self.train.full {
            let (method, adapter) = (TrainMethod::Full, None);
            let train = TrainModel { method, from: None, adapter, hyperparameters: full.hyperparameters.clone() };
            push("full", NamedModel { train: Some(train), ..NamedModel::default() });
        }
        self.models.0.iter().for_each(|(name, entry)| push(name, entry.clone()));
        let base = base_of(&models).map(|at| models[at].name.clone());
        for train in models.iter_mut().filter_map(|model| model.entry.train.as_mut()) {
            train.from = train.from.take().or_else(|| base.clone());
        }
        // What the others are trained from is what they are compared with.
        if models.iter().all(|model| model.entry.role.is_none())
            && let Some(at) = models.iter().position(|model| model.entry.train.is_some())
            && let Some(root) = root(&models, at)
        {
            models[root].entry.role = Some(ModelRole::Base);
        }
        models.into_iter().flat_map(replicates).collect()
    }

    /// The recipes that are trained with several seeds, and the names of their models, in order.
    pub fn recipes(&self) -> Vec<(String, Vec<String>)> {
        let mut recipes: Vec<(String, Vec<String>)> = Vec::new();
        for SuiteModel { name, recipe, .. } in self.all_models() {
            let Some(recipe) = recipe else { continue };
            match recipes.last_mut().filter(|(last, _)| *last == recipe) {
                Some((_, models)) => models.push(name),
                None => recipes.push((recipe, vec![name])),
            }
        }
        recipes
    }
}

/// A trained model once for each of its seeds: `NAME.sSEED` if there are several.
fn replicates(model: SuiteModel) -> Vec<SuiteModel> {
    let seeds = model.entry.train.as_ref().map_or(&[][..], |train| &train.hyperparameters.seeds);
    match seeds {
        [] => vec![model],
        [seed] => vec![SuiteModel { seed: *seed, ..model.clone() }],
        seeds => {
            let one = |seed: &u64| SuiteModel {
                name: format!("{}.s{seed}", model.name),
                recipe: Some(model.name.clone()),
                seed: *seed,
                ..model.clone()
            };
            seeds.iter().map(one).collect()
        }
    }
}

/// The name of the model in `[model] base`.
pub(super) const BASE: &str = "base";

/// The model that others are trained from unless they say: the one with the role of the base, else
/// the only one that exists and is no adapter.
fn base_of(models: &[SuiteModel]) -> Option<usize> {
    let role = models.iter().position(|model| model.entry.role == Some(ModelRole::Base));
    let exists = |model: &SuiteModel| model.entry.path.is_some() && model.entry.adapter.is_none();
    let mut existing = models.iter().enumerate().filter(|(_, model)| exists(model)).map(|(at, _)| at);
    role.or_else(|| existing.next().filter(|_| existing.next().is_none()))
}

/// The model that training number `at` starts from in the end; none for one that leads nowhere, or
/// in a circle.
fn root(models: &[SuiteModel], mut at: usize) -> Option<usize> {
    for _ in 0..models.len() {
        let Some(train) = &models[at].entry.train else { return Some(at) };
        at = models.iter().position(|model| Some(&model.name) == train.from.as_ref())?;
    }
    None
}

impl NamedModels {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for NamedModels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, model)| (name, model)))
    }
}

impl<'de> Deserialize<'de> for NamedModels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Models;
        impl<'de> Visitor<'de> for Models {
            type Value = NamedModels;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of models by name")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NamedModels, A::Error> {
                let mut models = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    models.push(entry);
                }
                Ok(NamedModels(models))
            }
        }
        deserializer.deserialize_map(Models)
    }
}
