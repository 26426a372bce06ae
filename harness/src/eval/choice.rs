//! Multiple choice: what there is to choose from, which option a model finds most probable, and
//! which one its text names.
//!
//! Two ways of asking, as everywhere in the field:
//!
//! - **By log-likelihood.** Each option is scored as the whole answer. [`most_probable`] takes the
//!   greatest sum of log-probabilities (`acc`), per character (`acc_norm`) or per UTF-8 byte
//!   (`acc_bytes`), as lm-evaluation-harness does: raw sums favour short options.
//! - **By extraction.** The model writes freely and [`extract`] reads which option its answer
//!   names. An answer that names none, or several, is *unparsed*: it counts as wrong and is counted
//!   apart, since "did not answer" is another failing than "answered wrongly".

use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

use super::OptionScore;
use super::metric::exact::normalise;

/// Most options an item can have: one a letter.
pub const MOST: usize = 26;

/// The options of an item and the right one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// The texts, in the order shown; the first is labelled `A`.
    pub options: Vec<String>,
    /// Index of the right one.
    pub gold: usize,
}

impl Choice {
    /// Finds the right option from the reference answer: the label alone, the option's text alone,
    /// or a text that names one ([`extract`]).
    ///
    /// # Errors
    /// A lowercase fragment, if there are fewer than two options or more than [`MOST`], one is
    /// blank or twice, or the answer names none of them.
    pub fn new(options: Vec<String>, answer: &str) -> Result<Self, String> {
        if options.len() < 2 || options.len() > MOST {
            return Err(format!("there are {} options; a choice has 2 to {MOST}", options.len()));
        }
        let normal: Vec<String> = options.iter().map(|o| o.trim().to_string()).collect();
        for (at, option) in normal.iter().enumerate() {
            if option.is_empty() {
                return Err(format!("option {} is empty", label(at)));
            }
            if let Some(first) = normal[..at].iter().position(|o| o == option) {
                return Err(format!("the options {} and {} are the same", label(first), label(at)));
            }
        }
        let by_label = single_label(answer, options.len());
        let by_text = normal.iter().position(|o| o == answer.trim());
        let gold = match (by_label, by_text) {
            (Some(a), Some(b)) if a != b => {
                return Err(format!(
                    "the answer {:?} is the label of one option and the text of another",
                    answer.trim()
                ));
            }
            (Some(found), _) | (None, Some(found)) => Some(found),
            (None, None) => extract(&options, answer),
        };
        let gold = gold.ok_or_else(|| {
            let last = label(options.len() - 1);
            format!("the answer {:?} names none of the options A to {last}, or not one alone", answer.trim())
        })?;
        Ok(Choice { options, gold })
    }
}

/// The label of an option: `A`, `B`, ...
pub fn label(index: usize) -> char {
    char::from(b'A' + u8::try_from(index.min(MOST - 1)).unwrap_or(0))
}

/// How the log-likelihoods of options of different lengths are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalisation {
    /// The sum over the option's tokens.
    Raw,
    /// Divided by its characters.
    Characters,
    /// Divided by its UTF-8 bytes.
    Bytes,
}

/// The most probable option, the first of equals (as `numpy.argmax`); `None` without options.
pub fn most_probable(options: &[OptionScore], by: Normalisation) -> Option<usize> {
    let value = |o: &OptionScore| match by {
        Normalisation::Raw => o.logprob,
        Normalisation::Characters => o.logprob / o.characters as f64,
        Normalisation::Bytes => o.logprob / o.bytes as f64,
    };
    let mut best: Option<(usize, f64)> = None;
    for (at, option) in options.iter().enumerate() {
        let value = value(option);
        if best.is_none_or(|(_, top)| value > top) {
            best = Some((at, value));
        }
    }
    best.map(|(at, _)| at)
}

/// Which option an answer (without its reasoning) names; `None` if it names none, or not one alone.
/// In this order:
///
/// 1. the last statement of an answer: `答案是B`, `故选 (B)`, `The answer is B`, `\boxed{B}`;
/// 2. labels at the start of a line or in brackets (`B. ...`, `（B）`), if all are the same one;
/// 3. the texts of the options, if one alone occurs (of texts within each other the longer one).
///
/// A label beside the text of another option is no answer. Negated statements (`不选A`) name
/// nothing. Only the letters of the item's own options count, in upper case, full-width or not.
pub fn extract(options: &[String], answer: &str) -> Option<usize> {
    let text: String = answer.nfkc().collect();
    match stated(&text, options.len()) {
        Found::One(at) => return Some(at),
        Found::Several => return None,
        Found::Nothing => {}
    }
    let named = named(options, &text);
    match (marked(&text, options.len()), named) {
        (Found::One(label), Found::One(text)) => (label == text).then_some(label),
        (Found::One(at), _) | (Found::Nothing, Found::One(at)) => Some(at),
        _ => None,
    }
}

