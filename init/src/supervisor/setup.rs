//! What PID 1 does once before its loop: the kernel's file systems, the cgroup tree, its own limits, signals, and the definitions.
//!
//! Nothing here touches a disk but the verified root.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use byre_core::{Boot, Core, Event};
use byre_plan::WorkloadId;
use byre_plan::seccomp::{self, Instruction};
use byre_protocol::definition::{Grant, ServicesFile};
use byre_protocol::frame;
use byre_protocol::pod::NAMESPACES;
use byre_protocol::status::Moment;
use nix::mount::MsFlags;
use nix::sys::resource::{Resource, setrlimit};
use rustix::event::epoll::EventFlags;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::time::ClockId;

use super::Supervisor;
use super::launches::{NOTIFY_DIRECTORY, SHARED_LAYERS};
use super::power::Buttons;
use super::sources::{Source, Sources};
use super::watchdog::Watchdog;
use crate::index::Index;
use crate::sys;
use crate::tasks::boot_disk::BootFacts;

/// PID 1 keeps up to ten descriptors for each of 2048 workloads.
const OPEN_FILES: u64 = 65_536;

/// Why the system cannot run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("{what}: {errno}")]
    Step { what: String, errno: Errno },
    #[error("{path}: {error}; the root is not whole", path = ServicesFile::PATH)]
    Services { error: frame::FrameError },
    #[error("the default seccomp profile does not compile: {0}")]
    Seccomp(String),
}

/// What stays the same while the system runs.
pub(crate) struct Environment {
    pub(super) services_cgroup: OwnedFd,
    pub(super) workloads_cgroup: OwnedFd,
    pub(super) launch_cgroup: OwnedFd,
    pub(super) helper_program: OwnedFd,
    pub(super) default_seccomp: Vec<Instruction>,
    pub(super) device_program: OwnedFd,
    pub(super) denied_devices: Vec<(u32, u32)>,
    pub(super) signal_pipe: OwnedFd,
    pub(super) signal_pipe_writer: OwnedFd,
    pub(super) reboot_signal: Arc<AtomicBool>,
    pub(super) power_off_signal: Arc<AtomicBool>,
    pub(super) uevents: Option<OwnedFd>,
    pub(super) buttons: Buttons,
}

/// What making anew is dear: cgroups whose controllers are switched on already, and a device program that the kernel has checked. A program
/// that follows another is handed them.
pub(crate) struct Surroundings {
    pub(super) services_cgroup: OwnedFd,
    pub(super) workloads_cgroup: OwnedFd,
    pub(super) launch_cgroup: OwnedFd,
    pub(super) device_program: OwnedFd,
    pub(super) denied_devices: Vec<(u32, u32)>,
}

/// Both clocks.
pub(crate) fn now() -> Moment {
    let milliseconds = |clock| {
        let time = rustix::time::clock_gettime(clock);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let below = u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000;
        seconds.saturating_mul(1000).saturating_add(below)
    };
    Moment { boot_ms: milliseconds(ClockId::Boottime), wall_ms: milliseconds(ClockId::Realtime) }
}

/// 64 random bits. The kernel's generator is ready long before the first call from a client.
pub(crate) fn random() -> u64 {
    let mut bytes = [0_u8; 8];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK) {
        Ok(8) => u64::from_ne_bytes(bytes),
        Ok(_) | Err(_) => {
            // Without entropy an identity need only be new, not secret.
            let moment = rustix::time::clock_gettime(ClockId::Monotonic);
            u64::from_ne_bytes(moment.tv_nsec.to_ne_bytes())
                ^ u64::from_ne_bytes(moment.tv_sec.to_ne_bytes()).rotate_left(32)
        }
    }
}

fn step<T>(what: &str, result: Result<T, Errno>) -> Result<T, SetupError> {
    result.map_err(|errno| SetupError::Step { what: what.to_owned(), errno })
}

/// Sets everything up and returns the supervisor, ready for its loop.
pub(crate) fn supervisor() -> Result<Supervisor, SetupError> {
    mount_kernel_file_systems();
    let (sources, environment) = surroundings(None, None)?;
    let watchdog = Watchdog::from_environment();
    let file = services_file()?;
    make_run_directories(&file);
    step(SHARED_LAYERS, share_mounts(SHARED_LAYERS, 0o700, c"mode=0700,size=1m"))?;
    step(NAMESPACES, share_mounts(NAMESPACES, 0o755, c"mode=0755,size=4m"))?;
    step("directory of records", super::rescue::make_directory())?;
    if let Err(error) = BootFacts::from_environment().leave() {
        crate::console::say(&error.to_string());
    }
    let services = file.services.into_iter().map(|definition| (WorkloadId(random()), definition)).collect();
    let mut queue = VecDeque::new();
    queue.push_back(Event::Boot(Box::new(Boot { policy: file.policy, services })));
    let mut supervisor = Supervisor { queue, ..Supervisor::new(Core::new(), environment, sources, watchdog) };
    listen_to_devices(&mut supervisor)?;
    // Children of the early stage may have ended before SIGCHLD had a handler.
    supervisor.reap();
    Ok(supervisor)
}

