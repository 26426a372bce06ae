//! Python's semantics in Jinja templates, where minijinja differs.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};

use super::limits;
use crate::calendar;

/// The variable that carries [`super::RenderOptions::now`] to `strftime_now`.
pub(super) const NOW: &str = "__karat_now";

/// The filter that puts [`BEGIN`] and [`END`] around what an assistant said.
pub(super) const MARK: &str = "__karat_generation";
/// Characters of private use, of the last plane, where no font has anything.
pub(super) const BEGIN: char = '\u{10f0f0}';
pub(super) const END: char = '\u{10f0f1}';

/// How much of a template's own words an error repeats.
const MESSAGE_CHARS: usize = 2_000;

/// An environment with transformers' filters and functions and Python's methods.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(|out, state, value| match value.kind() {
        // Only a number that stands alone: within a printed list, 1e16 still shows as minijinja
        // writes it.
        ValueKind::Number => out.write_str(&number(value, ["nan", "inf", "-inf"])).map_err(Error::from),
        _ => limits::print(out, state, value),
    });
    limits::guard(&mut environment);
    environment.set_unknown_method_callback(|state, value, name, args| {
        limits::admit_method(value, name, args)?;
        limits::made(method(state, value, name, args)?)
    });
    environment.add_filter("tojson", tojson);
    environment.add_filter("trim", |text: &Value, chars: Option<&str>| -> Result<String, Error> {
        let text = match text.as_str() {
            Some(text) => Cow::Borrowed(text),
            None => Cow::Owned(limits::printed(text)?),
        };
        limits::make(text.len())?;
        Ok(strip(&text, chars, true, true).to_string())
    });
    environment.add_filter(MARK, |text: &str| format!("{BEGIN}{text}{END}"));
    environment.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
        let message = message.as_str().map_or_else(|| limits::printed(message), |text| Ok(text.to_string()))?;
        Err(Error::new(ErrorKind::InvalidOperation, message.chars().take(MESSAGE_CHARS).collect::<String>()))
    });
    environment.add_function("strftime_now", |state: &State, format: &str| {
        // The longest of what a directive of two characters becomes.
        limits::make_times(format.len(), 8)?;
        let now = state.lookup(NOW).and_then(|now| i64::try_from(now).ok()).unwrap_or_else(clock);
        strftime(now, format)
    });
    environment
}

fn clock() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// Python's `str.isspace` characters: Rust's white space and the four information separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn strip<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let matches = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left { text.trim_start_matches(matches) } else { text };
    if right { text.trim_end_matches(matches) } else { text }
}

/// Methods of `str` where minijinja-contrib has none or differs from Python; the rest is its.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str().filter(|_| value.kind() == ValueKind::String) else {
        return minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args);
    };
    let empty = |separator: &str| match separator {
        "" => Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        _ => Ok(()),
    };
    Ok(match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(text, chars, name != "rstrip", name != "lstrip"))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "split" | "rsplit" => {
            let (separator, limit, kwargs): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
            let separator = separator.or(kwargs.get("sep")?);
            let limit = limit.or(kwargs.get("maxsplit")?).and_then(|n| usize::try_from(n).ok());
            kwargs.assert_all_used()?;
            separator.map_or(Ok(()), empty)?;
            let parts = if name == "split" { split(text, separator, limit) } else { rsplit(text, separator, limit) };
            parts.into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            empty(separator)?;
            let parts = match name {
                "partition" => text.split_once(separator).map_or([text, "", ""], |(a, b)| [a, separator, b]),
                _ => text.rsplit_once(separator).map_or(["", "", text], |(a, b)| [a, separator, b]),
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "isspace" => {
            let () = from_args(args)?;
            Value::from(!text.is_empty() && text.chars().all(is_space))
        }
        _ => return minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    })
}

fn split<'a>(text: &'a str, separator: Option<&str>, limit: Option<usize>) -> Vec<&'a str> {
    let limit = limit.unwrap_or(usize::MAX);
    if let Some(separator) = separator {
        return text.splitn(limit.saturating_add(1), separator).collect();
    }
    let (mut parts, mut rest) = (Vec::new(), strip(text, None, true, false));
    while !rest.is_empty() {
        match rest.find(is_space).filter(|_| parts.len() < limit) {
            Some(end) => {
                parts.push(&rest[..end]);
                rest = strip(&rest[end..], None, true, false);
            }
            // The last part keeps its trailing white space only where the limit cut it short.
            None => {
                parts.push(rest);
                break;
            }
        }
    }
    parts
}

fn rsplit<'a>(text: &'a str, separator: Option<&str>, limit: Option<usize>) -> Vec<&'a str> {
    let limit = limit.unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = match separator {
        Some(separator) => text.rsplitn(limit.saturating_add(1), separator).collect(),
        None => {
            let (mut parts, mut rest) = (Vec::new(), strip(text, None, false, true));
            while !rest.is_empty() {
                match rest.char_indices().rev().find(|(_, c)| is_space(*c)).filter(|_| parts.len() < limit) {
                    Some((at, space)) => {
                        parts.push(&rest[at + space.len_utf8()..]);
                        rest = strip(&rest[..at], None, false, true);
                    }
                    None => {
                        parts.push(rest);
                        break;
                    }
                }
            }
            parts
        }
    };
    parts.reverse();
    parts
}

