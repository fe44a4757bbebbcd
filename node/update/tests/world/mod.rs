//! A repository with releases, a server that may misbehave, and an updater whose slot is three files.
#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod server;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use byre_boots::trial::{Held, Outcome, Trial, Trials};
use byre_protocol::control::Allow;
use byre_release::{Facts, ReleaseKeys, Statement};
use byre_repository::{Artefact, KeyFolder, Lifetimes, NewRelease, Repository, Role};
use byre_update::engine::{Engine, Init, Paths, Patience, Running};
use byre_update::error::UpdateError;
use byre_update::http::{Client, Waits};
use byre_update::journal::{Journal, Stage};
use byre_update::slot::Slot;
use sha2::{Digest as _, Sha256};

use server::Server;

/// Blocks of a release's root: more than one hash block vouches for, and several pieces of the writer.
pub(crate) const ROOT_BLOCKS: u64 = 700;
/// Bytes of its kernel image: not a whole number of anything.
pub(crate) const UKI_BYTES: usize = 5_000_003;
/// Room of each partition.
const ROOM_BYTES: u64 = 64 << 20;

/// What PID 1 was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    Arm(Vec<u8>, Allow),
    RollBack,
    Disarm,
    Reboot,
}

/// PID 1's side of the interface: says yes, unless it is told to refuse.
#[derive(Clone, Default)]
pub(crate) struct Pid1 {
    pub(crate) asked: Arc<Mutex<Vec<Asked>>>,
    pub(crate) refusal: Arc<Mutex<Option<String>>>,
}

impl Pid1 {
    fn answer(&self, what: Asked) -> Result<(), String> {
        if let Some(refusal) = self.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        self.asked.lock().unwrap().push(what);
        Ok(())
    }
}

impl Init for Pid1 {
    fn arm(&mut self, statement: &[u8], allow: Allow) -> Result<(), String> {
        self.answer(Asked::Arm(statement.to_vec(), allow))
    }
    fn roll_back(&mut self) -> Result<(), String> {
        self.answer(Asked::RollBack)
    }
    fn disarm(&mut self) -> Result<(), String> {
        self.answer(Asked::Disarm)
    }
    fn reboot(&mut self) -> Result<(), String> {
        self.answer(Asked::Reboot)
    }
}

/// A release's bytes.
pub(crate) struct Release {
    pub(crate) statement: Statement,
    pub(crate) signed: [u8; 512],
    pub(crate) root: Vec<u8>,
    pub(crate) verity: Vec<u8>,
    pub(crate) uki: Vec<u8>,
}

/// Bytes that no two releases share, and no two blocks of one.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) keys: KeyFolder,
    pub(crate) server: Server,
    pub(crate) pid1: Pid1,
    pub(crate) waits: Waits,
    pub(crate) patience: Patience,
    pub(crate) uki_bytes: usize,
}

