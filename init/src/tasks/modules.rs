//! Kernel modules from the verified root, and from nowhere else: for the devices that are present, and by name when the kernel asks.
//!
//! What may be loaded is what lies in /usr/lib/modules: the image build put only listed modules there.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::{TaskError, on};
use crate::sys;

/// Bytes of a modules.alias or modules.dep that are read at most; ours have a few dozen lines.
const INDEX_BYTES: usize = 4 << 20;
/// Files looked at below /sys/devices.
const DEVICES: usize = 65_536;

/// The modules of the running kernel.
struct Index {
    base: PathBuf,
    /// Path below `base` and those of what it depends on, nearest first, by normalised name.
    dependencies: BTreeMap<String, Vec<String>>,
    /// Pattern and module.
    aliases: Vec<(String, String)>,
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn read_bounded(path: &Path) -> Result<String, TaskError> {
    let text = std::fs::read_to_string(path).map_err(on("read", path))?;
    if text.len() > INDEX_BYTES { Err(TaskError::Invalid(format!("{} is too long", path.display()))) } else { Ok(text) }
}

impl Index {
    fn read() -> Result<Self, TaskError> {
        let release =
            std::fs::read_to_string("/proc/sys/kernel/osrelease").map_err(on("read", "/proc/sys/kernel/osrelease"))?;
        let base = Path::new("/usr/lib/modules").join(release.trim());
        let mut dependencies = BTreeMap::new();
        for line in read_bounded(&base.join("modules.dep"))?.lines() {
            let Some((module, needs)) = line.split_once(':') else { continue };
            let chain = std::iter::once(module).chain(needs.split_whitespace()).map(str::to_owned).collect();
            dependencies.insert(name_of(module), chain);
        }
        let aliases = read_bounded(&base.join("modules.alias"))?
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                (words.next() == Some("alias")).then_some(())?;
                Some((words.next()?.to_owned(), normal(words.next()?)))
            })
            .collect();
        Ok(Self { base, dependencies, aliases })
    }

    /// Modules whose alias fits, or that have this very name.
    fn matching(&self, wanted: &str) -> BTreeSet<String> {
        let by_name = Some(normal(wanted)).filter(|name| self.dependencies.contains_key(name));
        let by_alias = self.aliases.iter().filter(|(pattern, _)| fits(pattern.as_bytes(), wanted.as_bytes()));
        by_alias.map(|(_, module)| module.clone()).chain(by_name).collect()
    }

    /// Loads a module after what it depends on.
    fn load(&self, name: &str) -> Result<(), TaskError> {
        let Some(chain) = self.dependencies.get(name) else {
            return Err(TaskError::Invalid(format!("module {name} is not part of the system")));
        };
        for module in chain.iter().rev() {
            let path = self.base.join(module);
            let file = std::fs::File::open(&path).map_err(on("open", &path))?;
            match sys::load_module(file.as_fd()) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => return Err(TaskError::Invalid(format!("module {}: {errno}", path.display()))),
            }
        }
        Ok(())
    }
}

fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    normal(file.split(".ko").next().unwrap_or(file))
}

/// Shell pattern with `*`, `?` and `[a-z]`, as the kernel's aliases have them; `-` and `_` are the same.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let same = |a: u8, b: u8| a == b || (matches!(a, b'-' | b'_') && matches!(b, b'-' | b'_'));
    let (mut pattern, mut text) = (pattern, text);
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        let step = match (pattern.split_first(), text.split_first()) {
            (None, None) => return true,
            (Some((b'*', rest)), _) => {
                retry = Some((rest, text));
                Some((rest, text))
            }
            (Some((b'[', rest)), Some((letter, behind))) => {
                class(rest, *letter).and_then(|(inside, after)| inside.then_some((after, behind)))
            }
            (Some((b'?', rest)), Some((_, behind))) => Some((rest, behind)),
            (Some((wanted, rest)), Some((letter, behind))) if same(*wanted, *letter) => Some((rest, behind)),
            (Some(_), _) | (None, Some(_)) => None,
        };
        match (step, retry) {
            (Some((rest, behind)), _) => (pattern, text) = (rest, behind),
            (None, Some((after_star, from))) => {
                let Some((_, later)) = from.split_first() else { return false };
                retry = Some((after_star, later));
                (pattern, text) = (after_star, later);
            }
            (None, None) => return false,
        }
    }
}

