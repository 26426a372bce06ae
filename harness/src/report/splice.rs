//! Generated text inside documents: README tables that cannot go stale.
//!
//! A document marks where a generated block stands:
//!
//! ```text
//! <!-- karat:begin medical-r1 -->
//! (whatever stands here is replaced)
//! <!-- karat:end medical-r1 -->
//! ```
//!
//! [`splice`] is the one function that fills it. [`SpliceMode::Write`] rewrites the file,
//! [`SpliceMode::Check`] fails where that would change it and names the command that mends it; a
//! test runs the latter.

use std::path::Path;

use crate::error::{Error, Result};
use crate::fsio;

/// What [`file()`] does with a block that is not current.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpliceMode {
    /// Writes it.
    Write,
    /// Fails.
    Check,
}

/// Brings the block `id` of the document at `path` to `content`; says whether the file was changed.
/// `command` is what a failed check tells the reader to run.
///
/// # Errors
/// A document that cannot be read or written, lacks the markers, or (checking) is not current.
pub fn file(path: &Path, id: &str, content: &str, mode: SpliceMode, command: &str) -> Result<bool> {
    let old = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let new = splice(&old, id, content).map_err(|e| e.at(path.display()))?;
    if old == new {
        return Ok(false);
    }
    match mode {
        SpliceMode::Write => fsio::write_atomic(path, new.as_bytes()).map(|()| true),
        SpliceMode::Check => {
            let line = 1 + old.lines().zip(new.lines()).take_while(|(a, b)| a == b).count();
            Err(Error::data(format!("the block `{id}` is not current"))
                .at(format!("{}:{line}", path.display()))
                .help(format!("run `{command}` and commit the result")))
        }
    }
}

/// `document` with the block `id` filled with `content`; everything else is kept byte for byte.
///
/// # Errors
/// If the begin or the end marker is missing, stands twice, or they stand in the wrong order; if
/// `content` itself contains a marker.
pub fn splice(document: &str, id: &str, content: &str) -> Result<String> {
    let begin = format!("<!-- karat:begin {id} -->");
    let end = format!("<!-- karat:end {id} -->");
    if content.contains(&begin) || content.contains(&end) {
        return Err(Error::data(format!("the text for the block `{id}` contains the block's own marker")));
    }
    let start = once(document, &begin)? + begin.len();
    let stop = once(document, &end)?;
    if stop < start {
        return Err(Error::data(format!("`{end}` stands before `{begin}`")).help("put the begin marker first"));
    }
    // The document keeps its own line breaks.
    let (newline, content) = if document.contains("\r\n") {
        ("\r\n", content.trim_end().replace("\r\n", "\n").replace('\n', "\r\n"))
    } else {
        ("\n", content.trim_end().to_string())
    };
    Ok([&document[..start], newline, &content, newline, &document[stop..]].concat())
}

fn once(document: &str, marker: &str) -> Result<usize> {
    let mut places = document.match_indices(marker);
    match (places.next(), places.next()) {
        (Some((at, _)), None) => Ok(at),
        (None, _) => Err(Error::data(format!("there is no `{marker}`"))
            .help(format!("add the line `{marker}` (and its counterpart) where the block belongs"))),
        (Some(_), Some((second, _))) => {
            let line = 1 + document[..second].matches('\n').count();
            Err(Error::data(format!("`{marker}` stands twice, again on line {line}")).help("remove one of them"))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "# T\n<!-- karat:begin a -->\nold\n<!-- karat:end a -->\nrest\n";

    #[test]
    fn only_the_block_changes_and_twice_is_once() {
        let once = splice(DOCUMENT, "a", "| new |\n").unwrap();
        assert_eq!(once, "# T\n<!-- karat:begin a -->\n| new |\n<!-- karat:end a -->\nrest\n");
        assert_eq!(splice(&once, "a", "| new |\n").unwrap(), once);
    }

    #[test]
    fn a_document_keeps_its_line_breaks() {
        let dos = DOCUMENT.replace('\n', "\r\n");
        let new = splice(&dos, "a", "x\ny\n").unwrap();
        assert!(new.contains("-->\r\nx\r\ny\r\n<!--"), "{new:?}");
        assert_eq!(new.matches('\n').count(), new.matches("\r\n").count());
    }

    #[test]
    fn broken_markers_are_errors_that_say_which() {
        let no_end = DOCUMENT.replace("karat:end a", "karat:end b");
        for (document, says) in [
            ("nothing", "karat:begin a"),
            (no_end.as_str(), "karat:end a"),
            (&DOCUMENT.repeat(2), "again on line 7"),
            ("<!-- karat:end a -->\n<!-- karat:begin a -->", "stands before"),
        ] {
            let error = splice(document, "a", "x").unwrap_err().to_string();
            assert!(error.contains(says), "{error} should say {says}");
        }
        assert!(splice(DOCUMENT, "a", "<!-- karat:end a -->").is_err());
    }

    #[test]
    fn a_stale_block_fails_the_check_with_the_command_to_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("README.md");
        std::fs::write(&path, DOCUMENT).unwrap();
        let command = "cargo karat report --splice README.md";
        let error = file(&path, "a", "new", SpliceMode::Check, command).unwrap_err();
        assert!(error.help_text().unwrap().contains(command));
        assert!(error.place().unwrap().ends_with("README.md:3"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), DOCUMENT);
        assert!(file(&path, "a", "new", SpliceMode::Write, command).unwrap());
        assert!(!file(&path, "a", "new", SpliceMode::Check, command).unwrap());
    }
}
