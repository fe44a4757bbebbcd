//! `cargo xtask image`: builds our programs for the target and hands them to the image builder.

use crate::{packages, tools};
use anyhow::{Context, Result, ensure};
use byre_rootfs_build::{Binaries, ImageSpec, Manifest, Release};
use std::path::{Path, PathBuf};

/// Default size of the disk image: room for a few container images. A larger disk is used whole from its first boot.
const DEFAULT_DISK_MIB: u64 = 2048;

/// The one target that images are built for.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The packages whose programs an image holds.
pub(crate) const PACKAGES: [&str; 2] = ["byre-init", "byred"];

/// Arguments of `cargo xtask image`.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Args {
    /// Cargo profile of Byre's own programs: release, or fast for development.
    #[arg(long, default_value = "release")]
    pub(crate) profile: String,
    /// Where the artefacts go [default: target/image].
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// Size of disk.img in MiB.
    #[arg(long, default_value_t = DEFAULT_DISK_MIB)]
    pub(crate) disk_mib: u64,
    /// Cargo's target directory for Byre's own programs [default: target].
    #[arg(long, env = "BYRE_IMAGE_TARGET_DIR")]
    pub(crate) target_dir: Option<PathBuf>,
    /// Jobs that cargo runs at once.
    #[arg(long)]
    pub(crate) jobs: Option<u32>,
    /// Take init, byred and byre-oci from this directory instead of building them.
    #[arg(long)]
    pub(crate) programs: Option<PathBuf>,
    /// Version of the release [default: the workspace's].
    #[arg(long = "release-version", value_name = "VERSION")]
    pub(crate) version: Option<String>,
    /// Install number of the release: rises with each one that is published.
    #[arg(long, default_value_t = 1)]
    pub(crate) install: u64,
    /// Lowest install number that a node may go back to once it runs this release.
    #[arg(long, default_value_t = 0)]
    pub(crate) minimum_install: u64,
    /// Folder with release-keys and root.json; development keys are made there if there are none [default: target/keys].
    #[arg(long, env = "BYRE_KEYS")]
    pub(crate) keys: Option<PathBuf>,
    /// Rewrite rootfs/build/packages.lock with the newest versions within its bounds, and stop.
    #[arg(long)]
    pub(crate) update_lock: bool,
}

/// The top of this checkout.
pub(crate) fn repository() -> Result<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(own.parent().context("xtask is not inside a repository")?.to_owned())
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    packages::ensure_installed(packages::FOR_IMAGE)?;
    let repository = repository()?;
    let cache = repository.join("target/packages");
    if args.update_lock {
        let inputs = repository.join("rootfs/build");
        let (lock, keyring) = (inputs.join("packages.lock"), inputs.join("archive-keyring.gpg"));
        return byre_rootfs_build::update_lock(&lock, &keyring, &cache, &mut |line| eprintln!("{line}"));
    }
    let out = args.out.clone().unwrap_or_else(|| repository.join("target/image"));
    let manifest = build(args, &repository, &out, &mut |line| eprintln!("{line}"))?;
    let mib = |bytes: u64| format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20);
    eprintln!(
        "image: {} (root {}, kernel image {}, kernel {})",
        out.join("disk.img").display(),
        mib(manifest.root_bytes),
        mib(manifest.uki_bytes),
        manifest.kernel_version
    );
    Ok(())
}

/// Builds our programs and the image; returns its manifest.
///
/// # Errors
/// When cargo or the image builder fails.
pub(crate) fn build(args: &Args, repository: &Path, out: &Path, progress: &mut dyn FnMut(&str)) -> Result<Manifest> {
    let binaries = match &args.programs {
        Some(directory) => programs_in(directory),
        None => {
            progress("image: programs");
            let packages: Vec<&str> = PACKAGES.iter().flat_map(|package| ["--package", package]).collect();
            programs_in(&build_programs(args, repository, &packages)?)
        }
    };
    let keys = crate::keys::development(args, repository)?;
    let spec = ImageSpec {
        repository: repository.to_owned(),
        cache: repository.join("target/packages"),
        out: out.to_owned(),
        binaries,
        release: Release {
            version: args.version.clone().unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
            install: args.install,
            minimum_install: args.minimum_install,
            release_keys: keys.release_keys_file(),
            tuf_root: keys.root_file(),
        },
        disk_bytes: args.disk_mib << 20,
    };
    byre_rootfs_build::build(&spec, progress)
}

/// The programs in `directory`; the image build says so if init is missing.
fn programs_in(directory: &Path) -> Binaries {
    let optional = |name: &str| Some(directory.join(name)).filter(|path| path.exists());
    Binaries { init: directory.join("init"), byred: optional("byred"), byre_oci: optional("byre-oci") }
}

/// Runs cargo for the packages and programs that `what` selects; returns the directory with what it built. All that is built with the
/// image's profile goes through here: other flags in the same directory would have everything built anew, every time.
///
/// # Errors
/// When cargo fails.
pub(crate) fn build_programs(args: &Args, repository: &Path, what: &[&str]) -> Result<PathBuf> {
    let target_dir = args
        .target_dir
        .clone()
        .or_else(|| std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from))
        .unwrap_or_else(|| repository.join("target"));
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".cargo")));
    // The same bytes wherever the sources lie: paths of this machine are mapped away. The place of downloaded crates is the same for all
    // checkouts; those of a checkout reach its own crates alone, so that the others are built once. Merged with .cargo/config.toml.
    let flags: Vec<String> =
        cargo_home.map(|path| format!("--remap-path-prefix={}=/cargo", path.display())).into_iter().collect();
    let wrappers = repository.join("xtask/wrapper");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(wrappers).chain(std::env::split_paths(&path)))?;
    let mut command = tools::cargo();
    command
        .current_dir(repository)
        .args(["build", "--locked", "--quiet", "--target", TARGET, "--profile", &args.profile])
        .args(what)
        .arg("--target-dir")
        .arg(&target_dir)
        .arg("--config")
        .arg(format!("target.{TARGET}.rustflags={}", toml::Value::from(flags)))
        // A bare name, found in PATH: a path would be part of what names the symbols of the crates.
        .env("CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER", "byre-mapped-rustc")
        .env("PATH", path)
        .env("BYRE_CHECKOUT", repository)
        .env("BYRE_CHECKOUT_TARGET", repository.join(&target_dir))
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    if let Some(jobs) = args.jobs {
        command.args(["--jobs", &jobs.to_string()]);
    }
    ensure!(command.status().context("cannot run cargo")?.success(), "cargo build failed");
    Ok(target_dir.join(TARGET).join(if args.profile == "dev" { "debug" } else { &args.profile }))
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from)
}
