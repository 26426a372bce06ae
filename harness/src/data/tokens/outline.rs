//! Checks of a `tokenizer.json` before the `tokenizers` crate reads it, and before each text goes
//! through it.
//!
//! That crate believes its file: a length in a table of characters is allocated, a regular
//! expression may backtrack for hours, replacements may multiply a text a million times, a missing
//! piece panics. Here the file is walked over once without keeping its vocabulary; what cannot be
//! part of a tokenizer that people use is refused by name. What is left is caught where it is
//! called (`crate::data::untrusted`), in time where an expression can take long.

use std::cell::Cell;
use std::fmt;
use std::path::Path;

use base64::Engine;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::{Map, Value};

use super::expression::{KNOWN, is_tame};
use crate::{Error, Result};

/// Largest `tokenizer.json` in bytes; those in use have up to 35 million.
pub(super) const FILE_BYTES: u64 = 64 << 20;
/// Values outside the vocabulary: normalizers, pre-tokenizers, added tokens.
const NODES: usize = 2_000_000;
/// Tokens of a vocabulary, and merges: the largest in use have 260,000 and 520,000.
const TOKENS: usize = 1_000_000;
const MERGES: usize = 800_000;
/// Values of a vocabulary that is a list: each token with its score.
const LISTED: usize = 3 * TOKENS;
/// Bytes that a normalizer may put before a text.
const PREPENDED: usize = 4 << 10;
/// Bytes of all tokens of a Unigram model: each byte may become a node of its trie.
const UNIGRAM_BYTES: usize = 4 << 20;
/// Bytes of all added tokens: each may become a state of an automaton.
const ADDED_BYTES: usize = 2 << 20;
/// Normalizers, pre-tokenizers and so on, all together.
const STEPS: usize = 1_000;
/// Longest word of a WordPiece model in characters: each start is tried with each end.
const WORD_CHARS: u64 = 1_000;
/// Bytes that a text may become while it is normalized, or ids while they are decoded, where it
/// grows more than [`USUAL_GROWTH`] times.
const GROWN_BYTES: usize = 4 << 20;
/// What a normalizer may do to any text: `" "` to `"▁"` takes three times the bytes, compatibility
/// forms some more.
const USUAL_GROWTH: f64 = 64.0;
/// Longest text for an expression that nobody knows to be tame: what it can take back lies on a
/// stack of its own.
const WILD_BYTES: usize = 2 << 20;
/// Longest text for which an expression that is tame may be believed to end soon: one that fails
/// may still take the cube of it.
const TAME_BYTES: usize = 512;

/// What a tokenizer may do to a text, as its file says.
#[derive(Clone, Debug, Default)]
pub(super) struct Outline {
    /// Replacements of the normalizer: a text or, without one, any single character, and what
    /// replaces it.
    replacements: Vec<(Option<String>, usize)>,
    /// How often the decoder may multiply the bytes of the tokens.
    decoder_growth: f64,
    prepended: usize,
    /// A regular expression that may backtrack without end.
    pub(super) wild: bool,
    /// A regular expression that is not [`KNOWN`].
    unknown: bool,
    /// The added tokens with their ids.
    pub(super) added: Vec<(String, u32)>,
}

/// The file without its vocabulary.
struct File {
    sections: Map<String, Value>,
    model: Model,
}

#[derive(Default)]
struct Model {
    fields: Map<String, Value>,
    /// Entries and bytes of their texts.
    vocab: (usize, usize),
    merges: (usize, usize),
    /// Values of the vocabulary where it is a list, those within its entries included.
    listed: usize,
}

/// A value of which all nodes are counted.
struct Nodes<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for Nodes<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Nodes<'_> {
    fn count<E: de::Error>(&self) -> Result<(), E> {
        self.0.set(self.0.get().checked_sub(1).ok_or_else(|| E::custom("it has more parts than any tokenizer"))?);
        Ok(())
    }
}

impl<'de> Visitor<'de> for Nodes<'_> {
    type Value = Value;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(Nodes(self.0))? {
            self.count()?;
            list.push(value);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            self.count()?;
            fields.insert(key, map.next_value_seed(Nodes(self.0))?);
        }
        Ok(Value::Object(fields))
    }
}

