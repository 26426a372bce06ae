//! Row layouts: question, reasoning and answer, and the turns before them, in each form.

mod chats;
mod pairs;

use serde_json::{Map, Value};

use super::fields::{Fields, Reading, RowLayout, same_name, value};
use super::format::{CHATS, Format};
use super::message::{self, Message, kind};
use crate::eval::choice;
use crate::eval::think::{Cut, ThinkState, ThinkTags};
use chats::Turn;

/// Whole numbers below this are exact as 64-bit floats.
const MOST_WHOLE: f64 = 9_007_199_254_740_992.0;

/// Longest id and cluster, in bytes: they name files, rows of tables and lines of logs.
const MOST_LABEL: usize = 1024;

/// What a row of a form says, or why it is none.
pub(super) fn read(row: &Map<String, Value>, form: Format, reading: &Reading<'_>) -> Result<Body, String> {
    for key in MORE_THAN_TEXT {
        if value(row, key)?.is_some_and(|found| !message::is_empty(found)) {
            return Err(format!("{key:?} is not read: a row is text alone here"));
        }
    }
    match form {
        Format::Auto | Format::Columns => columns(row, reading),
        Format::Alpaca => alpaca(row, reading),
        Format::Messages => chats::messages(row, reading),
        Format::Sharegpt => chats::sharegpt(row, reading),
        Format::PromptCompletion => pairs::completion(row, reading),
        Format::Preference => pairs::preference(row, reading),
        Format::Text => Err("\"text\" asks and answers nothing".into()),
    }
}

/// Lists of turns that a table holds as JSON text become lists.
pub(super) fn parse_turns(row: &mut Map<String, Value>, fields: &Fields) {
    let keys = || [fields.messages.as_str()].into_iter().chain(CHATS);
    for (name, value) in row.iter_mut() {
        let text = value.as_str().filter(|text| text.trim_start().starts_with('['));
        let Some(text) = text.filter(|_| keys().any(|key| same_name(name, key))) else { continue };
        if let Ok(list @ Value::Array(_)) = serde_json::from_str(text) {
            *value = list;
        }
    }
}

/// Columns that make a row more than its texts, where they are not empty.
const MORE_THAN_TEXT: [&str; 6] = ["tools", "images", "image", "videos", "audios", "audio"];

/// The columns of a row that say something and that reading it in a form leaves out.
pub(super) fn unread<'r>(
    row: &'r Map<String, Value>,
    form: Format,
    reading: &Reading<'_>,
) -> impl Iterator<Item = &'r String> {
    let fields = reading.fields;
    let (question, answer) = match (form, fields.layout) {
        (Format::Alpaca, RowLayout::Columns | RowLayout::Messages) => ("input", "output"),
        _ => (fields.question.as_str(), fields.answer.as_str()),
    };
    let mut read = vec![fields.id.as_str(), &fields.cluster, &fields.options, "metrics", "system"];
    read.extend(MORE_THAN_TEXT);
    let own = match form {
        Format::Auto | Format::Columns => vec![question, answer, &fields.think, "history"],
        Format::Alpaca => vec![&fields.instruction, question, answer, &fields.think, "history"],
        Format::Messages | Format::Sharegpt => [fields.messages.as_str()].into_iter().chain(CHATS).collect(),
        Format::PromptCompletion => vec!["prompt", "completion", "label", &fields.think],
        Format::Preference => vec!["prompt", "chosen", "rejected", &fields.think],
        Format::Text => vec!["text"],
    };
    read.extend(own);
    if !matches!(form, Format::Messages | Format::Sharegpt) {
        read.extend(message::REASONING);
    }
    // An instruction that repeats the question is no loss.
    let repeated = move |name: &str, value: &Value| {
        same_name(name, &fields.instruction) && row.get(question).is_some_and(|asked| asked == value)
    };
    row.iter()
        .filter(move |(name, value)| {
            !message::is_empty(value) && !read.iter().any(|key| same_name(name, key)) && !repeated(name, value)
        })
        .map(|(name, _)| name)
}

/// What a row says.
#[derive(Default)]
pub(super) struct Body {
    pub(super) instruction: Option<String>,
    pub(super) history: Vec<Message>,
    /// Turns of the history that are trained on.
    pub(super) trained: Vec<usize>,
    pub(super) question: String,
    pub(super) question_keys: Map<String, Value>,
    pub(super) think: String,
    pub(super) answer: String,
    pub(super) answer_keys: Map<String, Value>,
    /// An earlier turn asks to be trained on and is not.
    pub(super) earlier_weight: bool,
}

fn columns(row: &Map<String, Value>, reading: &Reading<'_>) -> Result<Body, String> {
    let fields = reading.fields;
    let (instruction, question) = (optional(row, &fields.instruction)?, required(row, &fields.question)?);
    let think = think(row, fields)?;
    let (think, answer) = part_reasoning(think, required(row, &fields.answer)?, &fields.answer, reading.tags)?;
    let mut before: Vec<Message> = system(row)?.into_iter().collect();
    for pair in history(row)? {
        before.extend(["user", "assistant"].into_iter().zip(pair).map(|(role, text)| Message::new(role, text)));
    }
    Ok(Body { instruction, history: before, question, think, answer, ..Body::default() })
}

