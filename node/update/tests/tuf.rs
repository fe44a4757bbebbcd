//! The cases of the conformance suite of The Update Framework, by its names, over a simulator of a repository.
//!
//! Each refresh reads what the last one left on disk, as a node does after a reboot. Not here: cases of delegations and of quoted names, because
//! a repository of ours delegates nothing and has flat names; and key types other than ed25519, which our tools do not make.

mod world;

use std::collections::{BTreeMap, HashMap};

use byre_release::SigningKey;
use byre_repository::{Role, new_root, sign};
use byre_tuf::{
    Expirations, Key, Meta, RoleKeys, Root, Snapshot, Target, Targets, Timestamp, key_id, now, timestamp_text,
};
use byre_update::http::Client;
use byre_update::metadata::{self, Memory, Metadata, MetadataError, Source};
use world::Suite;
use world::server::Server;

const ONLINE: [Role; 3] = [Role::Targets, Role::Snapshot, Role::Timestamp];

fn days(count: i64) -> String {
    timestamp_text(now() + 86_400 * count)
}

/// A repository whose every part can be bent, and a client of it.
struct Simulator {
    folder: tempfile::TempDir,
    server: Server,
    root: Root,
    timestamp: Timestamp,
    snapshot: Snapshot,
    targets: Targets,
    signers: HashMap<&'static str, Vec<SigningKey>>,
    roots: Vec<Vec<u8>>,
    trusted: Vec<u8>,
    with_hashes: bool,
    seeds: u8,
    artefacts: HashMap<String, Vec<u8>>,
}

