//! Training a byte-level BPE tokenizer, for suites that ship a model of their own.
//!
//! The layout is Qwen3's: NFC, a split by a regular expression, byte-level BPE, control tokens
//! after the learnt vocabulary, and `<think>`, `</think>` as added tokens that are *not* special,
//! so that decoding without special tokens keeps them. Two things differ, both for the sake of
//! small models and small corpora. Runs of Han characters are split from letters, digits and
//! punctuation, so that a drug's name is cut alike wherever it stands; and no learnt token is
//! longer than four Han characters (twelve bytes), so that a templated corpus cannot turn whole
//! sentences into tokens.

use std::path::Path;

use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer, TokenizerBuilder};

use crate::fsio::write_atomic;
use crate::{Error, Result};

/// How text is cut before merges: contractions, Han runs, words of other scripts with their space,
/// single digits, punctuation with its space, line breaks, other white space. Oniguruma syntax, as
/// in every `tokenizer.json`.
pub const SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{Han}+| ?[\p{L}\p{M}&&[^\p{Han}]]+|\p{N}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The longest learnt token, in bytes: four Han characters, or twelve letters.
pub const MAX_TOKEN_BYTES: usize = 12;

/// A token that is never split and never learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlToken {
    /// Its text.
    pub content: &'static str,
    /// Whether decoding may skip it: true for `<|im_end|>`, false for `<think>`.
    pub special: bool,
}

/// The control tokens of Qwen3 that the recipe uses, in the order of their ids.
pub const QWEN3_CONTROL_TOKENS: [ControlToken; 5] = [
    ControlToken { content: "<|endoftext|>", special: true },
    ControlToken { content: "<|im_start|>", special: true },
    ControlToken { content: "<|im_end|>", special: true },
    ControlToken { content: "<think>", special: false },
    ControlToken { content: "</think>", special: false },
];

/// Learns a byte-level BPE of exactly `vocab_size` tokens, `special_tokens` included; these get the
/// last ids, in order.
///
/// The same texts give the same bytes on any number of threads: merges are ordered by count, then
/// by the ids of the pair, and the initial alphabet is all 256 bytes, so that every text can be
/// encoded.
///
/// # Errors
/// [`crate::ErrorKind::Usage`] where `vocab_size` has no room for 256 bytes and the control tokens;
/// [`crate::ErrorKind::Data`] where the texts are too few to learn that many merges.
pub fn train_bpe(
    texts: impl Iterator<Item = String> + Send,
    vocab_size: usize,
    special_tokens: &[ControlToken],
) -> Result<Tokenizer> {
    let alphabet = ByteLevel::alphabet();
    if vocab_size < alphabet.len() + special_tokens.len() {
        return Err(Error::usage(format!("a vocabulary of {vocab_size} has no room for 256 bytes and control tokens"))
            .help(format!("ask for at least {}", alphabet.len() + special_tokens.len())));
    }
    let failed = |what: &str, e: tokenizers::Error| Error::failed(format!("could not {what}")).because(e);
    let learnt = vocab_size - special_tokens.len();
    let mut trainer = BpeTrainer::builder()
        .vocab_size(learnt)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(alphabet.into_iter().collect())
        .max_token_length(Some(MAX_TOKEN_BYTES))
        .build();
    let split = Split::new(SplitPattern::Regex(SPLIT.into()), SplitDelimiterBehavior::Isolated, false)
        .map_err(|e| failed("compile the split expression", e))?;
    let byte_level = ByteLevel::new(false, false, false);
    let mut tokenizer = TokenizerBuilder::<BPE, NFC, Sequence, ByteLevel, ByteLevel>::new()
        .with_model(BPE::default())
        .with_normalizer(Some(NFC))
        .with_pre_tokenizer(Some(Sequence::new(vec![split.into(), byte_level.into()])))
        .with_post_processor(Some(byte_level))
        .with_decoder(Some(byte_level))
        .build()
        .map_err(|e| failed("assemble the tokenizer", e))?;
    tokenizer.train(&mut trainer, texts).map_err(|e| failed("train the tokenizer", e))?;
    let got = tokenizer.get_vocab_size(false);
    if got != learnt {
        return Err(Error::data(format!("the texts give only {got} tokens, not {learnt}"))
            .help("give more text or ask for a smaller vocabulary"));
    }
    for token in special_tokens {
        let added = AddedToken::from(token.content, token.special).normalized(false);
        if token.special { tokenizer.add_special_tokens([added]) } else { tokenizer.add_tokens([added]) }
            .map_err(|e| failed("add a control token", e))?;
    }
    Ok(tokenizer.into())
}

