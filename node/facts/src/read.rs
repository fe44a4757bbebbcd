//! Bounded reading of /proc, /sys and the few files of the node; what cannot be read is absent.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Attribute files of sysfs are at most a page.
const ATTRIBUTE_BYTES: u64 = 4096;
/// The largest files read here: /proc/cpuinfo of a machine with a thousand threads is about 1.6 MB.
const FILE_BYTES: u64 = 4 << 20;
/// Entries of one directory: more links, disks or functions than any machine we know has.
const ENTRIES: usize = 4096;

/// Where everything lies; another root for tests.
#[derive(Debug, Clone)]
pub struct Root {
    /// `/proc`.
    pub proc: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
    /// `/run/byre`.
    pub run: PathBuf,
    /// `/etc`.
    pub etc: PathBuf,
    /// `/`, whose device is asked for.
    pub root: PathBuf,
}

impl Default for Root {
    fn default() -> Self {
        Self { proc: "/proc".into(), sys: "/sys".into(), run: "/run/byre".into(), etc: "/etc".into(), root: "/".into() }
    }
}

/// A whole file as text, without spaces around it; absent if empty.
pub(crate) fn attribute(path: impl AsRef<Path>) -> Option<String> {
    let text = bounded(path.as_ref(), ATTRIBUTE_BYTES)?;
    let text = text.trim_matches(|letter: char| letter.is_whitespace() || letter == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

/// A decimal number.
pub(crate) fn number(path: impl AsRef<Path>) -> Option<u64> {
    attribute(path)?.parse().ok()
}

/// A longer file; empty if it cannot be read.
pub(crate) fn file(path: impl AsRef<Path>) -> String {
    bounded(path.as_ref(), FILE_BYTES).unwrap_or_default()
}

fn bounded(path: &Path, limit: u64) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(limit).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Names in a directory, in order; none if it cannot be read.
pub(crate) fn names(path: impl AsRef<Path>) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.take(ENTRIES).filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort_unstable_by(|a, b| natural(a).cmp(&natural(b)));
    names
}

/// `sda2` before `sda10`.
fn natural(name: &str) -> (&str, u64, &str) {
    let digits = name.len() - name.trim_end_matches(|letter: char| letter.is_ascii_digit()).len();
    let (stem, number) = name.split_at(name.len() - digits);
    (stem, number.parse().unwrap_or(0), name)
}

/// The value of a line `key=value`, as uevent files and os-release have them, without quotes.
pub(crate) fn assigned(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    let value = line.trim();
    let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    let value = quoted.unwrap_or(value);
    (!value.is_empty()).then(|| value.to_owned())
}

/// Words of a file.
pub(crate) fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
