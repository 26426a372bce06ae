//! Yes or no: what an item decides, and what an answer decides at its head.
//!
//! A question that asks whether a patient may take a drug is not answered by words in common:
//! "合适" against "不合适" shares two characters of three. The row says what is right
//! (`metrics.decision`), the answer is read by rules, without a judge model:
//!
//! 1. The answer's first clauses are looked at, [`CLAUSES`] of them; questions that it repeats
//!    ("可以用吗？") are passed over, and a condition ("如果…", "if …") ends the search: what
//!    follows is decided for some other case.
//! 2. A clause decides by the word it begins with (`不可以`, `不能`, `禁用`, `否`, `可以`, `合适`,
//!    `能`, `是`, `No`, `Yes`), the negation first: `不可以` is no `可以`.
//! 3. Else by what it says anywhere of *using* something (`不能使用`, `患者禁用`, `可以用`,
//!    `must not be given`, `may be used`), again the negation first, also that of a later clause.
//!    `没有禁忌证` and `not contraindicated` forbid nothing.
//!
//! An answer of which no clause decides is *undecided*: an error of its own, neither a yes nor a
//! no. What the rules cannot see: a decision that comes late, and one by implication
//! ("换用其他药物").

use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use unicode_normalization::UnicodeNormalization;

/// Clauses of an answer that are searched.
pub const CLAUSES: usize = 4;

/// Characters of an answer that are read at most: far more than so many clauses have.
const HEAD: usize = 2000;

/// What is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It may be done.
    Yes,
    /// It may not.
    No,
}

impl Decision {
    /// Reads what a row says is right: `yes`, `no`, `true`, `false`, `是`, `否`, `可以`, `不可以`,
    /// in any case, or a boolean.
    pub fn from_value(value: &Value) -> Option<Decision> {
        let text = match value {
            Value::Bool(yes) => return Some(if *yes { Decision::Yes } else { Decision::No }),
            Value::String(text) => text.trim().to_lowercase(),
            _ => return None,
        };
        match text.as_str() {
            "yes" | "true" | "是" | "可以" => Some(Decision::Yes),
            "no" | "false" | "否" | "不可以" => Some(Decision::No),
            _ => None,
        }
    }
}

/// What `answer` (without its reasoning) decides in its first clauses; `None` if it is undecided.
///
/// ```
/// # use karat::eval::decision::{Decision, decide};
/// assert_eq!(decide("不可以。黄疸的患者禁用利福平。"), Some(Decision::No));
/// assert_eq!(decide("Yes. The usual dose is 10 mg."), Some(Decision::Yes));
/// assert_eq!(decide("常用剂量为每次10毫克。"), None);
/// ```
pub fn decide(answer: &str) -> Option<Decision> {
    let mut allowed = None;
    for clause in clauses(answer).into_iter().filter(|clause| !clause.asks).take(CLAUSES) {
        if CONDITION.is_match(&clause.text) {
            break;
        }
        match clause.opening().or_else(|| clause.use_of_something()) {
            // "It may be used for tuberculosis, but must not be used in jaundice": the prohibition
            // is the answer.
            Some(Decision::Yes) if clause.opening().is_none() => allowed = Some(Decision::Yes),
            Some(decision) => return Some(decision),
            None => {}
        }
    }
    allowed
}

/// What `text` decides with its very first word; `None` if it begins with something else.
pub fn at_head(text: &str) -> Option<Decision> {
    let first = clauses(text).into_iter().next()?;
    if first.asks || CONDITION.is_match(&first.text) { None } else { first.opening() }
}

/// A stretch between two punctuation marks, in lower case and compatibility form.
struct Clause {
    text: String,
    /// It is a question.
    asks: bool,
}

impl Clause {
    /// By the word it begins with.
    fn opening(&self) -> Option<Decision> {
        found(&OPENS_NO, &self.text)
            .map(|_| Decision::No)
            .or_else(|| found(&OPENS_YES, &self.text).map(|_| Decision::Yes))
    }

