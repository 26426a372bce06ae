//! Chats: the turns of a row in the order in which they were said, the last of which answers.

use serde_json::{Map, Value};

use super::{Body, part_reasoning, system};
use crate::data::examples::TrainOn;
use crate::data::fields::{Reading, value};
use crate::data::format::CHATS;
use crate::data::message::{self, Message, kind};

/// A turn, and what is said of training on it.
pub(super) struct Turn {
    pub(super) message: Message,
    /// OpenAI's `weight`, where it is given.
    pub(super) weight: Option<bool>,
    /// It is part of what is asked, whoever said it.
    pub(super) asked: bool,
}

impl Turn {
    pub(super) fn plain(message: Message) -> Self {
        Turn { message, weight: None, asked: false }
    }
}

/// A list of turns with `role` and `content`.
pub(super) fn messages(row: &Map<String, Value>, reading: &Reading<'_>) -> Result<Body, String> {
    let (key, turns) = list(row, reading)?;
    let turns = turns_of(turns)?;
    no_second_system(row, &turns)?;
    let given = if turns.first().is_some_and(|turn| turn.message.role == "system") { None } else { system(row)? };
    let turns: Vec<Turn> = given.into_iter().map(Turn::plain).chain(turns).collect();
    if turns.iter().all(|turn| turn.message.role == "system") {
        return Err(format!("{key:?} has no question and answer"));
    }
    conversation(turns, "content", reading)
}

/// A list of turns with `from` and `value`.
pub(super) fn sharegpt(row: &Map<String, Value>, reading: &Reading<'_>) -> Result<Body, String> {
    let (key, list) = list(row, reading)?;
    let mut turns = Vec::with_capacity(list.len());
    for (i, turn) in list.iter().enumerate() {
        let place = |reason: String| format!("turn {}: {reason}", i + 1);
        let turn = turn.as_object().ok_or_else(|| place(format!("expected an object, found {}", kind(turn))))?;
        let text = |key: &str| match value(turn, key).map_err(place)? {
            Some(Value::String(text)) => Ok(text.as_str()),
            Some(other) => Err(place(format!("{key:?} must be a string, found {}", kind(other)))),
            None => Err(place(format!("{key:?} is missing"))),
        };
        let (from, said) = (text("from")?, text("value")?);
        let role = match from.to_ascii_lowercase().as_str() {
            "human" | "user" => "user",
            "gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model" | "bot" => "assistant",
            "system" => "system",
            "function_call" | "observation" | "function" | "tool" | "tool_call" | "tool_response" => {
                return Err(place(format!("{from:?} is a call of a tool or its answer, which is not read")));
            }
            _ => return Err(place(format!("{from:?} is nobody who is known here: human, gpt or system"))),
        };
        if said.trim().is_empty() {
            if role == "system" {
                continue;
            }
            return Err(place("\"value\" is empty".into()));
        }
        let mut message = Message::new(role, said);
        message.reasoning_content = reasoning(turn).map_err(place)?;
        let weight = weight(turn).map_err(place)?;
        turns.push(Turn { message, weight, asked: false });
    }
    no_second_system(row, &turns)?;
    let given = if turns.first().is_some_and(|turn| turn.message.role == "system") { None } else { system(row)? };
    let turns: Vec<Turn> = given.into_iter().map(Turn::plain).chain(turns).collect();
    if turns.iter().all(|turn| turn.message.role == "system") {
        return Err(format!("{key:?} has no question and answer"));
    }
    conversation(turns, "value", reading)
}

/// The reasoning that a turn has under a key of its own.
fn reasoning(turn: &Map<String, Value>) -> Result<Option<String>, String> {
    for key in message::REASONING {
        match value(turn, key)? {
            None => {}
            Some(Value::String(text)) if text.trim().is_empty() => {}
            Some(Value::String(text)) => return Ok(Some(text.clone())),
            Some(other) => return Err(format!("{key:?} must be a string, found {}", kind(other))),
        }
    }
    Ok(None)
}

/// A system turn beside the list and another within it leave open which counts.
fn no_second_system(row: &Map<String, Value>, turns: &[Turn]) -> Result<(), String> {
    let within = turns.first().filter(|turn| turn.message.role == "system").map(|turn| turn.message.content.trim());
    match (within, system(row)?) {
        (Some(within), Some(beside)) if within != beside.content.trim() => {
            Err("\"system\" and the first turn are two different system turns".into())
        }
        _ => Ok(()),
    }
}

