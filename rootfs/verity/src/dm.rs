//! The three device-mapper calls that open a verity device: create, load a table, resume.
//!
//! All of this crate's `unsafe` is the one ioctl here. The request is built as bytes, not as a struct, so that its
//! layout (`struct dm_ioctl` and `struct dm_target_spec` of the kernel's `uapi/linux/dm-ioctl.h`) is visible in one
//! place and no padding can leak.

use crate::tree::{BLOCK_BYTES, RootHash, SALT};
use rustix::fs::{Mode, OFlags};
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};

/// `sizeof(struct dm_ioctl)`.
const HEADER_BYTES: usize = 312;
/// Where the uuid lies in it, behind a name of 128 bytes.
const UUID_OFFSET: usize = 176;
/// `sizeof(struct dm_target_spec)`.
const TARGET_BYTES: usize = 40;
/// Room for one verity target line (about 250 bytes) and for what the kernel writes back.
const REQUEST_BYTES: usize = 4096;
/// Where `dev` stands in `struct dm_ioctl`.
const DEV_OFFSET: usize = 40;

const DM_READONLY_FLAG: u32 = 1;
const DM_SECURE_DATA_FLAG: u32 = 1 << 15;
const DM_DEV_CREATE: u32 = 3;
const DM_DEV_SUSPEND: u32 = 6;
const DM_TABLE_LOAD: u32 = 9;

/// A block device's major and minor number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceNumber {
    /// Driver.
    pub major: u32,
    /// Device of that driver.
    pub minor: u32,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// What a verity device is made from.
#[derive(Clone, Copy, Debug)]
pub struct Verity {
    /// Partition with the root image.
    pub data: DeviceNumber,
    /// Partition with its tree.
    pub hashes: DeviceNumber,
    /// Blocks of the image, from the signed command line.
    pub data_blocks: u64,
    /// The trusted digest, from the signed command line.
    pub root_hash: RootHash,
}

/// A failed device-mapper call.
#[derive(Debug, thiserror::Error)]
pub enum DmError {
    /// No control device.
    #[error("cannot open /dev/mapper/control: {0}; is the dm-mod module loaded")]
    Control(rustix::io::Errno),
    /// A call failed.
    #[error(
        "device-mapper {call} of {name} failed: {errno}; are dm-verity and sha256 loaded, and the partitions whole"
    )]
    Call {
        /// Which step.
        call: &'static str,
        /// The mapped device's name.
        name: String,
        /// The system's error.
        errno: std::io::Error,
    },
    /// A name or table that does not fit the request.
    #[error("device-mapper request for {0} is too long; names are at most 127 bytes")]
    TooLong(String),
}

/// The open control device.
#[derive(Debug)]
pub struct DeviceMapper {
    control: OwnedFd,
}