impl World {
    /// Keys, an empty repository, a server, and a node that runs release 1 and is configured.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = KeyFolder::open(&folder.path().join("keys")).unwrap();
        for role in Role::ALL {
            keys.add(role).unwrap();
        }
        keys.write_release_keys().unwrap();
        for directory in ["repository", "state", "slot"] {
            std::fs::create_dir(folder.path().join(directory)).unwrap();
        }
        let server = Server::start(&folder.path().join("repository"));
        // Longer than a busy machine takes for anything; where something must stall, `impatient` is the case's word.
        let long = Duration::from_secs(60);
        let waits = Waits { connect: long, answer: long, stall: long };
        let patience = Patience { tries: 4, pause: Duration::from_millis(2) };
        let world = Self { folder, keys, server, pid1: Pid1::default(), waits, patience, uki_bytes: UKI_BYTES };
        let (_, root) = world.repository().write_root(&[]).unwrap();
        std::fs::write(world.keys.root_file(), root).unwrap();
        for part in ["root", "verity", "uki"] {
            File::create(world.slot_file(part)).unwrap().set_len(ROOM_BYTES).unwrap();
        }
        for mark in ["blessed", "time"] {
            std::fs::write(world.path(mark), "").unwrap();
        }
        world.configure("stable");
        std::fs::write(world.path("boot_id"), "first boot\n").unwrap();
        world
    }

    /// For cases in which the server stalls: a limit that they wait for.
    pub(crate) fn impatient() -> Self {
        let stall = Duration::from_secs(1);
        let mut world = Self::new();
        world.waits = Waits { stall, ..world.waits };
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn slot_file(&self, part: &str) -> PathBuf {
        self.path("slot").join(part)
    }

    pub(crate) fn configure(&self, channel: &str) {
        let update = serde_json::json!({"repository": self.server.url(), "channel": channel});
        std::fs::write(self.path("update.json"), update.to_string()).unwrap();
    }

    pub(crate) fn repository(&self) -> Repository {
        self.repository_at(byre_tuf::now())
    }

    pub(crate) fn repository_at(&self, now: i64) -> Repository {
        let folder = self.path("repository");
        Repository::open(&folder, std::slice::from_ref(&self.keys), Lifetimes::default(), now).unwrap()
    }

    pub(crate) fn release(&self, install: u64) -> Release {
        self.release_with(install, 0)
    }

    /// A release with its own bytes.
    pub(crate) fn release_with(&self, install: u64, minimum_install: u64) -> Release {
        let root = noise(install, usize::try_from(ROOT_BLOCKS).unwrap() * 4096);
        let tree = byre_verity::build(&mut root.as_slice(), ROOT_BLOCKS).unwrap();
        let uki = noise(install + 1000, self.uki_bytes);
        let statement = Statement {
            version: format!("1.{install}").parse().unwrap(),
            install,
            minimum_install,
            build_time: 1_795_000_000,
            root_blocks: ROOT_BLOCKS,
            verity_bytes: tree.bytes.len() as u64,
            uki_bytes: uki.len() as u64,
            root_hash: tree.root_hash.0,
            uki_sha256: Sha256::digest(&uki).into(),
        };
        let signed = statement.sign(&self.keys.load(Role::Release).unwrap()[0]).unwrap();
        Release { statement, signed, root, verity: tree.bytes, uki }
    }

    pub(crate) fn publish(&self, release: &Release) {
        self.publish_at(release, byre_tuf::now());
    }

    pub(crate) fn publish_at(&self, release: &Release, now: i64) {
        let parts = self.path("parts");
        std::fs::create_dir_all(&parts).unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = parts.join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let paths = [
            (Artefact::Verity, file("verity", &release.verity)),
            (Artefact::Root, file("root", &release.root)),
            (Artefact::Uki, file("uki", &release.uki)),
            (Artefact::Sbom, file("sbom", b"{}")),
        ];
        let files = paths.each_ref().map(|(artefact, path)| (*artefact, path.as_path()));
        let (statement, signed_statement) = (&release.statement, release.signed);
        let new = NewRelease { statement, signed_statement, files, channel: "stable" };
        self.repository_at(now).publish(&new).unwrap();
    }

    pub(crate) fn publish_new(&self, install: u64) -> Release {
        let release = self.release(install);
        self.publish(&release);
        release
    }

    pub(crate) fn bundle(&self, install: u64) -> Vec<u8> {
        let mut bundle = Vec::new();
        byre_repository::write_bundle(&self.repository(), "stable", install, &mut bundle).unwrap();
        bundle
    }

    /// The updater of a node that runs this release; a new one is a restart of the process.
    pub(crate) fn updater_of(&self, install: u64, minimum_install: u64) -> Engine {
        let open = |part: &str| File::options().read(true).write(true).open(self.slot_file(part)).unwrap();
        let slot = Slot::new(open("root"), open("verity"), open("uki"));
        self.updater_with(install, minimum_install, slot)
    }

    pub(crate) fn updater_with(&self, install: u64, minimum_install: u64, slot: Slot) -> Engine {
        let running = Running {
            facts: Facts {
                version: format!("1.{install}").parse().unwrap(),
                install,
                minimum_install,
                build_time: 1_795_000_000,
            },
            keys: ReleaseKeys::parse(&std::fs::read(self.keys.release_keys_file()).unwrap()).unwrap(),
            tuf_root: std::fs::read(self.keys.root_file()).unwrap(),
        };
        let paths = Paths {
            state: self.path("state"),
            blessed: self.path("blessed"),
            trials: self.path("trials"),
            time: self.path("time"),
            settings: self.path("update.json"),
            boot_id: self.path("boot_id"),
        };
        let client = Client::new(Path::new("/nonexistent"), self.waits).unwrap();
        Engine::open(running, Some(slot), client, self.patience, paths, Box::new(self.pid1.clone())).unwrap()
    }

    pub(crate) fn updater(&self) -> Engine {
        self.updater_of(1, 0)
    }

    /// Whether the slot holds the release, byte by byte.
    pub(crate) fn slot_holds(&self, release: &Release) -> bool {
        let starts_with = |part: &str, bytes: &[u8]| {
            let mut found = vec![0; bytes.len()];
            File::open(self.slot_file(part)).unwrap().read_exact_at(&mut found, 0).unwrap();
            found == bytes
        };
        starts_with("root", &release.root) && starts_with("verity", &release.verity) && starts_with("uki", &release.uki)
    }

    pub(crate) fn slot_is_untouched(&self) -> bool {
        ["root", "verity", "uki"].iter().all(|part| {
            let bytes = std::fs::read(self.slot_file(part)).unwrap();
            bytes.iter().all(|byte| *byte == 0)
        })
    }

    /// The machine is off and on again.
    pub(crate) fn next_boot(&self) {
        let before = std::fs::read_to_string(self.path("boot_id")).unwrap();
        std::fs::write(self.path("boot_id"), format!("after {before}")).unwrap();
    }

    /// What the judge says of this release's trial.
    pub(crate) fn judged(&self, release: &Release, outcome: Outcome) {
        let mut trials = Trials::default();
        trials.trials.push(Trial {
            slot: 'b',
            version: release.statement.version.to_string(),
            root_hash: hex::encode(release.statement.root_hash),
            install: release.statement.install,
            armed_wall_s: 0,
            held: Held::default(),
            generation: 1,
            outcome,
        });
        std::fs::write(self.path("trials"), trials.encode()).unwrap();
    }

    /// As if the power, or this process, had gone after PID 1 was asked and before its answer was written down.
    pub(crate) fn cut_while_arming(&self) {
        let (mut journal, _) = Journal::open(&self.path("state")).unwrap();
        journal.change(|content| content.intent.as_mut().unwrap().stage = Stage::Arming).unwrap();
    }

    /// What PID 1 was asked last.
    pub(crate) fn asked_last(&self, count: usize) -> Vec<Asked> {
        let asked = self.pid1.asked.lock().unwrap();
        asked[asked.len() - count..].to_vec()
    }

    pub(crate) fn armed(&self) -> Vec<Vec<u8>> {
        let asked = self.pid1.asked.lock().unwrap();
        asked
            .iter()
            .filter_map(|asked| if let Asked::Arm(statement, _) = asked { Some(statement.clone()) } else { None })
            .collect()
    }
}

