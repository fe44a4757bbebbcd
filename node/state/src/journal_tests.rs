//! The journal's promises: what was appended is read again whatever is cut; what failed is not.

use std::collections::BTreeMap;

use byre_plan::{LaunchRequest, Name, Namespaces, Process, Program, Resources, Root, Seccomp, User};
use byre_protocol::definition::{Definition, Kind, LogPolicy, Readiness, Restart, Stop};
use byre_protocol::status::Moment;
use proptest::prelude::*;

use super::*;

/// A record whose size depends on `size` and whose content on `mark`.
pub(crate) fn workload(id: u64, mark: u64, size: usize) -> WorkloadRecord {
    let process = Process {
        program: Program::Path,
        args: vec!["x".repeat(size)],
        env: vec![],
        cwd: "/".to_owned(),
        user: User::default(),
        terminal: None,
        capabilities: byre_plan::Capabilities::default(),
        rlimits: vec![],
        no_new_privileges: true,
        oom_score_adj: None,
        scheduling: byre_plan::Scheduling::default(),
        labels: byre_plan::Labels::default(),
    };
    let launch = LaunchRequest {
        process,
        root: Root::Host,
        namespaces: Namespaces::default(),
        mounts: vec![],
        hostname: None,
        resources: Resources::default(),
        devices: vec![],
        sysctls: vec![],
        masked_paths: vec![],
        read_only_paths: vec![],
        seccomp: Seccomp::None,
        landlock: vec![],
        nodes: Vec::new(),
        kernel: byre_plan::KernelSettings::default(),
    };
    let definition = Definition {
        name: Name::try_from(format!("w{id}")).unwrap(),
        kind: Kind::Container,
        launch,
        needs: vec![],
        after: vec![],
        restart: Restart::default(),
        readiness: Readiness::default(),
        stop: Stop::default(),
        log: LogPolicy::default(),
        grants: vec![],
        labels: vec![],
        open_stdin: false,
        remove_on_exit: false,
        shutdown_priority: 0,
        binds_to: Vec::new(),
        deadline_ms: 0,
        run_limit_ms: 0,
        startup: None,
        liveness: None,
        pod: None,
        network: None,
        schedule: None,
        group: None,
    };
    WorkloadRecord {
        id: WorkloadId(id),
        definition,
        id_base: None,
        wanted: byre_protocol::control::Wanted::Up,
        created: Moment { boot_ms: mark, wall_ms: mark },
        last_run: None,
    }
}

/// A directory in memory where there is one: thousands of syncs follow, and no test here cuts the power.
pub(crate) fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Workload to the mark of its newest record.
type Model = BTreeMap<WorkloadId, u64>;

fn apply(model: &mut Model, change: &Change) {
    match change {
        Change::Put(record) => drop(model.insert(record.id, record.created.boot_ms)),
        Change::Remove(id) => drop(model.remove(id)),
    }
}

fn content(journal: &Journal) -> Model {
    let read = |id| (id, journal.read(id).unwrap().unwrap().created.boot_ms);
    journal.ids().into_iter().map(read).collect()
}

fn open(directory: &Path) -> (Journal, Option<String>) {
    let Opened { journal, report } = Journal::open(directory).unwrap();
    (journal, report)
}

fn batches() -> impl Strategy<Value = Vec<Vec<(u64, bool, usize)>>> {
    let change = (0_u64..6, proptest::bool::weighted(0.7), 0_usize..40);
    prop::collection::vec(prop::collection::vec(change, 1..4), 1..8)
}

