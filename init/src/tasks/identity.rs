//! Who this node is: a machine identity that is made once and kept, its host name, and a clock that is never before what is known to
//! be past.

use std::io::Write;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::time::{ClockId, Timespec};

use super::{TaskError, on};

/// Where the identity is kept, and where it is shown.
const KEPT: &str = "/state/identity/machine-id";
const SHOWN: &str = "/run/byre/machine-id";
/// The kernel's entropy, carried over a reboot.
const SEED: &str = "/state/identity/random-seed";
const SEED_BYTES: usize = 512;
/// Written by `byred config`.
const WANTED_HOSTNAME: &str = "/run/byre/config/hostname";
/// HOST_NAME_MAX.
const HOSTNAME_BYTES: usize = 64;

/// Entropy, clock floor, machine identity, and a first host name made from it.
pub(crate) fn establish() -> Result<(), TaskError> {
    match std::fs::create_dir("/state/identity") {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(on("make directory", "/state/identity")(error)),
    }
    carry_entropy()?;
    raise_clock();
    let identity = machine_identity()?;
    std::fs::write(SHOWN, format!("{identity}\n")).map_err(on("write", SHOWN))?;
    let short = identity.get(..8).unwrap_or("node");
    set(&format!("byre-{short}"))
}

/// The host name of the configuration, if there is one.
pub(crate) fn set_hostname() -> Result<(), TaskError> {
    match std::fs::read_to_string(WANTED_HOSTNAME) {
        Ok(name) => set(name.trim()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(on("read", WANTED_HOSTNAME)(error)),
    }
}

fn set(name: &str) -> Result<(), TaskError> {
    let well_formed = !name.is_empty()
        && name.len() <= HOSTNAME_BYTES
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
    if !well_formed {
        return Err(TaskError::Invalid(format!("host name {name:?} is not 1 to 64 letters, digits, '-' and '.'")));
    }
    nix::unistd::sethostname(name).map_err(|errno| on("set", "host name")(errno.into()))
}

fn machine_identity() -> Result<String, TaskError> {
    match std::fs::read_to_string(KEPT) {
        Ok(text) if is_identity(text.trim()) => return Ok(text.trim().to_owned()),
        Ok(text) => eprintln!("{KEPT} holds {text:?}, which is no identity; a new one is made"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(on("read", KEPT)(error)),
    }
    let identity: String = random::<16>()?.iter().map(|byte| format!("{byte:02x}")).collect();
    replace(Path::new(KEPT), format!("{identity}\n").as_bytes(), 0o444)?;
    Ok(identity)
}

fn is_identity(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn random<const LENGTH: usize>() -> Result<[u8; LENGTH], TaskError> {
    let mut bytes = [0; LENGTH];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| on("read", "random numbers")(errno.into()))?;
    Ok(bytes)
}

/// Mixes the last boot's seed in and leaves a new one at once, so that no two boots get the same.
fn carry_entropy() -> Result<(), TaskError> {
    if let Ok(seed) = std::fs::read(SEED) {
        std::fs::write("/dev/urandom", seed).map_err(on("write", "/dev/urandom"))?;
    }
    replace(Path::new(SEED), &random::<SEED_BYTES>()?, 0o400)
}

/// Where `byred time` keeps what time servers agreed on last, in seconds since 1970.
const AGREED: &str = "/state/time/floor";
/// Bytes of it.
const AGREED_BYTES: u64 = 32;
/// How long after its build a system may still be run: what is later than that is a mistake of servers, and would never be undone.
const LIFE_S: i64 = 20 * 366 * 86_400;

/// A hardware clock that stands before the system's own build, or before what time servers agreed on last, is wrong.
fn raise_clock() {
    let built = std::fs::read_to_string("/etc/os-release").ok().and_then(|release| {
        let value = release.lines().find_map(|line| line.strip_prefix("BYRE_BUILD_EPOCH="))?;
        value.trim_matches('"').parse::<i64>().ok()
    });
    let now = rustix::time::clock_gettime(ClockId::Realtime).tv_sec;
    let latest = built.map(|built| floor(built, agreed()));
    if let Some(latest) = latest.filter(|latest| *latest > now) {
        match rustix::time::clock_settime(ClockId::Realtime, Timespec { tv_sec: latest, tv_nsec: 0 }) {
            Ok(()) => {
                println!("the clock stood at {now} s since 1970 and is set to {latest}, which is past for certain")
            }
            Err(errno) => eprintln!("the clock is not set: {errno}"),
        }
    }
}

/// The later of the two, unless what servers said cannot be.
fn floor(built: i64, agreed: Option<i64>) -> i64 {
    agreed.filter(|agreed| *agreed <= built.saturating_add(LIFE_S)).map_or(built, |agreed| agreed.max(built))
}

fn agreed() -> Option<i64> {
    let mut text = String::new();
    let file = std::fs::File::open(AGREED).ok()?;
    std::io::Read::read_to_string(&mut std::io::Read::take(file, AGREED_BYTES), &mut text).ok()?;
    text.trim().parse().ok()
}

/// Replaces a file so that a cut at any instant leaves the old one or the new one.
fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), TaskError> {
    let new = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = rustix::fs::open(&new, flags, Mode::from_raw_mode(mode))?;
        let mut file = std::fs::File::from(file);
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        match path.parent() {
            Some(directory) => std::fs::File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(on("replace", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_begins_at_what_is_past_for_certain() {
        assert_eq!(floor(1000, None), 1000);
        assert_eq!(floor(1000, Some(2000)), 2000);
        assert_eq!(floor(1000, Some(500)), 1000);
        assert_eq!(floor(1000, Some(i64::MAX)), 1000);
    }
}
