//! One turn of a chat as it stands in a file, and as a chat template is told it.
//!
//! transformers hands every key of a turn to the template (`apply_chat_template`): nulls are
//! dropped, the reasoning is told under the names that templates know
//! (`utils/chat_template_utils.py`, `_normalize_chat_messages` and `_alias_reasoning_fields`). The
//! same is done here, so that a turn's ids are transformers'; what Karat cannot train on (calls of
//! tools, images) is refused by name.

use minijinja::value::Serde;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One turn of a conversation. In JSON it is one object: role, content, reasoning and every other
/// key beside one another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// The text; of a list of texts, all of them joined.
    pub content: String,
    /// An assistant's reasoning, kept apart from its answer.
    pub reasoning_content: Option<String>,
    /// Every other key as it was given, for the template to read. A `content` here is the list of
    /// texts that `content` joins.
    pub keys: Map<String, Value>,
}

/// The names under which reasoning is given, the first that is there being taken.
pub(super) const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Keys of turns that are more than text.
const REFUSED: [&str; 10] =
    ["tool_calls", "tool_call_id", "function_call", "images", "image", "audio", "audios", "videos", "video", "refusal"];

impl Message {
    /// A message without reasoning.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into(), ..Message::default() }
    }

    /// The message with other keys as they were given.
    #[must_use]
    pub fn with_keys(mut self, keys: &Map<String, Value>) -> Self {
        self.keys.clone_from(keys);
        self
    }

    /// As templates are told it: transformers also tells the reasoning under the name `thinking`.
    pub(super) fn to_value(&self) -> minijinja::Value {
        let reasoning = self.reasoning_content.as_deref().map(minijinja::Value::from);
        let mut fields: Vec<(&str, minijinja::Value)> = Vec::with_capacity(4 + self.keys.len());
        fields.extend(reasoning.clone().filter(|_| !self.keys.contains_key("thinking")).map(|text| ("thinking", text)));
        fields.push(("role", self.role.as_str().into()));
        if !self.keys.contains_key("content") {
            fields.push(("content", self.content.as_str().into()));
        }
        fields.extend(self.keys.iter().map(|(key, value)| (key.as_str(), minijinja::Value::from(Serde(value)))));
        fields.extend(reasoning.map(|text| ("reasoning_content", text)));
        minijinja::Value::from_pairs(fields)
    }
}

impl TryFrom<Map<String, Value>> for Message {
    type Error = String;

    /// # Errors
    /// The key that is missing, of a wrong type, or more than text.
    fn try_from(turn: Map<String, Value>) -> Result<Self, String> {
        let mut message = Message::default();
        let (mut role, mut content) = (None, None);
        for (key, value) in turn.into_iter().filter(|(_, value)| !value.is_null()) {
            match key.as_str() {
                "role" => role = Some(text(&key, value)?),
                "content" => content = Some(read_content(value, &mut message.keys)?),
                name if REASONING.contains(&name) => {
                    // The template is told these under their own names as well.
                    let given = text(&key, value)?;
                    if name != REASONING[0] {
                        message.keys.insert(key, given.into());
                    } else {
                        message.reasoning_content = Some(given);
                    }
                }
                name if REFUSED.contains(&name) && !is_empty(&value) => {
                    return Err(format!("{name:?} is not read: a turn is text alone here"));
                }
                _ => {
                    message.keys.insert(key, value);
                }
            }
        }
        message.role = role.ok_or("\"role\" is missing")?;
        message.content = content.ok_or("\"content\" is missing")?;
        if message.reasoning_content.is_none() {
            let other = REASONING[1..].iter().find_map(|name| message.keys.get(*name)?.as_str());
            message.reasoning_content = other.map(String::from);
        }
        Ok(message)
    }
}

impl From<Message> for Map<String, Value> {
    fn from(message: Message) -> Self {
        let Message { role, content, reasoning_content, mut keys } = message;
        let content = keys.shift_remove("content").unwrap_or(Value::String(content));
        let mut turn = Map::from_iter([("role".to_string(), role.into()), ("content".to_string(), content)]);
        turn.extend(reasoning_content.map(|text| (REASONING[0].to_string(), text.into())));
        turn.extend(keys);
        turn
    }
}

/// A content: a text, or a list of texts, which is kept among `keys` beside what it joins to.
fn read_content(value: Value, keys: &mut Map<String, Value>) -> Result<String, String> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(format!("\"content\" must be a string or a list of texts, found {}", kind(&other))),
    };
    let mut joined = String::new();
    for (i, part) in parts.iter().enumerate() {
        let place = format!("part {} of \"content\"", i + 1);
        match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
            (Some("text"), Some(text)) => joined.push_str(text),
            (Some("text"), None) => return Err(format!("{place} has no \"text\"")),
            (Some(other), _) => return Err(format!("{place} is of type {other:?}: a turn is text alone here")),
            (None, _) => return Err(format!("{place} must be {{\"type\": \"text\", \"text\": ..}}")),
        }
    }
    keys.insert("content".into(), Value::Array(parts));
    Ok(joined)
}

fn text(key: &str, value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(format!("{key:?} must be a string, found {}", kind(&other))),
    }
}

pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        // Of a column that holds JSON as text.
        Value::String(text) => matches!(text.trim(), "" | "[]" | "{}" | "null"),
        _ => false,
    }
}

/// What a JSON value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