fn changes(batches: Vec<Vec<(u64, bool, usize)>>) -> Vec<Vec<Change>> {
    let mut mark = 0;
    let mut change = |(id, put, size): (u64, bool, usize)| {
        mark += 1;
        if put { Change::Put(Box::new(workload(id, mark, size))) } else { Change::Remove(WorkloadId(id)) }
    };
    batches.into_iter().map(|batch| batch.into_iter().map(&mut change).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn a_cut_at_any_byte_loses_nothing_that_was_acknowledged(batches in batches(), zeros in 0_usize..20) {
        let directory = scratch();
        let (mut journal, _) = open(directory.path());
        let mut model = Model::new();
        // Every state after a single change, with the length at which it is in the file, and whether it was acknowledged.
        let mut states = vec![(journal.end, model.clone(), true)];
        for batch in changes(batches) {
            let mut length = journal.end;
            for change in &batch {
                apply(&mut model, change);
                length += record::encode(change).unwrap().len() as u64;
                states.push((length, model.clone(), false));
            }
            journal.append(&batch).unwrap();
            states.last_mut().unwrap().2 = true;
        }
        let whole = std::fs::read(directory.path().join(NAME)).unwrap();
        for cut in MAGIC.len()..=whole.len() {
            let crashed = scratch();
            let mut bytes = whole[..cut].to_vec();
            bytes.resize(cut + zeros, 0);
            // A record may itself end in zeros, so the added ones can complete it.
            let intact = |length: u64| bytes.starts_with(&whole[..usize::try_from(length).unwrap()]);
            let expected = states.iter().rev().find(|(length, ..)| intact(*length)).unwrap();
            let acknowledged = states.iter().rev().find(|(length, _, sure)| *sure && *length <= cut as u64).unwrap();
            prop_assert!(acknowledged.0 <= expected.0);
            std::fs::write(crashed.path().join(NAME), &bytes).unwrap();
            let (mut again, _) = open(crashed.path());
            let found = content(&again);
            prop_assert_eq!(&found, &expected.1, "cut at {}", cut);
            // And it can be written on.
            again.append(&[Change::Put(Box::new(workload(99, 1, 3)))]).unwrap();
            let (last, report) = open(crashed.path());
            prop_assert!(report.is_none());
            prop_assert_eq!(content(&last).len(), found.len() + 1);
        }
    }

    #[test]
    fn a_rotten_byte_keeps_what_lies_before_it_and_the_damaged_file(batches in batches(), place in any::<prop::sample::Index>()) {
        let directory = scratch();
        let (mut journal, _) = open(directory.path());
        let mut model = Model::new();
        let mut states = vec![(0, model.clone())];
        for change in changes(batches).into_iter().flatten() {
            apply(&mut model, &change);
            journal.append(&[change]).unwrap();
            states.push((journal.end, model.clone()));
        }
        let path = directory.path().join(NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        let place = place.index(bytes.len());
        bytes[place] ^= 0x41;
        std::fs::write(&path, &bytes).unwrap();
        let (again, report) = open(directory.path());
        let expected = states.iter().rev().find(|(length, _)| *length <= place as u64).unwrap();
        prop_assert_eq!(content(&again), expected.1.clone());
        let report = report.unwrap();
        if report.contains("damaged") {
            let aside = directory.path().join(format!("{DAMAGED_PREFIX}0"));
            prop_assert_eq!(std::fs::read(aside).unwrap(), bytes);
        }
        let (_, second) = open(directory.path());
        prop_assert!(second.is_none());
    }
}

#[test]
fn compaction_keeps_the_newest_records_and_shrinks_the_file() {
    let directory = scratch();
    let (mut journal, _) = open(directory.path());
    for mark in 0..200 {
        journal.append(&[Change::Put(Box::new(workload(mark % 5, mark, 1000)))]).unwrap();
    }
    let before = journal.end;
    let expected = content(&journal);
    assert!(journal.compact_if_worthwhile().unwrap());
    assert!(journal.end < before / 10);
    assert_eq!(content(&journal), expected);
    journal.append(&[Change::Remove(WorkloadId(0))]).unwrap();
    drop(journal);
    let (again, report) = open(directory.path());
    assert!(report.is_none());
    assert_eq!(again.ids().len(), 4);
}

#[test]
fn an_interrupted_compaction_changes_nothing() {
    let directory = scratch();
    let (mut journal, _) = open(directory.path());
    journal.append(&[Change::Put(Box::new(workload(1, 1, 10)))]).unwrap();
    std::fs::write(directory.path().join(NEW_NAME), b"half of a new jour").unwrap();
    let (again, report) = open(directory.path());
    assert!(report.is_none());
    assert_eq!(content(&again), content(&journal));
    assert!(!directory.path().join(NEW_NAME).exists());
}

#[test]
fn what_did_not_fit_is_not_read_again() {
    let directory = scratch();
    let (mut journal, _) = open(directory.path());
    journal.append(&[Change::Put(Box::new(workload(1, 1, 10)))]).unwrap();
    for room in 0..200 {
        journal.fault = Fault::Full(room);
        let error = journal.append(&[Change::Put(Box::new(workload(2, 2, 200)))]).unwrap_err();
        assert!(error.to_string().contains("state partition is full"), "{error}");
        let (again, report) = open(directory.path());
        assert_eq!((again.ids(), report), (vec![WorkloadId(1)], None));
    }
    journal.fault = Fault::None;
    journal.append(&[Change::Put(Box::new(workload(2, 2, 200)))]).unwrap();
    assert_eq!(open(directory.path()).0.ids().len(), 2);
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_before_a_rewrite() {
    let directory = scratch();
    let (mut journal, _) = open(directory.path());
    journal.append(&[Change::Put(Box::new(workload(1, 1, 10)))]).unwrap();
    journal.fault = Fault::Sync;
    assert!(journal.append(&[Change::Put(Box::new(workload(2, 2, 10)))]).is_err());
    assert!(journal.append(&[Change::Put(Box::new(workload(3, 3, 10)))]).is_err());
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path.join(NAME)).unwrap());
    let before = inode(directory.path());
    journal.fault = Fault::None;
    journal.append(&[Change::Put(Box::new(workload(4, 4, 10)))]).unwrap();
    assert_ne!(before, inode(directory.path()));
    assert_eq!(open(directory.path()).0.ids(), vec![WorkloadId(1), WorkloadId(4)]);
}

#[test]
fn only_a_few_damaged_files_are_kept() {
    let directory = scratch();
    for _ in 0..10 {
        std::fs::write(directory.path().join(NAME), b"not a journal").unwrap();
        assert!(open(directory.path()).1.unwrap().contains("damaged"));
    }
    let aside = std::fs::read_dir(directory.path()).unwrap().count() - 1;
    assert_eq!(aside, DAMAGED_KEPT);
}
