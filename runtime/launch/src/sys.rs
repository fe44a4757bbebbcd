//! The system calls that neither rustix nor nix has, each behind a safe function with owned or borrowed descriptors.
//!
//! All `unsafe` of this crate is here. Nothing here decides anything.

use std::ffi::{CStr, CString, c_char};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use byre_plan::seccomp::Instruction;
use rustix::io::Errno;

/// Turns libc's -1 and errno into a result.
fn check(value: libc::c_long) -> Result<libc::c_long, Errno> {
    if value == -1 {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    } else {
        Ok(value)
    }
}

fn size_of_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

// ---- clone ----------------------------------------------------------------------------------------------------------------------

/// `struct clone_args` of linux/sched.h, version 2 (with `cgroup`).
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Handlers go back to their defaults in the child, so no code of the parent's runs there by a signal.
pub(crate) const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// The child begins in the cgroup given by descriptor.
pub(crate) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLONE_PIDFD: u64 = 0x1000;
/// The child becomes a sibling: its parent is the caller's parent.
pub(crate) const CLONE_PARENT: u64 = 0x8000;

/// Which side of a clone this is.
pub(crate) enum Cloned {
    /// The new process.
    Child,
    /// The caller, with what it knows of the new process.
    Parent {
        /// Its number in the caller's PID namespace.
        pid: u32,
        /// Its descriptor.
        pidfd: OwnedFd,
    },
}

/// `clone3` with CLONE_PIDFD. The child has a copy of this process's memory; this process must have one thread only, or the child may
/// find a lock of the allocator held for ever.
///
/// # Errors
/// The system call's.
pub(crate) fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned, Errno> {
    let mut pidfd: RawFd = -1;
    let mut arguments = CloneArgs {
        flags: flags | CLONE_PIDFD,
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        // A sibling inherits the caller's own exit signal; naming one is EINVAL.
        exit_signal: if flags & CLONE_PARENT == 0 { u64::from(libc::SIGCHLD.unsigned_abs()) } else { 0 },
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: the structure is that of the kernel and lives through the call; without CLONE_VM the child has its own copy of the stack
    // and memory, so both sides may go on from here.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel has stored a new descriptor, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent { pid: u32::try_from(pid).unwrap_or(0), pidfd })
}

/// Ends this process at once, without any of the parent's exit handlers.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: _exit takes any number and does not return.
    unsafe { libc::_exit(code) }
}

// ---- signals --------------------------------------------------------------------------------------------------------------------

/// Size of the kernel's signal set in bytes.
const KERNEL_SIGSET_BYTES: usize = 8;

/// Replaces the signal mask (bit N-1 is signal N) and returns the old one. Unlike libc's it covers the two real-time signals that libc
/// keeps for itself.
pub(crate) fn set_signal_mask(mask: u64) -> u64 {
    let mut old = 0_u64;
    // SAFETY: both masks are 8 bytes, as said; the call cannot fail with these arguments.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, &raw mut old, KERNEL_SIGSET_BYTES);
    }
    old
}

/// Gives every signal its default action. CLONE_CLEAR_SIGHAND does so for handled signals, not for ignored ones, and ignoring (Rust
/// ignores SIGPIPE) survives execve.
pub(crate) fn default_signal_actions() {
    // Handler (SIG_DFL), flags, restorer, mask of the kernel's structure: all zero.
    let action = [0_u64; 4];
    for signal in 1..=64_i32 {
        // SAFETY: the structure is the kernel's 32 bytes; for SIGKILL and SIGSTOP the call fails, as it should.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                action.as_ptr(),
                std::ptr::null_mut::<u64>(),
                KERNEL_SIGSET_BYTES,
            );
        }
    }
}

// ---- descriptors ----------------------------------------------------------------------------------------------------------------

/// Closes every descriptor from `first` to `last`, both included.
///
/// # Errors
/// The system call's.
pub(crate) fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    if first > last {
        return Ok(());
    }
    // SAFETY: the callers hold no owned descriptor in the range: the launch child calls this before it owns any but those it keeps.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Makes descriptor `target` a copy of `source` that stays open over execve.
