//! What the updater and PID 1's `arm` take from outside or from a disk: release statements, files of release keys, the facts of a release, the
//! updater's journal, and the head of an offline bundle.

use byre_release::{Facts, ReleaseKeys, SigningKey, Statement, Unverified};
use byre_update::{bundle, journal};

use crate::{Target, Verdict};

/// See the table.
pub(super) static TARGET: Target = Target {
    name: "release",
    about: "statements, release keys, facts, journal, bundles: what is accepted has one form, and a head of a bundle is bounded",
    sources: &["rootfs/release/src", "node/update/src/journal.rs", "node/update/src/bundle.rs"],
    longest: 8 * 1024,
    run,
    seeds,
};

/// Bytes of all metadata of a bundle, as the updater bounds it.
const HEAD_BYTES: usize = 8 << 20;

fn key() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

fn keys() -> Option<ReleaseKeys> {
    ReleaseKeys::parse(key().public_line("fuzz").as_bytes()).ok()
}

fn run(input: &[u8]) -> Verdict {
    let Some((decoder, input)) = super::pick(input, 6) else { return Verdict::Refused };
    match decoder {
        0 => statement(input),
        1 => statement(&resigned(input)),
        2 => Verdict::of(ReleaseKeys::parse(input).is_ok()),
        3 => match Facts::parse(input) {
            Ok(facts) => {
                assert_eq!(Facts::parse(facts.encode().as_bytes()), Ok(facts));
                Verdict::Accepted
            }
            Err(_) => Verdict::Refused,
        },
        4 => match journal::decode(input) {
            Ok(content) => {
                let written = serde_json::to_vec(&content).expect("a journal is written");
                assert_eq!(journal::decode(&written).expect("what was written is read"), content);
                Verdict::Accepted
            }
            Err(_) => Verdict::Refused,
        },
        _ => head(input),
    }
}

/// What is signed and accepted is signed to the same bytes again.
fn statement(input: &[u8]) -> Verdict {
    let Some(keys) = keys() else { return Verdict::Refused };
    match Unverified::new(input).and_then(|unverified| unverified.verify(&keys)) {
        Ok(statement) => {
            assert_eq!(statement.sign(&key()).expect("what was read can be written").as_slice(), input);
            Verdict::Accepted
        }
        Err(_) => Verdict::Refused,
    }
}

/// The input with a signature that is right: so that the fuzzer gets behind it.
fn resigned(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    if let Some((signed, signature)) = bytes.split_at_mut_checked(448) {
        let made = key().sign(signed);
        signature.iter_mut().zip(made).for_each(|(to, from)| *to = from);
    }
    bytes
}

fn head(input: &[u8]) -> Verdict {
    let mut archive = tar::Archive::new(input);
    let Ok(mut entries) = archive.entries() else { return Verdict::Refused };
    match bundle::read_head(&mut entries) {
        Ok(head) => {
            assert!(head.files.values().map(Vec::len).sum::<usize>() <= HEAD_BYTES);
            assert!(head.files.contains_key(&format!("targets/channel-{}", head.channel)));
            Verdict::Accepted
        }
        Err(_) => Verdict::Refused,
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let version = "1.2.3".parse().expect("a version");
    let statement = Statement {
        version,
        install: 7,
        minimum_install: 3,
        build_time: 1_795_000_000,
        root_blocks: 129,
        verity_bytes: 4 * 4096,
        uki_bytes: 13_000_001,
        root_hash: [7; 32],
        uki_sha256: [9; 32],
    };
    let signed = statement.sign(&key()).expect("a statement that can be");
    let facts =
        Facts { version: statement.version, install: 7, minimum_install: 3, build_time: 1_795_000_000 }.encode();
    let journal = br#"{"version":1,"intent":null,"previous":{"version":"1.0","install":1},"floor":3,"failed":[5],"events":[],"checked_wall_ms":17}"#;
    let mut bundle = tar::Builder::new(Vec::new());
    for (name, bytes) in [("metadata/1.root.json", &b"{}"[..]), ("targets/channel-stable", &signed)] {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        bundle.append_data(&mut header, name, bytes).expect("written to memory");
    }
    vec![
        super::seed(0, signed),
        super::seed(1, signed),
        super::seed(2, key().public_line("fuzz")),
        super::seed(3, facts),
        super::seed(4, journal),
        super::seed(5, bundle.into_inner().expect("written to memory")),
    ]
}
