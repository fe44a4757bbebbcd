//! Ways in for a fuzzer: bytes in, whether they were accepted out; each panics when what must be true of its decoder is not.
//!
//! The target that calls these is in `tests/fuzz`. Nothing on a node does.

use std::path::Path;

use crate::parse;
use crate::schema::{DOCUMENT_BYTES, Refused};
use crate::source::Gathered;
use crate::store;

/// A refusal goes to the log as one line.
const REFUSAL_BYTES: usize = 16 * 1024;

/// Reads a document. What is accepted can be written and read again without change.
///
/// # Panics
/// If it cannot: that is what the fuzzer looks for.
pub fn document(data: &[u8]) -> bool {
    match parse(data, "fuzz") {
        Ok(configuration) => {
            let again = toml::to_string(&configuration).expect("a configuration can be written");
            assert_eq!(parse(again.as_bytes(), "fuzz").as_ref(), Ok(&configuration));
            true
        }
        Err(refused) => {
            is_short(&refused);
            false
        }
    }
}

/// Looks for documents in a table of SMBIOS structures. Whether there is a document in it that can be taken out of its wrapping.
///
/// # Panics
/// If a document is longer than the table.
pub fn smbios(table: &[u8]) -> bool {
    let mut found = false;
    for candidate in Gathered::of_smbios(table).candidates() {
        if let Ok(document) = candidate.document {
            assert!(document.len() <= table.len());
            // The parser says what it holds of it; one that is too long is refused there.
            let accepted = parse(&document, &candidate.origin).is_ok();
            assert!(!accepted || document.len() <= DOCUMENT_BYTES);
            found = true;
        }
    }
    found
}

/// Reads the file that keeps an accepted configuration. What is accepted says the same after it was stored again.
///
/// # Panics
/// If it does not.
pub fn stored(bytes: &[u8]) -> bool {
    match store::decode(bytes, Path::new("fuzz")) {
        Ok(stored) => {
            let document = toml::to_string(&stored.configuration).expect("a configuration can be written");
            let again = store::encode(&stored.header, document.as_bytes());
            let again = store::decode(&again, Path::new("fuzz")).expect("what was stored is read");
            assert_eq!((again.header, again.configuration), (stored.header, stored.configuration));
            true
        }
        Err(error) => {
            assert!(error.to_string().len() < REFUSAL_BYTES);
            false
        }
    }
}

fn is_short(refused: &Refused) {
    assert!(refused.to_string().len() < REFUSAL_BYTES, "a refusal is short enough for a log line");
}
