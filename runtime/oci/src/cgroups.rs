//! A container's cgroups on a host that others manage too. cgroup v2 only; where the host runs its controllers in v1, the v2 hierarchy still
//! holds and ends processes, and a limit that needs a controller fails by name.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use byre_plan::Resources;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{Error, cannot, wrong};

/// Where cgroups lie whose bundle names none.
const DEFAULT_PARENT: &str = "byre-oci";
/// Longest a freeze or an end is waited for. A process in uninterruptible sleep ends when its disk answers.
const PATIENCE: Duration = Duration::from_secs(10);
/// Deepest nesting of cgroups that is looked at.
const NESTING: u32 = 16;
/// Processes of one container that are listed.
const PROCESSES: usize = 65_536;

/// The place where cgroup2 is mounted.
pub(crate) fn mount() -> Result<PathBuf, Error> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(cannot("read /proc/self/mounts"))?;
    let found = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(place))
    });
    found.ok_or_else(|| {
        wrong(
            "this host has no cgroup v2",
            "mount it (`mount -t cgroup2 none DIRECTORY`), or boot with systemd.unified_cgroup_hierarchy=1",
        )
    })
}

/// The path below the mount that a bundle's `cgroupsPath` means. `slice:prefix:name`, systemd's form, becomes the path that systemd would use.
pub(crate) fn path(wanted: &str, id: &str) -> Result<String, Error> {
    let path = match wanted.split(':').collect::<Vec<_>>().as_slice() {
        [""] => format!("{DEFAULT_PARENT}/{id}"),
        [slice, prefix, name] if !slice.contains('/') => {
            let slice = if slice.is_empty() { "system.slice" } else { slice };
            let unit = if name.ends_with(".slice") { (*name).to_owned() } else { format!("{prefix}-{name}.scope") };
            format!("{}/{unit}", slice_path(slice))
        }
        _ => wanted.trim_matches('/').to_owned(),
    };
    let clean: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if clean.is_empty() || clean.contains(&"..") || path.len() > 4096 {
        return Err(wrong("linux.cgroupsPath is no path below the root cgroup", "name one without '..'"));
    }
    Ok(clean.join("/"))
}

/// `a-b-c.slice` lies in `a-b.slice`, which lies in `a.slice`.
fn slice_path(slice: &str) -> String {
    let Some(name) = slice.strip_suffix(".slice").filter(|name| !name.is_empty() && *name != "-") else {
        return slice.to_owned();
    };
    let mut all = Vec::new();
    for (at, _) in name.match_indices('-').chain([(name.len(), "")]) {
        all.push(format!("{}.slice", &name[..at]));
    }
    all.join("/")
}

/// Makes the cgroups of a container: outer and leaf.
pub(crate) fn create(path: &str) -> Result<(OwnedFd, OwnedFd), Error> {
    let what = || format!("make cgroup {path}");
    let mut place = mount()?;
    let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
    for part in parents.split('/').filter(|part| !part.is_empty()) {
        enable(&place);
        place.push(part);
        match fs::create_dir(&place) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(cannot(what())(error)),
            Ok(()) | Err(_) => {}
        }
    }
    enable(&place);
    let parent: OwnedFd = fs::File::open(&place).map_err(cannot(what()))?.into();
    match byre_launch::cgroup::create(parent.as_fd(), name) {
        // What an earlier container left empty, or an engine made for this one.
        Err(rustix::io::Errno::EXIST) => {
            place.push(name);
            left_empty(&place, path)?;
            byre_launch::cgroup::remove(parent.as_fd(), name).map_err(cannot(format!("{}: it is in use", what())))?;
            byre_launch::cgroup::create(parent.as_fd(), name)
        }
        made => made,
    }
    .map_err(cannot(what()))
}

/// Refuses a cgroup that somebody lives in, or that would freeze whoever enters it.
fn left_empty(place: &Path, path: &str) -> Result<(), Error> {
    let mut found = Vec::new();
    below(place, NESTING, &mut found);
    if !found.is_empty() {
        let problem = format!("container's cgroup is not empty: {} process(es) found in {path}", found.len());
        return Err(wrong(problem, "name another one, or end them"));
    }
    if fs::read_to_string(place.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1") {
        return Err(wrong(format!("container's cgroup unexpectedly frozen: {path}"), "thaw it, or name another one"));
    }
    Ok(())
}

