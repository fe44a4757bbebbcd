//! What a machine remembers of its boots, and its boot partition: the flight recorder's ring, trials, loader entries, a FAT, lines of the
//! kernel's log.

use byre_boots::ring::{self, Boot, End};
use byre_boots::trial::{Held, Outcome, Trial, Trials};
use byre_boots::{log, trial};
use byre_loader::fat::Fat;
use byre_loader::{commit, entries, order};
use byre_slots::Slot;

use crate::{Target, Verdict};

/// See the table.
pub(super) static TARGET: Target = Target {
    name: "boots",
    about: "records of boots and trials, loader entries, the boot partition's FAT, kernel log lines: what is accepted stays within its \
            bounds and is written back the same; a change of a damaged FAT fails or leaves one that can be read",
    sources: &["rootfs/boots/src", "rootfs/loader/src"],
    longest: 24 * 1024,
    run,
    seeds,
};

fn run(input: &[u8]) -> Verdict {
    let Some((decoder, input)) = super::pick(input, 5) else { return Verdict::Refused };
    match decoder {
        0 => record(input),
        1 => trials(input),
        2 => Verdict::of(entries::parse(input).is_some_and(|(_, image)| !image.is_empty())),
        3 => partition(input),
        _ => line(input),
    }
}

/// The checksum is made right: a fuzzer finds none by itself.
fn record(input: &[u8]) -> Verdict {
    let mut place = input.to_vec();
    place.resize(ring::PLACE_BYTES, 0);
    if let Some(length) = place.get(10..12).map(|raw| usize::from(u16::from_le_bytes([raw[0], raw[1]])))
        && let Some(sum) = place.get(16..16 + length).map(crc32fast::hash)
    {
        place[12..16].copy_from_slice(&sum.to_le_bytes());
    }
    let Some((boot, turn)) = ring::decode(&place) else { return Verdict::Refused };
    assert!(boot.tail.len() <= ring::TAIL_BYTES && boot.cause.len() <= ring::CAUSE_BYTES);
    let mut again = ring::encode(&boot, turn);
    again.resize(ring::PLACE_BYTES, 0);
    assert_eq!(ring::decode(&again).map(|(boot, _)| boot), Some(boot));
    Verdict::Accepted
}

fn trials(input: &[u8]) -> Verdict {
    let Ok(read) = Trials::decode(input) else { return Verdict::Refused };
    assert!(read.trials.len() <= trial::TRIALS);
    // A text grows when it is written with escapes: what is too long then is refused by the next reader, not cut.
    if let Ok(again) = Trials::decode(&read.encode()) {
        assert_eq!(again.trials, read.trials);
    }
    Verdict::Accepted
}

/// Puts the input over the beginning of a file system: first sector, tables, root directory and the directories behind it.
fn partition(input: &[u8]) -> Verdict {
    /// Small enough to be made for each input.
    const BYTES: usize = 6 << 20;
    let mut image = vec![0_u8; BYTES];
    image[..input.len().min(BYTES)].copy_from_slice(&input[..input.len().min(BYTES)]);
    let Ok(fat) = Fat::open(image.clone()) else { return Verdict::Refused };
    let found = entries::read(&fat).map(order::sorted).unwrap_or_default();
    for file in fat.list("").unwrap_or_default() {
        // Unreadable is an answer.
        let _ = fat.read(&file, 1 << 16);
    }
    let mut fat = fat;
    let changed = [
        commit::place_image(&mut fat, Slot::B, 5000, &mut |part| {
            part.fill(7);
            Ok(())
        })
        .is_ok(),
        commit::commit(&mut fat, Slot::B).is_ok(),
        commit::put_other_first(&mut fat, Slot::A).is_ok(),
    ];
    let after = Fat::open(fat.into_device());
    assert!(after.is_ok(), "a change destroyed the file system: {changed:?} after {found:?}");
    Verdict::Accepted
}

fn line(input: &[u8]) -> Verdict {
    let text = String::from_utf8_lossy(input);
    let _ = log::cause(&text);
    let mut tail = Vec::new();
    for part in input.split(|byte| *byte == 0) {
        log::append(&mut tail, part, 300);
        assert!(tail.len() <= 300);
    }
    Verdict::of(log::line_of_record(input).is_some())
}

/// A first sector of a FAT16 with 512-byte clusters, which fits a few megabytes.
fn small_fat() -> Vec<u8> {
    let mut sector = vec![0_u8; 512];
    let parts: [(usize, &[u8]); 9] = [
        (11, &[0, 2]),
        (13, &[1]),
        (14, &[1, 0]),
        (16, &[1]),
        (17, &[16, 0]),
        (19, &[0, 0x20]),
        (21, &[0xf8]),
        (22, &[34, 0]),
        (510, &[0x55, 0xaa]),
    ];
    for (at, bytes) in parts {
        sector[at..at + bytes.len()].copy_from_slice(bytes);
    }
    sector
}

fn seeds() -> Vec<Vec<u8>> {
    let boot = Boot {
        version: "0.1".to_owned(),
        cause: "service api is not ready".to_owned(),
        tail: b"[    1.000] words\n".to_vec(),
        end: End::Failed,
        ..Boot::begun(5, 'b')
    };
    let mut all = Trials::default();
    all.arm(Trial {
        slot: 'b',
        version: "0.2".to_owned(),
        root_hash: "ab".repeat(32),
        install: 3,
        armed_wall_s: 1,
        held: Held { services: vec!["api".to_owned()], workloads: vec!["web".to_owned()] },
        generation: 0,
        outcome: Outcome::Armed,
    });
    vec![
        super::seed(0, ring::encode(&boot, 1)),
        super::seed(1, all.encode()),
        super::seed(2, entries::text(Slot::A, 4)),
        super::seed(3, small_fat()),
        super::seed(4, "5,1,1000000,-;byre: cause: x"),
    ]
}
