//! The tokenizer of a model folder: text to ids and back, and which ids end a text.

mod declared;
mod expression;
mod outline;
mod special;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

pub(crate) use self::declared::object as read_object;
use self::declared::{Declarations, Declared, FIX, ids, object};
use self::outline::{FILE_BYTES, Outline};
pub use self::special::{SpecialTokens, StopToken};
use super::untrusted;
use crate::{Error, Result, fsio};

/// Largest configuration in bytes.
const CONFIG_BYTES: u64 = 16 << 20;
/// How long reading a tokenizer may take, also where an expression of it may backtrack (added
/// tokens go through them), and how long one text may take then.
const LOAD_TIME: Duration = Duration::from_secs(120);
const WILD_LOAD_TIME: Duration = Duration::from_secs(20);
const TEXT_TIME: Duration = Duration::from_secs(10);
/// A text is slow that takes this long, and this long for each of its bytes; any tokenizer in use
/// is a hundred times faster.
const SLOW: Duration = Duration::from_secs(1);
const SLOW_BYTE: Duration = Duration::from_micros(100);
/// One that fails is after this: an expression that backtracks too often is ended by its engine.
const SLOW_FAILURE: Duration = Duration::from_millis(20);
/// What all slow texts may take together. No more are tried then: a file has any number of them,
/// and one that was given up leaves a thread that goes on.
const SLOW_TEXTS: Duration = Duration::from_secs(10);
/// Longest text in bytes that others are tokenized beside: each byte takes some 350 of memory. It
/// is not cut, since only the tokenizer knows where no token lies: normalizers, merges and added
/// tokens may reach over any two characters.
const LONG_TEXT: usize = 256 << 10;
/// Stack for reading a tokenizer and for its expressions.
const STACK: usize = 32 << 20;

/// A tokenizer as it lies in a Hugging Face model folder.
///
/// Encoding never adds special tokens of its own: a chat template already writes them, and a second
/// BOS is a classic way to lose points. Truncation and padding stored in `tokenizer.json` are
/// switched off for the same reason.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    outline: Arc<Outline>,
    /// Milliseconds that slow texts took.
    slow: Arc<AtomicU64>,
    path: Arc<str>,
    /// Where ids that end a text are read.
    configs: Arc<[PathBuf]>,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    stop: Vec<u32>,
    sha256: String,
}

/// Ids without a token that a model wrote, counted over many texts.
#[derive(Clone, Debug, Default)]
pub struct Unnamed {
    ids: BTreeSet<u32>,
    count: usize,
    items: Vec<String>,
}

impl Unnamed {
    /// Looks at the ids that were written for `item`.
    pub fn look(&mut self, tokenizer: &Tokenizer, item: &str, ids: &[u32]) {
        let before = self.count;
        for id in tokenizer.without_token(ids) {
            self.ids.insert(id);
            self.count += 1;
        }
        if self.count > before {
            self.items.push(item.into());
        }
    }

    /// What was found, in words; nothing if all ids have tokens.
    pub fn warning(&self) -> Option<String> {
        const SHOWN: usize = 10;
        let (first, last) = (self.ids.first()?, self.ids.last()?);
        let ids = if first == last { format!("the id {first}") } else { format!("ids from {first} to {last}") };
        let mut items = self.items.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        if self.items.len() > SHOWN {
            items.push_str(&format!(" and {} more", self.items.len() - SHOWN));
        }
        Some(format!(
            "{} of the generated ids have no token in the tokenizer ({ids}; a model's vocabulary may be padded) and became no \
             text, in {items}",
            self.count
        ))
    }
}

