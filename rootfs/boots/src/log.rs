//! What is taken from a kernel log: its last lines, and the one that says why a boot failed.
//!
//! PID 1, its tasks and the early stage say causes in one form, so that they are found in a live log and in what a crash left alike.

/// Begins the line in which a part of the system says why this boot is not good.
pub const CAUSE: &str = "byre: cause: ";

/// As [`CAUSE`] behind the prefix of every line of PID 1 and its tasks, for a trial that failed.
pub const FAILED_AFTER_PREFIX: &str = "cause: trial failed: ";
/// The whole of that.
pub const FAILED: &str = "byre: cause: trial failed: ";

/// Keeps the last `most` bytes of what was appended, whole lines where there are any.
pub fn append(tail: &mut Vec<u8>, line: &[u8], most: usize) {
    tail.extend_from_slice(line);
    if !line.ends_with(b"\n") {
        tail.push(b'\n');
    }
    if let Some(over) = tail.len().checked_sub(most).filter(|over| *over > 0) {
        let rest = tail.get(over..).unwrap_or_default();
        let cut =
            rest.iter().position(|byte| *byte == b'\n').map_or(over, |end| over.saturating_add(end).saturating_add(1));
        *tail = tail.get(cut..).unwrap_or_default().to_vec();
    }
}

/// A record of /dev/kmsg (`priority,number,microseconds,flags;text`) as a line: seconds and text.
#[must_use]
pub fn line_of_record(record: &[u8]) -> Option<String> {
    let record = std::str::from_utf8(record).ok()?;
    let (header, rest) = record.split_once(';')?;
    let microseconds: u64 = header.split(',').nth(2)?.parse().ok()?;
    let text = rest.lines().next().unwrap_or_default();
    Some(format!("[{:>5}.{:03}] {text}", microseconds / 1_000_000, microseconds / 1000 % 1000))
}

/// Why a boot failed, as its log says: the last cause that a part of the system named, else what the kernel panicked of, else what the
/// early stage gave up for.
#[must_use]
pub fn cause(log: &str) -> Option<String> {
    let behind =
        |mark: &str| log.lines().rev().find_map(|line| line.split_once(mark).map(|(_, text)| text.trim().to_owned()));
    let panic = || {
        let why = behind("Kernel panic - not syncing: ")?;
        // What dm-verity found stands in the line before; it is the cause, and the panic only its effect.
        let verity =
            log.lines().rev().find(|line| line.contains("device-mapper: verity:") && line.contains("corrupted"));
        Some(match verity.and_then(|line| line.split_once("device-mapper: ")) {
            Some((_, found)) => format!("kernel panic: {why} ({})", found.trim()),
            None => format!("kernel panic: {why}"),
        })
    };
    let early = || behind("byre: early: failed ").map(|why| format!("early stage: {why}"));
    behind(CAUSE).or_else(panic).or_else(early)
}

/// Puts the parts of a crash record that pstore kept in order: each begins with `Panic#1 Part3`, and the first part is the newest text.
#[must_use]
pub fn join_crash(mut parts: Vec<String>) -> String {
    let number = |text: &str| {
        let header = text.lines().next().unwrap_or_default();
        header.rsplit_once("Part").and_then(|(_, number)| number.trim().parse::<u32>().ok()).unwrap_or(0)
    };
    parts.retain(|part| part.starts_with("Panic#"));
    parts.sort_by_key(|part| std::cmp::Reverse(number(part)));
    parts.iter().map(|part| part.split_once('\n').map_or("", |(_, text)| text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_keeps_whole_last_lines() {
        let mut tail = Vec::new();
        for number in 0..100 {
            append(&mut tail, format!("line {number}").as_bytes(), 40);
        }
        assert_eq!(tail, b"line 95\nline 96\nline 97\nline 98\nline 99\n");
        append(&mut tail, &[b'x'; 100], 40);
        assert!(tail.len() <= 40);
    }

    #[test]
    fn records_of_the_kernel_log_become_lines() {
        let line = line_of_record(b"5,613,12345678,-;byre: early: slot a\n SUBSYSTEM=x\n");
        assert_eq!(line.as_deref(), Some("[   12.345] byre: early: slot a"));
        assert_eq!(line_of_record(b"nonsense"), None);
    }

    #[test]
    fn the_last_named_cause_counts_before_the_panic() {
        assert_eq!(cause("[1] all is well\n"), None);
        let panic = "[4] device-mapper: verity: 254:2: data block 7 is corrupted\n[5] Kernel panic - not syncing: dm-verity device corrupted\n";
        let found = cause(panic).unwrap();
        assert_eq!(found, "kernel panic: dm-verity device corrupted (verity: 254:2: data block 7 is corrupted)");
        let named = format!("[2] byre: cause: workload web is not ready\n{panic}");
        assert_eq!(cause(&named).as_deref(), Some("workload web is not ready"));
        assert_eq!(cause("x byre: early: failed no slot [3 ms]").as_deref(), Some("early stage: no slot [3 ms]"));
    }

    #[test]
    fn parts_of_a_crash_are_put_in_order() {
        let parts = ["Panic#1 Part1\nlast\n", "Oops#1 Part1\nno\n", "Panic#1 Part2\nfirst\n"].map(str::to_owned);
        assert_eq!(join_crash(parts.to_vec()), "first\nlast\n");
    }
}
