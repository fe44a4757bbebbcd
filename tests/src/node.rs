//! A node made ready for scenarios: the shipped image in a machine, with its own configuration and credentials, joined, and `byrectl`
//! contexts for each role.
//!
//! The one way in is the API: nothing of the image is changed for tests.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::credentials::Credentials;
use crate::ctl::Ctl;
use crate::serial::Serial;
use crate::vm::{Forward, Vm, VmConfig};

/// The API's port in the guest.
const API_PORT: u16 = byre_api::client::PORT;
/// The port that scenarios serve on in the guest.
const HTTP_PORT: u16 = 8080;
/// From switching on to an answer of the API: about 20 s under software emulation on an idle machine with two processors.
pub const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// From the request to the machine being off: every service has 10 s, and they stop together.
pub const OFF_LIMIT: Duration = Duration::from_secs(120);
/// A connection to a forwarded port.
const HTTP_LIMIT: Duration = Duration::from_secs(10);
/// The largest page a scenario serves.
const PAGE_BYTES: u64 = 1 << 20;

/// What scenarios are made of: files that were built before.
#[derive(Debug, Clone)]
pub struct Lab {
    /// Folder of `cargo xtask image`: disk.img, manifest.json and what they were made from.
    pub image: PathBuf,
    /// The program under test on this side.
    pub byrectl: PathBuf,
    /// Archive of the image `busybox`.
    pub busybox: PathBuf,
    /// Archive of the image `nginx`.
    pub nginx: PathBuf,
    /// Offline bundle of a release that may follow the image's.
    pub next: Option<PathBuf>,
    /// The repository.
    pub repository: PathBuf,
}

/// A node that answers.
pub struct Node {
    vm: Vm,
    ctl: Ctl,
    credentials: Credentials,
    busybox: PathBuf,
    api: u16,
    http: u16,
}

/// A node that is switched off: its disk can be looked at and changed before it is switched on again.
pub struct Off {
    /// The machine's files.
    pub config: VmConfig,
    ctl: Ctl,
    credentials: Credentials,
    busybox: PathBuf,
    api: u16,
    http: u16,
}

impl Node {
    /// Switches a new machine on, with its files in `folder`, waits for it and joins it.
    ///
    /// # Errors
    /// If it does not answer within [`BOOT_LIMIT`].
    pub fn boot(lab: &Lab, folder: &Path) -> Result<Self> {
        Self::new_machine(lab, folder)?.switch_on()
    }

    /// A new machine that was never on.
    ///
    /// # Errors
    /// If its files cannot be made.
    pub fn new_machine(lab: &Lab, folder: &Path) -> Result<Off> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let credentials = Credentials::in_folder(&folder.join("credentials"), "byre-test")?;
        let contexts = folder.join("contexts.toml");
        let ctl = Ctl::new(&lab.byrectl, &contexts);
        let (api, http) = (free_port()?, free_port()?);
        let mut config = VmConfig::new(folder, &lab.image.join("disk.img"));
        config.forwards = vec![Forward { host: api, guest: API_PORT }, Forward { host: http, guest: HTTP_PORT }];
        config.fw_cfg = vec![("opt/byre/config".to_owned(), credentials.configuration())];
        credentials.write_contexts(&ctl, &format!("127.0.0.1:{api}"))?;
        Ok(Off { config, ctl, credentials, busybox: lab.busybox.clone(), api, http })
    }

    /// Loads the image `busybox`, which nearly every scenario uses.
    ///
    /// # Errors
    /// If the node refuses it.
    pub fn load_busybox(&self) -> Result<()> {
        self.ctl.ok(&["image", "load", &self.busybox.to_string_lossy()]).map(drop)
    }

    /// The archive of the image `busybox`.
    #[must_use]
    pub fn busybox(&self) -> &Path {
        &self.busybox
    }

    /// `byrectl` as administrator.
    #[must_use]
    pub fn ctl(&self) -> &Ctl {
        &self.ctl
    }

    /// The console.
    #[must_use]
    pub fn serial(&self) -> &Serial {
        &self.vm.serial
    }

    /// The machine.
    pub fn vm(&mut self) -> &mut Vm {
        &mut self.vm
    }

    /// Where the API is reached from here.
    #[must_use]
    pub fn api_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.api).into()
    }

    /// Certificates and keys of this node's installation.
    #[must_use]
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Gets a page from port 8080 of the node.
    ///
    /// # Errors
    /// If nobody answers.
    pub fn http_get(&self, path: &str) -> Result<String> {
        http_get((Ipv4Addr::LOCALHOST, self.http).into(), path)
    }

    /// Waits until the API answers, as after a reboot.
    ///
    /// # Errors
    /// If it does not within [`BOOT_LIMIT`].
    pub fn wait_ready(&mut self) -> Result<()> {
        let qmp = &mut self.vm.qmp;
        let alive = || qmp.execute("query-status", &json!({})).map(drop).context("the machine is gone");
        self.credentials.join(&format!("127.0.0.1:{}", self.api), BOOT_LIMIT, alive)
    }

    /// Waits until the guest has switched the machine off.
    ///
    /// # Errors
    /// If it does not within [`OFF_LIMIT`].
    pub fn wait_off(self) -> Result<Off> {
        let Self { vm, ctl, credentials, busybox, api, http } = self;
        Ok(Off { config: vm.wait_for_power_off(OFF_LIMIT)?, ctl, credentials, busybox, api, http })
    }

    /// Cuts the power.
    ///
    /// # Errors
    /// If the machine cannot be killed.
    pub fn power_cut(self) -> Result<Off> {
        let Self { vm, ctl, credentials, busybox, api, http } = self;
        Ok(Off { config: vm.power_cut()?, ctl, credentials, busybox, api, http })
    }

    /// Writes what a developer would look at into `folder`: kernel log, services and their logs, containers.
    pub fn keep_evidence(&self, folder: &Path) {
        let keep = |name: &str, arguments: &[&str]| {
            let text = match self.ctl.run(arguments) {
                Ok(outcome) => format!("{}{}", outcome.stdout, outcome.stderr),
                Err(error) => format!("{error:#}\n"),
            };
            std::fs::write(folder.join(name), text).ok();
        };
        keep("dmesg.txt", &["dmesg"]);
        keep("containers.txt", &["ps", "-a", "--no-trunc"]);
        keep("services.txt", &["services", "ls"]);
        let names = self.ctl.ok(&["services", "ls", "-q"]).unwrap_or_default();
        for name in names.lines() {
            keep(&format!("service-{name}.txt"), &["services", "logs", name]);
        }
    }
}

