//! What a running release says of itself, in a file of its own verified root.
//!
//! A root cannot hold its own statement, which names its hash; what the next update must be compared with lies here instead. dm-verity vouches
//! for it.

use crate::statement::Version;

/// Bytes of the file: four short lines.
pub const FACTS_BYTES: usize = 1024;

/// The facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// For people.
    pub version: Version,
    /// See [`Statement::install`](crate::Statement::install).
    pub install: u64,
    /// See [`Statement::minimum_install`](crate::Statement::minimum_install).
    pub minimum_install: u64,
    /// Seconds since 1970.
    pub build_time: u64,
}

/// Why a file is not one of facts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    /// Longer than any.
    #[error("the facts of a release have at most {FACTS_BYTES} bytes, these have {0}")]
    TooLong(usize),
    /// A line is missing, is there twice, or says something that cannot be.
    #[error("the facts of a release say nothing sensible of `{0}`")]
    Field(&'static str),
}

impl Facts {
    /// As they lie in the root.
    #[must_use]
    pub fn encode(&self) -> String {
        let Self { version, install, minimum_install, build_time } = self;
        format!("version={version}\ninstall={install}\nminimum_install={minimum_install}\nbuild_time={build_time}\n")
    }

    /// Reads what [`Self::encode`] wrote. Lines that a later release added are passed over.
    ///
    /// # Errors
    /// [`FactsError`] naming the field.
    pub fn parse(file: &[u8]) -> Result<Self, FactsError> {
        if file.len() > FACTS_BYTES {
            return Err(FactsError::TooLong(file.len()));
        }
        let text = std::str::from_utf8(file).map_err(|_| FactsError::Field("anything"))?;
        let number = |name| value(text, name)?.parse::<u64>().map_err(|_| FactsError::Field(name));
        Ok(Self {
            version: value(text, "version")?.parse().map_err(|_| FactsError::Field("version"))?,
            install: number("install")?,
            minimum_install: number("minimum_install")?,
            build_time: number("build_time")?,
        })
    }
}

fn value<'a>(text: &'a str, name: &'static str) -> Result<&'a str, FactsError> {
    let mut found = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    match (found.next(), found.next()) {
        (Some(value), None) => Ok(value),
        (Some(_), Some(_)) | (None, _) => Err(FactsError::Field(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_read_back_and_every_field_is_needed_once() {
        let facts =
            Facts { version: "1.0".parse().unwrap(), install: 7, minimum_install: 3, build_time: 1_795_000_000 };
        let text = facts.encode();
        assert_eq!(Facts::parse(text.as_bytes()), Ok(facts.clone()));
        assert_eq!(Facts::parse(format!("{text}later=1\n").as_bytes()), Ok(facts));
        for line in text.lines() {
            assert!(matches!(Facts::parse(text.replace(line, "").as_bytes()), Err(FactsError::Field(_))));
            assert!(matches!(Facts::parse(format!("{text}{line}").as_bytes()), Err(FactsError::Field(_))));
        }
        assert_eq!(Facts::parse(&[b'x'; 2000]), Err(FactsError::TooLong(2000)));
    }
}
