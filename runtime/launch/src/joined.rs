//! Starts in a user namespace that exists already, as that of a pod.
//!
//! Its maps are written, so stage 1 makes every mount before it clones, while it has the host's capabilities; then it enters the namespace,
//! and what it clones there belongs to it: `PID 1 -> stage 1: host side -> user namespace -> clones stage 2 as its sibling -> ends`.
//! A process that entered keeps the host's user id, so it may still put its clone into the workload's cgroup.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_plan::{LaunchRequest, Root};
use nix::sched::{CloneFlags, setns, unshare};

use crate::child::{FAILED, become_started, begin, fail, host_side, in_namespaces, on_host};
use crate::descriptors::{self, Descriptors};
use crate::ids::Ids;
use crate::mounts::HostSide;
use crate::report::{Failure, Message, Step, blocking_pair, send};
use crate::stages::{become_root, bound_namespace, join, let_go};
use crate::sys::{self, Cloned};
use crate::{Context, handover, layers, mounts, namespace_flags};

/// What stage 2 finds made.
struct Prepared {
    root: Option<OwnedFd>,
    host: HostSide,
    handover: (OwnedFd, OwnedFd),
    cloned: Cloned,
}

/// Stage 1.
pub(crate) fn start(
    request: &LaunchRequest,
    users: &str,
    context: &Context<'_>,
    descriptors: &Descriptors<'_>,
    report: BorrowedFd<'_>,
) -> ! {
    let keep = [context.cgroup, context.leaf, context.helper_program, context.device_program];
    let (report, [cgroup, leaf, helper, devices]) = begin(descriptors, report, keep, context.companion);
    let prepare = || {
        on_host(request, context, &cgroup, &leaf, &devices)?;
        prepare(request, users, context, leaf.as_fd())
    };
    let Prepared { root, host, handover: (ours, theirs), cloned } = match prepare() {
        Ok(prepared) => prepared,
        Err(failure) => fail(report.as_fd(), &failure),
    };
    drop((cgroup, leaf, devices));
    match cloned {
        Cloned::Child => {
            fault_point!();
            drop(ours);
            let run = || {
                if handover::take(theirs.as_fd())?.is_none() {
                    sys::exit(FAILED);
                }
                drop(theirs);
                become_root()?;
                in_namespaces(request, root, host, context.companion)
            };
            match run() {
                Ok(()) => become_started(request, context, descriptors, &report, helper),
                Err(failure) => fail(report.as_fd(), &failure),
            }
        }
        Cloned::Parent { pid, pidfd } => {
            drop(theirs);
            match send(report.as_fd(), &Message::Started { pid }, Some(pidfd.as_fd())).step("report", "process") {
                Ok(()) => let_go(report, &ours),
                // Closing the handover socket ends stage 2.
                Err(failure) => fail(report.as_fd(), &failure),
            }
        }
    }
}

fn prepare(
    request: &LaunchRequest,
    users: &str,
    context: &Context<'_>,
    leaf: BorrowedFd<'_>,
) -> Result<Prepared, Failure> {
    if let Root::Layers { layers, .. } = &request.root {
        layers::share(layers, context)?;
    }
    unshare(CloneFlags::CLONE_NEWNS).step("make mount namespace", "")?;
    mounts::isolate()?;
    let namespace = bound_namespace(users, context)?;
    join(request, context)?;
    let mut ids = Ids::of(&request.namespaces.user, context.id_base).step("find id range", "")?;
    ids.set_namespace(namespace.try_clone().step("keep user namespace", users)?);
    let (uid, gid) = ids.root();
    descriptors::give_streams(uid, gid)?;
    let (root, mut host) = host_side(request, context, &ids)?;
    host.close_scratch()?;
    let handover = blocking_pair().step("make handover socket", "")?;
    setns(&namespace, CloneFlags::CLONE_NEWUSER).step("enter user namespace", users)?;
    let flags = sys::CLONE_PARENT | namespace_flags(request);
    let cloned = sys::clone3(flags, Some(leaf)).step("clone", "")?;
    Ok(Prepared { root, host, handover, cloned })
}