/// The keys are Alpaca's, unless the layout of the fields names them.
fn alpaca(row: &Map<String, Value>, reading: &Reading<'_>) -> Result<Body, String> {
    let fields = reading.fields;
    let (input, output) = match fields.layout {
        RowLayout::Alpaca => (fields.question.as_str(), fields.answer.as_str()),
        _ => ("input", "output"),
    };
    let instruction = required(row, &fields.instruction)?;
    let question = match optional(row, input)?.filter(|input| !input.trim().is_empty()) {
        Some(input) => format!("{instruction}\n{input}"),
        None => instruction,
    };
    let output_text = required(row, output)?;
    let mut turns: Vec<Turn> = system(row)?.into_iter().map(Turn::plain).collect();
    for (i, pair) in history(row)?.into_iter().enumerate() {
        for (role, text) in ["user", "assistant"].into_iter().zip(pair) {
            if text.trim().is_empty() {
                return Err(format!("a text of pair {} of \"history\" is empty", i + 1));
            }
            turns.push(Turn::plain(Message::new(role, text)));
        }
    }
    turns.push(Turn::plain(Message::new("user", question)));
    let answer = Message { reasoning_content: think(row, fields)?, ..Message::new("assistant", output_text) };
    turns.push(Turn::plain(answer));
    chats::conversation(turns, output, reading)
}

/// The pairs of question and answer before an Alpaca row's own.
fn history(row: &Map<String, Value>) -> Result<Vec<[String; 2]>, String> {
    let wrong = || "\"history\" must be a list of [question, answer] pairs".to_string();
    let pairs = match value(row, "history")? {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(Vec::new()),
        Some(Value::Array(pairs)) => pairs,
        Some(_) => return Err(wrong()),
    };
    pairs
        .iter()
        .map(|pair| match pair.as_array().map(Vec::as_slice) {
            Some([Value::String(asked), Value::String(answered)]) => Ok([asked.clone(), answered.clone()]),
            _ => Err(wrong()),
        })
        .collect()
}

/// The system turn that a row has beside its texts, if it has one.
fn system(row: &Map<String, Value>) -> Result<Option<Message>, String> {
    let text = optional(row, "system")?.filter(|text| !text.trim().is_empty());
    Ok(text.map(|text| Message::new("system", text)))
}

/// The reasoning that has a column of its own: the fields', else under a usual name.
fn think(row: &Map<String, Value>, fields: &Fields) -> Result<Option<String>, String> {
    for key in [fields.think.as_str()].into_iter().chain(message::REASONING) {
        if let Some(text) = optional(row, key)?.filter(|text| !text.trim().is_empty()) {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// Reasoning and answer of a row: the reasoning that has a key of its own, else what stands in tags
/// in the text. The same tags part what a model writes, so that equal texts are equal on both
/// sides.
fn part_reasoning(
    think: Option<String>,
    text: String,
    key: &str,
    tags: &ThinkTags,
) -> Result<(String, String), String> {
    if let Some(think) = think.filter(|think| !think.trim().is_empty()) {
        return Ok((think, text));
    }
    let Cut { state, before, think, answer } = tags.cut(&text);
    match state {
        ThinkState::None => return Ok((String::new(), text)),
        ThinkState::Unclosed => {
            return Err(format!("{key:?} opens its reasoning and never closes it, so that it has no answer"));
        }
        ThinkState::Closed | ThinkState::CloseOnly => {}
    }
    let (think, answer) = (text[think].trim_matches('\n').to_string(), text[answer].trim_start().to_string());
    if answer.is_empty() {
        return Err(format!("{key:?} has reasoning but no answer"));
    }
    if !text[before].trim().is_empty() {
        return Err(format!("{key:?} has text before its reasoning, which is neither reasoning nor answer"));
    }
    Ok((think, answer))
}

fn required(row: &Map<String, Value>, key: &str) -> Result<String, String> {
    match optional(row, key)? {
        None => Err(format!("{key:?} is missing")),
        Some(text) if text.trim().is_empty() => Err(format!("{key:?} is empty")),
        Some(text) => Ok(text),
    }
}

fn optional(row: &Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match value(row, key)? {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(format!("{key:?} must be a string, found {}", kind(other))),
    }
}

/// The options, if the row has any.
pub(super) fn options(row: &Map<String, Value>, key: &str) -> Result<Option<Vec<String>>, String> {
    let text = |name: String, value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("option {name} of {key:?} must be a string, found {}", kind(other))),
    };
    match value(row, key)? {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => {
            list.iter().enumerate().map(|(i, v)| text((i + 1).to_string(), v)).collect::<Result<_, _>>().map(Some)
        }
        Some(Value::Object(by_label)) => {
            let mut sorted: Vec<(&String, &Value)> = by_label.iter().collect();
            sorted.sort_by_key(|(label, _)| label.as_str());
            for (i, (found, _)) in sorted.iter().enumerate() {
                let expected = choice::label(i);
                if i >= choice::MOST || **found != expected.to_string() {
                    return Err(format!("{key:?} must have the labels A, B, ... without a gap, found {found:?}"));
                }
            }
            sorted.into_iter().map(|(label, v)| text(label.clone(), v)).collect::<Result<_, _>>().map(Some)
        }
        Some(other) => Err(format!("{key:?} must be a list or an object of strings, found {}", kind(other))),
    }
}

pub(super) fn label(row: &Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match value(row, key)? {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => Err(format!("{key:?} is empty")),
        Some(Value::String(text)) if text.len() > MOST_LABEL => {
            Err(format!("{key:?} has {} bytes, more than {MOST_LABEL}", text.len()))
        }
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(n)) if !n.is_f64() => Ok(Some(n.to_string())),
        // pandas makes whole numbers floats where one of them is missing.
        Some(Value::Number(n)) if n.as_f64().is_some_and(|n| n.fract() == 0.0 && n.abs() < MOST_WHOLE) => {
            // Zero is added, so -0 is "0".
            Ok(n.as_f64().map(|n| format!("{:.0}", n + 0.0)))
        }
        Some(other) => Err(format!("{key:?} must be a string or an integer, found {}", kind(other))),
    }
}
