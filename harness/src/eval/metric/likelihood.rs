//! How probable the model finds the *reference*: the sensitive measure, from one teacher-forced pass.
//!
//! All are defined on [`ReferenceScore`]'s parts; `None` where a part has no tokens.

use crate::eval::{PartScore, ReferenceScore};

/// Think and answer together.
pub fn whole(score: &ReferenceScore) -> PartScore {
    let (think, answer) = (&score.think, &score.answer);
    PartScore {
        logprob: think.logprob + answer.logprob,
        tokens: think.tokens + answer.tokens,
        bytes: think.bytes + answer.bytes,
        greedy: think.greedy + answer.greedy,
    }
}

/// Negative log-likelihood in nats per token.
pub fn nll(part: &PartScore) -> Option<f64> {
    (part.tokens > 0).then(|| -part.logprob / part.tokens as f64)
}

/// Bits per UTF-8 byte of text: comparable between tokenizers, as the negative log-likelihood per token is not.
pub fn bits_per_byte(part: &PartScore) -> Option<f64> {
    (part.bytes > 0).then(|| -part.logprob / std::f64::consts::LN_2 / part.bytes as f64)
}

/// Share of the tokens that were the most probable one, given the reference before them.
pub fn greedy_share(part: &PartScore) -> Option<f64> {
    (part.tokens > 0).then(|| part.greedy as f64 / part.tokens as f64)
}
