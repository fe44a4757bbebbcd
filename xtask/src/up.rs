//! `cargo xtask up`: from a checkout to a node that answers, and a `byrectl` that knows it.
//!
//! The machine is a real one in all but hardware: UEFI, the shipped image, its own key, joined by a token. Everything lies below
//! `target/up`; the one file touched outside it is byrectl's own, where the context `dev` is written.

use std::fs::File;
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use byre_api::role::Role;
use byre_tests::credentials::Credentials;
use byre_tests::vm::{Forward, VmConfig};
use indicatif::{ProgressBar, ProgressStyle};

use crate::down::Machine;
use crate::{image, packages, test, tools};

/// The context that is written, and the node's name.
const NAME: &str = "dev";
/// From switching on to an answer: some 20 s under software emulation, and ten times that on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(240);
/// What the node serves containers' pages on in the README.
const HTTP_PORT: u16 = 8080;

/// Arguments of `cargo xtask up`.
#[derive(clap::Args, Debug)]
#[group(id = "up")]
pub(crate) struct Args {
    /// Forget the node of the last time with everything on it, and start a new one.
    #[arg(long)]
    fresh: bool,
    /// Memory of the machine in MiB.
    #[arg(long, default_value_t = 1024)]
    memory_mib: u32,
    /// Port on this machine's loopback address that leads to the node's API.
    #[arg(long, default_value_t = byre_api::client::PORT)]
    api_port: u16,
    /// Port on this machine's loopback address that leads to the node's port 8080.
    #[arg(long, default_value_t = HTTP_PORT)]
    http_port: u16,
    #[command(flatten)]
    image: image::Args,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let repository = image::repository()?;
    let folder = repository.join("target/up");
    if let Some(machine) = Machine::find(&folder)? {
        println!(
            "a node is running already (process {}). It is the context {NAME:?}; stop it with: cargo xtask down",
            machine.pid()
        );
        return Ok(());
    }
    packages::ensure_installed(packages::FOR_IMAGE)?;
    packages::ensure_installed(test::FOR_MACHINES)?;
    for port in [args.api_port, args.http_port] {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        ensure!(free.is_ok(), "port {port} of 127.0.0.1 is in use: take others with --api-port and --http-port");
    }
    let image = args.image.out.clone().unwrap_or_else(|| repository.join("target/image"));
    image::build(&args.image, &repository, &image, &mut |line| println!("{line}"))?;
    println!("byrectl");
    let byrectl = link_byrectl(&tools::byrectl(&repository)?, &folder)?;
    let newer = prepare_disk(&folder, &image, args.fresh)?;

    let credentials = Credentials::in_folder(&folder.join("credentials"), NAME)?;
    let mut config = VmConfig::new(&folder, &folder.join("image.img"));
    config.memory_mib = args.memory_mib;
    config.forwards = vec![
        Forward { host: args.api_port, guest: byre_api::client::PORT },
        Forward { host: args.http_port, guest: HTTP_PORT },
    ];
    config.fw_cfg = vec![("opt/byre/config".to_owned(), credentials.configuration())];
    let begun = Instant::now();
    switch_on(&config, &folder)?;
    let address = format!("127.0.0.1:{}", args.api_port);
    wait(&folder, &credentials, &address)?;

    let status = Command::new(&byrectl)
        .args(credentials.context_arguments(&address, NAME, Role::Admin))
        .stdout(Stdio::null())
        .status();
    ensure!(status.is_ok_and(|status| status.success()), "byrectl did not take the context {NAME}");
    println!("the node answers after {:.0} s", begun.elapsed().as_secs_f64());
    if newer {
        println!(
            "note: the image was built anew, but this node's disk is older; `cargo xtask up --fresh` boots the new one"
        );
    }
    print_next_steps(&folder, args.http_port);
    Ok(())
}

/// Puts the built byrectl where PATH can find it whatever the profile.
fn link_byrectl(built: &Path, folder: &Path) -> Result<PathBuf> {
    let bin = folder.join("bin");
    std::fs::create_dir_all(&bin)?;
    let link = bin.join("byrectl");
    std::fs::remove_file(&link).ok();
    symlink(built, &link).with_context(|| format!("cannot make {}", link.display()))?;
    Ok(link)
}

