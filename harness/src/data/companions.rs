//! Tokenizer and chat template of a model with an adapter on top.
//!
//! Trainers save both beside an adapter, and they may differ from the model's: a base model gets a
//! chat template and another end token when it is tuned. Whoever uses the adapter means its own.
//! What is used and differs is said.

use std::path::Path;

use super::template::ChatTemplate;
use super::tokens::{SpecialTokens, Tokenizer};
use crate::{Error, Result};

/// Files of a tokenizer, as trainers save them.
pub const TOKENIZER_FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

/// Something read for a model and perhaps its adapter.
#[derive(Clone, Debug)]
pub struct Chosen<T> {
    /// What was read.
    pub value: T,
    /// It is the adapter's own and differs from the model's: in words, for people.
    pub note: Option<String>,
}

/// The tokenizer of the adapter if it brings one that differs from the model's, else the model's.
///
/// # Errors
/// As [`Tokenizer::from_model_dir`]; a token of the adapter's for which the model has no row.
pub fn tokenizer(model: &Path, adapter: Option<&Path>) -> Result<Chosen<Tokenizer>> {
    let of_model = || Tokenizer::from_model_dir(model);
    let Some(adapter) = adapter.filter(|folder| folder.join("tokenizer.json").is_file()) else {
        return Ok(Chosen { value: of_model()?, note: None });
    };
    let own = Tokenizer::read(adapter, model)?;
    let same = of_model().is_ok_and(|t| {
        (t.sha256(), t.bos_id(), t.eos_id(), t.pad_id()) == (own.sha256(), own.bos_id(), own.eos_id(), own.pad_id())
    });
    let note = format!("using the adapter's own tokenizer, which differs from the model's ({})", adapter.display());
    Ok(Chosen { value: own, note: Some(note).filter(|_| !same) })
}

/// The chat template of the adapter if it brings one that differs from the model's, else the
/// model's.
///
/// # Errors
/// As [`ChatTemplate::from_model_dir`] and [`ChatTemplate::reads_messages`].
pub fn template(model: &Path, adapter: Option<&Path>) -> Result<Chosen<ChatTemplate>> {
    let Some((adapter, own)) = own_template(model, adapter)? else {
        let value = ChatTemplate::from_model_dir(model)?;
        value.reads_messages()?;
        return Ok(Chosen { value, note: None });
    };
    own.reads_messages()?;
    let note = format!("using the adapter's own chat template, which differs from the model's ({})", adapter.display());
    let note = Some(note).filter(|_| differs(model, &own));
    Ok(Chosen { value: own, note })
}

/// The template that an adapter folder brings, with the special tokens that belong to it.
fn own_template<'a>(model: &Path, adapter: Option<&'a Path>) -> Result<Option<(&'a Path, ChatTemplate)>> {
    let Some(adapter) = adapter else { return Ok(None) };
    let in_config = || -> Result<bool> {
        let config = super::tokens::read_json(&adapter.join("tokenizer_config.json"))?;
        Ok(config.is_some_and(|config| config.get("chat_template").is_some_and(|t| !t.is_null())))
    };
    if !adapter.join("chat_template.jinja").is_file() && !in_config()? {
        return Ok(None);
    }
    let names_tokens = adapter.join("tokenizer_config.json").is_file();
    let special = SpecialTokens::from_model_dir(if names_tokens { adapter } else { model })?;
    let own = ChatTemplate::from_model_dir(adapter)?;
    Ok(Some((adapter, ChatTemplate::new(own.source(), own.origin(), special)?)))
}

/// In words, what of the adapter's own differs from the model's: where the model's is used for all,
/// as in an evaluation that asks several models the same, or by a format that has room for one.
///
/// # Errors
/// As [`tokenizer`] and [`template`], but a model or adapter without a template has no difference.
pub fn differences(model: &Path, adapter: &Path) -> Result<Vec<&'static str>> {
    let mut differ = Vec::new();
    if let Some((_, own)) = own_template(model, Some(adapter))?
        && differs(model, &own)
    {
        differ.push("chat template");
    }
    if adapter.join("tokenizer.json").is_file() && tokenizer(model, Some(adapter))?.note.is_some() {
        differ.push("tokenizer");
    }
    Ok(differ)
}

/// Whether a chat template is not the one of `model`.
fn differs(model: &Path, own: &ChatTemplate) -> bool {
    !ChatTemplate::from_model_dir(model).is_ok_and(|t| (t.source(), t.special()) == (own.source(), own.special()))
}

/// Puts what differs of the adapter's own, by [`differences`], into `merged`, a model that the
/// adapter was folded into.
///
/// # Errors
/// The adapter's template cannot be read; I/O.
pub fn carry_over(differ: &[&str], model: &Path, adapter: &Path, merged: &Path) -> Result<()> {
    if differ.contains(&"tokenizer") {
        for name in TOKENIZER_FILES {
            let (from, to) = (adapter.join(name), merged.join(name));
            if from.is_file() {
                let bytes = std::fs::read(&from).map_err(|e| Error::io("read", &from, e))?;
                crate::fsio::write_atomic(&to, &bytes)?;
            } else if to.is_file() {
                // It belongs to the other tokenizer.
                std::fs::remove_file(&to).map_err(|e| Error::io("remove", &to, e))?;
            }
        }
    }
    if differ.contains(&"chat template") || differ.contains(&"tokenizer") {
        // Wherever the adapter has it: a file of this name counts before what a configuration says.
        match template(model, Some(adapter)) {
            Ok(chosen) => {
                crate::fsio::write_atomic(&merged.join("chat_template.jinja"), chosen.value.source().as_bytes())?;
            }
            Err(_) if !merged.join("chat_template.jinja").is_file() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
