//! One error type for the harness: what happened, where, and what to do next.
//!
//! Messages are lowercase fragments that read well after "error: ". The kind decides the exit code
//! of the command line (see [`ErrorKind::exit_code`]); the help line is the one thing the reader
//! should do next.

use std::fmt;

use crate::exit;

/// `Result` with the harness's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, coarsely: each kind has its own exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Something failed that the user did not cause: I/O, a full disk, a bug.
    Failed,
    /// The suite file, a flag or a combination of them makes no sense.
    Usage,
    /// A data set, checkpoint, tokenizer, template or stored prediction is broken.
    Data,
    /// A backend cannot be found, loaded or opened, or it failed.
    Backend,
    /// The user (or a sink) asked to stop.
    Interrupted,
}

impl ErrorKind {
    /// The documented exit code of the command line.
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Failed => exit::FAILURE,
            ErrorKind::Usage => exit::USAGE,
            ErrorKind::Backend => exit::BACKEND,
            ErrorKind::Data => exit::DATA,
            ErrorKind::Interrupted => exit::INTERRUPTED,
        }
    }
}

/// An error with its place and its remedy.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    lines: Vec<String>,
    place: Option<String>,
    help: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `what` is a lowercase fragment without a full stop.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Error { kind, what: what.into(), lines: Vec::new(), place: None, help: None, source: None }
    }
    /// [`ErrorKind::Failed`].
    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, what)
    }
    /// [`ErrorKind::Usage`].
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, what)
    }
    /// [`ErrorKind::Data`].
    pub fn data(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Data, what)
    }
    /// [`ErrorKind::Backend`].
    pub fn backend(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Backend, what)
    }
    /// [`ErrorKind::Interrupted`].
    pub fn interrupted() -> Self {
        Self::new(ErrorKind::Interrupted, "interrupted")
    }
    /// An I/O error on `path`: the operation is a verb phrase ("read", "create the folder"). What
    /// is not there, is a folder where a file belongs (or the other way round) or is no UTF-8 is
    /// bad input; everything else is a failure of the system's.
    pub fn io(operation: &str, path: impl AsRef<std::path::Path>, error: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind() {
            Io::NotFound | Io::IsADirectory | Io::NotADirectory | Io::InvalidData | Io::InvalidFilename => {
                ErrorKind::Data
            }
            _ => ErrorKind::Failed,
        };
        Self::new(kind, format!("could not {operation}")).at(path.as_ref().display()).because(error)
    }

    /// Adds where: a file, `file:line`, a key of the suite file.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.place = Some(place.to_string());
        self
    }
    /// Adds lines of their own below the message: places that were tried, a line of a file. Only
    /// these begin new lines where the error is shown; a line end within any other part is data,
    /// and shown as such.
    #[must_use]
    pub fn with_lines(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.lines.extend(lines);
        self
    }
    /// The same error as another kind: who called knows better whose fault it is.
    #[must_use]
    pub fn of_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }
    /// Adds what to do next, as a sentence or a command.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
    /// Adds the underlying error.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
    /// The message alone, without place, help and causes.
    pub fn what(&self) -> &str {
        &self.what
    }
    /// The lines below the message.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }
    /// Where it happened, if known.
    pub fn place(&self) -> Option<&str> {
        self.place.as_deref()
    }
    /// What to do next, if known.
    pub fn help_text(&self) -> Option<&str> {
        self.help.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{place}: {}", self.what)?,
            None => f.write_str(&self.what)?,
        }
        self.lines.iter().try_for_each(|line| write!(f, "\n{line}"))
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| &**s as &(dyn std::error::Error + 'static))
    }
}