/// The kernel's device events, and the power buttons that there are already.
pub(crate) fn listen_to_devices(supervisor: &mut Supervisor) -> Result<(), SetupError> {
    if let Ok(socket) = sys::uevent_socket() {
        step("uevents", supervisor.sources.add(socket.as_fd(), Source::Uevents, EventFlags::IN))?;
        supervisor.environment.uevents = Some(socket);
    }
    for number in 0..4 {
        supervisor.open_button(number);
    }
    Ok(())
}

/// What every PID 1 of a boot makes for itself, the first one and those that follow it.
///
/// `crashed` is the index of a program that crashed, if this one follows it; `handed` what one that was replaced has handed over.
pub(crate) fn surroundings(
    crashed: Option<&Index>,
    handed: Option<Surroundings>,
) -> Result<(Sources, Environment), SetupError> {
    own_limits();
    step("marking PID 1's memory", byre_launch::mark_pid1())?;
    step("index of descriptors", Index::begin(crashed))?;
    step("crash handler", crate::crash::prepare())?;
    let mut sources = step("epoll", Sources::new())?;
    let surroundings = match handed {
        Some(handed) => handed,
        None => Surroundings::make()?,
    };
    let environment = environment(surroundings)?;
    step("signals", sources.add(environment.signal_pipe.as_fd(), Source::Signals, EventFlags::IN))?;
    Ok((sources, environment))
}

impl Surroundings {
    fn make() -> Result<Self, SetupError> {
        let root = open_directory("/sys/fs/cgroup")?;
        let make = |name: &str| {
            let path = format!("/sys/fs/cgroup/{name}");
            match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => open_directory(&path),
                Err(errno) => Err(SetupError::Step { what: path, errno }),
            }
        };
        make("init")?;
        let entered = std::fs::write("/sys/fs/cgroup/init/cgroup.procs", "0");
        step("entering cgroup init", entered.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        step("cgroup controllers", byre_launch::cgroup::enable_controllers(root.as_fd()))?;
        let (services_cgroup, workloads_cgroup, launch_cgroup) =
            (make("services")?, make("workloads")?, make("launch")?);
        for parent in [&services_cgroup, &workloads_cgroup] {
            step("cgroup controllers", byre_launch::cgroup::enable_controllers(parent.as_fd()))?;
        }
        let denied_devices = system_disk();
        let device_program = step("device program", byre_launch::load_default_device_program(&denied_devices))?;
        Ok(Self { services_cgroup, workloads_cgroup, launch_cgroup, device_program, denied_devices })
    }
}

fn environment(surroundings: Surroundings) -> Result<Environment, SetupError> {
    let Surroundings { services_cgroup, workloads_cgroup, launch_cgroup, device_program, denied_devices } =
        surroundings;
    let helper = rustix::fs::open("/usr/bin/byred", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let helper_program = step("/usr/bin/byred", helper)?;
    let default_seccomp =
        seccomp::compile(&seccomp::default_profile()).map_err(|error| SetupError::Seccomp(error.to_string()))?;
    let (signal_pipe, signal_pipe_writer, reboot_signal, power_off_signal) = signals()?;
    Ok(Environment {
        services_cgroup,
        workloads_cgroup,
        launch_cgroup,
        helper_program,
        default_seccomp,
        device_program,
        denied_devices,
        signal_pipe,
        signal_pipe_writer,
        reboot_signal,
        power_off_signal,
        uevents: None,
        buttons: Buttons::new(),
    })
}

type Signals = (OwnedFd, OwnedFd, Arc<AtomicBool>, Arc<AtomicBool>);

fn signals() -> Result<Signals, SetupError> {
    let flags = rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK;
    let (reader, writer) = step("signal pipe", rustix::pipe::pipe_with(flags))?;
    let (reboot, power_off) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let failed = |error: std::io::Error| SetupError::Step {
        what: "signal handlers".to_owned(),
        errno: Errno::from_io_error(&error).unwrap_or(Errno::INVAL),
    };
    let flags = [(libc::SIGINT, &reboot), (libc::SIGTERM, &power_off), (libc::SIGPWR, &power_off)];
    for (signal, flag) in flags {
        signal_hook::flag::register(signal, Arc::clone(flag)).map_err(failed)?;
    }
    for signal in [libc::SIGCHLD, libc::SIGINT, libc::SIGTERM, libc::SIGPWR] {
        let end = writer.try_clone().map_err(failed)?;
        signal_hook::low_level::pipe::register(signal, end).map_err(failed)?;
    }
    // Ctrl-Alt-Del becomes SIGINT instead of an instant reset.
    let _ = nix::sys::reboot::set_cad_enabled(false);
    Ok((reader, writer, reboot, power_off))
}

fn open_directory(path: &str) -> Result<OwnedFd, SetupError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    step(path, rustix::fs::open(path, flags, Mode::empty()))
}

