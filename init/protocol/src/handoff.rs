//! The form in which one PID 1 hands its state to the next: a header, then records, each with its length.
//!
//! Both sides are PID 1, and still the reader trusts nothing: it may be a newer program, and what it reads decides about every
//! process of the node. Every length is checked against a bound before anything is read, decoding never panics, and what cannot be
//! read is refused by name. What the records mean is said by those who write them: `byre-core` and the supervisor.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of all records. Whoever changes a record raises it: a program of another version refuses the state before it has it, and
/// the running PID 1 goes on.
pub const VERSION: u32 = 9;
/// Longest record: a queued message or a definition of [`crate::frame::MESSAGE_BYTES`], with all that belongs to it.
pub const RECORD_BYTES: usize = 512 * 1024;
/// Longest state: 2048 workloads of 4 KiB are 8 MiB; the rest is for messages that services have not read yet.
pub const TOTAL_BYTES: usize = 64 << 20;
/// Begins every state.
const MAGIC: [u8; 8] = *b"byre-pid";
/// Magic, version, and the length of all records.
const HEADER_BYTES: usize = 8 + 4 + 8;
/// Length of a record.
const LENGTH_BYTES: usize = 4;

/// Why a state was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    /// Not a state at all.
    #[error("this is no state of a PID 1")]
    Magic,
    /// Of another version.
    #[error("the state has version {found}, this program reads version {VERSION}; reboot to change programs")]
    Version {
        /// What it says.
        found: u32,
    },
    /// Shorter or longer than it says.
    #[error("the state is not whole: {missing} at byte {at}")]
    NotWhole {
        /// What is not there.
        missing: &'static str,
        /// Where.
        at: usize,
    },
    /// One record is too long.
    #[error("record {what} of {length} bytes is longer than {RECORD_BYTES}")]
    RecordTooLong {
        /// Its kind.
        what: &'static str,
        /// Its length.
        length: usize,
    },
    /// All of it is too long.
    #[error("the state is longer than {TOTAL_BYTES} bytes; try again when services have read their messages")]
    TooLong,
    /// A record is not what it should be.
    #[error("record {what} at byte {at} cannot be decoded")]
    Malformed {
        /// Its kind.
        what: &'static str,
        /// Where.
        at: usize,
    },
}

/// Writes records.
#[derive(Debug)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// An empty state.
    #[must_use]
    pub fn new() -> Self {
        let mut bytes = Vec::with_capacity(1 << 16);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Self { bytes }
    }

    /// Appends a record; `what` names its kind in refusals.
    ///
    /// # Errors
    /// If it or the whole becomes too long.
    pub fn push<T: Serialize>(&mut self, what: &'static str, record: &T) -> Result<(), HandoffError> {
        let at = self.bytes.len();
        let record = postcard::to_allocvec(record).map_err(|_| HandoffError::Malformed { what, at })?;
        let too_long = HandoffError::RecordTooLong { what, length: record.len() };
        let length = u32::try_from(record.len()).ok().filter(|_| record.len() <= RECORD_BYTES).ok_or(too_long)?;
        if at.saturating_add(LENGTH_BYTES).saturating_add(record.len()) > TOTAL_BYTES {
            return Err(HandoffError::TooLong);
        }
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(&record);
        Ok(())
    }

    /// The whole state.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let length = u64::try_from(self.bytes.len().saturating_sub(HEADER_BYTES)).unwrap_or(u64::MAX);
        if let Some(place) = self.bytes.get_mut(HEADER_BYTES.saturating_sub(8)..HEADER_BYTES) {
            place.copy_from_slice(&length.to_le_bytes());
        }
        self.bytes
    }
}

/// Reads records in the order they were written.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Checks the header.
    ///
    /// # Errors
    /// If these bytes are no state, of another version, or not whole.
    pub fn new(bytes: &'a [u8]) -> Result<Self, HandoffError> {
        let mut reader = Self { rest: bytes, at: 0 };
        if reader.take(MAGIC.len(), "its first word").map_err(|_| HandoffError::Magic)? != MAGIC {
            return Err(HandoffError::Magic);
        }
        let found = reader.number::<4>("its version").map(u32::from_le_bytes)?;
        if found != VERSION {
            return Err(HandoffError::Version { found });
        }
        let length = reader.number::<8>("its length").map(u64::from_le_bytes)?;
        if bytes.len() > TOTAL_BYTES {
            return Err(HandoffError::TooLong);
        }
        if usize::try_from(length) != Ok(reader.rest.len()) {
            return Err(HandoffError::NotWhole { missing: "as many bytes as it says", at: bytes.len() });
        }
        Ok(reader)
    }

    /// The next record.
    ///
    /// # Errors
    /// If there is none, or it is not of this kind.
    pub fn next<T: DeserializeOwned>(&mut self, what: &'static str) -> Result<T, HandoffError> {
        let at = self.at;
        let length = self.number::<LENGTH_BYTES>(what).map(u32::from_le_bytes)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > RECORD_BYTES {
            return Err(HandoffError::RecordTooLong { what, length });
        }
        let bytes = self.take(length, what)?;
        match postcard::take_from_bytes(bytes) {
            Ok((record, [])) => Ok(record),
            Ok(_) | Err(_) => Err(HandoffError::Malformed { what, at }),
        }
    }

    /// Checks that every record was read.
    ///
    /// # Errors
    /// If there is more.
    pub fn finish(self) -> Result<(), HandoffError> {
        if self.rest.is_empty() { Ok(()) } else { Err(HandoffError::NotWhole { missing: "an end", at: self.at }) }
    }

    fn number<const BYTES: usize>(&mut self, missing: &'static str) -> Result<[u8; BYTES], HandoffError> {
        let at = self.at;
        self.take(BYTES, missing)?.try_into().map_err(|_| HandoffError::NotWhole { missing, at })
    }

    fn take(&mut self, length: usize, missing: &'static str) -> Result<&'a [u8], HandoffError> {
        let not_whole = HandoffError::NotWhole { missing, at: self.at };
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(not_whole)?;
        self.rest = rest;
        self.at = self.at.saturating_add(length);
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new();
        writer.push("name", &"one".to_owned()).unwrap();
        writer.push("number", &7_u32).unwrap();
        writer.finish()
    }

    #[test]
    fn records_come_back_in_order() {
        let bytes = sample();
        let mut reader = Reader::new(&bytes).unwrap();
        assert_eq!(reader.next::<String>("name").unwrap(), "one");
        assert_eq!(reader.next::<u32>("number").unwrap(), 7);
        reader.finish().unwrap();
    }

    #[test]
    fn a_state_cut_anywhere_is_refused() {
        let bytes = sample();
        for length in 0..bytes.len() {
            assert!(Reader::new(&bytes[..length]).is_err(), "{length} bytes were taken for a state");
        }
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let mut bytes = sample();
        bytes[8] = 200;
        let refusal = Reader::new(&bytes).unwrap_err();
        assert!(matches!(refusal, HandoffError::Version { found: 200 }), "{refusal}");
    }

    #[test]
    fn a_record_that_lies_about_its_length_is_refused() {
        let mut bytes = sample();
        bytes[HEADER_BYTES + 2] = 0xff;
        assert!(matches!(
            Reader::new(&bytes).unwrap().next::<String>("name"),
            Err(HandoffError::RecordTooLong { what: "name", .. })
        ));
        let mut writer = Writer::new();
        let long = vec![0_u8; RECORD_BYTES];
        assert!(matches!(writer.push("long", &long), Err(HandoffError::RecordTooLong { what: "long", .. })));
    }
}
