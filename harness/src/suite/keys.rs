//! Which keys the tables of a suite have, and what is said of one that nobody knows.
//!
//! serde alone names the keys of the struct that refused, which for the flat tables that people
//! write are only half of them, and has no place for them. The names are taken from the structs
//! themselves, so that the lists cannot lag behind.

use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Visitor, value};
use serde::forward_to_deserialize_any;
use toml::Table;
use toml::de::{DeTable, DeValue};

use super::{
    DataConfig, EvalConfig, GateConfig, GeneralConfig, Hyperparameters, ModelSettings, NamedModel, StatsConfig, Suite,
    TrackConfig, TrainMethod, VerdictConfig, field_names,
    parse::{NAMED_TRAIN_KEYS, parse_value},
    toml_errors,
};
use crate::backend::AdamW;
use crate::backend::LoraConfig;
use crate::data::examples::FormatOptions;
use crate::data::fields::Fields;
use crate::error::{Error, Result};
use crate::nearest;

/// The names of a struct's keys, as its `Deserialize` asks for them.
fn keys_of<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    struct Ask<'a>(&'a mut &'static [&'static str]);
    impl<'de> Deserializer<'de> for Ask<'_> {
        type Error = value::Error;
        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, value::Error> {
            Err(value::Error::custom("only the names are asked for"))
        }
        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, value::Error> {
            *self.0 = fields;
            self.deserialize_any(visitor)
        }
        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }
    let mut fields: &'static [&'static str] = &[];
    // Never a value: only the names come out.
    let _ = T::deserialize(Ask(&mut fields));
    fields
}

/// The keys of the table at `path` in a suite; none where any key may stand, or where there is no
/// table.
fn of_suite(path: &[&str]) -> Option<Vec<&'static str>> {
    let training = |rest: &[&str]| match rest {
        ["optimizer"] => Some(keys_of::<AdamW>().to_vec()),
        [] => Some(keys_of::<Hyperparameters>().to_vec()),
        _ => None,
    };
    match path {
        [] => Some(keys_of::<Suite>().to_vec()),
        ["data"] => Some(keys_of::<DataConfig>().to_vec()),
        ["data", "fields"] => Some(keys_of::<Fields>().to_vec()),
        ["model"] => Some(keys_of::<ModelSettings>().to_vec()),
        ["train"] => Some([keys_of::<Hyperparameters>(), &["lora", "full"]].concat()),
        ["train", "lora"] => Some([LoraConfig::KEYS.as_slice(), keys_of::<Hyperparameters>()].concat()),
        ["train", "lora", "adapter"] => Some(LoraConfig::KEYS.to_vec()),
        ["train", "lora" | "full", "hyperparameters", rest @ ..] | ["train", "lora" | "full", rest @ ..] => {
            training(rest)
        }
        ["train", rest @ ..] => training(rest),
        ["models", _] => Some(keys_of::<NamedModel>().to_vec()),
        ["models", _, "train"] => {
            Some([NAMED_TRAIN_KEYS.as_slice(), LoraConfig::KEYS.as_slice(), keys_of::<Hyperparameters>()].concat())
        }
        ["models", _, "train", "adapter"] => Some(LoraConfig::KEYS.to_vec()),
        ["models", _, "train", "hyperparameters", rest @ ..] | ["models", _, "train", rest @ ..] => training(rest),
        ["eval"] => Some(keys_of::<EvalConfig>().to_vec()),
        ["eval", "general"] => Some(keys_of::<GeneralConfig>().to_vec()),
        ["stats"] => Some(keys_of::<StatsConfig>().to_vec()),
        ["gate"] => Some(keys_of::<GateConfig>().to_vec()),
        ["verdict"] => Some(keys_of::<VerdictConfig>().to_vec()),
        ["track"] => Some(keys_of::<TrackConfig>().to_vec()),
        _ => None,
    }
}

/// The tables of a suite in which a key may have been meant.
const TABLES: [&[&str]; 11] = [
    &["data"],
    &["data", "fields"],
    &["model"],
    &["train"],
    &["train", "lora"],
    &["train", "optimizer"],
    &["eval"],
    &["stats"],
    &["gate"],
    &["verdict"],
    &["track"],
];

/// What the settings of `karat train` may hold beside hyperparameters and an adapter's keys.
#[derive(Deserialize)]
#[allow(dead_code)]
struct OfModel {
    backend: String,
    device: String,
    dtype: String,
    threads: usize,
    options: Table,
}

