//! A damaged file system, made whole without a person. Each rung is taken only when the one before did not do:
//!
//! ```text
//! e2fsck -p: replay and what is safe
//!   -> e2fsck -y: everything it can mend, at the price of what was damaged
//!     -> the same from the second superblock          (state only: its place is ours to know)
//!       -> an empty file system from the root          (state only)
//! ```
//! The last rung is only for a file system of which no superblock is left, or that e2fsck gives up on: never for a disk that cannot be
//! read. Nothing here is silent: what was done is said on the console, and left for the node's facts. It must never touch a file system that
//! `e2fsck -p` finds whole, nor the bytes behind the state partition's file system, where the early stage keeps its record.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Output};

use byre_slots::template::{BLOCK_BYTES, Template};

use super::{TaskError, on};

/// The check program of the root.
const E2FSCK: &str = "/usr/sbin/e2fsck";
/// What e2fsck had to say is kept up to this length: a thousand lines say as much as all of them.
const REPORT_BYTES: usize = 64 * 1024;

/// e2fsck's code for errors that it could not mend.
const LEFT_UNCORRECTED: i32 = 4;
/// Of ext4: where the first superblock lies in bytes, where its magic number lies in it, and that number.
const FIRST_SUPERBLOCK: u64 = 1024;
const MAGIC_OFFSET: u64 = 0x38;
const EXT4_MAGIC: [u8; 2] = 0xef53_u16.to_le_bytes();

/// How a file system was made ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Made {
    /// It was whole, or its journal was all that was needed.
    Whole,
    /// It was damaged and is consistent again; e2fsck's words.
    Mended { how: &'static str, report: String },
    /// Nothing of it could be read: it is empty now; e2fsck's words.
    Anew { report: String },
}

impl Made {
    /// For people; `None` if there is nothing to say.
    pub(crate) fn text(&self) -> Option<String> {
        match self {
            Self::Whole => None,
            Self::Mended { how, .. } => Some(format!("it was damaged and is mended {how}; files may be missing")),
            Self::Anew { .. } => Some("it was damaged beyond repair and is empty now".to_owned()),
        }
    }

    /// What e2fsck said, if it had to do more than usual.
    pub(crate) fn report(&self) -> Option<&str> {
        match self {
            Self::Whole => None,
            Self::Mended { report, .. } | Self::Anew { report } => Some(report),
        }
    }
}

/// A file system to be made ready.
pub(crate) struct Damaged<'a> {
    /// Its device.
    pub(crate) device: &'a Path,
    /// Where the second superblock lies, in blocks, if that is not where e2fsck looks by itself.
    pub(crate) second_superblock: Option<u32>,
    /// The file with the template of an empty one, if it may be replaced by that.
    pub(crate) template: Option<&'a Path>,
}

