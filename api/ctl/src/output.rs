//! Where answers go: stdout, as a table or as JSON. Colours only where a person looks at them and did not say NO_COLOR.
//!
//! A reader that went away ends the command quietly; it is never a panic.

use std::io::{IsTerminal as _, Write as _};

use serde_json::Value;

use crate::args::Format;
use crate::error::Failure;
use crate::text;

/// What a word means; how that looks is decided by the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Bad,
    Faint,
}

/// Standard output.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) format: Format,
    colour: bool,
    terminal: bool,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self { format, colour: terminal && !unwanted, terminal }
    }

    pub(crate) fn json(&self) -> bool {
        self.format == Format::Json
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// The text, which must be printable already, in the colour of its tone.
    pub(crate) fn tone(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Faint => "2",
        };
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.into() }
    }

    /// Text as it is; its lines end with a newline of their own.
    pub(crate) fn text(&self, text: &str) -> Result<(), Failure> {
        self.bytes(text.as_bytes())
    }

    /// One line. What a node said is made printable by the caller.
    pub(crate) fn line(&self, line: &str) -> Result<(), Failure> {
        self.bytes(format!("{line}\n").as_bytes())
    }

    /// One document, laid out for reading.
    pub(crate) fn document(&self, value: &Value) -> Result<(), Failure> {
        self.line(&format!("{value:#}"))
    }

    /// One line of a stream.
    pub(crate) fn json_line(&self, value: &Value) -> Result<(), Failure> {
        self.line(&value.to_string())
    }

    /// A table, or its rows as one document.
    pub(crate) fn rows(&self, header: &[&str], rows: &[Vec<String>], values: Vec<Value>) -> Result<(), Failure> {
        if self.json() { self.document(&Value::Array(values)) } else { self.text(&text::table(header, rows)) }
    }

    fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| write_failure(&error))
    }
}

/// Writing to stdout failed: because its reader went away, or because something is wrong.
pub(crate) fn write_failure(error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        Failure::Closed
    } else {
        Failure::io("cannot write to stdout", error)
    }
}

/// One line for a person. If stderr is gone there is nobody to tell.
pub(crate) fn complain(message: &str) {
    let _ = writeln!(std::io::stderr().lock(), "byrectl: {message}");
}
