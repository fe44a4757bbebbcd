//! Runs `byrectl` as a user would and looks at its exit code and output.
//!
//! Every run has a bound: a command that hangs is a failed scenario that says which command, not a hung test.

use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// Longest run of one command. A guest under software emulation on a busy machine takes seconds for what a real one does at once.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// How often a process is asked whether it has ended: std has no wait with a deadline.
const POLL: Duration = Duration::from_millis(20);

/// `byrectl` with its contexts.
#[derive(Debug, Clone)]
pub struct Ctl {
    program: PathBuf,
    config: PathBuf,
    context: Option<String>,
}

/// What a command came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    line: String,
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Standard output without white space around it, if the exit code is 0.
    ///
    /// # Errors
    /// With both outputs, if it is another one.
    pub fn ok(self) -> Result<String> {
        ensure!(self.code == 0, "{self}");
        Ok(self.stdout.trim().to_owned())
    }

    /// Standard output, if the exit code is this one.
    ///
    /// # Errors
    /// With both outputs, if it is another one.
    pub fn code(self, code: i32) -> Result<String> {
        ensure!(self.code == code, "expected exit code {code}: {self}");
        Ok(self.stdout)
    }

    /// A refusal: not 0, and the message names each of these (compared without case).
    ///
    /// # Errors
    /// If it succeeded or its message leaves one out.
    pub fn refused(self, names: &[&str]) -> Result<()> {
        ensure!(self.code != 0, "should have been refused: {self}");
        let message = self.stderr.to_lowercase();
        for name in names {
            ensure!(message.contains(&name.to_lowercase()), "the message does not name {name:?}: {self}");
        }
        Ok(())
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: exit code {}", self.line, self.code)?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.trim().is_empty() {
                write!(formatter, "\n  {name}: {}", text.trim().replace('\n', "\n          "))?;
            }
        }
        Ok(())
    }
}

/// A command under way, such as `logs -f`; killed when dropped.
pub struct Running {
    child: Child,
    line: String,
    output: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Ctl {
    /// With this program and this file of contexts.
    #[must_use]
    pub fn new(program: &Path, config: &Path) -> Self {
        Self { program: program.to_owned(), config: config.to_owned(), context: None }
    }

    /// The same with another context, such as another role's.
    #[must_use]
    pub fn with_context(&self, name: &str) -> Self {
        Self { context: Some(name.to_owned()), ..self.clone() }
    }

    /// The bare command with its environment, for a terminal.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().env("BYRE_CONFIG", &self.config).env("TERM", "xterm").env("PATH", "/usr/bin:/bin");
        if let Some(context) = &self.context {
            command.env("BYRE_CONTEXT", context);
        }
        command.args(arguments);
        command
    }

    /// Runs a command without input.
    ///
    /// # Errors
    /// If it cannot be started or takes longer than [`COMMAND_LIMIT`].
    pub fn run(&self, arguments: &[&str]) -> Result<Outcome> {
        self.run_with(arguments, &[])
    }

    /// Runs a command whose standard input is `input`.
    ///
    /// # Errors
    /// If it cannot be started or takes longer than [`COMMAND_LIMIT`].
    pub fn run_with(&self, arguments: &[&str], input: &[u8]) -> Result<Outcome> {
        let line = format!("byrectl {}", arguments.join(" "));
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {}", self.program.display()))?;
        let stdin = child.stdin.take();
        let input = input.to_vec();
        // Its own thread: a command that does not read must not block us; a broken pipe is the command's affair.
        let writer = thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&input)));
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        let code = wait(&mut child, COMMAND_LIMIT);
        if code.is_err() {
            child.kill().ok();
            child.wait().ok();
        }
        let text = |reader: thread::JoinHandle<Vec<u8>>| {
            String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
        };
        let (stdout, stderr) = (text(stdout), text(stderr));
        drop(writer);
        let code = code.with_context(|| format!("{line}\n  stdout: {}\n  stderr: {}", stdout.trim(), stderr.trim()))?;
        Ok(Outcome { line, code, stdout, stderr })
    }

    /// Runs a command that must succeed; gives its standard output without white space around it.
    ///
    /// # Errors
    /// If it does not.
    pub fn ok(&self, arguments: &[&str]) -> Result<String> {
        self.run(arguments)?.ok()
    }

    /// Runs a command with `--output json` that must succeed.
    ///
    /// # Errors
    /// If it does not, or does not print JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let mut all = vec!["--output", "json"];
        all.extend(arguments);
        let text = self.ok(&all)?;
        serde_json::from_str(&text).with_context(|| format!("byrectl {}: no JSON: {text}", all.join(" ")))
    }

    /// Starts a command that goes on, such as `logs -f`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self, arguments: &[&str]) -> Result<Running> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().with_context(|| format!("cannot run {}", self.program.display()))?;
        let output = stream(child.stdout.take());
        Ok(Running { child, line: format!("byrectl {}", arguments.join(" ")), output, seen: String::new() })
    }
}

