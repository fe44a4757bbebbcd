//! The suites on this host: in namespaces of their own, below the Debian root, in a cgroup of their own.
//!
//! Where the host runs its controllers in cgroup v1, cgroup v2 has none here; what needs one runs in the guest.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::Run;
use super::root::DebianRoot;

const ENTER: &str = include_str!("enter.sh");

/// A cgroup that goes when this does, if it is empty.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let place = mounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            (fields.get(2) == Some(&"cgroup2")).then(|| fields.get(1).copied()).flatten()
        });
        let place = Path::new(place.context("this host has no cgroup v2")?);
        let own = place.join(format!("byre-conformance-{}", std::process::id()));
        fs::create_dir(&own).with_context(|| format!("cannot make {}", own.display()))?;
        Ok(Self(own))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        remove(&self.0);
    }
}

/// Removes cgroups from the leaves up; what a killed process still holds stays for the next.
fn remove(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}

/// A command inside the root, in mount, PID, cgroup, UTS, IPC and network namespaces of its own. Everything in them ends with it.
pub(crate) fn enter(root: &Path, command: &[&str]) -> Result<Command> {
    let script = root.join("conformance/enter.sh");
    fs::write(&script, ENTER).with_context(|| format!("cannot write {}", script.display()))?;
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--mount", "--pid", "--fork", "--cgroup", "--uts", "--ipc", "--net", "--kill-child"])
        .args(["--propagation", "private", "sh"])
        .arg(script)
        .arg(root)
        .args(command)
        .stdin(Stdio::null());
    Ok(unshare)
}

/// The command, begun in a cgroup. The shell that enters it is the one that becomes `unshare`, so that its cgroup namespace begins there.
fn beginning_in(cgroup: &Cgroup, inner: &Command) -> Command {
    let mut outer = Command::new("sh");
    outer.args(["-c", "echo $$ > \"$1/cgroup.procs\"; shift; exec \"$@\"", "sh"]).arg(&cgroup.0);
    outer.arg(inner.get_program()).args(inner.get_args()).stdin(Stdio::null());
    outer
}

/// Runs a command of [`enter`]'s in a cgroup of its own, and returns what it printed.
pub(crate) fn output(inner: &Command) -> Result<std::process::Output> {
    let cgroup = Cgroup::make()?;
    beginning_in(&cgroup, inner).stderr(Stdio::inherit()).output().context("cannot run sh")
}

/// Runs the suites and returns what they printed.
pub(super) fn run(root: &DebianRoot, run: &Run<'_>) -> Result<String> {
    let mut all = String::new();
    for suite in &run.suites {
        for runtime in &run.runtimes {
            println!("{suite} with {runtime}");
            let (program, log) = (format!("/conformance/bin/{runtime}"), format!("/conformance/{suite}.{runtime}.log"));
            let mut command = vec!["sh", "/conformance/run.sh", suite, runtime, &program, &log];
            command.extend(run.only);
            let cgroup = Cgroup::make()?;
            let mut outer = beginning_in(&cgroup, &enter(root.path(), &command)?);
            let mut child = outer.stdout(Stdio::piped()).spawn().context("cannot run sh")?;
            let output = BufReader::new(child.stdout.take().context("no output")?);
            for line in output.split(b'\n') {
                let line = String::from_utf8_lossy(&line?).into_owned();
                if let Some(failed) = line.strip_prefix("@ ").filter(|line| line.contains(" failed ")) {
                    println!("  {failed}");
                    std::io::stdout().flush()?;
                }
                all.push_str(&line);
                all.push('\n');
            }
            ensure!(child.wait()?.success(), "the suite {suite} cannot be run with {runtime}");
        }
    }
    println!("what the tests said: {}", root.path().join("conformance").display());
    Ok(all)
}
