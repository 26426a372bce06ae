//! What a run of a suite would do, before it does anything.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::error::Result;
use crate::eval::metric::{self, Reads};
use crate::eval::stats::{PairedSpread, StatsOptions, adjusted_level, cluster_count};
use crate::run::lengths::Lengths;
use crate::run::precheck::precheck;
use crate::run::renderings::Renderings;
use crate::run::{Backends, Observer, decided};
use crate::suite::{ModelRole, NamedModel, Suite, SuiteModel, TrainMethod};
use crate::train::plan::order;

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
    /// What the maximum length cuts off.
    pub lengths: Lengths,
    /// What so many items can tell; none where nothing is compared.
    pub power: Option<PlannedPower>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// What the items of a run to come can tell, before a value is known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PlannedPower {
    /// Tests whose p-values are adjusted together: metrics times pairs of models.
    pub tests: usize,
    /// The share of items on which two models are taken to differ in a right-or-wrong metric.
    pub discordant: f64,
    /// The smallest true difference of such shares that is found four times out of five; none where
    /// none would be.
    pub share: Option<f64>,
    /// The same of a mean, in standard deviations of the paired differences.
    pub deviations: Option<f64>,
}

/// Metrics times pairs of models: every model with the one that all are compared with, and the pairs
/// that are wanted. Texts that are there already have no likelihoods.
fn planned_tests(suite: &Suite) -> usize {
    let models = suite.all_models();
    let of_role = |role| models.iter().position(|model| model.entry.role == Some(role));
    let anchor = of_role(ModelRole::Baseline).or(of_role(ModelRole::Base)).unwrap_or_default();
    let at = |name: &String| models.iter().position(|model| model.name == *name);
    let mut pairs: BTreeSet<(usize, usize)> =
        (0..models.len()).filter(|at| *at != anchor).map(|at| (at.min(anchor), at.max(anchor))).collect();
    let wanted = suite.compare.iter().filter_map(|pair| Some((at(&pair.baseline)?, at(&pair.candidate)?)));
    pairs.extend(wanted.map(|(a, b)| (a.min(b), a.max(b))));
    let of_texts = |at: usize| models[at].entry.predictions.is_some();
    let reads_model = |name: &&String| {
        metric::info(name).is_some_and(|metric| matches!(metric.reads, Reads::Reference | Reads::Options))
    };
    let likelihoods = suite.eval.metrics.iter().filter(reads_model).count();
    let all = suite.eval.metrics.len();
    pairs.into_iter().map(|(a, b)| if of_texts(a) || of_texts(b) { all - likelihoods } else { all }).sum()
}

/// Two models differ on this share of items, where nobody knows better.
const DISCORDANT: f64 = 0.2;

/// What so many `units` (items, or sources where items share some) can tell of the models of
/// `suite`; none where nothing is compared.
pub fn planned_power(units: usize, suite: &Suite) -> Option<PlannedPower> {
    let tests = planned_tests(suite);
    let (n, level) = (units as u64, adjusted_level(0.05, tests));
    let options = StatsOptions { seed: suite.seed, resamples: 1, confidence: suite.stats.confidence };
    let differ = (DISCORDANT * units as f64).round() as u64;
    let means = PairedSpread::SignFlip {
        units: n,
        differ: n,
        deviation: 1.0,
        standard_error: 1.0 / (units as f64).sqrt(),
        weights: 0.0,
        anchor: None,
    };
    let shares = PairedSpread::Mcnemar { units: n, differ };
    (tests > 0 && units > 1).then(|| PlannedPower {
        tests,
        discordant: DISCORDANT,
        share: shares.detectable(level, 0.8, &options).ok(),
        deviations: means.detectable(level, 0.8, &options).ok(),
    })
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
/// without leave, or that no backend can train or ask; a training without rows.
pub fn outline(suite: &Suite, backends: &dyn Backends, observer: &mut dyn Observer) -> Result<Outline> {
    let (suite, _) = &decided(suite, None, backends, observer)?;
    let renderings = Renderings::new(suite)?;
    precheck(suite, &renderings, backends)?;
    let prepared = &renderings.main;
    let mut models = Vec::new();
    for SuiteModel { name, entry, seed, .. } in suite.all_models() {
        let rows = &renderings.of(&name).train;
        let training = match &entry.train {
            Some(train) => {
                let steps = order(rows.len(), &train.hyperparameters.plan_options(seed))?.steps;
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
    let sources = cluster_count(&clusters);
    Ok(Outline {
        suite: suite.name.clone(),
        items: prepared.items.len(),
        sources,
        lengths: prepared.lengths.clone(),
        power: planned_power(sources, suite),
        max_new_tokens: prepared.generation.max_new_tokens,
        models,
        notes: (prepared.notes.iter().chain(prepared.generation.notes().iter().flatten()))
            .map(|note| note.english.clone())
            .chain(renderings.notes.clone())
            .collect(),
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