impl Running {
    /// Waits until its output contains `text`; gives all output so far.
    ///
    /// # Errors
    /// If it ends or the limit passes before.
    pub fn until(&mut self, text: &str, limit: Duration) -> Result<&str> {
        let deadline = Instant::now() + limit;
        while !self.seen.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => bail!("{}: no {text:?} ({error}); output so far: {}", self.line, self.seen),
            }
        }
        Ok(&self.seen)
    }

    /// Waits for further output; gives all of it so far.
    ///
    /// # Errors
    /// If none comes within the limit.
    pub fn more(&mut self, limit: Duration) -> Result<&str> {
        match self.output.recv_timeout(limit) {
            Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
            Err(error) => bail!("{}: no more output ({error}); output so far: {}", self.line, self.seen),
        }
        Ok(&self.seen)
    }

    /// Waits until it ends by itself; gives exit code and all output.
    ///
    /// # Errors
    /// If the limit passes before.
    pub fn ended(mut self, limit: Duration) -> Result<(i32, String)> {
        let code = wait(&mut self.child, limit).with_context(|| self.line.clone())?;
        while let Ok(bytes) = self.output.recv_timeout(Duration::from_secs(1)) {
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        Ok((code, std::mem::take(&mut self.seen)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Waits with a deadline; 128 + signal if one ended it.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Result<i32> {
    use std::os::unix::process::ExitStatusExt as _;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
        }
        ensure!(Instant::now() < deadline, "did not end within {} seconds", limit.as_secs());
        thread::sleep(POLL);
    }
}

fn collect<R: Read + Send + 'static>(source: Option<R>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut source) = source {
            source.read_to_end(&mut bytes).ok();
        }
        bytes
    })
}

/// Passes on what comes, piece by piece.
pub(crate) fn stream<R: Read + Send + 'static>(source: Option<R>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0u8; 4096];
        let Some(mut source) = source else { return };
        while let Ok(count) = source.read(&mut buffer) {
            let piece = buffer.get(..count).unwrap_or_default();
            if count == 0 || sender.send(piece.to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell() -> Ctl {
        Ctl::new(Path::new("/bin/sh"), Path::new("/nonexistent"))
    }

    #[test]
    fn exit_code_and_both_outputs_are_kept_apart() {
        let outcome = shell().run_with(&["-c", "cat; echo err >&2; exit 7"], b"in").unwrap();
        assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (7, "in", "err\n"));
        assert!(outcome.clone().refused(&["ERR"]).is_ok() && outcome.clone().refused(&["other"]).is_err());
        assert!(outcome.clone().ok().is_err() && outcome.code(7).is_ok());
        assert_eq!(shell().run(&["-c", "kill -9 $$"]).unwrap().code, 137);
    }

    #[test]
    fn a_command_that_goes_on_is_followed_and_its_end_seen() {
        let mut running = shell().start(&["-c", "echo one; sleep 0.2; echo two; exit 3"]).unwrap();
        running.until("one", COMMAND_LIMIT).unwrap();
        let (code, output) = running.ended(COMMAND_LIMIT).unwrap();
        assert_eq!((code, output.as_str()), (3, "one\ntwo\n"));
        let mut silent = shell().start(&["-c", "exec sleep 60"]).unwrap();
        assert!(silent.until("x", Duration::from_millis(50)).is_err());
    }
}
