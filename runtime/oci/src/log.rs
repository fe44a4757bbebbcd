//! What is told to the caller: runc's form, one line each, to the file that `--log` names and to standard error.

use std::fs::File;
use std::io::Write as _;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Form of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// `time="…" level=… msg="…"`.
    Text,
    /// One JSON object.
    Json,
}

#[derive(Serialize)]
struct Line<'a> {
    level: &'a str,
    msg: &'a str,
    time: &'a str,
}

/// Where lines go.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) file: Option<File>,
    pub(crate) format: Format,
    /// Whether it is told what is done.
    pub(crate) debug: bool,
}

/// Now, as RFC 3339 has it.
pub(crate) fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}

impl Log {
    /// What is done, for whoever asked to know.
    pub(crate) fn debug(&self, message: &str) {
        if self.debug {
            self.line("debug", message);
        }
    }

    /// Something that the caller should know and that stops nothing.
    pub(crate) fn warn(&self, message: &str) {
        self.line("warning", message);
    }

    /// Why the command failed.
    pub(crate) fn error(&self, message: &str) {
        self.line("error", message);
        // Callers that gave a file read it; people read this.
        if self.file.is_some() {
            eprintln!("{message}");
        }
    }

    fn line(&self, level: &str, message: &str) {
        let now = now();
        let line = match self.format {
            Format::Json => {
                serde_json::to_string(&Line { level, msg: message, time: &now }).unwrap_or_else(|_| message.to_owned())
            }
            Format::Text => format!("time={now:?} level={level} msg={message:?}"),
        };
        match &self.file {
            // A full disk takes away a line, not the command.
            Some(file) => drop(writeln!(&*file, "{line}")),
            None => eprintln!("{line}"),
        }
    }
}