/// The list of turns of a row, and its key.
fn list<'r>(row: &'r Map<String, Value>, reading: &Reading<'_>) -> Result<(&'r str, &'r [Value]), String> {
    let own = reading.fields.messages.as_str();
    for key in [own].into_iter().chain(CHATS) {
        match value(row, key)? {
            Some(Value::Array(turns)) => {
                let name = row.keys().find(|name| name.eq_ignore_ascii_case(key)).map_or("messages", String::as_str);
                return Ok((name, turns));
            }
            Some(other) => return Err(format!("{key:?} must be a list, found {}", kind(other))),
            None => {}
        }
    }
    Err(format!("{own:?} is missing"))
}

/// The turns of a list of messages.
pub(super) fn turns_of(list: &[Value]) -> Result<Vec<Turn>, String> {
    let mut turns = Vec::with_capacity(list.len());
    for (i, turn) in list.iter().enumerate() {
        let place = |reason: String| format!("message {}: {reason}", i + 1);
        let turn = turn.as_object().ok_or_else(|| place(format!("expected an object, found {}", kind(turn))))?;
        let blank = |value: &Value| value.is_null() || value.as_str().is_some_and(|text| text.trim().is_empty());
        // An empty system turn is no turn: exporters write one where there was none.
        if turn.get("role").and_then(Value::as_str) == Some("system") && turn.get("content").is_none_or(blank) {
            continue;
        }
        let mut message = Message::try_from(turn.clone()).map_err(place)?;
        // OpenAI's newer name of the system turn, which templates do not know.
        if message.role == "developer" {
            message.role = "system".into();
        }
        let weight = weight(&message.keys).map_err(place)?;
        if message.content.trim().is_empty() {
            return Err(place("\"content\" is empty".into()));
        }
        turns.push(Turn { message, weight, asked: false });
    }
    Ok(turns)
}

/// Whether a turn is to be trained on, where it says so: OpenAI's `weight`, 0 or 1, and axolotl's
/// `train` or `training`. Null is not said: tables have it where other rows say something.
fn weight(keys: &Map<String, Value>) -> Result<Option<bool>, String> {
    let mut said = None;
    for key in ["weight", "train", "training"] {
        said = match keys.get(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Bool(wanted)) if key != "weight" => Some(*wanted),
            Some(Value::Number(weight)) if [Some(0.0), Some(1.0)].contains(&weight.as_f64()) => {
                Some(weight.as_f64() == Some(1.0))
            }
            Some(other) if key == "weight" => return Err(format!("{key:?} must be 0 or 1, found {other}")),
            Some(other) => return Err(format!("{key:?} must be true or false, found {other}")),
        };
    }
    Ok(said)
}

/// A row of turns: an optional system turn, then user and assistant in turn, an assistant last, whose
/// text was under `key`.
pub(super) fn conversation(turns: Vec<Turn>, key: &str, reading: &Reading<'_>) -> Result<Body, String> {
    let mut turns = turns.into_iter().peekable();
    let system = turns.next_if(|turn| turn.message.role == "system").map(|turn| turn.message);
    let mut turns: Vec<Turn> = turns.collect();
    for (i, turn) in turns.iter().enumerate() {
        let (role, expected) = (&turn.message.role, if i % 2 == 0 { "user" } else { "assistant" });
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
    let all = reading.train_on == TrainOn::All;
    let wanted = |turn: &Turn| turn.message.role == "assistant" && !turn.asked && turn.weight != Some(false);
    // What follows the last turn that is trained on has no part in its loss.
    if all && let Some(last) = turns.iter().rposition(wanted) {
        turns.truncate(last + 1);
    }
    let (Some(answer), Some(question)) = (turns.pop(), turns.pop()) else {
        return Err("the row has no question and answer".into());
    };
    if answer.weight == Some(false) {
        return Err(match all {
            true => "\"weight\" 0 of every message leaves nothing to train on".into(),
            false => "\"weight\" 0 of the last message leaves nothing to train on".into(),
        });
    }
    let offset = usize::from(system.is_some());
    let earlier = |of: &dyn Fn(&Turn) -> bool| -> Vec<usize> {
        turns.iter().enumerate().filter(|(_, turn)| of(turn)).map(|(at, _)| at + offset).collect()
    };
    let trained = if all { earlier(&wanted) } else { Vec::new() };
    let earlier_weight = !all && !earlier(&|turn| wanted(turn) && turn.weight == Some(true)).is_empty();
    let Message { content, reasoning_content, keys: answer_keys, .. } = answer.message;
    let (think, answer) = part_reasoning(reasoning_content, content, key, reading.tags)?;
    Ok(Body {
        instruction: None,
        history: system.into_iter().chain(turns.into_iter().map(|turn| turn.message)).collect(),
        trained,
        question: question.message.content,
        question_keys: question.message.keys,
        think,
        answer,
        answer_keys,
        earlier_weight,
    })
}
