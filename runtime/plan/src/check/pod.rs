//! What a pod may ask for: namespaces that others join, and what these are set to. Everything else has nobody to be for.

use crate::policy::Refusal;
use crate::request::{
    KernelSettings, LaunchRequest, Namespace, Namespaces, Resources, Root, Scheduling, Seccomp, UserNamespace,
};

/// Whether the parts of a pod's request fit together.
pub(super) fn fits_together(request: &LaunchRequest) -> Result<(), Refusal> {
    let LaunchRequest {
        process,
        root,
        namespaces,
        mounts,
        hostname: _,
        resources,
        devices,
        sysctls: _,
        masked_paths,
        read_only_paths,
        seccomp,
        landlock,
        nodes,
        kernel,
    } = request;
    let none = |field: &str, is_there: bool| {
        if is_there {
            Err(Refusal::new(field, "a pod has no process for it", "give it to the containers"))
        } else {
            Ok(())
        }
    };
    none("root", *root != Root::Host)?;
    none("mounts", !mounts.is_empty())?;
    none("resources", *resources != Resources::default())?;
    none("devices", !devices.is_empty())?;
    none("masked_paths", !masked_paths.is_empty() || !read_only_paths.is_empty())?;
    none("seccomp", *seccomp != Seccomp::None)?;
    none("landlock", !landlock.is_empty())?;
    none("nodes", !nodes.is_empty())?;
    none("kernel", *kernel != KernelSettings::default())?;
    none("process.terminal", process.terminal.is_some())?;
    none("process.env", !process.env.is_empty())?;
    none("process.scheduling", process.scheduling != Scheduling::default())?;
    let Namespaces { user, mount, pid, net, ipc, uts, cgroup } = namespaces;
    for (name, namespace) in [("mount", mount), ("pid", pid), ("cgroup", cgroup)] {
        none(&format!("namespaces.{name}"), *namespace != Namespace::Host)?;
    }
    for (name, namespace) in [("net", net), ("ipc", ipc), ("uts", uts)] {
        if let Namespace::Join(_) = namespace {
            let remedy = "use a new one, or the host's";
            return Err(Refusal::new(format!("namespaces.{name}"), "a pod joins no other", remedy));
        }
    }
    match user {
        UserNamespace::Host | UserNamespace::Automatic | UserNamespace::Mapped { .. } => Ok(()),
        UserNamespace::Join(_) => Err(Refusal::new("namespaces.user", "a pod joins no other", "use a new one")),
    }
}
