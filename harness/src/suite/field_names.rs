//! Field names of other trainers: those of `transformers.TrainingArguments`, TRL and LLaMA-Factory
//! for the settings of a training, taken in the place of Karat's own.
//!
//! A name is translated before serde sees the tables, so that a stored suite has one spelling, and
//! two spellings of one setting are an error. A field that has no counterpart is refused with what
//! to do instead.

use toml::{Table, Value};

use super::parse::insert;
use crate::error::{Error, Result};

/// The other name, and the path of the setting within the table of a training.
const FIELDS: [(&str, &[&str]); 24] = [
    ("num_train_epochs", &["epochs"]),
    ("per_device_train_batch_size", &["batch_size"]),
    ("train_batch_size", &["batch_size"]),
    ("gradient_accumulation_steps", &["accumulation"]),
    ("lr", &["learning_rate"]),
    ("lr_scheduler_type", &["schedule"]),
    ("scheduler", &["schedule"]),
    ("warmup_steps", &["warmup"]),
    ("warmup_ratio", &["warmup"]),
    ("weight_decay", &["optimizer", "weight_decay"]),
    ("adam_beta1", &["optimizer", "beta1"]),
    ("adam_beta2", &["optimizer", "beta2"]),
    ("adam_epsilon", &["optimizer", "eps"]),
    ("eval_steps", &["eval_every"]),
    ("save_steps", &["save_every"]),
    ("gradient_checkpointing", &["recompute"]),
    ("load_best_model_at_end", &["checkpoint"]),
    ("rank", &["r"]),
    ("lora_r", &["r"]),
    ("lora_rank", &["r"]),
    ("alpha", &["lora_alpha"]),
    ("dropout", &["lora_dropout"]),
    ("lora_target", &["target_modules"]),
    ("lora_target_modules", &["target_modules"]),
];

/// Fields without a counterpart in a training's table, and what to do instead.
const ELSEWHERE: [(&str, &str); 21] = [
    ("bf16", "the element type is that of the model: dtype = \"bf16\" in [model]"),
    ("fp16", "the element type is that of the model: dtype = \"f16\" in [model]"),
    ("output_dir", "the folder of a run is given on the command line: --out DIR"),
    ("seed", "the seed is the suite's own `seed`; `seeds = [1, 2]` trains replicates"),
    ("data_seed", "the order of the rows follows from the suite's own `seed`"),
    ("logging_steps", "every step is logged; leave it out"),
    ("logging_strategy", "every step is logged; leave it out"),
    ("report_to", "trackers are named in [track], to = [\"tensorboard\"]"),
    ("eval_strategy", "`eval_every` says after how many steps; 0 is only at the end"),
    ("evaluation_strategy", "`eval_every` says after how many steps; 0 is only at the end"),
    ("save_strategy", "`save_every` says after how many steps; 0 is only at the end"),
    ("per_device_eval_batch_size", "evaluation takes as many rows as fit; leave it out"),
    ("optim", "the optimizer is AdamW; its numbers are `optimizer = { beta1, beta2, eps, weight_decay }`"),
    ("max_seq_length", "lengths are those of the data: data.max_length"),
    ("cutoff_len", "lengths are those of the data: data.max_length"),
    ("metric_for_best_model", "`checkpoint_metric` names a metric; without it the evaluation loss decides"),
    ("packing", "every row is a sequence of its own; leave it out"),
    ("assistant_only_loss", "only the reference answer is trained on; leave it out"),
    ("bias", "an adapter trains no biases; leave it out"),
    ("task_type", "every model is a causal language model; leave it out"),
    ("push_to_hub", "nothing is uploaded; leave it out"),
];

/// The setting that `name` stands for in the table of a training, if it is a name of others.
pub(super) fn ours(name: &str) -> Option<&'static [&'static str]> {
    FIELDS.iter().find(|(theirs, _)| *theirs == name).map(|(_, ours)| *ours)
}

/// What to do instead of a field that has no counterpart.
pub(super) fn elsewhere(name: &str) -> Option<&'static str> {
    ELSEWHERE.iter().find(|(theirs, _)| *theirs == name).map(|(_, help)| *help)
}

/// Whether the table at `path` in a suite has the settings of a training.
pub(super) fn is_training(path: &[&str]) -> bool {
    matches!(
        path,
        ["train"]
            | ["train", "lora" | "full"]
            | ["train", "lora" | "full", "adapter" | "hyperparameters"]
            | ["models", _, "train"]
            | ["models", _, "train", "adapter" | "hyperparameters"]
    )
}

/// The value under Karat's name of one given under `name`.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn value(name: &str, value: Value) -> Result<Value, String> {
    let number = |value: &Value| value.as_float().or_else(|| value.as_integer().map(|n| n as f64));
    match (name, &value) {
        ("load_best_model_at_end", Value::Boolean(best)) => Ok(Value::from(if *best { "best" } else { "last" })),
        ("load_best_model_at_end", _) => Err("expected true or false".into()),
        // Below 1 `warmup` is a share, as `warmup_steps` is in transformers 5.
        ("warmup_ratio", given) if number(given).is_some_and(|share| share >= 1.0) => {
            Err("a share of all steps is below 1; a number of steps is `warmup_steps`".into())
        }
        _ => Ok(value),
    }
}

