//! What happens when PID 1 crashes: a signal of the processor's (SIGSEGV, SIGBUS, SIGILL, SIGFPE) or SIGABRT, which is also how a
//! panic, an internal error and a failed allocation end. Without a handler the kernel would panic.
//!
//! ```text
//!   crash ─▶ not PID 1? die as any process ─▶ a few words to kmsg ─▶ third in a row? the kernel's panic, which the early stage counts
//!         └▶ every listed descriptor loses close-on-exec ─▶ execveat of the program opened at the start, as `init rescue INDEX`
//! ```
//!
//! The handler runs on a stack of its own, in a process of which nothing is known but that it is broken: it allocates nothing, takes
//! no lock, calls system calls only, and reads what was prepared when all was well. `unsafe` here is the handler and its installation.

use std::ffi::{CString, c_int, c_void};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicPtr, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::index::{ENTRIES, Index};

/// The signals of a crash.
const SIGNALS: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT, libc::SIGILL, libc::SIGFPE];
/// The handler's stack: its frames are small, the kernel's signal frame with AVX-512 state is below 4 KiB.
const STACK_BYTES: usize = 64 * 1024;
/// Crashes within this time of each other count together.
pub(crate) const TOGETHER_MS: u64 = 60_000;
/// The first is rescued, the second rescued and followed by an ordered reboot; this one is left to the kernel, which panics.
const HOPELESS: u32 = 3;
/// Longest line of the handler.
const LINE_BYTES: usize = 160;

/// What the handler needs, made while all is well and never freed.
struct Prepared {
    program: OwnedFd,
    kmsg: Option<OwnedFd>,
    _words: Vec<CString>,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
}

static PREPARED: AtomicPtr<Prepared> = AtomicPtr::new(std::ptr::null_mut());

/// Installs the handler. After [`Index::begin`] and after the process was marked as PID 1.
pub(crate) fn prepare() -> Result<(), Errno> {
    let (_, index) = Index::own().ok_or(Errno::NOENT)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let program = rustix::fs::open(super::PROGRAM, flags, Mode::empty())?;
    let kmsg = rustix::fs::open("/dev/kmsg", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).ok();
    let words = [super::PROGRAM.to_owned(), "rescue".to_owned(), index.to_string()];
    let mut all: Vec<CString> = words.into_iter().filter_map(|word| CString::new(word).ok()).collect();
    let count = all.len();
    all.extend(crate::sys::environment());
    let pointers = |words: &[CString]| -> Vec<*const libc::c_char> {
        words.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = all.split_at_checked(count).unwrap_or_default();
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    let prepared = Box::new(Prepared { program, kmsg, _words: all, arguments, environment });
    PREPARED.store(Box::into_raw(prepared), Ordering::SeqCst);
    install()
}

fn install() -> Result<(), Errno> {
    let stack: &'static mut [u8] = Box::leak(vec![0_u8; STACK_BYTES].into_boxed_slice());
    let stack = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    // SAFETY: the stack is leaked, so it lives for as long as the process.
    if unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) } != 0 {
        return Err(Errno::INVAL);
    }
    for signal in SIGNALS {
        // SAFETY: an all-zero sigaction is a valid value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_crash;
        #[expect(clippy::as_conversions, reason = "sigaction(2) takes the handler's address as a number")]
        let address = handler as usize;
        action.sa_sigaction = address;
        // Not masked while it runs: a second crash inside is the kernel's affair, and no crash may wait behind another.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: the action is whole, and its handler calls nothing but system calls.
        if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(Errno::INVAL);
        }
    }
    Ok(())
}

