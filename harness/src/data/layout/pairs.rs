//! Pairs of texts: a prompt and its completion, or a chosen and a rejected answer, each as one text or
//! as turns of a chat.

use serde_json::{Map, Value};

use super::chats::{Turn, conversation, turns_of};
use super::{Body, think};
use crate::data::fields::{Reading, value};
use crate::data::message::{Message, kind};

/// `prompt` and `completion`.
pub(super) fn completion(row: &Map<String, Value>, reading: &Reading<'_>) -> Result<Body, String> {
    if value(row, "label")?.is_some_and(judges) {
        return Err("\"label\" says whether the completion is a good one: such rows are not trained on; leave out the bad ones and \
                    the column"
            .into());
    }
    asked_and_answered(row, "completion", reading)
}

/// Whether a label says that a completion is good or bad: as JSON, a number or a spreadsheet has it.
fn judges(label: &Value) -> bool {
    match label {
        Value::Bool(_) => true,
        Value::Number(number) => [Some(0.0), Some(1.0)].contains(&number.as_f64()),
        Value::String(text) => matches!(text.trim().to_ascii_lowercase().as_str(), "true" | "false" | "0" | "1"),
        _ => false,
    }
}

/// `prompt`, which may be missing, and `chosen`, of which the reading wants the answer.
pub(super) fn preference(row: &Map<String, Value>, reading: &Reading<'_>) -> Result<Body, String> {
    if value(row, "prompt")?.is_some() {
        return asked_and_answered(row, "chosen", reading);
    }
    let turns = match value(row, "chosen")? {
        None => return Err("\"chosen\" is missing".into()),
        Some(Value::Array(list)) => turns_of(list)?,
        Some(_) => {
            return Err("\"prompt\" is missing, and \"chosen\" is one text: where its question ends is not said".into());
        }
    };
    // What both begin with is what was asked.
    let rejected = match value(row, "rejected")? {
        Some(Value::Array(list)) => turns_of(list)?,
        _ => Vec::new(),
    };
    let shared = turns.iter().zip(&rejected).take_while(|(a, b)| a.message == b.message).count();
    let turns = turns.into_iter().enumerate().map(|(at, turn)| Turn { asked: at < shared, ..turn });
    conversation(turns.collect(), "content", reading)
}

/// A prompt and what answers it under `key`.
fn asked_and_answered(row: &Map<String, Value>, key: &str, reading: &Reading<'_>) -> Result<Body, String> {
    let mut turns: Vec<Turn> = super::system(row)?.into_iter().map(Turn::plain).collect();
    let mut prompt = texts(row, "prompt", "user")?;
    let mut answer = texts(row, key, "assistant")?;
    if let ([turn], Some(Value::String(_))) = (&mut answer[..], value(row, key)?) {
        turn.message.reasoning_content = think(row, reading.fields)?;
    }
    // Some name the prompt and repeat it before the answer.
    let repeats = answer.len() > prompt.len()
        && prompt
            .iter()
            .zip(&answer)
            .all(|(a, b)| (&a.message.role, &a.message.content) == (&b.message.role, &b.message.content));
    if repeats {
        prompt.clear();
        let asked = answer.len() - 1;
        answer.iter_mut().take(asked).for_each(|turn| turn.asked = true);
    }
    turns.extend(prompt.into_iter().map(|turn| Turn { asked: true, ..turn }));
    turns.extend(answer);
    conversation(turns, key, reading)
}

/// What stands under `key`: turns, or one text that `role` says.
fn texts(row: &Map<String, Value>, key: &str, role: &str) -> Result<Vec<Turn>, String> {
    match value(row, key)? {
        None => Err(format!("{key:?} is missing")),
        Some(Value::String(text)) if text.trim().is_empty() => Err(format!("{key:?} is empty")),
        Some(Value::String(text)) => Ok(vec![Turn::plain(Message::new(role, text))]),
        Some(Value::Array(list)) if list.is_empty() => Err(format!("{key:?} is empty")),
        Some(Value::Array(list)) => turns_of(list).map_err(|reason| format!("{key:?}: {reason}")),
        Some(other) => Err(format!("{key:?} must be a string or a list of messages, found {}", kind(other))),
    }
}
