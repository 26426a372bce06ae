//! A gate's verdicts as GitHub's workflow commands: `::error file=..,title=..::text`.

use std::fmt::Write;
use std::path::Path;

use super::{Check, Checks, text};
use crate::error::Error;
use crate::eval::stats::MarginVerdict;
use crate::report::escape::visible;

/// One line a verdict that is no pass: `::error` for a regression, `::warning` for what the items
/// cannot tell; then one `::notice` with the verdict of all. `file` is what the lines point at,
/// relative to the repository: the suite file, or else the baseline.
///
/// GitHub reads them from either output stream of a step.
pub fn annotations(checks: &Checks, suite: &str, file: &Path) -> String {
    let mut out = String::new();
    let file = file.to_string_lossy().replace('\\', "/");
    for check in &checks.checks {
        let level = match check.verdict {
            MarginVerdict::Pass => continue,
            MarginVerdict::Regress => "error",
            MarginVerdict::Inconclusive => "warning",
        };
        line(&mut out, level, &file, &title(check, suite), &text::sentence(check, checks.confidence));
    }
    line(&mut out, "notice", &file, &format!("{suite}: {}", text::word(checks.verdict)), &text::summary(checks));
    out
}

/// One `::error` for a gate that could not judge: reports of another question, no baseline, a
/// broken file.
pub fn refusal(error: &Error) -> String {
    let help = error.help_text().map_or(String::new(), |help| format!("\n{help}"));
    format!("::error title={}::{}", property("karat check: not judged"), data(&format!("{error}{help}")))
}

fn title(check: &Check, suite: &str) -> String {
    format!("{suite}: {} {} {}", check.model, check.metric, text::word(check.verdict))
}

fn line(out: &mut String, level: &str, file: &str, title: &str, message: &str) {
    let _ = writeln!(out, "::{level} file={},title={}::{}", property(file), property(title), data(message));
}

/// Text after the second `::`: a line break would end the command.
fn data(text: &str) -> String {
    visible(text).replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Text in a property, which commas and colons end.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_ends_the_command_or_a_property() {
        let mut out = String::new();
        line(&mut out, "error", "a:b,c.toml", "50 %: x", "one\r\ntwo: 5 %,");
        assert_eq!(out, "::error file=a%3Ab%2Cc.toml,title=50 %25%3A x::one%0D%0Atwo: 5 %25,\n");
    }

    #[test]
    fn an_annotation_holds_no_escape_sequence_of_the_data() {
        let said = refusal(&Error::data("the item \u{1b}[31mred\u{202e}\n::warning::x is gone"));
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(!said.contains(['\u{1b}', '\u{202e}']), "{said}");
    }
}
