//! Bind mounts that show other ids than those on disk. The kernel takes the maps of a user namespace: the workload's own, or one that a child
//! makes for this and that ends as soon as the mount has it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_plan::{LaunchRequest, Mount, MountIds};
use rustix::io::Errno;

use crate::ids::Ids;
use crate::procfs;
use crate::report::{CHILD_DIED, Failure, Step, blocking_pair};
use crate::sys::{self, Cloned};

/// Maps the ids of mount number `index`, if it is to have maps.
pub(super) fn apply(
    index: u32,
    made: BorrowedFd<'_>,
    mount: &Mount,
    request: &LaunchRequest,
    ids: &Ids,
) -> Result<(), Failure> {
    let step = "map ids of mount";
    let Some(wanted) = request.kernel.mapped_mounts.iter().find(|one| u32::from(one.mount) == index) else {
        return Ok(());
    };
    match &wanted.ids {
        MountIds::Workload => ids.map_tree(made, wanted.recursive).step(step, &mount.target),
        MountIds::Mapped { uids, gids } => {
            let mut maps = Ids::of_maps(uids, gids);
            maps.set_namespace(namespace(&maps)?);
            maps.map_tree(made, wanted.recursive).step(step, &mount.target)
        }
    }
}

/// A user namespace with these maps, in which nobody lives. Must run in the host's PID namespace.
fn namespace(maps: &Ids) -> Result<OwnedFd, Failure> {
    let step = "make user namespace for mount";
    let (ours, theirs) = blocking_pair().step(step, "socket")?;
    match sys::clone3(u64::from(libc::CLONE_NEWUSER.unsigned_abs()), None).step(step, "clone")? {
        Cloned::Child => {
            drop(ours);
            // Until the other end is closed: the namespace's descriptor then holds it.
            let _ = rustix::io::read(&theirs, &mut [0_u8; 1]);
            sys::exit(0)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(theirs);
            let made = with_maps(maps, pid);
            drop(ours);
            let ended = rustix::process::waitid(
                rustix::process::WaitId::PidFd(pidfd.as_fd()),
                rustix::process::WaitIdOptions::EXITED,
            );
            match ended {
                // Whatever was found of it until then.
                Ok(Some(status)) if status.exit_status() != Some(0) => {
                    Err(Failure::new(CHILD_DIED, "while it held the ids of a mount", Errno::CHILD))
                }
                Ok(_) | Err(Errno::CHILD) => made,
                Err(errno) => Err(Failure::new(step, "wait", errno)),
            }
        }
    }
}

fn with_maps(maps: &Ids, pid: u32) -> Result<OwnedFd, Failure> {
    let step = "make user namespace for mount";
    let proc = procfs::of_host()?;
    let (uids, gids) = maps.lines();
    procfs::write(proc.as_fd(), &format!("{pid}/uid_map"), &uids).step(step, "uid_map")?;
    procfs::write(proc.as_fd(), &format!("{pid}/gid_map"), &gids).step(step, "gid_map")?;
    procfs::namespace(proc.as_fd(), pid, "user").step(step, "open")
}
