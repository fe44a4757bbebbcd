//! The check: a launch request and a node policy in, a plan that may be carried out, or a refusal that names the field, out.
//!
//! A request from the verified root is held to the bounds only; one that came from a client is held to the policy as well.
//! What a value must look like lies in `check`; this module says who may ask for what, and owns the types that a check makes.

use crate::check;
use crate::request::{LaunchRequest, Process};

/// What may be asked for on this node. It lives in the verified root. The default allows nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
    /// Containers without a seccomp filter, or with one of their own in place of the node's.
    pub no_seccomp: bool,
    /// First words that [`crate::Program::Helper`] may have.
    pub helpers: Vec<String>,
    /// Devices beside the default ones. The system disk is denied whatever this says.
    #[serde(default)]
    pub devices: bool,
}

/// Where a request comes from, hence what it is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A service definition of the verified root: bounds only.
    VerifiedRoot,
    /// Anything that a client asked for, also when it is replayed from the state partition: bounds and policy.
    Client,
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

impl Refusal {
    pub(crate) fn new(field: impl Into<String>, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into(), remedy: remedy.into() }
    }
}

/// A checked launch request. The only way to make one is a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    request: LaunchRequest,
}

impl Plan {
    /// Checks a request: every bound of [`crate::limits`], the form of every value, that the parts fit together, and, for
    /// [`Origin::Client`], that the policy allows it.
    ///
    /// # Errors
    /// The first field that is out of bounds or not allowed.
    pub fn check(request: LaunchRequest, policy: &Policy, origin: Origin) -> Result<Self, Refusal> {
        check::request(&request)?;
        match origin {
            Origin::VerifiedRoot => {}
            Origin::Client => check::allowed(&request, policy)?,
        }
        Ok(Self { request })
    }

    /// Checks a further process inside a running workload. It gets the workload's namespaces, seccomp filter and limits.
    ///
    /// # Errors
    /// The first field that is out of bounds or not allowed; a host service has no inside that a client may enter.
    pub fn check_exec(process: Process, workload: &Self, policy: &Policy, origin: Origin) -> Result<ExecPlan, Refusal> {
        check::process(&process)?;
        check::exec(&process, workload.request())?;
        match origin {
            Origin::VerifiedRoot => {}
            Origin::Client => check::exec_allowed(&process, workload.request(), policy)?,
        }
        Ok(ExecPlan { process })
    }

    /// The request, whose every field is now known to be within bounds and policy.
    #[must_use]
    pub fn request(&self) -> &LaunchRequest {
        &self.request
    }
}

/// A checked process to be started inside a running workload. The only way to make one is [`Plan::check_exec`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecPlan {
    process: Process,
}

impl ExecPlan {
    /// The process, whose every field is now known to be within bounds and policy.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
}
