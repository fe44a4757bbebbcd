//! The container images that the README and the scenarios use, made from Debian packages: a small busybox and a real nginx.
//!
//! apt checks the packages' signatures; nothing is fetched from a registry. Needs apt-get and dpkg-deb, for nginx mmdebstrap as well.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::oci::{Archive, ImageConfig, LayerBuilder};

/// The suite nginx comes from: the one of the workspace's kernel and loader.
const SUITE: &str = "trixie";
/// A tree of nginx with its C library is about 100 MB; ten times that is a fault.
const MAX_TREE_BYTES: u64 = 1 << 30;
/// Users as Debian numbers them, so that `--user www-data` means the same everywhere.
const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n\
    nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
const GROUP: &[u8] = b"root:x:0:\ntty:x:5:\nwww-data:x:33:\nnogroup:x:65534:\n";

/// nginx as a container wants it: in the foreground, on a port that needs no privilege, logs on the container's own output.
const NGINX_CONF: &[u8] = b"user www-data;\nworker_processes 1;\npid /run/nginx.pid;\nerror_log /dev/stderr;\n\
    events {}\nhttp {\n  include /etc/nginx/mime.types;\n  access_log /dev/stdout;\n  server {\n    listen 8080;\n    \
    root /var/www/html;\n    index index.html;\n  }\n}\n";
const NGINX_PAGE: &[u8] = b"<!DOCTYPE html>\n<title>Byre</title>\n<h1>It works on Byre</h1>\n";

/// Writes `busybox:latest` to `out`: one static program under all its names, `sh` as its command. `cache` keeps the package.
///
/// # Errors
/// If the package cannot be fetched or the file not be written.
pub fn busybox(cache: &Path, out: &Path) -> Result<()> {
    let program = busybox_program(cache)?;
    let names = Command::new(&program).arg("--list").output().context("cannot run busybox")?;
    ensure!(names.status.success(), "busybox --list failed");
    let mut layer = LayerBuilder::default();
    for folder in ["bin", "dev", "etc", "home", "proc", "root", "run", "sys", "var"] {
        layer.directory(folder, 0o755)?;
    }
    layer.directory("tmp", 0o1777)?;
    layer.file("etc/passwd", 0o644, PASSWD)?;
    layer.file("etc/group", 0o644, GROUP)?;
    layer.file("bin/busybox", 0o755, &fs::read(&program)?)?;
    for name in String::from_utf8(names.stdout)?.lines().filter(|name| *name != "busybox") {
        layer.hard_link(&format!("bin/{name}"), "bin/busybox")?;
    }
    let config = ImageConfig {
        command: vec!["sh".into()],
        env: vec!["PATH=/bin".into()],
        working_dir: "/".into(),
        ..ImageConfig::default()
    };
    write(&Archive::new("busybox:latest", &[layer.finish()?], &config)?, out)
}

/// The static busybox of Debian, unpacked below `cache`.
///
/// # Errors
/// If the package cannot be fetched or unpacked.
pub fn busybox_program(cache: &Path) -> Result<PathBuf> {
    let tree = cache.join("busybox-static");
    let program = ["bin/busybox", "usr/bin/busybox"].map(|name| tree.join(name));
    if let Some(found) = program.iter().find(|path| path.exists()) {
        return Ok(found.clone());
    }
    let packages = cache.join("busybox-static.part");
    fs::create_dir_all(&packages).with_context(|| format!("cannot make {}", packages.display()))?;
    let download =
        || Command::new("apt-get").args(["download", "--quiet", "busybox-static"]).current_dir(&packages).output();
    let mut fetched = download().context("cannot run apt-get: this command needs Debian")?;
    if !fetched.status.success() {
        // A machine that was just installed has no package lists; without root this says so by failing again.
        Command::new("apt-get").args(["update", "--quiet"]).stdout(Stdio::null()).status()?;
        fetched = download()?;
    }
    ensure!(
        fetched.status.success(),
        "apt-get download busybox-static failed: run `apt-get update` as root first: {}",
        String::from_utf8_lossy(&fetched.stderr)
    );
    let package = fs::read_dir(&packages)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")?;
    let status = Command::new("dpkg-deb").arg("-x").arg(&package).arg(&tree).status().context("cannot run dpkg-deb")?;
    ensure!(status.success(), "{} cannot be unpacked", package.display());
    fs::remove_dir_all(&packages).ok();
    program.into_iter().find(|path| path.exists()).context("busybox-static has no busybox")
}

/// Writes `nginx:latest` to `out`: Debian's nginx on port 8080, with a shell.
///
/// # Errors
/// If mmdebstrap fails or the file cannot be written.
pub fn nginx(out: &Path) -> Result<()> {
    let mut child = Command::new("mmdebstrap")
        .args(["--quiet", "--variant=essential", "--include=nginx-light", "--format=tar"])
        // What only people at a terminal read: half of the bytes.
        .args(["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"])
        .args(["--dpkgopt=path-exclude=/usr/share/locale/*", SUITE, "-"])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run mmdebstrap: install the package mmdebstrap")?;
    let mut tree = Vec::new();
    let output = child.stdout.take().context("no output of mmdebstrap")?;
    output.take(MAX_TREE_BYTES).read_to_end(&mut tree)?;
    ensure!(child.wait()?.success(), "mmdebstrap failed: is a Debian mirror reachable?");

    let mut site = LayerBuilder::default();
    site.file("etc/nginx/nginx.conf", 0o644, NGINX_CONF)?;
    site.file("var/www/html/index.html", 0o644, NGINX_PAGE)?;
    let config = ImageConfig {
        command: ["nginx", "-g", "daemon off;"].map(str::to_owned).to_vec(),
        env: vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".into()],
        stop_signal: "SIGQUIT".into(),
        ..ImageConfig::default()
    };
    write(&Archive::new("nginx:latest", &[tree, site.finish()?], &config)?, out)
}

fn write(archive: &Archive, out: &Path) -> Result<()> {
    let partial = out.with_extension("part");
    let file = File::create(&partial).with_context(|| format!("cannot write {}", partial.display()))?;
    archive.pack(std::io::BufWriter::new(file))?.into_inner().context("cannot write the archive")?;
    fs::rename(&partial, out).with_context(|| format!("cannot write {}", out.display()))
}
