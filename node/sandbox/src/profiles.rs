//! The profiles of the node's services: one allow list each, put together from groups with a reason.
//!
//! Calls of the C library and of Rust's standard library that nobody writes out by hand were found by running each service's tests
//! sealed; each group says what they are for.

use libc::{
    AF_INET, AF_INET6, AF_UNIX, CLONE_NEWNET, EACCES, ENOSYS, SYS_accept4, SYS_brk, SYS_clock_gettime,
    SYS_clock_nanosleep, SYS_clone, SYS_clone3, SYS_close, SYS_connect, SYS_dup, SYS_epoll_create1, SYS_epoll_ctl,
    SYS_epoll_pwait, SYS_epoll_wait, SYS_eventfd2, SYS_exit, SYS_exit_group, SYS_fallocate, SYS_fchmod, SYS_fcntl,
    SYS_fdatasync, SYS_fstat, SYS_fstatfs, SYS_fsync, SYS_ftruncate, SYS_futex, SYS_getdents64, SYS_getpeername,
    SYS_getpid, SYS_getrandom, SYS_getsockname, SYS_getsockopt, SYS_gettid, SYS_ioctl, SYS_linkat, SYS_lseek,
    SYS_madvise, SYS_mkdirat, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_munmap, SYS_nanosleep, SYS_newfstatat, SYS_open,
    SYS_openat, SYS_openat2, SYS_pipe2, SYS_poll, SYS_ppoll, SYS_pread64, SYS_preadv, SYS_prlimit64, SYS_pwrite64,
    SYS_read, SYS_readv, SYS_recvfrom, SYS_recvmsg, SYS_rename, SYS_renameat, SYS_renameat2, SYS_restart_syscall,
    SYS_rseq, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sched_getaffinity, SYS_sched_yield,
    SYS_sendmsg, SYS_sendto, SYS_set_robust_list, SYS_setns, SYS_setsockopt, SYS_shutdown, SYS_sigaltstack, SYS_socket,
    SYS_socketpair, SYS_splice, SYS_statx, SYS_tgkill, SYS_unlink, SYS_unlinkat, SYS_write, SYS_writev,
};

use crate::profile::{Condition, Group, Profile, Rule};

const fn allow(call: i64) -> Rule {
    Rule::allow(call)
}

/// Flags of clone(2) that make namespaces.
const NEW_NAMESPACES: u32 = 0x7e02_0000 | 0x80;

/// Every process.
pub const RUNTIME: Group = Group {
    reason: "memory, locks, clocks, random numbers, signals, and an end by return or abort",
    rules: &[
        allow(SYS_brk),
        allow(SYS_mmap),
        allow(SYS_munmap),
        allow(SYS_mremap),
        allow(SYS_mprotect),
        allow(SYS_madvise),
        allow(SYS_futex),
        allow(SYS_clock_gettime),
        allow(SYS_clock_nanosleep),
        allow(SYS_nanosleep),
        allow(SYS_getrandom),
        allow(SYS_rt_sigaction),
        allow(SYS_rt_sigprocmask),
        allow(SYS_rt_sigreturn),
        allow(SYS_restart_syscall),
        allow(SYS_sigaltstack),
        allow(SYS_sched_yield),
        Rule::allow_if(libc::SYS_prctl, &[Condition::is(0, PR_GET_AUXV)]),
        allow(SYS_getpid),
        allow(SYS_gettid),
        allow(SYS_tgkill),
        allow(SYS_exit),
        allow(SYS_exit_group),
    ],
};

/// `PR_GET_AUXV` of linux/prctl.h: a process reads its own auxiliary vector, where the address of the kernel's clock functions is.
const PR_GET_AUXV: u32 = 0x4155_5856;

/// Every process.
pub const DESCRIPTORS: Group = Group {
    reason: "reading and writing what is open, its own messages on stderr among that",
    rules: &[
        allow(SYS_read),
        allow(SYS_readv),
        allow(SYS_write),
        allow(SYS_writev),
        allow(SYS_close),
        allow(SYS_dup),
        allow(SYS_fcntl),
        allow(SYS_fstat),
        allow(SYS_lseek),
        allow(SYS_poll),
        allow(SYS_ppoll),
    ],
};

/// Services with a loop over epoll.
pub const EPOLL: Group = Group {
    reason: "waiting for many descriptors at once",
    rules: &[allow(SYS_epoll_create1), allow(SYS_epoll_ctl), allow(SYS_epoll_wait), allow(SYS_epoll_pwait)],
};

