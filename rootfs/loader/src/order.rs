//! The order in which systemd-boot takes entries (`boot_entry_compare` of its 258 and newer), for what can occur on a partition of ours:
//! all have the same sort key, versions are numbers, and no machine id.
//!
//! The checker of power cuts judges by it, and `arm` makes sure with it that what it commits is what will be tried.

use std::cmp::Ordering;

use byre_slots::entry::Trial;

use crate::entries::LoaderEntry;

/// Which of two the loader takes first.
#[must_use]
pub fn compare(left: &LoaderEntry, right: &LoaderEntry) -> Ordering {
    let spent = |entry: &LoaderEntry| matches!(entry.name.trial, Trial::Counted { left: 0, done: _ });
    spent(left)
        .cmp(&spent(right))
        .then_with(|| right.install.cmp(&left.install))
        // The id is the name without its counter.
        .then_with(|| right.name.slot.letter().cmp(left.name.slot.letter()))
        .then_with(|| match (left.name.trial, right.name.trial) {
            (Trial::Counted { left: a, done: x }, Trial::Counted { left: b, done: y }) => b.cmp(&a).then(x.cmp(&y)),
            (Trial::Blessed, Trial::Blessed | Trial::Counted { .. }) | (Trial::Counted { .. }, Trial::Blessed) => {
                Ordering::Equal
            }
        })
}

/// Entries in the order in which they are tried.
#[must_use]
pub fn sorted(mut entries: Vec<LoaderEntry>) -> Vec<LoaderEntry> {
    entries.sort_by(compare);
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use byre_slots::entry::EntryName;

    fn order(entries: &[(&str, u64)]) -> Vec<String> {
        let entry = |(file, install): &(&str, u64)| LoaderEntry {
            file: (*file).to_owned(),
            name: EntryName::parse(file).unwrap(),
            install: *install,
            image: String::new(),
        };
        sorted(entries.iter().map(entry).collect()).into_iter().map(|entry| entry.file).collect()
    }

    #[test]
    fn newest_first_and_those_without_tries_last() {
        assert_eq!(order(&[("a.conf", 2), ("b.conf", 1)]), ["a.conf", "b.conf"]);
        assert_eq!(order(&[("a.conf", 2), ("b+2.conf", 3)]), ["b+2.conf", "a.conf"]);
        assert_eq!(order(&[("a.conf", 2), ("b+0-2.conf", 3)]), ["a.conf", "b+0-2.conf"]);
        assert_eq!(order(&[("a+0.conf", 9), ("b+0-2.conf", 3)]), ["a+0.conf", "b+0-2.conf"]);
        assert_eq!(order(&[("b+1-1.conf", 3), ("b+2.conf", 3)]), ["b+2.conf", "b+1-1.conf"]);
    }
}
