//! Numbers with their units, in Chinese and English text: `0.5 g` is `500毫克` is not `50 mg`.

use std::sync::LazyLock;

use regex::Regex;
use unicode_normalization::UnicodeNormalization;

/// A bound that a number states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bound {
    /// The number itself.
    Equal,
    /// `<`, `≤`, "at most".
    Below,
    /// `>`, `≥`, "at least".
    Above,
}

/// A number, or a range of numbers, in a base unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantity {
    /// The bound it states.
    pub bound: Bound,
    /// The value, or the lower end, in units of [`unit`](Self::unit).
    pub low: f64,
    /// The value, or the upper end.
    pub high: f64,
    /// The upper end as written, before conversion.
    pub stated: f64,
    /// The base unit: `mg`, `ml`, `h`, `month`, `%`, `mg/kg/d`, ...; empty for a bare number.
    pub unit: String,
}

impl Quantity {
    /// Same bound, unit and (to a relative 1e-9, which is what the conversion may cost) same
    /// numbers.
    pub fn same(&self, other: &Quantity) -> bool {
        self.bound == other.bound
            && self.unit == other.unit
            && close(self.low, other.low)
            && close(self.high, other.high)
    }

    /// Same number as written, whatever the unit.
    pub fn same_number(&self, other: &Quantity) -> bool {
        close(self.stated, other.stated)
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

/// `(alias, base unit, factor)`. Years and months are apart from days: "one month" is no number of
/// hours.
const UNITS: &[(&str, &str, f64)] = &[
    ("kg", "mg", 1e6),
    ("千克", "mg", 1e6),
    ("公斤", "mg", 1e6),
    ("mg", "mg", 1.0),
    ("毫克", "mg", 1.0),
    ("μg", "mg", 1e-3),
    ("ug", "mg", 1e-3),
    ("mcg", "mg", 1e-3),
    ("微克", "mg", 1e-3),
    ("ng", "mg", 1e-6),
    ("pg", "mg", 1e-9),
    ("g", "mg", 1e3),
    ("克", "mg", 1e3),
    ("ml", "ml", 1.0),
    ("毫升", "ml", 1.0),
    ("dl", "ml", 100.0),
    ("μl", "ml", 1e-3),
    ("l", "ml", 1e3),
    ("升", "ml", 1e3),
    ("小时", "h", 1.0),
    ("hours", "h", 1.0),
    ("hour", "h", 1.0),
    ("hrs", "h", 1.0),
    ("hr", "h", 1.0),
    ("h", "h", 1.0),
    ("分钟", "h", 1.0 / 60.0),
    ("minutes", "h", 1.0 / 60.0),
    ("minute", "h", 1.0 / 60.0),
    ("min", "h", 1.0 / 60.0),
    ("分", "h", 1.0 / 60.0),
    ("seconds", "h", 1.0 / 3600.0),
    ("second", "h", 1.0 / 3600.0),
    ("秒", "h", 1.0 / 3600.0),
    ("s", "h", 1.0 / 3600.0),
    ("天", "h", 24.0),
    ("日", "h", 24.0),
    ("days", "h", 24.0),
    ("day", "h", 24.0),
    ("d", "h", 24.0),
    ("周", "h", 168.0),
    ("星期", "h", 168.0),
    ("weeks", "h", 168.0),
    ("week", "h", 168.0),
    ("个月", "month", 1.0),
    ("月", "month", 1.0),
    ("months", "month", 1.0),
    ("month", "month", 1.0),
    ("年", "month", 12.0),
    ("years old", "岁", 1.0),
    ("years", "month", 12.0),
    ("year", "month", 12.0),
    ("岁", "岁", 1.0),
    ("%", "%", 1.0),
    ("percent", "%", 1.0),
    ("°c", "°c", 1.0),
    ("摄氏度", "°c", 1.0),
    ("mmhg", "mmhg", 1.0),
    ("毫米汞柱", "mmhg", 1.0),
    ("kpa", "mmhg", 7.500_617),
    ("cmh2o", "cmh2o", 1.0),
    ("mmol", "mmol", 1.0),
    ("毫摩尔", "mmol", 1.0),
    ("μmol", "mmol", 1e-3),
    ("umol", "mmol", 1e-3),
    ("nmol", "mmol", 1e-6),
    ("mol", "mmol", 1e3),
    ("meq", "meq", 1.0),
    ("iu", "iu", 1.0),
    ("单位", "iu", 1.0),
    ("u", "iu", 1.0),
    ("cm", "mm", 10.0),
    ("厘米", "mm", 10.0),
    ("mm", "mm", 1.0),
    ("毫米", "mm", 1.0),
    ("m2", "m2", 1.0),
    ("kcal", "kcal", 1.0),
    ("千卡", "kcal", 1.0),
    ("次", "次", 1.0),
    ("times", "次", 1.0),
    ("time", "次", 1.0),
    ("片", "片", 1.0),
    ("tablets", "片", 1.0),
    ("tablet", "片", 1.0),
    ("粒", "粒", 1.0),
    ("支", "支", 1.0),
    ("滴", "滴", 1.0),
    ("倍", "倍", 1.0),
    ("级", "级", 1.0),
    ("期", "期", 1.0),
    ("型", "型", 1.0),
];

/// Units that follow Chinese numerals; others ("一种", "三者") are mostly words.
const COUNTED_IN_CHINESE: &[&str] = &[
    "次", "小时", "分钟", "天", "日", "周", "星期", "个月", "年", "岁", "片", "粒", "支", "滴", "倍", "级", "期", "型",
];

struct Patterns {
    number: Regex,
    chinese: Regex,
    daily: Regex,
    latin_frequency: Regex,
}

static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| {
    let compile = |pattern: &str| Regex::new(pattern).expect("the pattern is a constant");
    let mut aliases: Vec<&str> = UNITS.iter().map(|(alias, ..)| *alias).collect();
    aliases.sort_by_key(|alias| std::cmp::Reverse(alias.len()));
    let latin = |alias: &&&str| alias.ends_with(|c: char| c.is_ascii_alphanumeric());
    let escaped = |of: Vec<&&str>| of.iter().map(|a| regex::escape(a)).collect::<Vec<_>>().join("|");
    // A Latin unit ends where its word does.
    let unit = format!(
        r"(?:(?:{})(?:$|\b)|{})",
        escaped(aliases.iter().filter(latin).collect()),
        escaped(aliases.iter().filter(|a| !latin(a)).collect()),
    );
    let bound = "<=|>=|<|>|≤|≥|不超过|不高于|不少于|不低于|不足|少于|小于|低于|超过|大于|高于|至少|至多|at least|at most|less than|more than|over|under|above|below";
    let digits = r"\d+(?:,\d{3})*(?:\.\d+)?";
    let counted = COUNTED_IN_CHINESE.join("|");
    Patterns {
        number: compile(&format!(
            r"(?P<bound>{bound})?\s*(?P<low>{digits})\s*(?:(?P<unit1>{unit})?\s*(?:-|~|–|—|至|到|to)\s*(?P<high>{digits})\s*)?(?P<unit>{unit}(?:\s*(?:/|每|per\s)\s*{unit})*)?"
        )),
        chinese: compile(&format!("(?P<number>半|[一二两三四五六七八九十百千]+)(?P<unit>{counted})")),
        daily: compile(
            r"(?:每日|每天|一日|一天|日|daily)\s*(?P<times>\d+|[一二两三四五六七八九十]+)\s*次|(?P<word>once|twice|\d+ times|three times|four times) (?:a day|daily|per day)",
        ),
        latin_frequency: compile(r"\b(qd|bid|tid|qid)\b"),
    }
});

/// The quantities of `text`, in order. Numbers of a list ("1." at the start of a line) and within
/// words (`IL-6`, `T4`) are none.
pub fn quantities(text: &str) -> Vec<Quantity> {
    let text: String = text.nfkc().flat_map(char::to_lowercase).collect();
    let mut found: Vec<(usize, Quantity)> = Vec::new();
    // What a pattern has read is blanked for the next.
    let mut rest = text;
    let blank = |rest: &mut String, from: usize, to: usize| rest.replace_range(from..to, &" ".repeat(to - from));

    for times in PATTERNS.daily.captures_iter(&rest.clone()) {
        let whole = times.get(0).expect("group 0 is the match");
        let word = times.name("times").or(times.name("word")).map_or("", |m| m.as_str());
        let count = match word.split(' ').next().unwrap_or("") {
            "once" => Some(1.0),
            "twice" => Some(2.0),
            "three" => Some(3.0),
            "four" => Some(4.0),
            number => number.parse().ok().or_else(|| chinese_number(number)),
        };
        if let Some(count) = count {
            found.push((whole.start(), per_day(count)));
            blank(&mut rest, whole.start(), whole.end());
        }
    }
    for latin in PATTERNS.latin_frequency.find_iter(&rest.clone()) {
        let count = match latin.as_str() {
            "qd" => 1.0,
            "bid" => 2.0,
            "tid" => 3.0,
            _ => 4.0,
        };
        found.push((latin.start(), per_day(count)));
        blank(&mut rest, latin.start(), latin.end());
    }
    for number in PATTERNS.number.captures_iter(&rest.clone()) {
        let whole = number.get(0).expect("group 0 is the match");
        let low_at = number.name("low").map_or(whole.start(), |m| m.start());
        if let Some(quantity) = read_number(&rest, low_at, whole.end(), &number) {
            found.push((low_at, quantity));
            blank(&mut rest, whole.start(), whole.end());
        }
    }
    for number in PATTERNS.chinese.captures_iter(&rest) {
        let value = chinese_number(&number["number"]);
        if let (Some(value), Some((unit, factor))) = (value, base_unit(&number["unit"])) {
            let at = number.get(0).map_or(0, |m| m.start());
            found.push((
                at,
                Quantity { bound: Bound::Equal, low: value * factor, high: value * factor, stated: value, unit },
            ));
        }
    }
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, quantity)| quantity).collect()
}

