//! Finds the disk that was booted, waiting for devices by uevent.
//!
//! With a loader, that is the disk with the partition whose UUID the loader left. Without (direct kernel boot), it is the
//! disk with a slot that matches the root hash. Two such disks are refused: after a cloned disk was added, nobody can say
//! which one's state is meant.

use super::EarlyError;
use super::cmdline::CommandLine;
use super::slot::{Loader, matching_slots};
use byre_slots::Guid;
use byre_slots::gpt::{Partition, Table};
use byre_verity::DeviceNumber;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use rustix::time::{ClockId, clock_gettime};
use std::os::fd::{AsFd, OwnedFd};

/// How long devices may take to appear. Slow controllers need about ten seconds; the watchdog has 180.
const DEADLINE_S: u64 = 30;

/// More disks than this are not looked at: the booted one is among the first.
const MAX_DISKS: usize = 64;

/// Block devices that cannot be the booted disk.
const NOT_DISKS: [&str; 8] = ["loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd"];

/// The kernel's device announcements.
pub(super) struct Uevents {
    socket: Option<OwnedFd>,
}

impl Uevents {
    /// Subscribes. Without (which no kernel of ours lacks) only what is there at once is found.
    pub(super) fn open() -> Self {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(KOBJECT_UEVENT),
        )
        .ok()
        .filter(|socket| rustix::net::bind(socket, &SocketAddrNetlink::new(0, 1)).is_ok());
        Self { socket }
    }

    /// Waits until something is announced, or for `milliseconds`; then forgets all announcements: the caller looks again.
    fn wait(&self, milliseconds: i64) {
        let time = Timespec { tv_sec: milliseconds / 1000, tv_nsec: (milliseconds % 1000).saturating_mul(1_000_000) };
        let Some(socket) = &self.socket else {
            let _ = rustix::event::poll(&mut [], Some(&time));
            return;
        };
        let mut wanted = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)];
        let _ = rustix::event::poll(&mut wanted, Some(&time));
        let mut buffer = [0u8; 4096];
        while rustix::net::recv(socket, &mut buffer, RecvFlags::DONTWAIT).is_ok() {}
    }
}

/// A disk with a readable table.
pub(super) struct Disk {
    /// Kernel name, as `vda`.
    pub(super) name: String,
    /// Its table.
    pub(super) table: Table,
}

impl Disk {
    /// For the console.
    pub(super) fn describe(&self) -> String {
        format!("/dev/{} with {} partitions", self.name, self.table.partitions.len())
    }

    /// Kernel name of a partition.
    pub(super) fn partition_name(&self, partition: &Partition) -> String {
        let separator = if self.name.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
        format!("{}{separator}{}", self.name, partition.number)
    }

    /// Device path of the partition with `label`.
    pub(super) fn path(&self, label: &str) -> Result<String, EarlyError> {
        let partition = self.table.by_label(label).map_err(|source| self.table_error(source))?;
        Ok(format!("/dev/{}", self.partition_name(partition)))
    }

    /// Device number of the partition with `label`.
    pub(super) fn device_number(&self, label: &str) -> Result<DeviceNumber, EarlyError> {
        let partition = self.table.by_label(label).map_err(|source| self.table_error(source))?;
        let path = format!("/sys/class/block/{}/dev", self.partition_name(partition));
        let text = std::fs::read_to_string(&path).map_err(|source| EarlyError::File {
            action: "read",
            path: path.clone().into(),
            source,
        })?;
        parse_device(&text).ok_or_else(|| EarlyError::File {
            action: "parse",
            path: path.into(),
            source: std::io::ErrorKind::InvalidData.into(),
        })
    }

    fn table_error(&self, source: byre_slots::gpt::GptError) -> EarlyError {
        EarlyError::Table { disk: self.name.clone(), source }
    }

    /// Whether the kernel has made all partition devices yet.
    fn is_complete(&self) -> bool {
        self.table
            .partitions
            .iter()
            .all(|partition| std::fs::exists(format!("/dev/{}", self.partition_name(partition))).unwrap_or(false))
    }

    fn has_partition(&self, id: Guid) -> bool {
        self.table.partitions.iter().any(|partition| partition.id == id)
    }
}

fn parse_device(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

/// Waits for the booted disk.
pub(super) fn find_disk(uevents: &Uevents, loader: &Loader, cmdline: &CommandLine) -> Result<Disk, EarlyError> {
    let start = milliseconds();
    let deadline = i64::try_from(DEADLINE_S).unwrap_or(30).saturating_mul(1000);
    let wanted = match loader.boot_partition {
        Some(id) => format!("boot partition {id}"),
        None => format!("root {}", cmdline.root_hash),
    };
    loop {
        let disks = scan();
        let seen = disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>().join(", ");
        let mut found = disks.into_iter().filter(|disk| is_booted(disk, loader, cmdline));
        match (found.next(), found.next()) {
            (Some(first), Some(second)) => {
                return Err(EarlyError::TwoDisks { first: first.name, second: second.name, wanted });
            }
            (Some(disk), None) => return Ok(disk),
            (None, None | Some(_)) => {}
        }
        let left = deadline.saturating_sub(milliseconds().saturating_sub(start));
        if left <= 0 {
            let seen = if seen.is_empty() { "none".to_owned() } else { seen };
            return Err(EarlyError::NoDisk { wanted, seconds: DEADLINE_S, seen });
        }
        uevents.wait(left);
    }
}

fn is_booted(disk: &Disk, loader: &Loader, cmdline: &CommandLine) -> bool {
    disk.is_complete()
        && match loader.boot_partition {
            Some(id) => disk.has_partition(id),
            None => !matching_slots(disk, cmdline).is_empty(),
        }
}

/// All disks with a table, by name.
fn scan() -> Vec<Disk> {
    let Ok(entries) = std::fs::read_dir("/sys/class/block") else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !NOT_DISKS.iter().any(|prefix| name.starts_with(prefix)))
        .filter(|name| !std::fs::exists(format!("/sys/class/block/{name}/partition")).unwrap_or(true))
        .take(MAX_DISKS)
        .collect();
    names.sort();
    names.into_iter().filter_map(read_disk).collect()
}

/// The disk, if it has a table. Sizes in sysfs are in 512-byte sectors whatever the disk's own are.
fn read_disk(name: String) -> Option<Disk> {
    let sectors: u64 = std::fs::read_to_string(format!("/sys/class/block/{name}/size")).ok()?.trim().parse().ok()?;
    let device = std::fs::File::open(format!("/dev/{name}")).ok()?;
    let (table, _) = Table::read(&device, sectors).ok()?;
    Some(Disk { name, table })
}

fn milliseconds() -> i64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str) -> Disk {
        let partition = Partition {
            number: 3,
            kind: Guid([1; 16]),
            id: Guid([2; 16]),
            first: 2048,
            last: 4095,
            attributes: 0,
            label: "root-b".to_owned(),
        };
        Disk {
            name: name.to_owned(),
            table: Table { disk: Guid([3; 16]), disk_sectors: 8192, partitions: vec![partition] },
        }
    }

    #[test]
    fn partitions_of_disks_that_end_in_a_digit_have_a_p() {
        assert_eq!(disk("vda").path("root-b").unwrap(), "/dev/vda3");
        assert_eq!(disk("nvme0n1").path("root-b").unwrap(), "/dev/nvme0n1p3");
        assert!(disk("vda").path("root-a").is_err());
    }

    #[test]
    fn device_numbers_are_two_decimals() {
        assert_eq!(parse_device("254:16\n"), Some(DeviceNumber { major: 254, minor: 16 }));
        assert_eq!(parse_device("254"), None);
    }
}