/// Gives every setting of a training in `table`, a suite's, Karat's own name.
///
/// # Errors
/// Usage, for two names of one setting in one table, and for a value that a name does not take.
pub(super) fn translate(table: &mut Table) -> Result<()> {
    if let Some(Value::Table(train)) = table.get_mut("train") {
        run_tables(train, "train")?;
        for run in ["lora", "full"] {
            if let Some(Value::Table(own)) = train.get_mut(run) {
                run_tables(own, &format!("train.{run}"))?;
            }
        }
    }
    if let Some(Value::Table(models)) = table.get_mut("models") {
        for (name, model) in models {
            if let Some(Value::Table(own)) = model.get_mut("train") {
                run_tables(own, &format!("models.{name}.train"))?;
            }
        }
    }
    Ok(())
}

/// The table of a training, and those that a stored suite nests in it.
fn run_tables(table: &mut Table, place: &str) -> Result<()> {
    names(table, place)?;
    for nested in ["adapter", "hyperparameters"] {
        if let Some(Value::Table(inner)) = table.get_mut(nested) {
            names(inner, &format!("{place}.{nested}"))?;
        }
    }
    Ok(())
}

fn names(table: &mut Table, place: &str) -> Result<()> {
    let theirs: Vec<String> = table.keys().filter(|key| ours(key).is_some()).cloned().collect();
    for name in theirs {
        let (Some(path), Some(given)) = (ours(&name), table.remove(&name)) else { continue };
        let given = value(&name, given).map_err(|what| Error::usage(format!("{place}: `{name}`: {what}")))?;
        let (last, folders) = path.split_last().unwrap_or((&"", &[]));
        let mut here = &mut *table;
        for folder in folders {
            let inner = here.entry(*folder).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(inner) = inner else {
                return Err(Error::usage(format!("{place}: `{folder}` must be a table")));
            };
            here = inner;
        }
        if here.insert((*last).into(), given).is_some() {
            let what = format!("{place}: `{name}` is another name of `{}`, which is given too", path.join("."));
            return Err(Error::usage(what).help("leave one of them out"));
        }
    }
    Ok(())
}

/// The parts of an assignment's key and its value under Karat's own names; `settings` is how many
/// parts lead to the table of a training, if they do.
///
/// # Errors
/// Usage, for a value that a name does not take.
pub(super) fn assignment(parts: &[&str], given: Value, settings: Option<usize>) -> Result<(Vec<String>, Value)> {
    let owned = |parts: &[&str]| parts.iter().map(|part| (*part).to_string()).collect::<Vec<_>>();
    let Some(at) = settings else { return Ok((owned(parts), given)) };
    if given.is_table() {
        return Ok((owned(parts), inner_names(parts, given)?));
    }
    match parts.get(at).and_then(|name| ours(name)) {
        Some(path) if parts.len() == at + 1 => {
            let name = parts[at];
            let given = value(name, given).map_err(|what| Error::usage(format!("`{name}`: {what}")).at("--set"))?;
            Ok(([owned(&parts[..at]), owned(path)].concat(), given))
        }
        _ => Ok((owned(parts), given)),
    }
}

/// A table that is assigned at `parts` of a suite, its settings of trainings under Karat's names.
fn inner_names(parts: &[&str], given: Value) -> Result<Value> {
    let mut whole = Table::new();
    insert(&mut whole, parts, given)?;
    translate(&mut whole).map_err(|e| e.at("--set"))?;
    let mut value = Value::Table(whole);
    for part in parts {
        let inner = value.as_table_mut().and_then(|table| table.remove(*part));
        value = inner.unwrap_or_else(|| Value::Table(Table::new()));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(text: &str) -> Result<Table> {
        let mut table: Table = toml::from_str(text).unwrap();
        translate(&mut table).map(|()| table)
    }

    #[test]
    fn names_of_other_trainers_become_ours_in_every_table_of_a_training() {
        let theirs = translated(
            "[train]\nnum_train_epochs = 3\nweight_decay = 0.1\nadam_beta2 = 0.95\nwarmup_ratio = 0.1\n\
             load_best_model_at_end = false\n[train.lora]\nlora_rank = 4\nadam_epsilon = 1e-6\n\
             [models.x.train]\nmethod = \"lora\"\nper_device_train_batch_size = 2\nlora_target = \"all-linear\"\n",
        );
        let ours = toml::from_str::<Table>(
            "[train]\nepochs = 3\nwarmup = 0.1\ncheckpoint = \"last\"\n[train.optimizer]\nweight_decay = 0.1\n\
             beta2 = 0.95\n[train.lora]\nr = 4\noptimizer = { eps = 1e-6 }\n[models.x.train]\nmethod = \"lora\"\n\
             batch_size = 2\ntarget_modules = \"all-linear\"\n",
        );
        assert_eq!(theirs.unwrap(), ours.unwrap());
    }

    #[test]
    fn two_names_of_one_setting_are_an_error_and_so_is_a_share_of_one() {
        let error = translated("[train]\nepochs = 3\nnum_train_epochs = 3\n").unwrap_err().to_string();
        assert!(error.contains("`num_train_epochs` is another name of `epochs`"), "{error}");
        let error = translated("[train]\nwarmup_ratio = 10\n").unwrap_err().to_string();
        assert!(error.contains("warmup_steps"), "{error}");
    }

    #[test]
    fn every_name_is_of_a_setting_that_there_is() {
        for (theirs, ours) in FIELDS {
            assert!(elsewhere(theirs).is_none(), "{theirs} is refused too");
            let known = super::super::keys::training_keys();
            assert!(known.split(", ").any(|key| key == ours.join(".")), "{theirs}: {ours:?}");
        }
    }
}
