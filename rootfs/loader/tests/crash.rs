//! Cuts the power at every write of what changes the boot partition, tears writes, and leaves out any of those that no flush ordered.
//!
//! In each state that can come of it the loader's first choice must be whole, the running slot must stay whole, what was committed must
//! stay committed, tries must not rise, and the same step run again must end as if nothing had been cut.

mod disk;

use std::collections::BTreeSet;
use std::sync::LazyLock;

use byre_loader::commit::{self, CommitError};
use byre_loader::entries::{self, LoaderEntry, Standing};
use byre_loader::fat::{Fat, FatError};
use byre_loader::order;
use byre_slots::Slot;
use byre_slots::entry::{EntryName, Trial};
use disk::{Op, Overlay, formatted};

/// A kernel image for the tests: its content says which, over several clusters and a part of one.
fn image(which: u8) -> &'static [u8] {
    static IMAGES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
        (0..8_u8)
            .map(|which| (0..400_000_u32).map(|at| which.wrapping_mul(37).wrapping_add((at % 251) as u8)).collect())
            .collect()
    });
    &IMAGES[usize::from(which)]
}

fn place(fat: &mut Fat<Overlay>, slot: Slot, which: u8) -> Result<(), CommitError> {
    let bytes = image(which);
    let mut rest = bytes;
    commit::place_image(fat, slot, bytes.len() as u64, &mut |part| std::io::Read::read_exact(&mut rest, part))
}

/// As the image build makes it: slot a first, both blessed.
fn made() -> Overlay {
    let mut fat = Fat::open(Overlay::new(formatted())).unwrap();
    for (slot, install, which) in [(Slot::A, 2, 1), (Slot::B, 1, 1)] {
        let bytes = image(which);
        let mut rest = bytes;
        let mut fill = |part: &mut [u8]| std::io::Read::read_exact(&mut rest, part);
        fat.replace(&entries::image_path(slot), bytes.len() as u64, &mut fill).unwrap();
        let text = entries::text(slot, install);
        let mut rest = text.as_bytes();
        let mut fill = |part: &mut [u8]| std::io::Read::read_exact(&mut rest, part);
        fat.replace(&format!("loader/entries/{}.conf", slot.letter()), text.len() as u64, &mut fill).unwrap();
    }
    Overlay::new(fat.into_device().bytes())
}

/// Which image a slot's file holds, if it is whole.
fn holds(fat: &Fat<Overlay>, slot: Slot) -> Option<u8> {
    let file = fat.find(&entries::image_path(slot)).ok()?;
    let bytes = fat.read(&file, 1 << 20).ok()?;
    (0..8).find(|which| bytes == image(*which))
}

/// A step of the protocol, what must hold in each state that a cut in it can leave, and what must hold once it is done.
struct Step {
    name: &'static str,
    run: fn(&mut Fat<Overlay>) -> Result<(), CommitError>,
    holds: fn(&Fat<Overlay>, &[LoaderEntry]) -> bool,
    done: fn(&Fat<Overlay>, &[LoaderEntry]) -> bool,
}

fn first_is(entries: &[LoaderEntry], slot: Slot) -> bool {
    entries.first().is_some_and(|entry| entry.name.slot == slot)
}

/// What must be so while slot b is armed with image 2: the loader's first choice is a as it was, or b as it will be.
fn arming(fat: &Fat<Overlay>, entries: &[LoaderEntry]) -> bool {
    let old = entries::standing(entries, Slot::A) == Standing::Blessed && holds(fat, Slot::A) == Some(1);
    let committed = entries.iter().any(|entry| entry.name.slot == Slot::B && entry.install == 3);
    old && first_is(entries, if committed { Slot::B } else { Slot::A })
        && (!committed || holds(fat, Slot::B) == Some(2))
}

fn both_whole(fat: &Fat<Overlay>, entries: &[LoaderEntry]) -> bool {
    let whole = holds(fat, Slot::A) == Some(1) && holds(fat, Slot::B) == Some(2);
    whole && [Slot::A, Slot::B].into_iter().all(|slot| entries::standing(entries, slot) != Standing::Absent)
}

