//! The node's default profile: what container runtimes commonly allow a container with the usual 14 capabilities, and EPERM for the rest.
//!
//! What is left out, and why: calls that load code into the kernel or change it (modules, kexec, bpf), that reach past the container
//! (mounts, namespaces, file handles, keys, quotas, accounting, swap, clocks), that profile or watch others (perf, userfaultfd), and
//! io_uring, whose requests no filter sees. A program finds the same set as on other hosts.

use super::{Action, ArgumentTest, Comparison, Profile, Rule, number};

/// EPERM and ENOSYS.
const NOT_PERMITTED: Action = Action::Errno(1);
const NO_SUCH_CALL: Action = Action::Errno(38);

/// Every CLONE_NEW* that clone(2) takes.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// AF_VSOCK reaches the hypervisor and other machines around every network policy.
const VSOCK: u64 = 40;
/// Harmless values of personality(2): Linux; UNAME26; no randomisation off. The last one asks for the present value.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Files by path: finding, making, naming, removing, their owners, modes and times.
const PATHS: &str = "access chdir chmod chown chroot creat faccessat faccessat2 fchdir fchmodat fchmodat2 fchownat futimesat getcwd \
    lchown link linkat lstat mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 readlink readlinkat \
    rename renameat renameat2 rmdir stat statfs statx symlink symlinkat truncate unlink unlinkat utime utimensat utimes umask \
    statmount listmount";
/// Extended attributes, which the kernel guards by capabilities of its own.
const ATTRIBUTES: &str = "fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr \
    lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat file_getattr file_setattr";
/// Open files: reading, writing, copying, locking, watching.
const FILES: &str = "cachestat close close_range copy_file_range dup dup2 dup3 fadvise64 fallocate fchmod fchown fcntl fdatasync flock fstat \
    fstatfs fsync ftruncate getdents getdents64 ioctl lseek pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readv \
    sendfile splice sync sync_file_range syncfs tee vmsplice write writev inotify_add_watch inotify_init inotify_init1 inotify_rm_watch \
    fanotify_mark";
/// Memory of the process itself.
const MEMORY: &str = "brk madvise map_shadow_stack memfd_create memfd_secret membarrier mincore mlock mlock2 mlockall mmap mprotect mremap \
    mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease remap_file_pages";
/// Waiting for many things, and the older asynchronous input and output.
const EVENTS: &str = "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 \
    io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit poll ppoll pselect6 select signalfd signalfd4";
/// Time: reading, sleeping, timers. Setting is for the node.
const TIME: &str = "adjtimex alarm clock_adjtime clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time \
    timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times";
/// Processes and threads, their signals, limits, scheduling and credentials. The kernel asks for capabilities where they matter.
const PROCESSES: &str = "arch_prctl capget capset execve execveat exit exit_group fork futex futex_requeue futex_wait futex_waitv futex_wake \
    get_robust_list get_thread_area getcpu getegid geteuid getgid getgroups getpgid getpgrp getpid getppid getpriority getrandom getresgid \
    getresuid getrlimit getrusage getsid gettid getuid ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset \
    landlock_restrict_self lsm_get_self_attr lsm_list_modules lsm_set_self_attr modify_ldt pause pidfd_open pidfd_send_signal prctl prlimit64 \
    process_vm_readv process_vm_writev ptrace restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn \
    rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr \
    sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield \
    seccomp set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setpgid setpriority setregid setresgid \
    setresuid setreuid setrlimit setsid setuid sigaltstack sysinfo tgkill tkill uname vfork wait4 waitid";
/// Sockets; making one has a rule of its own.
const SOCKETS: &str = "accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg sendto \
    setsockopt shutdown socketpair";
/// Messages, semaphores and shared memory of System V and POSIX, in the container's own IPC namespace.
const IPC: &str = "mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop \
    semtimedop shmat shmctl shmdt shmget";

/// The default profile. Every name in it is known; the tests hold it to that.
#[must_use]
pub fn default_profile() -> Profile {
    let lists = [PATHS, ATTRIBUTES, FILES, MEMORY, EVENTS, TIME, PROCESSES, SOCKETS, IPC];
    let allowed = lists.iter().flat_map(|list| list.split_ascii_whitespace()).filter_map(number).collect();
    let mut rules = vec![
        Rule { syscalls: allowed, action: Action::Allow, tests: Vec::new() },
        // Its flags lie in memory, where a filter cannot see them; ENOSYS makes libraries use clone(2).
        rule("clone3", NO_SUCH_CALL, Vec::new()),
        rule("clone", Action::Allow, vec![test(0, Comparison::MaskedEqual(NEW_NAMESPACES), 0)]),
        rule("socket", Action::Allow, vec![test(0, Comparison::NotEqual, VSOCK)]),
    ];
    rules
        .extend(PERSONALITIES.map(|value| rule("personality", Action::Allow, vec![test(0, Comparison::Equal, value)])));
    Profile { default: NOT_PERMITTED, rules }
}

/// Names of every list, for the test that each is known.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let lists = [PATHS, ATTRIBUTES, FILES, MEMORY, EVENTS, TIME, PROCESSES, SOCKETS, IPC];
    lists.into_iter().flat_map(str::split_ascii_whitespace)
}

fn rule(name: &str, action: Action, tests: Vec<ArgumentTest>) -> Rule {
    Rule { syscalls: number(name).into_iter().collect(), action, tests }
}

fn test(index: u8, comparison: Comparison, value: u64) -> ArgumentTest {
    ArgumentTest { index, comparison, value }
}