/// Talking on sockets that exist.
pub const TALK: Group = Group {
    reason: "messages over the control channel and over accepted connections",
    rules: &[
        allow(SYS_recvmsg),
        allow(SYS_sendmsg),
        allow(SYS_recvfrom),
        allow(SYS_sendto),
        allow(SYS_shutdown),
        allow(SYS_getsockopt),
        allow(SYS_setsockopt),
        allow(SYS_getsockname),
        allow(SYS_getpeername),
    ],
};

/// Servers on a listener that PID 1 made.
pub const ACCEPT: Group =
    Group { reason: "taking connections from a listener that was handed over", rules: &[allow(SYS_accept4)] };

/// Reading files.
pub const READ_FILES: Group = Group {
    reason: "opening and reading files, which Landlock confines to the service's own directories",
    rules: &[
        allow(SYS_open),
        allow(SYS_openat),
        allow(SYS_openat2),
        allow(SYS_newfstatat),
        allow(SYS_statx),
        allow(SYS_getdents64),
        allow(SYS_pread64),
        allow(SYS_preadv),
        allow(libc::SYS_stat),
        allow(libc::SYS_lstat),
        allow(libc::SYS_readlink),
        allow(libc::SYS_readlinkat),
        allow(libc::SYS_statfs),
        allow(SYS_fstatfs),
    ],
};

/// Writing files.
pub const WRITE_FILES: Group = Group {
    reason: "keeping files in the service's own directories durably",
    rules: &[
        allow(SYS_pwrite64),
        allow(SYS_ftruncate),
        allow(SYS_fallocate),
        allow(SYS_fsync),
        allow(SYS_fdatasync),
        allow(libc::SYS_mkdir),
        allow(SYS_mkdirat),
        allow(libc::SYS_rmdir),
        allow(libc::SYS_flock),
        allow(libc::SYS_fchown),
        allow(SYS_unlink),
        allow(SYS_unlinkat),
        allow(SYS_rename),
        allow(SYS_renameat),
        allow(SYS_renameat2),
        allow(SYS_linkat),
        allow(SYS_fchmod),
    ],
};

/// Threads.
pub const THREADS: Group = Group {
    reason: "threads of the standard library and of tokio; clone3 hides its flags from the filter, so the C library is told it is missing",
    rules: &[
        Rule::allow_if(SYS_clone, &[Condition::lacks(0, NEW_NAMESPACES), THREAD]),
        Rule::fail(SYS_clone3, ENOSYS as u16),
        allow(SYS_set_robust_list),
        allow(SYS_rseq),
        allow(SYS_sched_getaffinity),
        Rule::allow_if(libc::SYS_prctl, &[Condition::is(0, libc::PR_SET_NAME as u32)]),
    ],
};

/// `CLONE_THREAD` is set: a thread, never a process.
const THREAD: Condition = Condition { argument: 0, mask: libc::CLONE_THREAD as u64, value: libc::CLONE_THREAD as u64 };

/// What tokio's runtime needs beside threads and epoll.
pub const TOKIO: Group = Group {
    reason: "the wake-up descriptor and signal pipe of tokio's runtime",
    rules: &[
        allow(SYS_eventfd2),
        allow(SYS_pipe2),
        Rule::allow_if(SYS_socketpair, &[Condition::is(0, AF_UNIX as u32)]),
    ],
};

/// Clients of other services.
pub const UNIX_CLIENT: Group = Group {
    reason: "connections to the unix sockets of other services",
    rules: &[Rule::allow_if(SYS_socket, &[Condition::is(0, AF_UNIX as u32)]), allow(SYS_connect)],
};

/// Clients of the network.
pub const INTERNET_CLIENT: Group = Group {
    reason: "TCP and UDP over IPv4 and IPv6; no raw or packet sockets",
    rules: &[
        Rule::allow_if(SYS_socket, &[Condition::is(0, AF_INET as u32)]),
        Rule::allow_if(SYS_socket, &[Condition::is(0, AF_INET6 as u32)]),
        allow(SYS_connect),
    ],
};

/// The log service.
const SPLICE: Group = Group {
    reason: "bytes go from a workload's pipe to a segment file in one call, so that an end of the service loses none",
    rules: &[allow(SYS_splice)],
};

/// The standard library reads a limit when it takes whole files; nothing may be set.
const READ_LIMITS: Group = Group {
    reason: "the C library asks for limits; asking changes nothing",
    rules: &[Rule::allow_if(SYS_prlimit64, &[Condition { argument: 2, mask: u64::MAX, value: 0 }])],
};

