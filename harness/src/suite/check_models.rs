//! What `[models]` and `[[compare]]` may say.

use std::collections::BTreeMap;
use std::path::Path;

use super::models::BASE;
use super::{ModelRole, NamedModel, Suite, SuiteModel};
use crate::data::examples::rephrased;
use crate::error::{Error, Result};
use crate::nearest;
use crate::run::subject;

/// Refuses models that cannot be told apart, are of no kind or of two, and those that others start
/// from and cannot.
///
/// # Errors
/// Usage, with the table's name.
pub(super) fn check(suite: &Suite, path: &Path) -> Result<()> {
    let models = suite.all_models();
    let at = |name: &str| format!("{}: models.{name}", path.display());
    if models.is_empty() {
        return Err(Error::usage("the suite names no model").at(path.display()).help(
            "give [model] base = \"FOLDER\", or a table [models.NAME] with path, adapter, predictions or train",
        ));
    }
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for SuiteModel { name, .. } in &models {
        *seen.entry(name).or_default() += 1;
    }
    if let Some((name, _)) = seen.iter().find(|(_, count)| **count > 1) {
        let short = if *name == BASE { "[model] base".to_string() } else { format!("[train.{name}]") };
        return Err(Error::usage(format!("two models are called {name}: {short} is one of that name"))
            .at(at(name))
            .help("give the one in [models] another name, or leave the other out"));
    }
    let mut folded: BTreeMap<String, &str> = BTreeMap::new();
    for name in seen.keys() {
        if let Some(other) = folded.insert(name.to_lowercase(), name) {
            return Err(Error::usage(format!("{other} and {name} differ in the case of letters alone"))
                .at(at(name))
                .help("some file systems take them for one name: call one of them otherwise"));
        }
    }
    for (name, entry) in &suite.models.0 {
        entry.check(name).map_err(|e| if e.place().is_none() { e.at(at(name)) } else { e })?;
    }
    for (recipe, replicates) in suite.recipes() {
        let of_recipe = models.iter().filter(|model| replicates.contains(&model.name));
        if of_recipe.clone().any(|model| model.entry.role.is_some()) {
            return Err(Error::usage(format!("{recipe} is trained with several seeds and cannot be the baseline"))
                .at(at(&recipe))
                .help("the others are compared with one model: leave the role out, and name the pair in [[compare]]"));
        }
        if let Some(child) =
            models.iter().find(|m| m.entry.train.as_ref().is_some_and(|t| t.from.as_ref() == Some(&recipe)))
        {
            return Err(Error::usage(format!("from = {recipe:?} is trained with several seeds"))
                .at(at(&child.name))
                .help(format!("name one of them: {}", replicates.join(", "))));
        }
    }
    for role in [ModelRole::Base, ModelRole::Baseline] {
        let of: Vec<&str> = models.iter().filter(|m| m.entry.role == Some(role)).map(|m| m.name.as_str()).collect();
        if let [first, second, ..] = of.as_slice() {
            let word = if role == ModelRole::Base { "base" } else { "baseline" };
            return Err(Error::usage(format!("{first} and {second} both have the role of the {word}"))
                .at(at(second))
                .help("the others are compared with one model: leave the role out of one of them"));
        }
    }
    lineage(&models).map_err(|(name, what, help)| Error::usage(what).at(at(&name)).help(help))?;
    let recipes = suite.recipes();
    for pair in &suite.compare {
        for name in [&pair.baseline, &pair.candidate] {
            if !seen.contains_key(name.as_str()) && recipes.iter().all(|(recipe, _)| recipe != name) {
                return Err(unknown(&format!("[[compare]] names {name:?}"), name, &models).at(path.display()));
            }
        }
        if pair.baseline == pair.candidate {
            return Err(Error::usage(format!("[[compare]] compares {} with itself", pair.baseline))
                .at(path.display())
                .help("name two models"));
        }
    }
    // Found out here, not after an hour of training.
    if suite.models.is_empty() {
        return Ok(());
    }
    for SuiteModel { name, entry, .. } in models.iter().filter(|m| m.entry.path.is_some() || m.entry.adapter.is_some())
    {
        if !(name == BASE && suite.model.has_base()) {
            subject::locate(entry).map_err(|e| {
                let what = format!("models.{name}: {}", e.what());
                rephrased(e, what)
            })?;
        }
    }
    subject::rendering(suite).map(drop).map_err(|e| if e.place().is_none() { e.at(path.display()) } else { e })
}

/// Longest name of a model in bytes: file systems take 255, and files are named after it with more
/// behind.
const LONGEST_NAME: usize = 128;

/// Whether a model of this name can have its results in a file of that name.
pub(crate) fn names_file(name: &str) -> bool {
    let name_ok = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=LONGEST_NAME).contains(&name.len()) && !name.starts_with('.') && name.chars().all(name_ok)
}

