//! What runs between clone3 and execve. Nothing here returns to the parent's code: every path ends in execve or in `exit`.
//!
//! Happy path without a user namespace, in one process:
//! descriptors -> limits, devices -> host-side mounts -> root -> namespaces' own settings -> terminal -> identity -> privileges -> execve.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_plan::seccomp::Instruction;
use byre_plan::{LaunchRequest, Namespace, Process, Program, Root, Seccomp};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, fchdir, getcwd, set_dumpable_behavior, setsid, umask};

use crate::companion::{Companion, Moment};
use crate::descriptors::{self, Descriptors};
use crate::ids::Ids;
use crate::inside::{self, Kind};
use crate::mounts::HostSide;
use crate::report::{Failure, Message, Step, send, send_failure};
use crate::{Context, confine, devices, execute, labels, limits, mounts, rootfs, settings, sys, terminal, users};

/// Exit code of a launch child whose start failed. Nobody reads it: the report says why.
pub(crate) const FAILED: i32 = 127;

/// The beginning of every child: default signal actions, nothing blocked, not to be traced or read until execve, and no descriptors but
/// the workload's and copies of `keep`, which are returned. The report is kept too, and first among them.
pub(crate) fn begin<const KEPT: usize>(
    descriptors: &Descriptors<'_>,
    report: BorrowedFd<'_>,
    keep: [BorrowedFd<'_>; KEPT],
    companion: Option<&dyn Companion>,
) -> (OwnedFd, [OwnedFd; KEPT]) {
    fault_point!();
    let settled = || {
        sys::default_signal_actions();
        sys::set_signal_mask(0);
        set_dumpable_behavior(DumpableBehavior::NotDumpable).step("make process private", "")?;
        let companions = companion.map(Companion::descriptors).unwrap_or_default();
        let mut kept =
            descriptors::settle(descriptors, [report].into_iter().chain(keep).chain(companions))?.into_iter();
        let report = kept.next();
        let own = kept.by_ref().take(KEPT).collect::<Vec<_>>();
        if let Some(companion) = companion {
            companion.settled(kept.collect());
        }
        Ok((report, <[OwnedFd; KEPT]>::try_from(own)))
    };
    match settled() {
        Ok((Some(report), Ok(kept))) => (report, kept),
        // As many come back as go in.
        Ok((None, _) | (_, Err(_))) => sys::exit(FAILED),
        Err(failure) => fail(report, &failure),
    }
}

/// Asks the companion at a moment.
pub(crate) fn ask(companion: &dyn Companion, moment: Moment) -> Result<(), Failure> {
    let step = match moment {
        Moment::BeforeRoot => "before entering the root",
        Moment::BeforeProgram => "before executing the program",
    };
    companion.at(moment).map_err(|(subject, errno)| Failure::new(step, subject, errno))
}

/// Reports a failure and ends.
pub(crate) fn fail(report: BorrowedFd<'_>, failure: &Failure) -> ! {
    send_failure(report, failure);
    sys::exit(FAILED)
}

/// Everything in one process: no user namespace is made and no namespace is joined.
pub(crate) fn single(
    request: &LaunchRequest,
    context: &Context<'_>,
    descriptors: &Descriptors<'_>,
    report: BorrowedFd<'_>,
) -> ! {
    let keep = [context.cgroup, context.leaf, context.helper_program, context.device_program];
    let (report, [cgroup, leaf, helper, devices]) = begin(descriptors, report, keep, context.companion);
    let run = || {
        on_host(request, context, &cgroup, &leaf, &devices)?;
        let ids = Ids::default();
        if matches!(request.namespaces.mount, Namespace::New) {
            mounts::isolate()?;
        }
        let (root, mut host) = host_side(request, context, &ids)?;
        host.close_scratch()?;
        in_namespaces(request, root, host, context.companion)
    };
    if let Err(failure) = run() {
        fail(report.as_fd(), &failure);
    }
    drop((cgroup, leaf, devices));
    become_started(request, context, descriptors, &report, helper)
}

/// What every start does first, on the host side: limits and devices of the cgroup, then what a user namespace could not.
pub(crate) fn on_host(
    request: &LaunchRequest,
    context: &Context<'_>,
    cgroup: &OwnedFd,
    leaf: &OwnedFd,
    devices: &OwnedFd,
) -> Result<(), Failure> {
    limits::apply(cgroup.as_fd(), leaf.as_fd(), &request.resources)?;
    devices::confine(cgroup.as_fd(), request, devices.as_fd(), context.denied_devices)?;
    settings::oom_score(&request.process)?;
    confine::raise_rlimits(&request.process.rlimits)
}

/// Makes what every start makes on the host side once its ids are known: the root, if it is not the host's, and mounts.
pub(crate) fn host_side(
    request: &LaunchRequest,
    context: &Context<'_>,
    ids: &Ids,
) -> Result<(Option<OwnedFd>, HostSide), Failure> {
    let host = mounts::prepare(request, context, ids)?;
    let root = match &request.root {
        Root::Host => None,
        Root::Layers { layers, read_only } => Some(rootfs::assemble(layers, *read_only, context, ids)?),
        Root::Directory { path, read_only: _ } => Some(rootfs::directory(path)?),
    };
    Ok((root, host))
}

/// What every start does inside its new namespaces, up to its root.
pub(crate) fn in_namespaces(
    request: &LaunchRequest,
    root: Option<OwnedFd>,
    host: HostSide,
    companion: Option<&dyn Companion>,
) -> Result<(), Failure> {
    own_cgroup_namespace(request)?;
    // Before the root: a private procfs may be made only where the host's whole one can be seen.
    settings::apply(request)?;
    match (&request.root, root) {
        (Root::Layers { read_only, .. } | Root::Directory { read_only, .. }, Some(root)) => {
            mounts::enter_root(&root, request, &host, *read_only, companion)
        }
        (Root::Layers { .. } | Root::Directory { .. }, None) => {
            Err(Failure::new("enter root", "no root was assembled", Errno::INVAL))
        }
        (Root::Host, _) => mounts::place_all(host_root()?.as_fd(), request, &host),
    }
}

/// The end of every start: the workload's own first process.
pub(crate) fn become_started(
    request: &LaunchRequest,
    context: &Context<'_>,
    descriptors: &Descriptors<'_>,
    report: &OwnedFd,
    helper: OwnedFd,
) -> ! {
    let becoming = Becoming {
        process: &request.process,
        request,
        descriptors,
        filter: filter(request, context),
        helper: Some(helper).filter(|_| request.process.program == Program::Helper),
        is_first: true,
        companion: context.companion,
    };
    let failure = become_workload(&becoming, report);
    if let Some(companion) = context.companion {
        companion.failed(failure.step, &failure.subject, failure.errno);
    }
    fail(report.as_fd(), &failure)
}

/// The workload's filter and its flags.
pub(crate) fn filter<'a>(request: &'a LaunchRequest, context: &Context<'a>) -> Option<(&'a [Instruction], u32)> {
    match &request.seccomp {
        Seccomp::None => None,
        Seccomp::Default => Some((context.default_seccomp, 0)),
        Seccomp::Filter { instructions, flags } => Some((instructions.as_slice(), *flags)),
    }
}

