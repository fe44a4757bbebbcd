//! `arm`: makes the slot that was written the one that boots next, on trial. Its life is one commit.
//!
//! It believes nothing that the updater says but a signature: root, hash tree and kernel image of the slot are read from the disk again and
//! compared with the signed statement, the kernel image is copied to the boot partition and read back, and only then one record is renamed.
//! Going back is the same with the release that the slot holds already: it is compared with what its own kernel image wants. What was armed and
//! not tried is taken back by one rename as well.

use std::fs::File;
use std::io::{BufReader, Read, Seek};

use byre_boots::trial::{Held, Outcome, Trial};
use byre_loader::entries::{self, LoaderEntry, Standing};
use byre_loader::{Device, commit};
use byre_release::{Facts, KEY_FILE_BYTES, RELEASE_FILE, RELEASE_KEYS, ReleaseKeys, Statement, Unverified};
use byre_slots::Slot;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::boot_device::{BootDevice, letter};
use super::trial_files::TrialFiles;
use super::{TaskError, on, uki};
use crate::console;

/// Where PID 1 hands over what is to be armed, and where a refusal goes.
pub(crate) const ORDER_FD: i32 = 3;
pub(crate) const REFUSAL_FD: i32 = 4;
/// Longest order: a statement and the names of what held.
pub(crate) const ORDER_BYTES: u64 = 512 * 1024;
/// Longest refusal.
pub(crate) const REFUSAL_BYTES: usize = 1024;

/// What is to be armed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// What is made of the other slot.
    pub(crate) what: What,
    /// What holds now, and must hold then.
    pub(crate) held: Held,
}

/// What is made of the other slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    /// Its release boots next.
    Release {
        /// The signed statement of the release in it.
        statement: Vec<u8>,
        /// Also a release with a lower install number than the running one's.
        downgrade: bool,
        /// Also one that failed its trial here.
        retry: bool,
    },
    /// What it held before boots next.
    Back,
    /// It is not tried.
    Nothing,
}

/// Does what the order says; a refusal is written where PID 1 reads it.
pub(crate) fn arm() -> Result<(), TaskError> {
    let inherited =
        |number| crate::sys::inherited(number).map_err(|errno| TaskError::Invalid(format!("no order: {errno}")));
    let (order, refusal) = (File::from(inherited(ORDER_FD)?), inherited(REFUSAL_FD)?);
    let result = carry_out(order);
    if let Err(error) = &result {
        let mut text = error.to_string();
        while text.len() > REFUSAL_BYTES {
            text.pop();
        }
        let _ = rustix::io::write(&refusal, text.as_bytes());
    }
    result
}

/// The order, from its first byte: the descriptor stands where PID 1 has written last.
fn read_order(mut memory: File) -> Result<Order, TaskError> {
    let mut text = Vec::new();
    memory.rewind().map_err(on("rewind", "the order"))?;
    memory.take(ORDER_BYTES).read_to_end(&mut text).map_err(on("read", "the order"))?;
    serde_json::from_slice(&text).map_err(|error| TaskError::Invalid(format!("the order: {error}")))
}

fn carry_out(memory: File) -> Result<(), TaskError> {
    let order = read_order(memory)?;
    let disk = BootDevice::read()?;
    let target = disk.slot.other();
    let present = entries::read(&disk.boot(false)?).map_err(invalid)?;
    // What the loader has now and not what it had when it booted: this very boot may have been the trial.
    if entries::standing(&present, disk.slot) != Standing::Blessed {
        return Err(invalid(commit::CommitError::Unproven(disk.slot)));
    }
    let wanted = match &order.what {
        What::Release { statement, downgrade, retry } => Wanted::of(&check_statement(statement, *downgrade, *retry)?),
        What::Back => Wanted::in_slot(&disk, target)?,
        What::Nothing => return disarm(&disk, target, &present),
    };
    check_slot(&disk, target, &wanted)?;
    place(&disk, target, &wanted)?;
    record(target, &wanted, order.held, entries::next_install(&present))?;
    let install = commit::commit(&mut disk.boot(true)?, target).map_err(invalid)?;
    console::say(&format!(
        "slot {} is armed with release {} (entry {install}): it boots next, on trial",
        target.letter(),
        wanted.version
    ));
    Ok(())
}

