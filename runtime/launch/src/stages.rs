//! Starts and execs that take two stages, because part of the work needs capabilities of the host's user namespace.
//!
//! Start: PID 1 -> stage 1 (in the launch cgroup): limits, devices, shared layers -> own mount namespace, joined namespaces -> clones stage 2 as its
//! sibling -> writes its id maps -> makes mounts that show them -> hands them over -> ends. Stage 2 goes on inside.
//! Exec: stage 1 enters the PID namespace only, so that stage 2 can be put into the workload's cgroup by the host's root; stage 2 enters the rest.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_plan::{ExecPlan, LaunchRequest, MountIds, Namespace, Program, Root, UserNamespace};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::child::{
    self, Becoming, FAILED, become_started, become_workload, begin, fail, host_side, in_namespaces, on_host,
};
use crate::descriptors::{self, Descriptors};
use crate::ids::Ids;
use crate::report::{Failure, Message, Step, blocking_pair, send};
use crate::sys::{self, Cloned};
use crate::{Context, confine, handover, layers, mounts, namespace_flags, procfs, settings};

/// Whether a start needs a stage 1.
pub(crate) fn needed(request: &LaunchRequest) -> bool {
    let namespaces = &request.namespaces;
    let own_users = match namespaces.user {
        UserNamespace::Host => false,
        UserNamespace::Automatic | UserNamespace::Mapped { .. } | UserNamespace::Join(_) => true,
    };
    // The user namespace that such a mount needs is made by a child of stage 1, which must know it by its number on the host.
    let own_maps = request.kernel.mapped_mounts.iter().any(|one| matches!(one.ids, MountIds::Mapped { .. }));
    own_users || own_maps || joined(request).next().is_some()
}

fn joined(request: &LaunchRequest) -> impl Iterator<Item = (&str, CloneFlags)> {
    let namespaces = &request.namespaces;
    let all = [
        (&namespaces.net, CloneFlags::CLONE_NEWNET),
        (&namespaces.ipc, CloneFlags::CLONE_NEWIPC),
        (&namespaces.uts, CloneFlags::CLONE_NEWUTS),
        (&namespaces.cgroup, CloneFlags::CLONE_NEWCGROUP),
        (&namespaces.pid, CloneFlags::CLONE_NEWPID),
    ];
    all.into_iter().filter_map(|(namespace, kind)| match namespace {
        Namespace::Join(path) => Some((path.as_str(), kind)),
        Namespace::New | Namespace::Host => None,
    })
}

/// Stage 1 of a start.
pub(crate) fn start(
    request: &LaunchRequest,
    context: &Context<'_>,
    descriptors: &Descriptors<'_>,
    report: BorrowedFd<'_>,
) -> ! {
    let keep = [context.cgroup, context.leaf, context.helper_program, context.device_program];
    let (report, [cgroup, leaf, helper, devices]) = begin(descriptors, report, keep, context.companion);
    let first = || -> Result<(Ids, OwnedFd, OwnedFd, Cloned), Failure> {
        on_host(request, context, &cgroup, &leaf, &devices)?;
        if let Root::Layers { layers, .. } = &request.root {
            layers::share(layers, context)?;
        }
        // What it attaches from here on is seen by nobody else.
        unshare(CloneFlags::CLONE_NEWNS).step("make mount namespace", "")?;
        mounts::isolate()?;
        join(request, context)?;
        let ids = Ids::of(&request.namespaces.user, context.id_base).step("find id range", "")?;
        let (uid, gid) = ids.root();
        descriptors::give_streams(uid, gid)?;
        let (ours, theirs) = blocking_pair().step("make handover socket", "")?;
        let users = if ids.is_host() { 0 } else { u64::from(libc::CLONE_NEWUSER.unsigned_abs()) };
        let flags = sys::CLONE_PARENT | users | namespace_flags(request);
        let cloned = sys::clone3(flags, Some(leaf.as_fd())).step("clone", "")?;
        Ok((ids, ours, theirs, cloned))
    };
    let (ids, ours, theirs, cloned) = match first() {
        Ok(first) => first,
        Err(failure) => fail(report.as_fd(), &failure),
    };
    drop((cgroup, leaf, devices));
    match cloned {
        Cloned::Child => {
            drop(ours);
            second(request, context, descriptors, &ids, theirs, report, helper)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(theirs);
            match prepare(request, context, ids, pid, &pidfd, &ours, &report) {
                Ok(()) => let_go(report, &ours),
                // Closing the handover socket ends stage 2.
                Err(failure) => fail(report.as_fd(), &failure),
            }
        }
    }
}

