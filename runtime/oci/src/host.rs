//! What this process is and has, as far as a bundle needs to know it.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use byre_plan::{LaunchRequest, MountSource, Origin, Plan, Policy, Root};
use byre_spec::oci::{Around, Bundle, read_bundle};

use crate::cgroups;
use crate::error::{Error, cannot, wrong};
use crate::log::Log;

/// Values that a bundle may leave open.
#[derive(Debug)]
pub(crate) struct Own {
    capabilities: u64,
    oom_score_adj: i16,
    open_files: (u64, u64),
}

impl Own {
    pub(crate) fn read() -> Result<Self, Error> {
        let status = fs::read_to_string("/proc/self/status").map_err(cannot("read /proc/self/status"))?;
        let mask = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            u64::from_str_radix(line.trim(), 16).unwrap_or(0)
        };
        let score = fs::read_to_string("/proc/self/oom_score_adj").map_err(cannot("read /proc/self/oom_score_adj"))?;
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Ok(Self {
            capabilities: mask("CapBnd:") & mask("CapPrm:"),
            oom_score_adj: score.trim().parse().unwrap_or(0),
            open_files: (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX)),
        })
    }

    /// Capabilities that this process has and can give.
    pub(crate) fn capabilities(&self) -> u64 {
        self.capabilities
    }

    pub(crate) fn around<'a>(&self, bundle: &'a str) -> Around<'a> {
        Around {
            bundle,
            capabilities: self.capabilities,
            oom_score_adj: self.oom_score_adj,
            open_files: self.open_files,
        }
    }
}

/// Reads and checks a bundle's configuration. What is not understood goes to the log.
pub(crate) fn bundle(json: &[u8], directory: &str, own: &Own, log: &Log) -> Result<(Bundle, Plan), Error> {
    let mut bundle = read_bundle(json, &own.around(directory))?;
    bundle.warnings.iter().for_each(|warning| log.warn(warning));
    bundle.notes.iter().for_each(|note| log.debug(note));
    resolve(&mut bundle.request)?;
    modules(&bundle.request)?;
    cgroups::named(&bundle.request.resources)?;
    cgroups::without_needless(&mut bundle.request.resources)?;
    let plan = Plan::check(bundle.request.clone(), &Policy::default(), Origin::VerifiedRoot)?;
    Ok((bundle, plan))
}

/// Labels of a security module that is not there would be no protection.
fn modules(request: &LaunchRequest) -> Result<(), Error> {
    let has_apparmor =
        || fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y");
    if request.process.labels.apparmor.is_some() && !has_apparmor() {
        return Err(wrong("process.apparmorProfile: AppArmor is not enabled on this host", "leave it out"));
    }
    let wants_selinux = request.process.labels.selinux.is_some() || request.kernel.mount_label.is_some();
    if wants_selinux && !Path::new("/sys/fs/selinux/enforce").exists() {
        let problem = "process.selinuxLabel, linux.mountLabel: SELinux is not enabled on this host";
        return Err(wrong(problem, "leave them out"));
    }
    Ok(())
}

/// Follows the links of the host's paths once. From here on they have none, and one that appears later is refused by the kernel.
fn resolve(request: &mut LaunchRequest) -> Result<(), Error> {
    let follow = |path: &mut String| {
        let real = fs::canonicalize(&*path).map_err(cannot(format!("open {path}")))?;
        *path = real
            .into_os_string()
            .into_string()
            .map_err(|strange| wrong(format!("{} is no UTF-8", Path::new(&strange).display()), "use a name that is"))?;
        Ok::<(), Error>(())
    };
    match &mut request.root {
        Root::Directory { path, read_only: _ } => follow(path)?,
        Root::Host | Root::Layers { .. } => {}
    }
    for mount in &mut request.mounts {
        match &mut mount.source {
            MountSource::Bind { path, recursive: _ } => follow(path)?,
            MountSource::Proc
            | MountSource::Sysfs
            | MountSource::Cgroup
            | MountSource::Mqueue
            | MountSource::Devpts
            | MountSource::Devices
            | MountSource::Tmpfs { .. }
            | MountSource::Volume(_)
            | MountSource::OwnVolume(_)
            | MountSource::GeneratedFile(_)
            | MountSource::FileSystem { .. } => {}
        }
    }
    Ok(())
}

/// What stands where PID 1 has its helper program: a bundle's processes have none.
pub(crate) fn no_helper() -> Result<OwnedFd, Error> {
    fs::File::open("/dev/null").map(OwnedFd::from).map_err(cannot("open /dev/null"))
}