/// Takes back what was armed, if anything was: its entry has no tries left, and nobody judges it.
fn disarm(disk: &BootDevice, target: Slot, present: &[LoaderEntry]) -> Result<(), TaskError> {
    match entries::standing(present, target) {
        Standing::Counted { left } if left > 0 => {}
        Standing::Counted { .. } | Standing::Blessed | Standing::Absent => return Ok(()),
    }
    // The record first: cut in between, what is tried then has no record that could call it failed.
    let files = TrialFiles::of_node();
    let mut trials = files.read().unwrap_or_default();
    trials.revert();
    files.write(&trials)?;
    commit::run_out(&mut disk.boot(true)?, target).map_err(invalid)?;
    files.drop_configurations(None)?;
    console::say(&format!("what was armed in slot {} is taken back", target.letter()));
    Ok(())
}

fn invalid(error: impl std::fmt::Display) -> TaskError {
    TaskError::Invalid(error.to_string())
}

/// The statement, if a key of the running root signed it and the running release may be followed by it.
fn check_statement(bytes: &[u8], downgrade: bool, retry: bool) -> Result<Statement, TaskError> {
    let read = |path: &str, most: usize| -> Result<Vec<u8>, TaskError> {
        let mut bytes = Vec::new();
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)).map_err(on("read", path))?;
        Ok(bytes)
    };
    let keys = ReleaseKeys::parse(&read(RELEASE_KEYS, KEY_FILE_BYTES.saturating_add(1))?).map_err(invalid)?;
    let statement = Unverified::new(bytes).and_then(|unverified| unverified.verify(&keys)).map_err(invalid)?;
    let running = Facts::parse(&read(RELEASE_FILE, byre_release::FACTS_BYTES.saturating_add(1))?).map_err(invalid)?;
    let (version, install) = (&statement.version, statement.install);
    if install < running.minimum_install {
        return Err(invalid(format!(
            "release {version} (install {install}) is older than {}, the oldest that may follow this system",
            running.minimum_install
        )));
    }
    if install < running.install && !downgrade {
        return Err(invalid(format!(
            "release {version} (install {install}) is older than the running one (install {}); an operator can allow it with --downgrade",
            running.install
        )));
    }
    let hash = hex(&statement.root_hash);
    match TrialFiles::of_node().read().ok().and_then(|trials| trials.refusal(&hash)).filter(|_| !retry) {
        Some(refusal) => Err(invalid(refusal)),
        None => Ok(statement),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the slot must hold.
struct Wanted {
    version: String,
    root_hash: String,
    root_blocks: u64,
    uki_bytes: u64,
    /// Of the kernel image; unknown for what is in a slot already.
    uki_sha256: Option<[u8; 32]>,
}

impl Wanted {
    fn of(statement: &Statement) -> Self {
        Self {
            version: statement.version.to_string(),
            root_hash: hex(&statement.root_hash),
            root_blocks: statement.root_blocks,
            uki_bytes: statement.uki_bytes,
            uki_sha256: Some(statement.uki_sha256),
        }
    }

    /// What the kernel image in the slot wants.
    fn in_slot(disk: &BootDevice, slot: Slot) -> Result<Self, TaskError> {
        let raw = disk.slot_span(slot.uki_label())?;
        let uki_bytes = uki::length(&raw).map_err(invalid)?;
        let uki_bytes = uki_bytes.ok_or_else(|| invalid(format!("slot {} holds no release", slot.letter())))?;
        let (root_hash, root_blocks) = uki::root(&raw)?;
        let known = TrialFiles::of_node().read().unwrap_or_default();
        let known = known.trials.iter().rev().find(|trial| trial.root_hash == root_hash);
        let version = known.map_or_else(|| format!("of slot {}", slot.letter()), |trial| trial.version.clone());
        Ok(Self { version, root_hash, root_blocks, uki_bytes, uki_sha256: None })
    }
}

/// Compares root, hash tree and kernel image of the slot, read from the disk anew.
fn check_slot(disk: &BootDevice, slot: Slot, wanted: &Wanted) -> Result<(), TaskError> {
    let differs =
        |what: &str| invalid(format!("{what} of slot {} is not what the release says; write it again", slot.letter()));
    let root = disk.slot_device(slot.root_label())?;
    let mut reader = BufReader::with_capacity(1 << 20, &root);
    let tree = byre_verity::build(&mut reader, wanted.root_blocks).map_err(invalid)?;
    if tree.root_hash.to_string() != wanted.root_hash {
        return Err(differs("the root"));
    }
    let mut stored = vec![0_u8; tree.bytes.len()];
    disk.slot_span(slot.verity_label())?.read_at(&mut stored, 0).map_err(invalid)?;
    if stored != tree.bytes {
        return Err(differs("the hash tree"));
    }
    let raw = disk.slot_span(slot.uki_label())?;
    let found = digest(wanted.uki_bytes, &mut |part, at| raw.read_at(part, at))?;
    if wanted.uki_sha256.is_some_and(|digest| digest != found) || uki::root(&raw)?.0 != wanted.root_hash {
        return Err(differs("the kernel image"));
    }
    Ok(())
}

fn digest(bytes: u64, read: &mut dyn FnMut(&mut [u8], u64) -> std::io::Result<()>) -> Result<[u8; 32], TaskError> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0_u8; 1 << 20];
    let mut at = 0_u64;
    while at < bytes {
        let part = usize::try_from(bytes.saturating_sub(at)).unwrap_or(usize::MAX).min(buffer.len());
        let Some(target) = buffer.get_mut(..part) else { break };
        read(target, at).map_err(invalid)?;
        hasher.update(&*target);
        at = at.saturating_add(u64::try_from(part).unwrap_or(0));
    }
    Ok(hasher.finalize().into())
}