extern "C" fn on_crash(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: null, or what `prepare` leaked.
    let prepared = unsafe { PREPARED.load(Ordering::SeqCst).as_ref() };
    let (Some(prepared), Some((index, descriptor)), true) = (prepared, Index::own(), byre_launch::is_pid1()) else {
        // A launch child that had no time to clear its handlers: it dies like any process, and its start has failed.
        // SAFETY: ends the process.
        unsafe { libc::_exit(128_i32.saturating_add(signal)) }
    };
    // SAFETY: the kernel hands a whole siginfo to a handler with SA_SIGINFO; the address is part of it for these signals.
    let address = unsafe { info.as_ref().map_or(0, |info| info.si_addr().addr()) };
    let crashes = count(index);
    say(prepared, signal, address, crashes);
    if crashes < HOPELESS {
        for number in (0..).take(ENTRIES).filter(|number| index.used(*number).is_some()) {
            crate::sys::set_close_on_exec(number, false);
        }
        crate::sys::set_close_on_exec(descriptor, false);
        block_all();
        execute(prepared);
    }
    // SAFETY: ends the process, and with PID 1 the kernel: it panics, reboots, and the next boot's early stage counts it.
    unsafe { libc::_exit(128_i32.saturating_add(signal)) }
}

/// Counts this crash; returns how many came together.
fn count(index: &Index) -> u32 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec that lives through it.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let now_ms = seconds.saturating_mul(1000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000);
    let before = index.header.crashed_boot_ms.swap(now_ms.max(1), Ordering::SeqCst);
    let together = before != 0 && now_ms.saturating_sub(before) < TOGETHER_MS;
    let crashes = if together { index.header.crashes.load(Ordering::SeqCst).saturating_add(1) } else { 1 };
    index.header.crashes.store(crashes, Ordering::SeqCst);
    crashes
}

fn say(prepared: &Prepared, signal: c_int, address: usize, crashes: u32) {
    let Some(kmsg) = &prepared.kmsg else { return };
    let mut line = Line { bytes: [0; LINE_BYTES], length: 0 };
    line.text(b"<2>byre: PID 1 crashed: signal ");
    line.number(u64::from(signal.unsigned_abs()), 10);
    line.text(b", address 0x");
    line.number(u64::try_from(address).unwrap_or(u64::MAX), 16);
    line.text(if crashes >= HOPELESS { b", once too often\n" } else { b"; it begins anew, workloads go on\n" });
    let bytes = line.bytes.get(..line.length).unwrap_or_default();
    // SAFETY: the bytes live through the call.
    unsafe { libc::write(kmsg.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
}

/// A line without allocation.
struct Line {
    bytes: [u8; LINE_BYTES],
    length: usize,
}

impl Line {
    fn text(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = *byte;
                self.length = self.length.saturating_add(1);
            }
        }
    }

    fn number(&mut self, number: u64, base: u64) {
        let mut digits = [0_u8; 20];
        let (mut rest, mut used) = (number, 0_usize);
        for place in digits.iter_mut().rev() {
            let digit = usize::try_from(rest.checked_rem(base).unwrap_or(0)).unwrap_or(0);
            *place = b"0123456789abcdef".get(digit).copied().unwrap_or(b'?');
            used = used.saturating_add(1);
            rest = rest.checked_div(base).unwrap_or(0);
            if rest == 0 {
                break;
            }
        }
        self.text(digits.get(digits.len().saturating_sub(used)..).unwrap_or_default());
    }
}

/// The program that follows lets signals come when it has handlers for them; until then they wait.
fn block_all() {
    let all = u64::MAX;
    // SAFETY: the kernel's signal set is 64 bits on this architecture, and it lives through the call.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, std::ptr::null_mut::<u64>(), 8_usize)
    };
}

fn execute(prepared: &Prepared) {
    // SAFETY: both lists end with a null, and they and their strings were leaked.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            prepared.program.as_raw_fd(),
            c"".as_ptr(),
            prepared.arguments.as_ptr(),
            prepared.environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_numbers_and_never_overflows() {
        let mut line = Line { bytes: [0; LINE_BYTES], length: 0 };
        line.number(0, 10);
        line.text(b" ");
        line.number(u64::MAX, 10);
        line.text(b" ");
        line.number(0xdead_beef, 16);
        assert_eq!(&line.bytes[..line.length], b"0 18446744073709551615 deadbeef");
        (0..100).for_each(|_| line.text(b"1234567890"));
        assert_eq!(line.length, LINE_BYTES);
    }
}
