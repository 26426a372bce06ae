//! Row layouts: question, reasoning and answer, and the turns before them, in each.

use serde_json::{Map, Value};

use super::fields::{Reading, RowLayout};
use super::message::{Message, kind};
use crate::eval::choice;
use crate::eval::think::{Cut, ThinkState, ThinkTags};

/// Longest id and cluster, in bytes: they name files, rows of tables and lines of logs.
const MOST_LABEL: usize = 1024;

/// What the row says, or why it is none.
pub(super) fn read(row: &Map<String, Value>, reading: &Reading<'_>) -> Result<Body, String> {
    match reading.fields.layout {
        RowLayout::Columns => columns(row, reading),
        RowLayout::Alpaca => alpaca(row, reading),
        RowLayout::Messages => messages(row, reading),
    }
}

/// What a row says.
#[derive(Default)]
pub(super) struct Body {
    pub(super) instruction: Option<String>,
    pub(super) history: Vec<Message>,
    pub(super) question: String,
    pub(super) question_keys: Map<String, Value>,
    pub(super) think: String,
    pub(super) answer: String,
    pub(super) answer_keys: Map<String, Value>,
    /// An earlier turn asks to be trained on.
    pub(super) earlier_weight: bool,
}

fn columns(row: &Map<String, Value>, reading: &Reading<'_>) -> Result<Body, String> {
    let fields = reading.fields;
    let (instruction, question) = (optional(row, &fields.instruction)?, required(row, &fields.question)?);
    let think = optional(row, &fields.think)?;
    let (think, answer) = part_reasoning(think, required(row, &fields.answer)?, &fields.answer, reading.tags)?;
    Ok(Body { instruction, question, think, answer, ..Body::default() })
}

fn alpaca(row: &Map<String, Value>, reading: &Reading<'_>) -> Result<Body, String> {
    let fields = reading.fields;
    let instruction = required(row, &fields.instruction)?;
    let question = match optional(row, &fields.question)?.filter(|input| !input.trim().is_empty()) {
        Some(input) => format!("{instruction}\n{input}"),
        None => instruction,
    };
    let (think, answer) = part_reasoning(None, required(row, &fields.answer)?, &fields.answer, reading.tags)?;
    Ok(Body { question, think, answer, ..Body::default() })
}

fn messages(row: &Map<String, Value>, reading: &Reading<'_>) -> Result<Body, String> {
    let key = &reading.fields.messages;
    let turns = match row.get(key) {
        Some(Value::Array(turns)) => turns,
        Some(other) => return Err(format!("{key:?} must be a list, found {}", kind(other))),
        None => return Err(format!("{key:?} is missing")),
    };
    let mut parsed = Vec::with_capacity(turns.len());
    for (i, turn) in turns.iter().enumerate() {
        let place = |reason: String| format!("message {}: {reason}", i + 1);
        let turn = turn.as_object().ok_or_else(|| place(format!("expected an object, found {}", kind(turn))))?;
        let blank = |value: &Value| value.is_null() || value.as_str().is_some_and(|text| text.trim().is_empty());
        // An empty system turn is no turn: exporters write one where there was none.
        if turn.get("role").and_then(Value::as_str) == Some("system") && turn.get("content").is_none_or(blank) {
            continue;
        }
        let turn = Message::try_from(turn.clone()).map_err(place)?;
        let weight = weight(&turn.keys).map_err(place)?;
        if turn.content.trim().is_empty() {
            return Err(place("\"content\" is empty".into()));
        }
        parsed.push((turn, weight));
    }
    let mut parsed = parsed.into_iter().peekable();
    let system = parsed.next_if(|(turn, _)| turn.role == "system").map(|(turn, _)| turn);
    let mut turns: Vec<_> = parsed.collect();
    for (i, (turn, _)) in turns.iter().enumerate() {
        let (role, expected) = (&turn.role, if i % 2 == 0 { "user" } else { "assistant" });
        if role != expected {
            return Err(format!(
                "after the optional system message, message {} must be of {expected}, found {role}",
                i + 1
            ));
        }
    }
    if turns.len() % 2 == 1 {
        return Err("the last message must be of assistant".into());
    }
    let (Some((answer, answer_weight)), Some((question, _))) = (turns.pop(), turns.pop()) else {
        return Err(format!("{key:?} has no question and answer"));
    };
    if answer_weight == Some(false) {
        return Err("\"weight\" 0 of the last message leaves nothing to train on".into());
    }
    let earlier_weight = turns.iter().any(|(turn, weight)| turn.role == "assistant" && *weight == Some(true));
    let Message { content, reasoning_content, keys: answer_keys, .. } = answer;
    let (think, answer) = part_reasoning(reasoning_content, content, "content", reading.tags)?;
    Ok(Body {
        instruction: None,
        history: system.into_iter().chain(turns.into_iter().map(|(turn, _)| turn)).collect(),
        question: question.content,
        question_keys: question.keys,
        think,
        answer,
        answer_keys,
        earlier_weight,
    })
}

/// Whether a turn is to be trained on, where it says so: OpenAI's `weight`, 0 or 1.
fn weight(keys: &Map<String, Value>) -> Result<Option<bool>, String> {
    match keys.get("weight").map(|weight| (weight, weight.as_f64())) {
        None => Ok(None),
        Some((_, Some(weight))) if weight == 0.0 || weight == 1.0 => Ok(Some(weight != 0.0)),
        Some((other, _)) => Err(format!("\"weight\" must be 0 or 1, found {other}")),
    }
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
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
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
    match row.get(key) {
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
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => Err(format!("{key:?} is empty")),
        Some(Value::String(text)) if text.len() > MOST_LABEL => {
            Err(format!("{key:?} has {} bytes, more than {MOST_LABEL}", text.len()))
        }
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(n)) if !n.is_f64() => Ok(Some(n.to_string())),
        Some(other) => Err(format!("{key:?} must be a string or an integer, found {}", kind(other))),
    }
}