/// Lets the children of a cgroup have its controllers. The kernel allows it where no process is in the way; elsewhere a limit says so.
fn enable(place: &Path) {
    if let Ok(cgroup) = fs::File::open(place) {
        let _ = byre_launch::cgroup::enable_controllers(cgroup.as_fd());
    }
}

fn parent(path: &str) -> Result<(OwnedFd, &str), Error> {
    let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
    let place = mount()?.join(parents);
    let parent = fs::File::open(&place).map_err(cannot(format!("open cgroup {path}")))?;
    Ok((parent.into(), name))
}

/// Opens the cgroups of a container.
pub(crate) fn open(path: &str) -> Result<(OwnedFd, OwnedFd), Error> {
    let (parent, name) = parent(path)?;
    byre_launch::cgroup::open(parent.as_fd(), name).map_err(cannot(format!("open cgroup {path}")))
}

/// The cgroup that this process is in, where launch children begin.
pub(crate) fn own() -> Result<OwnedFd, Error> {
    let what = "open this process's cgroup";
    let all = fs::read_to_string("/proc/self/cgroup").map_err(cannot(what))?;
    let path = all.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let place = mount()?.join(path.trim_start_matches('/'));
    // One above a cgroup namespace is not to be seen; the root of the namespace is.
    let file = fs::File::open(place).or_else(|_| fs::File::open(mount().unwrap_or_default())).map_err(cannot(what))?;
    Ok(file.into())
}

/// Says which keys of `unified` are no files of a controller, in the words that callers of other runtimes look for.
pub(crate) fn named(resources: &Resources) -> Result<(), Error> {
    const CONTROLLERS: [&str; 9] = ["cgroup", "cpu", "cpuset", "dmem", "hugetlb", "io", "memory", "misc", "pids"];
    for (file, _) in &resources.unified {
        let field = "linux.resources.unified";
        let remedy = "name a file of cgroup v2, such as memory.high";
        let Some((controller, _)) = file.split_once('.') else {
            let problem = format!("{field}: the specified key has not the form CONTROLLER.VALUE `{file}`");
            return Err(wrong(problem, remedy));
        };
        if !CONTROLLERS.contains(&controller) && controller != "rdma" {
            let problem = format!("{field}: the requested cgroup controller `{controller}` is not available");
            return Err(wrong(problem, remedy));
        }
    }
    Ok(())
}

/// Says what the host lacks for these limits, before anything is made.
pub(crate) fn check(resources: &Resources) -> Result<(), Error> {
    let mut needed: Vec<&str> = resources.unified.iter().filter_map(|(file, _)| file.split('.').next()).collect();
    let Resources {
        memory_max_bytes,
        memory_high_bytes,
        memory_low_bytes,
        swap_max_bytes,
        cpu_quota_us,
        cpu_weight,
        cpuset_cpus,
        pids_max,
        io_weight,
        unified: _,
        oom_group,
    } = resources;
    let memory = memory_max_bytes.or(*memory_high_bytes).or(*memory_low_bytes).or(*swap_max_bytes);
    let wanted = [
        ("memory", memory.is_some() || *oom_group),
        ("cpu", cpu_quota_us.is_some() || cpu_weight.is_some()),
        ("cpuset", cpuset_cpus.is_some()),
        ("pids", pids_max.is_some()),
        ("io", io_weight.is_some()),
    ];
    needed.extend(wanted.iter().filter(|(_, wanted)| *wanted).map(|(name, _)| *name));
    if needed.is_empty() {
        return Ok(());
    }
    let available = controllers()?;
    let missing = needed.iter().find(|name| !available.iter().any(|one| one == **name));
    missing.map_or(Ok(()), |name| {
        Err(wrong(
            format!(
                "linux.resources: the requested cgroup controller `{name}` is not available: cgroup v2 of this host lacks it"
            ),
            "leave the limit out, or boot with systemd.unified_cgroup_hierarchy=1 or cgroup_no_v1=all",
        ))
    })
}

