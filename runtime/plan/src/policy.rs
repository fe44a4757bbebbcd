//! The check: a launch request and a node policy in, a plan that may be carried out, or a refusal that names the field, out.

use crate::request::LaunchRequest;

/// What may be asked for on this node. It lives in the verified root.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Host network namespace.
    pub host_network: bool,
    /// Host PID, IPC, UTS or cgroup namespaces.
    pub host_namespaces: bool,
    /// No user namespace: container root is host root with fewer capabilities.
    pub host_users: bool,
    /// Capabilities that a container may have at most, as a bit mask.
    pub capabilities: u64,
    /// Host paths below which bind mounts may begin.
    pub bind_sources: Vec<String>,
    /// Containers without a seccomp filter.
    pub no_seccomp: bool,
    /// First words that [`crate::Program::Helper`] may have.
    pub helpers: Vec<String>,
}

/// Why a request is not a plan. Data; its text is its only text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("{field}: {reason}; {remedy}")]
pub struct Refusal {
    /// The field, as a path such as `mounts[3].target`.
    pub field: String,
    /// What is wrong with its value.
    pub reason: String,
    /// What to do instead.
    pub remedy: String,
}

/// A checked launch request. The only way to make one is a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    request: LaunchRequest,
}

impl Plan {
    /// The request, whose every field is now known to be within bounds and policy.
    #[must_use]
    pub fn request(&self) -> &LaunchRequest {
        &self.request
    }
}
