//! Key points: which statements of the reference does the candidate make, and which does it
//! contradict?
//!
//! Overlap is not correctness: a negated sentence keeps nearly all its words. This matcher is
//! deterministic and needs no judge model; it reads text as *clauses*, each with
//!
//! - its terms: jieba words of at least two characters and Latin words (stemmed), without stop
//!   words;
//! - its quantities, in base units ([`quantities`](super::quantities));
//! - its polarity: whether it holds an odd number of negations (`不宜`, `禁用`, `避免`, `not`,
//!   `without`, ...).
//!
//! A key point is a clause with at least two terms or a quantity (of a text without any: every
//! clause with a term). It is **made** if, within three consecutive clauses of the other text, at
//! least 60 % of its terms occur in clauses of its polarity and all its quantities occur. It is
//! **contradicted** if it is not made and one clause of the other text has at least 60 % of its
//! terms, but the other polarity, or another number in the same unit, or the same number in another
//! unit.
//!
//! Where both texts begin with a yes or a no (`可以`, `合适`, `不可以`, `Yes`, `No`; [`decision`]),
//! that is one more thing that can be contradicted, though no key point to be made: a model that
//! says yes to a patient for whom the answer is no contradicts the reference, whatever else it
//! says.
//!
//! What it cannot see: synonyms, and negation by meaning alone. It under-counts paraphrases, alike
//! for every model compared.

use std::collections::{BTreeMap, BTreeSet};

use super::definition::{Direction, MetricDef, Reads, SHARE};
use super::quantities::{Quantity, quantities};
use super::{jieba, porter};
use crate::eval::decision::{self, Decision};

/// Share of a key point's terms that must be found.
const COVERAGE: f64 = 0.6;
/// Consecutive clauses that are read together.
const WINDOW: usize = 3;

/// A clause taken apart.
#[derive(Clone, Debug)]
struct Clause {
    terms: BTreeSet<String>,
    quantities: Vec<Quantity>,
    negated: bool,
}

/// A text, read once and compared often.
#[derive(Clone, Debug)]
pub struct Statements {
    clauses: Vec<Clause>,
    /// What it begins with, if that is a yes or a no.
    head: Option<Decision>,
}

/// Why a key point counts as contradicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contradiction {
    /// The same statement with the other polarity.
    Polarity,
    /// The same statement with another number in the same unit.
    Number,
    /// The same statement with the same number in another unit.
    Unit,
}

/// How the candidate deals with the reference's key points.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeyPoints {
    /// Key points there are.
    pub total: usize,
    /// Those the other text makes.
    pub made: usize,
    /// Those it contradicts, with how; and a yes or no at the head that it turns round.
    pub contradicted: Vec<Contradiction>,
    /// 1 where the text begins with a yes or a no, which can be contradicted as a key point can.
    pub heads: usize,
}

impl KeyPoints {
    /// Share made; `None` if there is no key point.
    pub fn share_made(&self) -> Option<f64> {
        (self.total > 0).then(|| self.made as f64 / self.total as f64)
    }

    /// Share contradicted of the key points and the yes or no at the head; `None` if there is
    /// neither.
    pub fn share_contradicted(&self) -> Option<f64> {
        let all = self.total + self.heads;
        (all > 0).then(|| self.contradicted.len() as f64 / all as f64)
    }
}

impl Statements {
    /// Reads a text.
    pub fn read(text: &str) -> Self {
        Statements {
            clauses: clauses(text).iter().map(|clause| Clause::read(clause)).collect(),
            head: decision::at_head(text),
        }
    }

    fn key_points(&self) -> Vec<&Clause> {
        let weighty: Vec<&Clause> =
            self.clauses.iter().filter(|c| c.terms.len() >= 2 || !c.quantities.is_empty()).collect();
        if weighty.is_empty() { self.clauses.iter().filter(|c| !c.terms.is_empty()).collect() } else { weighty }
    }
}