impl Simulator {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("empty")).unwrap();
        let server = Server::start(&folder.path().join("empty"));
        let root = new_root(1, days(30), &[]).unwrap();
        let mut simulator = Self {
            folder,
            server,
            root,
            timestamp: Timestamp::new(1, days(30)),
            snapshot: Snapshot::new(1, days(30)),
            targets: Targets::new(1, days(30)),
            signers: HashMap::new(),
            roots: Vec::new(),
            trusted: Vec::new(),
            with_hashes: false,
            seeds: 0,
            artefacts: HashMap::new(),
        };
        for role in [Role::Root, Role::Targets, Role::Snapshot, Role::Timestamp] {
            simulator.add_key(role);
        }
        simulator.publish_root();
        simulator.trusted = simulator.roots[0].clone();
        simulator.snapshot.meta.insert("targets.json".to_owned(), Meta::plain(1));
        simulator.timestamp.meta.insert("snapshot.json".to_owned(), Meta::plain(1));
        simulator
    }

    fn new_key(&mut self) -> SigningKey {
        self.seeds += 1;
        SigningKey::from_seed(&[self.seeds; 32])
    }

    fn keys_of(&mut self, role: Role) -> &mut RoleKeys {
        let empty = || RoleKeys { keyids: Vec::new(), threshold: 1, extra: BTreeMap::new() };
        self.root.roles.entry(role.of_tuf().unwrap()).or_insert_with(empty)
    }

    fn trust(&mut self, role: Role, key: &SigningKey) {
        let key = Key::ed25519(&key.public_bytes());
        let id = key_id(&key);
        self.root.keys.insert(id.clone(), key);
        self.keys_of(role).keyids.push(id);
    }

    fn add_key(&mut self, role: Role) {
        let key = self.new_key();
        self.trust(role, &key);
        self.signers.entry(role.name()).or_default().push(key);
    }

    fn threshold(&mut self, role: Role, threshold: u64) {
        self.keys_of(role).threshold = threshold;
    }

    /// New keys in place of all old ones.
    fn rotate_keys(&mut self, role: Role) {
        let count = self.keys_of(role).keyids.len();
        self.keys_of(role).keyids.clear();
        self.signers.remove(role.name());
        for _ in 0..count {
            self.add_key(role);
        }
    }

    fn publish_root(&mut self) {
        self.roots.push(sign(&self.root, &self.signers["root"]).unwrap());
    }

    fn bump_root(&mut self) {
        self.root.version += 1;
        self.publish_root();
    }

    fn update_timestamp(&mut self) {
        let bytes = self.snapshot_bytes();
        let version = self.snapshot.version;
        let meta = if self.with_hashes { Meta::of(version, &bytes) } else { Meta::plain(version) };
        self.timestamp.meta.insert("snapshot.json".to_owned(), meta);
        self.timestamp.version += 1;
    }

    fn update_snapshot(&mut self) {
        let bytes = self.targets_bytes();
        let version = self.targets.version;
        let meta = if self.with_hashes { Meta::of(version, &bytes) } else { Meta::plain(version) };
        self.snapshot.meta.insert("targets.json".to_owned(), meta);
        self.snapshot.version += 1;
        self.update_timestamp();
    }

    fn snapshot_bytes(&self) -> Vec<u8> {
        sign(&self.snapshot, &self.signers["snapshot"]).unwrap()
    }

    fn targets_bytes(&self) -> Vec<u8> {
        sign(&self.targets, &self.signers["targets"]).unwrap()
    }

    fn add_artefact(&mut self, name: &str, bytes: &[u8]) {
        self.targets.targets.insert(name.to_owned(), Target::of(bytes));
        self.artefacts.insert(name.to_owned(), bytes.to_vec());
    }

    /// Puts everything as it is now on the server.
    fn serve(&self) {
        self.server.heal();
        let put = |name: String, bytes: Vec<u8>| self.server.replace(&format!("metadata/{name}"), Some(bytes));
        for (version, root) in (1..).zip(&self.roots) {
            put(format!("{version}.root.json"), root.clone());
        }
        put("timestamp.json".to_owned(), sign(&self.timestamp, &self.signers["timestamp"]).unwrap());
        let snapshot = self.timestamp.meta["snapshot.json"].version;
        put(format!("{snapshot}.snapshot.json"), self.snapshot_bytes());
        let targets = self.snapshot.meta["targets.json"].version;
        put(format!("{targets}.targets.json"), self.targets_bytes());
        for (name, target) in &self.targets.targets {
            let file = format!("targets/{}.{name}", target.sha256().unwrap());
            self.server.replace(&file, self.artefacts.get(name).cloned());
        }
    }

    fn refresh(&self) -> Result<Metadata, MetadataError> {
        self.serve();
        self.server.forget();
        self.load()
    }

    fn load(&self) -> Result<Metadata, MetadataError> {
        let client = Client::new(std::path::Path::new("/nonexistent"), byre_update::http::Waits::default()).unwrap();
        let base = self.server.url().parse().unwrap();
        let memory = Memory::below(self.folder.path());
        runtime().block_on(metadata::load(Source::Http(client, base), &self.trusted, &memory, Expirations::All))
    }

    fn refreshed(&self) {
        self.refresh().unwrap();
    }

    /// The version of a role that the client trusts; 0 for none.
    fn version(&self, role: &str) -> u64 {
        let path = Memory::below(self.folder.path()).kept.join(format!("{role}.json"));
        let Ok(bytes) = std::fs::read(path) else { return 0 };
        serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()["signed"]["version"].as_u64().unwrap()
    }

    fn download(&self, name: &str) -> Result<Option<Vec<u8>>, MetadataError> {
        let metadata = self.refresh()?;
        runtime().block_on(metadata.target(name, 4096))
    }

    fn requested(&self) -> Vec<String> {
        self.server.served().iter().map(|served| served.path.trim_start_matches("metadata/").to_owned()).collect()
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn basic(suite: &mut Suite) {
    suite.case("test_basic_init_and_refresh", || {
        let simulator = Simulator::new();
        simulator.refreshed();
        assert_eq!(simulator.requested(), ["timestamp.json", "1.snapshot.json", "1.targets.json"]);
        assert_eq!(["root", "timestamp", "snapshot", "targets"].map(|role| simulator.version(role)), [1; 4]);
    });
    suite.case("test_implicit_refresh", || {
        let simulator = Simulator::new();
        assert_eq!(simulator.download("nonexistent artifact").unwrap(), None);
        assert_eq!(simulator.version("targets"), 1);
    });
    suite.case("test_invalid_initial_root", || {
        let mut simulator = Simulator::new();
        simulator.trusted = String::from_utf8(simulator.trusted).unwrap().replace("\"version\"", "\"no\"").into_bytes();
        assert!(matches!(simulator.refresh(), Err(MetadataError::TrustedRoot(_))));
        assert!(simulator.requested().is_empty());
    });
    suite.case("test_unsigned_initial_root", || {
        let mut simulator = Simulator::new();
        simulator.trusted = sign(&simulator.root, &[SigningKey::from_seed(&[99; 32])]).unwrap();
        assert!(matches!(simulator.refresh(), Err(MetadataError::TrustedRoot(_))));
        assert!(simulator.requested().is_empty());
    });
    suite.case("test_timestamp_eq_versions_check", || {
        let mut simulator = Simulator::new();
        simulator.refreshed();
        simulator.timestamp.meta.insert("snapshot.json".to_owned(), Meta::plain(100));
        let _ = simulator.refresh();
        assert_eq!(simulator.version("snapshot"), 1);
    });
    suite.case("test_custom_fields", || {
        let mut simulator = Simulator::new();
        simulator.refreshed();
        simulator.root.extra.insert("custom-field".to_owned(), "value".into());
        simulator.keys_of(Role::Root).extra.insert("another-field".to_owned(), "value".into());
        simulator.bump_root();
        simulator.refreshed();
        assert_eq!(simulator.version("root"), 2);
    });
    suite.case("test_new_targets_hash_mismatch", || {
        let mut simulator = Simulator::new();
        simulator.refreshed();
        simulator.with_hashes = true;
        simulator.update_snapshot();
        simulator.refreshed();
        simulator.targets.version = 2;
        simulator.snapshot.meta.get_mut("targets.json").unwrap().version = 2;
        simulator.snapshot.version = 3;
        simulator.update_timestamp();
        assert!(matches!(simulator.refresh(), Err(MetadataError::Mixed(_))));
        assert_eq!(simulator.version("targets"), 1);
    });
    suite.case("test_new_targets_version_mismatch", || {
        let mut simulator = Simulator::new();
        simulator.refreshed();
        // What is remembered is what the snapshot names: nothing is fetched.
        simulator.targets.version = 2;
        simulator.refreshed();
        assert_eq!(simulator.version("targets"), 1);
        // A client that remembers nothing sees it.
        let mut simulator = Simulator::new();
        simulator.targets.version = 2;
        assert!(matches!(simulator.refresh(), Err(MetadataError::Mixed(_))));
        assert_eq!((simulator.version("snapshot"), simulator.version("targets")), (1, 0));
    });
}

fn expiration(suite: &mut Suite) {
    let expired = |result: Result<Metadata, MetadataError>, wanted: &str| {
        assert!(
            matches!(&result, Err(MetadataError::Expired(error)) if error.to_string().starts_with(wanted)),
            "{result:?}"
        );
    };
    suite.case("test_root_expired", || {
        let mut simulator = Simulator::new();
        simulator.refreshed();
        simulator.root.expires = days(-1);
        simulator.bump_root();
        simulator.targets.version = 2;
        simulator.update_snapshot();
        expired(simulator.refresh(), "root");
        assert_eq!((simulator.version("root"), simulator.version("timestamp")), (2, 1));
    });
    suite.case("test_timestamp_expired", || {
        let mut simulator = Simulator::new();
        simulator.refreshed();
        simulator.timestamp.expires = days(-5);
        simulator.update_timestamp();
        expired(simulator.refresh(), "timestamp");
        assert_eq!(simulator.version("timestamp"), 1);
    });
    suite.case("test_snapshot_expired", || {
        let mut simulator = Simulator::new();
        simulator.refreshed();
        simulator.snapshot.expires = days(-5);
        simulator.update_snapshot();
        expired(simulator.refresh(), "snapshot");
        assert_eq!((simulator.version("timestamp"), simulator.version("snapshot")), (2, 1));
    });
    suite.case("test_targets_expired", || {
        let mut simulator = Simulator::new();
        simulator.refreshed();
        simulator.targets.expires = days(-5);
        simulator.targets.version = 2;
        simulator.update_snapshot();
        expired(simulator.refresh(), "targets");
        assert_eq!(simulator.version("targets"), 1);
    });
    suite.case("test_expired_local_timestamp", || {
        let mut simulator = Simulator::new();
        // Good for as long as the first refresh takes.
        simulator.timestamp.expires = timestamp_text(now() + 3);
        simulator.refreshed();
        let until = now() + 4;
        while now() <= until {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        simulator.targets.version = 2;
        simulator.timestamp.expires = days(7);
        simulator.update_snapshot();
        simulator.refreshed();
        assert_eq!((simulator.version("targets"), simulator.version("timestamp")), (2, 2));
    });
}

#[expect(clippy::too_many_lines, reason = "a list of cases")]
fn rollback(suite: &mut Suite) {
    suite.case("test_new_timestamp_version_rollback", || {
        let mut simulator = Simulator::new();
        simulator.update_timestamp();
        simulator.refreshed();
        simulator.timestamp.version = 1;
        assert!(matches!(simulator.refresh(), Err(MetadataError::RolledBack(_))));
        assert_eq!(simulator.version("timestamp"), 2);
        assert_eq!(simulator.requested(), ["timestamp.json"]);
    });
    for (id, with_hashes) in [("basic", false), ("with hashes", true)] {
        suite.case(&format!("test_snapshot_rollback[{id}]"), || {
            let mut simulator = Simulator::new();
            simulator.with_hashes = with_hashes;
            simulator.update_snapshot();
            simulator.refreshed();
            simulator.snapshot.version = 1;
            simulator.update_timestamp();
            assert!(matches!(simulator.refresh(), Err(MetadataError::RolledBack(_))));
            assert_eq!((simulator.version("timestamp"), simulator.version("snapshot")), (2, 2));
        });
        suite.case(&format!("test_targets_rollback[{id}]"), || {
            let mut simulator = Simulator::new();
            simulator.with_hashes = with_hashes;
            simulator.targets.version = 3;
            simulator.update_snapshot();
            simulator.refreshed();
            simulator.targets.version = 1;
            simulator.update_snapshot();
            assert!(matches!(simulator.refresh(), Err(MetadataError::RolledBack(_))));
            assert_eq!(simulator.version("targets"), 3);
        });
    }
    suite.case("test_new_snapshot_version_mismatch", || {
        let mut simulator = Simulator::new();
        simulator.snapshot.version = 2;
        assert!(matches!(simulator.refresh(), Err(MetadataError::Mixed(_))));
        assert_eq!((simulator.version("timestamp"), simulator.version("snapshot")), (1, 0));
    });
    suite.case("test_new_timestamp_fast_forward_recovery", || {
        let mut simulator = Simulator::new();
        simulator.timestamp.version = 99_999;
        simulator.refreshed();
        simulator.rotate_keys(Role::Timestamp);
        simulator.bump_root();
        simulator.timestamp.version = 1;
        simulator.refreshed();
        assert_eq!(simulator.version("timestamp"), 1);
    });
    suite.case("test_new_snapshot_fast_forward_recovery", || {
        let mut simulator = Simulator::new();
        simulator.snapshot.version = 99_999;
        simulator.update_timestamp();
        simulator.refreshed();
        simulator.rotate_keys(Role::Snapshot);
        simulator.rotate_keys(Role::Timestamp);
        simulator.bump_root();
        simulator.snapshot.version = 1;
        simulator.update_timestamp();
        simulator.refreshed();
        assert_eq!(simulator.version("snapshot"), 1);
    });
    suite.case("test_new_targets_fast_forward_recovery", || {
        let mut simulator = Simulator::new();
        simulator.targets.version = 99_999;
        simulator.update_snapshot();
        simulator.refreshed();
        simulator.rotate_keys(Role::Snapshot);
        simulator.bump_root();
        simulator.targets.version = 1;
        simulator.update_snapshot();
        simulator.refreshed();
        assert_eq!(simulator.version("targets"), 1);
    });
}

fn keys(suite: &mut Suite) {
    suite.case("test_snapshot_threshold", || {
        let mut simulator = Simulator::new();
        simulator.refreshed();
        simulator.add_key(Role::Snapshot);
        simulator.threshold(Role::Snapshot, 3);
        simulator.bump_root();
        simulator.update_snapshot();
        assert!(matches!(simulator.refresh(), Err(MetadataError::Signature(_))));
        simulator.add_key(Role::Snapshot);
        simulator.bump_root();
        simulator.update_snapshot();
        simulator.refreshed();
        assert_eq!((simulator.version("root"), simulator.version("snapshot")), (3, 3));
    });
    suite.case("test_root_has_keys_but_not_snapshot", || {
        let mut simulator = Simulator::new();
        simulator.refreshed();
        let unused = [SigningKey::from_seed(&[98; 32]), SigningKey::from_seed(&[99; 32])];
        unused.iter().for_each(|key| simulator.trust(Role::Snapshot, key));
        simulator.threshold(Role::Snapshot, 3);
        simulator.bump_root();
        simulator.update_snapshot();
        assert!(matches!(simulator.refresh(), Err(MetadataError::Signature(_))));
        assert_eq!((simulator.version("root"), simulator.version("snapshot")), (2, 1));
    });
    suite.case("test_duplicate_keys_root", || {
        let mut simulator = Simulator::new();
        simulator.refreshed();
        // One key under one name, counted once however often it signs.
        simulator.threshold(Role::Snapshot, 2);
        let again = SigningKey::from_seed(&[3; 32]);
        simulator.signers.get_mut("snapshot").unwrap().push(again);
        simulator.bump_root();
        simulator.update_snapshot();
        assert!(matches!(simulator.refresh(), Err(MetadataError::Signature(_))));
        assert_eq!(simulator.version("snapshot"), 1);
    });
    for role in ONLINE {
        suite.case(&format!("test_non_root_rotations[{}]", role.name()), || {
            let mut simulator = Simulator::new();
            simulator.refreshed();
            let old = simulator.signers.remove(role.name()).unwrap();
            simulator.keys_of(role).keyids.clear();
            simulator.add_key(role);
            let new = simulator.signers.insert(role.name(), old).unwrap();
            simulator.bump_root();
            simulator.targets.version = 2;
            simulator.update_snapshot();
            assert!(matches!(simulator.refresh(), Err(MetadataError::Signature(_))));
            simulator.signers.insert(role.name(), new);
            simulator.targets.version = 3;
            simulator.update_snapshot();
            simulator.refreshed();
            assert_eq!((simulator.version("root"), simulator.version("targets")), (2, 3));
        });
    }
}

/// Root versions as (trusted keys, threshold, signing keys), by numbers of keys; and the version that must be reached.
type Roots = &'static [(&'static [u8], u64, &'static [u8])];

const ROOT_ROTATIONS: &[(&str, Roots, u64)] = &[
    ("1-of-1-key-rotation", &[(&[1], 1, &[1]), (&[2], 1, &[2, 1]), (&[2], 1, &[2])], 3),
    ("1-of-1-key-rotation-unused-signatures", &[(&[1], 1, &[1]), (&[2], 1, &[3, 2, 1, 4]), (&[2], 1, &[2])], 3),
    ("1-of-1-key-rotation-fail-not-signed-with-old-key", &[(&[1], 1, &[1]), (&[2], 1, &[2, 3, 4])], 1),
    ("1-of-1-key-rotation-fail-not-signed-with-new-key", &[(&[1], 1, &[1]), (&[2], 1, &[1, 3, 4])], 1),
    (
        "3-of-5-sign-with-different-keycombos",
        &[(&[1, 2, 3, 4, 5], 3, &[1, 3, 5]), (&[1, 2, 3, 4, 5], 3, &[2, 3, 5]), (&[1, 2, 3, 4, 5], 3, &[1, 2, 4])],
        3,
    ),
    ("3-of-5-one-key-rotated", &[(&[1, 2, 3, 4, 5], 3, &[1, 3, 5]), (&[1, 3, 4, 5, 6], 3, &[1, 4, 5])], 2),
    (
        "3-of-5-one-key-rotated-fail-not-signed-with-3-new-keys",
        &[(&[1, 2, 3, 4, 5], 3, &[1, 3, 5]), (&[1, 3, 4, 5, 6], 3, &[1, 2, 5])],
        1,
    ),
    (
        "3-of-5-one-key-rotated-fail-not-signed-with-3-old-keys",
        &[(&[1, 2, 3, 4, 5], 3, &[1, 3, 5]), (&[1, 3, 4, 5, 6], 3, &[1, 4, 6])],
        1,
    ),
    (
        "3-of-5-one-key-rotated-with-intermediate-step",
        &[(&[1, 2, 3, 4, 5], 3, &[1, 3, 5]), (&[1, 3, 4, 5, 6], 3, &[1, 4, 5, 6]), (&[1, 3, 4, 5, 6], 3, &[1, 4, 6])],
        3,
    ),
    (
        "3-of-5-all-keys-rotated-with-intermediate-step",
        &[
            (&[1, 2, 3, 4, 5], 3, &[1, 3, 5]),
            (&[6, 7, 8, 9, 10], 3, &[1, 3, 5, 6, 7, 8]),
            (&[6, 7, 8, 9, 10], 3, &[6, 7, 8]),
        ],
        3,
    ),
    ("1-of-3-threshold-increase-to-2-of-3", &[(&[1, 2, 3], 1, &[1]), (&[1, 2, 3], 2, &[1, 2])], 2),
    (
        "2-of-3-threshold-decrease-to-1-of-3",
        &[(&[1, 2, 3], 2, &[1, 2]), (&[1, 2, 3], 1, &[1, 2]), (&[1, 2, 3], 1, &[1])],
        3,
    ),
    ("1-of-2-rotate-to-2-of-2-fail", &[(&[1, 2], 1, &[1]), (&[1, 2], 2, &[1])], 1),
];

fn root_rotations(suite: &mut Suite) {
    for (name, roots, reached) in ROOT_ROTATIONS {
        suite.case(&format!("test_root_rotation[{name}]"), || {
            let mut simulator = Simulator::new();
            let key = |number: &u8| SigningKey::from_seed(&[100 + number; 32]);
            simulator.roots.clear();
            for (version, (trusted, threshold, signing)) in (1_u64..).zip(*roots) {
                simulator.keys_of(Role::Root).keyids.clear();
                trusted.iter().for_each(|number| simulator.trust(Role::Root, &key(number)));
                simulator.threshold(Role::Root, *threshold);
                simulator.root.version = version;
                let signers: Vec<_> = signing.iter().map(key).collect();
                simulator.roots.push(sign(&simulator.root, &signers).unwrap());
            }
            simulator.trusted = simulator.roots[0].clone();
            let result = simulator.refresh();
            if *reached == roots.len() as u64 {
                result.unwrap();
                assert_eq!(simulator.version("root"), *reached);
            } else {
                assert!(matches!(result, Err(MetadataError::Signature(_))), "{result:?}");
                assert!(simulator.version("root") <= *reached);
            }
        });
    }
    suite.case("a_newer_root_that_breaks_off_is_not_taken_for_the_end", || {
        let mut simulator = Simulator::new();
        simulator.bump_root();
        simulator.serve();
        simulator.server.fault("2.root", world::server::What::Drop(20), 1);
        assert!(matches!(simulator.load(), Err(MetadataError::Http(_))));
    });
    suite.case("a_revoked_key_stays_revoked_after_a_reboot_with_the_shipped_root", || {
        let mut simulator = Simulator::new();
        simulator.refreshed();
        let stolen = simulator.signers["timestamp"][0].public_bytes();
        simulator.rotate_keys(Role::Timestamp);
        simulator.bump_root();
        simulator.update_timestamp();
        simulator.refreshed();
        // The thief serves the first root alone, and what the stolen key signs.
        simulator.roots.truncate(1);
        let thief = (0..=simulator.seeds).map(|seed| SigningKey::from_seed(&[seed; 32]));
        let thief = thief.into_iter().find(|key| key.public_bytes() == stolen).unwrap();
        simulator.signers.insert("timestamp", vec![thief]);
        simulator.update_timestamp();
        assert!(matches!(simulator.refresh(), Err(MetadataError::Signature(_))));
        assert_eq!(simulator.version("root"), 2);
    });
}

fn downloads(suite: &mut Suite) {
    suite.case("test_client_downloads_expected_file", || {
        let mut simulator = Simulator::new();
        simulator.add_artefact("target_file.txt", b"target file contents");
        assert_eq!(simulator.download("target_file.txt").unwrap().unwrap(), b"target file contents");
    });
    suite.case("test_repository_substitutes_target_file", || {
        let mut simulator = Simulator::new();
        simulator.add_artefact("target_file.txt", b"target file contents");
        simulator.artefacts.insert("target_file.txt".to_owned(), b"malicious contents..".to_vec());
        assert!(matches!(simulator.download("target_file.txt"), Err(MetadataError::Mixed(_))));
        simulator.artefacts.insert("target_file.txt".to_owned(), b"malicious data that is longer".to_vec());
        assert!(simulator.download("target_file.txt").is_err());
    });
    suite.case("test_multiple_changes_to_target", || {
        let mut simulator = Simulator::new();
        for round in 0..5 {
            let contents = format!("modified file contents {round}").into_bytes();
            simulator.add_artefact("target_file.txt", &contents);
            simulator.targets.version += 1;
            simulator.update_snapshot();
            assert_eq!(simulator.download("target_file.txt").unwrap().unwrap(), contents);
            simulator.artefacts.insert("target_file.txt".to_owned(), b"malicious".to_vec());
            assert!(simulator.download("target_file.txt").is_err());
        }
    });
}

#[test]
fn the_cases_of_the_conformance_suite_hold() {
    let mut suite = Suite::new("tuf");
    for part in [basic, expiration, rollback, keys, root_rotations, downloads] {
        part(&mut suite);
    }
    suite.end();
}