impl DeviceMapper {
    /// Opens the kernel's control device.
    ///
    /// # Errors
    /// [`DmError::Control`] when there is none.
    pub fn open() -> Result<Self, DmError> {
        rustix::fs::open("/dev/mapper/control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map(|control| Self { control })
            .map_err(DmError::Control)
    }

    /// Creates the read-only mapped device `name`; returns its minor number (the node is `/dev/dm-<minor>`).
    /// A block that does not hash right, and a block that cannot be read, end in a kernel panic, never in wrong data.
    ///
    /// # Errors
    /// [`DmError`] naming the step that failed.
    pub fn open_verity(&self, name: &str, verity: &Verity) -> Result<u32, DmError> {
        // What tools know a verity device by (libcryptsetup's form); only the creating call may carry it.
        let uuid = format!("CRYPT-VERITY-{}-{name}", verity.root_hash.to_string().get(..32).unwrap_or_default());
        let request = encode(name, &uuid, 0, None)?;
        let created = self.call(DM_DEV_CREATE, "create", name, request)?;
        let dev = created
            .get(DEV_OFFSET..)
            .and_then(|tail| tail.first_chunk::<8>())
            .map(|raw| u64::from_le_bytes(*raw))
            .ok_or_else(|| DmError::TooLong(name.to_owned()))?;
        let target = Target { sectors: sectors(verity.data_blocks), line: table_line(verity) };
        let request = encode(name, "", DM_READONLY_FLAG | DM_SECURE_DATA_FLAG, Some(&target))?;
        self.call(DM_TABLE_LOAD, "table load", name, request)?;
        self.call(DM_DEV_SUSPEND, "resume", name, encode(name, "", 0, None)?)?;
        Ok(minor_of(dev))
    }

    fn call(&self, number: u32, call: &'static str, name: &str, mut request: Vec<u8>) -> Result<Vec<u8>, DmError> {
        // SAFETY: `request` is REQUEST_BYTES long and says so in its data_size field, which is the most the kernel
        // reads or writes; the descriptor is open for as long as `self`.
        let result = unsafe { libc::ioctl(self.control.as_raw_fd(), ioctl_code(number), request.as_mut_ptr()) };
        if result == 0 {
            Ok(request)
        } else {
            Err(DmError::Call { call, name: name.to_owned(), errno: std::io::Error::last_os_error() })
        }
    }
}

/// One line of a device-mapper table.
struct Target {
    sectors: u64,
    line: String,
}

/// `_IOWR(0xfd, number, struct dm_ioctl)`.
fn ioctl_code(number: u32) -> libc::Ioctl {
    libc::Ioctl::from((3u32 << 30) | (312u32 << 16) | (0xfdu32 << 8) | number)
}

/// 512-byte sectors of `blocks`.
fn sectors(blocks: u64) -> u64 {
    blocks.saturating_mul(8)
}

/// The minor number in the kernel's 64-bit device encoding.
fn minor_of(dev: u64) -> u32 {
    let low = dev & 0xff;
    let high = (dev >> 12) & 0xfff_ff00;
    u32::try_from(low | high).unwrap_or(u32::MAX)
}

/// The target's parameters. The tree starts in the hash partition's second block, after the superblock.
fn table_line(verity: &Verity) -> String {
    format!(
        "1 {} {} {BLOCK_BYTES} {BLOCK_BYTES} {} 1 sha256 {} {} 2 panic_on_corruption panic_on_error",
        verity.data,
        verity.hashes,
        verity.data_blocks,
        verity.root_hash,
        hex::encode(SALT),
    )
}

/// Lays a request out as the kernel reads it.
fn encode(name: &str, uuid: &str, flags: u32, target: Option<&Target>) -> Result<Vec<u8>, DmError> {
    if name.len() > 127 || uuid.len() > 128 || name.bytes().chain(uuid.bytes()).any(|byte| byte == 0) {
        return Err(DmError::TooLong(name.to_owned()));
    }
    let mut out = Vec::with_capacity(REQUEST_BYTES);
    // 4.0.0 is the oldest interface that has all three calls; every kernel since 2.6 answers it.
    for word in [4u32, 0, 0, 4096, 312, u32::from(target.is_some()), 0, flags, 0, 0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&0u64.to_le_bytes());
    out.extend_from_slice(name.as_bytes());
    out.resize(UUID_OFFSET, 0);
    out.extend_from_slice(uuid.as_bytes());
    out.resize(HEADER_BYTES, 0);
    if let Some(target) = target {
        let room = REQUEST_BYTES.saturating_sub(HEADER_BYTES).saturating_sub(TARGET_BYTES);
        if target.line.len() >= room {
            return Err(DmError::TooLong(name.to_owned()));
        }
        out.extend_from_slice(&0u64.to_le_bytes());
        out.extend_from_slice(&target.sectors.to_le_bytes());
        out.extend_from_slice(&0u64.to_le_bytes());
        out.extend_from_slice(b"verity\0\0\0\0\0\0\0\0\0\0");
        out.extend_from_slice(target.line.as_bytes());
    }
    out.resize(REQUEST_BYTES, 0);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_kernels_layout() {
        let verity = Verity {
            data: DeviceNumber { major: 254, minor: 2 },
            hashes: DeviceNumber { major: 254, minor: 3 },
            data_blocks: 100,
            root_hash: RootHash([0x11; 32]),
        };
        let line = table_line(&verity);
        assert!(line.starts_with("1 254:2 254:3 4096 4096 100 1 sha256 1111"));
        let request =
            encode("root", "CRYPT-VERITY-1-root", 1, Some(&Target { sectors: sectors(100), line: line.clone() }))
                .unwrap();
        assert_eq!(request.len(), REQUEST_BYTES);
        assert_eq!(&request[48..52], b"root");
        assert_eq!(&request[176..195], b"CRYPT-VERITY-1-root");
        assert_eq!(request[320..328], 800u64.to_le_bytes());
        assert_eq!(&request[336..342], b"verity");
        assert_eq!(&request[352..352 + line.len()], line.as_bytes());
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        assert!(encode(&"x".repeat(128), "", 0, None).is_err());
        assert!(encode("a\0b", "", 0, None).is_err());
    }

    #[test]
    fn minors_above_255_are_decoded() {
        assert_eq!(minor_of((254 << 8) | 7), 7);
        assert_eq!(minor_of((254 << 8) | 0x10_0005), 0x105);
    }
}