    /// By what it says of using something.
    fn use_of_something(&self) -> Option<Decision> {
        // Where both are said the negation counts, but for what only takes a prohibition back.
        let text = RELEASES.replace_all(&self.text, " ");
        found(&FORBIDS, &text).map(|_| Decision::No).or_else(|| found(&ALLOWS, &text).map(|_| Decision::Yes))
    }
}

/// The first clauses that hold a letter, without marks of emphasis and lists before them and words
/// that only announce the answer.
fn clauses(text: &str) -> Vec<Clause> {
    let text: Vec<char> = text.chars().take(HEAD).nfkc().flat_map(char::to_lowercase).chain(['\n']).collect();
    let mut clauses = Vec::new();
    let mut clause = String::new();
    for (at, &c) in text.iter().enumerate() {
        let ends = match c {
            '。' | ';' | '!' | '?' | '\n' | '\r' | '—' => true,
            // Not within a number. Full-width commas and colons are ASCII by now.
            '.' | ',' | ':' => text.get(at + 1).is_none_or(|next| !next.is_ascii_digit()),
            _ => false,
        };
        if !ends {
            clause.push(if c == '’' { '\'' } else { c });
            continue;
        }
        let bare = ANNOUNCES.replace(clause.trim_matches(|c: char| !c.is_alphanumeric()), "");
        let bare = bare.trim_start_matches(|c: char| !c.is_alphanumeric());
        if !bare.is_empty() {
            clauses.push(Clause { text: bare.to_string(), asks: c == '?' || ASKS.is_match(bare) });
        }
        clause.clear();
    }
    clauses
}

fn found<'t>(pattern: &Regex, text: &'t str) -> Option<&'t str> {
    pattern.find(text).map(|m| m.as_str())
}

fn compiled(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is a constant")
}

/// A question, also without its mark.
static ASKS: LazyLock<Regex> =
    LazyLock::new(|| compiled("吗$|呢$|是否|能否|可否|能不能|可不可以|该不该|是不是|合不合适|要不要|whether "));

/// What is decided under a condition is decided for another case.
static CONDITION: LazyLock<Regex> =
    LazyLock::new(|| compiled(r"^(?:如果|如无|如有|若|假如|倘若|除非|只有|只要|if |unless |when |only if |provided )"));

/// Words before the answer that are none of it.
static ANNOUNCES: LazyLock<Regex> = LazyLock::new(|| {
    compiled(
        r"^(?:答案|回答|结论|答|结果|综上所述|综上|总之|因此|所以|故|该患者|这位患者|此患者|患者|病人|该药|此药|我认为|the answer is|the answer|answer|conclusion|in short|therefore|so )(?:是|为)?[\s*]*",
    )
});

/// What one does with a drug.
const USE: &str = "(?:使用|应用|用|服|给|吃)";
const GIVEN: &str = "(?:given|used|taken|prescribed|administered)";
const GIVE: &str = "(?:give|use|take|receive|prescribe|administer)";

static OPENS_NO: LazyLock<Regex> = LazyLock::new(|| {
    compiled(&format!(
        r"^(?:不可以|不可$|不能|不宜|不建议|不推荐|不适合|不合适|不适宜|不允许|不行|不用$|不$|绝不|否$|否定|禁用|禁忌使用|忌用|(?:不可|不应|不应该|不应当|不该|不得|不要|禁止|切勿|请勿|勿|避免)(?:$|{USE})|no$|nope$|no way|never$|not$|not (?:be )?(?:{GIVEN}|suitable|appropriate|safe|recommended|advisable|advised|indicated|allowed|permitted)|(?:cannot|can not|can't|must not|mustn't|should not|shouldn't|may not|do not|don't|never) (?:be {GIVEN}|{GIVE})|avoid (?:it$|using|giving)|contraindicated|unsuitable|inadvisable)"
    ))
});

