//! JSON that crosses the boundary beside the types of this crate, and how bytes from the other side
//! are read: with suspicion.

use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Status;
use crate::{BackendError, BackendErrorKind, Capability, Descriptor, Dtype, SessionInfo};

/// What `open` answers.
#[derive(Serialize, Deserialize)]
pub(super) struct OpenReply {
    pub(super) info: SessionInfo,
    pub(super) evaluator: bool,
    pub(super) trainer: bool,
}

/// What `adapt` takes.
#[derive(Serialize, Deserialize)]
pub(super) struct AdaptRequest {
    pub(super) adapter: Option<PathBuf>,
}

fn cpu() -> String {
    "cpu".into()
}

/// What `provide` is asked.
#[derive(Serialize, Deserialize)]
pub(super) struct Provide {
    pub(super) fix: bool,
    #[serde(default = "cpu")]
    pub(super) device: String,
}

/// What `measure` is asked.
#[derive(Serialize, Deserialize)]
pub(super) struct Measure {
    pub(super) device: String,
}

/// An error; its kind is the status, and for an error `usage`.
#[derive(Serialize, Deserialize)]
struct WireError {
    message: String,
    #[serde(default)]
    causes: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    usage: bool,
}

pub(super) fn encode<T: Serialize>(what: &str, value: &T) -> Result<Vec<u8>, BackendError> {
    serde_json::to_vec(value).map_err(|e| BackendError::failed(format!("{what} cannot be written as JSON")).because(&e))
}

pub(super) fn decode<T: DeserializeOwned>(what: &str, json: &[u8]) -> Result<T, BackendError> {
    serde_json::from_slice(json)
        .map_err(|e| BackendError::failed(format!("{what} is not what it should be: `{}`", excerpt(json))).because(&e))
}

/// A newer plugin may name capabilities and types that this host has never heard of; it will not
/// use them.
pub(super) fn decode_descriptor(json: &[u8]) -> Result<Descriptor, BackendError> {
    const WHAT: &str = "the plugin's description of itself";
    let mut value: Value = decode(WHAT, json)?;
    retain_known::<Capability>(&mut value, "capabilities");
    retain_known::<Dtype>(&mut value, "dtypes");
    serde_json::from_value(value)
        .map_err(|e| BackendError::failed(format!("{WHAT} is not what it should be: `{}`", excerpt(json))).because(&e))
}

fn retain_known<T: DeserializeOwned>(value: &mut Value, key: &str) {
    if let Some(Value::Array(list)) = value.get_mut(key) {
        list.retain(|name| !name.is_string() || T::deserialize(name).is_ok());
    }
}

pub(super) fn encode_error(error: &BackendError) -> (Status, Vec<u8>) {
    let status = match error.kind {
        BackendErrorKind::Failed | BackendErrorKind::Usage => Status::Error,
        BackendErrorKind::Cancelled => Status::Cancelled,
        BackendErrorKind::Panicked => Status::Panicked,
        BackendErrorKind::Unsupported => Status::Unsupported,
    };
    let usage = error.kind == BackendErrorKind::Usage;
    let wire = WireError { message: error.message.clone(), causes: error.causes.clone(), usage };
    // Strings always are JSON; were it otherwise, an empty text would still carry the status.
    (status, serde_json::to_vec(&wire).unwrap_or_default())
}

/// The error of kind `kind` (that of its status) that `json` describes, or as much of it as can be
/// read.
pub(super) fn decode_error(kind: BackendErrorKind, json: &[u8]) -> BackendError {
    let text = String::from_utf8_lossy(json);
    match serde_json::from_str::<WireError>(&text) {
        Ok(WireError { message, causes, usage }) => {
            let usage = usage && kind == BackendErrorKind::Failed;
            BackendError { kind: if usage { BackendErrorKind::Usage } else { kind }, message, causes }
        }
        Err(_) if json.is_empty() => BackendError::new(kind, "the plugin gave no reason"),
        Err(_) => BackendError::new(kind, format!("the plugin gave a reason that cannot be read: `{}`", excerpt(json))),
    }
}

/// The start of `bytes` as text on one line, for an error message.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    const MOST: usize = 120;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MOST)]);
    let mut short: String = text.chars().take(MOST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(MOST).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_of_the_future_is_left_out() {
        let json = br#"{"name":"x","version":"9","capabilities":["score","dream"],"devices":[],"dtypes":["f4","f32"],
            "model_families":[],"moods":["good"]}"#;
        let descriptor = decode_descriptor(json).unwrap();
        assert_eq!(descriptor.capabilities, [Capability::Score]);
        assert_eq!(descriptor.dtypes, [Dtype::F32]);
    }

    #[test]
    fn an_error_keeps_its_kind_message_and_causes() {
        use BackendErrorKind::{Cancelled, Failed, Panicked, Unsupported, Usage};
        let all = [(Failed, 1), (Cancelled, 2), (Panicked, 3), (Unsupported, 4), (Usage, 1)];
        for (kind, code) in all {
            let causes = vec!["老".into(), "b".into()];
            let error = BackendError { kind, message: "no \"bf16\" here".into(), causes };
            let (status, json) = encode_error(&error);
            assert_eq!(status as i32, code);
            let of_status = if kind == Usage { Failed } else { kind };
            assert_eq!(decode_error(of_status, &json), error);
        }
        // Only a failure can be the caller's.
        let json = br#"{"message": "m", "usage": true}"#;
        assert_eq!(decode_error(Panicked, json).kind, Panicked);
    }

    #[test]
    fn an_error_that_is_not_utf8_is_still_told() {
        let error = decode_error(BackendErrorKind::Failed, b"{\"message\":\"bad \xff\xfe bytes\"}");
        assert_eq!(error.message, "bad \u{fffd}\u{fffd} bytes");
        let error = decode_error(BackendErrorKind::Failed, b"\xffout of luck\n");
        assert!(error.message.contains("out of luck"), "{error}");
    }

    #[test]
    fn an_excerpt_is_short_and_on_one_line() {
        let text = excerpt("é\n".repeat(5000).as_bytes());
        assert!(text.chars().count() <= 121 && !text.contains('\n'), "{text}");
    }
}
