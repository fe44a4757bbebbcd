//! What boots from a state of the disk: the loader's entries in its order, and whether what each starts is whole.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use byre_loader::entries;
use byre_loader::fat::Fat;
use byre_loader::order;
use byre_rootfs_build::Manifest;
use byre_slots::Slot;
use byre_slots::entry::Trial;
use byre_slots::gpt::{SECTOR_BYTES, Table};

use super::BLOCK;
use super::disk::{Disk, Part, fingerprint};

/// A release as it was made, by the fingerprints of its blocks.
#[derive(Debug)]
pub struct Release {
    name: String,
    root: Vec<u64>,
    tree: Vec<u64>,
    uki: Vec<u64>,
    uki_bytes: u64,
}

impl Release {
    /// From a folder with `root.erofs`, `root.verity` and `uki.efi`.
    ///
    /// # Errors
    /// If one is missing.
    pub fn read(name: &str, folder: &Path) -> Result<Self> {
        let prints = |file: &str| -> Result<(Vec<u64>, u64)> {
            let path = folder.join(file);
            let mut bytes = std::fs::read(&path).with_context(|| format!("no {}", path.display()))?;
            let length = bytes.len() as u64;
            bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
            Ok((bytes.chunks_exact(BLOCK as usize).map(fingerprint).collect(), length))
        };
        let (uki, uki_bytes) = prints("uki.efi")?;
        Ok(Self {
            name: name.to_owned(),
            root: prints("root.erofs")?.0,
            tree: prints("root.verity")?.0,
            uki,
            uki_bytes,
        })
    }
}

/// One entry in a verdict: what the loader would do with it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Choice {
    /// The slot.
    pub slot: char,
    /// The entry's version.
    pub install: u64,
    /// Tries left; none for an entry without a counter.
    pub left: Option<u8>,
    /// The release whose kernel image and root are there, both whole; none if not.
    pub release: Option<String>,
}

/// What was found: the loader's entries in its order. States with the same verdict boot the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Verdict {
    /// In the order in which the loader takes them.
    pub choices: Vec<Choice>,
    /// Why nothing could be found, if so.
    pub fault: Option<String>,
}

impl Verdict {
    /// What is wrong with it, if something is: the loader's first choice must be whole, and so must one without a counter be.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        if let Some(fault) = &self.fault {
            return Some(fault.clone());
        }
        let first = self.choices.first()?;
        if first.release.is_none() {
            return Some(format!("the loader's first choice is not whole: {:?}", self.choices));
        }
        let proven = self.choices.iter().any(|choice| choice.left.is_none() && choice.release.is_some());
        (!proven).then(|| format!("no proven system is whole: {:?}", self.choices))
    }

    /// For people: `b3+2=new a2=old`.
    #[must_use]
    pub fn text(&self) -> String {
        let one = |choice: &Choice| {
            let left = choice.left.map_or_else(String::new, |left| format!("+{left}"));
            let release = choice.release.as_deref().unwrap_or("?");
            format!("{}{}{left}={release}", choice.slot, choice.install)
        };
        let choices: Vec<String> = self.choices.iter().map(one).collect();
        self.fault.clone().unwrap_or_else(|| choices.join(" "))
    }
}

/// The judge of one machine's disk.
#[derive(Debug)]
pub struct Judge {
    releases: Vec<Release>,
    offsets: BTreeMap<String, u64>,
    /// What is known of files and slots, by their places and the fingerprint of what was changed there.
    images: RefCell<HashMap<(u64, u64), Option<usize>>>,
    roots: RefCell<HashMap<(u64, u64), Vec<usize>>>,
}

impl Judge {
    /// For a disk of this image, on which these releases may be found.
    #[must_use]
    pub fn new(manifest: &Manifest, releases: Vec<Release>) -> Self {
        let partitions = manifest.partitions.iter();
        let offsets = partitions.map(|partition| (partition.label.clone(), partition.offset_bytes)).collect();
        Self { releases, offsets, images: RefCell::default(), roots: RefCell::default() }
    }

    /// Judges a state.
    #[must_use]
    pub fn judge(&self, disk: &Disk) -> Verdict {
        match self.choices(disk) {
            Ok(choices) if choices.is_empty() => {
                Verdict { fault: Some("the loader finds no entry".to_owned()), ..Verdict::default() }
            }
            Ok(choices) => Verdict { choices, fault: None },
            Err(error) => Verdict { fault: Some(format!("{error:#}")), ..Verdict::default() },
        }
    }

    fn choices(&self, disk: &Disk) -> Result<Vec<Choice>> {
        let (table, _) = Table::read(disk, disk.bytes() / SECTOR_BYTES)?;
        for (label, offset) in &self.offsets {
            ensure!(table.by_label(label)?.offset_bytes() == *offset, "partition {label} has moved");
        }
        let boot = self.offset("boot")?;
        let fat = Fat::open(Part { disk, offset: boot })?;
        let mut choices = Vec::new();
        for entry in order::sorted(entries::read(&fat)?) {
            let image = self.image_of(disk, &fat, &entry.image)?;
            let root = self.roots_of(disk, entry.name.slot)?;
            choices.push(Choice {
                slot: if entry.name.slot == Slot::A { 'a' } else { 'b' },
                install: entry.install,
                left: match entry.name.trial {
                    Trial::Blessed => None,
                    Trial::Counted { left, done: _ } => Some(left),
                },
                release: image.filter(|image| root.contains(image)).map(str::to_owned),
            });
        }
        Ok(choices)
    }