/// Makes the file system ready to be mounted.
///
/// # Errors
/// If it is damaged and no rung mends it.
pub(crate) fn make_ready(what: &Damaged<'_>) -> Result<Made, TaskError> {
    let first = e2fsck(what.device, &["-p"])?;
    if is_consistent(&first) {
        return Ok(Made::Whole);
    }
    crate::console::say(&format!("{} is damaged; mending what can be mended", what.device.display()));
    let mut report = text_of(&first);
    let second = what.second_superblock.map(|block| block.to_string());
    let block_bytes = BLOCK_BYTES.to_string();
    let mut rungs: Vec<(&'static str, Vec<&str>)> = vec![("by e2fsck -y", vec!["-f", "-y"])];
    if let Some(second) = &second {
        rungs.push(("from its second superblock", vec!["-f", "-y", "-b", second, "-B", &block_bytes]));
    }
    let mut last = first;
    for (how, arguments) in rungs {
        last = e2fsck(what.device, &arguments)?;
        report.push_str(&text_of(&last));
        // It says by its code that it mended; that all is well it says when asked again.
        if is_consistent(&last) && is_consistent(&e2fsck(what.device, &["-p"])?) {
            return Ok(Made::Mended { how, report: shortened(report) });
        }
    }
    let failed = |output: &Output| {
        let (program, device) = ("e2fsck", what.device.display().to_string());
        Err(TaskError::Check { program, device, status: output.status.to_string() })
    };
    // A disk that cannot be read, or an e2fsck that could not run, is no reason to write over what may be whole.
    let is_lost = last.status.code() == Some(LEFT_UNCORRECTED) || !has_superblock(what)?;
    let Some(template) = what.template.filter(|_| is_lost) else { return failed(&last) };
    replace(what, template)?;
    let check = e2fsck(what.device, &["-p"])?;
    if is_consistent(&check) { Ok(Made::Anew { report: shortened(report) }) } else { failed(&check) }
}

/// Whether one of the superblocks looks like one.
fn has_superblock(what: &Damaged<'_>) -> Result<bool, TaskError> {
    use std::os::unix::fs::FileExt as _;
    let device = File::open(what.device).map_err(on("open", what.device))?;
    let second = what.second_superblock.map(|block| u64::from(block).saturating_mul(4096));
    for superblock in [Some(FIRST_SUPERBLOCK), second].into_iter().flatten() {
        let mut magic = [0_u8; 2];
        let place = superblock.saturating_add(MAGIC_OFFSET);
        device.read_exact_at(&mut magic, place).map_err(on("read", what.device))?;
        if magic == EXT4_MAGIC {
            return Ok(true);
        }
    }
    Ok(false)
}

fn e2fsck(device: &Path, arguments: &[&str]) -> Result<Output, TaskError> {
    Command::new(E2FSCK).args(arguments).arg(device).output().map_err(on("execute", E2FSCK))
}

/// 0: clean, 1: mended, 2: mended and must be mounted anew, which has not happened yet.
fn is_consistent(output: &Output) -> bool {
    matches!(output.status.code(), Some(0..=2))
}

fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn shortened(mut report: String) -> String {
    let mut end = report.len().min(REPORT_BYTES);
    while !report.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    report.truncate(end);
    report
}

/// Writes the empty file system over what is there.
fn replace(what: &Damaged<'_>, template: &Path) -> Result<(), TaskError> {
    let device = what.device;
    let bytes = std::fs::read(template).map_err(on("read", template))?;
    let parsed = Template::parse(&bytes).map_err(|error| TaskError::Invalid(error.to_string()))?;
    let target = OpenOptions::new().write(true).open(device).map_err(on("open", device))?;
    let superblocks: Vec<u32> = [Some(0), what.second_superblock].into_iter().flatten().collect();
    write_within(&parsed, target, device, &superblocks)
}

/// The superblocks go first and come last: a power cut between leaves none, and the next boot begins again, instead of mending a file system
/// that is half the old one and half the new.
fn write_within(
    template: &Template<'_>,
    mut target: File,
    device: &Path,
    superblocks: &[u32],
) -> Result<(), TaskError> {
    use std::io::Seek as _;
    let room = target.seek(std::io::SeekFrom::End(0)).map_err(on("measure", device))?;
    if room < template.bytes() {
        let (wanted, device) = (template.bytes(), device.display());
        return Err(TaskError::Invalid(format!("{device} has {room} bytes; the empty file system has {wanted}")));
    }
    write_blocks(&target, device, superblocks, |_| Some(&[0; BLOCK_BYTES]))?;
    target.rewind().map_err(on("rewind", device))?;
    let mut writer = BufWriter::with_capacity(256 * BLOCK_BYTES, target);
    template
        .write(&mut writer, superblocks)
        .map_err(|error| TaskError::Invalid(format!("{}: {error}", device.display())))?;
    writer.flush().map_err(on("write", device))?;
    let target = writer.into_inner().map_err(|error| on("write", device)(error.into_error()))?;
    target.sync_all().map_err(on("sync", device))?;
    write_blocks(&target, device, superblocks, |index| template.block(index))
}

/// Writes these blocks, those that there are, and waits until they are on the disk.
fn write_blocks<'a>(
    target: &File,
    device: &Path,
    indices: &[u32],
    block: impl Fn(u32) -> Option<&'a [u8]>,
) -> Result<(), TaskError> {
    use std::os::unix::fs::FileExt as _;
    for index in indices {
        let Some(bytes) = block(*index) else { continue };
        let place = u64::from(*index).saturating_mul(u64::try_from(BLOCK_BYTES).unwrap_or(0));
        target.write_all_at(bytes, place).map_err(on("write", device))?;
    }
    target.sync_all().map_err(on("sync", device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_is_known_by_its_number() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("partition");
        let has = |first: bool, second: bool| {
            let mut bytes = vec![0_u8; 4 * 4096];
            for (there, place) in [(first, 1024), (second, 2 * 4096)] {
                if there {
                    bytes[place + 0x38..place + 0x3a].copy_from_slice(&[0x53, 0xef]);
                }
            }
            std::fs::write(&path, bytes).unwrap();
            has_superblock(&Damaged { device: &path, second_superblock: Some(2), template: None }).unwrap()
        };
        assert!(has(true, false) && has(false, true) && !has(false, false));
        let gone = Damaged { device: Path::new("/nowhere"), second_superblock: None, template: None };
        assert!(has_superblock(&gone).is_err());
    }

    #[test]
    fn an_empty_file_system_is_written_and_nothing_behind_it() {
        let mut image = vec![0_u8; 3 * BLOCK_BYTES];
        image[17] = 3;
        image[5000] = 7;
        let encoded = byre_slots::template::encode(&mut image.as_slice()).unwrap();
        let template = Template::parse(&encoded).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("partition");
        let open = || OpenOptions::new().write(true).open(&path).unwrap();
        std::fs::write(&path, vec![9_u8; 3 * BLOCK_BYTES + 512]).unwrap();
        write_within(&template, open(), &path, &[0, 2]).unwrap();
        let written = std::fs::read(&path).unwrap();
        assert_eq!(written[..image.len()], image);
        assert!(written[image.len()..].iter().all(|byte| *byte == 9));
        std::fs::write(&path, vec![9_u8; BLOCK_BYTES]).unwrap();
        assert!(write_within(&template, open(), &path, &[0, 2]).is_err());
        assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 9));
    }
}
