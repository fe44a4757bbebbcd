//! Names that may enter a tree.
//!
//! A [`TreePath`] is made only here, from unchecked bytes: relative, without empty, `.` or `..` components, each short
//! enough. No path is ever resolved against a file system.

use super::MAX_NAME_LEN;

/// Longest path: PATH_MAX without its NUL; the kernel could not reach a longer one by name.
const MAX_PATH_LEN: usize = 4095;
/// Deepest tree: twice what any package makes; keeps every walk of it bounded.
pub(crate) const MAX_DEPTH: usize = 256;

/// Why a name was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// It leads upwards.
    #[error("the name leads out of the image through '..'")]
    Parent,
    /// It holds a NUL byte.
    #[error("the name has a NUL byte in it")]
    Nul,
    /// One component is too long.
    #[error("a part of the name is longer than {MAX_NAME_LEN} bytes")]
    ComponentTooLong,
    /// The whole is too long.
    #[error("the name is longer than {MAX_PATH_LEN} bytes")]
    TooLong,
    /// Too many components.
    #[error("the name is more than {MAX_DEPTH} directories deep")]
    TooDeep,
}

/// A checked path below the root of a tree; empty for the root itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreePath {
    components: Vec<Vec<u8>>,
}

impl TreePath {
    /// Checks `raw`. An absolute path is taken as relative to the root, as every unpacker does.
    ///
    /// # Errors
    /// [`PathFault`].
    pub fn parse(raw: &[u8]) -> Result<Self, PathFault> {
        if raw.contains(&0) {
            return Err(PathFault::Nul);
        }
        if raw.len() > MAX_PATH_LEN {
            return Err(PathFault::TooLong);
        }
        let mut components = Vec::new();
        for component in raw.split(|b| *b == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(PathFault::Parent),
                _ if component.len() > MAX_NAME_LEN => return Err(PathFault::ComponentTooLong),
                _ => components.push(component.to_vec()),
            }
        }
        if components.len() > MAX_DEPTH {
            return Err(PathFault::TooDeep);
        }
        Ok(Self { components })
    }

    /// The components from the root down.
    pub fn components(&self) -> &[Vec<u8>] {
        &self.components
    }

    /// Directory part and last name; `None` for the root.
    pub fn split_last(&self) -> Option<(&[Vec<u8>], &[u8])> {
        self.components.split_last().map(|(last, parents)| (parents, last.as_slice()))
    }

    /// The same directory with another last name, which must be a valid component.
    pub(crate) fn with_last(mut self, name: &[u8]) -> Self {
        debug_assert!(!name.is_empty() && name != b"." && name != b"..");
        if let Some(last) = self.components.last_mut() {
            name.clone_into(last);
        }
        self
    }

    /// The directory that holds it; the root's is the root.
    pub(crate) fn parent(mut self) -> Self {
        self.components.pop();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn joined(raw: &[u8]) -> Vec<u8> {
        TreePath::parse(raw).unwrap().components().join(&b'/')
    }

    #[test]
    fn paths_are_made_relative_and_plain() {
        assert_eq!(joined(b"./a//b/./c/"), b"a/b/c");
        assert_eq!(joined(b"/etc/passwd"), b"etc/passwd");
        assert_eq!(joined(b"./"), b"");
        assert_eq!(joined(b"..."), b"...");
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        for raw in [&b".."[..], b"../x", b"a/../../b", b"a/..", b"/.."] {
            assert_eq!(TreePath::parse(raw), Err(PathFault::Parent));
        }
        assert_eq!(TreePath::parse(b"a\0b"), Err(PathFault::Nul));
        assert_eq!(TreePath::parse(&[b'a'; 256]), Err(PathFault::ComponentTooLong));
        assert_eq!(TreePath::parse(&b"a/".repeat(300)), Err(PathFault::TooDeep));
        assert_eq!(TreePath::parse(&b"a/".repeat(3000)), Err(PathFault::TooLong));
    }

    proptest! {
        #[test]
        fn an_accepted_path_has_only_plain_components(raw in prop::collection::vec(prop::sample::select(&b"a./\0b"[..]), 0..40)) {
            if let Ok(path) = TreePath::parse(&raw) {
                for component in path.components() {
                    prop_assert!(!component.is_empty() && component != b"." && component != b"..");
                    prop_assert!(!component.contains(&b'/') && !component.contains(&0));
                }
            }
        }
    }
}
