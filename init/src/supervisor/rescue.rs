//! PID 1 begins anew after a crash, and workloads go on.
//!
//! What the program before knew is gone but for three things: the index of its descriptors, one record per workload in /run, and the
//! cgroup tree. From these the tables are filled; `byre_core` decides what follows ([`byre_core::Rescued`]). Services with a control
//! channel start again, because what was said on it is lost. The second crash within a minute is followed by an ordered reboot, and
//! the boot does not count as healthy.
//!
//! Nothing here is needed while all is well, but for the records, which are written before anything is done about a change.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;

use byre_core::{Alive, Core, Event, Known, Rescued, Stray, Subject, UNKNOWN};
use byre_plan::{Name, WorkloadId};
use byre_protocol::control::{ShutdownAction, WORKLOADS};
use byre_protocol::definition::Kind as WorkloadKind;
use byre_protocol::pod::NAMESPACES;
use rustix::event::epoll::EventFlags;
use rustix::fs::Mode;
use rustix::io::Errno;

use super::Supervisor;
use super::handoff::ResumeError;
use super::inherited::{Inherited, Kind};
use super::kept::{Input, KeptRun, Pipe, Watched};
use super::launches::Owner;
use super::setup;
use super::sources::Source;
use super::watchdog::Watchdog;
use crate::crash::TOGETHER_MS;
use crate::index::{ENTRIES, Index, Listed, Role, Use};
use crate::sys;

/// One file for each workload, named by its identity.
const RECORDS: &str = "/run/byre/records";
/// Says to the task that would call this boot healthy that it is not.
pub(crate) const UNHEALTHY: &str = "/run/byre/unhealthy";
/// Files and cgroups looked at in a directory that has one for each workload.
const IN_A_DIRECTORY: usize = WORKLOADS * 2;

/// What was last written of each workload: the core's mark of it.
pub(crate) type Marks = BTreeMap<WorkloadId, u64>;

impl Supervisor {
    /// Writes the records of workloads that have changed. Before anything is done about the change, so that the kernel never has more
    /// than the records say. /run is memory; this waits for nobody.
    pub(super) fn keep_records(&mut self) {
        let mut changed = Vec::new();
        for workload in self.core.workloads() {
            let mark = workload.mark();
            if self.marks.get(&workload.id()) != Some(&mark) {
                changed.push((workload.id(), mark));
            }
        }
        for (id, mark) in changed {
            let written = self.core.record_of(id).map_err(std::io::Error::other).and_then(|record| write(id, &record));
            if let Err(error) = written {
                self.say(&format!("record of {id}: {error}; a crash of PID 1 would lose it"));
            }
            self.marks.insert(id, mark);
        }
        if self.marks.len() > self.core.workloads().count() {
            let core = &self.core;
            self.marks.retain(|id, _| {
                let known = core.workload(*id).is_some();
                if !known {
                    let _ = rustix::fs::unlink(format!("{RECORDS}/{id}"));
                }
                known
            });
        }
        if let (Some(action), Some((index, _))) = (self.core.ending(), Index::own()) {
            index.header.ending.store(ending_code(action), Ordering::SeqCst);
        }
    }
}

fn ending_code(action: ShutdownAction) -> u32 {
    match action {
        ShutdownAction::PowerOff => 1,
        ShutdownAction::Reboot => 2,
    }
}

/// Whole or not at all: a crash in between leaves the record from before.
fn write(id: WorkloadId, record: &[u8]) -> std::io::Result<()> {
    let new = format!("{RECORDS}/.new");
    std::fs::write(&new, record)?;
    std::fs::rename(&new, format!("{RECORDS}/{id}"))
}