/// Controllers that this host has in cgroup v2.
fn controllers() -> Result<Vec<String>, Error> {
    let place = mount()?.join("cgroup.controllers");
    let available = fs::read_to_string(&place).map_err(cannot(format!("read {}", place.display())))?;
    Ok(available.split_whitespace().map(str::to_owned).collect())
}

/// Takes out what asks for no limit where there is no controller that could set one: a new cgroup has none.
pub(crate) fn without_needless(resources: &mut Resources) -> Result<(), Error> {
    if resources.unified.is_empty() {
        return Ok(());
    }
    let available = controllers()?;
    resources.unified.retain(|(file, value)| {
        let controller = file.split('.').next().unwrap_or_default();
        let is_none = value == "max" || value.starts_with("max ");
        !is_none || available.iter().any(|one| one == controller)
    });
    Ok(())
}

/// Removes a container's cgroups, when the last process is gone.
pub(crate) fn remove(path: &str) -> Result<(), Error> {
    let Ok((outer, _)) = open(path) else { return Ok(()) };
    let _ = byre_launch::cgroup::kill(outer.as_fd());
    wait_for(outer.as_fd(), "populated 0", "end of the container's processes")?;
    let (parent, name) = parent(path)?;
    byre_launch::cgroup::remove(parent.as_fd(), name).map_err(cannot(format!("remove cgroup {path}")))
}

/// Freezes or thaws, and waits until it is so.
pub(crate) fn freeze(outer: BorrowedFd<'_>, frozen: bool) -> Result<(), Error> {
    byre_launch::cgroup::freeze(outer, frozen).map_err(cannot("write cgroup.freeze"))?;
    wait_for(outer, if frozen { "frozen 1" } else { "frozen 0" }, "freezing or thawing")
}

pub(crate) fn is_frozen(outer: BorrowedFd<'_>) -> bool {
    read(outer, "cgroup.events").is_some_and(|events| events.lines().any(|line| line == "frozen 1"))
}

/// A file of a cgroup.
pub(crate) fn read(cgroup: BorrowedFd<'_>, name: &str) -> Option<String> {
    use std::os::fd::AsRawFd as _;
    fs::read_to_string(format!("/proc/self/fd/{}/{name}", cgroup.as_raw_fd())).ok()
}

/// Waits until cgroup.events has a line. The kernel wakes whoever polls it.
fn wait_for(outer: BorrowedFd<'_>, line: &str, what: &str) -> Result<(), Error> {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::FileExt as _;
    let path = format!("/proc/self/fd/{}/cgroup.events", outer.as_raw_fd());
    let events = fs::File::open(path).map_err(cannot("open cgroup.events"))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut buffer = [0_u8; 256];
        let count = events.read_at(&mut buffer, 0).map_err(cannot("read cgroup.events"))?;
        if String::from_utf8_lossy(&buffer[..count]).lines().any(|found| found == line) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let remedy = "a process may be waiting for a disk; try again";
            return Err(wrong(format!("the {what} took longer than {} s", PATIENCE.as_secs()), remedy));
        }
        // Short, since the change may have come between the reading and the call.
        let mut polled = [PollFd::new(&events, PollFlags::PRI)];
        let _ = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 }));
    }
}

/// Numbers of every process of a container.
pub(crate) fn processes(outer: BorrowedFd<'_>) -> Vec<u32> {
    use std::os::fd::AsRawFd as _;
    let mut found = Vec::new();
    below(Path::new(&format!("/proc/self/fd/{}", outer.as_raw_fd())), NESTING, &mut found);
    found.sort_unstable();
    found
}

fn below(cgroup: &Path, depth: u32, found: &mut Vec<u32>) {
    let Some(depth) = depth.checked_sub(1) else { return };
    let all = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    found.extend(all.lines().filter_map(|line| line.parse::<u32>().ok()).take(PROCESSES.saturating_sub(found.len())));
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below(&entry.path(), depth, found);
        }
    }
}