/// The disk of the last time, or a copy of the image. A copy, because the image changes with the next build and a disk must not change under
/// its machine. Whether the image is another one than the disk was made from.
fn prepare_disk(folder: &Path, image: &Path, fresh: bool) -> Result<bool> {
    let (disk, made_from) = (folder.join("image.img"), folder.join("manifest.json"));
    let built = std::fs::read(image.join("manifest.json")).context("the image has no manifest")?;
    if disk.exists() && !fresh {
        return Ok(std::fs::read(&made_from).unwrap_or_default() != built);
    }
    for stale in ["disk.qcow2", "firmware.fd", "image.img", "manifest.json"] {
        std::fs::remove_file(folder.join(stale)).ok();
    }
    let status = Command::new("cp").arg("--sparse=always").arg(image.join("disk.img")).arg(&disk).status();
    ensure!(status.is_ok_and(|status| status.success()), "the disk image cannot be copied to {}", disk.display());
    std::fs::write(&made_from, built)?;
    Ok(false)
}

/// Starts QEMU as a process of its own, which `down` finds again by its process id and socket.
fn switch_on(config: &VmConfig, folder: &Path) -> Result<()> {
    config.prepare()?;
    std::fs::remove_file(config.serial_log()).ok();
    let console = format!("file:{}", config.serial_log().display());
    let socket = Machine::socket(folder);
    std::fs::remove_file(&socket).ok();
    let mut command = config.command(&console, &format!("path={},server=on,wait=off", socket.display()))?;
    command.arg("-daemonize").arg("-pidfile").arg(Machine::pid_file(folder));
    let output = command.stdin(Stdio::null()).output().context("cannot run qemu-system-x86_64")?;
    ensure!(output.status.success(), "QEMU did not start: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Shows what the console says until the API answers and the node has joined.
fn wait(folder: &Path, credentials: &Credentials, address: &str) -> Result<()> {
    let progress = ProgressBar::new_spinner();
    progress.set_style(ProgressStyle::with_template("{spinner} {elapsed:>4} {wide_msg}")?);
    progress.enable_steady_tick(Duration::from_millis(100));
    progress.set_message("firmware");
    let log = folder.join("serial.log");
    let mut console = Console { path: log.clone(), file: None, rest: String::new() };
    let joined = credentials.join(address, LIMIT, || {
        for line in console.new_lines() {
            // PID 1's own lines are the stages of a boot.
            if let Some((_, stage)) = line.split_once("byre: ") {
                if progress.is_hidden() {
                    println!("  {stage}");
                }
                progress.set_message(stage.to_owned());
            }
        }
        if Machine::find(folder)?.is_none() {
            bail!("the machine is gone");
        }
        Ok(())
    });
    progress.finish_and_clear();
    joined.with_context(|| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        format!(
            "the node does not answer; its console ({}) ends with:\n{}\n",
            log.display(),
            byre_tests::node::tail(&text)
        )
    })
}

/// The console's file, read as it grows.
struct Console {
    path: PathBuf,
    file: Option<File>,
    rest: String,
}

impl Console {
    fn new_lines(&mut self) -> Vec<String> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let mut bytes = Vec::new();
        if let Some(file) = &mut self.file {
            // What cannot be read now is read the next time.
            let _ = file.read_to_end(&mut bytes);
        }
        self.rest.push_str(&String::from_utf8_lossy(&bytes));
        let Some(end) = self.rest.rfind('\n') else { return Vec::new() };
        let whole: String = self.rest.drain(..=end).collect();
        whole.lines().map(str::to_owned).collect()
    }
}

fn print_next_steps(folder: &Path, http_port: u16) {
    let bin = folder.join("bin");
    println!(
        "\nNext:\n  \
         export PATH=\"{bin}:$PATH\"\n  \
         byrectl node\n  \
         cargo xtask container-image nginx nginx.tar\n  \
         byrectl image load nginx.tar\n  \
         byrectl run -d --name web --net host --memory 128M nginx\n  \
         curl http://127.0.0.1:{http_port}/\n\n\
         Console: {console}\n\
         Stop it with: cargo xtask down",
        bin = bin.display(),
        console = folder.join("serial.log").display()
    );
}