fn host_root() -> Result<OwnedFd, Failure> {
    rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .step("open root", "/")
}

/// clone3 would root the new namespace at the parent's cgroup; from inside, it is rooted at the leaf.
fn own_cgroup_namespace(request: &LaunchRequest) -> Result<(), Failure> {
    match request.namespaces.cgroup {
        Namespace::New => {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP).step("make cgroup namespace", "")
        }
        Namespace::Host | Namespace::Join(_) => Ok(()),
    }
}

/// What the last part of a start and of an exec needs.
pub(crate) struct Becoming<'a> {
    pub(crate) process: &'a Process,
    pub(crate) request: &'a LaunchRequest,
    pub(crate) descriptors: &'a Descriptors<'a>,
    pub(crate) filter: Option<(&'a [Instruction], u32)>,
    /// Kept only if it is what is executed: a container that waits for its start holds nothing that it does not need.
    pub(crate) helper: Option<OwnedFd>,
    /// The workload's first process, not a further one: its terminal is the console.
    pub(crate) is_first: bool,
    pub(crate) companion: Option<&'a dyn Companion>,
}

/// In place, inside everything: session, identity, working directory, privileges, execve. Returns only on failure.
pub(crate) fn become_workload(what: &Becoming<'_>, report: &OwnedFd) -> Failure {
    let prepared = match prepare_process(what, report.as_fd()) {
        Ok(prepared) => prepared,
        Err(failure) => return failure,
    };
    fault_point!();
    // Said before the filter, which need not allow it. A failure after it is still reported, and counts.
    if let Err(errno) = send(report.as_fd(), &Message::Executing, None) {
        return Failure::new("report", "", errno);
    }
    if let Some(companion) = what.companion
        && let Err(failure) = ask(companion, Moment::BeforeProgram)
    {
        return failure;
    }
    let (identity, prepared) = prepared;
    match confine::privileges(what.process, &identity, &what.request.landlock, what.filter, what.companion) {
        Ok(()) => match what.process.program {
            Program::Path => execute::execute(&prepared, None),
            Program::Helper => execute::execute(&prepared, what.helper.as_ref().map(AsFd::as_fd)),
            // A pod does not get here.
            Program::None => Failure::new("execute", "a pod", Errno::NOEXEC),
        },
        Err(failure) => failure,
    }
}

