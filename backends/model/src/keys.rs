//! Typed access to a JSON object: an error names the key, what it must be and what is there.

use karat_backend::BackendError;
use serde_json::{Map, Value};

/// Sizes are below this: products of them stay far from overflow, and no real model comes near.
const LARGEST: u64 = 1 << 28;

/// The keys of an object. `null` is a value that most keys refuse, as transformers 5 does;
/// [`Keys::some`] is for those that may be null.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a>(pub &'a Map<String, Value>);

/// The error of a value that a key cannot have.
pub(crate) fn wrong(key: &str, want: &str, got: &Value) -> BackendError {
    let mut got = got.to_string();
    if got.chars().count() > 80 {
        got = got.chars().take(79).chain(['…']).collect();
    }
    BackendError::failed(format!("\"{key}\" must be {want}, not {got}"))
}

/// The error of something that no backend computes.
pub(crate) fn unimplemented(what: impl std::fmt::Display) -> BackendError {
    BackendError::unsupported(format!("{what} is not implemented"))
}

impl<'a> Keys<'a> {
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key)
    }
    /// The value, where null is as good as nothing.
    pub(crate) fn some(&self, key: &str) -> Option<&'a Value> {
        self.get(key).filter(|value| !value.is_null())
    }
    fn typed<T>(
        &self,
        key: &str,
        want: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, BackendError> {
        self.get(key).map(|value| read(value).ok_or_else(|| wrong(key, want, value))).transpose()
    }
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, BackendError> {
        self.typed(key, "a string", Value::as_str)
    }
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, BackendError> {
        self.typed(key, "true or false", Value::as_bool)
    }
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, BackendError> {
        self.typed(key, "a number", |value| value.as_f64().filter(|x| x.is_finite()))
    }
    /// A number for which `holds`, described by `want`.
    pub(crate) fn number_that(
        &self,
        key: &str,
        want: &str,
        holds: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>, BackendError> {
        self.typed(key, want, |value| value.as_f64().filter(|x| x.is_finite() && holds(*x)))
    }
    /// A size, if it is given.
    pub(crate) fn optional_size(&self, key: &str) -> Result<Option<usize>, BackendError> {
        let want = format!("a whole number from 1 to {}", LARGEST - 1);
        self.typed(key, &want, |value| value.as_u64().filter(|n| (1..LARGEST).contains(n)).map(|n| n as usize))
    }
    /// A size that must be given.
    pub(crate) fn size(&self, key: &str) -> Result<usize, BackendError> {
        self.optional_size(key)?.ok_or_else(|| BackendError::failed(format!("\"{key}\" is missing")))
    }
    /// The id of a token; a negative one, which old configurations have, means none.
    pub(crate) fn id(&self, key: &str) -> Result<Option<u32>, BackendError> {
        let Some(value) = self.some(key) else { return Ok(None) };
        let id = value.as_i64().filter(|id| *id <= i64::from(u32::MAX));
        let id = id.ok_or_else(|| wrong(key, "the id of a token", value))?;
        Ok(u32::try_from(id).ok())
    }
    /// The ids of tokens, one or a list.
    pub(crate) fn ids(&self, key: &str) -> Result<Option<Vec<u32>>, BackendError> {
        let Some(value) = self.some(key) else { return Ok(None) };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value {
            Value::Array(list) => list.iter().map(id).collect::<Option<Vec<u32>>>(),
            one => id(one).map(|id| vec![id]),
        };
        ids.map(Some).ok_or_else(|| wrong(key, "the id of a token or a list of them", value))
    }
}
