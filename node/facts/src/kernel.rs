//! The kernel: what it is, and what it can do by asking it to.

use crate::probe;
use crate::read::{Root, attribute, file, number, words};
use crate::types::Kernel;

/// Parts of names of kernel arguments whose values are not shown.
const SECRET_NAMES: &[&str] = &["auth", "byre.config", "credential", "key", "pass", "secret", "token"];
/// What stands for such a value.
const HIDDEN: &str = "(hidden)";
/// Modules and file systems that are listed.
const NAMES: usize = 1024;

/// What does not change while the kernel runs. Asks it with system calls that a sealed service may not make.
pub(crate) fn read(root: &Root) -> Kernel {
    let sysctl = root.proc.join("sys");
    let release = attribute(sysctl.join("kernel/osrelease")).unwrap_or_default();
    let build = attribute(sysctl.join("kernel/version")).unwrap_or_default();
    let namespaces = number(sysctl.join("user/max_user_namespaces")).is_some_and(|most| most > 0);
    // Debian's own switch; absent elsewhere.
    let unprivileged = number(sysctl.join("kernel/unprivileged_userns_clone")) != Some(0);
    let io_uring_off = number(sysctl.join("kernel/io_uring_disabled")) == Some(2);
    let lsm = attribute(root.sys.join("kernel/security/lsm")).unwrap_or_default();
    Kernel {
        release,
        build,
        command_line: without_secrets(&file(root.proc.join("cmdline"))),
        user_namespaces: namespaces && unprivileged,
        io_uring: !io_uring_off && probe::io_uring(),
        bpf: probe::bpf(),
        landlock_abi: probe::landlock_abi(),
        seccomp_actions: words(&attribute(sysctl.join("kernel/seccomp/actions_avail")).unwrap_or_default()),
        cgroup_controllers: words(&attribute(root.sys.join("fs/cgroup/cgroup.controllers")).unwrap_or_default()),
        security_modules: lsm.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        // What changes is read each time.
        modules: Vec::new(),
        filesystems: Vec::new(),
    }
}

/// What can change: modules come, and file systems with them.
#[derive(Debug, Default)]
pub(crate) struct Changing {
    pub(crate) modules: Vec<String>,
    pub(crate) filesystems: Vec<String>,
}

/// Reads what can change.
pub(crate) fn changing(root: &Root) -> Changing {
    let first_word = |line: &str| line.split_whitespace().next().map(str::to_owned);
    let mut modules: Vec<String> = file(root.proc.join("modules")).lines().filter_map(first_word).take(NAMES).collect();
    modules.sort_unstable();
    let mut filesystems: Vec<String> = file(root.proc.join("filesystems"))
        .lines()
        .filter_map(|line| line.split_whitespace().last().map(str::to_owned))
        .take(NAMES)
        .collect();
    filesystems.sort_unstable();
    Changing { modules, filesystems }
}

fn without_secrets(line: &str) -> String {
    let words = line.split_whitespace().map(|word| match word.split_once('=') {
        Some((name, _)) if SECRET_NAMES.iter().any(|part| name.to_ascii_lowercase().contains(part)) => {
            format!("{name}={HIDDEN}")
        }
        Some(_) | None => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_the_command_line_are_left_out() {
        let shown = without_secrets("quiet root=/dev/dm-0 io.byre.config=abc join_token=xyz rd.PASSWORD=1 ro\n");
        assert_eq!(shown, "quiet root=/dev/dm-0 io.byre.config=(hidden) join_token=(hidden) rd.PASSWORD=(hidden) ro");
    }
}
