//! How probable the model finds the *reference*: the sensitive measure, from one teacher-forced
//! pass.
//!
//! All are defined on [`ReferenceScore`]'s parts; `None` where a part has no tokens.

use super::definition::{Corpus, Direction, MetricDef, Reads, SHARE, unbounded};
use crate::eval::{PartScore, ReferenceScore};

/// Negative log-likelihood in nats per token.
pub fn nll(part: &PartScore) -> Option<f64> {
    (part.tokens > 0).then(|| -part.logprob / part.tokens as f64)
}

/// Bits per UTF-8 byte of text: comparable between tokenizers, as the negative log-likelihood per
/// token is not.
pub fn bits_per_byte(part: &PartScore) -> Option<f64> {
    (part.bytes > 0).then(|| -part.logprob / std::f64::consts::LN_2 / part.bytes as f64)
}

/// Share of the tokens that were the most probable one, given the reference before them.
pub fn greedy_share(part: &PartScore) -> Option<f64> {
    (part.tokens > 0).then(|| part.greedy as f64 / part.tokens as f64)
}

/// Metrics of this file.
pub(super) const METRICS: &[MetricDef] = &[
    MetricDef::of(
        "nll",
        unbounded("nats/token"),
        Direction::Lower,
        Reads::Reference,
        "negative log-likelihood of the reference",
        |s| s.whole().as_ref().and_then(nll),
    )
    .titled("Reference NLL", "参考文本负对数似然")
    .headline()
    .pooled(Corpus::PooledByToken, ReferenceScore::whole),
    MetricDef::of(
        "nll_think",
        unbounded("nats/token"),
        Direction::Lower,
        Reads::Reference,
        "negative log-likelihood of the reference's reasoning",
        |s| s.reference.and_then(|r| nll(&r.think)),
    )
    .titled("NLL, reasoning", "负对数似然（思考）")
    .pooled(Corpus::PooledByToken, |r| r.think),
    MetricDef::of(
        "nll_answer",
        unbounded("nats/token"),
        Direction::Lower,
        Reads::Reference,
        "negative log-likelihood of the reference's answer, after its reasoning",
        |s| s.reference.and_then(|r| nll(&r.answer)),
    )
    .titled("NLL, answer", "负对数似然（回答）")
    .pooled(Corpus::PooledByToken, |r| r.answer),
    MetricDef::of(
        "perplexity",
        ("ratio", (1.0, f64::INFINITY)),
        Direction::Lower,
        Reads::Reference,
        "exp of nll: of the reference, not of the generated text",
        |s| s.whole().as_ref().and_then(nll).map(f64::exp),
    )
    .titled("Reference perplexity", "参考文本困惑度")
    .decimals(2)
    .pooled(Corpus::ExpOfPooled, ReferenceScore::whole),
    MetricDef::of(
        "bits_per_byte",
        unbounded("bits/byte"),
        Direction::Lower,
        Reads::Reference,
        "negative log-likelihood of the reference per UTF-8 byte, comparable between tokenizers",
        |s| s.whole().as_ref().and_then(bits_per_byte),
    )
    .titled("Bits per byte", "每字节比特数")
    .pooled(Corpus::PooledByByte, ReferenceScore::whole),
    MetricDef::of(
        "greedy_share",
        SHARE,
        Direction::Higher,
        Reads::Reference,
        "tokens of the reference that were the most probable one",
        |s| s.whole().as_ref().and_then(greedy_share),
    )
    .titled("Greedy share", "贪心命中率")
    .pooled(Corpus::PooledByToken, ReferenceScore::whole),
];
