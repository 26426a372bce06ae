//! Where text goes: data to standard output, words for people to standard error.

use std::io::{IsTerminal, Write};

use karat::Error;
use serde_json::{Value, json};

/// The two streams and how much to say.
pub struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    /// `json`: one object on standard output. `quiet`: only errors on standard error.
    pub fn new(json: bool, quiet: bool) -> Self {
        Output { json, quiet }
    }

    /// Whether one JSON object is wanted.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Whether standard error is a terminal that may show progress bars.
    pub fn interactive(&self) -> bool {
        !self.quiet && std::io::stderr().is_terminal()
    }

    /// A line for people.
    pub fn say(&self, line: impl AsRef<str>) {
        if !self.quiet {
            eprintln!("{}", line.as_ref());
        }
    }

    /// Data: one line, or a text with its own line ends.
    pub fn data(&self, text: &str) -> karat::Result<()> {
        let mut out = std::io::stdout().lock();
        let end = if text.ends_with('\n') { "" } else { "\n" };
        match write!(out, "{text}{end}").and_then(|()| out.flush()) {
            // A reader that has seen enough (`| head`) is no failure.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
            Err(e) => Err(Error::io("write", "standard output", e)),
            Ok(()) => Ok(()),
        }
    }

    /// The result: the object with `--json`, else the text.
    pub fn result(&self, object: &Value, text: &str) -> karat::Result<()> {
        if self.json { self.data(&format!("{object:#}")) } else { self.data(text) }
    }

    /// An error with its place, causes and remedy.
    pub fn error(&self, error: &Error) {
        let mut causes = Vec::new();
        let mut next = std::error::Error::source(error);
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        if self.json {
            let object = json!({"error": {
                "exit_code": error.kind().exit_code(), "what": error.what(), "where": error.place(),
                "causes": causes, "help": error.help_text(),
            }});
            println!("{object:#}");
        }
        let style = |code: &str, text: &str| match std::io::stderr().is_terminal() {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_string(),
        };
        eprintln!("{} {error}", style("1;31", "error:"));
        for cause in causes {
            eprintln!("  {} {cause}", style("2", "because:"));
        }
        if let Some(help) = error.help_text() {
            eprintln!("  {} {help}", style("1;36", "help:"));
        }
    }
}