fn prepare_process(
    what: &Becoming<'_>,
    report: BorrowedFd<'_>,
) -> Result<(users::Identity, execute::Prepared), Failure> {
    setsid().step("start session", "")?;
    descriptors::own_null(what.descriptors)?;
    let root = host_root()?;
    let identity = users::identify(root.as_fd(), &what.process.user)?;
    match what.process.terminal {
        Some(size) => terminal::open(root.as_fd(), size, &identity, report, what.is_first)?,
        None => descriptors::give_streams(identity.uid, identity.gid)?,
    }
    enter_directory(root.as_fd(), &what.process.cwd, &identity)?;
    umask(Mode::from_raw_mode(u32::from(what.process.user.umask.unwrap_or(0o022))));
    confine::rlimits(&what.process.rlimits)?;
    settings::scheduling(&what.process.scheduling, &what.request.kernel)?;
    if !what.is_first
        && let Some(processors) = &what.process.scheduling.processors.last
    {
        sys::set_processors(processors).step("set processors", "final")?;
    }
    labels::apply(root.as_fd(), &what.process.labels)?;
    let prepared = execute::prepare(what.process, identity.home.as_deref(), what.descriptors)?;
    Ok((identity, prepared))
}

/// Enters the working directory, made with the user as its owner if the image lacks it.
fn enter_directory(root: BorrowedFd<'_>, path: &str, identity: &users::Identity) -> Result<(), Failure> {
    let step = "enter working directory";
    let directory = match inside::open(root, path) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => {
            let made = inside::open_or_make(root, path, Kind::Directory).step("make working directory", path)?;
            let owner = (rustix::process::Uid::from_raw(identity.uid), rustix::process::Gid::from_raw(identity.gid));
            rustix::fs::chownat(&made, "", Some(owner.0), Some(owner.1), rustix::fs::AtFlags::EMPTY_PATH)
                .step("make working directory", path)?;
            made
        }
        Err(errno) => return Err(Failure::new(step, path, errno)),
    };
    fchdir(&directory).step(step, path)?;
    // A directory that lies outside the root has no path from here.
    let here = getcwd(Vec::new()).step(step, path)?;
    if here.as_bytes().starts_with(b"/") { Ok(()) } else { Err(Failure::new(step, path, Errno::XDEV)) }
}