/// Which of `of`'s key points `by` makes and contradicts. With the reference as `of` the share made
/// is recall, with the candidate as `of` it is precision.
pub fn compare(of: &Statements, by: &Statements) -> KeyPoints {
    let mut result = KeyPoints { heads: usize::from(of.head.is_some()), ..KeyPoints::default() };
    if let (Some(mine), Some(theirs)) = (of.head, by.head)
        && mine != theirs
    {
        result.contradicted.push(Contradiction::Polarity);
    }
    let index = Index::of(&by.clauses);
    for point in of.key_points() {
        result.total += 1;
        let near = index.near(point);
        if point.is_made_by(&by.clauses, &near) {
            result.made += 1;
        } else if let Some(how) = near.iter().filter_map(|&at| point.contradicted_by(&by.clauses[at])).min() {
            result.contradicted.push(how);
        }
    }
    result
}

/// Which clauses hold a term: two texts of a megabyte are not compared clause by clause.
struct Index<'a> {
    clauses: usize,
    by_term: BTreeMap<&'a str, Vec<usize>>,
}

impl<'a> Index<'a> {
    fn of(clauses: &'a [Clause]) -> Self {
        let mut by_term: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (at, clause) in clauses.iter().enumerate() {
            clause.terms.iter().for_each(|term| by_term.entry(term).or_default().push(at));
        }
        Index { clauses: clauses.len(), by_term }
    }

    /// The clauses, in order, without one of which `point` is neither made nor contradicted. Of its
    /// n terms k must be found, so one of its n - k + 1 rarest must be. A point without terms is
    /// made by quantities, which may be anywhere.
    fn near(&self, point: &Clause) -> Vec<usize> {
        let n = point.terms.len();
        if n == 0 {
            return (0..self.clauses).collect();
        }
        let needed = (1..n).find(|&k| enough(k, n)).unwrap_or(n);
        let mut holding: Vec<&[usize]> =
            point.terms.iter().map(|term| self.by_term.get(term.as_str()).map_or(&[][..], Vec::as_slice)).collect();
        holding.sort_by_key(|clauses| clauses.len());
        let mut near: Vec<usize> = holding[..=n - needed].concat();
        near.sort_unstable();
        near.dedup();
        near
    }
}

/// Whether `found` of `n` terms are as many as it takes.
fn enough(found: usize, n: usize) -> bool {
    found as f64 >= COVERAGE * n as f64
}

impl Clause {
    fn read(text: &str) -> Self {
        let mut clause = Clause { terms: BTreeSet::new(), quantities: quantities(text), negated: false };
        let lower = text.to_lowercase();
        for word in jieba::segment(&lower, true) {
            if NEGATIONS.contains(&word) {
                clause.negated = !clause.negated;
            } else if let Some(term) = term(word) {
                clause.terms.insert(term);
            }
        }
        // Contractions fall apart in segmentation.
        if lower.contains("n't") || lower.contains("n’t") {
            clause.negated = !clause.negated;
        }
        clause
    }

    /// Whether a window that holds one of the clauses `near` makes this point.
    fn is_made_by(&self, clauses: &[Clause], near: &[usize]) -> bool {
        near.iter().flat_map(|&at| (at + 1).saturating_sub(WINDOW)..=at).any(|first| {
            let window = &clauses[first..clauses.len().min(first + WINDOW)];
            let found = self
                .terms
                .iter()
                .filter(|term| window.iter().any(|c| c.negated == self.negated && c.terms.contains(*term)))
                .count();
            let quantities =
                self.quantities.iter().all(|q| window.iter().any(|c| c.quantities.iter().any(|o| o.same(q))));
            quantities && enough(found, self.terms.len())
        })
    }