fn per_day(times: f64) -> Quantity {
    let per_hour = times / 24.0;
    Quantity { bound: Bound::Equal, low: per_hour, high: per_hour, stated: times, unit: "次/h".to_string() }
}

fn read_number(text: &str, at: usize, end: usize, number: &regex::Captures<'_>) -> Option<Quantity> {
    let before = text[..at].chars().next_back();
    let in_word = before.is_some_and(|c| c.is_ascii_alphabetic())
        || (before == Some('-') && text[..at - 1].ends_with(|c: char| c.is_alphanumeric()));
    if in_word {
        return None;
    }
    let line_start =
        text[..at].chars().next_back().is_none_or(|c| c == '\n') || text[..at].trim_end_matches(' ').ends_with('\n');
    let numbers_a_list = number.name("unit").is_none()
        && line_start
        && text[end..].starts_with(['.', '、', ')', ':'])
        && number.name("high").is_none();
    if numbers_a_list {
        return None;
    }
    let value = |name: &str| number.name(name).and_then(|m| m.as_str().replace(',', "").parse::<f64>().ok());
    let low = value("low")?;
    let high = value("high");
    let (unit, factor) = match number.name("unit") {
        Some(unit) => base_unit(unit.as_str())?,
        None => (String::new(), 1.0),
    };
    // "0.5g-1g": each end has its unit; "38-39": they share it.
    let low_factor = number.name("unit1").and_then(|unit| base_unit(unit.as_str())).map_or(factor, |(_, f)| f);
    let bound = match number.name("bound").map(|m| m.as_str()) {
        None => Bound::Equal,
        Some("<" | "<=" | "≤" | "不超过" | "不高于" | "不足" | "少于" | "小于" | "低于" | "至多") => {
            Bound::Below
        }
        Some("at most" | "less than" | "under" | "below") => Bound::Below,
        Some(_) => Bound::Above,
    };
    let stated = high.unwrap_or(low);
    Some(Quantity { bound, low: low * low_factor, high: stated * factor, stated, unit })
}

