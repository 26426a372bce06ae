//! Parsing of suites: where the file lies, the flat tables that people write, `--set`, and errors
//! with their place in the file. All of it works on TOML tables, before serde has its say.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::toml_errors::toml_error;
use super::{
    ComparePair, DataConfig, EvalConfig, GateConfig, ModelSettings, StatsConfig, TrackConfig, VerdictConfig,
    field_names, keys,
};
use crate::backend::LoraConfig;
use crate::error::{Error, Result};
use crate::report::Language;
use crate::{model_dir, nearest};

/// Where a suite of this name lies.
pub(super) fn find(spec: &str) -> Result<PathBuf> {
    let direct = PathBuf::from(spec);
    let mut tried = vec![direct.clone()];
    if direct.is_file() {
        return Ok(direct);
    }
    tried.push(direct.join("suite.toml"));
    if !spec.contains(['/', '\\']) {
        let here = std::env::current_dir().map_err(|e| Error::failed("no current folder").because(e))?;
        for folder in here.ancestors() {
            tried.push(folder.join("suites").join(spec).join("suite.toml"));
        }
    }
    if let Some(found) = tried.iter().skip(1).find(|p| p.is_file()) {
        return Ok(found.clone());
    }
    let near = model_dir::near(&direct).filter(|near| near.starts_with("did you mean"));
    let near = near.or_else(|| {
        let named = names_of_suites();
        nearest(spec, named.iter().map(String::as_str)).map(|name| format!("did you mean {name}?"))
    });
    let help = "give the path of a suite file, or the name of a folder below `suites`";
    let help = near.map_or(help.to_string(), |near| format!("{near} {help}"));
    Err(Error::usage(format!("there is no suite {spec:?}; tried"))
        .with_lines(tried.iter().map(|p| format!("  {}", p.display())))
        .help(help))
}