impl Off {
    /// A copy of this machine with its files in `folder`. Its disk must be a plain file; the copy answers at the same address, so only one
    /// of them may be on.
    ///
    /// # Errors
    /// If the files cannot be copied.
    pub fn copy(&self, folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut config = VmConfig { directory: folder.to_owned(), ..self.config.clone() };
        config.disk = folder.join("disk.img");
        let mut copy = std::process::Command::new("cp");
        copy.arg("--sparse=always").arg(&self.config.disk).arg(&config.disk);
        let copied = copy.status().context("cannot run cp")?;
        ensure!(copied.success(), "{} cannot be copied", self.config.disk.display());
        std::fs::copy(self.config.directory.join("firmware.fd"), folder.join("firmware.fd"))?;
        Ok(Self {
            config,
            ctl: self.ctl.clone(),
            credentials: self.credentials.clone(),
            busybox: self.busybox.clone(),
            api: self.api,
            http: self.http,
        })
    }

    /// Switches it on, waits for it, and joins it if it has not joined.
    ///
    /// # Errors
    /// If it does not answer within [`BOOT_LIMIT`].
    pub fn switch_on(self) -> Result<Node> {
        let mut node = self.power()?;
        node.wait_ready().with_context(|| format!("console: {}", tail(&node.serial().text())))?;
        Ok(node)
    }

    /// Switches it on and does not wait.
    ///
    /// # Errors
    /// If QEMU cannot be started.
    pub fn power(self) -> Result<Node> {
        let Self { config, ctl, credentials, busybox, api, http } = self;
        Ok(Node { vm: Vm::start(config)?, ctl, credentials, busybox, api, http })
    }
}

/// The last lines of a console, for a message.
#[must_use]
pub fn tail(text: &str) -> String {
    /// As much as fits a screen.
    const LINES: usize = 30;
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("\n")
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}

/// Gets a page over plain HTTP.
///
/// # Errors
/// If nobody answers in time, or not with 200.
pub fn http_get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, HTTP_LIMIT)?;
    stream.set_read_timeout(Some(HTTP_LIMIT))?;
    stream.set_write_timeout(Some(HTTP_LIMIT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: byre\r\n\r\n")?;
    let mut page = String::new();
    stream.take(PAGE_BYTES).read_to_string(&mut page)?;
    ensure!(page.split_whitespace().nth(1) == Some("200"), "{path}: {}", page.lines().next().unwrap_or("no answer"));
    Ok(page)
}
