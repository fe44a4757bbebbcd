//! Who a process is: ids as given, or names looked up in the workload's own /etc/passwd and /etc/group.
//!
//! Both files come from an image. They are opened inside the root, read to a bound, and parsed leniently line by line: a line that is not
//! understood names nobody. A name that is all digits is an id and is never looked up as anything else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_plan::{Principal, User};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::report::{Failure, Step};

/// Largest passwd or group file that is read. A thousand users need 64 KiB.
const FILE_BYTES: usize = 1024 * 1024;
/// Supplementary groups that a process gets at most, the plan's and the files' together.
const GROUPS: usize = 1024;

/// Numeric credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// Home directory, where passwd gives one.
    pub(crate) home: Option<String>,
}

/// Finds the credentials of `user` inside `root`.
pub(crate) fn identify(root: BorrowedFd<'_>, user: &User) -> Result<Identity, Failure> {
    let passwd = read(root, "/etc/passwd")?;
    let group = read(root, "/etc/group")?;
    resolve(user, &passwd, &group)
}

fn read(root: BorrowedFd<'_>, path: &str) -> Result<String, Failure> {
    let step = "read the image's users";
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file: OwnedFd = match openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(file) => file,
        // An image without such a file, or with nonsense in its place, has no names.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(String::new()),
        Err(errno) => return Err(Failure::new(step, path, errno)),
    };
    let status = rustix::fs::fstat(&file).step(step, path)?;
    if rustix::fs::FileType::from_raw_mode(status.st_mode) != rustix::fs::FileType::RegularFile {
        return Ok(String::new());
    }
    let mut content = Vec::new();
    let mut chunk = vec![0_u8; 64 * 1024];
    loop {
        let count = rustix::io::read(file.as_fd(), &mut *chunk).step(step, path)?;
        if count == 0 {
            break;
        }
        content.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if content.len() > FILE_BYTES {
            return Err(Failure::new(step, format!("{path}: larger than {FILE_BYTES} bytes"), Errno::FBIG));
        }
    }
    Ok(String::from_utf8_lossy(&content).into_owned())
}

/// One line of passwd: name, uid, gid, home.
struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd_entries(passwd: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (id(fields.next()?)?, id(fields.next()?)?);
        let home = fields.nth(1).unwrap_or("");
        if name.is_empty() { None } else { Some(PasswdEntry { name, uid, gid, home }) }
    })
}

/// One line of group: name, gid, members.
fn group_entries(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = id(fields.next()?)?;
        if name.is_empty() { None } else { Some((name, gid, fields.next().unwrap_or(""))) }
    })
}

/// Digits only, and no id that means "unchanged" to the kernel.
fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok().filter(|value| *value != u32::MAX) } else { None }
}

pub(crate) fn resolve(user: &User, passwd: &str, group: &str) -> Result<Identity, Failure> {
    let entry = match &user.user {
        Principal::Id(uid) => passwd_entries(passwd).find(|entry| entry.uid == *uid),
        Principal::Name(name) => {
            let found = passwd_entries(passwd).find(|entry| entry.name == name);
            Some(found.ok_or_else(|| Failure::new("look up user", name, Errno::NOENT))?)
        }
    };
    let uid = match (&user.user, &entry) {
        (Principal::Id(uid), _) => *uid,
        (Principal::Name(_), Some(entry)) => entry.uid,
        (Principal::Name(name), None) => return Err(Failure::new("look up user", name, Errno::NOENT)),
    };
    let gid = match &user.group {
        Some(Principal::Id(gid)) => *gid,
        Some(Principal::Name(name)) => group_entries(group)
            .find(|(found, _, _)| found == name)
            .map(|(_, gid, _)| gid)
            .ok_or_else(|| Failure::new("look up group", name, Errno::NOENT))?,
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut groups: Vec<u32> = user.additional_groups.clone();
    // An explicit group means exactly that group; without one the user's memberships count, as login(1) would have it.
    if let (None, Some(entry)) = (&user.group, &entry) {
        let memberships = group_entries(group)
            .filter(|(_, _, members)| members.split(',').any(|member| member.trim() == entry.name))
            .map(|(_, gid, _)| gid);
        groups.extend(memberships.take(GROUPS));
    }
    groups.sort_unstable();
    groups.dedup();
    groups.truncate(GROUPS);
    let home = entry.as_ref().map(|entry| entry.home.to_owned()).filter(|home| home.starts_with('/'));
    Ok(Identity { uid, gid, groups, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/srv/web:/bin/false\n:x:7:7::/:\nbad:x:-1:0::/:\nbig:x:4294967296:0::/:\n101:x:55:55::/:\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nlogs:x:4:other,web\nbad:x:99999999999:web\n";

    fn user(user: Principal, group: Option<Principal>) -> User {
        User { user, group, ..User::default() }
    }

    fn name(name: &str) -> Principal {
        Principal::Name(name.to_owned())
    }

    #[test]
    fn a_named_user_gets_its_ids_groups_and_home() {
        let found = resolve(&user(name("web"), None), PASSWD, GROUP).unwrap();
        assert_eq!(found, Identity { uid: 101, gid: 102, groups: vec![4], home: Some("/srv/web".to_owned()) });
    }

    #[test]
    fn a_number_is_never_a_name() {
        let found = resolve(&user(Principal::Id(101), None), PASSWD, GROUP).unwrap();
        assert_eq!((found.uid, found.gid), (101, 102));
        let unknown = resolve(&user(Principal::Id(5000), None), PASSWD, GROUP).unwrap();
        assert_eq!((unknown.uid, unknown.gid, unknown.groups), (5000, 0, vec![]));
    }

    #[test]
    fn lines_that_overflow_or_are_negative_name_nobody() {
        for bad in ["bad", "big", ""] {
            assert!(resolve(&user(name(bad), None), PASSWD, GROUP).is_err(), "{bad}");
        }
        assert!(resolve(&user(name("web"), Some(name("bad"))), PASSWD, GROUP).is_err());
    }

    #[test]
    fn an_explicit_group_brings_no_others() {
        let found = resolve(&user(name("web"), Some(name("root"))), PASSWD, GROUP).unwrap();
        assert_eq!((found.gid, found.groups), (0, vec![]));
    }
}