///
/// # Errors
/// The system call's.
pub(crate) fn place(source: BorrowedFd<'_>, target: u32) -> Result<(), Errno> {
    let target = RawFd::try_from(target).map_err(|_| Errno::BADF)?;
    // SAFETY: dup2 takes any numbers; what lay at `target` is the parent's and is meant to go.
    check(unsafe { libc::syscall(libc::SYS_dup2, source.as_raw_fd(), target) }).map(drop)
}

/// The descriptor of that number, for system calls in the launch child, which placed it there itself.
pub(crate) fn placed(number: u32) -> BorrowedFd<'static> {
    let number = RawFd::try_from(number).unwrap_or(0);
    // SAFETY: the launch child keeps what it placed open until it executes or ends.
    unsafe { BorrowedFd::borrow_raw(number) }
}

// ---- mounts ---------------------------------------------------------------------------------------------------------------------

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
#[derive(Default)]
pub(crate) struct MountAttributes {
    /// Attributes to set.
    pub(crate) set: u64,
    /// Attributes to clear.
    pub(crate) clear: u64,
    /// Propagation, MS_PRIVATE and its like, or 0.
    pub(crate) propagation: u64,
    /// User namespace of MOUNT_ATTR_IDMAP.
    pub(crate) userns: u64,
}

/// `mount_setattr` on the mount at `path` below `directory` (the descriptor's own mount if empty).
///
/// # Errors
/// The system call's.
pub(crate) fn mount_setattr(
    directory: BorrowedFd<'_>,
    path: &CStr,
    recursive: bool,
    attributes: &MountAttributes,
) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path ends with NUL and the structure is the kernel's; both live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory.as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<MountAttributes>(),
        )
    };
    check(result).map(drop)
}

// ---- limits, seccomp ------------------------------------------------------------------------------------------------------------

/// Sets a resource limit of this process by its Linux number.
///
/// # Errors
/// The system call's.
pub(crate) fn set_rlimit(resource: u8, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the structure is the kernel's and lives through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            libc::c_int::from(resource),
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    };
    check(result).map(drop)
}

/// A resource limit of this process, soft and hard.
///
/// # Errors
/// The system call's.
pub(crate) fn rlimit(resource: u8) -> Result<(u64, u64), Errno> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is the kernel's and lives through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            libc::c_int::from(resource),
            std::ptr::null::<libc::rlimit64>(),
            &raw mut limit,
        )
    };
    check(result).map(|_| (limit.rlim_cur, limit.rlim_max))
}

/// SECCOMP_FILTER_FLAG_NEW_LISTENER.
pub(crate) const NEW_LISTENER: u32 = 8;

/// Installs a seccomp filter for this thread, which is the process, and returns its listener if it is to have one.
///
/// # Errors
/// The system call's; EINVAL for a filter that the kernel's verifier refuses.
pub(crate) fn install_filter(instructions: &[Instruction], flags: u32) -> Result<Option<OwnedFd>, Errno> {
    const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
    let mut filter: Vec<libc::sock_filter> = instructions
        .iter()
        .map(|one| libc::sock_filter { code: one.code, jt: one.jump_true, jf: one.jump_false, k: one.operand })
        .collect();
    let program =
        libc::sock_fprog { len: u16::try_from(filter.len()).map_err(|_| Errno::INVAL)?, filter: filter.as_mut_ptr() };
    // SAFETY: the program points to `len` instructions that live through the call; the kernel copies them.
    let result =
        check(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program) })?;
    if flags & NEW_LISTENER == 0 {
        return Ok(None);
    }
    let number = RawFd::try_from(result).map_err(|_| Errno::BADF)?;
    // SAFETY: with this flag the kernel returns a new descriptor, which nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(number) }))
}

/// Lets this process run on these processors only.
///
/// # Errors
/// The system call's.
pub(crate) fn set_processors(set: &byre_plan::NumberSet) -> Result<(), Errno> {
    let words = set.words();
    // SAFETY: the mask has as many bytes as said and lives through the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(words), words.as_ptr()) }).map(drop)
}

