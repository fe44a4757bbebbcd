//! What workloads wrote, as a disk gives it back: segments, and indexes that may be torn or rotten.

use byre_protocol::control::Stream;

use crate::{Target, Verdict};

/// See the table.
pub(super) static TARGET: Target = Target {
    name: "log",
    about: "log segments with their indexes: every byte is read whatever the index says, an answer ends and has no empty piece in it, and what is \
            appended is read",
    sources: &["node/log/src/cursor.rs", "node/log/src/index.rs", "node/log/src/reader.rs", "node/log/src/store.rs"],
    longest: 4 * 1024,
    run,
    seeds,
};

/// A stream's newest segment with any index, before it optionally an older one with any index.
fn run(input: &[u8]) -> Verdict {
    let pieces = super::pieces(input, 5);
    let [numbers, index, segment, rest @ ..] = &pieces[..] else { return Verdict::Refused };
    let directory = super::directory();
    let write = |name: &str, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).expect("room for a log");
    write("stdout.1", segment);
    write("stdout.1.index", index);
    let mut written = segment.to_vec();
    if let [older_index, older] = rest {
        write("stdout.0", older);
        write("stdout.0.index", older_index);
        written = [older, *segment].concat();
    }
    let number =
        |at: usize| numbers.get(at..).and_then(<[u8]>::first_chunk::<2>).map_or(0, |raw| u16::from_le_bytes(*raw));
    let chunks = byre_log::fuzz::read(directory.path(), None, None).expect("an index is not needed to read");
    let bytes: Vec<u8> =
        chunks.into_iter().filter(|chunk| chunk.stream == Stream::Stdout).flat_map(|chunk| chunk.bytes).collect();
    if rest.is_empty() {
        assert_eq!(bytes, written, "every byte, whatever the index says");
    } else {
        assert!(bytes.len() <= written.len());
    }
    let tail =
        byre_log::fuzz::read(directory.path(), Some(number(0).into()), Some(number(2).into())).expect("as before");
    assert!(tail.iter().map(|chunk| chunk.bytes.len()).sum::<usize>() <= written.len());
    byre_log::fuzz::append(directory.path(), b"more\n").expect("it takes more");
    let chunks = byre_log::fuzz::read(directory.path(), None, None).expect("an index is not needed to read");
    let last: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.bytes).collect();
    // Two indexes may contradict each other about where their segments lie in the stream.
    assert!(
        !rest.is_empty() || last == [*segment, b"more\n"].concat(),
        "what is appended is read, behind what was there"
    );
    Verdict::Accepted
}

fn seeds() -> Vec<Vec<u8>> {
    let marks = |base: u64, marks: &[[u64; 4]]| -> Vec<u8> {
        let numbers = marks.iter().flatten().flat_map(|number| number.to_le_bytes());
        b"BYRELOG1".iter().copied().chain(base.to_le_bytes()).chain(numbers).collect()
    };
    let newest = marks(12, &[[0, 1000, 1, 0], [6, 1001, 2, 3]]);
    let older = marks(0, &[[0, 990, 0, 0]]);
    let segment: &[u8] = b"first\nsecond\n";
    vec![
        super::joined(&[&[1, 0, 200, 3], &newest, segment]),
        super::joined(&[&[2, 0, 232, 3], &newest, segment, &older, b"zero\nthings\n"]),
    ]
}