/// The bytes of `tokenizer.json`.
///
/// # Errors
/// [`crate::ErrorKind::Failed`] where the tokenizer cannot be serialized.
pub fn tokenizer_json(tokenizer: &Tokenizer) -> Result<String> {
    let mut text =
        tokenizer.to_string(true).map_err(|e| Error::failed("could not serialize the tokenizer").because(e))?;
    text.push('\n');
    Ok(text)
}

/// The bytes of `tokenizer_config.json` as transformers 5 writes it for a Qwen3 tokenizer:
/// `<|im_end|>` ends a turn and `<|endoftext|>` pads. The chat template is not in it; it lies
/// beside it in `chat_template.jinja`. `max_length` is in tokens.
pub fn tokenizer_config_json(max_length: usize) -> String {
    let config = json!({
        "backend": "tokenizers",
        "clean_up_tokenization_spaces": false,
        "eos_token": "<|im_end|>",
        "model_max_length": max_length,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "TokenizersBackend",
    });
    format!("{config:#}\n")
}

/// Writes `tokenizer.json` and `tokenizer_config.json` into `dir`, each atomically.
///
/// # Errors
/// [`crate::ErrorKind::Failed`] where a file cannot be written.
pub fn write_tokenizer(dir: &Path, tokenizer: &Tokenizer, max_length: usize) -> Result<()> {
    write_atomic(&dir.join("tokenizer.json"), tokenizer_json(tokenizer)?.as_bytes())?;
    write_atomic(&dir.join("tokenizer_config.json"), tokenizer_config_json(max_length).as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn texts() -> Vec<String> {
        (0..400)
            .map(|i| {
                format!(
                    "二甲双胍属于双胍类降糖药，每次{}毫克，每日{}次。Metformin is a biguanide, {i} mg daily.",
                    i * 5,
                    i % 4
                )
            })
            .collect()
    }

    fn trained() -> Tokenizer {
        train_bpe(texts().into_iter(), 320, &QWEN3_CONTROL_TOKENS).unwrap()
    }

    #[test]
    fn training_gives_the_same_bytes_whatever_the_order_of_texts() {
        let first = tokenizer_json(&trained()).unwrap();
        let mut reversed = texts();
        reversed.reverse();
        let second = tokenizer_json(&train_bpe(reversed.into_iter(), 320, &QWEN3_CONTROL_TOKENS).unwrap()).unwrap();
        assert_eq!(first, second);
    }

    #[test]
    fn every_text_survives_the_round_trip() {
        let tokenizer = trained();
        for text in [
            "二甲双胍（metformin）：每次500毫克，每日2次。",
            "It's 0.125 mg\n\n  twice daily; café naïve",
            "😀👨‍👩‍👧‍👦 ℃ ≥ α-葡萄糖苷酶 ꙮ",
            " 前后空格 ",
        ] {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(ids.get_ids(), true).unwrap(), text);
        }
    }

    #[test]
    fn control_tokens_take_the_last_ids_and_think_is_not_special() {
        let tokenizer = trained();
        assert_eq!(tokenizer.get_vocab_size(true), 320);
        for (i, token) in QWEN3_CONTROL_TOKENS.iter().enumerate() {
            assert_eq!(tokenizer.token_to_id(token.content), Some(315 + i as u32));
        }
        let ids = tokenizer.encode("<|im_start|><think>药</think><|im_end|>", false).unwrap();
        assert_eq!(tokenizer.decode(ids.get_ids(), true).unwrap(), "<think>药</think>");
    }

    #[test]
    fn digits_stand_alone_and_no_token_is_longer_than_the_limit() {
        let tokenizer = trained();
        for token in tokenizer.get_vocab(false).keys() {
            assert!(token.chars().count() <= MAX_TOKEN_BYTES, "{token}");
        }
        assert_eq!(tokenizer.encode("12500", false).unwrap().len(), 5);
    }

    #[test]
    fn too_little_text_is_an_error_not_a_smaller_vocabulary() {
        let error = train_bpe(["药".to_string()].into_iter(), 4096, &QWEN3_CONTROL_TOKENS).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Data);
    }
}
