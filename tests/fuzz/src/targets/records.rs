//! Records that the node wrote itself and that a disk may give back torn or rotten: the journal of wanted state, and the store's records of
//! images.

use std::collections::BTreeMap;
use std::path::Path;

use byre_plan::WorkloadId;
use byre_protocol::control::{Change, WorkloadRecord};
use byre_protocol::frame;
use byre_state::Journal;

use crate::{Target, Verdict};

/// See the table.
pub(super) static TARGET: Target = Target {
    name: "records",
    about: "state journal, image records: a journal gives back a prefix of what was written, nothing else, and takes more; a record is written as \
            it was read",
    sources: &[
        "init/protocol/src",
        "node/state/src/journal.rs",
        "node/state/src/record.rs",
        "image/src/store/record.rs",
    ],
    longest: 8 * 1024,
    run,
    seeds,
};

const MAGIC: &[u8] = b"BYREJNL1";
/// Records of one journal that are tried.
const RECORDS: usize = 16;

fn run(input: &[u8]) -> Verdict {
    let Some((decoder, input)) = super::pick(input, 3) else { return Verdict::Refused };
    match decoder {
        0 => journal(input),
        1 => raw_journal(input),
        _ => Verdict::of(byre_image::fuzz::fuzz_record(input)),
    }
}

/// A journal whose records have the pieces as content, each with a right checksum; a last piece that is cut stands as it is.
fn journal(input: &[u8]) -> Verdict {
    let mut bytes = MAGIC.to_vec();
    let mut expected: BTreeMap<WorkloadId, WorkloadRecord> = BTreeMap::new();
    let mut whole = true;
    for piece in super::pieces(input, RECORDS) {
        bytes.extend_from_slice(&framed(piece));
        // Nothing behind the first piece that is no change can count.
        match frame::decode::<Change>(piece) {
            Ok(Change::Put(record)) if whole => drop(expected.insert(record.id, *record)),
            Ok(Change::Remove(id)) if whole => drop(expected.remove(&id)),
            Ok(Change::Put(_) | Change::Remove(_)) => {}
            Err(_) => whole = false,
        }
    }
    let directory = super::directory();
    let path = directory.path().join("journal");
    std::fs::write(&path, &bytes).expect("room for a journal");
    assert_eq!(replayed(directory.path()), expected, "a prefix, and nothing else");
    Verdict::of(!expected.is_empty())
}

/// Any bytes behind the name.
fn raw_journal(input: &[u8]) -> Verdict {
    let directory = super::directory();
    std::fs::write(directory.path().join("journal"), [MAGIC, input].concat()).expect("room for a journal");
    Verdict::of(!replayed(directory.path()).is_empty())
}

/// What a journal gives back; it then takes another record, and gives all of that back too.
fn replayed(directory: &Path) -> BTreeMap<WorkloadId, WorkloadRecord> {
    let all = |journal: &Journal| -> BTreeMap<WorkloadId, WorkloadRecord> {
        let ids = journal.ids().into_iter();
        ids.map(|id| (id, journal.read(id).expect("it was read before").expect("it is listed"))).collect()
    };
    let mut journal = Journal::open(directory).expect("damage is no error").journal;
    let found = all(&journal);
    let more = super::control::record(u64::MAX);
    journal.append(&[Change::Put(Box::new(more.clone()))]).expect("it takes more");
    let again = Journal::open(directory).expect("it opens again");
    assert_eq!(again.report, None, "what was mended is whole");
    let mut expected = found.clone();
    expected.insert(more.id, more);
    assert_eq!(all(&again.journal), expected);
    found
}

fn framed(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("inputs are short").to_le_bytes();
    let sum = crc32fast::hash(&[&length[..], content].concat());
    [&length[..], &sum.to_le_bytes(), content].concat()
}

fn seeds() -> Vec<Vec<u8>> {
    let encoded = |change: &Change| frame::encode(change).expect("an example is short");
    let put = encoded(&Change::Put(Box::new(super::control::record(1))));
    let other = encoded(&Change::Put(Box::new(super::control::record(2))));
    let remove = encoded(&Change::Remove(WorkloadId(1)));
    let digest = "ab".repeat(32);
    let image = format!(
        r#"{{"version":1,"id":"sha256:{digest}","names":["docker.io/library/web:1"],"manifest":null,"layers":[{{"diff_id":"sha256:{digest}","bytes":4096}}],"created":null,"loaded_at":5,"sequence":2}}"#
    );
    vec![
        super::seed(0, super::joined(&[&put, &other, &remove])),
        super::seed(1, [framed(&put), framed(&other)].concat()),
        super::seed(2, image),
    ]
}