/// The ids of a text, each with the bytes of the text it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Byte range of each id in the text. Tokens that share a character (bytes of one Chinese
    /// character) share its range.
    pub spans: Vec<Range<usize>>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`; the tokens that `tokenizer_config.json`, `special_tokens_map.json`
    /// and `added_tokens.json` declare beside it; and what `generation_config.json` and
    /// `config.json` say about special ids. All but the first may be missing.
    ///
    /// A declared token gets the id that transformers gives it: its own where `tokenizer.json` has
    /// it, else the next one after all others.
    ///
    /// The padding token is `pad_token`, else `pad_token_id`, else the end token. The stop ids are
    /// all of `generation_config.json`'s `eos_token_id` (one or a list), `config.json`'s, and
    /// `eos_token`.
    ///
    /// # Errors
    /// If `tokenizer.json` is missing or broken, a file is not a JSON object or has a value of a
    /// wrong type, a token's id is not the one that a file says, has no row in the model
    /// (`vocab_size` of `config.json`), or the end token is not in the vocabulary.
    pub fn from_model_dir(dir: impl AsRef<Path>) -> Result<Self> {
        Self::read(dir.as_ref(), dir.as_ref())
    }

    /// The tokenizer in the folder `dir`, for the model in the folder `model`: an adapter's own, as
    /// trainers save it. Every token must have a row in the model.
    ///
    /// # Errors
    /// As [`Tokenizer::from_model_dir`]; a token for which the model was not resized.
    pub(super) fn read(dir: &Path, model: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let bytes = read_file(&path, FILE_BYTES)?.ok_or_else(|| {
            Error::data("the model folder has no tokenizer.json")
                .at(dir.display())
                .help("give a folder in the Hugging Face layout; slow tokenizers must be saved as tokenizer.json first")
        })?;
        let mut sha256 = fsio::sha256(&bytes);
        let outline = Outline::read(&bytes, &path)?;
        let declarations = Declarations::read(dir)?;
        let mut configs = Vec::new();
        for (folder, name) in
            [(dir, "generation_config.json"), (model, "generation_config.json"), (model, "config.json")]
        {
            let path = folder.join(name);
            if configs.iter().all(|(read, _)| *read != path) {
                let config = object(&path)?.unwrap_or_default();
                configs.push((path, config));
            }
        }
        let rows = configs.last().and_then(|(_, config)| config.get("vocab_size")).and_then(Value::as_u64);

        let broken = |what: String| {
            Error::data(format!("not a tokenizer: {what}"))
                .at(path.display())
                .help("copy the file from the model again")
        };
        let split_special = declarations.split_special;
        let in_file = outline.added.clone();
        let tokens: Vec<Declared> = declarations.tokens;
        let adding = tokens.clone();
        let time = if outline.wild { WILD_LOAD_TIME } else { LOAD_TIME };
        let read = untrusted::in_time(time, STACK, move || -> Result<_, String> {
            let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| e.to_string())?;
            inner.with_padding(None);
            inner.with_truncation(None).map_err(|e| e.to_string())?;
            let before = (inner.get_vocab_size(true), inner.get_added_tokens_decoder());
            let known = |text: &str| before.1.values().any(|token| token.content == text);
            let mut new = Vec::new();
            for declared in &adding {
                // With an id they are added as they are, the others only where nothing has their
                // text.
                let text = declared.token.content.as_str();
                let there = known(text) || new.iter().any(|token: &tokenizers::AddedToken| token.content == text);
                let missing_end = declared.name == Some("eos_token") && inner.token_to_id(text).is_none();
                if declared.id.is_some() || !(there || missing_end) {
                    let mut token = declared.token.clone();
                    // A named token is special, whatever else says of it.
                    token.special |= adding.iter().any(|d| d.name.is_some() && d.token.content == text);
                    new.push(token);
                }
            }
            inner.add_tokens(new).map_err(|e| e.to_string())?;
            inner.set_encode_special_tokens(split_special);
            let changed = split_special || before != (inner.get_vocab_size(true), inner.get_added_tokens_decoder());
            Ok((inner, before.0, changed))
        });
        let (inner, vocabulary, changed) = read.and_then(|read| read).map_err(broken)?;

        for (text, id) in &in_file {
            let own = inner.token_to_id(text);
            if own.is_some_and(|own| own != *id) && !text.is_empty() {
                let own = own.unwrap_or_default();
                return Err(Error::data(format!("added_tokens says that {text:?} is {id}, but its id is {own}"))
                    .at(path.display())
                    .help(FIX));
            }
        }
        if dir != model
            && let Some(rows) = rows
            && let Some((id, token)) = inner
                .get_added_tokens_decoder()
                .into_iter()
                .filter(|(id, _)| u64::from(*id) >= rows)
                .min_by_key(|t| t.0)
        {
            let what = format!("the token {:?} has the id {id}, but the model has {rows} rows", token.content);
            return Err(Error::data(what).at(path.display()).help(format!(
                "the adapter was trained on a model whose embeddings were resized: give that one instead of {}",
                model.display()
            )));
        }
        for declared in &tokens {
            check_declared(declared, &inner, vocabulary, rows)?;
        }
        if changed {
            // Other ids for the same text are another tokenizer, though the file is the same.
            let all: BTreeMap<u32, tokenizers::AddedToken> = inner.get_added_tokens_decoder().into_iter().collect();
            sha256 = fsio::sha256(format!("{sha256} {split_special} {all:?}").as_bytes());
        }

        let named = |name: &str| declarations.named.get(name).and_then(|token| inner.token_to_id(token));
        let listed = |key: &str, absent: bool| -> Result<Vec<u32>> {
            let mut all = Vec::new();
            for (path, config) in &configs {
                all.extend(ids(path, config, key, absent)?);
            }
            Ok(all)
        };
        let mut stop = listed("eos_token_id", false)?;
        check_rows("eos_token_id", &stop, rows, &configs)?;
        let eos = named("eos_token").or(stop.first().copied());
        stop.extend(eos);
        stop.sort_unstable();
        stop.dedup();
        let pad = named("pad_token").or(listed("pad_token_id", true)?.first().copied()).or(eos);
        let bos = named("bos_token").or(listed("bos_token_id", true)?.first().copied());
        let path: Arc<str> = path.display().to_string().into();
        let configs = configs.into_iter().map(|(path, _)| path).collect();
        let (inner, outline, slow) = (Arc::new(inner), Arc::new(outline), Arc::default());
        Ok(Tokenizer { configs, inner, outline, slow, path, bos, eos, pad, stop, sha256 })
    }

    /// The ids of `text`. Special tokens *written in* the text become their ids; none are added.
    ///
    /// # Errors
    /// If the tokenizer fails (a model without an unknown token meets an unknown character), or
    /// would take unreasonable time or memory for this text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.encoding(text, |inner, text| inner.encode_fast(text, false))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// [`Tokenizer::encode`] with where each token came from.
    ///
    /// # Errors
    /// As there.
    pub fn encode_with_spans(&self, text: &str) -> Result<Encoded> {
        let encoding = self.encoding(text, |inner, text| inner.encode(text, false))?;
        let spans = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok(Encoded { ids: encoding.get_ids().to_vec(), spans })
    }

    fn encoding(
        &self,
        text: &str,
        encode: fn(&tokenizers::Tokenizer, &str) -> tokenizers::Result<tokenizers::Encoding>,
    ) -> Result<tokenizers::Encoding> {
        let refused = |what: String| {
            Error::data(format!("the text cannot be tokenized: {what}"))
                .at(&self.path)
                .help("the tokenizer is broken or made to do harm: copy its files from the model again")
        };
        self.outline.admit(text).map_err(refused)?;
        // Rows are tokenized on all processors: of long ones only one at a time is in memory.
        static LONG: Mutex<()> = Mutex::new(());
        let _alone = (text.len() > LONG_TEXT).then(|| LONG.lock().unwrap_or_else(PoisonError::into_inner));
        let encoding = if self.outline.is_timed(text.len()) {
            let (inner, text) = (self.inner.clone(), text.to_string());
            self.in_time(text.len(), move || encode(&inner, &text))
        } else {
            untrusted::caught(|| encode(&self.inner, text))
        };
        encoding.map_err(refused)?.map_err(|e| Error::data("the text cannot be tokenized").at(&self.path).because(e))
    }

    /// The text of `ids`; bytes that are not UTF-8 (a character cut in half) become U+FFFD, ids
    /// without a token ([`Tokenizer::without_token`]) become nothing. With `skip_special`, tokens
    /// that the tokenizer marks as special are left out (`<think>` usually is not one of them).
    ///
    /// # Errors
    /// If the decoder fails or would take unreasonable time or memory.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let refused = |what: String| {
            Error::data(format!("the ids cannot be decoded: {what}"))
                .at(&self.path)
                .help("the tokenizer is broken or made to do harm: copy its files from the model again")
        };
        let bytes = ids.iter().filter_map(|&id| self.inner.id_to_token(id)).map(|token| token.len()).sum();
        self.outline.admit_decoding(bytes).map_err(refused)?;
        let text = if self.outline.is_timed(bytes) {
            let (inner, ids) = (self.inner.clone(), ids.to_vec());
            self.in_time(bytes, move || inner.decode(&ids, skip_special))
        } else {
            untrusted::caught(|| self.inner.decode(ids, skip_special))
        };
        text.map_err(refused)?.map_err(|e| Error::data("the ids cannot be decoded").at(&self.path).because(e))
    }

    /// Runs `work` on a text of so many bytes against the clock, unless slow texts before took too
    /// long together.
    fn in_time<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> tokenizers::Result<T> + Send + 'static,
    ) -> Result<tokenizers::Result<T>, String> {
        let spent = Duration::from_millis(self.slow.load(Ordering::Relaxed));
        if spent >= SLOW_TEXTS {
            return Err(format!(
                "texts before took {} s, far longer than they should; no more are tried",
                spent.as_secs()
            ));
        }
        let began = Instant::now();
        let done = untrusted::in_time(TEXT_TIME, STACK, work);
        let took = began.elapsed();
        let slow = match &done {
            Ok(Ok(_)) => took > SLOW && took > SLOW_BYTE * u32::try_from(bytes).unwrap_or(u32::MAX),
            _ => took > SLOW_FAILURE,
        };
        if slow {
            self.slow.fetch_add(took.as_millis() as u64, Ordering::Relaxed);
        }
        done
    }

    /// Those of `ids` that no token has, in their order. Models pad their vocabulary to a round
    /// size, and a model may write such an id: it decodes to nothing.
    pub fn without_token<'a>(&'a self, ids: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
        ids.iter().copied().filter(|&id| self.inner.id_to_token(id).is_none())
    }

    /// The text of one id as it stands in the vocabulary of added tokens, or as it decodes; none
    /// for an id without a token.
    pub fn text_of(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)?;
        self.decode(&[id], false).ok()
    }

    /// The texts of the tokens that are marked as special.
    pub fn special_texts(&self) -> Vec<String> {
        let mut texts: Vec<String> = self
            .inner
            .get_added_tokens_decoder()
            .into_values()
            .filter(|token| token.special)
            .map(|token| token.content)
            .collect();
        texts.sort_unstable();
        texts
    }

    /// Lets generated texts end at `stops` too, and examples at the first of them that a template
    /// writes after the answer.
    ///
    /// # Errors
    /// A text that is no token, an id without one.
    pub fn stop_also_at(&mut self, stops: &[StopToken]) -> Result<()> {
        for stop in stops {
            let found = match stop {
                StopToken::Text(text) => self.id_of(text),
                StopToken::Id(id) => Some(*id).filter(|&id| self.inner.id_to_token(id).is_some()),
            };
            self.stop.push(found.ok_or_else(|| {
                Error::usage(format!("the stop {stop} is no token of the tokenizer"))
                    .at(&self.path)
                    .help("give the text of one token, such as \"<|im_end|>\", or its id")
            })?);
        }
        self.stop.sort_unstable();
        self.stop.dedup();
        Ok(())
    }

    /// How to let the texts of this model end at `id`, which no configuration names.
    pub fn help_to_stop_at(&self, id: u32) -> String {
        let text = self.inner.id_to_token(id).unwrap_or_default();
        let there = self.configs.iter().find(|path| path.is_file());
        let file = there.or(self.configs.first()).map_or_else(String::new, |path| path.display().to_string());
        let stops: Vec<String> = self.stop.iter().chain([&id]).map(u32::to_string).collect();
        format!(
            "the template ends the turn with {text:?} (id {id}): set eos_token_id in {file} to [{}], or stop = [{text:?}] \
             under [eval] in the suite (karat train: --set 'data.stop=[{text:?}]', karat generate: --stop '{text}')",
            stops.join(", ")
        )
    }

    /// Whether `id` is a token that was added and is marked as special.
    pub(super) fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
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
    /// SHA-256 of `tokenizer.json`, in hexadecimal; where other files add tokens, of these too.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
}

/// A declared token has the id that its file says, and a row in the model where it is new.
fn check_declared(
    declared: &Declared,
    inner: &tokenizers::Tokenizer,
    vocabulary: usize,
    rows: Option<u64>,
) -> Result<()> {
    let text = &declared.token.content;
    if text.is_empty() {
        return Ok(());
    }
    let Some(id) = inner.token_to_id(text) else {
        let name = declared.name.unwrap_or("token");
        return Err(Error::data(format!("the {name} {text:?} is not in the vocabulary")).at(&declared.place).help(FIX));
    };
    if declared.id.is_some_and(|said| said != id) {
        let said = declared.id.unwrap_or_default();
        let holder = inner.id_to_token(said).filter(|holder| holder != text);
        let what = match holder {
            Some(holder) => format!("{text:?} is declared as id {said}, which is {holder:?}; its own id is {id}"),
            None => format!("{text:?} is declared as id {said}, but its id is {id}"),
        };
        return Err(Error::data(what).at(&declared.place).help(FIX));
    }
    if id as usize >= vocabulary && rows.is_some_and(|rows| u64::from(id) >= rows) {
        let rows = rows.unwrap_or_default();
        return Err(Error::data(format!("{text:?} has the id {id}, but the model has {rows} rows (vocab_size)"))
            .at(&declared.place)
            .help("remove the token, or use the model whose embeddings were resized for it"));
    }
    Ok(())
}

/// An end that the model has no row for never comes.
fn check_rows(key: &str, ids: &[u32], rows: Option<u64>, configs: &[(PathBuf, Map<String, Value>)]) -> Result<()> {
    let Some(id) = ids.iter().find(|&&id| rows.is_some_and(|rows| u64::from(id) >= rows)) else { return Ok(()) };
    let said = |(path, config): &&(PathBuf, Map<String, Value>)| {
        self::ids(path, config, key, false).is_ok_and(|ids| ids.contains(id))
    };
    let path = configs.iter().find(said).map_or(Path::new(""), |(path, _)| path);
    let rows = rows.unwrap_or_default();
    Err(Error::data(format!("{key} {id} is outside the vocabulary of {rows} (vocab_size of config.json)"))
        .at(path.display())
        .help("correct the id, or copy the file from the model again"))
}

/// The bytes of a file, `None` if it is not there.
///
/// # Errors
/// If it is larger than `most` or cannot be read.
pub(super) fn read_file(path: &Path, most: u64) -> Result<Option<Vec<u8>>> {
    match std::fs::metadata(path) {
        Ok(file) if file.is_dir() => {
            return Err(Error::data("a folder stands in the place of this file").at(path.display()));
        }
        Ok(file) if file.len() > most => {
            return Err(Error::data(format!("the file has {} bytes, more than the {most} that are read", file.len()))
                .at(path.display())
                .help("no model in use has one of this size: copy the file from the model again"));
        }
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read the file", path, e)),
    }
    let read = crate::fsio::regular(path).and_then(|()| std::fs::read(path));
    read.map(Some).map_err(|e| Error::io("read the file", path, e))
}

/// A JSON file, `None` if it is not there.
pub(super) fn read_json(path: &Path) -> Result<Option<Value>> {
    let Some(bytes) = read_file(path, CONFIG_BYTES)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| {
        Error::data(format!("not JSON: {e}"))
            .at(format_args!("{}:{}", path.display(), e.line()))
            .help("correct the file or copy it from the model again")
    })
}