/// `json.dumps` as transformers calls it: not HTML-safe, Unicode kept, `", "` and `": "` unless
/// told otherwise.
fn tojson(value: &Value, positional: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    // The order of the positional parameters is that of transformers' function.
    let argument = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        let given = positional.get(index).cloned().or(kwargs.get::<Option<Value>>(name)?);
        Ok(given.filter(|v| !v.is_none() && !v.is_undefined()))
    };
    let ascii = argument(0, "ensure_ascii")?.is_some_and(|v| v.is_true());
    let indent = match argument(1, "indent")? {
        Some(v) if v.kind() == ValueKind::String => Some(v.to_string()),
        Some(v) => {
            let width = i64::try_from(v)?.max(0) as usize;
            limits::make(width)?;
            Some(" ".repeat(width))
        }
        None => None,
    };
    limits::admit_json(value)?;
    let (item, key) = match argument(2, "separators")? {
        Some(pair) => (pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?.to_string()),
        None if indent.is_some() => (",".to_string(), ": ".to_string()),
        None => (", ".to_string(), ": ".to_string()),
    };
    let sort = argument(3, "sort_keys")?.is_some_and(|v| v.is_true());
    kwargs.assert_all_used()?;
    let mut writer = Json { out: String::new(), counted: 0, ascii, indent, item, key, sort };
    writer.value(value, 0)?;
    writer.count()?;
    Ok(writer.out)
}

const JSON_NAMES: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

struct Json {
    out: String,
    /// How much of `out` the limits know of.
    counted: usize,
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort: bool,
}

impl Json {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value, JSON_NAMES)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.out.push('[');
                for (i, item) in items.iter().enumerate() {
                    self.separate(i, depth + 1)?;
                    self.value(item, depth + 1)?;
                }
                self.close(']', items.is_empty(), depth)?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort();
                }
                self.out.push('{');
                for (i, key) in keys.iter().enumerate() {
                    self.separate(i, depth + 1)?;
                    match key.kind() {
                        ValueKind::Bool => self.string(if key.is_true() { "true" } else { "false" }),
                        ValueKind::None => self.string("null"),
                        ValueKind::Number => self.string(&number(key, JSON_NAMES)),
                        _ => self.string(&key.to_string()),
                    }
                    self.out.push_str(&self.key);
                    self.value(&value.get_item(key)?, depth + 1)?;
                }
                self.close('}', keys.is_empty(), depth)?;
            }
            other => {
                return Err(Error::new(ErrorKind::BadSerialization, format!("{other} is not JSON serializable")));
            }
        }
        Ok(())
    }

    /// Tells the limits what was written since they were told last.
    fn count(&mut self) -> Result<(), Error> {
        limits::make(self.out.len() - self.counted)?;
        self.counted = self.out.len();
        Ok(())
    }

    fn separate(&mut self, index: usize, depth: usize) -> Result<(), Error> {
        if index > 0 {
            self.out.push_str(&self.item);
        }
        self.line(depth)
    }

    fn close(&mut self, bracket: char, empty: bool, depth: usize) -> Result<(), Error> {
        if !empty {
            self.line(depth)?;
        }
        self.out.push(bracket);
        Ok(())
    }

    fn line(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = &self.indent {
            limits::make_times(depth, indent.len())?;
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
        self.count()
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A number as Python writes it: `repr` of a float has the shortest digits, an exponent below 1e-4
/// and from 1e16. `names` are those of not-a-number and the two infinities.
fn number(value: &Value, names: [&str; 3]) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(x) = f64::try_from(value.clone()) else {
        return value.to_string();
    };
    if x.is_nan() {
        return names[0].into();
    }
    if x.is_infinite() {
        return names[if x > 0.0 { 1 } else { 2 }].into();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return format!("{x:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// `datetime.strftime` in the C locale for the directives that templates use, at `now` seconds
/// since 1970, UTC.
fn strftime(now: i64, format: &str) -> Result<String, Error> {
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (days, second) = (now.div_euclid(86_400), now.rem_euclid(86_400));
    let (year, month, day) = calendar::date(days);
    let weekday = (days + 4).rem_euclid(7) as usize;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let name = MONTHS[month as usize - 1];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let directive = chars.next();
        let unpadded = directive == Some('-');
        let text = match (if unpadded { chars.next() } else { directive }, unpadded) {
            (Some('Y'), _) => year.to_string(),
            (Some('m'), false) => format!("{month:02}"),
            (Some('m'), true) => month.to_string(),
            (Some('d'), false) => format!("{day:02}"),
            (Some('d'), true) => day.to_string(),
            (Some('y'), _) => format!("{:02}", year.rem_euclid(100)),
            (Some('B'), _) => name.into(),
            (Some('b' | 'h'), _) => name[..3].into(),
            (Some('A'), _) => DAYS[weekday].into(),
            (Some('a'), _) => DAYS[weekday][..3].into(),
            (Some('H'), _) => format!("{hour:02}"),
            (Some('I'), _) => format!("{:02}", (hour + 11) % 12 + 1),
            (Some('p'), _) => if hour < 12 { "AM" } else { "PM" }.into(),
            (Some('M'), _) => format!("{minute:02}"),
            (Some('S'), _) => format!("{second:02}"),
            (Some('F'), _) => format!("{year}-{month:02}-{day:02}"),
            (Some('T'), _) => format!("{hour:02}:{minute:02}:{second:02}"),
            (Some('j'), _) => format!("{:03}", days - days_before(year) + 1),
            (Some('%'), false) => "%".into(),
            (other, _) => {
                let other = other.map_or_else(String::new, String::from);
                let message = format!("strftime_now does not know the directive %{other}");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        };
        out.push_str(&text);
    }
    Ok(out)
}

/// Days from 1970 to the first of January of `year` in the Gregorian calendar.
fn days_before(year: i64) -> i64 {
    let y = year - 1;
    365 * (year - 1970) + (y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400)) - 477
}