    fn contradicted_by(&self, other: &Clause) -> Option<Contradiction> {
        let common = self.terms.intersection(&other.terms).count();
        if common == 0 || !enough(common, self.terms.len()) {
            return None;
        }
        if self.negated != other.negated {
            return Some(Contradiction::Polarity);
        }
        for mine in &self.quantities {
            if other.quantities.iter().any(|o| o.same(mine)) {
                continue;
            }
            if other.quantities.iter().any(|o| o.unit == mine.unit) {
                return Some(Contradiction::Number);
            }
            if other.quantities.iter().any(|o| o.same_number(mine)) {
                return Some(Contradiction::Unit);
            }
        }
        None
    }
}

/// Cuts at sentence ends, commas, semicolons, colons, line ends, and before an adversative.
fn clauses(text: &str) -> Vec<String> {
    let text = ["但是", "但", "然而", "而非", " but ", " however "].iter().fold(text.to_string(), |text, word| {
        let with_end = format!("\n{}", word.trim_start());
        text.replace(word, &with_end)
    });
    let chars: Vec<char> = text.chars().collect();
    let mut clauses = vec![String::new()];
    for (at, &c) in chars.iter().enumerate() {
        let next = chars.get(at + 1).copied();
        let ends = match c {
            '。' | '，' | '；' | '：' | '！' | '？' | '\n' | ';' | '!' | '?' => true,
            // Not within a number or an abbreviation.
            '.' | ',' | ':' => next.is_none_or(|n| n.is_whitespace() || !n.is_ascii()),
            _ => false,
        };
        if ends {
            clauses.push(String::new());
        } else if let Some(clause) = clauses.last_mut() {
            clause.push(c);
        }
    }
    clauses.retain(|clause| !clause.trim().is_empty());
    clauses
}

/// A word as a term, or `None` if it says nothing by itself.
fn term(word: &str) -> Option<String> {
    if word.is_ascii() {
        let letters = word.bytes().filter(u8::is_ascii_alphabetic).count();
        let term = || {
            let stem = if word.bytes().all(|b| b.is_ascii_lowercase()) { porter::stem(word) } else { word.to_string() };
            (!ENGLISH_STOP_WORDS.contains(&word)).then_some(stem)
        };
        return if letters >= 2 { term() } else { None };
    }
    let long = word.chars().nth(1).is_some() && word.chars().all(char::is_alphanumeric);
    (long && !CHINESE_STOP_WORDS.contains(&word)).then(|| word.to_string())
}

/// Words that turn a clause around. As jieba segments them: `不良反应` or `不仅` are words of their
/// own and no negation.
const NEGATIONS: &[&str] = &[
    "不",
    "不能",
    "不要",
    "不宜",
    "不可",
    "不可以",
    "不得",
    "不应",
    "不应该",
    "不该",
    "不会",
    "不是",
    "不需",
    "不需要",
    "不必",
    "不用",
    "不建议",
    "不推荐",
    "不适合",
    "不适宜",
    "不允许",
    "没有",
    "没",
    "无",
    "无需",
    "无须",
    "未",
    "未见",
    "勿",
    "切勿",
    "请勿",
    "莫",
    "禁",
    "禁止",
    "禁忌",
    "禁忌症",
    "禁忌证",
    "禁用",
    "忌",
    "忌用",
    "避免",
    "否认",
    "非",
    "并非",
    "排除",
    "停用",
    "停止",
    "不含",
    "绝不",
    "从不",
    "尚未",
    "从未",
    "并未",
    "no",
    "not",
    "never",
    "without",
    "avoid",
    "avoids",
    "avoided",
    "avoiding",
    "contraindicated",
    "contraindication",
    "cannot",
    "neither",
    "nor",
    "none",
    "stop",
    "discontinue",
    "exclude",
    "excluded",
];