/// The probe.
const NETWORK_NAMESPACE: Group = Group {
    reason: "a socket of the workload's network namespace is made by joining that, and no other kind of, namespace",
    rules: &[
        Rule::allow_if(SYS_setns, &[Condition::is(1, CLONE_NEWNET as u32)]),
        Rule::allow_if(SYS_socket, &[Condition::is(0, AF_INET as u32)]),
        allow(SYS_connect),
    ],
};

/// Terminal detection of libraries is told no.
const NO_IOCTL: Group = Group {
    reason: "isatty(3) of libraries is answered with an error",
    rules: &[Rule::fail(SYS_ioctl, EACCES as u16)],
};

/// `byred log`.
pub const LOG: Profile = Profile {
    name: "log",
    groups: &[&RUNTIME, &DESCRIPTORS, &EPOLL, &TALK, &ACCEPT, &READ_FILES, &WRITE_FILES, &SPLICE, &NO_IOCTL],
};

/// `byred state`.
pub const STATE: Profile =
    Profile { name: "state", groups: &[&RUNTIME, &DESCRIPTORS, &TALK, &READ_FILES, &WRITE_FILES, &NO_IOCTL] };

/// `byred stats`.
pub const STATS: Profile =
    Profile { name: "stats", groups: &[&RUNTIME, &DESCRIPTORS, &TALK, &ACCEPT, &READ_FILES, &NO_IOCTL] };

/// `byred probe`.
pub const PROBE: Profile =
    Profile { name: "probe", groups: &[&RUNTIME, &DESCRIPTORS, &TALK, &NETWORK_NAMESPACE, &NO_IOCTL] };

/// `byred image`.
pub const IMAGE: Profile = Profile {
    name: "image",
    groups: &[
        &RUNTIME,
        &DESCRIPTORS,
        &TALK,
        &ACCEPT,
        &READ_FILES,
        &WRITE_FILES,
        &THREADS,
        &READ_LIMITS,
        &UNIX_CLIENT,
        &IMAGE_SEAL,
        &NO_IOCTL,
    ],
};

/// `byred pull`: talks to registries and writes nothing but answers.
pub const PULL: Profile = Profile {
    name: "pull",
    groups: &[
        &RUNTIME,
        &DESCRIPTORS,
        &EPOLL,
        &TALK,
        &ACCEPT,
        &READ_FILES,
        &THREADS,
        &TOKIO,
        &INTERNET_CLIENT,
        &RESOLVER,
        &READ_LIMITS,
        &NO_IOCTL,
    ],
};

/// Clients that look up names.
pub const RESOLVER: Group = Group {
    reason: "the C library's resolver: two questions in one call, how much has come, and sockets of other families, which it does without",
    rules: &[
        allow(libc::SYS_sendmmsg),
        allow(libc::SYS_uname),
        Rule::allow_if(SYS_ioctl, &[Condition::is(1, libc::FIONREAD as u32)]),
        Rule::allow_if(SYS_ioctl, &[Condition::is(1, libc::FIONBIO as u32)]),
        Rule::fail(SYS_socket, libc::EAFNOSUPPORT as u16),
    ],
};

/// fs-verity of layers.
const IMAGE_SEAL: Group = Group {
    reason: "fs-verity is switched on for each layer once it is written (FS_IOC_ENABLE_VERITY, FS_IOC_MEASURE_VERITY)",
    rules: &[
        Rule::allow_if(SYS_ioctl, &[Condition::is(1, 0x4080_6685)]),
        Rule::allow_if(SYS_ioctl, &[Condition::is(1, 0xc004_6686)]),
    ],
};

/// `byred api`: serves and proxies, reads its certificates and the facts.
pub const API: Profile = Profile {
    name: "api",
    groups: &[
        &RUNTIME,
        &DESCRIPTORS,
        &EPOLL,
        &TALK,
        &ACCEPT,
        &READ_FILES,
        &WRITE_FILES,
        &THREADS,
        &TOKIO,
        &UNIX_CLIENT,
        &READ_LIMITS,
        &TERMINAL_SIZE,
        &NO_IOCTL,
    ],
};

/// Attached terminals.
const TERMINAL_SIZE: Group = Group {
    reason: "the size of a terminal is set through its master, and only that (TIOCSWINSZ); FIONBIO is tokio's",
    rules: &[
        Rule::allow_if(SYS_ioctl, &[Condition::is(1, libc::TIOCSWINSZ as u32)]),
        Rule::allow_if(SYS_ioctl, &[Condition::is(1, libc::FIONBIO as u32)]),
    ],
};

