//! From a checked plan to a running process: the only way in which anything is started on a node.
//!
//! PID 1 links this crate. In PID 1's own process it makes a cgroup, a socket pair and one `clone3`; everything that can fail or take
//! long runs in the child, as small steps that report their failure by name. Without a user namespace the child becomes the workload;
//! with one it is *stage 1*, which prepares what needs the host's capabilities and clones the workload as PID 1's own child.
//!
//! The process that calls [`start`] must have one thread: the child allocates. `unsafe` lives in `sys` only.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

#[macro_use]
mod fault;

pub mod cgroup;
mod child;
mod companion;
mod confine;
mod descriptors;
mod devices;
mod execute;
mod handover;
mod ids;
mod inside;
mod joined;
mod labels;
mod layers;
mod limits;
mod mounts;
mod pod;
mod procfs;
mod remove;
mod report;
mod rootfs;
mod settings;
mod stages;
#[allow(unsafe_code)]
mod sys;
mod terminal;
mod users;
mod volumes;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_plan::seccomp::Instruction;
use byre_plan::{ExecPlan, LaunchRequest, Namespace, Plan, WorkloadId};
use rustix::io::Errno;

pub use companion::{Companion, Moment};
pub use descriptors::{Descriptors, Stdio};
pub use devices::load_default_device_program;
#[cfg(feature = "fault-points")]
pub use fault::observe_faults;
pub use layers::release_layers;
pub use pod::{are_bound, open_network, release_namespaces};
pub use remove::remove_container_files;
pub use report::{CHILD_DIED, Progress, Report, read_report};
pub use sys::{is_pid1, mark_pid1};

use report::Message;
use sys::Cloned;

/// A fuzzer's way in: uid, gid and groups of a user by these files, `None` if they do not name it.
#[must_use]
pub fn ids_of(user: &byre_plan::User, passwd: &str, group: &str) -> Option<(u32, u32, Vec<u32>)> {
    let identity = users::resolve(user, passwd, group).ok()?;
    Some((identity.uid, identity.gid, identity.groups))
}

/// What PID 1 knows and a plan does not say. All paths are PID 1's own constants.
#[derive(Debug)]
pub struct Context<'a> {
    /// The workload.
    pub id: WorkloadId,
    /// First of 65536 host ids, for [`byre_plan::UserNamespace::Automatic`].
    pub id_base: Option<u32>,
    /// The outer cgroup, which carries the limits.
    pub cgroup: BorrowedFd<'a>,
    /// The leaf below it, where the workload's processes begin.
    pub leaf: BorrowedFd<'a>,
    /// Where stage 1 runs.
    pub launch_cgroup: BorrowedFd<'a>,
    /// Directory of the images' layers.
    pub store_layers: &'a str,
    /// Directory where layers are mounted for all containers. Its mounts must be shared with copies of the namespace, or those pin them.
    pub shared_layers: &'a str,
    /// Directory of the containers' own files: `<id>/upper`, `<id>/work` and `<id>/volumes/<number>`.
    pub containers: &'a str,
    /// Directory of the volumes.
    pub volumes: &'a str,
    /// Directory where a pod's namespaces are bound, as `net`, `ipc`, `uts` and `user`. Its parent's mounts must be shared with copies of the
    /// namespace, or those pin them.
    pub namespaces: Option<&'a str>,
    /// The node's default filter, compiled once.
    pub default_seccomp: &'a [Instruction],
    /// `byred`, opened from the verified root.
    pub helper_program: BorrowedFd<'a>,
    /// What [`load_default_device_program`] gave for `denied_devices`.
    pub device_program: BorrowedFd<'a>,
    /// The system disk and its partitions as (major, minor); a minor of `u32::MAX` is all of the major.
    pub denied_devices: &'a [(u32, u32)],
    /// What goes with the start; PID 1's have nothing.
    pub companion: Option<&'a dyn Companion>,
}

/// A start under way.
#[derive(Debug)]
pub struct Child {
    /// The process that was cloned: the workload itself, or stage 1.
    pub stage_pid: u32,
    /// Its descriptor.
    pub stage_pidfd: OwnedFd,
    /// To be read with [`read_report`] on EPOLLRDHUP. SOCK_SEQPACKET, non-blocking, close-on-exec.
    pub report: OwnedFd,
}

/// A start that did not even begin.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}: {errno}")]
pub struct StartError {
    step: &'static str,
    errno: Errno,
}