/// The same for the settings of `karat train`.
fn of_training(path: &[&str]) -> Option<Vec<&'static str>> {
    match path {
        [] => {
            let tables: &[&str] = &["data", "fields", "model"];
            Some([LoraConfig::KEYS.as_slice(), keys_of::<Hyperparameters>(), tables].concat())
        }
        ["optimizer"] => Some(keys_of::<AdamW>().to_vec()),
        ["data"] => Some(keys_of::<FormatOptions>().to_vec()),
        ["fields"] => Some(keys_of::<Fields>().to_vec()),
        ["model"] => Some(keys_of::<OfModel>().to_vec()),
        _ => None,
    }
}

/// Every key that `karat train --set` knows, in words: for an error's help and for the command's.
pub fn training_keys() -> String {
    let own = [LoraConfig::KEYS.as_slice(), keys_of::<Hyperparameters>()].concat();
    let mut text = own.iter().filter(|k| **k != "optimizer").copied().collect::<Vec<_>>().join(", ");
    for table in ["optimizer", "data", "fields", "model"] {
        for key in of_training(&[table]).unwrap_or_default() {
            text.push_str(&format!(", {table}.{key}"));
        }
    }
    text
}

/// What a settings' language knows.
#[derive(Clone, Copy)]
enum Language {
    Suite,
    Training,
}

impl Language {
    fn keys(self, path: &[&str]) -> Option<Vec<&'static str>> {
        match self {
            Language::Suite => of_suite(path),
            Language::Training => of_training(path),
        }
    }

    /// Whether the table at `path` has the settings of a training.
    fn is_training(self, path: &[&str]) -> bool {
        match self {
            Language::Suite => field_names::is_training(path),
            Language::Training => path.is_empty(),
        }
    }

    /// The error for `key`, which the table at `path` does not have.
    fn unknown(self, path: &[&str], key: &str, known: &[&'static str]) -> Error {
        let table = |path: &[&str]| match path {
            [] => "the suite".to_string(),
            path => format!("[{}]", path.join(".")),
        };
        let named = |path: &[&str], key: &str| path.iter().chain([&key]).copied().collect::<Vec<_>>().join(".");
        let meant = nearest(key, known.iter().copied());
        let meant = meant.map(|near| format!("did you mean `{near}`?"));
        // In its right place elsewhere.
        let elsewhere = || {
            let tables: &[&[&str]] = match self {
                Language::Suite => &TABLES,
                Language::Training => &[&["optimizer"], &["data"], &["fields"], &["model"]],
            };
            let place = tables.iter().find(|t| self.keys(t).is_some_and(|keys| keys.contains(&key)))?;
            Some(format!("did you mean `{}`?", named(place, key)))
        };
        let what = match (self, path) {
            (Language::Suite, _) => format!("unknown key `{key}` in {}", table(path)),
            (Language::Training, _) => format!("unknown key `{}`", named(path, key)),
        };
        if let Some(instead) = field_names::elsewhere(key).filter(|_| self.is_training(path)) {
            return Error::usage(what).help(instead);
        }
        let list = match (self, path) {
            (Language::Training, []) => training_keys(),
            _ => known.join(", "),
        };
        let of = match path {
            [] => "known are".to_string(),
            path => format!("{} knows", table(path)),
        };
        let what = match meant.or_else(elsewhere) {
            Some(meant) => format!("{what}; {meant}"),
            None => what,
        };
        Error::usage(what).help(format!("{of}: {list}"))
    }

    /// Refuses an assignment's key that nobody knows; `value` may be a table with keys of its own.
    fn check_assignment(self, key: &str, value: &toml::Value) -> Result<()> {
        let parts: Vec<&str> = key.split('.').collect();
        for (depth, part) in parts.iter().enumerate() {
            match self.keys(&parts[..depth]) {
                Some(known) if !is_known(&known, &parts[..depth], part) => {
                    return Err(self.unknown(&parts[..depth], part, &known));
                }
                Some(_) => {}
                None => return Ok(()),
            }
        }
        let toml::Value::Table(table) = value else { return Ok(()) };
        table.iter().try_for_each(|(inner, value)| self.check_assignment(&format!("{key}.{inner}"), value))
    }
}

/// Stored suites have the tables of a run nested; people need not know.
fn is_known(known: &[&str], path: &[&str], key: &str) -> bool {
    let nested = match path {
        ["train", "lora"] | ["models", _, "train"] => ["adapter", "hyperparameters"].contains(&key),
        ["train", "full"] => key == "hyperparameters",
        _ => false,
    };
    known.contains(&key) || nested
}

