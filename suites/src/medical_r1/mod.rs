//! The suite `medical-r1`: a small world of medicines, in which a model can know facts before it
//! can answer questions.
//!
//! The base model is pretrained on [`corpus`]: plain prose that states every fact of the table many
//! times, in both languages, in changing words and order, and never a question, a chat token or a
//! `<think>`. Fine-tuning then sees [`items`]: question, thought, answer. Held-out items ask for
//! (drug, attribute) pairs that no training item states, so a gain on them is not recall of
//! training answers: the fact comes from the base, the form from the fine-tuning.
//!
//! Everything follows from `facts.toml`, `templates.toml`, `corpus.toml` and [`SEED`]. For testing;
//! no medical advice.

pub mod choices;
pub mod corpus;
mod dice;
pub mod facts;
pub mod finish;
pub mod items;
pub mod wording;

use std::path::PathBuf;

use karat::Result;
use karat::data::bpe::{QWEN3_CONTROL_TOKENS, train_bpe};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use facts::Facts;
use items::Items;
use wording::Wording;

/// The seed everything random here comes from.
pub const SEED: u64 = 20_260_101;
/// Tokens of the base model's vocabulary, control tokens included; a multiple of 64.
pub const VOCAB: usize = 4096;
/// The longest sequence of the base model, in tokens.
pub const MAX_POSITIONS: usize = 1024;

/// The suite's folder.
pub fn dir() -> PathBuf {
    crate::dir().join("medical-r1")
}

/// The two languages of the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Language {
    /// Chinese.
    Zh,
    /// English.
    En,
}

impl Language {
    /// `zh` or `en`.
    pub fn code(self) -> &'static str {
        match self {
            Language::Zh => "zh",
            Language::En => "en",
        }
    }
}

/// The sources, read and checked.
#[derive(Debug)]
pub struct Source {
    /// The table.
    pub facts: Facts,
    /// The wording of items and corpus.
    pub wording: Wording,
}

impl Source {
    /// Reads the sources of the shipped suite.
    ///
    /// # Errors
    /// [`karat::ErrorKind::Data`] with the file where it is missing, malformed or contradicts
    /// itself.
    pub fn load() -> Result<Self> {
        Ok(Source { facts: Facts::load(&dir().join("facts.toml"))?, wording: Wording::load(&dir())? })
    }

    /// Training and held-out items.
    pub fn items(&self) -> Items {
        items::make(&self.facts, &self.wording, SEED)
    }

    /// The pretraining documents, one line each.
    pub fn corpus(&self) -> Vec<String> {
        corpus::make(&self.facts, &self.wording, SEED)
    }

    /// Documents that are no part of the corpus, to see what is forgotten.
    pub fn general(&self) -> Vec<corpus::General> {
        corpus::held_out(&self.facts, &self.wording, SEED)
    }

    /// The base model's tokenizer, trained on the corpus and on the training items.
    ///
    /// # Errors
    /// Those of [`train_bpe`].
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let mut texts = self.corpus();
        for item in self.items().train {
            texts.push(self.wording.system.clone());
            texts.push(item.question);
            texts.push(item.think);
            texts.push(item.answer);
        }
        // The roles of a chat template, so that each is one token.
        texts.extend(["system\n", "user\n", "assistant\n"].iter().cycle().take(600).map(|s| (*s).to_string()));
        train_bpe(texts.into_iter(), VOCAB, &QWEN3_CONTROL_TOKENS)
    }
}

/// `config.json` of the base model: a Qwen3 decoder of 3.7 million parameters, as transformers 5
/// writes it.
pub fn model_config() -> Value {
    let layers = 6;
    json!({
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": VOCAB - 5,
        "dtype": "bfloat16",
        "eos_token_id": VOCAB - 3,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 192,
        "initializer_range": 0.02,
        "intermediate_size": 576,
        "layer_types": vec!["full_attention"; layers],
        "max_position_embeddings": MAX_POSITIONS,
        "max_window_layers": layers,
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "pad_token_id": VOCAB - 5,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 1_000_000.0, "rope_type": "default"},
        "sliding_window": null,
        "tie_word_embeddings": true,
        "use_cache": true,
        "use_sliding_window": false,
        "vocab_size": VOCAB,
    })
}

/// `generation_config.json` of the base model: greedy, ended by `<|im_end|>` or `<|endoftext|>`.
pub fn generation_config() -> Value {
    json!({
        "bos_token_id": VOCAB - 5,
        "do_sample": false,
        "eos_token_id": [VOCAB - 3, VOCAB - 5],
        "pad_token_id": VOCAB - 5,
    })
}