static OPENS_YES: LazyLock<Regex> = LazyLock::new(|| {
    compiled(&format!(
        r"^(?:可以|可用$|可用[^于]|可(?:使用|服|给|考虑)|合适|(?:适合|适宜)(?:$|{USE})|能$|能够?{USE}|行$|是$|是的|对$|对的|没问题|允许|yes\b|yeah\b|sure$|certainly$|of course|suitable|appropriate|safe$|allowed|permitted)"
    ))
});

/// What takes a prohibition back.
static RELEASES: LazyLock<Regex> = LazyLock::new(|| {
    compiled(
        r"(?:没有|无|未见|未发现|不存在|不属于|不是)[^,。]{0,8}?禁忌[证症]?|(?:并非|不是)(?:不能|不可以|不宜|禁用)|(?:no|not|without|nothing)(?: an?| any)?(?: absolute)? contraindicat\w*",
    )
});

static FORBIDS: LazyLock<Regex> = LazyLock::new(|| {
    compiled(&format!(
        r"不可以|(?:不能|不可|不应|不应该|不应当|不该|不得|不要|禁止|切勿|勿|避免){USE}|不宜|不建议{USE}|不推荐{USE}|不适合|不合适|不适宜|禁用|忌用|(?:是|为|属于|属)[^,。]*禁忌|\b(?:must|should|may|can|could|do|does) ?not (?:be {GIVEN}|{GIVE})\b|\b(?:mustn't|shouldn't|can't|don't|never) (?:be {GIVEN}|{GIVE})\b|\bnot (?:{GIVEN}|suitable|appropriate|safe|recommended|advisable|advised|indicated|allowed|permitted)\b|\bcontraindicat\w*|\bavoid (?:using|giving)\b|\bunsuitable\b"
    ))
});

static ALLOWS: LazyLock<Regex> = LazyLock::new(|| {
    compiled(&format!(
        r"可以{USE}|可以(?:考虑|选用)|可(?:使用|选用|考虑)|能使用|(?:适合|适宜){USE}|合适$|\b(?:may|can|could) (?:safely )?(?:be {GIVEN}|{GIVE})\b|\b(?:is|are) (?:a )?(?:suitable|appropriate|safe|recommended|indicated|allowed|permitted)\b"
    ))
});

#[cfg(test)]
mod tests {
    use super::Decision::{No, Yes};
    use super::*;

    #[test]
    fn chinese_answers_are_read_negation_first() {
        for (answer, expected) in [
            ("可以。", Some(Yes)),
            ("可以使用。二甲双胍用于2型糖尿病。", Some(Yes)),
            ("合适。可以用氨氯地平治疗高血压。", Some(Yes)),
            ("能。", Some(Yes)),
            ("能用，每日一次。", Some(Yes)),
            ("是。", Some(Yes)),
            ("是的，可以服用。", Some(Yes)),
            ("**可以**，但须监测血压。", Some(Yes)),
            ("答案：可以使用", Some(Yes)),
            ("结论是：合适", Some(Yes)),
            ("该患者没有禁忌证，可以使用。", Some(Yes)),
            ("并非不能使用。", None),
            ("合\n。可以用泼尼松治疗。", Some(Yes)),
            ("不可以。", Some(No)),
            ("不能使用。利福平虽然用于结核病，但黄疸的患者禁用。", Some(No)),
            ("不合适，应另选药物。", Some(No)),
            ("不宜使用。", Some(No)),
            ("禁用。", Some(No)),
            ("否。", Some(No)),
            ("不。", Some(No)),
            ("不行", Some(No)),
            ("不建议使用该药。", Some(No)),
            ("患者有黄疸，因此禁用利福平。", Some(No)),
            ("利福平用于结核病，但黄疸的患者不能使用。", Some(No)),
            ("利福平可以用于结核病，但黄疸的患者禁用。", Some(No)),
            ("黄疸是利福平的禁忌证。", Some(No)),
            ("可以用利福平吗？不能使用。", Some(No)),
            ("能否使用利福平，不可以。", Some(No)),
            ("该患者不宜服用", Some(No)),
            ("", None),
            ("。", None),
            ("常用剂量为口服，每次10毫克。", None),
            ("螺内酯能阻断醛固酮受体。", None),
            ("阿司匹林是抗血小板药。", None),
            ("是否可以使用需要医生判断。", None),
            ("如果没有禁忌证，可以使用。", None),
            ("若有黄疸则禁用。", None),
            ("不良反应包括头晕。", None),
            ("避免饮酒，每日一次。", None),
            ("不要饮酒。", None),
            ("可用于治疗结核病。", None),
            ("先看禁忌证，再看剂量。", None),
            ("第一，口服。第二，饭后。第三，每日一次。第四，多饮水。最后，肝病患者禁用。", None),
        ] {
            assert_eq!(decide(answer), expected, "{answer}");
        }
    }

