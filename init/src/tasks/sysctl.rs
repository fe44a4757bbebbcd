//! Hardening of the kernel: the settings that the Kernel Self-Protection Project recommends, each with the line that says why it is
//! not as recommended where it is not.

use super::TaskError;

/// Setting, value. A setting that this kernel does not have is not an error.
const SETTINGS: [(&str, &str); 26] = [
    // Addresses and logs of the kernel are for administrators.
    ("kernel/kptr_restrict", "2"),
    ("kernel/dmesg_restrict", "1"),
    // kernel.printk stays: one line for each boot stage and failure is what the console is for.
    // A core dump holds secrets and fills disks; nothing here would read it.
    ("kernel/core_pattern", "|/bin/false"),
    ("fs/suid_dumpable", "0"),
    ("kernel/perf_event_paranoid", "3"),
    ("kernel/unprivileged_bpf_disabled", "1"),
    ("net/core/bpf_jit_harden", "2"),
    ("kernel/yama/ptrace_scope", "1"),
    ("kernel/randomize_va_space", "2"),
    ("kernel/sysrq", "0"),
    ("dev/tty/ldisc_autoload", "0"),
    ("dev/tty/legacy_tiocsti", "0"),
    ("vm/mmap_min_addr", "65536"),
    ("vm/unprivileged_userfaultfd", "0"),
    ("kernel/panic", "5"),
    ("kernel/panic_on_oops", "1"),
    ("fs/protected_symlinks", "1"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_fifos", "2"),
    ("fs/protected_regular", "2"),
    // Every workload of a dense node is a process or more, and its supervisor watches its files.
    ("kernel/pid_max", "4194304"),
    ("fs/inotify/max_user_instances", "8192"),
    ("fs/inotify/max_user_watches", "524288"),
    // Modules come only from the verified root, by PID 1's own program. kernel.modules_disabled stays 0: device and
    // network modules are loaded on demand. kernel.kexec_load_disabled stays 0: an update may start its kernel that way.
    // user.max_user_namespaces stays: containers are user namespaces.
    ("kernel/modprobe", "/usr/bin/modprobe"),
    ("net/ipv4/conf/all/rp_filter", "2"),
    ("net/ipv4/tcp_syncookies", "1"),
];

/// Writes every setting; says which could not be written.
pub(crate) fn apply() -> Result<(), TaskError> {
    let mut failed = Vec::new();
    for (name, value) in SETTINGS {
        let path = format!("/proc/sys/{name}");
        match std::fs::write(&path, value) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => failed.push(format!("{name}: {error}")),
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(TaskError::Invalid(failed.join("; "))) }
}