/// Sets where this process's memory comes from.
///
/// # Errors
/// The system call's; ENOSYS where the kernel knows no nodes.
pub(crate) fn set_memory_policy(policy: &byre_plan::MemoryPolicy) -> Result<(), Errno> {
    let words = policy.nodes.words();
    let mask = if policy.nodes.is_empty() { std::ptr::null() } else { words.as_ptr() };
    // The kernel takes one off the number of bits.
    let bits = if mask.is_null() { 0 } else { byre_plan::NumberSet::NUMBERS.saturating_add(1) };
    // SAFETY: the mask has as many bits as said, or is null with none, and lives through the call.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, policy.mode, mask, bits) }).map(drop)
}

/// A time namespace; nix does not name it.
pub(crate) const NEW_TIME: nix::sched::CloneFlags = nix::sched::CloneFlags::from_bits_retain(0x80);

/// `struct sched_attr` of sched_setattr(2), its first version.
#[repr(C)]
struct SchedulerAttributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Sets this process's scheduling policy.
///
/// # Errors
/// The system call's.
pub(crate) fn set_scheduler(scheduler: &byre_plan::Scheduler) -> Result<(), Errno> {
    let byre_plan::Scheduler { policy, flags, nice, priority, runtime, deadline, period } = *scheduler;
    let size = size_of_u32::<SchedulerAttributes>();
    let attributes = SchedulerAttributes { size, policy, flags, nice, priority, runtime, deadline, period };
    // SAFETY: the structure is the kernel's, says its size and lives through the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) }).map(drop)
}

/// Sets this process's disk priority: class in the upper 3 of 16 bits.
///
/// # Errors
/// The system call's.
pub(crate) fn set_disk_priority(priority: u16) -> Result<(), Errno> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, libc::c_int::from(priority)) }).map(drop)
}

/// Sets this process's personality(2).
///
/// # Errors
/// The system call's.
pub(crate) fn set_personality(personality: u32) -> Result<(), Errno> {
    // SAFETY: a number only.
    check(unsafe { libc::syscall(libc::SYS_personality, libc::c_ulong::from(personality)) }).map(drop)
}

// ---- execve ---------------------------------------------------------------------------------------------------------------------

/// `argv` or `envp`: texts and the list of pointers to them, ended by NULL.
pub(crate) struct TextList {
    // Owns what `pointers` points to.
    _texts: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl TextList {
    /// # Errors
    /// EINVAL if a text contains NUL.
    pub(crate) fn new<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Self, Errno> {
        let texts = texts.map(CString::new).collect::<Result<Vec<_>, _>>().map_err(|_| Errno::INVAL)?;
        // The text's bytes are on the heap: they stay where they are when the vector moves.
        let pointers = texts.iter().map(|text| text.as_ptr()).chain(std::iter::once(std::ptr::null())).collect();
        Ok(Self { _texts: texts, pointers })
    }
}

/// Executes `path`, or the file behind `directory` if `path` is empty. Returns only on failure.
pub(crate) fn execveat(directory: BorrowedFd<'_>, path: &CStr, arguments: &TextList, environment: &TextList) -> Errno {
    let flags = if path.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    // SAFETY: both lists end with NULL and point to texts that end with NUL; all live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            directory.as_raw_fd(),
            path.as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
            flags,
        )
    };
    check(result).err().unwrap_or(Errno::NOEXEC)
}

// ---- network --------------------------------------------------------------------------------------------------------------------

/// Brings an interface up in this process's network namespace.
///
/// # Errors
/// The ioctl's.
pub(crate) fn interface_up(socket: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    // SAFETY: ifreq is plain data; all zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, byte) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ.saturating_sub(1)).zip(name.to_bytes()) {
        *target = c_char::from_ne_bytes([*byte]);
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).unwrap_or(1);
    // SAFETY: SIOCSIFFLAGS reads an ifreq.
    check(libc::c_long::from(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }))
        .map(drop)
}

// ---- fs-verity ------------------------------------------------------------------------------------------------------------------

/// `struct fsverity_digest` of linux/fsverity.h, with room for SHA-256.
#[repr(C)]
struct FsVerityDigest {
    algorithm: u16,
    size: u16,
    digest: [u8; 32],
}

