//! Programs of this side: what the checks need and a toolchain may lack (components of rustup, cargo-deny), and our own byrectl.
//!
//! Kept below `target/`, so that `cargo clean` removes everything that was ever put anywhere; nothing of the user's is changed but for
//! components of their own toolchain, which are named before they are added.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The version that deny.toml is written for.
const CARGO_DENY: &str = "0.20.2";

/// Cargo as a shell would run it. `cargo xtask` hands down variables that speak of xtask itself, and build scripts that look at them
/// (ring's does) make everything above them be built anew at each change between the two.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env!("CARGO"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command
}

/// Sees to it that `cargo <component>` exists.
pub(crate) fn rust_component(root: &Path, component: &str) -> Result<()> {
    let subcommand = if component == "rustfmt" { "fmt" } else { component };
    let there = Command::new(env!("CARGO")).args([subcommand, "--version"]).current_dir(root).output();
    if there.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    println!("adding the component {component} to the toolchain");
    let status = Command::new("rustup").args(["component", "add", component]).current_dir(root).status();
    let status = status.with_context(|| format!("{component} is missing and rustup is not there to add it"))?;
    ensure!(status.success(), "rustup component add {component} failed: add it by hand");
    Ok(())
}

/// Builds byrectl and gives its path. A development build: it shares its dependencies with xtask itself, which are thus not built again.
pub(crate) fn byrectl(repository: &Path) -> Result<PathBuf> {
    let status = cargo()
        .args(["build", "--quiet", "--locked", "--package", "byrectl"])
        .current_dir(repository)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "byrectl does not build");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository.join("target"), PathBuf::from);
    target.join("x86_64-unknown-linux-gnu/debug/byrectl").canonicalize().context("byrectl was not built")
}

/// The path of cargo-deny, built from its published source on first use: without optimisation and without its own git (it calls the program),
/// which takes 75 s on two processors instead of minutes.
pub(crate) fn cargo_deny(target: &Path) -> Result<PathBuf> {
    let tools = target.join("tools");
    let program = tools.join("bin/cargo-deny");
    let version = Command::new(&program).arg("--version").output();
    if version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim().ends_with(CARGO_DENY)) {
        return Ok(program);
    }
    println!("building cargo-deny {CARGO_DENY} into {}", tools.display());
    let build = tools.join("build");
    // From a folder of its own: the workspace's flags (static linking) are for the system, not for tools.
    std::fs::create_dir_all(&tools).with_context(|| format!("cannot make {}", tools.display()))?;
    let status = Command::new(env!("CARGO"))
        .args(["install", "--quiet", "--locked", "--debug", "--no-default-features", "--version", CARGO_DENY])
        .args(["cargo-deny", "--root"])
        .arg(&tools)
        .env("CARGO_TARGET_DIR", &build)
        .env("CARGO_PROFILE_DEV_DEBUG", "false")
        .env("CARGO_BUILD_RUSTFLAGS", "")
        .env("CARGO_ENCODED_RUSTFLAGS", "")
        .current_dir("/")
        .status()
        .context("cannot run cargo install")?;
    ensure!(status.success(), "cargo-deny {CARGO_DENY} cannot be built: is the crate registry reachable?");
    // Some hundred megabytes that nobody needs again.
    std::fs::remove_dir_all(&build).ok();
    Ok(program)
}
