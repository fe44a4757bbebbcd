//! Where a configuration can come from, and what identifies the instance of the machine.
//!
//! Reading here is bounded and does nothing but copy bytes: the firmware's files are root's, so this runs before the process gives
//! up CAP_DAC_READ_SEARCH, and nothing is parsed until it has. Decoding the copies ([`Gathered::candidates`]) comes after that.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use serde::{Deserialize, Serialize};

use crate::schema::DOCUMENT_BYTES;

/// The whole table. Large servers have some hundred structures of a few hundred bytes; base64 of the largest document needs 88 KiB.
const SMBIOS_BYTES: usize = 1 << 20;
/// Structures of a table that are looked at; handles are 16 bits wide.
const SMBIOS_STRUCTURES: usize = 1 << 16;
/// OEM strings that are kept for later: QEMU makes one structure of them, some hypervisors one per string.
const CANDIDATES: usize = 16;
/// Strings of one structure; their count is one byte in the format.
const SMBIOS_STRINGS: usize = 255;
/// An identity is a UUID, a machine identity 32 digits.
const IDENTITY_BYTES: usize = 128;

/// The group of `byred api`.
const API_GROUP: u32 = 900;
/// The group of `byred pull`.
const PULL_GROUP: u32 = 920;

/// Plain text after this prefix.
const PREFIX_OWN: &[u8] = b"io.byre.config=";
/// Plain text, in the form that systemd documents for SMBIOS credentials.
const PREFIX_TEXT: &[u8] = b"io.systemd.credential:byre.config=";
/// Base64, likewise.
const PREFIX_BINARY: &[u8] = b"io.systemd.credential.binary:byre.config=";

/// Where everything lies; another root for tests.
#[derive(Debug, Clone)]
pub struct Paths {
    /// `/sys`.
    pub sys: PathBuf,
    /// `/run/byre`.
    pub run: PathBuf,
    /// `/state/config`.
    pub state: PathBuf,
    /// The machine identity, `/run/byre/machine-id`.
    pub machine_id: PathBuf,
    /// The group of `byred api`, which alone may read its secret: what is made in `run/config` must belong to it, by that
    /// directory's set-group-id bit. `None` does not look.
    pub api_group: Option<u32>,
    /// The group of `byred pull`, which alone may read the registries' credentials. `None` leaves the group as it is.
    pub pull_group: Option<u32>,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            run: "/run/byre".into(),
            state: "/state/config".into(),
            machine_id: "/run/byre/machine-id".into(),
            api_group: Some(API_GROUP),
            pull_group: Some(PULL_GROUP),
        }
    }
}

/// What tells one instance of the machine from another: a clone or a disk moved elsewhere has a different one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// SMBIOS system UUID, where the firmware has one.
    pub product_uuid: Option<String>,
    /// The machine identity of this installation.
    pub machine_id: Option<String>,
}

/// A document as found, not yet looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// For messages.
    pub origin: String,
    /// The document, or why it could not be taken out of its wrapping.
    pub document: Result<Vec<u8>, String>,
}

/// Bytes copied from the sources, in their fixed order.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    smbios: Option<(String, Vec<u8>)>,
    plain: Vec<(String, Vec<u8>)>,
    /// Sources that exist and could not be read.
    pub unreadable: Vec<String>,
}

impl Gathered {
    /// Copies all that the sources hold.
    pub(crate) fn read(paths: &Paths) -> Self {
        let mut this = Self::default();
        // The table itself needs no module, unlike its structures one by one below `entries`.
        let path = paths.sys.join("firmware/dmi/tables/DMI");
        this.smbios = this.copy(&path, SMBIOS_BYTES).map(|bytes| (path.display().to_string(), bytes));
        let credential = paths.sys.join("firmware/qemu_fw_cfg/by_name/opt/byre/config/raw");
        for path in [credential, paths.run.join("nocloud/byre.toml"), paths.run.join("nocloud/user-data")] {
            // One byte more than allowed, so that the parser refuses what is too large by name.
            if let Some(bytes) = this.copy(&path, DOCUMENT_BYTES + 1) {
                this.plain.push((path.display().to_string(), bytes));
            }
        }
        this
    }

    /// What a table of SMBIOS structures alone says.
    pub(crate) fn of_smbios(table: &[u8]) -> Self {
        Self { smbios: Some(("DMI".into(), table.to_vec())), ..Self::default() }
    }