/// What a rule found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    One(usize),
    Several,
}

impl Found {
    fn and(self, at: usize) -> Self {
        match self {
            Found::Nothing => Found::One(at),
            Found::One(before) if before == at => self,
            _ => Found::Several,
        }
    }
}

/// The index of a text that is a label alone, perhaps in brackets or before a full stop.
fn single_label(text: &str, options: usize) -> Option<usize> {
    let text: String = text.nfkc().collect();
    let bare = text.trim().trim_matches(|c| matches!(c, '(' | ')' | '.' | '。' | '、' | '[' | ']' | '【' | '】'));
    let mut chars = bare.chars();
    match (chars.next(), chars.next()) {
        (Some(c), None) => index(c, options),
        _ => None,
    }
}

/// The index of a label.
fn index(c: char, options: usize) -> Option<usize> {
    let at = (c as usize).checked_sub('A' as usize)?;
    (at < options).then_some(at)
}

static STATEMENT: LazyLock<Regex> = LazyLock::new(|| {
    let cue = r"(?:正确答案|参考答案|答案|正确选项|正确的选项|应该选择|应该选|应选|故选|选择|选|(?i:answer|correct option|correct choice))";
    let link = r"(?:\s|应该|应当|应|是|为|选|:|=|(?i:is)\b|(?i:option)\b|\*|_)*";
    let open = r#"[(\[【{"“'*\s]*"#;
    Regex::new(&format!(r"(?:{cue}{link}{open}|\\boxed\{{\s*(?:\\text\{{)?)([A-Z])"))
        .expect("the pattern is a constant")
});

/// Rule 1.
fn stated(text: &str, options: usize) -> Found {
    let mut found = Found::Nothing;
    for hit in STATEMENT.captures_iter(text) {
        let (Some(whole), Some(letter)) = (hit.get(0), hit.get(1)) else { continue };
        let negated = text[..whole.start()].ends_with(['不', '非', '勿', '别', '未']);
        let after = &text[letter.end()..];
        let Some(at) = letter.as_str().chars().next().and_then(|c| index(c, options)) else { continue };
        if negated || after.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            continue;
        }
        // "A and C", "A、C": not one alone.
        found = if others_follow(after, options) { Found::Several } else { Found::One(at) };
    }
    found
}

/// Whether a label is followed by another one, as in a list.
fn others_follow(after: &str, options: usize) -> bool {
    let joined = after.trim_start_matches([')', ']', '】', '}', '*', ' ']);
    let rest = ["、", ",", "和", "与", "及", "或", "/", "&", "and ", "or "].iter().find_map(|j| joined.strip_prefix(j));
    let Some(rest) = rest else { return false };
    let mut chars = rest.trim_start_matches([' ', '(', '[', '【', '*']).chars();
    let other = chars.next().is_some_and(|c| index(c, options).is_some());
    other && !chars.next().is_some_and(|c| c.is_alphanumeric())
}

/// Rule 2.
fn marked(text: &str, options: usize) -> Found {
    let chars: Vec<char> = text.chars().collect();
    let mut found = Found::Nothing;
    for (i, &c) in chars.iter().enumerate() {
        let Some(at) = index(c, options) else { continue };
        let before = chars[..i].iter().rev().copied().find(|c| !matches!(c, ' ' | '*' | '\t'));
        let next = chars.get(i + 1).copied();
        let bracketed =
            matches!(before, Some('(' | '[' | '【' | '「')) && matches!(next, Some(')' | ']' | '】' | '」'));
        let begins = matches!(before, None | Some('\n' | '\r'))
            && matches!(next, None | Some('.' | '、' | ':' | ')' | ',' | '。' | '*' | '\n' | '\r'));
        if bracketed || begins {
            let after: String = chars[i + 1..].iter().collect();
            found = if others_follow(&after, options) { Found::Several } else { found.and(at) };
        }
    }
    found
}

/// Rule 3.
fn named(options: &[String], text: &str) -> Found {
    let text = normalise(text);
    let options: Vec<String> = options.iter().map(|o| normalise(o)).collect();
    // What is left of the text once the longer options are taken out: a shorter one within them
    // does not count.
    let mut order: Vec<usize> = (0..options.len()).filter(|&i| !options[i].is_empty()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(options[i].len()), i));
    let (mut rest, mut found) = (text, Found::Nothing);
    for at in order {
        let option = &options[at];
        if rest
            .match_indices(option.as_str())
            .any(|(start, _)| is_word(&rest, start, option) && !is_negated(&rest[..start]))
        {
            found = found.and(at);
        }
        rest = rest.replace(option.as_str(), "\u{0}");
    }
    found
}