/// Refuses a key of `--set` that no suite has.
pub(super) fn check_of_suite(key: &str, value: &toml::Value) -> Result<()> {
    Language::Suite.check_assignment(key, value)
}

/// Refuses a key of `--set` that `karat train` does not know.
pub(super) fn check_of_training(key: &str, value: &toml::Value) -> Result<()> {
    Language::Training.check_assignment(key, value)
}

/// Refuses keys in the text of a suite that nobody knows, and values of the tables of `[train]`
/// that are of another type, with line and column.
pub(super) fn check_written(text: &str, path: &Path) -> Result<()> {
    let document = DeTable::parse(text).map_err(|e| toml_errors::toml_error(&e, text, path))?;
    check_table(document.get_ref(), &mut Vec::new(), text, path)
}

fn check_table<'t>(table: &'t DeTable<'_>, at: &mut Vec<&'t str>, text: &str, path: &Path) -> Result<()> {
    let known = Language::Suite.keys(at);
    for (key, value) in table {
        let name: &str = key.get_ref();
        let ours = field_names::ours(name).filter(|_| field_names::is_training(at));
        if let Some(known) = &known
            && !is_known(known, at, ours.map_or(name, |ours| ours[0]))
        {
            let error = Language::Suite.unknown(at, name, known);
            return Err(toml_errors::at_span(error, key.span().start, text, path));
        }
        let depth = at.len();
        match ours {
            Some(ours) => at.extend(ours),
            None => at.push(name),
        }
        match value.get_ref() {
            DeValue::Table(inner) => check_table(inner, at, text, path)?,
            _ => check_value(at, name, &text[value.span()]).map_err(|what| {
                toml_errors::at_span(Error::usage(format!("`{name}`: {what}")), value.span().start, text, path)
            })?,
        }
        at.truncate(depth);
    }
    Ok(())
}

/// Whether a value below `[train]`, given as `name`, is one, as it is written: those tables are flat,
/// so that serde never sees them as they stand in the file.
fn check_value(at: &[&str], name: &str, written: &str) -> Result<(), String> {
    let run = match at {
        ["train", "lora" | "full", "hyperparameters" | "adapter", rest @ ..] => rest,
        ["train", "lora" | "full", rest @ ..] | ["train", rest @ ..] => rest,
        ["models", _] => return Err("a model is a table, such as { path = \"FOLDER\" }".into()),
        ["models", _, "train", "hyperparameters" | "adapter", rest @ ..] => rest,
        ["models", _, "train", key @ ("method" | "from")] => return check_method(key, written),
        ["models", _, "train", rest @ ..] => rest,
        ["models", _, key, rest @ ..] if *key != "train" => {
            let path = std::iter::once(key).chain(rest).map(|part| toml::Value::from(*part).to_string());
            let alone = format!("{} = {written}", path.collect::<Vec<_>>().join("."));
            return toml::from_str::<NamedModel>(&alone).map(drop).map_err(|e| told(&e));
        }
        _ => return Ok(()),
    };
    let [first, ..] = run else { return Ok(()) };
    let translated;
    let written = match field_names::ours(name) {
        Some(_) => {
            translated = field_names::value(name, parse_value(written))?.to_string();
            translated.as_str()
        }
        None => written,
    };
    let key: Vec<String> = run.iter().map(|part| toml::Value::from(*part).to_string()).collect();
    let alone = format!("{} = {written}", key.join("."));
    let checked = match LoraConfig::KEYS.contains(first) {
        true => toml::from_str::<LoraConfig>(&alone).map(drop),
        false => toml::from_str::<Hyperparameters>(&alone).map(drop),
    };
    checked.map_err(|e| told(&e))
}

/// `method` and `from` of a named model's training.
fn check_method(key: &str, written: &str) -> Result<(), String> {
    #[derive(Deserialize)]
    #[allow(dead_code)]
    struct Named {
        method: Option<TrainMethod>,
        from: Option<String>,
    }
    toml::from_str::<Named>(&format!("{key} = {written}")).map(drop).map_err(|e| told(&e))
}

fn told(error: &toml::de::Error) -> String {
    error.message().trim().replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_every_table_are_those_of_its_struct() {
        assert_eq!(keys_of::<LoraConfig>(), LoraConfig::KEYS);
        for table in TABLES {
            assert!(of_suite(table).is_some_and(|keys| !keys.is_empty()), "{table:?}");
        }
        for key in ["r", "learning_rate", "optimizer.beta1", "data.max_length", "fields.answer", "model.dtype"] {
            assert!(training_keys().split(", ").any(|known| known == key), "{key}");
        }
    }
}