/// The SHA-256 digest that the kernel holds the reads of a file to.
///
/// # Errors
/// ENODATA if it has no fs-verity, EPROTO if it has another hash, otherwise the ioctl's.
pub(crate) fn measure_verity(file: BorrowedFd<'_>) -> Result<[u8; 32], Errno> {
    /// `_IOWR('f', 134, struct fsverity_digest)`.
    const FS_IOC_MEASURE_VERITY: u32 = 0xc004_6686;
    const SHA256: u16 = 1;
    let mut measured = FsVerityDigest { algorithm: 0, size: 32, digest: [0; 32] };
    // SAFETY: the kernel writes the head and at most `size` bytes behind it, which are there.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_MEASURE_VERITY.into(), &raw mut measured) };
    check(libc::c_long::from(result))?;
    if measured.algorithm == SHA256 && measured.size == 32 { Ok(measured.digest) } else { Err(Errno::PROTO) }
}

// ---- eBPF -----------------------------------------------------------------------------------------------------------------------

/// One eBPF instruction, `struct bpf_insn` of linux/bpf.h, with both registers in one byte (source in the high half).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BpfInstruction {
    pub(crate) code: u8,
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

/// The head of `union bpf_attr` for BPF_PROG_LOAD up to `expected_attach_type`.
#[repr(C, align(8))]
#[derive(Default)]
struct BpfLoad {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C, align(8))]
#[derive(Default)]
struct BpfAttach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

const BPF_CGROUP_DEVICE: u32 = 6;

/// Loads a program of type BPF_PROG_TYPE_CGROUP_DEVICE.
///
/// # Errors
/// The system call's.
pub(crate) fn load_device_program(program: &[BpfInstruction]) -> Result<OwnedFd, Errno> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    let license = c"Apache-2.0";
    let arguments = BpfLoad {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(|_| Errno::TOOBIG)?,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        name: *b"byre_devices\0\0\0\0",
        attach_type: BPF_CGROUP_DEVICE,
        ..BpfLoad::default()
    };
    // SAFETY: the structure is the kernel's; what it points to lives through the call.
    let number =
        check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const arguments, size_of_u32::<BpfLoad>()) })?;
    let number = RawFd::try_from(number).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just made this descriptor (close-on-exec), which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Attaches a device program to a cgroup, beside those above it: each must allow.
///
/// # Errors
/// The system call's.
pub(crate) fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let arguments = BpfAttach {
        target: cgroup.as_raw_fd().unsigned_abs(),
        program: program.as_raw_fd().unsigned_abs(),
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the structure is the kernel's and lives through the call.
    check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const arguments, size_of_u32::<BpfAttach>()) })
        .map(drop)
}

// ---- who is PID 1 ---------------------------------------------------------------------------------------------------------------

/// The word that only the marked process has: the kernel wipes its page in every child.
static MARK: AtomicPtr<AtomicU32> = AtomicPtr::new(std::ptr::null_mut());
const MARKED: u32 = 0x6279_7265;

/// Marks this process as PID 1, so that [`is_pid1`] holds in it and in none of its children.
///
/// # Errors
/// Those of mmap and madvise.
pub fn mark_pid1() -> Result<(), Errno> {
    let bytes = 4096;
    // SAFETY: a new private mapping of one page, at an address of the kernel's choice.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return Err(Errno::NOMEM);
    }
    // SAFETY: the page was just mapped with this length.
    check(libc::c_long::from(unsafe { libc::madvise(page, bytes, libc::MADV_WIPEONFORK) }))?;
    let word = page.cast::<AtomicU32>();
    // SAFETY: the page is mapped, aligned, writable and never unmapped.
    unsafe { &*word }.store(MARKED, Ordering::SeqCst);
    MARK.store(word, Ordering::SeqCst);
    Ok(())
}

/// Whether this process called [`mark_pid1`] itself. Async-signal-safe, so that a crash handler can ask before it rescues PID 1's state.
#[must_use]
pub fn is_pid1() -> bool {
    let word = MARK.load(Ordering::SeqCst);
    // SAFETY: the pointer is null or the page of `mark_pid1`, which is never unmapped.
    unsafe { word.as_ref() }.is_some_and(|word| word.load(Ordering::SeqCst) == MARKED)
}
