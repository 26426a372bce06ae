//! Thinking apart from answering: one rule for references and for what models write.
//!
//! A reasoning model writes `<think>…</think>` and then its answer. Graders that take the whole
//! text grade the reasoning; those that take what follows the tag grade the *reasoning of a
//! truncated generation as if it were the answer*. Here every text is in one of four states, and an
//! unclosed one has no answer: it scores as an empty one, and the truncation rate says how often.
//!
//! The first tag of a text decides: an opening one is closed by the next closing tag of its name, a
//! closing one ends reasoning that the prompt opened. Whatever tags follow stay in the answer and
//! are told ([`ThinkTags::stray`]), since nobody can say which of two closing tags was meant.

use std::ops::Range;
use std::sync::LazyLock;

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
    /// The answer: what follows the closing tag, the whole text where there are no tags, nothing
    /// where the reasoning was not closed.
    pub answer: &'a str,
}

impl Parts<'_> {
    /// Whether the reasoning was closed (or there was none), so that there is an answer to grade.
    pub fn is_complete(&self) -> bool {
        self.state != ThinkState::Unclosed
    }
}

/// Which tags hold reasoning: the name `think` stands for `<think>` and `</think>`, in any letter
/// case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct ThinkTags(Vec<String>);

/// The usual tags, for whoever has no suite.
static USUAL: LazyLock<ThinkTags> = LazyLock::new(ThinkTags::default);

impl Default for ThinkTags {
    /// `think`, `thinking` and `reasoning`.
    fn default() -> Self {
        ThinkTags(["think", "thinking", "reasoning"].map(String::from).to_vec())
    }
}

impl TryFrom<Vec<String>> for ThinkTags {
    type Error = String;
    fn try_from(names: Vec<String>) -> Result<Self, String> {
        let fits = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '|');
        match names.iter().find(|name| name.is_empty() || !name.chars().all(fits)) {
            Some(name) => {
                Err(format!("{name:?} cannot name a tag: give the name alone, such as \"think\" for <think>"))
            }
            None => Ok(ThinkTags(names)),
        }
    }
}

impl From<ThinkTags> for Vec<String> {
    fn from(tags: ThinkTags) -> Self {
        tags.0
    }
}

/// Where the parts of a text lie, as bytes; nothing is trimmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// How far the reasoning got.
    pub state: ThinkState,
    /// What stands before the opening tag.
    pub before: Range<usize>,
    /// The reasoning, without its tags.
    pub think: Range<usize>,
    /// The answer; empty where the reasoning was not closed.
    pub answer: Range<usize>,
}

/// A tag as it stands in a text.
struct Tag {
    at: Range<usize>,
    name: usize,
    closes: bool,
}

impl ThinkTags {
    /// Whether these are the usual ones, which are not written: what names no tags is written as
    /// before there were any.
    pub(crate) fn is_usual(&self) -> bool {
        *self == *USUAL
    }

    /// The name of the tags that are written, without brackets: the first, `think` where there is
    /// none.
    pub fn written(&self) -> &str {
        self.0.first().map_or("think", String::as_str)
    }

    /// Where the parts of a text lie.
    pub fn cut(&self, text: &str) -> Cut {
        let Some(first) = self.tags(text, 0).next() else {
            return Cut { state: ThinkState::None, before: 0..0, think: 0..0, answer: 0..text.len() };
        };
        if first.closes {
            let (think, answer) = (0..first.at.start, first.at.end..text.len());
            return Cut { state: ThinkState::CloseOnly, before: 0..0, think, answer };
        }
        let (before, from) = (0..first.at.start, first.at.end);
        match self.tags(text, from).find(|tag| tag.closes && tag.name == first.name) {
            Some(close) => {
                Cut { state: ThinkState::Closed, before, think: from..close.at.start, answer: close.at.end..text.len() }
            }
            None => {
                Cut { state: ThinkState::Unclosed, before, think: from..text.len(), answer: text.len()..text.len() }
            }
        }
    }

    /// Takes a text apart at its first tags.
    pub fn split<'a>(&self, text: &'a str) -> Parts<'a> {
        let Cut { state, before, think, answer } = self.cut(text);
        let part = |range: Range<usize>| python::strip(&text[range]);
        Parts { state, before: part(before), think: part(think), answer: part(answer) }
    }

    /// Where the last closing tag of a text ends.
    pub(crate) fn last_close(&self, text: &str) -> Option<usize> {
        self.tags(text, 0).filter(|tag| tag.closes).last().map(|tag| tag.at.end)
    }

    /// Whether a tag of reasoning stands in a text that should have none: an answer.
    pub fn stray(&self, text: &str) -> bool {
        self.tags(text, 0).next().is_some()
    }

    /// The tags of a text from the byte `from`, in order.
    fn tags<'a>(&'a self, text: &'a str, from: usize) -> impl Iterator<Item = Tag> + 'a {
        let bytes = text.as_bytes();
        text[from..].match_indices('<').filter_map(move |(at, _)| {
            let at = from + at;
            let closes = bytes.get(at + 1) == Some(&b'/');
            let start = at + 1 + usize::from(closes);
            self.0.iter().enumerate().find_map(|(name, tag)| {
                let end = start + tag.len();
                let named = bytes.get(start..end).is_some_and(|found| found.eq_ignore_ascii_case(tag.as_bytes()));
                (named && bytes.get(end) == Some(&b'>')).then(|| Tag { at: at..end + 1, name, closes })
            })
        })
    }
}

/// Takes a text apart at its first tags, which are the usual ones.
pub fn split(text: &str) -> Parts<'_> {
    USUAL.split(text)
}

/// The parts as the published comparison extracts them: the reasoning is the first closed pair, the
/// answer is the text without any closed pair. An unclosed tag stays *in the answer*; kept for
/// comparison with its tables (`extract`).
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

/// The full text of a reference as the published data lay it out: reasoning in tags, a newline, the
/// answer; the answer alone where there is no reasoning.
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
    fn any_case_and_every_name_of_a_tag_parts_reasoning_from_answer() {
        for text in
            ["<THINK>t</Think>A", "<thinking>t</thinking>A", "<Reasoning>\nt\n</REASONING>\n\nA", "t</thinking>A"]
        {
            assert_eq!((split(text).think, split(text).answer), ("t", "A"), "{text}");
        }
        // A tag is closed by its own name; what only looks like a tag is none.
        assert_eq!(split("<think>a</thinking>b</think>c").think, "a</thinking>b");
        for text in ["<thinker>t</thinker>A", "<think >A", "think>A", "</ think>", "<", "</", "<think"] {
            assert_eq!(split(text).state, ThinkState::None, "{text}");
        }
        let own = ThinkTags::try_from(vec!["scratch".to_string()]).unwrap();
        assert_eq!(own.split("<scratch>t</scratch>A").answer, "A");
        assert_eq!(own.split("<think>t</think>A").answer, "<think>t</think>A");
        let none = ThinkTags::try_from(Vec::new()).unwrap();
        assert_eq!(none.split("<think>t</think>A").state, ThinkState::None);
        assert!(ThinkTags::try_from(vec!["<think>".to_string()]).unwrap_err().contains("cannot name a tag"));
    }

    #[test]
    fn a_second_closing_tag_stays_in_the_answer_and_is_told() {
        let tags = ThinkTags::default();
        for text in
            ["<think>t</think>A</think>A", "<think>a<think>b</think>c</think>A", "<think>t</think>B<think>u</think>A"]
        {
            assert!(tags.stray(tags.split(text).answer), "{text}");
        }
        assert!(!tags.stray(tags.split("<think>t</think>A < B and </B>").answer));
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