impl StartError {
    fn at(step: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self { step, errno }
    }
}

/// Starts a plan's process. Returns as soon as the child exists.
///
/// # Errors
/// The socket pair or the clone failed; nothing is left behind.
pub fn start(plan: &Plan, context: &Context<'_>, descriptors: &Descriptors<'_>) -> Result<Child, StartError> {
    let request = plan.request();
    if request.process.program == byre_plan::Program::None {
        return clone(0, context.launch_cgroup, Is::Stage, |report| pod::make(request, context, descriptors, report));
    }
    if let byre_plan::UserNamespace::Join(users) = &request.namespaces.user {
        return clone(0, context.launch_cgroup, Is::Stage, |report| {
            joined::start(request, users, context, descriptors, report)
        });
    }
    if stages::needed(request) {
        return clone(0, context.launch_cgroup, Is::Stage, |report| {
            stages::start(request, context, descriptors, report)
        });
    }
    clone(namespace_flags(request), context.leaf, Is::Workload, |report| {
        child::single(request, context, descriptors, report)
    })
}

/// Starts a further process inside a running workload, by the descriptor of one of its processes. Returns as soon as the child exists.
///
/// # Errors
/// The socket pair or the clone failed; nothing is left behind.
pub fn exec(
    plan: &ExecPlan,
    workload: &Plan,
    target: BorrowedFd<'_>,
    context: &Context<'_>,
    descriptors: &Descriptors<'_>,
) -> Result<Child, StartError> {
    clone(0, context.launch_cgroup, Is::Stage, |report| {
        stages::exec(plan, workload.request(), target, context, descriptors, report)
    })
}

/// Applies a plan's limits to cgroups that exist already. For a process that may wait; PID 1 lets a child of its own do it.
///
/// # Errors
/// The step, what it was about, and the kernel's error number.
pub fn apply_limits(
    plan: &Plan,
    outer: BorrowedFd<'_>,
    leaf: BorrowedFd<'_>,
) -> Result<(), (&'static str, String, i32)> {
    limits::apply(outer, leaf, &plan.request().resources)
        .map_err(|failure| (failure.step, failure.subject, failure.errno))
}

/// What a clone of PID 1 is to become.
enum Is {
    /// The workload's own process.
    Workload,
    /// A helper that clones it.
    Stage,
}

fn clone(flags: u64, cgroup: BorrowedFd<'_>, is: Is, run: impl FnOnce(BorrowedFd<'_>)) -> Result<Child, StartError> {
    let (report, childs) = report::pair().map_err(StartError::at("make report socket"))?;
    // Nothing may interrupt the child before its handlers are gone; it resets its own mask.
    let mask = sys::set_signal_mask(u64::MAX);
    match sys::clone3(flags | sys::CLONE_CLEAR_SIGHAND, Some(cgroup)) {
        Ok(Cloned::Child) => {
            run(childs.as_fd());
            sys::exit(child::FAILED)
        }
        Ok(Cloned::Parent { pid, pidfd }) => {
            sys::set_signal_mask(mask);
            let sent = match is {
                Is::Workload => report::send(childs.as_fd(), &Message::Started { pid }, Some(pidfd.as_fd())),
                Is::Stage => Ok(()),
            };
            if let Err(errno) = sent {
                let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
                return Err(StartError::at("report the process")(errno));
            }
            Ok(Child { stage_pid: pid, stage_pidfd: pidfd, report })
        }
        Err(errno) => {
            sys::set_signal_mask(mask);
            Err(StartError::at("clone")(errno))
        }
    }
}

/// CLONE_NEW* of the namespaces that are new, but for the user and cgroup namespaces, which have their own moments.
fn namespace_flags(request: &LaunchRequest) -> u64 {
    let namespaces = &request.namespaces;
    let flags = [
        (&namespaces.mount, libc::CLONE_NEWNS),
        (&namespaces.pid, libc::CLONE_NEWPID),
        (&namespaces.net, libc::CLONE_NEWNET),
        (&namespaces.ipc, libc::CLONE_NEWIPC),
        (&namespaces.uts, libc::CLONE_NEWUTS),
    ];
    flags.into_iter().fold(0, |all, (namespace, flag)| match namespace {
        Namespace::New => all | u64::from(flag.unsigned_abs()),
        Namespace::Host | Namespace::Join(_) => all,
    })
}
