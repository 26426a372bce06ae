//! Special tokens of a model folder, and the tokens and ids at which its texts end.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::declared::Declarations;
use crate::Result;

/// The special tokens a model folder names: `bos_token`, `eos_token`, `pad_token`, `unk_token` and
/// so on, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens(BTreeMap<String, String>);

impl SpecialTokens {
    /// From `tokenizer_config.json`; where that has no `added_tokens_decoder`,
    /// `special_tokens_map.json` (a file of transformers 4) counts before it, as in transformers. A
    /// folder without either has none.
    ///
    /// # Errors
    /// If a file is not a JSON object or a value has a wrong type.
    pub fn from_model_dir(dir: impl AsRef<Path>) -> Result<Self> {
        Ok(SpecialTokens(Declarations::read(dir.as_ref())?.named))
    }

    /// The text of `name` (`eos_token`, ...), if the folder names one.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All of them as (name, text), ordered by name.
    pub fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, token)| (name.as_str(), token.as_str()))
    }
}

/// A token at which texts end besides those that the model's files name: by its text or its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopToken {
    /// Its text, such as `<|im_end|>`.
    Text(String),
    /// Its id.
    Id(u32),
}

impl fmt::Display for StopToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StopToken::Text(text) => write!(f, "{text:?}"),
            StopToken::Id(id) => write!(f, "{id}"),
        }
    }
}

impl FromStr for StopToken {
    type Err = Infallible;
    /// Digits are an id, everything else is a text.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.parse().map_or_else(|_| StopToken::Text(text.into()), StopToken::Id))
    }
}

impl Serialize for StopToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            StopToken::Text(text) => serializer.serialize_str(text),
            StopToken::Id(id) => serializer.serialize_u32(*id),
        }
    }
}

impl<'de> Deserialize<'de> for StopToken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrId;
        impl de::Visitor<'_> for TextOrId {
            type Value = StopToken;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the text of a token or its id")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<StopToken, E> {
                Ok(StopToken::Text(text.into()))
            }
            fn visit_u64<E: de::Error>(self, id: u64) -> Result<StopToken, E> {
                u32::try_from(id).map(StopToken::Id).map_err(|_| E::custom(format!("{id} is no token id")))
            }
            fn visit_i64<E: de::Error>(self, id: i64) -> Result<StopToken, E> {
                u32::try_from(id).map(StopToken::Id).map_err(|_| E::custom(format!("{id} is no token id")))
            }
        }
        deserializer.deserialize_any(TextOrId)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_special_token_that_is_no_text_is_refused_by_file_and_key() {
        let folder = tempfile::tempdir().unwrap();
        let named = |text: &str| {
            std::fs::write(folder.path().join("tokenizer_config.json"), text).unwrap();
            SpecialTokens::from_model_dir(folder.path())
        };
        for (text, want) in [
            (r#"{"eos_token": "</s>", "pad_token": null}"#, Some("</s>")),
            (r#"{"eos_token": {"content": "</s>"}}"#, Some("</s>")),
            ("{}", None),
        ] {
            assert_eq!(named(text).unwrap().get("eos_token"), want, "{text}");
        }
        for value in ["3", "[]", "true", "{\"content\": 3}"] {
            let error = named(&format!("{{\"eos_token\": {value}}}")).unwrap_err();
            assert!(error.to_string().contains("eos_token"), "{error}");
        }
        for text in ["null", "[]"] {
            assert!(named(text).unwrap_err().to_string().contains("not an object"));
        }
    }
}