    fn offset(&self, label: &str) -> Result<u64> {
        self.offsets.get(label).copied().with_context(|| format!("the image has no partition {label}"))
    }

    /// The release whose kernel image this file is, whole.
    fn image_of(&self, disk: &Disk, fat: &Fat<Part<'_>>, path: &str) -> Result<Option<&str>> {
        let Ok(file) = fat.find(path) else { return Ok(None) };
        let Ok(places) = fat.places(&file) else { return Ok(None) };
        let boot = self.offset("boot")?;
        let blocks: Vec<u64> = places.iter().map(|place| boot + place).collect();
        ensure!(blocks.iter().all(|place| place % BLOCK == 0), "clusters do not lie on blocks of the disk");
        let (first, last) = (blocks.iter().min().copied().unwrap_or(0), blocks.iter().max().copied().unwrap_or(0));
        let changes = disk.changes(first / BLOCK, (last - first) / BLOCK + 1);
        let key = (fingerprint(format!("{blocks:?} {}", file.size).as_bytes()), changes);
        if let Some(known) = self.images.borrow().get(&key) {
            return Ok(known.and_then(|index| self.releases.get(index)).map(|release| release.name.as_str()));
        }
        let mut prints = Vec::with_capacity(blocks.len());
        for place in &blocks {
            prints.extend(disk.prints(place / BLOCK, 1)?);
        }
        // The end of the last block is not the file's: the writer leaves zeros there, as the release's prints have it.
        let same = |release: &Release| release.uki_bytes == u64::from(file.size) && release.uki == prints;
        let found = self.releases.iter().position(same);
        self.images.borrow_mut().insert(key, found);
        Ok(found.and_then(|index| self.releases.get(index)).map(|release| release.name.as_str()))
    }

    /// The releases whose root and hash tree are in a slot, whole.
    fn roots_of(&self, disk: &Disk, slot: Slot) -> Result<Vec<&str>> {
        let (root, tree) = (self.offset(slot.root_label())? / BLOCK, self.offset(slot.verity_label())? / BLOCK);
        let longest = |blocks: fn(&Release) -> usize| self.releases.iter().map(blocks).max().unwrap_or(0) as u64;
        let (roots, trees) = (longest(|release| release.root.len()), longest(|release| release.tree.len()));
        let key = (root, disk.changes(root, roots) ^ disk.changes(tree, trees).rotate_left(1));
        if let Some(known) = self.roots.borrow().get(&key) {
            return Ok(known
                .iter()
                .filter_map(|index| self.releases.get(*index))
                .map(|release| release.name.as_str())
                .collect());
        }
        let mut found = Vec::new();
        for (index, release) in self.releases.iter().enumerate() {
            let holds =
                |block: u64, wanted: &[u64]| -> Result<bool> { Ok(disk.prints(block, wanted.len() as u64)? == wanted) };
            if holds(tree, &release.tree)? && holds(root, &release.root)? {
                found.push(index);
            }
        }
        let names =
            found.iter().filter_map(|index| self.releases.get(*index)).map(|release| release.name.as_str()).collect();
        self.roots.borrow_mut().insert(key, found);
        Ok(names)
    }
}

/// Notices tries that rise: from one state to a later one an entry of one version may only lose some.
#[derive(Debug, Default)]
pub struct Tries(BTreeMap<(char, u64), u8>);

impl Tries {
    /// Takes the next state of a history; gives what rose.
    pub fn follow(&mut self, verdict: &Verdict) -> Option<String> {
        let mut rose = None;
        for choice in &verdict.choices {
            let Some(left) = choice.left else { continue };
            let before = self.0.insert((choice.slot, choice.install), left);
            if before.is_some_and(|before| left > before) {
                rose = Some(format!("tries of slot {} rose from {before:?} to {left}", choice.slot));
            }
        }
        rose
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(slot: char, install: u64, left: Option<u8>, whole: bool) -> Choice {
        Choice { slot, install, left, release: whole.then(|| "old".to_owned()) }
    }

    fn verdict(choices: &[Choice]) -> Verdict {
        Verdict { choices: choices.to_vec(), fault: None }
    }

    #[test]
    fn a_first_choice_that_is_not_whole_is_bad_whatever_stands_behind_it() {
        assert_eq!(verdict(&[choice('b', 3, Some(2), true), choice('a', 2, None, true)]).complaint(), None);
        assert!(verdict(&[choice('b', 3, Some(2), false), choice('a', 2, None, true)]).complaint().is_some());
        assert!(verdict(&[choice('b', 3, Some(2), true), choice('a', 2, None, false)]).complaint().is_some());
    }

    #[test]
    fn tries_may_only_fall() {
        let mut tries = Tries::default();
        for left in [2, 1, 1, 0] {
            assert_eq!(tries.follow(&verdict(&[choice('b', 3, Some(left), true)])), None);
        }
        assert_eq!(tries.follow(&verdict(&[choice('b', 5, Some(2), true)])), None);
        assert!(tries.follow(&verdict(&[choice('b', 3, Some(1), true)])).is_some());
    }
}