/// The error for a name that no model has.
fn unknown(what: &str, name: &str, models: &[SuiteModel]) -> Error {
    let names: Vec<&str> = models.iter().map(|m| m.name.as_str()).collect();
    let meant = nearest(name, names.iter().copied()).map_or(String::new(), |near| format!("did you mean {near}? "));
    Error::usage(format!("{what}, which is no model of the suite")).help(format!("{meant}it has {}", names.join(", ")))
}

/// The first model that starts from what it cannot start from: its name, what is wrong, what to do.
fn lineage(models: &[SuiteModel]) -> Result<(), (String, String, String)> {
    for SuiteModel { name, entry, .. } in models {
        let Some(train) = &entry.train else { continue };
        let mut here = match &train.from {
            Some(from) => from.clone(),
            None => {
                let what = "it does not say which model its training starts from".to_string();
                return Err((name.clone(), what, "give from = \"NAME\", or one model the role of the base".into()));
            }
        };
        let mut way = vec![name.clone()];
        loop {
            if way.contains(&here) {
                way.push(here);
                let what = format!("its training starts from itself: {}", way.join(" from "));
                return Err((name.clone(), what, "let one of them start from a model that exists".into()));
            }
            let Some(parent) = models.iter().find(|model| model.name == here) else {
                let error = unknown(&format!("from = {here:?}"), &here, models);
                let help = error.help_text().unwrap_or_default().to_string();
                return Err((way[way.len() - 1].clone(), error.what().to_string(), help));
            };
            let is_adapter = parent.entry.adapter.is_some()
                || parent.entry.train.as_ref().is_some_and(|t| t.method == super::TrainMethod::Lora);
            if parent.entry.predictions.is_some() || is_adapter {
                let kind = if is_adapter { "an adapter" } else { "texts without a model" };
                let help = match is_adapter {
                    true => "merge it first (karat merge) and name the result as a model of its own",
                    false => "start from a model with a path",
                };
                let what = format!("its training starts from {here}, which is {kind}");
                return Err((way[way.len() - 1].clone(), what, help.into()));
            }
            way.push(here);
            match parent.entry.train.as_ref().and_then(|train| train.from.clone()) {
                Some(next) => here = next,
                None => break,
            }
        }
    }
    Ok(())
}

impl NamedModel {
    /// Refuses an entry that is of no kind or of two, or has settings without effect.
    fn check(&self, name: &str) -> Result<()> {
        if !names_file(name) {
            let what = format!("the model's name {name:?} cannot name a file");
            return Err(Error::usage(what).help("use at most 128 letters, digits, '-', '_' and '.'"));
        }
        let sources: Vec<&str> = [
            ("train", self.train.is_some()),
            ("path", self.path.is_some()),
            ("adapter", self.adapter.is_some()),
            ("predictions", self.predictions.is_some()),
        ]
        .into_iter()
        .filter_map(|(key, there)| there.then_some(key))
        .collect();
        match sources.as_slice() {
            [_] | ["path", "adapter"] => {}
            [] => {
                return Err(Error::usage("it says not what the model is")
                    .help("give one of path, adapter, predictions and train = { method = \"lora\" }"));
            }
            more => {
                return Err(Error::usage(format!(
                    "{} are given, of which one says what the model is",
                    more.join(" and ")
                ))
                .help("an adapter may have a path, its base; else give one of path, adapter, predictions and train"));
            }
        }
        if let Some(file) = &self.predictions {
            let settings = [
                ("backend", self.backend.is_some()),
                ("device", self.device.is_some()),
                ("dtype", self.dtype.is_some()),
                ("options", self.options.is_some()),
                ("template", self.template.is_some()),
                ("system_prompt", self.system_prompt.is_some()),
            ];
            if let Some((key, _)) = settings.iter().find(|(_, there)| *there) {
                return Err(Error::usage(format!("{key} has no effect on texts that are there already"))
                    .help("leave it out, or name the model itself"));
            }
            crate::model_dir::given(file)?;
        }
        if let Some(backend) = self.backend.as_ref().filter(|name| !crate::plugin::is_name(name)) {
            return Err(Error::usage(format!("backend = {backend:?} is not the name of a backend"))
                .help("a suite names backends by name, like \"native\""));
        }
        if let Some(train) = &self.train {
            if let Some(adapter) = &train.adapter {
                adapter.check().map_err(|e| {
                    let error = Error::usage(e.message);
                    if e.causes.is_empty() { error } else { error.because(e.causes.join(": ")) }
                })?;
            }
            if self.role == Some(ModelRole::Base) {
                return Err(Error::usage("a model that is trained here cannot be the base")
                    .help("give it role = \"baseline\" if the others are to be compared with it"));
            }
        }
        Ok(())
    }
}
