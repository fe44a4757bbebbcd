//! Which host ids a workload's ids are.

use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_plan::{IdMap, UserNamespace};
use rustix::io::Errno;

use crate::sys::{MountAttributes, mount_setattr};

/// Ids of one automatic range: enough for every id that images use.
const AUTOMATIC_COUNT: u32 = 65_536;
/// MOUNT_ATTR_IDMAP of linux/mount.h.
const IDMAP: u64 = 0x0010_0000;

/// A workload's id maps; none means that its ids are the host's.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    uids: Vec<IdMap>,
    gids: Vec<IdMap>,
    namespace: Option<OwnedFd>,
}

impl Ids {
    /// The maps that a plan asks for.
    ///
    /// # Errors
    /// EINVAL if it asks for an automatic range and none was assigned.
    pub(crate) fn of(user: &UserNamespace, base: Option<u32>) -> Result<Self, Errno> {
        let (uids, gids) = match user {
            UserNamespace::Host => (Vec::new(), Vec::new()),
            UserNamespace::Automatic | UserNamespace::Join(_) => {
                let map = IdMap { inside: 0, outside: base.ok_or(Errno::INVAL)?, count: AUTOMATIC_COUNT };
                (vec![map], vec![map])
            }
            UserNamespace::Mapped { uids, gids } => (uids.clone(), gids.clone()),
        };
        Ok(Self { uids, gids, namespace: None })
    }

    /// Maps that no workload lives by: those of a mount.
    pub(crate) fn of_maps(uids: &[IdMap], gids: &[IdMap]) -> Self {
        Self { uids: uids.to_vec(), gids: gids.to_vec(), namespace: None }
    }

    /// Whether ids inside are the host's own.
    pub(crate) fn is_host(&self) -> bool {
        self.uids.is_empty()
    }

    /// The host ids of the workload's root; the host's root where it has none.
    pub(crate) fn root(&self) -> (u32, u32) {
        (outside(&self.uids, 0), outside(&self.gids, 0))
    }

    /// The host ids of a user and a group of the workload.
    ///
    /// # Errors
    /// EOVERFLOW if it has no such ids.
    pub(crate) fn outside(&self, uid: u32, gid: u32) -> Result<(u32, u32), Errno> {
        match (find(&self.uids, uid), find(&self.gids, gid)) {
            _ if self.is_host() => Ok((uid, gid)),
            (Some(uid), Some(gid)) => Ok((uid, gid)),
            (Some(_) | None, Some(_) | None) => Err(Errno::OVERFLOW),
        }
    }

    /// What goes into uid_map and gid_map.
    pub(crate) fn lines(&self) -> (String, String) {
        (lines(&self.uids), lines(&self.gids))
    }

    /// Keeps the user namespace that has these maps, for idmapped mounts.
    pub(crate) fn set_namespace(&mut self, namespace: OwnedFd) {
        self.namespace = Some(namespace);
    }

    /// Makes a detached mount show id N of the disk as the workload's id N.
    ///
    /// # Errors
    /// The kernel's; EINVAL for a file system that cannot.
    pub(crate) fn apply_to(&self, mount: BorrowedFd<'_>) -> Result<(), Errno> {
        if self.is_host() { Ok(()) } else { self.map_tree(mount, false) }
    }

    /// The same for a mount that is mapped whatever the workload's ids are, and for the mounts below it if `recursive`.
    ///
    /// # Errors
    /// As [`Self::apply_to`]; EINVAL if there is no user namespace.
    pub(crate) fn map_tree(&self, mount: BorrowedFd<'_>, recursive: bool) -> Result<(), Errno> {
        let namespace = self.namespace.as_ref().ok_or(Errno::INVAL)?;
        let userns = u64::from(std::os::fd::AsRawFd::as_raw_fd(&namespace.as_fd()).unsigned_abs());
        mount_setattr(mount, c"", recursive, &MountAttributes { set: IDMAP, userns, ..MountAttributes::default() })
    }
}

fn outside(maps: &[IdMap], inside: u32) -> u32 {
    // No map at all is the host itself.
    find(maps, inside).unwrap_or(if maps.is_empty() { inside } else { 0 })
}

fn find(maps: &[IdMap], inside: u32) -> Option<u32> {
    maps.iter().find_map(|map| {
        let offset = inside.checked_sub(map.inside).filter(|offset| *offset < map.count)?;
        map.outside.checked_add(offset)
    })
}

fn lines(maps: &[IdMap]) -> String {
    maps.iter().fold(String::new(), |mut text, map| {
        // Writing to a text cannot fail.
        let _ = writeln!(text, "{} {} {}", map.inside, map.outside, map.count);
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workloads_root_is_found_in_any_line() {
        let maps =
            vec![IdMap { inside: 1, outside: 70_000, count: 10 }, IdMap { inside: 0, outside: 90_000, count: 1 }];
        let ids = Ids::of(&UserNamespace::Mapped { uids: maps.clone(), gids: maps }, None).unwrap();
        assert_eq!(ids.root(), (90_000, 90_000));
        assert_eq!(ids.outside(3, 0), Ok((70_002, 90_000)));
        assert_eq!(ids.outside(11, 0), Err(Errno::OVERFLOW));
        assert_eq!(ids.lines().0, "1 70000 10\n0 90000 1\n");
        assert_eq!(Ids::of(&UserNamespace::Host, None).unwrap().root(), (0, 0));
        assert!(Ids::of(&UserNamespace::Automatic, None).is_err());
    }
}