/// Entries of a list or map, counted with the bytes of their texts and not kept; the values of a
/// list are counted where it says.
struct Entries<'a>(&'a Cell<usize>);

/// The bytes of a text, or of the texts of a list, whose values are counted.
struct TextBytes<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for TextBytes<'_> {
    type Value = usize;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TextBytes<'_> {
    type Value = usize;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an entry of a vocabulary")
    }
    fn visit_str<E: de::Error>(self, value: &str) -> Result<usize, E> {
        Ok(value.len())
    }
    fn visit_u64<E: de::Error>(self, _: u64) -> Result<usize, E> {
        Ok(0)
    }
    fn visit_i64<E: de::Error>(self, _: i64) -> Result<usize, E> {
        Ok(0)
    }
    fn visit_f64<E: de::Error>(self, _: f64) -> Result<usize, E> {
        Ok(0)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<usize, A::Error> {
        let mut bytes = 0;
        while let Some(one) = seq.next_element_seed(TextBytes(self.0))? {
            self.0.set(self.0.get() + 1);
            bytes += one;
        }
        Ok(bytes)
    }
}

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = (usize, usize);
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(usize, usize), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = (usize, usize);
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vocabulary or merges")
    }
    fn visit_unit<E: de::Error>(self) -> Result<(usize, usize), E> {
        Ok((0, 0))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(usize, usize), A::Error> {
        let (mut entries, mut bytes) = (0, 0);
        while let Some(text) = seq.next_element_seed(TextBytes(self.0))? {
            self.0.set(self.0.get() + 1);
            entries += 1;
            bytes += text;
        }
        Ok((entries, bytes))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(usize, usize), A::Error> {
        let (mut entries, mut bytes) = (0, 0);
        while let Some(key) = map.next_key::<String>()? {
            map.next_value::<IgnoredAny>()?;
            entries += 1;
            bytes += key.len();
        }
        Ok((entries, bytes))
    }
}

impl<'de> Deserialize<'de> for File {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<File, D::Error> {
        struct Top<'a>(&'a Cell<usize>);
        struct OfModel<'a>(&'a Cell<usize>);
        impl<'de> Visitor<'de> for Top<'_> {
            type Value = File;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<File, A::Error> {
                let mut file = File { sections: Map::new(), model: Model::default() };
                while let Some(key) = map.next_key::<String>()? {
                    if key == "model" {
                        file.model = map.next_value_seed(OfModel(self.0))?;
                    } else {
                        file.sections.insert(key, map.next_value_seed(Nodes(self.0))?);
                    }
                }
                Ok(file)
            }
        }
        impl<'de> DeserializeSeed<'de> for OfModel<'_> {
            type Value = Model;
            fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Model, D::Error> {
                deserializer.deserialize_map(self)
            }
        }
        impl<'de> Visitor<'de> for OfModel<'_> {
            type Value = Model;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a model, as an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Model, A::Error> {
                let mut model = Model::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "vocab" => {
                            let listed = Cell::new(0);
                            model.vocab = map.next_value_seed(Entries(&listed))?;
                            model.listed = listed.get();
                        }
                        "merges" => model.merges = map.next_value_seed(Entries(&Cell::new(0)))?,
                        _ => {
                            model.fields.insert(key, map.next_value_seed(Nodes(self.0))?);
                        }
                    }
                }
                Ok(model)
            }
        }
        deserializer.deserialize_map(Top(&Cell::new(NODES)))
    }
}

impl Outline {
    /// Walks over the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// What is no JSON object with a model, or has a part that no tokenizer in use has; the error
    /// names the file.
    pub(super) fn read(bytes: &[u8], path: &Path) -> Result<Self> {
        let refused = |what: String| Error::data(what).at(path.display()).help(REFUSED);
        let file: File = serde_json::from_slice(bytes).map_err(|e| {
            let place = format!("{}:{}", path.display(), e.line());
            Error::data(format!("not a tokenizer: {e}")).at(place).help("copy the file from the model again")
        })?;
        let mut outline = Outline { decoder_growth: 1.0, ..Outline::default() };
        let mut steps = 0;
        for (key, section) in &file.sections {
            let in_decoder = key == "decoder";
            if matches!(key.as_str(), "normalizer" | "pre_tokenizer" | "post_processor" | "decoder") {
                outline.walk(section, in_decoder, &mut steps).map_err(|what| refused(format!("{key}: {what}")))?;
            }
        }
        outline.model(&file.model).map_err(|what| refused(format!("model: {what}")))?;
        outline.added_tokens(file.sections.get("added_tokens")).map_err(refused)?;
        Ok(outline)
    }

