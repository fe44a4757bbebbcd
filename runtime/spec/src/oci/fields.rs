//! Every field of the OCI runtime-spec's config.json for Linux (version 1.3), and what becomes of it. The walk over a file, the page in docs/ and
//! the tests read this one table, so that no field is parsed and then forgotten.

use byre_plan::Refusal;
use serde_json::Value;

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It does what the specification says.
    Honoured,
    /// What it asks for is always so, and how.
    Always(&'static str),
    /// A file that sets it is refused, with this remedy.
    Refused(&'static str),
}

/// Longest config.json: those of engines with many mounts and a seccomp profile have 100 KiB.
pub const CONFIG_BYTES: usize = 2 * 1024 * 1024;
/// Unknown properties that are reported by name; the specification wants them let pass.
const REPORTED: usize = 32;

use Verdict::{Always, Honoured, Refused};

const NOT_LINUX: &str = "leave it out: it is for another operating system";
const CGROUP_V1: &str = "leave it out: only cgroup v1 has it";
const RESCTRL: &str = "leave it out: caches and memory bandwidth are not divided";

/// Path (`[]` is any element, `*` any key) and verdict, in the specification's order.
#[rustfmt::skip]
pub const FIELDS: &[(&str, Verdict)] = &[
    ("ociVersion", Honoured),
    ("root", Honoured),
    ("root.path", Honoured),
    ("root.readonly", Honoured),
    ("mounts", Honoured),
    ("mounts[]", Honoured),
    ("mounts[].destination", Honoured),
    ("mounts[].source", Honoured),
    ("mounts[].type", Honoured),
    ("mounts[].options", Honoured),
    ("mounts[].options[]", Honoured),
    ("mounts[].uidMappings", Honoured),
    ("mounts[].uidMappings[]", Honoured),
    ("mounts[].uidMappings[].containerID", Honoured),
    ("mounts[].uidMappings[].hostID", Honoured),
    ("mounts[].uidMappings[].size", Honoured),
    ("mounts[].gidMappings", Honoured),
    ("mounts[].gidMappings[]", Honoured),
    ("mounts[].gidMappings[].containerID", Honoured),
    ("mounts[].gidMappings[].hostID", Honoured),
    ("mounts[].gidMappings[].size", Honoured),
    ("process", Honoured),
    ("process.terminal", Honoured),
    ("process.consoleSize", Honoured),
    ("process.consoleSize.height", Honoured),
    ("process.consoleSize.width", Honoured),
    ("process.cwd", Honoured),
    ("process.env", Honoured),
    ("process.env[]", Honoured),
    ("process.args", Honoured),
    ("process.args[]", Honoured),
    ("process.commandLine", Refused(NOT_LINUX)),
    ("process.rlimits", Honoured),
    ("process.rlimits[]", Honoured),
    ("process.rlimits[].type", Honoured),
    ("process.rlimits[].soft", Honoured),
    ("process.rlimits[].hard", Honoured),
    ("process.apparmorProfile", Honoured),
    ("process.capabilities", Honoured),
    ("process.capabilities.bounding", Honoured),
    ("process.capabilities.bounding[]", Honoured),
    ("process.capabilities.effective", Honoured),
    ("process.capabilities.effective[]", Honoured),
    ("process.capabilities.inheritable", Honoured),
    ("process.capabilities.inheritable[]", Honoured),
    ("process.capabilities.permitted", Honoured),
    ("process.capabilities.permitted[]", Honoured),
    ("process.capabilities.ambient", Honoured),
    ("process.capabilities.ambient[]", Honoured),
    ("process.noNewPrivileges", Honoured),
    ("process.oomScoreAdj", Honoured),
    ("process.scheduler", Honoured),
    ("process.scheduler.policy", Honoured),
    ("process.scheduler.nice", Honoured),
    ("process.scheduler.priority", Honoured),
    ("process.scheduler.flags", Honoured),
    ("process.scheduler.flags[]", Honoured),
    ("process.scheduler.runtime", Honoured),
    ("process.scheduler.deadline", Honoured),
    ("process.scheduler.period", Honoured),
    ("process.selinuxLabel", Honoured),
    ("process.ioPriority", Honoured),
    ("process.ioPriority.class", Honoured),
    ("process.ioPriority.priority", Honoured),
    ("process.execCPUAffinity", Honoured),
    ("process.execCPUAffinity.initial", Honoured),
    ("process.execCPUAffinity.final", Honoured),
    ("process.user", Honoured),
    ("process.user.uid", Honoured),
    ("process.user.gid", Honoured),
    ("process.user.umask", Honoured),
    ("process.user.additionalGids", Honoured),
    ("process.user.additionalGids[]", Honoured),
    ("process.user.username", Refused(NOT_LINUX)),
    ("hostname", Honoured),
    ("domainname", Honoured),
    ("hooks", Honoured),
    ("hooks.prestart", Honoured),
    ("hooks.prestart[]", Honoured),
    ("hooks.prestart[].path", Honoured),
    ("hooks.prestart[].args", Honoured),
    ("hooks.prestart[].args[]", Honoured),
    ("hooks.prestart[].env", Honoured),
    ("hooks.prestart[].env[]", Honoured),
    ("hooks.prestart[].timeout", Honoured),
    ("hooks.createRuntime", Honoured),
    ("hooks.createRuntime[]", Honoured),
    ("hooks.createRuntime[].path", Honoured),
    ("hooks.createRuntime[].args", Honoured),
    ("hooks.createRuntime[].args[]", Honoured),
    ("hooks.createRuntime[].env", Honoured),
    ("hooks.createRuntime[].env[]", Honoured),
    ("hooks.createRuntime[].timeout", Honoured),
    ("hooks.createContainer", Honoured),
    ("hooks.createContainer[]", Honoured),
    ("hooks.createContainer[].path", Honoured),
    ("hooks.createContainer[].args", Honoured),
    ("hooks.createContainer[].args[]", Honoured),
    ("hooks.createContainer[].env", Honoured),
    ("hooks.createContainer[].env[]", Honoured),
    ("hooks.createContainer[].timeout", Honoured),
    ("hooks.startContainer", Honoured),
    ("hooks.startContainer[]", Honoured),
    ("hooks.startContainer[].path", Honoured),
    ("hooks.startContainer[].args", Honoured),
    ("hooks.startContainer[].args[]", Honoured),
    ("hooks.startContainer[].env", Honoured),
    ("hooks.startContainer[].env[]", Honoured),
    ("hooks.startContainer[].timeout", Honoured),
    ("hooks.poststart", Honoured),
    ("hooks.poststart[]", Honoured),
    ("hooks.poststart[].path", Honoured),
    ("hooks.poststart[].args", Honoured),
    ("hooks.poststart[].args[]", Honoured),
    ("hooks.poststart[].env", Honoured),
    ("hooks.poststart[].env[]", Honoured),
    ("hooks.poststart[].timeout", Honoured),
    ("hooks.poststop", Honoured),
    ("hooks.poststop[]", Honoured),
    ("hooks.poststop[].path", Honoured),
    ("hooks.poststop[].args", Honoured),
    ("hooks.poststop[].args[]", Honoured),
    ("hooks.poststop[].env", Honoured),
    ("hooks.poststop[].env[]", Honoured),
    ("hooks.poststop[].timeout", Honoured),
    ("annotations", Honoured),
    ("annotations.*", Honoured),
    ("linux", Honoured),
    ("linux.namespaces", Honoured),
    ("linux.namespaces[]", Honoured),
    ("linux.namespaces[].type", Honoured),
    ("linux.namespaces[].path", Honoured),
    ("linux.uidMappings", Honoured),
    ("linux.uidMappings[]", Honoured),
    ("linux.uidMappings[].containerID", Honoured),
    ("linux.uidMappings[].hostID", Honoured),
    ("linux.uidMappings[].size", Honoured),
    ("linux.gidMappings", Honoured),
    ("linux.gidMappings[]", Honoured),
    ("linux.gidMappings[].containerID", Honoured),
    ("linux.gidMappings[].hostID", Honoured),
    ("linux.gidMappings[].size", Honoured),
    ("linux.timeOffsets", Honoured),
    ("linux.timeOffsets.monotonic", Honoured),
    ("linux.timeOffsets.monotonic.secs", Honoured),
    ("linux.timeOffsets.monotonic.nanosecs", Honoured),
    ("linux.timeOffsets.boottime", Honoured),
    ("linux.timeOffsets.boottime.secs", Honoured),
    ("linux.timeOffsets.boottime.nanosecs", Honoured),
    ("linux.devices", Honoured),
    ("linux.devices[]", Honoured),
    ("linux.devices[].type", Honoured),
    ("linux.devices[].path", Honoured),
    ("linux.devices[].major", Honoured),
    ("linux.devices[].minor", Honoured),
    ("linux.devices[].fileMode", Honoured),
    ("linux.devices[].uid", Honoured),
    ("linux.devices[].gid", Honoured),
    ("linux.netDevices", Honoured),
    ("linux.netDevices.*", Honoured),
    ("linux.netDevices.*.name", Honoured),
    ("linux.cgroupsPath", Honoured),
    ("linux.resources", Honoured),
    ("linux.resources.devices", Honoured),
    ("linux.resources.devices[]", Honoured),
    ("linux.resources.devices[].allow", Honoured),
    ("linux.resources.devices[].type", Honoured),
    ("linux.resources.devices[].major", Honoured),
    ("linux.resources.devices[].minor", Honoured),
    ("linux.resources.devices[].access", Honoured),
    ("linux.resources.memory", Honoured),
    ("linux.resources.memory.limit", Honoured),
    ("linux.resources.memory.reservation", Honoured),
    ("linux.resources.memory.swap", Honoured),
    ("linux.resources.memory.kernel", Refused("leave it out: kernel memory counts as memory")),
    ("linux.resources.memory.kernelTCP", Refused(CGROUP_V1)),
    ("linux.resources.memory.swappiness", Refused(CGROUP_V1)),
    ("linux.resources.memory.disableOOMKiller", Refused(CGROUP_V1)),
    ("linux.resources.memory.useHierarchy", Always("cgroup v2 is hierarchical")),
    ("linux.resources.memory.checkBeforeUpdate", Refused("leave it out: a limit below what is used ends processes")),
    ("linux.resources.cpu", Honoured),
    ("linux.resources.cpu.shares", Honoured),
    ("linux.resources.cpu.quota", Honoured),
    ("linux.resources.cpu.burst", Honoured),
    ("linux.resources.cpu.period", Honoured),
    ("linux.resources.cpu.realtimeRuntime", Refused(CGROUP_V1)),
    ("linux.resources.cpu.realtimePeriod", Refused(CGROUP_V1)),
    ("linux.resources.cpu.cpus", Honoured),
    ("linux.resources.cpu.mems", Honoured),
    ("linux.resources.cpu.idle", Honoured),
    ("linux.resources.blockIO", Honoured),
    ("linux.resources.blockIO.weight", Honoured),
    ("linux.resources.blockIO.leafWeight", Refused(CGROUP_V1)),
    ("linux.resources.blockIO.weightDevice", Honoured),
    ("linux.resources.blockIO.weightDevice[]", Honoured),
    ("linux.resources.blockIO.weightDevice[].major", Honoured),
    ("linux.resources.blockIO.weightDevice[].minor", Honoured),
    ("linux.resources.blockIO.weightDevice[].weight", Honoured),
    ("linux.resources.blockIO.weightDevice[].leafWeight", Refused(CGROUP_V1)),
    ("linux.resources.blockIO.throttleReadBpsDevice", Honoured),
    ("linux.resources.blockIO.throttleReadBpsDevice[]", Honoured),
    ("linux.resources.blockIO.throttleReadBpsDevice[].major", Honoured),
    ("linux.resources.blockIO.throttleReadBpsDevice[].minor", Honoured),
    ("linux.resources.blockIO.throttleReadBpsDevice[].rate", Honoured),
    ("linux.resources.blockIO.throttleWriteBpsDevice", Honoured),
    ("linux.resources.blockIO.throttleWriteBpsDevice[]", Honoured),
    ("linux.resources.blockIO.throttleWriteBpsDevice[].major", Honoured),
    ("linux.resources.blockIO.throttleWriteBpsDevice[].minor", Honoured),
    ("linux.resources.blockIO.throttleWriteBpsDevice[].rate", Honoured),
    ("linux.resources.blockIO.throttleReadIOPSDevice", Honoured),
    ("linux.resources.blockIO.throttleReadIOPSDevice[]", Honoured),
    ("linux.resources.blockIO.throttleReadIOPSDevice[].major", Honoured),
    ("linux.resources.blockIO.throttleReadIOPSDevice[].minor", Honoured),
    ("linux.resources.blockIO.throttleReadIOPSDevice[].rate", Honoured),
    ("linux.resources.blockIO.throttleWriteIOPSDevice", Honoured),
    ("linux.resources.blockIO.throttleWriteIOPSDevice[]", Honoured),
    ("linux.resources.blockIO.throttleWriteIOPSDevice[].major", Honoured),
    ("linux.resources.blockIO.throttleWriteIOPSDevice[].minor", Honoured),
    ("linux.resources.blockIO.throttleWriteIOPSDevice[].rate", Honoured),
    ("linux.resources.hugepageLimits", Honoured),
    ("linux.resources.hugepageLimits[]", Honoured),
    ("linux.resources.hugepageLimits[].pageSize", Honoured),
    ("linux.resources.hugepageLimits[].limit", Honoured),
    ("linux.resources.network", Refused(CGROUP_V1)),
    ("linux.resources.pids", Honoured),
    ("linux.resources.pids.limit", Honoured),
    ("linux.resources.rdma", Honoured),
    ("linux.resources.rdma.*", Honoured),
    ("linux.resources.rdma.*.hcaHandles", Honoured),
    ("linux.resources.rdma.*.hcaObjects", Honoured),
    ("linux.resources.unified", Honoured),
    ("linux.resources.unified.*", Honoured),
    ("linux.intelRdt", Refused(RESCTRL)),
    ("linux.memoryPolicy", Honoured),
    ("linux.memoryPolicy.mode", Honoured),
    ("linux.memoryPolicy.nodes", Honoured),
    ("linux.memoryPolicy.flags", Honoured),
    ("linux.memoryPolicy.flags[]", Honoured),
    ("linux.sysctl", Honoured),
    ("linux.sysctl.*", Honoured),
    ("linux.seccomp", Honoured),
    ("linux.seccomp.defaultAction", Honoured),
    ("linux.seccomp.defaultErrnoRet", Honoured),
    ("linux.seccomp.architectures", Always("the filter is for x86-64; calls of x86 kill the process, those of x32 fail with ENOSYS")),
    ("linux.seccomp.architectures[]", Always("the filter is for x86-64; calls of x86 kill the process, those of x32 fail with ENOSYS")),
    ("linux.seccomp.flags", Honoured),
    ("linux.seccomp.flags[]", Honoured),
    ("linux.seccomp.listenerPath", Honoured),
    ("linux.seccomp.listenerMetadata", Honoured),
    ("linux.seccomp.syscalls", Honoured),
    ("linux.seccomp.syscalls[]", Honoured),
    ("linux.seccomp.syscalls[].names", Honoured),
    ("linux.seccomp.syscalls[].names[]", Honoured),
    ("linux.seccomp.syscalls[].action", Honoured),
    ("linux.seccomp.syscalls[].errnoRet", Honoured),
    ("linux.seccomp.syscalls[].args", Honoured),
    ("linux.seccomp.syscalls[].args[]", Honoured),
    ("linux.seccomp.syscalls[].args[].index", Honoured),
    ("linux.seccomp.syscalls[].args[].value", Honoured),
    ("linux.seccomp.syscalls[].args[].valueTwo", Honoured),
    ("linux.seccomp.syscalls[].args[].op", Honoured),
    ("linux.rootfsPropagation", Honoured),
    ("linux.maskedPaths", Honoured),
    ("linux.maskedPaths[]", Honoured),
    ("linux.readonlyPaths", Honoured),
    ("linux.readonlyPaths[]", Honoured),
    ("linux.mountLabel", Honoured),
    ("linux.personality", Honoured),
    ("linux.personality.domain", Honoured),
    ("linux.personality.flags", Refused("leave it out: the kernel takes a domain only")),
    ("solaris", Refused(NOT_LINUX)),
    ("windows", Refused(NOT_LINUX)),
    ("vm", Refused("leave it out: no virtual machine is started")),
    ("zos", Refused(NOT_LINUX)),
    ("freebsd", Refused(NOT_LINUX)),
];

/// The verdict on a path.
#[must_use]
pub fn verdict(path: &str) -> Option<Verdict> {
    FIELDS.iter().find(|(known, _)| *known == path).map(|(_, verdict)| *verdict)
}

/// Looks at every property below `prefix` ("process" for a process.json), takes out those that say nothing, and returns what is not known.
///
/// # Errors
/// The first field that is refused.
pub(super) fn walk(value: &mut Value, prefix: &str) -> Result<Vec<String>, Refusal> {
    let mut unknown = Vec::new();
    below(value, prefix, &mut unknown)?;
    Ok(unknown)
}

fn below(value: &mut Value, path: &str, unknown: &mut Vec<String>) -> Result<(), Refusal> {
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(entries) => {
            // What is null is not set, as Go's encoder writes it.
            entries.retain(|_, value| !value.is_null());
            let any = join("*");
            let is_map = verdict(&any).is_some();
            for (key, value) in entries.iter_mut() {
                let path = if is_map { any.clone() } else { join(key) };
                match verdict(&path) {
                    Some(Honoured | Always(_)) => below(value, &path, unknown)?,
                    Some(Refused(remedy)) if says_something(value) => {
                        return Err(refusal(&path, "is not supported", remedy));
                    }
                    Some(Refused(_)) => {}
                    None if unknown.len() < REPORTED => unknown.push(path.chars().take(200).collect()),
                    None => {}
                }
            }
            Ok(())
        }
        Value::Array(elements) => {
            let path = format!("{path}[]");
            elements.iter_mut().try_for_each(|element| below(element, &path, unknown))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

/// Whether a value asks for anything at all: engines write empty lists and `false` for what is not wanted.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Number(_) => true,
        Value::String(text) => !text.is_empty(),
        Value::Array(elements) => !elements.is_empty(),
        Value::Object(entries) => !entries.is_empty(),
    }
}

pub(super) fn refusal(field: &str, reason: impl Into<String>, remedy: impl Into<String>) -> Refusal {
    Refusal { field: field.to_owned(), reason: reason.into(), remedy: remedy.into() }
}