/// The rest of stage 1, with stage 2 waiting.
fn prepare(
    request: &LaunchRequest,
    context: &Context<'_>,
    mut ids: Ids,
    pid: u32,
    pidfd: &OwnedFd,
    handover: &OwnedFd,
    report: &OwnedFd,
) -> Result<(), Failure> {
    send(report.as_fd(), &Message::Started { pid }, Some(pidfd.as_fd())).step("report", "process")?;
    if !ids.is_host() {
        let proc = procfs::of_host()?;
        let (uids, gids) = ids.lines();
        procfs::write(proc.as_fd(), &format!("{pid}/uid_map"), &uids).step("write id map", "uid_map")?;
        procfs::write(proc.as_fd(), &format!("{pid}/gid_map"), &gids).step("write id map", "gid_map")?;
        ids.set_namespace(procfs::namespace(proc.as_fd(), pid, "user").step("open user namespace", "")?);
    }
    let (root, host) = host_side(request, context, &ids)?;
    handover::give(handover.as_fd(), root.as_ref(), &host)
}

/// The end of stage 1. The report is closed before stage 2 goes on: when that has ended, however soon, PID 1 can read the whole report.
pub(crate) fn let_go(report: OwnedFd, handover: &OwnedFd) -> ! {
    drop(report);
    handover::go(handover.as_fd());
    sys::exit(0)
}

/// Stage 2: the workload's own process.
fn second(
    request: &LaunchRequest,
    context: &Context<'_>,
    descriptors: &Descriptors<'_>,
    ids: &Ids,
    handover: OwnedFd,
    report: OwnedFd,
    helper: OwnedFd,
) -> ! {
    fault_point!();
    let run = || {
        let Some(received) = handover::take(handover.as_fd())? else { sys::exit(FAILED) };
        drop(handover);
        if !ids.is_host() {
            become_root()?;
        }
        in_namespaces(request, received.root, received.host, context.companion)
    };
    match run() {
        Ok(()) => become_started(request, context, descriptors, &report, helper),
        Err(failure) => fail(report.as_fd(), &failure),
    }
}

/// Becomes root of the user namespace: until then this process has an id that the namespace does not know.
pub(crate) fn become_root() -> Result<(), Failure> {
    let step = "become the namespace's root";
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    set_thread_groups(&[]).step(step, "groups")?;
    set_thread_res_gid(gid, gid, gid).step(step, "group")?;
    set_thread_res_uid(uid, uid, uid).step(step, "user")
}

/// Enters the namespaces that are joined, but for the user namespace.
pub(crate) fn join(request: &LaunchRequest, context: &Context<'_>) -> Result<(), Failure> {
    for (path, kind) in joined(request) {
        // The kernel checks that the file is a namespace of this kind.
        setns(&bound_namespace(path, context)?, kind).step("join namespace", path)?;
    }
    Ok(())
}

/// A namespace that a path leads to.
pub(crate) fn bound_namespace(path: &str, context: &Context<'_>) -> Result<OwnedFd, Failure> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match context.companion {
        Some(companion) => companion.namespace(path),
        None => openat2(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), resolve),
    }
    .step("join namespace", path)
}

