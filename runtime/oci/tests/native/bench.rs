//! What each test stands on: a bundle with busybox, a place for containers, and the program under test.

use std::ffi::OsStr;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longest a test waits for something.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Bench {
    files: tempfile::TempDir,
    name: &'static str,
}

/// What a command gave.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: i32,
    pub(super) out: String,
    pub(super) err: String,
}

impl Answer {
    pub(super) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// What a command that must fail says.
    pub(super) fn failed(self) -> String {
        assert_ne!(self.code, 0, "{self:?}");
        self.err
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Bench {
    /// `name` is the container's id, so that tests do not share cgroups.
    pub(super) fn new(name: &'static str) -> Self {
        let files = tempfile::tempdir().unwrap();
        let bench = Self { files, name };
        let bin = bench.bundle().join("rootfs/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox is needed (package busybox-static)");
        for name in "sh cat id ls stat mount grep echo readlink touch sleep hostname tty stty ps ln mkdir env pwd test true false \
            kill uname cut wc tr seq date nice ulimit sync"
            .split_whitespace()
        {
            std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
        }
        bench.configure(|_| {});
        bench
    }

    pub(super) fn id(&self) -> &'static str {
        self.name
    }

    pub(super) fn bundle(&self) -> PathBuf {
        self.files.path().join("bundle")
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Writes the bundle's configuration: the default one without a terminal, changed.
    pub(super) fn configure(&self, change: impl FnOnce(&mut Value)) {
        let path = self.bundle().join("config.json");
        let _ = std::fs::remove_file(&path);
        Answer::from(self.command(["spec"]).current_dir(self.bundle()).output().unwrap()).ok();
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["process"]["terminal"] = json!(false);
        config["root"]["readonly"] = json!(false);
        change(&mut config);
        std::fs::write(&path, config.to_string()).unwrap();
    }

    /// The default configuration with a script as its program, changed.
    pub(super) fn script(&self, script: &str, change: impl FnOnce(&mut Value)) {
        self.configure(|config| {
            config["process"]["args"] = json!(["sh", "-c", script]);
            change(config);
        });
    }

    /// The program under test with its places, and these arguments.
    pub(super) fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_byre-oci"));
        command.arg("--root").arg(self.path("state")).args(arguments).stdin(Stdio::null());
        command
    }

    pub(super) fn call<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Answer {
        self.command(arguments).output().unwrap().into()
    }

    /// `run`, with the bundle.
    pub(super) fn run(&self) -> Answer {
        self.command(["run", "--bundle"]).arg(self.bundle()).arg(self.name).output().unwrap().into()
    }

    /// `create`, with the bundle and further options. What the container writes goes to a file.
    pub(super) fn create(&self, options: &[&str]) -> Answer {
        let out = std::fs::File::create(self.path("out")).unwrap();
        let err = std::fs::File::create(self.path("err")).unwrap();
        let mut command = self.command(["create", "--bundle"]);
        command.arg(self.bundle()).args(options).arg(self.name).stdout(out).stderr(err);
        let code = command.status().unwrap().code().unwrap_or(-1);
        Answer { code, out: String::new(), err: std::fs::read_to_string(self.path("err")).unwrap() }
    }

    /// What a created container has written so far.
    pub(super) fn output(&self) -> String {
        std::fs::read_to_string(self.path("out")).unwrap()
    }

    /// Waits until a created container has written this.
    pub(super) fn await_output(&self, text: &str) {
        self.wait(&format!("output {text:?}"), || self.output().contains(text));
    }

    pub(super) fn state(&self) -> Value {
        serde_json::from_str(&self.call(["state", self.name]).ok()).unwrap()
    }

    pub(super) fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    /// Waits until the container has this status.
    pub(super) fn await_status(&self, status: &str) {
        self.wait(status, || self.status() == status);
    }

    pub(super) fn wait(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "{what} does not come; output: {}", self.output());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Nothing of the container is left: no directory, no cgroup.
    pub(super) fn is_gone(&self) -> bool {
        !self.path("state").join(self.name).exists() && self.cgroup().is_none_or(|path| !path.exists())
    }

    /// The outer cgroup, where cgroup2 is mounted.
    pub(super) fn cgroup(&self) -> Option<PathBuf> {
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let mount =
            mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?.split(' ').nth(1)?.to_owned();
        Some(PathBuf::from(mount).join("byre-oci").join(self.name))
    }

    /// A socket that is sent one descriptor.
    pub(super) fn socket(&self, name: &str) -> (UnixListener, String) {
        let path = self.path(name);
        let _ = std::fs::remove_file(&path);
        (UnixListener::bind(&path).unwrap(), path.to_str().unwrap().to_owned())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.call(["delete", "--force", self.name]);
    }
}

/// Takes the descriptor that is sent over a socket, and the name that comes with it.
pub(super) fn receive(listener: &UnixListener) -> (std::os::fd::OwnedFd, String) {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let (stream, _) = listener.accept().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0_u8; 64];
    let count = recvmsg(&stream, &mut [std::io::IoSliceMut::new(&mut name)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        .unwrap()
        .bytes;
    let mut received = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            received = descriptors.next();
        }
    }
    (received.expect("a descriptor"), String::from_utf8_lossy(&name[..count]).into_owned())
}

/// Everything that a terminal's other side writes until it is closed.
pub(super) fn read_terminal(master: &std::os::fd::OwnedFd) -> String {
    let mut text = Vec::new();
    let mut buffer = [0_u8; 512];
    while let Ok(count @ 1..) = rustix::io::read(master, &mut buffer) {
        text.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&text).replace('\r', "")
}
