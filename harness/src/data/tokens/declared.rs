//! Declarations of the files beside `tokenizer.json`: special tokens by name, added tokens, ids
//! that end a text.
//!
//! The rules are those of transformers 5 (`PreTrainedTokenizerBase._from_pretrained`,
//! `TokenizersBackend.__init__`): a token may stand in `added_tokens_decoder`,
//! `extra_special_tokens` (before version 5 `additional_special_tokens`) or a `*_token` of
//! `tokenizer_config.json`; where that file has no `added_tokens_decoder`,
//! `special_tokens_map.json` overrides it and `added_tokens.json` adds to it. A value of a type
//! that transformers does not take is an error that names file and key.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::{Error, Result};

/// The special tokens that every tokenizer may name, in the order of transformers.
pub(super) const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_MAP: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";

/// A token that a file declares.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    pub(super) token: AddedToken,
    /// The id that the file says, if it says one.
    pub(super) id: Option<u32>,
    /// The file and key.
    pub(super) place: String,
    /// Under one of [`NAMES`].
    pub(super) name: Option<&'static str>,
}

/// Everything that is declared of tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Declarations {
    /// With ids, ascending, then by name, then the others: the order in which transformers adds
    /// them.
    pub(super) tokens: Vec<Declared>,
    /// The text of each named token, more names than [`NAMES`] included.
    pub(super) named: BTreeMap<String, String>,
    /// Special tokens that are written in a text are cut like any text.
    pub(super) split_special: bool,
}

/// A value and where it stands.
struct Entry {
    value: Value,
    file: &'static str,
}

struct Reader<'a> {
    dir: &'a Path,
}

impl Reader<'_> {
    fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    fn object(&self, file: &str) -> Result<Option<Map<String, Value>>> {
        object(&self.path(file))
    }

    fn wrong(&self, file: &str, key: &str, value: &Value, wanted: &str) -> Error {
        wrong_type(&self.path(file), key, value, wanted)
    }

    /// A token given as a text or as an object with its text under `content`; `None` for null.
    fn token(&self, file: &str, key: &str, value: &Value) -> Result<Option<AddedToken>> {
        match value {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(AddedToken::from(text.as_str(), true))),
            Value::Object(fields) => self.fields(file, key, value, fields, Some(true)).map(Some),
            _ => Err(self.wrong(file, key, value, "a text or an object with `content`")),
        }
    }

    /// A token's object. `special` is what `special_tokens_map.json` sets it to, whatever it says.
    fn fields(
        &self,
        file: &str,
        key: &str,
        value: &Value,
        fields: &Map<String, Value>,
        special: Option<bool>,
    ) -> Result<AddedToken> {
        let Some(content) = fields.get("content").and_then(Value::as_str) else {
            return Err(self.wrong(file, key, value, "an object with a text as `content`"));
        };
        let flag = |name: &str| match fields.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(file, &format!("{key}.{name}"), other, "true or false")),
        };
        let special = match flag("special")? {
            Some(said) if file == CONFIG => said,
            said => special.or(said).unwrap_or(false),
        };
        let mut token = AddedToken::from(content, special);
        if let Some(normalized) = flag("normalized")? {
            token.normalized = normalized;
        }
        token.single_word = flag("single_word")?.unwrap_or(false);
        token.lstrip = flag("lstrip")?.unwrap_or(false);
        token.rstrip = flag("rstrip")?.unwrap_or(false);
        Ok(token)
    }

    fn list(&self, entry: &Entry, key: &str) -> Result<Vec<Declared>> {
        let Value::Array(items) = &entry.value else {
            return Err(self.wrong(entry.file, key, &entry.value, "a list of tokens or an object of named ones"));
        };
        let mut tokens = Vec::new();
        for (at, item) in items.iter().enumerate() {
            let key = format!("{key}[{at}]");
            let token = self.token(entry.file, &key, item)?;
            let token =
                token.ok_or_else(|| self.wrong(entry.file, &key, item, "a text or an object with `content`"))?;
            let place = format!("{}: {key}", self.path(entry.file).display());
            tokens.push(Declared { token, id: None, place, name: None });
        }
        Ok(tokens)
    }
}