const STEPS: [Step; 5] = [
    Step {
        name: "arm",
        run: |fat| {
            // As the node does it: a slot that is committed already is not placed again.
            if entries::standing(&entries::read(fat)?, Slot::B) == (Standing::Counted { left: 2 }) {
                return Ok(());
            }
            place(fat, Slot::B, 2)?;
            commit::commit(fat, Slot::B).map(drop)
        },
        holds: arming,
        done: |fat, entries| {
            arming(fat, entries)
                && first_is(entries, Slot::B)
                && entries::standing(entries, Slot::B) == Standing::Counted { left: 2 }
        },
    },
    Step {
        name: "the loader counts a try",
        run: |fat| {
            let counted = EntryName { slot: Slot::B, trial: Trial::Counted { left: 1, done: 1 } };
            match fat.rename(entries::DIRECTORY, "b+2.conf", &counted.to_string()) {
                Ok(()) | Err(FatError::Missing(_)) => Ok(()),
                Err(error) => Err(error.into()),
            }
        },
        holds: |fat, entries| both_whole(fat, entries) && first_is(entries, Slot::B),
        done: |_, entries| entries::standing(entries, Slot::B) == Standing::Counted { left: 1 },
    },
    Step {
        name: "bless",
        run: |fat| commit::bless(fat, Slot::B).map(drop),
        holds: |fat, entries| both_whole(fat, entries) && first_is(entries, Slot::B),
        done: |_, entries| entries::standing(entries, Slot::B) == Standing::Blessed,
    },
    Step {
        name: "put the other first",
        run: |fat| commit::put_other_first(fat, Slot::B),
        holds: both_whole,
        done: |_, entries| {
            first_is(entries, Slot::A) && entries::standing(entries, Slot::B) == Standing::Counted { left: 0 }
        },
    },
    Step {
        name: "back to a slot that was run out",
        run: |fat| commit::commit(fat, Slot::B).map(drop),
        holds: |fat, entries| {
            holds(fat, Slot::A) == Some(1)
                && holds(fat, Slot::B) == Some(2)
                && !entries.is_empty()
                && entries::standing(entries, Slot::A) == Standing::Blessed
        },
        done: |_, entries| {
            first_is(entries, Slot::B) && entries::standing(entries, Slot::B) == Standing::Counted { left: 2 }
        },
    },
];

/// States that a log can leave: every prefix, every tear of the write behind it, and choices among the writes that no flush ordered.
fn states(base: &Overlay, log: &[Op], visit: &mut dyn FnMut(&Overlay, usize)) -> usize {
    let mut count = 0;
    let mut ordered = base.clone();
    let mut epoch: Vec<(u64, &Vec<u8>)> = Vec::new();
    let mut flushes = 0;
    let mut random = 0x9e37_79b9_u64;
    let mut draw = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for op in log.iter().chain([&Op::Flush]) {
        match op {
            Op::Write(offset, bytes) => epoch.push((*offset, bytes)),
            Op::Flush => {
                let mut state = ordered.clone();
                visit(&state, flushes);
                for (offset, bytes) in &epoch {
                    // Torn from the front and from the back, by sectors.
                    for cut in (512..bytes.len()).step_by(512) {
                        let mut torn = state.clone();
                        torn.put(&bytes[..cut], *offset);
                        visit(&torn, flushes);
                        let mut torn = state.clone();
                        torn.put(&bytes[cut..], *offset + cut as u64);
                        visit(&torn, flushes);
                        count += 2;
                    }
                    state.put(bytes, *offset);
                    visit(&state, flushes);
                    count += 1;
                }
                let all = 1_u64.checked_shl(u32::try_from(epoch.len()).unwrap()).unwrap_or(u64::MAX);
                let tries = all.min(512);
                for number in 0..tries {
                    let chosen = if all <= 512 { number } else { draw() };
                    let mut state = ordered.clone();
                    for (at, (offset, bytes)) in epoch.iter().enumerate() {
                        if chosen >> (at % 64) & 1 == 1 {
                            state.put(bytes, *offset);
                        }
                    }
                    visit(&state, flushes);
                    count += 1;
                }
                for (offset, bytes) in epoch.drain(..) {
                    ordered.put(bytes, offset);
                }
                flushes += 1;
            }
        }
    }
    count
}

#[test]
fn no_cut_leaves_a_mix_and_every_step_can_be_run_again() {
    let mut disk = made();
    let mut judged = 0;
    for step in &STEPS {
        disk.log.clear();
        let base = disk.clone();
        let mut fat = Fat::open(disk).unwrap();
        (step.run)(&mut fat).unwrap_or_else(|error| panic!("{}: {error}", step.name));
        disk = fat.into_device();
        let log = std::mem::take(&mut disk.log);
        let flushes = log.iter().filter(|op| matches!(op, Op::Flush)).count();
        let mut seen = BTreeSet::new();
        judged += states(&base, &log, &mut |state, after| {
            let fat = Fat::open(state.clone()).unwrap();
            let found = order::sorted(entries::read(&fat).unwrap());
            assert!((step.holds)(&fat, &found), "{}: after {after} of {flushes} flushes: {found:?}", step.name);
            assert!(
                after < flushes || (step.done)(&fat, &found),
                "{}: was not on disk when it was done: {found:?}",
                step.name
            );
            // One of each kind of state is gone on from.
            let kind = format!("{after}: {found:?}, {:?}", holds(&fat, Slot::B));
            if !seen.contains(&kind) {
                let mut again = Fat::open(state.clone()).unwrap();
                (step.run)(&mut again).unwrap_or_else(|error| panic!("{} again, from {kind}: {error}", step.name));
                let end = order::sorted(entries::read(&again).unwrap());
                assert!((step.done)(&again, &end), "{} again, from {kind}: {end:?}", step.name);
                seen.insert(kind);
            }
        });
    }
    println!("{judged} states");
    assert!(judged > 2000, "only {judged} states were judged");
}

