//! Thinking apart from answering.
//!
//! A reasoning model writes `<think>…</think>` and then its answer. Graders that take the whole text grade the reasoning;
//! those that take what follows the tag grade the *reasoning of a truncated generation as if it were the answer*. Here every text is in one of
//! four states, and an unclosed one has no answer: it scores as an empty one, and the truncation rate says how often.

use serde::{Deserialize, Serialize};

use super::metric::python;

/// The tag that opens the reasoning.
pub const OPEN: &str = "<think>";
/// The tag that closes it.
pub const CLOSE: &str = "</think>";

/// How far the reasoning of a text got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ThinkState {
    /// Opened and closed.
    Closed,
    /// Opened and not closed: cut off while thinking.
    Unclosed,
    /// Closed without having been opened: the template opened it in the prompt.
    CloseOnly,
    /// No tags: an answer without reasoning.
    None,
}

/// A text taken apart. The parts are trimmed of white space at both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts<'a> {
    /// How far the reasoning got.
    pub state: ThinkState,
    /// What stands before the opening tag; empty in a well-formed text.
    pub before: &'a str,
    /// The reasoning, without its tags; empty if there is none.
    pub think: &'a str,
    /// The answer: what follows the first closing tag, the whole text where there are no tags, nothing where the
    /// reasoning was not closed.
    pub answer: &'a str,
}

impl Parts<'_> {
    /// Whether the reasoning was closed (or there was none), so that there is an answer to grade.
    pub fn is_complete(&self) -> bool {
        self.state != ThinkState::Unclosed
    }
}

/// Takes a text apart at its first tags.
pub fn split(text: &str) -> Parts<'_> {
    let open = text.find(OPEN);
    let close = text.find(CLOSE);
    let (state, before, think, answer) = match (open, close) {
        (None, None) => (ThinkState::None, "", "", text),
        (None, Some(close)) => (ThinkState::CloseOnly, "", &text[..close], &text[close + CLOSE.len()..]),
        (Some(open), Some(close)) if close < open => {
            (ThinkState::CloseOnly, "", &text[..close], &text[close + CLOSE.len()..])
        }
        (Some(open), Some(close)) => {
            (ThinkState::Closed, &text[..open], &text[open + OPEN.len()..close], &text[close + CLOSE.len()..])
        }
        (Some(open), None) => (ThinkState::Unclosed, &text[..open], &text[open + OPEN.len()..], ""),
    };
    Parts { state, before: python::strip(before), think: python::strip(think), answer: python::strip(answer) }
}

/// The parts as the published comparison extracts them: the reasoning is the first closed pair, the answer is the text without any
/// closed pair. An unclosed tag stays *in the answer*; kept for comparison with its tables (`extract`).
pub fn split_as_published(text: &str) -> (String, String) {
    let mut think = None;
    let mut answer = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find(OPEN) {
        let Some(length) = rest[open + OPEN.len()..].find(CLOSE) else { break };
        let inside = &rest[open + OPEN.len()..][..length];
        think.get_or_insert(inside);
        answer.push_str(&rest[..open]);
        rest = &rest[open + OPEN.len() + length + CLOSE.len()..];
    }
    answer.push_str(rest);
    (python::strip(think.unwrap_or("")).to_string(), python::strip(&answer).to_string())
}

/// The full text of a reference as the published data lay it out: reasoning in tags, a newline, the answer; the answer
/// alone where there is no reasoning.
pub fn join(think: &str, answer: &str) -> String {
    if think.is_empty() { answer.to_string() } else { format!("{OPEN}{think}{CLOSE}\n{answer}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_states_are_told_apart() {
        let of = |text| {
            let parts = split(text);
            (parts.state, parts.think, parts.answer)
        };
        assert_eq!(of("<think>\n想\n</think>\n\n答"), (ThinkState::Closed, "想", "答"));
        assert_eq!(of("<think>想到一半"), (ThinkState::Unclosed, "想到一半", ""));
        assert_eq!(of("想</think>答"), (ThinkState::CloseOnly, "想", "答"));
        assert_eq!(of("</think>答<think>"), (ThinkState::CloseOnly, "", "答<think>"));
        assert_eq!(of(" 答 "), (ThinkState::None, "", "答"));
        assert_eq!(of("<think>\n\n</think>\n\n答"), (ThinkState::Closed, "", "答"));
        assert_eq!(split("好的。<think>想</think>答").before, "好的。");
    }

    #[test]
    fn a_truncated_reasoning_is_no_answer_except_to_the_published_script() {
        assert_eq!(split("<think>想").answer, "");
        assert_eq!(split_as_published("<think>想"), (String::new(), "<think>想".to_string()));
        assert_eq!(
            split_as_published("前<think> 一 </think>中<think>二</think>后"),
            ("一".to_string(), "前中后".to_string())
        );
    }
}