/// Copies the kernel image to the boot partition, unless it is there, and reads it back from the disk.
fn place(disk: &BootDevice, slot: Slot, wanted: &Wanted) -> Result<(), TaskError> {
    let raw = disk.slot_span(slot.uki_label())?;
    let source = digest(wanted.uki_bytes, &mut |part, at| raw.read_at(part, at))?;
    let mut at = 0_u64;
    let mut fill = |part: &mut [u8]| {
        raw.read_at(part, at)?;
        at = at.saturating_add(u64::try_from(part.len()).unwrap_or(0));
        Ok(())
    };
    commit::place_image(&mut disk.boot(true)?, slot, wanted.uki_bytes, &mut fill).map_err(invalid)?;
    let fat = disk.boot(false)?;
    let path = entries::image_path(slot);
    let mut hasher = Sha256::new();
    let file = fat.find(&path).map_err(invalid)?;
    fat.read_to(&file, &mut |part| hasher.update(part)).map_err(invalid)?;
    if <[u8; 32]>::from(hasher.finalize()) == source && u64::from(file.size) == wanted.uki_bytes {
        Ok(())
    } else {
        Err(invalid(commit::CommitError::ReadBack(path)))
    }
}

/// Writes down what is tried and what held, before it can be tried.
fn record(slot: Slot, wanted: &Wanted, held: Held, install: u64) -> Result<(), TaskError> {
    let files = TrialFiles::of_node();
    let mut trials = files.read().unwrap_or_default();
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    let generation = trials.arm(Trial {
        slot: letter(slot),
        version: wanted.version.clone(),
        root_hash: wanted.root_hash.clone(),
        install,
        armed_wall_s: u64::try_from(now).unwrap_or(0),
        held,
        generation: 0,
        outcome: Outcome::Armed,
    });
    files.keep_configuration(generation)?;
    files.write(&trials)?;
    files.drop_configurations(Some(generation))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_as_pid1_leaves_it() {
        let what = What::Release { statement: vec![7; 512], downgrade: true, retry: false };
        let order = Order { what, held: Held { services: vec!["log".to_owned()], workloads: Vec::new() } };
        // As sealed memory: written, and handed over with its place at the end.
        let mut memory = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut memory, &serde_json::to_vec(&order).unwrap()).unwrap();
        assert_eq!(read_order(memory).unwrap(), order);
    }
}
