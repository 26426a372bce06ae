//! The tokenizer of a model folder: text to ids and back, and which ids end a text.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde_json::Value;

use crate::{Error, Result, fsio};

/// The special tokens a model folder names: `bos_token`, `eos_token`, `pad_token`, `unk_token` and so on, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens(BTreeMap<String, String>);

impl SpecialTokens {
    /// From `tokenizer_config.json`, and where that is silent `special_tokens_map.json` (files of transformers 4). A folder
    /// without either has none.
    ///
    /// # Errors
    /// If a file is not JSON.
    pub fn from_model_dir(dir: impl AsRef<Path>) -> Result<Self> {
        const NAMES: [&str; 7] =
            ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
        let mut tokens = BTreeMap::new();
        for file in ["tokenizer_config.json", "special_tokens_map.json"] {
            let Some(config) = read_json(&dir.as_ref().join(file))? else { continue };
            for name in NAMES {
                // Either the text or a token object with its text under `content`.
                let Some(token) = config.get(name).filter(|token| !token.is_null()) else { continue };
                let Some(text) = token.get("content").unwrap_or(token).as_str() else {
                    return Err(Error::data(format!("\"{name}\" must be the text of a token, not {token}"))
                        .at(dir.as_ref().join(file).display())
                        .help("write its text, or an object with its text as \"content\""));
                };
                tokens.entry(name.to_string()).or_insert_with(|| text.to_string());
            }
        }
        Ok(SpecialTokens(tokens))
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

/// A tokenizer as it lies in a Hugging Face model folder.
///
/// Encoding never adds special tokens of its own: a chat template already writes them, and a second BOS is a classic way
/// to lose points. Truncation and padding stored in `tokenizer.json` are switched off for the same reason.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    stop: Vec<u32>,
    sha256: String,
}

/// The ids of a text, each with the bytes of the text it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Byte range of each id in the text. Tokens that share a character (bytes of one Chinese character) share its range.
    pub spans: Vec<Range<usize>>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and what `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json` and
    /// `config.json` say about special tokens (each may be missing).
    ///
    /// The padding token is `pad_token`, else `pad_token_id`, else the end token. The stop ids are all of
    /// `generation_config.json`'s `eos_token_id` (one or a list), `config.json`'s, and `eos_token`.
    ///
    /// # Errors
    /// If `tokenizer.json` is missing or broken, a file is not JSON, or a named special token is not in the vocabulary.
    pub fn from_model_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let path = dir.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::data("the model folder has no tokenizer.json").at(dir.display()).help(
                    "give a folder in the Hugging Face layout; slow tokenizers must be saved as tokenizer.json first",
                )
            }
            _ => Error::io("read the tokenizer", &path, e),
        })?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|e| Error::data(format!("not a tokenizer: {e}")).at(path.display()).because(e))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::failed("could not switch truncation off").because(e))?;

        let special = SpecialTokens::from_model_dir(dir)?;
        let named = |name: &str| -> Result<Option<u32>> {
            let Some(token) = special.get(name) else { return Ok(None) };
            let id = inner.token_to_id(token);
            id.map(Some).ok_or_else(|| {
                Error::data(format!("the {name} {token:?} is not in the vocabulary"))
                    .at(dir.display())
                    .help("tokenizer.json and tokenizer_config.json do not belong together: copy both from one model")
            })
        };
        let listed = |key: &str| -> Result<Vec<u32>> {
            let files = ["generation_config.json", "config.json"].map(|file| listed_ids(&dir.join(file), key));
            files.into_iter().try_fold(Vec::new(), |mut ids, file| {
                ids.extend(file?.unwrap_or_default());
                Ok(ids)
            })
        };
        let mut stop = listed("eos_token_id")?;
        let eos = named("eos_token")?.or(stop.first().copied());
        stop.extend(eos);
        stop.sort_unstable();
        stop.dedup();
        let pad = named("pad_token")?.or(listed("pad_token_id")?.first().copied()).or(eos);
        let bos = named("bos_token")?.or(listed("bos_token_id")?.first().copied());
        Ok(Tokenizer { inner, bos, eos, pad, stop, sha256: fsio::sha256(&bytes) })
    }

    /// The ids of `text`. Special tokens *written in* the text become their ids; none are added.
    ///
    /// # Errors
    /// If the tokenizer fails (a model without an unknown token meets an unknown character).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(encode_error)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// [`Tokenizer::encode`] with where each token came from.
    ///
    /// # Errors
    /// As there.
    pub fn encode_with_spans(&self, text: &str) -> Result<Encoded> {
        let encoding = self.inner.encode(text, false).map_err(encode_error)?;
        let spans = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok(Encoded { ids: encoding.get_ids().to_vec(), spans })
    }

    /// The text of `ids`; bytes that are not UTF-8 (a character cut in half) become U+FFFD. With `skip_special`, tokens
    /// that the tokenizer marks as special are left out (`<think>` usually is not one of them).
    ///
    /// # Errors
    /// If an id is not in the vocabulary or the decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if let Some(id) = ids.iter().find(|&&id| self.inner.id_to_token(id).is_none()) {
            return Err(Error::data(format!("the id {id} is not in the tokenizer's vocabulary")).help(
                "the ids come from another tokenizer, or the model's vocabulary is padded beyond the tokenizer's",
            ));
        }
        self.inner.decode(ids, skip_special).map_err(|e| Error::data("the ids cannot be decoded").because(e))
    }

    /// The ids that end a generated text, ascending.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop
    }
    /// The end token.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }
    /// The start token.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }
    /// The padding token.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }
    /// The id of a token by its text.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
    /// Tokens in the vocabulary, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
    /// SHA-256 of `tokenizer.json`, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
}