impl Declarations {
    /// Reads the files of `dir` that are there.
    ///
    /// # Errors
    /// A file that is no JSON object, a value of a wrong type, an id twice.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let reader = Reader { dir };
        let config = reader.object(CONFIG)?.unwrap_or_default();
        let split_special = match config.get("split_special_tokens") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(split)) => *split,
            Some(other) => return Err(reader.wrong(CONFIG, "split_special_tokens", other, "true or false")),
        };
        let has_decoder = config.contains_key("added_tokens_decoder");
        let decoder = config.get("added_tokens_decoder").cloned();
        let mut keys: BTreeMap<String, Entry> =
            config.into_iter().map(|(key, value)| (key, Entry { value, file: CONFIG })).collect();
        // Before version 5 the key had another name; where both say something the new one counts.
        let said = |keys: &BTreeMap<String, Entry>, key: &str| keys.get(key).is_some_and(|e| !is_empty(&e.value));
        if !said(&keys, "extra_special_tokens")
            && let Some(old) = keys.remove("additional_special_tokens")
        {
            keys.insert("extra_special_tokens".into(), old);
        }
        keys.remove("additional_special_tokens");
        if !has_decoder {
            for (key, value) in reader.object(SPECIAL_MAP)?.unwrap_or_default() {
                let key = match key.as_str() {
                    "additional_special_tokens" if said(&keys, "extra_special_tokens") => continue,
                    "additional_special_tokens" => "extra_special_tokens".to_string(),
                    _ => key,
                };
                match (key.as_str(), value, keys.get_mut(&key).map(|e| &mut e.value)) {
                    // One list after the other, as transformers joins them.
                    ("extra_special_tokens", Value::Array(more), Some(Value::Array(list))) => {
                        let new: Vec<Value> = more.into_iter().filter(|token| !list.contains(token)).collect();
                        list.extend(new);
                    }
                    (_, value, _) => {
                        keys.insert(key, Entry { value, file: SPECIAL_MAP });
                    }
                }
            }
        }

        let mut named: Vec<Declared> = Vec::new();
        let mut texts = BTreeMap::new();
        let mut take = |name: Option<&'static str>, key: &str, label: &str, entry: &Entry| -> Result<()> {
            if let Some(token) = reader.token(entry.file, key, &entry.value)? {
                texts.insert(label.to_string(), token.content.clone());
                let place = format!("{}: {key}", reader.path(entry.file).display());
                named.push(Declared { token, id: None, place, name });
            }
            Ok(())
        };
        for name in NAMES {
            if let Some(entry) = keys.get(name) {
                take(Some(name), name, name, entry)?;
            }
        }
        // Tokens of one model alone, such as `image_token`: by key, or named in an object.
        for (key, entry) in &keys {
            let of_a_model = key.ends_with("_token") && !NAMES.contains(&key.as_str());
            if of_a_model && matches!(entry.value, Value::String(_) | Value::Object(_)) {
                take(None, key, key, entry)?;
            }
        }
        let mut extra = Vec::new();
        match keys.get("extra_special_tokens") {
            None | Some(Entry { value: Value::Null, .. }) => {}
            Some(Entry { value: Value::Object(tokens), file }) => {
                for (label, value) in tokens {
                    let entry = Entry { value: value.clone(), file };
                    take(None, &format!("extra_special_tokens.{label}"), label, &entry)?;
                }
            }
            Some(entry) => extra = reader.list(entry, "extra_special_tokens")?,
        }

        let mut by_id: BTreeMap<u32, Declared> = BTreeMap::new();
        if let Some(decoder) = decoder {
            let Value::Object(tokens) = &decoder else {
                return Err(reader.wrong(CONFIG, "added_tokens_decoder", &decoder, "an object of tokens by id"));
            };
            for (id, value) in tokens {
                let key = format!("added_tokens_decoder.{id}");
                let Value::Object(fields) = value else {
                    return Err(reader.wrong(CONFIG, &key, value, "an object with `content`"));
                };
                let id: u32 = id.trim().parse().map_err(|_| {
                    Error::data(format!("{key} is no token id")).at(reader.path(CONFIG).display()).help(FIX)
                })?;
                let token = reader.fields(CONFIG, &key, value, fields, None)?;
                let place = format!("{}: {key}", reader.path(CONFIG).display());
                by_id.insert(id, Declared { token, id: Some(id), place, name: None });
            }
        } else {
            let special: Vec<&str> =
                named.iter().filter(|d| d.name.is_some()).chain(&extra).map(|d| d.token.content.as_str()).collect();
            for (text, id) in reader.object(ADDED)?.unwrap_or_default() {
                let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
                let number = number.ok_or_else(|| reader.wrong(ADDED, &format!("{text:?}"), &id, "a token id"))?;
                let place = format!("{}: {text:?}", reader.path(ADDED).display());
                let token = AddedToken::from(text.as_str(), special.contains(&text.as_str()));
                if let Some(other) = by_id.insert(number, Declared { token, id: Some(number), place, name: None }) {
                    let what = format!("{text:?} and {:?} have the same id {number}", other.token.content);
                    return Err(Error::data(what).at(reader.path(ADDED).display()).help(FIX));
                }
            }
        }
        let tokens = by_id.into_values().chain(named).chain(extra).collect();
        Ok(Declarations { tokens, named: texts, split_special })
    }
}

/// What to do where the files of a tokenizer disagree.
pub(super) const FIX: &str = "the files of a tokenizer belong together: save it again with transformers (save_pretrained), \
    or copy all of its files from one model";

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// The kind of a JSON value, with the value where it is short.
fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        Value::String(text) => format!("the text {:?}", text.chars().take(40).collect::<String>()),
        other => other.to_string(),
    }
}

/// A value whose type nobody can use.
pub(super) fn wrong_type(path: &Path, key: &str, value: &Value, wanted: &str) -> Error {
    Error::data(format!("{key} is {}, not {wanted}", kind_of(value)))
        .at(path.display())
        .help("correct the value, or copy the file from the model again")
}

/// A JSON file that holds an object; `None` if there is no such file.
///
/// # Errors
/// If it is too large, is not JSON or holds something else.
pub(crate) fn object(path: &Path) -> Result<Option<Map<String, Value>>> {
    match super::read_json(path)? {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(other) => Err(Error::data(format!("the file holds {}, not an object", kind_of(&other)))
            .at(path.display())
            .help("remove the file or copy it from the model again")),
    }
}

/// The ids under `key` of a configuration: one, a list, or none where it is null or missing. A
/// negative id stands for none where `absent` says so, as in old configurations
/// (`"pad_token_id": -1`).
///
/// # Errors
/// A value of another type.
pub(super) fn ids(path: &Path, config: &Map<String, Value>, key: &str, absent: bool) -> Result<Vec<u32>> {
    let one = |value: &Value| -> Result<Option<u32>> {
        if absent && value.as_i64().is_some_and(|id| id < 0) {
            return Ok(None);
        }
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.map(Some).ok_or_else(|| wrong_type(path, key, value, "a token id or a list of them"))
    };
    match config.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().filter_map(|value| one(value).transpose()).collect(),
        Some(value) => Ok(one(value)?.into_iter().collect()),
    }
}