/// An ordinary update, as a command would do it.
pub(crate) fn apply(updater: &Engine) -> Result<String, UpdateError> {
    apply_with(updater, Allow::default())
}

pub(crate) fn apply_with(updater: &Engine, allow: Allow) -> Result<String, UpdateError> {
    let _job = updater.begin()?;
    updater.ended(updater.apply(allow, false))
}

/// Cases by name, run one after the other; a panic is a failed case. In the fast run only those that are not `full`.
pub(crate) struct Suite {
    name: &'static str,
    passed: Vec<String>,
    failed: Vec<String>,
    only: Option<String>,
}

impl Suite {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, passed: Vec::new(), failed: Vec::new(), only: std::env::var("BYRE_FAULT").ok() }
    }

    /// Whether everything is run, as `cargo xtask faults` does.
    pub(crate) fn is_full() -> bool {
        std::env::var_os("BYRE_FAULTS_REPORT").is_some()
    }

    pub(crate) fn case(&mut self, name: &str, run: impl FnOnce()) {
        if self.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            return;
        }
        // Each case has a world of its own, so nothing that a failed one left is looked at again.
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            Ok(()) => self.passed.push(name.to_owned()),
            Err(_) => {
                println!("FAILED {name}");
                self.failed.push(name.to_owned());
            }
        }
    }

    /// Says how it went; fails if a case did.
    pub(crate) fn end(self) {
        if let Some(path) = std::env::var_os("BYRE_FAULTS_REPORT") {
            let report = serde_json::json!({"suite": self.name, "passed": self.passed, "failed": self.failed});
            std::fs::write(path, report.to_string()).unwrap();
        }
        println!("{}: {} passed, {} failed", self.name, self.passed.len(), self.failed.len());
        assert!(self.failed.is_empty(), "{:?}", self.failed);
        assert!(!self.passed.is_empty(), "no case was run");
    }
}