/// Whether a letter is in the class that begins behind `[`, and what follows the class.
fn class(pattern: &[u8], letter: u8) -> Option<(bool, &[u8])> {
    let end = pattern.iter().position(|byte| *byte == b']')?;
    let (members, rest) = pattern.split_at_checked(end)?;
    let inside = members.split(|byte| *byte == b'-').next().is_some() && in_members(members, letter);
    Some((inside, rest.get(1..)?))
}

fn in_members(mut members: &[u8], letter: u8) -> bool {
    loop {
        match members {
            [from, b'-', to, rest @ ..] => {
                if (*from..=*to).contains(&letter) {
                    return true;
                }
                members = rest;
            }
            [one, rest @ ..] => {
                if *one == letter {
                    return true;
                }
                members = rest;
            }
            [] => return false,
        }
    }
}

/// Loads the modules of all devices that are present, and those that no device asks for by itself.
pub(crate) fn load_for_devices() -> Result<(), TaskError> {
    let index = Index::read()?;
    let mut wanted: BTreeSet<String> = ["overlay", "evdev", "loop", "quota_v2"]
        .into_iter()
        .map(str::to_owned)
        .filter(|name| index.dependencies.contains_key(name))
        .collect();
    let mut aliases = BTreeSet::new();
    collect_aliases(Path::new("/sys/devices"), &mut aliases, &mut 0);
    for alias in &aliases {
        wanted.extend(index.matching(alias));
    }
    let mut loaded = Vec::new();
    for name in wanted {
        match index.load(&name) {
            Ok(()) => loaded.push(name),
            Err(error) => eprintln!("{error}"),
        }
    }
    println!("modules: {}", loaded.join(" "));
    Ok(())
}

fn collect_aliases(directory: &Path, aliases: &mut BTreeSet<String>, seen: &mut usize) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        *seen = seen.saturating_add(1);
        if *seen > DEVICES {
            return;
        }
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            collect_aliases(&entry.path(), aliases, seen);
        } else if entry.file_name() == "modalias"
            && let Ok(text) = std::fs::read_to_string(entry.path())
        {
            aliases.insert(text.trim().to_owned());
        }
    }
}

/// Loads what the kernel asked for by name or alias.
pub(crate) fn load_by_name(wanted: &str) -> Result<(), TaskError> {
    let index = Index::read()?;
    let matching = index.matching(wanted);
    if matching.is_empty() {
        return Err(TaskError::Invalid(format!("module {wanted:?} is not part of the system")));
    }
    matching.iter().try_for_each(|name| index.load(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_the_kernel_means_them() {
        for (pattern, text) in [
            ("virtio:d00000001v*", "virtio:d00000001v00001AF4"),
            ("pci:v0000[0-9A-F]*sv*", "pci:v00008086d0000sv1"),
            ("fs-overlay", "fs-overlay"),
            ("*", ""),
            ("a*b*c", "axxbyyc"),
            ("virtio_net", "virtio-net"),
        ] {
            assert!(fits(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
        for (pattern, text) in [("a?", "a"), ("[b-d]x", "ex"), ("abc", "ab"), ("a*b", "ac"), ("[", "[")] {
            assert!(!fits(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
    }

    #[test]
    fn a_module_has_one_name_however_it_is_written() {
        assert_eq!(name_of("kernel/drivers/net/virtio-net.ko"), "virtio_net");
        assert_eq!(name_of("kernel/fs/overlayfs/overlay.ko.xz"), "overlay");
    }
}
