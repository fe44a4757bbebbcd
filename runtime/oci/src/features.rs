//! `features`: what is supported, from the very tables that reading a bundle uses.

use byre_spec::oci::{
    MEMORY_FLAGS, MEMORY_MODES, MOUNT_FLAGS, MOUNT_PROPAGATIONS, NAMESPACES, SECCOMP_ACTIONS, SECCOMP_FLAGS,
    SECCOMP_OPERATORS, VERSION_MAX, VERSION_MIN,
};
use serde_json::{Value, json};

/// Options of mounts that neither set an attribute nor a propagation.
const OTHER_OPTIONS: [&str; 5] = ["bind", "idmap", "rbind", "ridmap", "tmpcopyup"];

/// Features as features.md of the runtime-spec, version 1.3, has them.
pub(crate) fn features() -> Value {
    let mut options: Vec<String> = OTHER_OPTIONS.map(str::to_owned).to_vec();
    for (set, clear, _) in MOUNT_FLAGS {
        options.extend([set.to_owned(), clear.to_owned(), format!("r{set}")]);
    }
    options.extend(MOUNT_PROPAGATIONS.map(|(name, _)| name.to_owned()));
    options.sort_unstable();
    let capabilities: Vec<String> = byre_plan::CAPABILITY_NAMES.iter().map(|name| format!("CAP_{name}")).collect();
    let flags = SECCOMP_FLAGS.map(|(name, _)| name);
    let on = json!({ "enabled": true });
    json!({
        "ociVersionMin": VERSION_MIN,
        "ociVersionMax": VERSION_MAX,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": options,
        "linux": {
            "namespaces": NAMESPACES,
            "capabilities": capabilities,
            "cgroup": { "v1": false, "v2": true, "systemd": false, "systemdUser": false, "rdma": true },
            "seccomp": {
                "enabled": true,
                "actions": SECCOMP_ACTIONS,
                "operators": SECCOMP_OPERATORS,
                "archs": ["SCMP_ARCH_X86_64"],
                "knownFlags": flags,
                "supportedFlags": flags,
            },
            "apparmor": on,
            "selinux": on,
            "intelRdt": { "enabled": false, "schemata": false, "monitoring": false },
            "memoryPolicy": {
                "modes": MEMORY_MODES.map(|(name, _)| name),
                "flags": MEMORY_FLAGS.map(|(name, _)| name),
            },
            "mountExtensions": { "idmap": on },
            "netDevices": on,
        },
        "annotations": { "org.byre.oci.version": env!("CARGO_PKG_VERSION") },
        "potentiallyUnsafeConfigAnnotations": [],
    })
}