    fn model(&self, model: &Model) -> Result<(), String> {
        let field = |key: &str| model.fields.get(key).filter(|value| !value.is_null());
        if model.vocab.0 > TOKENS || model.listed > LISTED {
            return Err(format!("its vocabulary has more than {TOKENS} tokens"));
        }
        if model.merges.0 > MERGES {
            return Err(format!("it has more than {MERGES} merges"));
        }
        // A model of pairs of text and score, whatever its type says.
        let unigram = field("type").is_none_or(|t| t == "Unigram") && field("unk_token").is_none();
        if unigram && model.merges.0 == 0 && model.vocab.1 > UNIGRAM_BYTES {
            return Err(format!("the texts of its vocabulary have more than {UNIGRAM_BYTES} bytes"));
        }
        if field("dropout").is_some_and(|d| d.as_f64() != Some(0.0)) {
            return Err("dropout makes the ids of a text random; set it to null".into());
        }
        if field("max_input_chars_per_word").and_then(Value::as_u64).is_some_and(|n| n > WORD_CHARS) {
            return Err(format!("max_input_chars_per_word is more than {WORD_CHARS}"));
        }
        Ok(())
    }

    fn added_tokens(&mut self, section: Option<&Value>) -> Result<(), String> {
        let tokens = match section {
            None | Some(Value::Null) => return Ok(()),
            Some(Value::Array(tokens)) => tokens,
            Some(_) => return Err("added_tokens is not a list".into()),
        };
        let mut bytes = 0;
        for (at, token) in tokens.iter().enumerate() {
            let content = token.get("content").and_then(Value::as_str);
            let id = token.get("id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
            let (Some(content), Some(id)) = (content, id) else {
                return Err(format!("added_tokens[{at}] needs a text as `content` and an `id`"));
            };
            bytes += content.len();
            self.added.push((content.into(), id));
        }
        if bytes > ADDED_BYTES {
            return Err(format!("the added tokens have more than {ADDED_BYTES} bytes"));
        }
        // They are normalized when the file is read.
        self.added.iter().try_for_each(|(content, _)| self.admit(content))
    }

    /// Everything under a normalizer, pre-tokenizer, post-processor or decoder.
    fn walk(&mut self, value: &Value, in_decoder: bool, steps: &mut usize) -> Result<(), String> {
        let fields = match value {
            Value::Array(list) => return list.iter().try_for_each(|item| self.walk(item, in_decoder, steps)),
            Value::Object(fields) => fields,
            _ => return Ok(()),
        };
        *steps += 1;
        if *steps > STEPS {
            return Err(format!("it has more than {STEPS} steps"));
        }
        if let Some(regex) = fields.get("Regex").and_then(Value::as_str) {
            self.wild |= !is_tame(regex)?;
            self.unknown |= !KNOWN.contains(&regex) && regex != crate::data::bpe::SPLIT;
        }
        let number = |key: &str| fields.get(key).and_then(Value::as_u64);
        match fields.get("type").and_then(Value::as_str) {
            Some("Replace") => {
                let content = fields.get("content").and_then(Value::as_str).unwrap_or_default().len();
                let pattern = fields.get("pattern").and_then(|p| p.get("String")).and_then(Value::as_str);
                let pattern = pattern.filter(|p| !p.is_empty());
                if in_decoder {
                    let growth = content as f64 / pattern.map_or(1, str::len) as f64;
                    self.decoder_growth *= growth.max(1.0);
                } else {
                    self.replacements.push((pattern.map(String::from), content));
                }
            }
            Some("Prepend") => {
                let prepended = fields.get("prepend").and_then(Value::as_str).unwrap_or_default().len();
                self.prepended += prepended;
                if self.prepended > PREPENDED {
                    return Err(format!("more than {PREPENDED} bytes are prepended"));
                }
            }
            Some("Precompiled") => {
                let map = fields.get("precompiled_charsmap").and_then(Value::as_str).unwrap_or_default();
                let longest = longest_replacement(map)?;
                if longest as f64 > USUAL_GROWTH {
                    self.replacements.push((None, longest));
                }
            }
            Some("FixedLength") if number("length") == Some(0) => return Err("a length of 0 cuts nothing".into()),
            Some("TemplateProcessing") => {
                for key in ["single", "pair"] {
                    if fields.get(key).and_then(Value::as_array).is_some_and(|pieces| pieces.len() > 64) {
                        return Err(format!("the template `{key}` has more than 64 pieces"));
                    }
                }
                // A special token's ids are no steps.
                return Ok(());
            }
            _ => {}
        }
        fields.values().try_for_each(|value| self.walk(value, in_decoder, steps))
    }

    /// Whether a text of so many bytes may take unreasonable time, so that it is to be tokenized
    /// against a clock.
    pub(super) fn is_timed(&self, bytes: usize) -> bool {
        self.wild || (self.unknown && bytes > TAME_BYTES)
    }

    /// Whether `text` may go through the tokenizer.
    ///
    /// # Errors
    /// How far it would grow, or that it is too long for an expression that may backtrack.
    pub(super) fn admit(&self, text: &str) -> Result<(), String> {
        if self.wild && text.len() > WILD_BYTES {
            return Err(format!("a text of {} bytes is too long for its regular expression", text.len()));
        }
        let factor = |(pattern, content): &(Option<String>, usize)| {
            (*content as f64 / pattern.as_ref().map_or(1, String::len) as f64).max(1.0)
        };
        if self.replacements.iter().map(factor).product::<f64>() <= USUAL_GROWTH {
            return Ok(());
        }
        // Seldom: what the replacements really do to this text, as far as it can be told without
        // doing it.
        let (mut bytes, mut replaced) = ((text.len() + self.prepended) as f64, self.prepended > 0);
        for replacement in &self.replacements {
            let found = match replacement {
                // What one replacement writes the next may find.
                (Some(pattern), _) if !replaced => text.matches(pattern.as_str()).count() as f64,
                (pattern, _) => bytes / pattern.as_ref().map_or(1, String::len) as f64,
            };
            replaced |= found > 0.0;
            let removed = found * replacement.0.as_ref().map_or(0, String::len) as f64;
            bytes = (bytes - removed).max(0.0) + found * replacement.1 as f64;
            if bytes > GROWN_BYTES as f64 {
                return Err(format!("its normalizer makes more than {GROWN_BYTES} bytes of a text of {}", text.len()));
            }
        }
        Ok(())
    }

    /// Whether tokens of so many bytes may be decoded.
    ///
    /// # Errors
    /// How far they would grow.
    pub(super) fn admit_decoding(&self, bytes: usize) -> Result<(), String> {
        if self.decoder_growth > USUAL_GROWTH && bytes as f64 * self.decoder_growth > GROWN_BYTES as f64 {
            return Err(format!("its decoder makes more than {GROWN_BYTES} bytes of tokens of {bytes}"));
        }
        Ok(())
    }
}

const REFUSED: &str =
    "no tokenizer in use has this: copy the file from the model again, and do not trust where it came from";

/// The longest text that a character becomes by a table of SentencePiece: the size of its trie, the
/// trie, then the texts, each ended by a zero.
fn longest_replacement(base64: &str) -> Result<usize, String> {
    let broken = |what: &str| format!("precompiled_charsmap {what}");
    let table = base64::engine::general_purpose::STANDARD.decode(base64).map_err(|_| broken("is not base64"))?;
    let Some((size, rest)) = table.split_first_chunk::<4>() else { return Err(broken("has no size")) };
    let trie = u32::from_le_bytes(*size) as usize / 4 * 4;
    match rest.get(trie..) {
        // The first node is read before anything is looked at.
        Some(texts) if trie > 0 => Ok(texts.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0)),
        _ => Err(broken(&format!("has {} bytes, but says that its trie has {trie}", rest.len()))),
    }
}

#[cfg(test)]
mod tests;
