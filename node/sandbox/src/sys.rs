//! The only unsafe code of this crate: adopting inherited descriptors, signalfd(2), seccomp(2).

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use byre_plan::seccomp::Instruction;
use rustix::io::Errno;

/// Takes an inherited descriptor by its number and makes it close-on-exec; `None` if it is not open.
pub(crate) fn inherited(number: i32) -> Option<OwnedFd> {
    // SAFETY: F_SETFD touches the descriptor table only; a number that is not open gives EBADF.
    let open = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
    // SAFETY: the number is open. It is one of those that LISTEN_FDS says were handed to this process, and the caller takes each
    // once, at the start of the process, so nothing else owns it.
    open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// SIGTERM as a descriptor that becomes readable, for a service that has something to finish.
#[derive(Debug)]
pub struct Termination(OwnedFd);

impl From<Termination> for OwnedFd {
    fn from(termination: Termination) -> Self {
        termination.0
    }
}

impl AsFd for Termination {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Blocks SIGTERM in this thread (call before others are made) and returns its descriptor.
///
/// # Errors
/// The kernel's, which only want of descriptors or memory can cause.
pub fn termination() -> Result<Termination, Errno> {
    // SAFETY: a zeroed sigset_t is valid memory for sigemptyset to fill; both calls only write to `set`.
    let set = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        set
    };
    // SAFETY: `set` was initialised above; a null old set is allowed.
    let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if blocked != 0 {
        return Err(Errno::from_raw_os_error(blocked));
    }
    // SAFETY: `set` was initialised above; -1 asks for a new descriptor.
    let number = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if number < 0 {
        return Err(last_error());
    }
    // SAFETY: signalfd just made this descriptor, and nothing else knows it.
    Ok(Termination(unsafe { OwnedFd::from_raw_fd(number) }))
}

/// Installs a filter on every thread of this process. It cannot be taken away again.
pub(crate) fn install_filter(instructions: &[Instruction]) -> Result<(), Errno> {
    let mut program: Vec<libc::sock_filter> = instructions
        .iter()
        .map(|one| libc::sock_filter { code: one.code, jt: one.jump_true, jf: one.jump_false, k: one.operand })
        .collect();
    let length = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let description = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: PR_SET_NO_NEW_PRIVS takes plain numbers. Without it, or CAP_SYS_ADMIN, the kernel takes no filter.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(last_error());
    }
    // SAFETY: `description` points to `length` instructions in `program`; both live until the call returns, and the kernel copies them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const description,
        )
    };
    match result {
        0 => Ok(()),
        // A positive answer is the thread that has another filter, and so could not take this one.
        1.. => Err(Errno::BUSY),
        _ => Err(last_error()),
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
