//! Lines for people: through the kernel log, so that they stand in order among the kernel's own, reach the serial console, and are
//! kept for pstore. Writing there never waits for a terminal.

use std::sync::OnceLock;

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};

/// Longest line: the kernel cuts records at about 1 KiB.
const LINE_BYTES: usize = 900;

static KMSG: OnceLock<Option<OwnedFd>> = OnceLock::new();

/// Writes one line to the kernel log with priority notice; control characters become spaces.
pub(crate) fn say(line: &str) {
    let kmsg = KMSG.get_or_init(|| rustix::fs::open("/dev/kmsg", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).ok());
    let mut text = String::with_capacity(LINE_BYTES);
    text.push_str("<5>byre: ");
    for character in line.chars() {
        if text.len().saturating_add(character.len_utf8()) >= LINE_BYTES {
            break;
        }
        text.push(if character.is_control() { ' ' } else { character });
    }
    text.push('\n');
    if let Some(kmsg) = kmsg {
        // There is nobody to tell that the kernel log cannot be written.
        let _ = rustix::io::write(kmsg, text.as_bytes());
    }
}