#[test]
fn an_unproven_slot_is_never_left_for_another() {
    let mut fat = Fat::open(made()).unwrap();
    place(&mut fat, Slot::B, 2).unwrap();
    commit::commit(&mut fat, Slot::B).unwrap();
    // Slot b is on trial: nothing may be written over slot a, which is the last that works.
    assert!(matches!(place(&mut fat, Slot::A, 3), Err(CommitError::Unproven(Slot::B))));
    assert!(matches!(commit::commit(&mut fat, Slot::A), Err(CommitError::Unproven(Slot::B))));
    assert_eq!(holds(&fat, Slot::A), Some(1));
    commit::bless(&mut fat, Slot::B).unwrap();
    place(&mut fat, Slot::A, 3).unwrap();
    assert_eq!(commit::commit(&mut fat, Slot::A).unwrap(), 4);
}

#[test]
fn what_does_not_fit_changes_nothing() {
    let mut fat = Fat::open(made()).unwrap();
    let before = fat.free_bytes();
    let error = commit::place_image(&mut fat, Slot::B, before, &mut |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("nothing was changed"), "{error}");
    let broken = commit::place_image(&mut fat, Slot::B, 9000, &mut |_| Err(std::io::ErrorKind::InvalidData.into()));
    assert!(broken.is_err());
    assert_eq!((fat.free_bytes(), holds(&fat, Slot::B)), (before, Some(1)));
}

#[test]
fn fifty_updates_leak_no_cluster_and_no_record() {
    let mut fat = Fat::open(made()).unwrap();
    let free = fat.free_bytes();
    for round in 0..50_u8 {
        let slot = if round % 2 == 0 { Slot::B } else { Slot::A };
        place(&mut fat, slot, round % 7).unwrap();
        commit::commit(&mut fat, slot).unwrap();
        fat.rename(entries::DIRECTORY, &format!("{}+2.conf", slot.letter()), &format!("{}+1-1.conf", slot.letter()))
            .unwrap();
        assert!(commit::bless(&mut fat, slot).unwrap());
        assert!(!commit::bless(&mut fat, slot).unwrap(), "a second time changes nothing");
        assert_eq!(fat.free_bytes(), free);
        assert_eq!(entries::read(&fat).unwrap().len(), 2);
    }
}

#[test]
fn a_rename_that_firmware_left_half_done_is_settled() {
    let mut fat = Fat::open(made()).unwrap();
    place(&mut fat, Slot::B, 2).unwrap();
    commit::commit(&mut fat, Slot::B).unwrap();
    // Two names on one chain, as a cut between its two writes leaves them.
    let mut double = fat.into_device();
    let text = entries::text(Slot::B, 3);
    let mut fat = Fat::open(double.clone()).unwrap();
    let mut rest = text.as_bytes();
    fat.replace("loader/entries/b+1-1.conf", text.len() as u64, &mut |part| std::io::Read::read_exact(&mut rest, part))
        .unwrap();
    double = fat.into_device();
    let mut fat = Fat::open(double).unwrap();
    assert!(commit::bless(&mut fat, Slot::B).unwrap());
    let names: Vec<String> = entries::read(&fat).unwrap().into_iter().map(|entry| entry.file).collect();
    assert_eq!(names.iter().filter(|name| name.starts_with('b')).collect::<Vec<_>>(), ["b.conf"]);
    assert_eq!(entries::standing(&entries::read(&fat).unwrap(), Slot::B), Standing::Blessed);
}

/// What others make of it: dosfstools finds nothing to mend, mtools reads the same names and bytes.
#[test]
fn other_programs_read_the_same() {
    let mut fat = Fat::open(made()).unwrap();
    place(&mut fat, Slot::B, 5).unwrap();
    commit::commit(&mut fat, Slot::B).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("boot.img");
    std::fs::write(&path, fat.into_device().bytes()).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let output =
            std::process::Command::new(program).args(arguments).env("PATH", "/usr/bin:/usr/sbin:/bin:/sbin").output();
        match output {
            Ok(output) => Some((output.status.success(), output.stdout)),
            Err(_) => {
                println!("skipped: {program} is not installed");
                None
            }
        }
    };
    let image_path = path.to_str().unwrap();
    if let Some((clean, text)) = run("fsck.fat", &["-n", image_path]) {
        assert!(clean, "{}", String::from_utf8_lossy(&text));
    }
    if let Some((read, text)) = run("mdir", &["-i", image_path, "-b", "::/loader/entries"]) {
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(read && text.contains("/a.conf") && text.contains("/b+2.conf"), "{text}");
    }
    if let Some((read, bytes)) = run("mtype", &["-i", image_path, "::/byre/b.efi"]) {
        assert!(read && bytes == image(5));
    }
}