/// Makes the directory of the records.
pub(super) fn make_directory() -> Result<(), Errno> {
    match rustix::fs::mkdir(RECORDS, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn names_in(directory: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).take(IN_A_DIRECTORY).collect()
}

/// Every record that can be read, with what of it is needed here.
fn read_records() -> BTreeMap<WorkloadId, (Known, Vec<u8>)> {
    let mut records = BTreeMap::new();
    for name in names_in(RECORDS) {
        let Ok(record) = std::fs::read(format!("{RECORDS}/{name}")) else { continue };
        match Core::known_in(&record) {
            Ok(known) if known.id.to_string() == name => {
                records.insert(known.id, (known, record));
            }
            // What it spoke of is adopted, if it lives.
            Ok(_) | Err(_) => {}
        }
    }
    records
}

/// Takes over from a program that crashed: its index lies in this descriptor.
pub(super) fn rescue(number: RawFd) -> Result<Supervisor, ResumeError> {
    let mut inherited = Inherited::all()?;
    let memory = inherited.take(number, Kind::File)?;
    let failed = |errno| ResumeError::File { what: "the index of descriptors", errno };
    let index = Index::open(&memory).map_err(failed)?;
    let _ = rustix::thread::set_name(c"init");
    let (sources, environment) = setup::surroundings(Some(index), None)?;
    let policy = setup::services_file()?.policy;
    let mut supervisor = Supervisor::new(Core::new(), environment, sources, Watchdog::of_parts(None, 0));
    let records = read_records();
    let mut finds = Finds { lost: 0, ..Finds::default() };
    for number in (0..).take(ENTRIES) {
        let Some(is) = index.used(number) else { continue };
        if finds.take(&mut inherited, number, is).is_err() {
            finds.lost = finds.lost.saturating_add(1);
        }
    }
    inherited.close_rest();
    let lost = finds.lost;
    // Launches under way have lost their report; what they were to become begins again.
    let _ = byre_launch::cgroup::kill(supervisor.environment.launch_cgroup.as_fd());
    let known: BTreeMap<WorkloadId, &Known> = records.iter().map(|(id, (known, _))| (*id, known)).collect();
    let alive = supervisor.place(finds, &known);
    let strays = supervisor.strays(&known);
    let crashes = index.header.crashes.load(Ordering::SeqCst);
    let ending = match index.header.ending.load(Ordering::SeqCst) {
        1 => Some(ShutdownAction::PowerOff),
        2 => Some(ShutdownAction::Reboot),
        _ => (crashes > 1).then_some(ShutdownAction::Reboot),
    };
    setup::listen_to_devices(&mut supervisor)?;
    sys::unblock_signals();
    let first = alive.values().filter(|alive| matches!(alive, Alive::Process { .. })).count();
    let count = records.len();
    supervisor.say(&format!("PID 1 is back: {first} of {count} workloads run, {lost} descriptors lost"));
    if crashes > 1 {
        let _ = std::fs::write(UNHEALTHY, "PID 1 crashed again within a minute\n");
        let seconds = TOGETHER_MS / 1000;
        supervisor.say(&format!("PID 1 has crashed {crashes} times, each within {seconds} s of the one before"));
    }
    let records = records.into_values().map(|(_, record)| record).collect();
    let rescued = Rescued { policy, records, alive, strays, ending };
    supervisor.queue.push_back(Event::Rescued(Box::new(rescued)));
    supervisor.drain_queue();
    supervisor.catch_up();
    Ok(supervisor)
}

/// Both ends of a pipe, as far as they were found.
#[derive(Default)]
struct Ends {
    reader: Option<Listed>,
    writer: Option<Listed>,
}

/// What the index yields, by workload.
#[derive(Default)]
struct Finds {
    stdouts: BTreeMap<WorkloadId, Ends>,
    stderrs: BTreeMap<WorkloadId, Ends>,
    stdins: BTreeMap<WorkloadId, Ends>,
    terminals: BTreeMap<WorkloadId, Listed>,
    notifies: BTreeMap<WorkloadId, Listed>,
    /// With the run.
    processes: BTreeMap<WorkloadId, (u64, Listed)>,
    /// With the grant.
    listeners: Vec<(WorkloadId, u64, Listed)>,
    watchdog: Option<OwnedFd>,
    lost: usize,
}

impl Finds {
    /// Takes a descriptor for what the index says it is. One that is not is dropped: its workload has to do without it.
    fn take(&mut self, inherited: &mut Inherited, number: RawFd, is: Use) -> Result<(), ResumeError> {
        let id = WorkloadId(is.id);
        let mut take = |kind| inherited.take(number, kind).map(|fd| Listed::new(fd, is));
        match is.role {
            Role::StdoutReader => self.stdouts.entry(id).or_default().reader = Some(take(Kind::Pipe)?),
            Role::StdoutWriter => self.stdouts.entry(id).or_default().writer = Some(take(Kind::Pipe)?),
            Role::StderrReader => self.stderrs.entry(id).or_default().reader = Some(take(Kind::Pipe)?),
            Role::StderrWriter => self.stderrs.entry(id).or_default().writer = Some(take(Kind::Pipe)?),
            Role::StdinReader => self.stdins.entry(id).or_default().reader = Some(take(Kind::Pipe)?),
            Role::StdinWriter => self.stdins.entry(id).or_default().writer = Some(take(Kind::Pipe)?),
            Role::Terminal => {
                self.terminals.insert(id, take(Kind::Device)?);
            }
            Role::Notify => {
                self.notifies.insert(id, take(Kind::Socket)?);
            }
            Role::Process => {
                self.processes.insert(id, (is.number, take(Kind::Process)?));
            }
            Role::Listener => self.listeners.push((id, is.number, take(Kind::Socket)?)),
            Role::Watchdog => self.watchdog = Some(inherited.take(number, Kind::Device)?),
            Role::Exec => {
                // Whoever waits for it waits on a channel that is lost.
                let _ = sys::pidfd_send_signal(&take(Kind::Process)?, 9);
            }
            // Closed with what nobody takes.
            Role::Passing => {}
        }
        Ok(())
    }
}

impl Supervisor {
    /// Puts what was found where it belongs; returns what lives of each known workload.
    fn place(&mut self, finds: Finds, known: &BTreeMap<WorkloadId, &Known>) -> BTreeMap<WorkloadId, Alive> {
        let Finds {
            stdouts,
            stderrs,
            stdins,
            mut terminals,
            mut notifies,
            mut processes,
            listeners,
            watchdog,
            lost: _,
        } = finds;
        self.watchdog = Watchdog::of_parts(watchdog, 0);
        for (id, grant, fd) in listeners {
            let Some(definition) = known.get(&id).map(|known| &known.definition) else { continue };
            self.listeners.take(definition, grant, fd);
        }
        for (ends, is_stdout) in [(stdouts, true), (stderrs, false)] {
            for (id, ends) in ends {
                let (Some(reader), Some(writer), true) = (ends.reader, ends.writer, known.contains_key(&id)) else {
                    continue;
                };
                let kept = self.kept.entry(id).or_default();
                let output = if is_stdout { &mut kept.stdout } else { &mut kept.stderr };
                *output = Some(Pipe { reader, writer });
            }
        }
        for (id, Ends { reader, writer }) in stdins {
            if let (Some(reader), true) = (reader, known.contains_key(&id)) {
                self.kept.entry(id).or_default().stdin = Some(Input { reader, writer });
            }
        }
        let mut alive = BTreeMap::new();
        for (id, known) in known {
            let (process, notify) = (processes.remove(id), notifies.remove(id));
            let lives = self.place_run(known, process, notify);
            if matches!(lives, Alive::Process { .. }) {
                self.kept.entry(*id).or_default().terminal = terminals.remove(id);
            }
            alive.insert(*id, lives);
        }
        alive
    }

    /// What lives of one workload, and the tables for it. An empty cgroup is removed: its run is over.
    fn place_run(&mut self, known: &Known, process: Option<(u64, Listed)>, notify: Option<Listed>) -> Alive {
        let (id, run) = (known.id, known.run);
        let parent =
            if known.built_in { &self.environment.services_cgroup } else { &self.environment.workloads_cgroup };
        let process = process.filter(|(number, _)| *number == run).map(|(_, fd)| fd);
        let Ok((cgroup, leaf)) = byre_launch::cgroup::open(parent.as_fd(), &known.cgroup_name) else {
            return Alive::Nothing;
        };
        let populated = byre_launch::cgroup::populated(cgroup.as_fd()).unwrap_or(true);
        let is_bound = known.definition.kind == WorkloadKind::Pod
            && byre_launch::are_bound(&format!("{NAMESPACES}/{}", known.definition.name));
        if process.is_none() && !populated && !is_bound {
            let _ = byre_launch::cgroup::remove(parent.as_fd(), &known.cgroup_name);
            return Alive::Nothing;
        }
        let subject = Subject::Workload { id, run };
        let pid = process.as_ref().and_then(pid_of).unwrap_or(0);
        let mut watch = |fd: Option<Listed>, source, flags| {
            let fd = fd?;
            let token = self.sources.add(fd.as_fd(), source, flags).ok()?;
            Some(Watched { fd, token })
        };
        let process = watch(process, Source::Process(subject), EventFlags::IN);
        let notify = watch(notify, Source::Notify(id), EventFlags::IN);
        let lives = if process.is_some() || is_bound { Alive::Process { run } } else { Alive::Others };
        if process.is_some() {
            self.processes.insert(pid, Owner::Main(subject));
        }
        let run = KeptRun {
            number: run,
            cgroup,
            leaf,
            report: None,
            process,
            pid,
            notify,
            channel: None,
            events: None,
            // Of an adopted one nothing tells the end but its cgroup.
            ending: known.adopted,
        };
        self.kept.entry(id).or_default().run = Some(run);
        if known.adopted {
            self.watch_cgroup(id);
        }
        lives
    }

    /// Cgroups that live and that no record speaks of. Empty ones are removed.
    fn strays(&mut self, known: &BTreeMap<WorkloadId, &Known>) -> Vec<Stray> {
        let mut strays = Vec::new();
        for built_in in [true, false] {
            let tree = if built_in { "/sys/fs/cgroup/services" } else { "/sys/fs/cgroup/workloads" };
            for name in names_in(tree) {
                let is_known = known.values().any(|known| known.built_in == built_in && known.cgroup_name == name);
                let parent =
                    if built_in { &self.environment.services_cgroup } else { &self.environment.workloads_cgroup };
                // What is no workload's cgroup (a file of the kernel's) has no leaf.
                let (false, Ok((cgroup, leaf))) = (is_known, byre_launch::cgroup::open(parent.as_fd(), &name)) else {
                    continue;
                };
                if !byre_launch::cgroup::populated(cgroup.as_fd()).unwrap_or(true) {
                    let _ = byre_launch::cgroup::remove(parent.as_fd(), &name);
                    continue;
                }
                let id = WorkloadId(setup::random());
                let Ok(name) = Name::try_from(format!("{UNKNOWN}{name}").as_str()) else { continue };
                let run = KeptRun {
                    number: 1,
                    cgroup,
                    leaf,
                    report: None,
                    process: None,
                    pid: 0,
                    notify: None,
                    channel: None,
                    events: None,
                    ending: true,
                };
                self.kept.entry(id).or_default().run = Some(run);
                self.watch_cgroup(id);
                strays.push(Stray { id, name, built_in });
            }
        }
        strays
    }
}

/// The process of a pidfd, as its /proc/self/fdinfo says (proc(5)).
fn pid_of(process: &Listed) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_fd().as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|pid| pid.trim().parse().ok())
}
