//! The figures of one cgroup, from cgroup v2's files (kernel documentation, cgroup-v2, "Controllers").

use std::io::Read;
use std::os::fd::OwnedFd;

use byre_protocol::peer::CgroupStats;
use byre_protocol::status::Moment;
use rustix::fs::{Mode, OFlags, ResolveFlags};

/// Bytes of one file: io.stat has a line of 120 bytes per block device, memory.stat about 1.5 KiB.
const FILE_BYTES: u64 = 64 * 1024;

/// Reads the figures of a cgroup below `root`; whatever cannot be read is zero.
pub(crate) fn read(root: &OwnedFd, cgroup: &str, at: Moment) -> CgroupStats {
    let mut stats = CgroupStats { cgroup: cgroup.to_owned(), at, ..CgroupStats::default() };
    let Some(directory) = open(root, cgroup.trim_start_matches('/'), OFlags::PATH | OFlags::DIRECTORY) else {
        return stats;
    };
    let text = |name: &str| text(&directory, name);
    let cpu = text("cpu.stat");
    stats.cpu_usage_us = keyed(&cpu, "usage_usec");
    stats.cpu_user_us = keyed(&cpu, "user_usec");
    stats.cpu_system_us = keyed(&cpu, "system_usec");
    stats.memory_bytes = number(&text("memory.current"));
    stats.memory_peak_bytes = number(&text("memory.peak"));
    stats.memory_max_bytes = number(&text("memory.max"));
    let memory = text("memory.stat");
    stats.memory_anonymous_bytes = keyed(&memory, "anon");
    stats.memory_file_bytes = keyed(&memory, "file");
    stats.processes = number(&text("pids.current"));
    let io = text("io.stat");
    stats.io_read_bytes = summed(&io, "rbytes=");
    stats.io_written_bytes = summed(&io, "wbytes=");
    stats.oom_kills = keyed(&text("memory.events"), "oom_kill");
    stats
}

fn open(directory: &OwnedFd, path: &str, flags: OFlags) -> Option<OwnedFd> {
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(directory, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve).ok()
}

fn text(directory: &OwnedFd, name: &str) -> String {
    let mut text = String::new();
    if let Some(file) = open(directory, name, OFlags::RDONLY) {
        // A cgroup that is removed meanwhile reads as ENODEV: what was read until then is as good as nothing.
        let _ = std::fs::File::from(file).take(FILE_BYTES).read_to_string(&mut text);
    }
    text
}

/// A file with one number; `max` is unlimited.
fn number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        digits => digits.parse().unwrap_or(0),
    }
}

/// A file with a name and a number per line.
fn keyed(text: &str, name: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or(0)
}

/// A file with `name=number` pairs of one device per line: the sum over all devices.
fn summed(text: &str, name: &str) -> u64 {
    let values = text.split_ascii_whitespace().filter_map(|word| word.strip_prefix(name)?.parse::<u64>().ok());
    values.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_figure_is_read_from_its_file_and_missing_ones_are_zero() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = directory.path().join("a/b");
        std::fs::create_dir_all(&cgroup).unwrap();
        for (name, content) in [
            ("cpu.stat", "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 0\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 1\nfile 2\nfile_mapped 9\n"),
            ("io.stat", "8:0 rbytes=5 wbytes=6 rios=1\n8:16 rbytes=7 wbytes=8\n"),
            ("memory.events", "oom 4\noom_kill 3\n"),
        ] {
            std::fs::write(cgroup.join(name), content).unwrap();
        }
        let root = OwnedFd::from(std::fs::File::open(directory.path()).unwrap());
        let stats = read(&root, "/a/b", Moment::default());
        let expected = CgroupStats {
            cgroup: "/a/b".to_owned(),
            cpu_usage_us: 30,
            cpu_user_us: 20,
            cpu_system_us: 10,
            memory_bytes: 4096,
            memory_max_bytes: u64::MAX,
            memory_anonymous_bytes: 1,
            memory_file_bytes: 2,
            io_read_bytes: 12,
            io_written_bytes: 14,
            oom_kills: 3,
            ..CgroupStats::default()
        };
        assert_eq!(stats, expected);
    }

    #[test]
    fn no_path_leads_out_of_the_tree() {
        let directory = tempfile::tempdir().unwrap();
        let root_path = directory.path().join("cgroup");
        std::fs::create_dir_all(root_path.join("in")).unwrap();
        std::fs::write(directory.path().join("pids.current"), "9").unwrap();
        std::os::unix::fs::symlink("..", root_path.join("link")).unwrap();
        std::os::unix::fs::symlink("../../pids.current", root_path.join("in/pids.current")).unwrap();
        let root = OwnedFd::from(std::fs::File::open(&root_path).unwrap());
        for path in ["..", "link", "in/../..", "/..", "in", "", "in\0x"] {
            assert_eq!(read(&root, path, Moment::default()).processes, 0, "{path:?}");
        }
    }
}
