//! What a run of a suite would do, before it does anything.

use serde::Serialize;

use crate::error::Result;
use crate::run::renderings::Renderings;
use crate::suite::{ModelRole, NamedModel, Suite, SuiteModel, TrainMethod};
use crate::train::plan::{PlanOptions, order};

/// A run laid out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outline {
    /// The suite's name.
    pub suite: String,
    /// Items that every model is asked.
    pub items: usize,
    /// Sources of these items: items of one source are related.
    pub sources: usize,
    /// Longest generation of an item, in tokens.
    pub max_new_tokens: usize,
    /// The models, in the order of the columns.
    pub models: Vec<PlannedModel>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// A model of a run to come.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedModel {
    /// Its name.
    pub name: String,
    /// `base`, `baseline`, or none.
    pub role: Option<ModelRole>,
    /// What it is, in words.
    pub what: String,
    /// Who evaluates it; none of texts that are there.
    pub backend: Option<String>,
    /// Its training, if it is trained here.
    pub training: Option<PlannedTraining>,
}

/// A training to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedTraining {
    /// Its seed.
    pub seed: u64,
    /// Rows of the data.
    pub rows: usize,
    /// Optimizer steps.
    pub steps: usize,
    /// Tokens that are fed, over all steps.
    pub tokens: u64,
}

/// Lays out what [`run`](super::run) would do: reads and renders the data, opens no model and
/// writes nothing.
///
/// # Errors
/// What is wrong with the data, a template or a tokenizer; models that are asked differently
/// without leave; a training without rows.
pub fn outline(suite: &Suite) -> Result<Outline> {
    let renderings = Renderings::new(suite)?;
    let prepared = &renderings.main;
    let mut models = Vec::new();
    for SuiteModel { name, entry, seed, .. } in suite.all_models() {
        let rows = &renderings.of(&name).train;
        let training = match &entry.train {
            Some(train) => {
                let h = &train.hyperparameters;
                let options = PlanOptions {
                    batch_size: h.batch_size,
                    accumulation: h.accumulation,
                    epochs: h.epochs,
                    max_steps: (h.max_steps > 0).then_some(h.max_steps),
                    seed,
                    shuffle: h.shuffle,
                };
                let steps = order(rows.len(), &options)?.steps;
                let view = rows.tokens();
                let lengths: Vec<u64> = view.iter().map(|ids| ids.len() as u64).collect();
                let tokens = steps.iter().flatten().flatten().map(|&row| lengths[row as usize]).sum();
                Some(PlannedTraining { seed, rows: rows.len(), steps: steps.len(), tokens })
            }
            None => None,
        };
        let backend = entry
            .predictions
            .is_none()
            .then(|| entry.backend.clone().unwrap_or_else(|| suite.eval_backend().to_string()));
        models.push(PlannedModel { what: described(&entry), role: entry.role, name, backend, training });
    }
    let clusters: Vec<&str> = prepared.items.iter().map(|item| item.cluster.as_str()).collect();
    Ok(Outline {
        suite: suite.name.clone(),
        items: prepared.items.len(),
        sources: crate::eval::stats::cluster_count(&clusters),
        max_new_tokens: suite.eval.max_new_tokens,
        models,
        notes: prepared.notes.iter().map(|note| note.english.clone()).chain(renderings.notes.clone()).collect(),
    })
}

fn described(entry: &NamedModel) -> String {
    let shown = |path: &Option<std::path::PathBuf>| path.as_ref().map_or_else(String::new, |p| p.display().to_string());
    match entry {
        NamedModel { train: Some(train), .. } => {
            let from = train.from.as_deref().unwrap_or_default();
            match train.method {
                TrainMethod::Lora => {
                    format!("a LoRA of rank {} trained on {from}", train.adapter.as_ref().map_or(0, |a| a.r))
                }
                TrainMethod::Full => format!("all parameters trained, from {from}"),
            }
        }
        NamedModel { predictions: Some(_), .. } => format!("texts of {}", shown(&entry.predictions)),
        NamedModel { adapter: Some(_), path: None, .. } => format!("the adapter {}", shown(&entry.adapter)),
        NamedModel { adapter: Some(_), .. } => {
            format!("the adapter {} on {}", shown(&entry.adapter), shown(&entry.path))
        }
        _ => shown(&entry.path),
    }
}