/// The namespaces of a workload that an exec enters, but for the PID namespace.
fn entered(request: &LaunchRequest) -> CloneFlags {
    let namespaces = &request.namespaces;
    let mut flags = match namespaces.user {
        UserNamespace::Host => CloneFlags::empty(),
        UserNamespace::Automatic | UserNamespace::Mapped { .. } | UserNamespace::Join(_) => CloneFlags::CLONE_NEWUSER,
    };
    if request.kernel.time.is_some() {
        flags |= sys::NEW_TIME;
    }
    for (namespace, flag) in [
        (&namespaces.mount, CloneFlags::CLONE_NEWNS),
        (&namespaces.net, CloneFlags::CLONE_NEWNET),
        (&namespaces.ipc, CloneFlags::CLONE_NEWIPC),
        (&namespaces.uts, CloneFlags::CLONE_NEWUTS),
        (&namespaces.cgroup, CloneFlags::CLONE_NEWCGROUP),
    ] {
        match namespace {
            Namespace::New | Namespace::Join(_) => flags |= flag,
            Namespace::Host => {}
        }
    }
    flags
}

/// Stage 1 of an exec.
pub(crate) fn exec(
    plan: &ExecPlan,
    request: &LaunchRequest,
    target: BorrowedFd<'_>,
    context: &Context<'_>,
    descriptors: &Descriptors<'_>,
    report: BorrowedFd<'_>,
) -> ! {
    let (report, [target, leaf, helper]) =
        begin(descriptors, report, [target, context.leaf, context.helper_program], context.companion);
    let first = || {
        if let Some(processors) = &plan.process().scheduling.processors.initial {
            sys::set_processors(processors).step("set processors", "initial")?;
        }
        settings::oom_score(plan.process())?;
        confine::raise_rlimits(&plan.process().rlimits)?;
        let ids = Ids::of(&request.namespaces.user, context.id_base).step("find id range", "")?;
        let (uid, gid) = ids.root();
        descriptors::give_streams(uid, gid)?;
        match request.namespaces.pid {
            Namespace::New | Namespace::Join(_) => {
                setns(&target, CloneFlags::CLONE_NEWPID).step("enter workload", "pid")?;
            }
            Namespace::Host => {}
        }
        let (ours, theirs) = blocking_pair().step("make handover socket", "")?;
        Ok((ours, theirs, sys::clone3(sys::CLONE_PARENT, Some(leaf.as_fd())).step("clone", "")?))
    };
    let cloned = first();
    drop(leaf);
    match cloned {
        Ok((ours, theirs, Cloned::Child)) => {
            drop(ours);
            exec_second(plan, request, (target, theirs), context, descriptors, report, helper)
        }
        Ok((ours, _, Cloned::Parent { pid, pidfd })) => {
            match send(report.as_fd(), &Message::Started { pid }, Some(pidfd.as_fd())) {
                Ok(()) => let_go(report, &ours),
                Err(errno) => {
                    let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
                    fail(report.as_fd(), &Failure::new("report", "process", errno))
                }
            }
        }
        Err(failure) => fail(report.as_fd(), &failure),
    }
}

/// Stage 2 of an exec. Until it enters the user namespace it has the host's credentials, and is not dumpable.
fn exec_second(
    plan: &ExecPlan,
    request: &LaunchRequest,
    (target, handover): (OwnedFd, OwnedFd),
    context: &Context<'_>,
    descriptors: &Descriptors<'_>,
    report: OwnedFd,
    helper: OwnedFd,
) -> ! {
    fault_point!();
    let enter = || {
        if handover::take(handover.as_fd())?.is_none() {
            sys::exit(FAILED);
        }
        drop(handover);
        let flags = entered(request);
        if !flags.is_empty() {
            setns(&target, flags).step("enter workload", "namespaces")?;
        }
        drop(target);
        if flags.contains(CloneFlags::CLONE_NEWUSER) { become_root() } else { Ok(()) }
    };
    if let Err(failure) = enter() {
        fail(report.as_fd(), &failure);
    }
    let becoming = Becoming {
        process: plan.process(),
        request,
        descriptors,
        filter: child::filter(request, context),
        helper: Some(helper).filter(|_| plan.process().program == Program::Helper),
        is_first: false,
        companion: context.companion,
    };
    let failure = become_workload(&becoming, &report);
    fail(report.as_fd(), &failure)
}
