//! The machine protocol of QEMU: one JSON object per line, commands answered in order, events in between.
//!
//! Synchronous, with a deadline on every wait; a test that hangs here would hang its whole job.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long QEMU may take to answer a command: it is busy for seconds when the machine swaps.
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);

/// A connection to a running QEMU.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    events: VecDeque<Value>,
    partial: String,
}

impl Qmp {
    /// Takes the greeting and enters command mode.
    ///
    /// # Errors
    /// When QEMU ends first, or does not answer.
    pub fn new(stream: UnixStream) -> Result<Self> {
        let writer = stream.try_clone()?;
        let mut qmp = Self { reader: BufReader::new(stream), writer, events: VecDeque::new(), partial: String::new() };
        let deadline = Instant::now() + COMMAND_DEADLINE;
        while qmp.receive(deadline)?.context("QEMU sent no greeting")?.get("QMP").is_none() {}
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns its result.
    ///
    /// # Errors
    /// QEMU's own error text, or that it did not answer in time.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.writer.write_all(line.as_bytes()).context("QEMU is gone")?;
        let deadline = Instant::now() + COMMAND_DEADLINE;
        loop {
            let message = self.receive(deadline)?.with_context(|| format!("QEMU did not answer {command}"))?;
            if let Some(result) = message.get("return") {
                return Ok(result.clone());
            }
            if let Some(error) = message.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            self.events.push_back(message);
        }
    }

    /// Waits for the event `name` (`SHUTDOWN`, `RESET`, `WATCHDOG`, ...); events before it are dropped.
    ///
    /// # Errors
    /// When it does not come in time, or QEMU ends without it.
    pub fn wait_for_event(&mut self, name: &str, timeout: Duration) -> Result<Value> {
        let deadline = Instant::now() + timeout;
        loop {
            while let Some(event) = self.events.pop_front() {
                if event["event"] == name {
                    return Ok(event);
                }
            }
            match self.receive(deadline)? {
                Some(event) => self.events.push_back(event),
                None => bail!("QEMU sent no event {name} in {timeout:?}"),
            }
        }
    }

    /// One message, or `None` at the deadline.
    fn receive(&mut self, deadline: Instant) -> Result<Option<Value>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.reader.get_ref().set_read_timeout(Some(left))?;
            match self.reader.read_line(&mut self.partial) {
                Ok(0) => bail!("QEMU ended"),
                Ok(_) if self.partial.ends_with('\n') => {
                    let line = std::mem::take(&mut self.partial);
                    return Ok(Some(serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?));
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error).context("cannot read from QEMU"),
            }
        }
    }
}
