//! Lines for the service's log. A full pipe (the log service is away) must not hold up the API: what does not fit is dropped and counted.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec};

/// Bytes of one line: PIPE_BUF, so that it is written whole or not at all.
const LINE_BYTES: usize = 4096;

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Writes one line to stdout.
pub(crate) fn say(line: &str) {
    let dropped = DROPPED.load(Ordering::Relaxed);
    let mut text =
        if dropped == 0 { line.to_owned() } else { format!("({dropped} lines lost before this one) {line}") };
    // What a client chose may stand in it, and must not look like a line of its own.
    text = text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect();
    let mut end = text.len().min(LINE_BYTES - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text.push('\n');
    let stdout = std::io::stdout();
    let mut ready = [PollFd::new(&stdout, PollFlags::OUT)];
    let writable = rustix::event::poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap_or(0) > 0;
    if writable && rustix::io::write(stdout.as_fd(), text.as_bytes()).is_ok() {
        DROPPED.fetch_sub(dropped, Ordering::Relaxed);
    } else {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}
