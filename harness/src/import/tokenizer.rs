//! From a GGUF's tokenizer metadata to `tokenizer.json`, `tokenizer_config.json` and the chat
//! template.
//!
//! Only byte-level BPE (`tokenizer.ggml.model` is `gpt2`) is known. How text is cut before merges
//! is a name in the metadata, `tokenizer.ggml.pre`; the expressions behind the names are those of
//! llama.cpp (`llama-vocab.cpp`), written as the models' own `tokenizer.json` writes them. A name
//! that is not known is refused: a wrong cut gives other ids and worse numbers without any error.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::decoder::token_id;
use super::gguf::{Gguf, Value};
use crate::Result;

/// GPT-2's expression; `ByteLevel` applies it itself.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Numbers in the file for the kinds of tokens; 2 (unknown) and 6 (byte) are plain tokens to a
/// byte-level BPE.
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;
const UNUSED: i128 = 5;

/// Control tokens that end a turn where the chat template writes them.
const TURN_ENDS: [&str; 3] = ["<|im_end|>", "<|eot_id|>", "<|eom_id|>"];
/// Control tokens that end a document: what follows is another text. The generation settings of
/// Qwen and Llama 3 list them beside the end of a turn; GGUF has room for one end token only.
const DOCUMENT_ENDS: [&str; 2] = ["<|endoftext|>", "<|end_of_text|>"];

/// How text is cut before merges.
struct Cut {
    normalizer: Json,
    steps: Vec<Json>,
    ignore_merges: bool,
    /// What llama.cpp assumes where the metadata does not say.
    add_bos: bool,
}

fn split(expression: &str) -> Json {
    json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false})
}

fn byte_level(use_regex: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex})
}