const CHINESE_STOP_WORDS: &[&str] = &[
    "用户",
    "首先",
    "其次",
    "然后",
    "最后",
    "接下来",
    "需要",
    "可能",
    "可以",
    "应该",
    "如果",
    "因为",
    "所以",
    "因此",
    "但是",
    "以及",
    "或者",
    "并且",
    "进行",
    "包括",
    "通过",
    "一些",
    "一个",
    "这个",
    "那个",
    "这些",
    "那些",
    "那么",
    "这种",
    "这样",
    "情况",
    "问题",
    "回答",
    "考虑",
    "考虑到",
    "我们",
    "他们",
    "自己",
    "什么",
    "如何",
    "怎么",
    "为什么",
    "是否",
    "等等",
    "比如",
    "例如",
    "同时",
    "另外",
    "此外",
    "已经",
    "还是",
    "就是",
    "还有",
    "关于",
    "对于",
    "根据",
    "由于",
    "之间",
    "其中",
    "非常",
    "比较",
    "主要",
    "一般",
    "通常",
    "以上",
    "以下",
    "时候",
    "时间",
    "方面",
    "部分",
    "相关",
    "具体",
    "不同",
    "其他",
    "其它",
    "这里",
    "因为",
    "而且",
    "不过",
    "虽然",
    "尽管",
    "只是",
    "或许",
    "大概",
    "确认",
    "确保",
    "了解",
    "知道",
    "记得",
    "回忆",
    "回忆起",
    "想到",
    "提到",
    "所说",
    "答案",
    "总结",
    "综上所述",
    "总之",
    "现在",
    "属于",
    "作为",
    "使用",
    "应当",
    "必须",
    "建议",
    "一种",
    "每日",
    "每天",
    "一日",
    "一次",
    "左右",
    "大约",
];

const ENGLISH_STOP_WORDS: &[&str] = &[
    "the", "an", "of", "to", "in", "is", "are", "was", "were", "be", "been", "and", "or", "for", "with", "by", "on",
    "as", "at", "that", "this", "these", "those", "it", "its", "from", "can", "could", "may", "might", "should",
    "would", "will", "which", "who", "what", "when", "where", "how", "why", "if", "then", "so", "than", "also", "has",
    "have", "had", "do", "does", "did", "but", "however", "because", "their", "they", "we", "you", "he", "she",
    "there", "such", "into", "about", "user", "first", "next", "let", "me", "my", "asks", "asked", "question",
    "answer", "used", "use", "using", "mg", "ml", "kg", "times", "time", "day", "daily", "once", "twice", "per",
    "least", "most", "more", "less", "over", "under",
];

/// Metrics of this file.
pub(super) const METRICS: &[MetricDef] = &[
    MetricDef::of(
        "key_points",
        SHARE,
        Direction::Higher,
        Reads::Answer,
        "key points of the reference answer that the answer makes (numbers with units, negation aware)",
        |s| s.answer_points()[0].share_made(),
    )
    .titled("Key points recalled", "要点召回率")
    .headline()
    .right_from(1.0),
    MetricDef::of(
        "key_points_precision",
        SHARE,
        Direction::Higher,
        Reads::Answer,
        "key points of the answer that the reference makes",
        |s| s.answer_points()[1].share_made(),
    )
    .titled("Key points precision", "要点精确率"),
    MetricDef::of(
        "think_key_points",
        SHARE,
        Direction::Higher,
        Reads::Think,
        "key points of the reference reasoning that the reasoning makes",
        |s| s.think_points()[0].share_made(),
    )
    .titled("Reasoning key points recalled", "思维链要点召回率")
    .right_from(1.0),
    MetricDef::of(
        "think_key_points_precision",
        SHARE,
        Direction::Higher,
        Reads::Think,
        "key points of the reasoning that the reference reasoning makes",
        |s| s.think_points()[1].share_made().filter(|_| !s.reference_think().is_empty()),
    )
    .titled("Reasoning key points precision", "思维链要点精确率"),
    MetricDef::of(
        "contradictions",
        SHARE,
        Direction::Lower,
        Reads::Answer,
        "key points of the reference answer, and its yes or no, that the answer states with another polarity, number or unit",
        |s| s.answer_points()[0].share_contradicted(),
    )
    .titled("Contradicted key points", "与参考相反的要点")
    .right_from(0.0),
];

#[cfg(test)]
mod tests;