    #[test]
    fn english_answers_are_read_negation_first() {
        for (answer, expected) in [
            ("Yes.", Some(Yes)),
            ("YES, it may be given.", Some(Yes)),
            ("Yes", Some(Yes)),
            ("Answer: yes", Some(Yes)),
            ("It may be used once daily.", Some(Yes)),
            ("Metformin is suitable here.", Some(Yes)),
            ("There is no contraindication, so it can be given.", Some(Yes)),
            ("It is not contraindicated and may be used.", Some(Yes)),
            ("No.", Some(No)),
            ("No, choose another drug.", Some(No)),
            ("no", Some(No)),
            ("Must not be used.", Some(No)),
            ("Metformin is not suitable.", Some(No)),
            ("It isn't clear. Metformin should not be given.", Some(No)),
            ("Rifampicin is contraindicated in case of jaundice.", Some(No)),
            ("Don’t give it.", Some(No)),
            ("May metformin be given? No.", Some(No)),
            ("The usual dose is 10 mg.", None),
            ("Nothing is known of it.", None),
            ("Normal renal function was found.", None),
            ("If renal function is normal, it may be used.", None),
            ("A patient on colchicine should stop and seek advice if diarrhoea appears.", None),
            ("Yesterday it was given.", None),
            ("Not sure.", None),
            ("Avoid alcohol, and do not drive.", None),
            ("It may be used for tuberculosis, but must not be used in case of jaundice.", Some(No)),
        ] {
            assert_eq!(decide(answer), expected, "{answer}");
        }
    }

    #[test]
    fn the_head_of_a_text_is_its_first_word_alone() {
        assert_eq!(at_head("不可以。"), Some(No));
        assert_eq!(at_head("合适。"), Some(Yes));
        assert_eq!(at_head("No. It is contraindicated."), Some(No));
        assert_eq!(at_head("Yes. It fits."), Some(Yes));
        assert_eq!(at_head("孕妇禁止使用青霉素治疗"), None);
        assert_eq!(at_head("可以用吗？不可以。"), None);
    }

    #[test]
    fn a_row_says_what_is_right_in_a_few_spellings_and_nothing_else() {
        let of = |text: &str| Decision::from_value(&serde_json::from_str(text).unwrap());
        for text in [r#""yes""#, r#""YES ""#, "true", r#""是""#, r#""可以""#] {
            assert_eq!(of(text), Some(Yes), "{text}");
        }
        for text in [r#""no""#, "false", r#""否""#, r#""不可以""#] {
            assert_eq!(of(text), Some(No), "{text}");
        }
        for text in [r#""maybe""#, "1", "null", "[]"] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn a_text_of_a_megabyte_is_read_at_its_head() {
        let long = format!("不可以{}", "，这位患者不能使用".repeat(40_000));
        assert_eq!(decide(&long), Some(No));
    }
}
