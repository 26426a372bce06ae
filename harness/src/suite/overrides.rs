//! Overrides of a suite's file by the command line.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::Suite;
use super::parse::{insert, set};
use crate::backend::Dtype;
use crate::error::{Error, Result};
use crate::report::Language;

/// Settings that stand above those of a suite's file: the texts of `--set`, then typed ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// `key.path=value`, in order; a value is TOML, and a text where it is none.
    pub set: Vec<String>,
    /// The backend that trains, and that evaluates unless the suite names another.
    pub backend: Option<String>,
    /// The backend that evaluates.
    pub eval_backend: Option<String>,
    /// The device that trains and evaluates.
    pub device: Option<String>,
    /// The element type to compute in.
    pub dtype: Option<Dtype>,
    /// Worker threads; 0 is all cores.
    pub threads: Option<usize>,
    /// Options of the backend that evaluates.
    pub eval_options: BTreeMap<String, serde_json::Value>,
    /// Language of the report.
    pub language: Option<Language>,
    /// A bad line of data is an error.
    pub strict: bool,
    /// States of hub revisions that an earlier run in the same folder noted ([`Suite::pins`]).
    pub pins: BTreeMap<String, String>,
}

impl From<&[String]> for Overrides {
    fn from(set: &[String]) -> Self {
        Overrides { set: set.to_vec(), ..Overrides::default() }
    }
}

impl Overrides {
    pub(super) fn is_empty(&self) -> bool {
        // What a revision means changes no setting.
        *self == Overrides { pins: self.pins.clone(), ..Overrides::default() }
    }

    /// Puts all of them on top of `table`; `shared` are the hyperparameters of a run that one of
    /// them adds.
    pub(super) fn apply(&self, table: &mut Table, shared: &mut Table) -> Result<()> {
        self.set.iter().try_for_each(|assignment| set(table, shared, assignment))?;
        let text = |text: &Option<String>| text.clone().map(Value::String);
        let written = |value: &dyn Fn() -> Result<Value, toml::ser::Error>| {
            value().map_err(|e| Error::usage("an option that TOML has no word for").because(e))
        };
        let mut typed = vec![
            (["model", "backend"], text(&self.backend)),
            (["eval", "backend"], text(&self.eval_backend)),
            (["model", "device"], text(&self.device)),
            (["model", "dtype"], self.dtype.map(|dtype| Value::String(dtype.to_string()))),
            (["model", "threads"], self.threads.map(|n| Value::Integer(n as i64))),
            (["data", "strict"], self.strict.then_some(Value::Boolean(true))),
        ];
        if !self.eval_options.is_empty() {
            let options = table.get("eval").and_then(|eval| eval.get("options")).and_then(Value::as_table);
            let mut options = options.cloned().unwrap_or_default();
            for (key, value) in &self.eval_options {
                options.insert(key.clone(), written(&|| Value::try_from(value))?);
            }
            typed.push((["eval", "options"], Some(Value::Table(options))));
        }
        for (path, value) in typed {
            if let Some(value) = value {
                insert(table, &path, value)?;
            }
        }
        if let Some(language) = self.language {
            insert(table, &["language"], written(&|| Value::try_from(language))?)?;
        }
        // One device for both: a file's own device of evaluation would outlast the flag without a
        // word.
        if self.device.is_some()
            && let Some(Value::Table(eval)) = table.get_mut("eval")
        {
            eval.remove("device");
        }
        Ok(())
    }

    /// The error for overrides that make no suite of `(table, shared)`, which is one without them:
    /// of the first of `--set` that breaks it, by name. `error` is that of all together.
    pub(super) fn refused(&self, (mut table, mut shared): (Table, Table), error: &toml::de::Error) -> Error {
        let said = |e: &toml::de::Error| e.message().trim().replace('\n', " ");
        for assignment in &self.set {
            // They were all applied before.
            if set(&mut table, &mut shared, assignment).is_err() {
                break;
            }
            if let Err(e) = Value::Table(table.clone()).try_into::<Suite>() {
                let (key, value) = assignment.split_once('=').unwrap_or((assignment, ""));
                let refused = Error::usage(format!("{key} = {value:?}: {}", said(&e))).at("--set");
                return match e.message().contains("expected a string") {
                    true => {
                        refused.help(format!("quote a text that reads as something else: --set '{key}=\"{value}\"'"))
                    }
                    false => refused,
                };
            }
        }
        Error::usage(said(error)).at("the command line")
    }
}