fn encode_error(error: tokenizers::Error) -> Error {
    Error::data("the text cannot be tokenized").because(error)
}

/// The ids of tokens, one or a list, that `file` (a `config.json` or a `generation_config.json`) has under `key`; `None` if
/// there is no file, no key or null. A negative start or padding token, which old files have, is none.
///
/// # Errors
/// [`ErrorKind::Data`](crate::ErrorKind::Data), naming file and key, for anything else.
pub fn listed_ids(file: &Path, key: &str) -> Result<Option<Vec<u32>>> {
    let Some(config) = read_json(file)? else { return Ok(None) };
    let Some(value) = config.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = match value {
        Value::Array(list) => list.iter().map(id).collect::<Option<Vec<u32>>>(),
        one if key != "eos_token_id" && one.as_i64().is_some_and(|id| id < 0) => return Ok(None),
        one => id(one).map(|id| vec![id]),
    };
    ids.map(Some).ok_or_else(|| {
        Error::data(format!("\"{key}\" must be the id of a token or a list of them, not {value}"))
            .at(file.display())
            .help("write the id as a whole number, or remove the key")
    })
}

/// A JSON file that holds an object, `None` if it is not there.
pub(super) fn read_json(path: &Path) -> Result<Option<Value>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read the file", path, e)),
    };
    let value: Value = serde_json::from_slice(&bytes)
        .map_err(|e| Error::data(format!("not JSON: {e}")).at(format_args!("{}:{}", path.display(), e.line())))?;
    match value.is_object() {
        true => Ok(Some(value)),
        false => Err(Error::data("not a JSON object").at(path.display()).help("copy the file from the model again")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_special_tokens_are_ids_or_refused_by_file_and_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("generation_config.json");
        assert_eq!(listed_ids(&file, "eos_token_id").unwrap(), None, "no file");
        let ids = |text: &str, key: &str| {
            std::fs::write(&file, text).unwrap();
            listed_ids(&file, key)
        };
        for (text, want) in [
            (r#"{"eos_token_id": 3}"#, Some(vec![3])),
            (r#"{"eos_token_id": [3, 5]}"#, Some(vec![3, 5])),
            (r#"{"eos_token_id": null}"#, None),
            ("{}", None),
        ] {
            assert_eq!(ids(text, "eos_token_id").unwrap(), want, "{text}");
        }
        // LLaMA's first configurations have no padding token in this way.
        assert_eq!(ids(r#"{"pad_token_id": -1}"#, "pad_token_id").unwrap(), None);
        for value in ["\"3\"", "3.0", "true", "-1", "{}", "[3, \"5\"]", "[[3]]", "4294967296", "1e30"] {
            let error = ids(&format!("{{\"eos_token_id\": {value}}}"), "eos_token_id").unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Data);
            let said = format!("{} {error}", error.place().unwrap_or_default());
            assert!(said.contains("generation_config.json") && said.contains("eos_token_id"), "{said}");
        }
        for text in ["null", "[]", "3"] {
            let error = ids(text, "eos_token_id").unwrap_err();
            assert!(error.to_string().contains("not a JSON object"), "{error}");
        }
    }

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
            assert!(named(text).unwrap_err().to_string().contains("not a JSON object"));
        }
    }
}
