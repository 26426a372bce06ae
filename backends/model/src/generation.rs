//! `generation_config.json`: the settings for generation that a checkpoint brings along.

use std::path::Path;

use karat_backend::BackendError;
use karat_system::fsio::regular;
use serde_json::Value;

use crate::config::LARGEST_FILE;
use crate::keys::Keys;

/// The file's name.
const FILE: &str = "generation_config.json";

/// The tokens that end a text by the `generation_config.json` in `folder`: chat models end their
/// turns with more tokens than `config.json` says. None where there is no such file, or it names
/// none.
///
/// # Errors
/// A file that cannot be read, is no JSON object, or whose `eos_token_id` is not the id of a token
/// or a list of them.
pub fn end_tokens(folder: &Path) -> Result<Option<Vec<u32>>, BackendError> {
    let path = folder.join(FILE);
    let at = |what: &str| BackendError::failed(format!("{}: {what}", path.display()));
    let length = match std::fs::metadata(&path) {
        Ok(meta) => meta.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(at("could not read it").because(&e)),
    };
    if length > LARGEST_FILE {
        return Err(at(&format!("not a configuration: it has {length} bytes")));
    }
    let text = regular(&path).and_then(|()| std::fs::read(&path)).map_err(|e| at("could not read it").because(&e))?;
    let config: Value = serde_json::from_slice(&text).map_err(|e| at("not JSON").because(&e))?;
    let config = config.as_object().ok_or_else(|| at("not a JSON object"))?;
    let ids = Keys(config).ids("eos_token_id").map_err(|e| at(&e.message))?;
    Ok(ids.filter(|ids| !ids.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_special_tokens_are_ids_or_refused_by_file_and_key() {
        let folder = tempfile::tempdir().unwrap();
        let of = |text: &str| {
            std::fs::write(folder.path().join(FILE), text).unwrap();
            end_tokens(folder.path())
        };
        assert_eq!(end_tokens(folder.path()), Ok(None));
        assert_eq!(of(r#"{"eos_token_id": 7}"#), Ok(Some(vec![7])));
        assert_eq!(of(r#"{"eos_token_id": [7, 9]}"#), Ok(Some(vec![7, 9])));
        for none in [r#"{"eos_token_id": []}"#, r#"{"eos_token_id": null}"#, "{}"] {
            assert_eq!(of(none), Ok(None), "{none}");
        }
        for wrong in ["\"3\"", "3.0", "true", "-1", "{}", "[3, \"5\"]", "[7, null]", "[[3]]", "4294967296", "1e30"] {
            let error = of(&format!("{{\"eos_token_id\": {wrong}}}")).unwrap_err().message;
            assert!(error.contains(FILE) && error.contains("eos_token_id"), "{wrong}: {error}");
        }
        for whole in ["null", "[]", "3"] {
            let error = of(whole).unwrap_err().message;
            assert!(error.contains(FILE) && error.contains("not a JSON object"), "{whole}: {error}");
        }
        for broken in ["", "{", "\u{fffd}"] {
            let error = of(broken).unwrap_err().message;
            assert!(error.contains(FILE) && error.contains("not JSON"), "{broken}: {error}");
        }
    }
}