/// `byred config`: parses outside configuration from files and devices handed over; no network at all.
pub const CONFIG: Profile = Profile {
    name: "config",
    groups: &[&RUNTIME, &DESCRIPTORS, &EPOLL, &TALK, &ACCEPT, &READ_FILES, &WRITE_FILES, &READ_LIMITS, &NO_IOCTL],
};

/// `byred net`: netlink and DHCP.
pub const NET: Profile = Profile {
    name: "net",
    groups: &[
        &RUNTIME,
        &DESCRIPTORS,
        &EPOLL,
        &TALK,
        &ACCEPT,
        &READ_FILES,
        &WRITE_FILES,
        &THREADS,
        &TOKIO,
        &INTERNET_CLIENT,
        &UNIX_CLIENT,
        &NETLINK,
        &READ_LIMITS,
        &NO_IOCTL,
    ],
};

/// The network service.
const NETLINK: Group = Group {
    reason: "links, addresses and routes by rtnetlink; DHCP before there is an address goes through a packet socket",
    rules: &[
        Rule::allow_if(SYS_socket, &[Condition::is(0, libc::AF_NETLINK as u32)]),
        Rule::allow_if(SYS_socket, &[Condition::is(0, libc::AF_PACKET as u32)]),
        allow(libc::SYS_bind),
        Rule::allow_if(SYS_ioctl, &[Condition::is(1, libc::FIONBIO as u32)]),
    ],
};

/// `byred podnet`: links and rules of this node and of pods' network namespaces.
pub const PODNET: Profile = Profile {
    name: "podnet",
    groups: &[&RUNTIME, &DESCRIPTORS, &TALK, &READ_FILES, &WRITE_FILES, &POD_NETWORKS, &NO_IOCTL],
};

/// The networks of pods.
const POD_NETWORKS: Group = Group {
    reason: "links, addresses, routes and packet filter rules by netlink, also inside a pod: only network namespaces are entered",
    rules: &[
        Rule::allow_if(SYS_setns, &[Condition::is(1, CLONE_NEWNET as u32)]),
        Rule::allow_if(SYS_socket, &[Condition::is(0, libc::AF_NETLINK as u32)]),
        allow(libc::SYS_bind),
    ],
};

/// `byred update`: the repository over the network, and the inactive slot through descriptors that PID 1 opened.
pub const UPDATE: Profile = Profile {
    name: "update",
    groups: &[
        &RUNTIME,
        &DESCRIPTORS,
        &EPOLL,
        &TALK,
        &ACCEPT,
        &READ_FILES,
        &WRITE_FILES,
        &THREADS,
        &TOKIO,
        &INTERNET_CLIENT,
        &RESOLVER,
        &FORGET_CACHE,
        &READ_LIMITS,
        &NO_IOCTL,
    ],
};

/// `byred time`: questions over UDP, and the clock.
pub const TIME: Profile = Profile {
    name: "time",
    groups: &[
        &RUNTIME,
        &DESCRIPTORS,
        &TALK,
        &READ_FILES,
        &WRITE_FILES,
        &INTERNET_CLIENT,
        &RESOLVER,
        &SET_CLOCK,
        &READ_LIMITS,
        &NO_IOCTL,
    ],
};

/// The clock.
const SET_CLOCK: Group = Group {
    reason: "the clock is set when it is far off, and turned when it is not; a socket of its own for each question",
    rules: &[allow(libc::SYS_clock_settime), allow(libc::SYS_clock_adjtime), allow(libc::SYS_bind)],
};

/// What was written is read back from the disk.
const FORGET_CACHE: Group = Group {
    reason: "reading back past the cache where a file knows no direct reads",
    rules: &[allow(libc::SYS_fadvise64)],
};

/// Every profile, for the tests that hold each of them.
pub const ALL: &[&Profile] =
    &[&LOG, &STATE, &STATS, &PROBE, &IMAGE, &PULL, &API, &CONFIG, &NET, &PODNET, &TIME, &UPDATE];

/// Calls that a profile may get from nowhere: they are looked for by a test.
pub const NEVER: &[i64] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_mount,
    libc::SYS_bpf,
    libc::SYS_kill,
    libc::SYS_unshare,
    libc::SYS_init_module,
    libc::SYS_kexec_load,
];
