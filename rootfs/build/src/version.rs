//! Debian's order of versions (deb-version(7)). Only compares; knows no packages.

use std::cmp::Ordering;

/// Compares two version strings: epoch, then upstream version, then revision.
pub(crate) fn compare(left: &str, right: &str) -> Ordering {
    let (left_epoch, left) = split_epoch(left);
    let (right_epoch, right) = split_epoch(right);
    let (left_upstream, left_revision) = left.rsplit_once('-').unwrap_or((left, ""));
    let (right_upstream, right_revision) = right.rsplit_once('-').unwrap_or((right, ""));
    left_epoch
        .cmp(&right_epoch)
        .then_with(|| compare_part(left_upstream, right_upstream))
        .then_with(|| compare_part(left_revision, right_revision))
}

fn split_epoch(version: &str) -> (u64, &str) {
    match version.split_once(':') {
        Some((epoch, rest)) => (epoch.parse().unwrap_or(0), rest),
        None => (0, version),
    }
}

/// Alternates between runs of non-digits and runs of digits, as the manual page describes.
fn compare_part(mut left: &str, mut right: &str) -> Ordering {
    loop {
        let (left_text, left_rest) = split_run(left, |c| !c.is_ascii_digit());
        let (right_text, right_rest) = split_run(right, |c| !c.is_ascii_digit());
        let text = compare_text(left_text, right_text);
        if text != Ordering::Equal {
            return text;
        }
        let (left_number, left_next) = split_run(left_rest, |c| c.is_ascii_digit());
        let (right_number, right_next) = split_run(right_rest, |c| c.is_ascii_digit());
        let number = compare_number(left_number, right_number);
        if number != Ordering::Equal {
            return number;
        }
        if left_next.is_empty() && right_next.is_empty() {
            return Ordering::Equal;
        }
        (left, right) = (left_next, right_next);
    }
}

fn split_run(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    let end = text.find(|c| !belongs(c)).unwrap_or(text.len());
    text.split_at(end)
}

fn compare_number(left: &str, right: &str) -> Ordering {
    let (left, right) = (left.trim_start_matches('0'), right.trim_start_matches('0'));
    left.len().cmp(&right.len()).then_with(|| left.cmp(right))
}

/// A tilde sorts before the end, the end before letters, letters before the rest.
fn compare_text(left: &str, right: &str) -> Ordering {
    let weight = |c: Option<char>| match c {
        Some('~') => -1,
        None => 0,
        Some(c) if c.is_ascii_alphabetic() => c as i32,
        Some(c) => c as i32 + 256,
    };
    let (mut left, mut right) = (left.chars(), right.chars());
    loop {
        let (l, r) = (left.next(), right.next());
        let order = weight(l).cmp(&weight(r));
        if order != Ordering::Equal || (l.is_none() && r.is_none()) {
            return order;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_order_holds() {
        for (low, high) in [
            ("6.12.94-1", "6.12.107-1"),
            ("1.0~rc1-1", "1.0-1"),
            ("257.13-1~deb13u1", "257.13-1"),
            ("262-1", "262.1-1"),
            ("9.0-1", "1:1.0-1"),
            ("1.47.2-3", "1.47.2-3+b12"),
            ("1.0a", "1.0+b"),
        ] {
            assert_eq!(compare(low, high), Ordering::Less, "{low} < {high}");
            assert_eq!(compare(high, low), Ordering::Greater, "{high} > {low}");
        }
        assert_eq!(compare("1.07-1", "1.7-1"), Ordering::Equal);
    }
}