/// Whether an occurrence is not a part of a longer Latin word or number.
fn is_word(text: &str, start: usize, option: &str) -> bool {
    let clash = |a: Option<char>, b: Option<char>| {
        a.is_some_and(|c| c.is_ascii_alphanumeric()) && b.is_some_and(|c| c.is_ascii_alphanumeric())
    };
    let (before, after) = (text[..start].chars().next_back(), text[start + option.len()..].chars().next());
    !clash(before, option.chars().next()) && !clash(option.chars().next_back(), after)
}

fn is_negated(before: &str) -> bool {
    ["不是", "并非", "而非", "排除", "不选", "不属于", "not ", "not a ", "not an "].iter().any(|n| before.ends_with(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Vec<String> {
        ["阿司匹林", "二甲双胍", "华法林", "二甲双胍缓释片"].map(String::from).to_vec()
    }

    fn of(answer: &str) -> Option<char> {
        extract(&options(), answer).map(label)
    }

    #[test]
    fn an_answer_is_read_where_it_names_one_option() {
        for answer in [
            "B",
            "Ｂ",
            "B.",
            "B. 二甲双胍",
            "（B）",
            "(B) 二甲双胍",
            "答案是B。",
            "答案：B",
            "正确答案为（B）二甲双胍",
            "故选B。",
            "应选 **B**。",
            "The answer is B.",
            "The correct answer is (B).",
            "Answer: B",
            r"所以 $\boxed{B}$",
            "二甲双胍",
            "应当使用二甲双胍。",
            "A项用于抗血小板，不选A。答案是B",
            "先看A，答案是A吗？不，正确答案是B。",
            "排除阿司匹林，首选二甲双胍。",
        ] {
            assert_eq!(of(answer), Some('B'), "{answer}");
        }
        assert_eq!(of("二甲双胍缓释片"), Some('D'), "the longer of two texts within each other");
    }

    #[test]
    fn an_answer_that_names_none_or_several_is_unparsed() {
        for answer in [
            "",
            "不知道",
            "E",
            "答案是E",
            "答案是A和C",
            "A、C",
            "AB",
            "阿司匹林或华法林",
            "不选A",
            "答案不是A",
            "B. 华法林",
            "维生素B有助于恢复",
            "B超检查",
            "A 45-year-old patient",
            "A. 阿司匹林\nB. 二甲双胍\nC. 华法林",
        ] {
            assert_eq!(of(answer), None, "{answer}");
        }
    }

    #[test]
    fn the_reference_names_the_right_option_or_the_row_is_bad() {
        assert_eq!(Choice::new(options(), "C").map(|c| c.gold), Ok(2));
        assert_eq!(Choice::new(options(), " 华法林 ").map(|c| c.gold), Ok(2));
        assert_eq!(Choice::new(options(), "二甲双胍").map(|c| c.gold), Ok(1));
        assert_eq!(Choice::new(options(), "答案是C。华法林抗凝。").map(|c| c.gold), Ok(2));
        let fails = |options: &[&str], answer: &str| {
            Choice::new(options.iter().map(|o| (*o).to_string()).collect(), answer).expect_err("refused")
        };
        assert!(fails(&["甲", "乙"], "丙").contains("names none"));
        assert!(fails(&["甲"], "甲").contains("1 options"));
        assert!(fails(&["甲", "甲 "], "甲").contains("A and B are the same"));
        assert!(fails(&["甲", " "], "甲").contains("option B is empty"));
        assert!(fails(&["B", "A"], "A").contains("label of one option"));
    }

    #[test]
    fn normalisations_differ_and_the_first_of_equals_is_taken() {
        let score = |logprob, characters, bytes| OptionScore { logprob, tokens: 1, characters, bytes };
        // Raw favours the short option, per character the long one, per byte the one with wide
        // characters.
        let options = [score(-2.0, 2, 2), score(-5.0, 10, 10), score(-4.0, 6, 18)];
        let best = |by| most_probable(&options, by);
        assert_eq!(best(Normalisation::Raw), Some(0));
        assert_eq!(best(Normalisation::Characters), Some(1));
        assert_eq!(best(Normalisation::Bytes), Some(2));
        assert_eq!(most_probable(&[score(-1.0, 1, 1), score(-1.0, 1, 1)], Normalisation::Raw), Some(0));
        assert_eq!(most_probable(&[], Normalisation::Raw), None);
    }
}