/// The expression of Llama 3 and, with `digits` 1, of Qwen2.
fn llama3(digits: &str) -> String {
    format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

fn cut(gguf: &Gguf) -> Result<Cut> {
    let plain = |steps| Cut { normalizer: Json::Null, steps, ignore_merges: false, add_bos: false };
    match gguf.text("tokenizer.ggml.pre")? {
        Some("gpt-2") => Ok(plain(vec![byte_level(true)])),
        Some("smollm") => Ok(plain(vec![json!({"type": "Digits", "individual_digits": true}), byte_level(true)])),
        Some("qwen2") => {
            Ok(Cut { normalizer: json!({"type": "NFC"}), ..plain(vec![split(&llama3(r"\p{N}")), byte_level(false)]) })
        }
        Some("llama-bpe" | "llama3" | "llama-v3") => Ok(Cut {
            ignore_merges: true,
            add_bos: true,
            ..plain(vec![split(&llama3(r"\p{N}{1,3}")), byte_level(false)])
        }),
        Some("default") => Ok(plain(vec![
            split(r"[\p{P}\$\+<=>\^~\|]+"),
            split(GPT2),
            split(r"\p{N}+"),
            split("[0-9][0-9][0-9]"),
            byte_level(false),
        ])),
        Some(other) => Err(gguf
            .error(format!("the pre-tokenizer {other:?} (tokenizer.ggml.pre) is not known"))
            .help("known are smollm, qwen2, llama-bpe, gpt-2 and default; a guess would give other token ids")),
        None => Err(gguf
            .error("the file does not say how text is cut before merges (tokenizer.ggml.pre)")
            .help("it was made by an old converter: convert the model again with a current llama.cpp")),
    }
}

/// The files of a tokenizer.
pub struct GgufTokenizer {
    /// `tokenizer.json`.
    pub tokenizer: Json,
    /// `tokenizer_config.json`.
    pub config: Json,
    /// `generation_config.json`.
    pub generation: Json,
    /// What `config.json` says of special tokens.
    pub ids: Vec<(String, Json)>,
    /// `chat_template.jinja`, if the file has one.
    pub template: Option<String>,
    /// Entries of the vocabulary; the embedding may have more rows.
    pub tokens: usize,
}

/// Reads the tokenizer of a model whose embedding has `vocab` rows, for texts of up to `context`
/// tokens.
///
/// # Errors
/// Another kind of tokenizer, an unknown pre-tokenizer, tokens that are no text, stand twice, or
/// have no row in the embedding; special ids outside the vocabulary.
pub fn read(gguf: &Gguf, vocab: usize, context: usize) -> Result<GgufTokenizer> {
    match gguf.text("tokenizer.ggml.model")? {
        Some("gpt2") => {}
        Some(other) => {
            let kind = match other {
                "llama" => " (SentencePiece)",
                "bert" => " (WordPiece)",
                _ => "",
            };
            return Err(gguf
                .error(format!("the tokenizer {other:?}{kind} is not imported"))
                .help("byte-level BPE (\"gpt2\") is: Llama 3, Qwen2, Qwen3, SmolLM2 have it"));
        }
        None => return Err(gguf.error("the file has no tokenizer (tokenizer.ggml.model)")),
    }
    let cut = cut(gguf)?;
    let texts = gguf.texts("tokenizer.ggml.tokens")?;
    let kinds = kinds(gguf, texts.len())?;
    if texts.len() > vocab {
        return Err(gguf.error(format!("{} tokens, but the embedding has {vocab} rows", texts.len())));
    }
    let mut ids = BTreeMap::new();
    let mut entries = Map::new();
    let mut added = Vec::new();
    for (id, (text, &kind)) in texts.iter().zip(&kinds).enumerate() {
        // Rows that pad the embedding to a round size have no token.
        if kind == UNUSED {
            continue;
        }
        if let Some(first) = ids.insert(text.as_str(), id) {
            return Err(gguf.error(format!("the token {text:?} stands twice, as {first} and {id}")));
        }
        entries.insert(text.clone(), json!(id));
        if kind == CONTROL || kind == USER_DEFINED {
            added.push(json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": kind == CONTROL,
            }));
        }
    }
    let merges = merges(gguf, &ids)?;

    let named = |key: &str| -> Result<Option<(usize, &str)>> {
        let Some(id) = token_id(gguf, key)? else { return Ok(None) };
        match texts.get(id).filter(|text| ids.get(text.as_str()) == Some(&id)) {
            Some(text) => Ok(Some((id, text))),
            None => Err(gguf.error(format!("tokenizer.ggml.{key} is {id}, which is no token"))),
        }
    };
    let bos = named("bos_token_id")?;
    let eos = named("eos_token_id")?;
    let unknown = named("unknown_token_id")?;
    let pad = named("padding_token_id")?;
    let add_bos = gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(cut.add_bos);
    if gguf.flag("tokenizer.ggml.add_eos_token")? == Some(true) {
        return Err(gguf.error("tokenizer.ggml.add_eos_token is set; no decoder for chat does that"));
    }
    let template = gguf.text("tokenizer.chat_template")?.map(str::to_string);

    // What ends a text: the end token, then what the metadata or the template names.
    let mut stop: Vec<usize> = eos.iter().map(|(id, _)| *id).collect();
    for key in ["eot_token_id", "eom_token_id"] {
        stop.extend(named(key)?.map(|(id, _)| id));
    }
    let written = |text: &&str| template.as_ref().is_some_and(|template| template.contains(text));
    let ends = TURN_ENDS.into_iter().filter(written).chain(DOCUMENT_ENDS);
    stop.extend(ends.filter_map(|text| ids.get(text)).filter(|&&id| kinds[id] == CONTROL));
    let mut seen = Vec::new();
    stop.retain(|id| {
        !seen.contains(id) && {
            seen.push(*id);
            true
        }
    });

    let byte_level_after = byte_level(false);
    let post_processor = match bos.filter(|_| add_bos) {
        Some((id, text)) => json!({"type": "Sequence", "processors": [byte_level_after, {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": text, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {text: {"id": text, "ids": [id], "tokens": [text]}},
        }]}),
        None => byte_level_after,
    };
    let pre_tokenizer = match <[Json; 1]>::try_from(cut.steps) {
        Ok([only]) => only,
        Err(steps) => json!({"type": "Sequence", "pretokenizers": steps}),
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added,
        "normalizer": cut.normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": cut.ignore_merges,
            "vocab": entries, "merges": merges,
        },
    });
    let mut config = Map::new();
    let mut set = |name: &str, value: Json| config.insert(name.into(), value);
    set("add_bos_token", json!(add_bos));
    set("add_prefix_space", json!(false));
    set("clean_up_tokenization_spaces", json!(false));
    set("model_max_length", json!(context));
    set("tokenizer_class", json!("PreTrainedTokenizerFast"));
    let mut special_ids = Vec::new();
    for (name, token) in [("bos", bos), ("eos", eos), ("pad", pad), ("unk", unknown)] {
        if let Some((id, text)) = token {
            set(&format!("{name}_token"), json!(text));
            if name != "unk" {
                special_ids.push((format!("{name}_token_id"), json!(id)));
            }
        }
    }
    let mut generation: Map<String, Json> = special_ids.iter().cloned().collect();
    if stop.len() > 1 {
        generation.insert("eos_token_id".into(), json!(stop));
    }
    config.sort_keys();
    generation.sort_keys();
    let (config, generation) = (Json::Object(config), Json::Object(generation));
    Ok(GgufTokenizer { tokenizer, config, generation, ids: special_ids, template, tokens: ids.len() })
}

/// The kind of every token; all plain where the file does not say.
fn kinds(gguf: &Gguf, tokens: usize) -> Result<Vec<i128>> {
    match gguf.get("tokenizer.ggml.token_type") {
        None => Ok(vec![1; tokens]),
        Some(Value::Array(kinds)) if kinds.len() == tokens => kinds
            .iter()
            .map(|kind| match kind {
                Value::Integer(n @ 1..=6) => Ok(*n),
                other => {
                    Err(gguf.error(format!("tokenizer.ggml.token_type holds {other:?}, which is no kind of token")))
                }
            })
            .collect(),
        Some(_) => Err(gguf.error(format!("tokenizer.ggml.token_type is no list of {tokens} kinds"))),
    }
}

/// Merges as pairs, each of tokens that are there and give one that is there.
fn merges(gguf: &Gguf, ids: &BTreeMap<&str, usize>) -> Result<Vec<Json>> {
    let merges = gguf.texts("tokenizer.ggml.merges")?;
    merges
        .iter()
        .enumerate()
        .map(|(i, merge)| {
            // A space within a token is written as another character, so the one space parts the
            // two.
            let pair = merge.split_once(' ').filter(|(_, b)| !b.contains(' '));
            let whole = pair.filter(|(a, b)| {
                ids.contains_key(a) && ids.contains_key(b) && ids.contains_key(format!("{a}{b}").as_str())
            });
            let (a, b) = whole.ok_or_else(|| {
                gguf.error(format!(
                    "merge {i} of tokenizer.ggml.merges, {merge:?}, is no pair of tokens that gives one"
                ))
            })?;
            Ok(json!([a, b]))
        })
        .collect()
}