    fn copy(&mut self, path: &Path, limit: usize) -> Option<Vec<u8>> {
        match read_bounded(path, limit) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                self.unreadable.push(format!("{}: {error}", path.display()));
                None
            }
        }
    }

    /// The documents in the order in which they are tried.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        if let Some((path, table)) = &self.smbios {
            let strings = structures(table).into_iter().flat_map(oem_strings);
            candidates.extend(strings.filter_map(|string| from_oem_string(path, string)).take(CANDIDATES));
        }
        for (path, bytes) in &self.plain {
            // A disk for other systems may carry an empty user-data, which NoCloud requires to exist.
            if !bytes.iter().all(u8::is_ascii_whitespace) {
                candidates.push(Candidate { origin: path.clone(), document: Ok(bytes.clone()) });
            }
        }
        candidates
    }
}

/// Reads what identifies the instance; what cannot be read is unknown.
pub(crate) fn read_instance(paths: &Paths) -> Instance {
    let read = |path: &Path| {
        let bytes = read_bounded(path, IDENTITY_BYTES).ok()?;
        let text = std::str::from_utf8(&bytes).ok()?.trim().to_ascii_lowercase();
        let plausible = text.len() >= 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        plausible.then_some(text)
    };
    Instance { product_uuid: read(&paths.sys.join("class/dmi/id/product_uuid")), machine_id: read(&paths.machine_id) }
}

/// At most `limit` bytes of a file; a longer one is cut there.
pub(crate) fn read_bounded(path: &Path, limit: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(u64::try_from(limit).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The structures of a table, each with its strings (DMTF DSP0134, section 6.1); those before the first that is not well formed.
fn structures(table: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    let mut rest = table;
    while let [_, length, _, _, ..] = rest
        && found.len() < SMBIOS_STRUCTURES
    {
        // A header is four bytes; the strings behind the formatted part end with an empty one.
        let formatted = usize::from(*length).max(4);
        let Some(strings) = rest.get(formatted..) else { break };
        let Some(end) = strings.windows(2).position(|pair| pair == [0, 0]) else { break };
        let (structure, after) = rest.split_at(formatted + end + 2);
        found.push(structure);
        rest = after;
    }
    found
}

/// The strings of an SMBIOS structure of type 11 (DMTF DSP0134, sections 6.1.3 and 7.12); nothing where it is not well formed.
fn oem_strings(structure: &[u8]) -> Vec<&[u8]> {
    let [11, length, _, _, count, ..] = structure else { return Vec::new() };
    let Some(strings) = structure.get(usize::from(*length)..) else { return Vec::new() };
    let count = usize::from(*count).min(SMBIOS_STRINGS);
    strings.split(|byte| *byte == 0).take(count).filter(|string| !string.is_empty()).collect()
}

fn from_oem_string(path: &str, string: &[u8]) -> Option<Candidate> {
    let origin = format!("SMBIOS OEM string ({path})");
    if let Some(text) = string.strip_prefix(PREFIX_OWN).or_else(|| string.strip_prefix(PREFIX_TEXT)) {
        return Some(Candidate { origin, document: Ok(text.to_vec()) });
    }
    let encoded = string.strip_prefix(PREFIX_BINARY)?;
    let document = base64::engine::general_purpose::STANDARD
        .decode(encoded.trim_ascii())
        .map_err(|_| "the credential byre.config is not base64: encode it with `base64 -w0`".to_owned());
    Some(Candidate { origin, document })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A structure as firmware lays it out.
    fn structure(strings: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![11, 5, 0, 11, u8::try_from(strings.len()).expect("few")];
        for string in strings {
            bytes.extend_from_slice(string);
            bytes.push(0);
        }
        bytes.push(0);
        bytes
    }

    #[test]
    fn each_prefix_gives_the_document() {
        // A structure of another kind without strings comes first, as in any table.
        let mut smbios = vec![127, 4, 0, 0, 0, 0];
        smbios.extend(structure(&[
            b"vendor=x",
            b"io.byre.config=version = 1",
            b"io.systemd.credential:byre.config=version = 1",
            b"io.systemd.credential.binary:byre.config=dmVyc2lvbiA9IDE=",
            b"io.systemd.credential.binary:byre.config=***",
            b"io.systemd.credential:other=version = 1",
        ]));
        let gathered = Gathered::of_smbios(&smbios);
        let found = gathered.candidates();
        assert_eq!(found.len(), 4);
        for good in found.iter().take(3) {
            assert_eq!(good.document.as_deref(), Ok(b"version = 1".as_slice()));
        }
        assert!(found[3].document.is_err());
    }

    #[test]
    fn a_count_larger_than_the_strings_is_harmless() {
        let mut smbios = structure(&[b"io.byre.config=x"]);
        smbios[4] = 255;
        assert_eq!(oem_strings(&smbios).len(), 1);
    }

    proptest! {
        #[test]
        fn any_structure_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let gathered = Gathered::of_smbios(&bytes);
            prop_assert!(gathered.candidates().len() <= CANDIDATES);
        }
    }
}
