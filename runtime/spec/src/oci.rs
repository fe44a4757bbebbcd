//! The OCI runtime-spec: config.json of a bundle, process.json of an exec, the resources of an update, to a launch request.
//!
//! Nothing is parsed and then forgotten: [`fields::FIELDS`] says of every field what becomes of it, and a file that sets one which is not
//! supported is refused by that field's name. Properties that the specification does not know are let pass, as it wants, and reported; so are
//! names of capabilities and system calls that are not known here. What comes out is unchecked data like any request.

mod config;
mod convert;
pub mod fields;
mod kernel;
mod mounts;
mod process;
mod resources;
mod seccomp;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use byre_plan::{LaunchRequest, Process, Refusal, Resources};
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use config::{Hook, Hooks};
pub use convert::NAMESPACES;
pub use kernel::{LANDLOCK_ANNOTATION, MEMORY_FLAGS, MEMORY_MODES};
pub use mounts::{MOUNT_FLAGS, MOUNT_PROPAGATIONS};
pub use seccomp::{SECCOMP_ACTIONS, SECCOMP_FLAGS, SECCOMP_OPERATORS};

/// Oldest version of the specification that is read.
pub const VERSION_MIN: &str = "1.0.0";
/// Newest version of the specification that is read, and the one that states are written in.
pub const VERSION_MAX: &str = "1.3.0";
/// Annotations of one bundle; Kubernetes writes about twenty.
const ANNOTATIONS: usize = 1024;
/// Hooks of one kind.
const HOOKS: usize = 64;

/// What the caller knows and a bundle does not say.
#[derive(Debug, Clone, Copy)]
pub struct Around<'a> {
    /// Absolute path of the bundle.
    pub bundle: &'a str,
    /// Capabilities that the caller itself has, as a mask: none beyond them can be given.
    pub capabilities: u64,
    /// Its own `oom_score_adj`, for a bundle that says none.
    pub oom_score_adj: i16,
    /// Its own soft and hard RLIMIT_NOFILE, for a bundle that says none.
    pub open_files: (u64, u64),
}

/// A bundle, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Bundle {
    /// What is started. Its bind sources and its root may be links yet, or relative to the bundle.
    pub request: LaunchRequest,
    /// Hooks.
    pub hooks: Hooks,
    /// `linux.cgroupsPath`, may be empty.
    pub cgroups_path: String,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// The version that the bundle says.
    pub version: String,
    /// Whether it has a program at all; without one it can be created and never started.
    pub has_process: bool,
    /// Who decides about system calls that the filter hands on.
    pub listener: Option<Listener>,
    /// Interfaces of the host that move into the container, and their names there.
    pub net_devices: Vec<(String, String)>,
    /// What was not understood and does not matter.
    pub warnings: Vec<String>,
    /// What is as it should be, and only whoever looks for a fault wants to know: profiles name calls of every architecture.
    pub notes: Vec<String>,
}

/// Who decides about system calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// The unix socket that is sent the filter's descriptor.
    pub path: String,
    /// What it is told beside.
    pub metadata: String,
}

/// Reads a config.json.
///
/// # Errors
/// It is too large, no JSON, of an unknown version, or sets what is not supported; the refusal names the field.
pub fn read_bundle(json: &[u8], around: &Around<'_>) -> Result<Bundle, Refusal> {
    let (config, unknown) = read::<config::Config>(json, "")?;
    let mut warnings: Vec<String> = unknown.iter().map(|path| format!("{path} is not known and ignored")).collect();
    convert::bundle(config, around, &mut warnings).map(|bundle| Bundle { warnings, ..bundle })
}

/// Reads a process.json, as `exec --process` has it, and what was not understood of it.
///
/// # Errors
/// As [`read_bundle`].
pub fn read_process(json: &[u8], around: &Around<'_>) -> Result<(Process, Vec<String>), Refusal> {
    let (config, unknown) = read::<config::Process>(json, "process")?;
    let mut warnings: Vec<String> = unknown.iter().map(|path| format!("{path} is not known and ignored")).collect();
    let process = process::process(config, around, &mut warnings)?;
    Ok((process, warnings))
}

/// Reads the resources of an update.
///
/// # Errors
/// As [`read_bundle`].
pub fn read_resources(json: &[u8]) -> Result<Resources, Refusal> {
    let (config, _) = read::<config::Resources>(json, "linux.resources")?;
    resources::resources(&config)
}

fn read<T: DeserializeOwned>(json: &[u8], prefix: &str) -> Result<(T, Vec<String>), Refusal> {
    let name = if prefix.is_empty() { "config.json" } else { prefix };
    if json.len() > fields::CONFIG_BYTES {
        let reason = format!("has {} bytes", json.len());
        return Err(fields::refusal(name, reason, format!("use at most {}", fields::CONFIG_BYTES)));
    }
    let malformed = |error: serde_json::Error| {
        fields::refusal(name, format!("is malformed: {error}"), "write it as the runtime-spec says")
    };
    let mut value: Value = serde_json::from_slice(json).map_err(malformed)?;
    if !value.is_object() {
        return Err(fields::refusal(name, "is no JSON object", "write it as the runtime-spec says"));
    }
    let unknown = fields::walk(&mut value, prefix)?;
    Ok((T::deserialize(value).map_err(malformed)?, unknown))
}
