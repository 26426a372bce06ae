//! Errors in a TOML file: with line, column and the line itself.

use std::path::Path;

use crate::error::Error;

/// A TOML error with the line and column of its span and the line itself.
pub(super) fn toml_error(error: &toml::de::Error, text: &str, path: &Path) -> Error {
    let what = Error::usage(error.message().trim().replace('\n', " "));
    match error.span() {
        Some(span) => at_span(what, span.start, text, path),
        None => what.at(path.display()),
    }
}

/// An error at byte `start` of a file's text: with line and column, and the line itself.
pub(super) fn at_span(error: Error, start: usize, text: &str, path: &Path) -> Error {
    let before = &text[..start.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
    let source = text.lines().nth(line - 1).unwrap_or_default().trim_end();
    error.with_lines([format!("    {source}")]).at(format!("{}:{line}:{column}", path.display()))
}
