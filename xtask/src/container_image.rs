//! `cargo xtask container-image`: an OCI archive of busybox or nginx, made of Debian packages and nothing else.
//!
//! apt and mmdebstrap check the packages' signatures; no registry is asked and no root is needed. The archive depends on the
//! package versions only.

use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use byre_image::compression::Compression;
use byre_image::pack::{PackConfig, rootfs, write_oci_archive};
use byre_image::reference::Reference;

use crate::packages::{self, Needed};

/// What making the images needs.
const NEEDED: &[Needed] = &[
    Needed { program: "dpkg-deb", package: "dpkg" },
    Needed { program: "mmdebstrap", package: "mmdebstrap" },
    Needed { program: "tar", package: "tar" },
];

/// The suite nginx comes from.
const SUITE: &str = "trixie";
/// Time of every file that is newer, and of the image: a fixed day, so that the archive does not depend on today.
const EPOCH: i64 = 1_735_689_600;
const CREATED: &str = "2025-01-01T00:00:00Z";

/// Arguments of `cargo xtask container-image`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Which image.
    #[arg(value_enum)]
    image: Kind,
    /// The archive to write.
    out: PathBuf,
}

/// The images that can be made.
#[derive(clap::ValueEnum, Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// One static program with a shell in it.
    Busybox,
    /// A web server on port 8080.
    Nginx,
}

/// Runs the command.
///
/// # Errors
/// If the packages cannot be fetched or the archive cannot be written; nothing half-made is left.
pub(crate) fn run(args: &Args) -> Result<()> {
    make(args.image, &args.out)?;
    println!("{}: load it with: byrectl image load {}", args.out.display(), args.out.display());
    Ok(())
}

/// Writes the image's archive to `out`.
///
/// # Errors
/// See [`run`].
pub(crate) fn make(kind: Kind, out: &Path) -> Result<()> {
    packages::ensure_installed(NEEDED)?;
    let layer = tempfile::tempfile().context("no temporary file")?;
    let (name, config) = match kind {
        Kind::Busybox => ("busybox:latest", busybox(&layer)?),
        Kind::Nginx => ("nginx:latest", nginx(&layer)?),
    };
    let name: Reference = name.parse()?;
    let partial = out.with_extension("part");
    let file = File::create(&partial).with_context(|| format!("cannot write {}", partial.display()))?;
    let written = write_oci_archive(
        BufWriter::new(file),
        &mut [layer],
        Compression::Gzip,
        &config,
        Some(&name),
        &mut tempfile::tempfile,
    )
    .and_then(|_| fs::rename(&partial, out));
    if written.is_err() {
        fs::remove_file(&partial).ok();
    }
    written.with_context(|| format!("cannot write {}", out.display()))
}

/// Makes `busybox.tar` and `nginx.tar` in `folder`, unless they are there.
///
/// # Errors
/// See [`run`].
pub(crate) fn make_all(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (kind, name) in [(Kind::Busybox, "busybox.tar"), (Kind::Nginx, "nginx.tar")] {
        let out = folder.join(name);
        if !out.exists() {
            println!("making {}", out.display());
            make(kind, &out)?;
        }
    }
    Ok(())
}

fn busybox(layer: &File) -> Result<PackConfig> {
    let dir = tempfile::tempdir()?;
    let fetched = Command::new("apt-get")
        .args(["download", "--quiet", "busybox-static"])
        .current_dir(dir.path())
        .output()
        .context("cannot run apt-get: this command needs Debian")?;
    ensure!(
        fetched.status.success(),
        "apt-get download busybox-static failed; run `sudo apt-get update` first: {}",
        String::from_utf8_lossy(&fetched.stderr)
    );
    let package = fs::read_dir(dir.path())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")?;
    let tree = dir.path().join("tree");
    let status = Command::new("dpkg-deb").arg("-x").arg(&package).arg(&tree).status().context("cannot run dpkg-deb")?;
    ensure!(status.success(), "{} cannot be unpacked", package.display());
    // Where it is depends on the suite: /usr was merged in between.
    let program = ["bin/busybox", "usr/bin/busybox"]
        .map(|name| tree.join(name))
        .into_iter()
        .find(|path| path.exists())
        .context("busybox-static has no busybox")?;
    rootfs::busybox(layer, &fs::read(&program)?, &applets(&program)?, EPOCH)?;
    Ok(PackConfig {
        cmd: vec!["sh".into()],
        env: vec!["PATH=/bin:/usr/bin".into()],
        created: CREATED.into(),
        ..PackConfig::default()
    })
}

/// Names that the program answers to.
fn applets(program: &Path) -> Result<Vec<String>> {
    let listed = Command::new(program).arg("--list").output().context("cannot run busybox")?;
    ensure!(listed.status.success(), "busybox --list failed");
    Ok(String::from_utf8(listed.stdout)?.lines().map(str::to_owned).collect())
}

fn nginx(layer: &File) -> Result<PackConfig> {
    let mut packages = tempfile::tempfile()?;
    let status = Command::new("mmdebstrap")
        .args(["--quiet", "--variant=extract", "--include=nginx,busybox-static", "--format=tar"])
        .args(["--aptopt=APT::Install-Recommends \"false\"", SUITE, "-"])
        .env("SOURCE_DATE_EPOCH", EPOCH.to_string())
        .stdin(Stdio::null())
        .stdout(packages.try_clone()?)
        .status()
        .context("cannot run mmdebstrap: install the package mmdebstrap")?;
    ensure!(status.success(), "mmdebstrap failed: is a Debian mirror reachable?");
    let dir = tempfile::tempdir()?;
    packages.seek(SeekFrom::Start(0))?;
    let status = Command::new("tar")
        .args(["-x", "--wildcards", "./usr/bin/busybox"])
        .current_dir(dir.path())
        .stdin(packages.try_clone()?)
        .status()
        .context("cannot run tar")?;
    ensure!(status.success(), "the packages hold no busybox");
    let applets = applets(&dir.path().join("usr/bin/busybox"))?;
    packages.seek(SeekFrom::Start(0))?;
    rootfs::nginx(&packages, layer, &applets, EPOCH)?;
    Ok(PackConfig {
        entrypoint: ["/usr/sbin/nginx", "-e", "stderr"].map(str::to_owned).to_vec(),
        env: vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".into()],
        user: "www-data".into(),
        working_dir: "/".into(),
        exposed_ports: vec!["8080/tcp".into()],
        stop_signal: "SIGQUIT".into(),
        created: CREATED.into(),
        ..PackConfig::default()
    })
}