/// The base of a unit and the factor to it; each divisor counts too (`g/日` is 1000/24 `mg/h`).
fn base_unit(unit: &str) -> Option<(String, f64)> {
    let unit = unit.replace('每', "/").replace("per ", "/");
    let mut bases = Vec::new();
    let mut factor = 1.0;
    for (n, part) in unit.split('/').map(str::trim).filter(|part| !part.is_empty()).enumerate() {
        let (_, base, of_part) = UNITS.iter().find(|(alias, ..)| *alias == part)?;
        factor = if n == 0 { *of_part } else { factor / of_part };
        bases.push(*base);
    }
    Some((bases.join("/"), factor))
}

/// `三百六十五`, `十二`, `半`; at most thousands.
fn chinese_number(text: &str) -> Option<f64> {
    if text == "半" {
        return Some(0.5);
    }
    let (mut total, mut digit) = (0u32, None);
    for c in text.chars() {
        let place = match c {
            '十' => 10,
            '百' => 100,
            '千' => 1000,
            _ => {
                let value = "一二三四五六七八九".chars().position(|d| d == c).map(|p| p as u32 + 1);
                digit = Some(value.or((c == '两').then_some(2))?);
                continue;
            }
        };
        total += place * digit.take().unwrap_or(1);
    }
    Some(f64::from(total + digit.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Quantity {
        let found = quantities(text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        found[0].clone()
    }

    #[test]
    fn units_are_converted_and_kept_apart() {
        assert!(one("0.5 g").same(&one("500毫克")));
        assert!(one("０.５ｇ").same(&one("500mg")));
        assert!(!one("50 mg").same(&one("500 mg")));
        assert!(!one("5 mg").same(&one("5 ml")));
        assert!(one("每日3次").same(&one("tid")));
        assert!(one("一日三次").same(&one("3次/日")));
        assert!(one("48小时").same(&one("2天")));
        assert!(one("两周").same(&one("14天")));
        assert!(one("1g/日").same(&one("1000 mg/d")));
        assert!(!one("10 mg/kg").same(&one("10 mg")));
    }

    #[test]
    fn bounds_and_ranges_are_part_of_the_number() {
        assert!(one("≥140mmHg").same(&one("大于140 mmHg")));
        assert!(!one("≥140mmHg").same(&one("≤140mmHg")));
        let range = one("38～39℃");
        assert_eq!((range.low, range.high, range.unit.as_str()), (38.0, 39.0, "°c"));
    }

    #[test]
    fn list_numbers_and_names_are_no_quantities() {
        assert!(quantities("1. 休息\n2、饮水").is_empty());
        assert!(quantities("IL-6、T4、vitamin B12").is_empty());
    }
}