/// The names of the suites in this folder and those above it.
fn names_of_suites() -> Vec<String> {
    let here = std::env::current_dir().unwrap_or_default();
    let folders = here.ancestors().filter_map(|folder| std::fs::read_dir(folder.join("suites")).ok());
    let entries = folders.flatten().flatten().filter(|entry| entry.path().join("suite.toml").is_file());
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Keys of the adapter, which stand beside the hyperparameters in `[train.lora]`.
const ADAPTER_KEYS: [&str; 12] = LoraConfig::KEYS;

/// Turns the flat tables that people write (`[train]`, `[train.lora]`, `[train.full]`) into the
/// nested ones of [`TrainSection`]: each run gets the shared hyperparameters, then its own. Done by
/// hand because serde's `flatten` would ruin the error messages. Already nested tables (a stored
/// effective suite) are understood too. Returns the shared hyperparameters, for a run that an
/// override adds, and whether they are of no use: the file has some, and trains nothing.
pub(super) fn inherit_hyperparameters(table: &mut Table, path: &Path) -> Result<(Table, bool)> {
    field_names::translate(table).map_err(|e| e.at(path.display()))?;
    let train = table.entry("train").or_insert_with(|| Value::Table(Table::new()));
    let Value::Table(train) = train else { return Ok((Table::new(), false)) };
    let mut shared = std::mem::take(train);
    let runs: Vec<(&str, Value)> =
        ["lora", "full"].into_iter().filter_map(|k| shared.remove(k).map(|v| (k, v))).collect();
    for (name, run) in runs {
        let Value::Table(run) = run else {
            return Err(Error::usage(format!("train.{name} must be a table")).at(path.display()));
        };
        train.insert(name.into(), Value::Table(nest(name, run, &shared)));
    }
    let mut trains = !train.is_empty();
    if let Some(Value::Table(models)) = table.get_mut("models") {
        for (name, model) in models {
            let Some(train) = model.get_mut("train") else { continue };
            let Value::Table(own) = train else {
                return Err(Error::usage(format!("models.{name}.train must be a table"))
                    .at(path.display())
                    .help("for example train = { method = \"lora\", r = 16 }"));
            };
            has_method(own).map_err(|e| e.at(format!("{}: models.{name}.train", path.display())))?;
            *own = nest_named(std::mem::take(own), &shared);
            trains = true;
        }
    }
    let idle = !trains && !shared.is_empty();
    Ok((shared, idle))
}

/// The error for settings that nothing is trained with.
pub(super) fn nothing_is_trained(path: &Path) -> Error {
    Error::usage("[train] has settings, but nothing is trained").at(path.display()).help(
        "add an empty [train.lora] or [train.full] table, or a model with a `train` table, to train with these settings",
    )
}

/// Refuses the `train` table of a named model that does not say what is trained, or gives an adapter
/// to a training that has none.
fn has_method(own: &Table) -> Result<()> {
    let Some(method) = own.get("method") else {
        return Err(Error::usage("it does not say what is trained").help("add method = \"lora\" or method = \"full\""));
    };
    match own.keys().find(|key| ADAPTER_KEYS.contains(&key.as_str())) {
        Some(key) if method.as_str() == Some("full") => {
            Err(Error::usage(format!("`{key}` is of an adapter, and method = \"full\" trains none"))
                .help("leave it out, or write method = \"lora\""))
        }
        _ => Ok(()),
    }
}

/// The nested `train` table of a named model.
fn nest_named(mut own: Table, shared: &Table) -> Table {
    let kept: Vec<(String, Value)> =
        NAMED_TRAIN_KEYS.iter().filter_map(|key| Some(((*key).to_string(), own.remove(*key)?))).collect();
    let is_lora = kept.iter().any(|(key, value)| key == "method" && value.as_str() == Some("lora"));
    let mut nested = nest(if is_lora { "lora" } else { "full" }, own, shared);
    nested.extend(kept);
    nested
}

/// Keys of a named model's `train` table beside the adapter's and the hyperparameters.
pub(super) const NAMED_TRAIN_KEYS: [&str; 2] = ["method", "from"];

/// The nested table of a run: the shared hyperparameters, its own on top of them.
fn nest(name: &str, mut run: Table, shared: &Table) -> Table {
    let mut hyperparameters = shared.clone();
    let mut nested = Table::new();
    let is_nested = run.contains_key("hyperparameters") || run.contains_key("adapter");
    if is_nested {
        match run.remove("hyperparameters") {
            Some(Value::Table(own)) => overlay(&mut hyperparameters, own),
            // Not a table: left as it is, for the error that names it.
            Some(other) => return Table::from_iter([("hyperparameters".to_string(), other)]),
            None => {}
        }
        // The adapter, and keys that nobody knows.
        nested.extend(run);
    } else {
        let mut adapter = Table::new();
        for (key, value) in run {
            let is_adapter = name == "lora" && ADAPTER_KEYS.contains(&key.as_str());
            overlay(if is_adapter { &mut adapter } else { &mut hyperparameters }, Table::from_iter([(key, value)]));
        }
        if name == "lora" {
            nested.insert("adapter".into(), Value::Table(adapter));
        }
    }
    nested.insert("hyperparameters".into(), Value::Table(hyperparameters));
    nested
}

/// Puts `over` on top of `under`, table by table: `[train.optimizer]` and `[train.lora.optimizer]`
/// may each set a part.
fn overlay(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => overlay(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

/// Refuses what a suite's author has no say in: which library of code is loaded, and which folder
/// is written, where the suite is run. The command line may say it
/// (`--set eval.options.library=PATH`), and so may the environment.
pub(super) fn refuse_places(table: &Table, path: &Path) -> Result<()> {
    if table.get("track").is_some_and(|track| track.get("dir").is_some()) {
        return Err(Error::usage("track.dir names a folder to write, which a suite file cannot do")
            .at(path.display())
            .help("remove it, and give it on the command line: --set track.dir=DIR"));
    }
    let of_models = table.get("models").and_then(Value::as_table).into_iter().flatten();
    let of_models = of_models.map(|(name, model)| (format!("models.{name}"), Some(model)));
    for (owner, table) in std::iter::once(("eval".to_string(), table.get("eval"))).chain(of_models) {
        let named = table.and_then(|table| table.get("options")).and_then(Value::as_table);
        let found = named.and_then(|options| options.keys().find_map(|key| Some((key, names_place(key)?))));
        let Some((key, what)) = found else { continue };
        return Err(Error::usage(format!("{owner}.options.{key} names {what}, which a suite file cannot do"))
            .at(path.display())
            .help(format!("remove it, and give it on the command line: --set {owner}.options.{key}=PATH")));
    }
    Ok(())
}

/// The kind of place of this machine that a backend's option names, by the contract's rule
/// ([`OpenConfig::options`](crate::backend::OpenConfig::options)).
fn names_place(option: &str) -> Option<&'static str> {
    let is = |name: &str| option == name || option.strip_suffix(name).is_some_and(|rest| rest.ends_with('_'));
    match option {
        _ if is("library") => Some("code to load"),
        _ if is("dir") => Some("a folder to write"),
        _ => None,
    }
}

/// The same file read with its spans: only the error matters. The train tables are checked key by
/// key, since their written form is flat.
pub(super) fn check_spans(text: &str, path: &Path) -> Result<()> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Written {
        name: String,
        #[serde(default)]
        title: String,
        #[serde(default)]
        description: String,
        #[serde(default)]
        language: Language,
        #[serde(default)]
        seed: u64,
        data: DataConfig,
        #[serde(default)]
        model: ModelSettings,
        #[serde(default)]
        train: Table,
        // Checked key by key, as those of `[train]` are.
        #[serde(default)]
        models: Table,
        #[serde(default)]
        compare: Vec<ComparePair>,
        #[serde(default)]
        eval: EvalConfig,
        #[serde(default)]
        stats: StatsConfig,
        #[serde(default)]
        gate: GateConfig,
        #[serde(default)]
        verdict: Option<VerdictConfig>,
        #[serde(default)]
        track: TrackConfig,
        #[serde(default)]
        pins: std::collections::BTreeMap<String, String>,
    }
    toml::from_str::<Written>(text).map(drop).map_err(|e| toml_error(&e, text, path))
}

/// Applies one `key.path=value`. The value is TOML; what is not TOML is a string. In `train.lora`,
/// `train.full` and `models.NAME.train` the flat keys of the file are understood, `false` leaves
/// the run or the model out, and a shared `train.KEY` reaches all of them. A run that the file does
/// not have begins with the `shared` hyperparameters.
pub(super) fn set(table: &mut Table, shared: &mut Table, assignment: &str) -> Result<()> {
    let Some((key, value)) = assignment.split_once('=') else {
        return Err(Error::usage(format!("--set {assignment:?} is not of the form key=value"))
            .help("for example --set train.lora.r=16"));
    };
    let parts: Vec<&str> = key.trim().split('.').collect();
    let (parts, value) = field_names::assignment(&parts, parse_value(value.trim()), settings_at(&parts))?;
    keys::check_of_suite(&parts.join("."), &value).map_err(|e| e.at("--set"))?;
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    if let (["train", run @ ("lora" | "full")], Value::Boolean(false)) = (parts.as_slice(), &value) {
        if let Some(Value::Table(train)) = table.get_mut("train") {
            train.remove(*run);
        }
        return Ok(());
    }
    if let ["train", run @ ("lora" | "full"), ..] = parts.as_slice()
        && table.get("train").and_then(|t| t.get(run)).is_none()
    {
        insert(table, &["train", run], Value::Table(nest(run, Table::new(), shared)))?;
    }
    match parts.as_slice() {
        ["train", run @ ("lora" | "full")] => match value {
            Value::Table(own) => {
                let own = nest(run, own, shared);
                insert(table, &["train", run], Value::Table(own))
            }
            // Begun above, if it was not there.
            Value::Boolean(true) => Ok(()),
            value => insert(table, &["train", run], value),
        },
        ["train", run @ ("lora" | "full"), leaf] => {
            let group = if ADAPTER_KEYS.contains(leaf) { "adapter" } else { "hyperparameters" };
            insert(table, &["train", run, group, leaf], value)
        }
        ["train", run @ ("lora" | "full"), rest @ ..] if rest.first() == Some(&"optimizer") => {
            insert(table, &[&["train", run, "hyperparameters"], rest].concat(), value)
        }
        // The rest is one key of a pattern, in which a dot is a dot.
        ["train", "lora", map @ ("rank_pattern" | "alpha_pattern"), rest @ ..] => {
            insert(table, &["train", "lora", "adapter", map, &rest.join(".")], value)
        }
        ["train", rest @ ..] if !matches!(rest.first(), Some(&("lora" | "full")) | None) => {
            let present = |run: &&str| table.get("train").and_then(|t| t.get(run)).is_some();
            let mut runs: Vec<Vec<String>> =
                ["lora", "full"].into_iter().filter(present).map(|run| vec!["train".into(), run.into()]).collect();
            let models = table.get("models").and_then(Value::as_table).into_iter().flatten();
            let trained = models.filter(|(_, model)| model.get("train").is_some());
            runs.extend(trained.map(|(name, _)| vec!["models".into(), name.clone(), "train".into()]));
            if runs.is_empty() {
                return Err(Error::usage(format!(
                    "--set {assignment:?} sets what all trained models share, but the suite trains none"
                ))
                .help("add one before it, for example --set train.lora={}"));
            }
            for run in &runs {
                let run: Vec<&str> = run.iter().map(String::as_str).chain(["hyperparameters"]).collect();
                insert(table, &[&run[..], rest].concat(), value.clone())?;
            }
            insert(shared, rest, value)
        }
        ["models", name] if value == Value::Boolean(false) => {
            if let Some(Value::Table(models)) = table.get_mut("models") {
                models.remove(*name);
            }
            Ok(())
        }
        ["models", name] => match value {
            Value::Table(mut model) => {
                if let Some(Value::Table(train)) = model.get_mut("train") {
                    *train = nest_named(std::mem::take(train), shared);
                }
                insert(table, &["models", name], Value::Table(model))
            }
            value => insert(table, &["models", name], value),
        },
        ["models", name, "train"] => match value {
            Value::Table(train) => insert(table, &["models", name, "train"], Value::Table(nest_named(train, shared))),
            value => insert(table, &["models", name, "train"], value),
        },
        ["models", name, "train", map @ ("rank_pattern" | "alpha_pattern"), rest @ ..] => {
            insert(table, &["models", name, "train", "adapter", map, &rest.join(".")], value)
        }
        ["models", name, "train", first, rest @ ..]
            if !NAMED_TRAIN_KEYS.contains(first) && !["adapter", "hyperparameters"].contains(first) =>
        {
            let group = if ADAPTER_KEYS.contains(first) { "adapter" } else { "hyperparameters" };
            insert(table, &[&["models", name, "train", group, first], rest].concat(), value)
        }
        path => insert(table, path, value),
    }
}

/// How many parts of a key of a suite lead to the table of a training.
fn settings_at(parts: &[&str]) -> Option<usize> {
    let at = match parts {
        ["train", "lora" | "full", ..] => 2,
        ["train", ..] => 1,
        ["models", _, "train", ..] => 3,
        _ => return None,
    };
    let nested = at > 1 && matches!(parts.get(at), Some(&("adapter" | "hyperparameters")));
    Some(at + usize::from(nested))
}

/// Applies one `KEY=value` of `karat train` to a table
/// `{data, fields, model, lora = {adapter, hyperparameters}}`: an adapter's key and a
/// hyperparameter stand alone, what says how rows are read is `data.KEY` or `fields.KEY`, what
/// computes `model.KEY`.
///
/// # Errors
/// Usage, for an assignment without `=` and for a key that nobody knows, with all that there are.
pub fn parse_setting(table: &mut Table, assignment: &str) -> Result<()> {
    let (key, value) = assignment.split_once('=').ok_or_else(|| {
        Error::usage(format!("--set {assignment:?} is not of the form key=value"))
            .help("for example --set learning_rate=2e-4")
    })?;
    let parts: Vec<&str> = key.trim().split('.').collect();
    let (parts, value) = field_names::assignment(&parts, parse_value(value.trim()), Some(0))?;
    let key = parts.join(".");
    let key = key.as_str();
    keys::check_of_training(key, &value).map_err(|e| e.at("--set"))?;
    let path: Vec<&str> = match key.split('.').next() {
        Some("data" | "fields" | "model") => key.split('.').collect(),
        Some("rank_pattern" | "alpha_pattern") if key.contains('.') => {
            let (map, pattern) = key.split_once('.').unwrap_or((key, ""));
            vec!["lora", "adapter", map, pattern]
        }
        Some(first) if ADAPTER_KEYS.contains(&first) => ["lora", "adapter"].into_iter().chain(key.split('.')).collect(),
        _ => ["lora", "hyperparameters"].into_iter().chain(key.split('.')).collect(),
    };
    insert(table, &path, value)
}

/// A TOML value, and nothing beside it; what is not TOML is a text, as is a date, which no setting
/// is.
pub(super) fn parse_value(text: &str) -> Value {
    match text.parse::<Value>() {
        Ok(Value::Datetime(_)) | Err(_) => Value::String(text.into()),
        Ok(value) => value,
    }
}

pub(super) fn insert(table: &mut Table, path: &[&str], value: Value) -> Result<()> {
    let Some((last, folders)) = path.split_last() else { return Ok(()) };
    let mut here = table;
    for part in folders {
        let next = here.entry(*part).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(next) = next else {
            return Err(Error::usage(format!("--set {}: {part:?} is not a table", path.join("."))));
        };
        here = next;
    }
    here.insert((*last).into(), value);
    Ok(())
}
