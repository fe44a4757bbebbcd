//! The guest's serial console: kept in a file, and waited on line by line without polling.

use anyhow::{Result, bail};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A console that never stops talking (a boot loop) must not fill the machine: older text is in the file only.
const MAX_KEPT_BYTES: usize = 16 << 20;

#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    /// Where the next wait starts, so that the same line is not found twice.
    seen: usize,
    ended: bool,
}

/// A console being read.
#[derive(Clone)]
pub struct Serial {
    shared: Arc<(Mutex<Text>, Condvar)>,
    log: PathBuf,
}

impl Serial {
    /// Reads `source` to its end on a thread of its own, into `log` and memory.
    ///
    /// # Errors
    /// When the log file cannot be made.
    pub fn start(mut source: impl Read + Send + 'static, log: &Path) -> Result<Self> {
        let mut file = std::fs::File::options().create(true).append(true).open(log)?;
        let serial = Self { shared: Arc::default(), log: log.to_owned() };
        let shared = Arc::clone(&serial.shared);
        std::thread::spawn(move || {
            let mut buffer = [0u8; 4096];
            loop {
                let count = source.read(&mut buffer).unwrap_or(0);
                let mut text = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                if count == 0 {
                    text.ended = true;
                } else {
                    // A full disk loses the file, not the test.
                    let _ = file.write_all(&buffer[..count]);
                    text.bytes.extend_from_slice(&buffer[..count]);
                    if text.bytes.len() > MAX_KEPT_BYTES {
                        let cut = text.bytes.len() / 2;
                        text.bytes.drain(..cut);
                        text.seen = text.seen.saturating_sub(cut);
                    }
                }
                shared.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        Ok(serial)
    }

    fn lock(&self) -> MutexGuard<'_, Text> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a whole line that contains `pattern`, after the line that the last wait found; returns it.
    ///
    /// # Errors
    /// When it does not come in time, or the guest ends first; the message has the last lines and the log's path.
    pub fn wait_for(&self, pattern: &str, timeout: Duration) -> Result<String> {
        self.wait_for_any(&[pattern], timeout).map(|(_, line)| line)
    }

    /// Waits for a line that contains one of `patterns`; returns which, and the line.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn wait_for_any(&self, patterns: &[&str], timeout: Duration) -> Result<(usize, String)> {
        let deadline = Instant::now() + timeout;
        let mut text = self.lock();
        loop {
            while let Some(end) = text.bytes[text.seen..].iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(&text.bytes[text.seen..text.seen + end]).trim_end().to_owned();
                text.seen += end + 1;
                if let Some(which) = patterns.iter().position(|pattern| line.contains(pattern)) {
                    return Ok((which, line));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if text.ended || left.is_zero() {
                let why = if text.ended { "the guest ended" } else { "time is up" };
                bail!("no line with {patterns:?} on the console ({why}); {}", self.tail(&text));
            }
            text = self.shared.1.wait_timeout(text, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// All text that is kept.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }

    fn tail(&self, text: &Text) -> String {
        let all = String::from_utf8_lossy(&text.bytes);
        let lines: Vec<&str> = all.lines().collect();
        let last = lines[lines.len().saturating_sub(25)..].join("\n");
        format!("the whole console is in {}; it ends with:\n{last}", self.log.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_consumes_lines_and_an_end_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        let serial = Serial::start(&b"one\r\ntwo\r\none\r\npart"[..], &directory.path().join("log")).unwrap();
        let second = Duration::from_secs(5);
        assert_eq!(serial.wait_for("one", second).unwrap(), "one");
        assert_eq!(serial.wait_for_any(&["x", "one"], second).unwrap(), (1, "one".to_owned()));
        assert!(serial.wait_for("part", second).unwrap_err().to_string().contains("the guest ended"));
        assert!(std::fs::read_to_string(directory.path().join("log")).unwrap().ends_with("part"));
    }
}
