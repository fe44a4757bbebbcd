//! The named descriptors of a service, as sd_listen_fds(3) hands them over: `LISTEN_FDS` descriptors from number 3 on, named by
//! `LISTEN_FDNAMES`.
//!
//! They are taken once, before anything else opens a descriptor, and are close-on-exec from then on. A service names each one it
//! needs; what is missing is an error with its name, since the service's definition and its program are then not of one release.

use std::os::fd::OwnedFd;

use crate::{StartError, sys};

/// Descriptors that a service may be given: a control channel and a few listeners.
pub const DESCRIPTORS: usize = 16;
/// First of them, `SD_LISTEN_FDS_START`.
const FIRST: i32 = 3;

/// Why the descriptors could not be taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DescriptorError {
    /// Not started by PID 1, or for another process.
    #[error("LISTEN_PID is {0:?}, not this process: a service is started by PID 1 only")]
    OtherProcess(String),
    /// No number, or too many.
    #[error("LISTEN_FDS is {0:?}: a number up to {DESCRIPTORS} is needed")]
    Count(String),
    /// Names and numbers differ.
    #[error("LISTEN_FDNAMES {names:?} does not name {count} descriptors")]
    Names {
        /// The variable.
        names: String,
        /// What LISTEN_FDS says.
        count: usize,
    },
    /// A number is not open.
    #[error("descriptor {name} (number {number}) is not open")]
    NotOpen {
        /// Its name.
        name: String,
        /// Its number.
        number: i32,
    },
    /// A service needs what it was not given.
    #[error("descriptor {0} was not handed over: the service's definition needs a grant of that name")]
    Missing(String),
}

/// The descriptors that were handed over and not taken yet.
#[derive(Debug, Default)]
pub struct Descriptors {
    held: Vec<(String, OwnedFd)>,
}

impl Descriptors {
    /// Takes them from the environment. Call once, at the start, before other threads exist.
    ///
    /// # Errors
    /// If the variables are malformed or a descriptor is not open. Without `LISTEN_FDS` there are none, which is no error.
    pub fn from_environment() -> Result<Self, StartError> {
        let variable = |name: &str| std::env::var(name).ok();
        let process = std::process::id();
        let names = named(variable("LISTEN_PID"), variable("LISTEN_FDS"), variable("LISTEN_FDNAMES"), process)?;
        let mut held = Vec::new();
        for (name, number) in names {
            let fd = sys::inherited(number).ok_or_else(|| DescriptorError::NotOpen { name: name.clone(), number })?;
            held.push((name, fd));
        }
        Ok(Self { held })
    }

    /// Takes one by its name.
    ///
    /// # Errors
    /// [`DescriptorError::Missing`].
    pub fn take(&mut self, name: &str) -> Result<OwnedFd, StartError> {
        Ok(self.take_if_given(name).ok_or_else(|| DescriptorError::Missing(name.to_owned()))?)
    }

    /// Takes one by its name, if it was handed over.
    pub fn take_if_given(&mut self, name: &str) -> Option<OwnedFd> {
        let place = self.held.iter().position(|(held, _)| held == name)?;
        Some(self.held.swap_remove(place).1)
    }
}

/// Names and numbers, from the three variables.
fn named(
    process: Option<String>,
    count: Option<String>,
    names: Option<String>,
    this_process: u32,
) -> Result<Vec<(String, i32)>, DescriptorError> {
    let Some(count_text) = count else { return Ok(Vec::new()) };
    if let Some(process) = process
        && process.parse() != Ok(this_process)
    {
        return Err(DescriptorError::OtherProcess(process));
    }
    let count = match count_text.parse::<usize>() {
        Ok(count) if count <= DESCRIPTORS => count,
        Ok(_) | Err(_) => return Err(DescriptorError::Count(count_text)),
    };
    if count == 0 {
        return Ok(Vec::new());
    }
    let names = names.unwrap_or_default();
    let list: Vec<&str> = names.split(':').collect();
    let distinct: std::collections::BTreeSet<&&str> = list.iter().collect();
    if list.len() != count || distinct.len() != count || list.iter().any(|name| name.is_empty()) {
        return Err(DescriptorError::Names { names, count });
    }
    Ok(list.into_iter().map(str::to_owned).zip(FIRST..).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn names_and_numbers_must_agree() {
        assert_eq!(named(None, None, text("a"), 7), Ok(vec![]));
        assert_eq!(
            named(text("7"), text("2"), text("control:unix"), 7),
            Ok(vec![("control".to_owned(), 3), ("unix".to_owned(), 4)])
        );
        assert!(matches!(named(text("8"), text("1"), text("a"), 7), Err(DescriptorError::OtherProcess(_))));
        assert!(matches!(named(None, text("17"), text("a"), 7), Err(DescriptorError::Count(_))));
        assert!(matches!(named(None, text("-1"), text("a"), 7), Err(DescriptorError::Count(_))));
        for bad in [None, text("a"), text("a:a"), text("a:"), text("a:b:c")] {
            assert!(matches!(named(None, text("2"), bad, 7), Err(DescriptorError::Names { .. })));
        }
    }
}
