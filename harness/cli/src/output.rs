//! Where text goes: data to standard output, words for people to standard error.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use karat::escape::{visible, visible_lines};
use karat::{Error, exit};
use serde_json::{Value, json};

/// The two streams and how much to say.
pub struct Output {
    json: bool,
    quiet: bool,
    /// Rows appear on the same terminal.
    rows: bool,
}

impl Output {
    /// `json`: one object on standard output. `quiet`: only errors on standard error.
    pub fn new(json: bool, quiet: bool) -> Self {
        Output { json, quiet, rows: false }
    }

    /// Whether one JSON object is wanted.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Whether standard error is a terminal that may show progress bars.
    pub fn interactive(&self) -> bool {
        !self.quiet && !self.rows && std::io::stderr().is_terminal()
    }

    /// The same, for one who draws beside others.
    #[cfg(feature = "hub")]
    pub fn among_others(&self) -> Output {
        Output { ..*self }
    }

    /// The same, where rows are printed as they come: no bars between them on one terminal.
    pub fn among_rows(&self) -> Output {
        Output { rows: !self.json && std::io::stdout().is_terminal(), ..*self }
    }

    /// A line for people. What it quotes of data stays in this line and moves no terminal.
    pub fn say(&self, line: impl AsRef<str>) {
        if !self.quiet {
            to_stderr(&shown(line.as_ref()));
        }
    }

    /// Data: one line, or a text with its own line ends.
    pub fn data(&self, text: &str) -> karat::Result<()> {
        let mut out = std::io::stdout().lock();
        let end = if text.ends_with('\n') { "" } else { "\n" };
        match write!(out, "{text}{end}").and_then(|()| out.flush()) {
            // A reader that has seen enough (`| head`) is no failure; the exit code still says what
            // came out.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            Err(e) => Err(Error::io("write", "standard output", e)),
            Ok(()) => Ok(()),
        }
    }

    /// One line of several, written whole. False once nobody reads any more (`| head`): the rest
    /// need not be made.
    pub fn row(&self, line: &Value) -> karat::Result<bool> {
        let mut out = std::io::stdout().lock();
        match out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush()) {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
            Err(e) => Err(Error::io("write", "standard output", e)),
            Ok(()) => Ok(true),
        }
    }

    /// The result: the object with `--json`, else the text.
    pub fn result(&self, object: &Value, text: &str) -> karat::Result<()> {
        if self.json { self.data(&format!("{object:#}")) } else { self.data(text) }
    }

    /// An error with its place, causes and remedy; with `--json` as an object on standard output
    /// too.
    pub fn error(&self, error: &Error) {
        if self.json {
            let what = std::iter::once(error.what()).chain(error.lines().iter().map(String::as_str));
            let what = what.collect::<Vec<_>>().join("\n");
            let object = json!({"error": {
                "exit_code": crate::signals::exit_code(error), "what": what, "where": error.place(),
                "causes": causes(error), "help": error.help_text(),
            }});
            // The error goes on to standard error, whether or not anyone reads this.
            let _ = self.data(&format!("{object:#}"));
        }
        tell(error);
    }
}

fn causes(error: &Error) -> Vec<String> {
    let first = std::error::Error::source(error);
    std::iter::successors(first, |cause| cause.source()).map(ToString::to_string).collect()
}

/// An error on standard error.
pub fn tell(error: &Error) {
    let style = |code: &str, text: &str| match std::io::stderr().is_terminal() {
        true => format!("\x1b[{code}m{text}\x1b[0m"),
        false => text.to_string(),
    };
    let place = error.place().map_or(String::new(), |place| format!("{}: ", shown(place)));
    to_stderr(&format!("{} {place}{}", style("1;31", "error:"), shown(error.what())));
    for line in error.lines() {
        // The bar keeps a line of data from being the beginning of a line.
        to_stderr(&format!("  | {}", shown(line.trim_start())));
    }
    for cause in causes(error) {
        to_stderr(&format!("  {} {}", style("2", "because:"), shown(&cause)));
    }
    if let Some(help) = error.help_text() {
        to_stderr(&format!("  {} {}", style("1;36", "help:"), shown(help)));
    }
}

/// What clap says of a command line that makes no sense, or asks for help; with `--json` anywhere
/// in it, the error is an object on standard output as well, as every other error.
pub fn usage_error(error: clap::Error) -> ExitCode {
    let typed: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let shown: Vec<String> = typed.iter().map(|arg| visible(arg).into_owned()).collect();
    // The error quotes what was typed, and a script may have taken that from anywhere: what cannot
    // be seen is quoted as escapes.
    let again = if shown == typed { None } else { crate::args::Cli::try_parse_from(&shown).err() };
    let error = again.unwrap_or(error);
    if error.use_stderr() && std::env::args_os().any(|arg| arg == "--json") {
        let text = error.to_string();
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let what = lines.next().unwrap_or_default().trim_start_matches("error: ").to_string();
        let help: Vec<&str> = lines.collect();
        let object = json!({"error": {
            "exit_code": exit::USAGE, "what": what, "where": "the command line", "causes": [],
            "help": help.join("\n"),
        }});
        // The error goes on to standard error, whether or not anyone reads this.
        let _ = Output::new(true, false).data(&format!("{object:#}"));
    }
    // A closed pipe is no reason to panic.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1))
}

/// `text` as part of one line of standard error. GitHub's log also reads commands of the form
/// `##[error]`, anywhere in a line.
pub fn shown(text: &str) -> String {
    visible(text).replace("##[", "# #[")
}

/// Lines of data among a text for people on standard output: they stay lines, but move no terminal,
/// and none is a command to a CI server that reads the log.
pub fn shown_lines(text: &str) -> String {
    let text = visible_lines(text).replace('\r', "\\r").replace("##[", "# #[");
    let line = |line: &str| match line.trim_start().starts_with("::") {
        true => line.replacen("::", ": :", 1),
        false => line.to_string(),
    };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// A line on standard error, as it is: see [`shown`] for what quotes data. Unlike `eprintln!` it
/// does not panic where nobody reads any more (`2>&1 | head`): a run of an hour does not end for
/// that.
pub fn to_stderr(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_data_stay_lines_and_are_no_commands() {
        assert_eq!(
            shown_lines("a\n  ::error::x\nb::c\r::d\n\u{1b}[31m##[error]\tz"),
            "a\n  : :error::x\nb::c\\r::d\n\\u{1b}[31m# #[error]\tz"
        );
        assert_eq!(shown("a\n::error::x"), "a\\n::error::x");
    }
}