/// Mounts what the early stage has not: it leaves /proc, /sys, /dev and /run; doing it again is harmless.
fn mount_kernel_file_systems() {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    let table: [(&str, &str, &str, MsFlags, &str); 10] = [
        ("proc", "/proc", "proc", quiet, "hidepid=0"),
        ("sysfs", "/sys", "sysfs", quiet, ""),
        ("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=0755"),
        ("tmpfs", "/run", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755,size=20%"),
        ("devpts", "/dev/pts", "devpts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666"),
        ("tmpfs", "/dev/shm", "tmpfs", quiet, "mode=1777,size=10%"),
        ("tmpfs", "/tmp", "tmpfs", quiet, "mode=1777,size=10%"),
        ("cgroup2", "/sys/fs/cgroup", "cgroup2", quiet, "nsdelegate,memory_recursiveprot"),
        ("securityfs", "/sys/kernel/security", "securityfs", quiet, ""),
        ("efivarfs", "/sys/firmware/efi/efivars", "efivarfs", quiet | MsFlags::MS_RDONLY, ""),
    ];
    for (source, target, kind, flags, data) in table {
        if is_mount_point(target) {
            continue;
        }
        match rustix::fs::mkdir(target, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(_) => {}
        }
        if let Err(errno) = nix::mount::mount(Some(source), target, Some(kind), flags, Some(data)) {
            // Not every machine has every one (efivarfs); what is needed is missed where it is used.
            if kind != "efivarfs" {
                crate::console::say(&format!("mount of {target}: {errno}"));
            }
        }
    }
}

/// Whether something is mounted exactly there.
fn is_mount_point(path: &str) -> bool {
    use rustix::fs::{AtFlags, CWD, StatxFlags};
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::statx(CWD, path, flags, StatxFlags::empty())
        .is_ok_and(|status| status.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT))
}

/// PID 1's own limits; children get those of their plan.
fn own_limits() {
    let _ = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES);
    // SIGKILL for want of memory never hits PID 1; reclaim must not make it wait either.
    if let Err(errno) = sys::lock_memory() {
        crate::console::say(&format!("memory is not locked: {errno}"));
    }
    let _ = std::env::set_current_dir("/");
}

pub(super) fn services_file() -> Result<ServicesFile, SetupError> {
    let bytes = std::fs::read(ServicesFile::PATH).map_err(|error| SetupError::Step {
        what: ServicesFile::PATH.to_owned(),
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    })?;
    frame::decode_file(&bytes).map_err(|error| SetupError::Services { error })
}

/// Directories in /run, which is memory; those on disks are made by the jobs that mount them.
fn make_run_directories(file: &ServicesFile) {
    for path in ["/run/byre", NOTIFY_DIRECTORY] {
        make_directory(path, 0o755, 0, 0);
    }
    for definition in &file.services {
        for grant in &definition.grants {
            if let Grant::Directory { path, mode, uid, gid } = grant
                && path.starts_with("/run/")
            {
                make_directory(path, *mode, *uid, *gid);
            }
        }
    }
}

/// A place for mounts whose unmounting reaches every copy of it, as services with a mount namespace of their own have.
fn share_mounts(path: &str, mode: u16, settings: &std::ffi::CStr) -> Result<(), Errno> {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    make_directory(path, mode, 0, 0);
    if !is_mount_point(path) {
        mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(settings))?;
    }
    mount_change(path, MountPropagationFlags::SHARED)
}

fn make_directory(path: &str, mode: u16, uid: u32, gid: u32) {
    let mode = Mode::from_raw_mode(u32::from(mode));
    let made = match rustix::fs::mkdir(path, mode) {
        Ok(()) | Err(Errno::EXIST) => rustix::fs::chown(path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .and_then(|()| rustix::fs::chmod(path, mode)),
        Err(errno) => Err(errno),
    };
    if let Err(errno) = made {
        crate::console::say(&format!("directory {path}: {errno}"));
    }
}

/// The whole disk that was booted, with its partitions: no container may open it, whatever its rules say.
fn system_disk() -> Vec<(u32, u32)> {
    // Device mapper and loop devices lie on it as well; they have no place in a container either.
    crate::tasks::boot_disk::device_numbers().unwrap_or_default()
}
