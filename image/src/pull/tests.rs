//! Pulls from sources in memory: what is joined, resumed, refused and left.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::archive::tests::read_archive;
use crate::compression::Compression;
use crate::pack::tarball::TarWriter;
use crate::pack::{PackConfig, write_oci_archive};
use crate::policy::{Otherwise, Policy, Requirement, Rule};
use crate::signature::tests::{Signer, payload};
use crate::store::{LayerState, Limits, PruneScope};
use crate::tar::{Entry, EntryKind, Timestamp};

const LIMITS: Limits = Limits { archive_bytes: 1 << 30, layer_bytes: 1 << 30, reserve_bytes: 0 };

/// What a source does to the blob of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mischief {
    None,
    /// Ends after so many bytes, the first time.
    Cut(u64),
    /// Flips a byte, unless the registry itself is asked.
    MirrorFlips,
    /// Flips a byte always.
    Flips,
    /// Ends early without saying so.
    Short,
}

struct Memory {
    manifest: Vec<u8>,
    blobs: BTreeMap<Digest, Vec<u8>>,
    mischief: Mutex<Mischief>,
    asked: Mutex<Vec<Wanted>>,
    /// The manifest of its signatures.
    signatures: Option<Vec<u8>>,
}

fn layer(files: &[(&str, &[u8])]) -> std::fs::File {
    let mut tar = TarWriter::new(tempfile::tempfile().unwrap());
    for (path, data) in files {
        let entry = Entry {
            path: path.as_bytes().to_vec(),
            kind: EntryKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            size: data.len() as u64,
            sparse: None,
            xattrs: Vec::new(),
        };
        tar.append(&entry, *data).unwrap();
    }
    tar.finish().unwrap()
}

/// An image of two layers, the second one large and not compressible.
fn image() -> Memory {
    let mut noise = vec![0_u8; 6 << 20];
    let mut state = 1_u32;
    for byte in &mut noise {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = state.to_be_bytes()[0];
    }
    let mut layers = [layer(&[("base", b"1")]), layer(&[("noise", &noise)])];
    let config = PackConfig { cmd: vec!["noise".into()], ..PackConfig::default() };
    let mut archive = Vec::new();
    write_oci_archive(&mut archive, &mut layers, Compression::Gzip, &config, None, &mut tempfile::tempfile).unwrap();
    let mut blobs = BTreeMap::new();
    let mut manifest = Vec::new();
    for (name, data) in read_archive(&archive) {
        if name.starts_with("blobs/") {
            if serde_json::from_slice::<serde_json::Value>(&data).is_ok_and(|value| value.get("layers").is_some()) {
                manifest = data;
            } else {
                blobs.insert(Digest::of(&data), data);
            }
        }
    }
    Memory { manifest, blobs, mischief: Mutex::new(Mischief::None), asked: Mutex::default(), signatures: None }
}

impl Memory {
    fn with(self, mischief: Mischief) -> Self {
        *self.mischief.lock().unwrap() = mischief;
        self
    }

    /// Digest of the large layer's blob.
    fn large(&self) -> Digest {
        *self.blobs.iter().max_by_key(|(_, data)| data.len()).unwrap().0
    }

    fn asked_for(&self, digest: &Digest) -> Vec<Wanted> {
        self.asked.lock().unwrap().iter().filter(|wanted| wanted.digest == *digest).copied().collect()
    }
}

struct Cut(io::Cursor<Vec<u8>>);

impl Read for Cut {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buf)? {
            0 => Err(io::Error::other(SourceError { fault: SourceFault::Unavailable, text: "the line broke".into() })),
            n => Ok(n),
        }
    }
}

impl Source for Memory {
    fn manifest(&self, _: &Reference, which: &str, _: bool, _: &Stop) -> Result<Fetched, SourceError> {
        if which.ends_with(".sig") {
            let none = || SourceError { fault: SourceFault::NotFound, text: "not signed".into() };
            let bytes = self.signatures.clone().ok_or_else(none)?;
            return Ok(Fetched { bytes, media_type: String::new(), stated_digest: None });
        }
        if which == "gone" {
            return Err(SourceError { fault: SourceFault::NotFound, text: "no such tag".into() });
        }
        Ok(Fetched { bytes: self.manifest.clone(), media_type: String::new(), stated_digest: None })
    }

    fn blob(&self, _: &Reference, wanted: Wanted, _: &Stop) -> Result<Box<dyn Read + Send>, SourceError> {
        self.asked.lock().unwrap().push(wanted);
        let mut data = self.blobs[&wanted.digest].clone();
        if data.len() < 1 << 20 {
            return Ok(Box::new(io::Cursor::new(data)));
        }
        let mut mischief = self.mischief.lock().unwrap();
        let offset = usize::try_from(wanted.offset).unwrap();
        match *mischief {
            Mischief::None => {}
            Mischief::Cut(at) => {
                *mischief = Mischief::None;
                data.truncate(usize::try_from(at).unwrap());
                return Ok(Box::new(Cut(io::Cursor::new(data.split_off(offset)))));
            }
            Mischief::Flips => data[3 << 20] ^= 1,
            Mischief::MirrorFlips if !wanted.origin_only => data[3 << 20] ^= 1,
            Mischief::MirrorFlips => {}
            Mischief::Short => data.truncate(5 << 20),
        }
        Ok(Box::new(io::Cursor::new(data.split_off(offset))))
    }
}

fn store() -> (tempfile::TempDir, SharedStore) {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = SharedStore::open(dir.path(), LIMITS).unwrap();
    (dir, store)
}

fn pulled(store: &SharedStore, source: &Memory, name: &str) -> Result<Pulled, PullError> {
    pull(store, source, &name.parse().unwrap(), &mut |_| true)
}

/// Names of the files below a directory of the store.
fn files(dir: &tempfile::TempDir, below: &str) -> usize {
    std::fs::read_dir(dir.path().join(below)).unwrap().count()
}

#[test]
fn an_image_comes_with_its_name_and_digest_and_is_kept_the_second_time() {
    let (dir, store) = store();
    let source = image();
    let first = pulled(&store, &source, "r.example/app:1").unwrap();
    let digest = Digest::of(&source.manifest);
    assert_eq!(first.reference.to_string(), format!("r.example/app:1@{digest}"));
    assert_eq!((first.new_layers, first.image.manifest), (2, Some(digest)));
    let mut steps = Vec::new();
    let again = pull(&store, &source, &"r.example/app:2".parse().unwrap(), &mut |layers| {
        steps.extend(layers.iter().map(|layer| layer.step));
        true
    });
    assert_eq!(again.unwrap().new_layers, 0);
    assert!(steps.contains(&LayerStep::Kept) && !steps.contains(&LayerStep::Fetching));
    let catalog = store.catalog();
    for name in ["r.example/app:1", "r.example/app:2", &format!("r.example/app@{digest}")] {
        assert_eq!(catalog.find(name).unwrap().id, first.image.id, "{name}");
    }
    assert!(catalog.find(&format!("other.example/app@{digest}")).is_err());
    assert_eq!((files(&dir, "partial"), files(&dir, "records")), (0, 1));
    drop(store);
    let (store, recovery) = SharedStore::open(dir.path(), LIMITS).unwrap();
    assert_eq!((recovery.swept, recovery.incomplete.len()), (0, 0));
    assert_eq!(store.catalog().list().next().unwrap().origins.len(), 2);
}

#[test]
fn a_broken_line_is_resumed_where_it_broke() {
    let (dir, store) = store();
    let source = image().with(Mischief::Cut(5 << 20));
    let error = pulled(&store, &source, "r.example/app:1").unwrap_err();
    assert!(error.to_string().contains("the line broke"), "{error}");
    assert_eq!((store.catalog().list().count(), files(&dir, "records"), files(&dir, "configs")), (0, 0, 0));
    assert_eq!(files(&dir, "partial"), 1);
    // Also by a store that was opened anew.
    drop(store);
    let (store, _) = SharedStore::open(dir.path(), LIMITS).unwrap();
    pulled(&store, &source, "r.example/app:1").unwrap();
    let offsets: Vec<u64> = source.asked_for(&source.large()).iter().map(|wanted| wanted.offset).collect();
    assert_eq!(offsets, [0, 5 << 20]);
    assert_eq!(files(&dir, "partial"), 0);
}

#[test]
fn what_was_kept_wrongly_is_fetched_anew() {
    let (dir, store) = store();
    let source = image().with(Mischief::Cut(5 << 20));
    pulled(&store, &source, "r.example/app:1").unwrap_err();
    let partial = std::fs::read_dir(dir.path().join("partial")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&partial).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&partial, bytes).unwrap();
    pulled(&store, &source, "r.example/app:1").unwrap();
}

#[test]
fn other_content_than_the_digest_is_asked_for_once_more_without_mirrors_and_then_refused() {
    let (_dir, store) = store();
    let source = image().with(Mischief::MirrorFlips);
    pulled(&store, &source, "r.example/app:1").unwrap();
    let asked = source.asked_for(&source.large());
    assert_eq!(asked.iter().map(|wanted| wanted.origin_only).collect::<Vec<_>>(), [false, true]);

    let (dir, store) = self::store();
    let error = pulled(&store, &image().with(Mischief::Flips), "r.example/app:1").unwrap_err();
    assert!(matches!(error, PullError::Digest { .. }), "{error}");
    assert_eq!((files(&dir, "records"), files(&dir, "partial")), (0, 0));
    let error = pulled(&store, &image().with(Mischief::Short), "r.example/app:1").unwrap_err();
    assert!(matches!(&error, PullError::Source(_)), "{error}");
    let error = pulled(&store, &image(), "r.example/app:gone").unwrap_err();
    assert!(matches!(&error, PullError::Source(error) if error.fault == SourceFault::NotFound));
}

#[test]
fn two_pulls_of_one_layer_fetch_it_once() {
    let (_dir, store) = store();
    let source = image();
    let joined = AtomicUsize::new(0);
    let slow = Slow(&source);
    std::thread::scope(|scope| {
        let pulls: Vec<_> = ["r.example/app:1", "r.example/app:2"]
            .iter()
            .map(|name| {
                let (store, slow, joined) = (&store, &slow, &joined);
                scope.spawn(move || {
                    pull(store, slow, &name.parse().unwrap(), &mut |layers| {
                        let steps = layers.iter().filter(|layer| layer.step == LayerStep::Joined);
                        joined.fetch_add(steps.count(), Ordering::Relaxed);
                        true
                    })
                })
            })
            .collect();
        let new: usize = pulls.into_iter().map(|pull| pull.join().unwrap().unwrap().new_layers).sum();
        assert_eq!(new, 2);
    });
    assert_eq!(source.asked_for(&source.large()).len(), 1);
    assert!(joined.load(Ordering::Relaxed) > 0);
}

/// Gives the large blob in small pieces with pauses, so that two pulls meet.
struct Slow<'s>(&'s Memory);

impl Source for Slow<'_> {
    fn manifest(&self, name: &Reference, which: &str, only: bool, stop: &Stop) -> Result<Fetched, SourceError> {
        self.0.manifest(name, which, only, stop)
    }

    fn blob(&self, name: &Reference, wanted: Wanted, stop: &Stop) -> Result<Box<dyn Read + Send>, SourceError> {
        Ok(Box::new(Dripping(self.0.blob(name, wanted, stop)?)))
    }
}

struct Dripping(Box<dyn Read + Send>);

impl Read for Dripping {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        std::thread::sleep(std::time::Duration::from_millis(10));
        let most = buf.len().min(64 << 10);
        self.0.read(&mut buf[..most])
    }
}

#[test]
fn a_pull_that_nobody_wants_ends_and_leaves_no_image() {
    let (dir, store) = store();
    let source = image();
    let mut told = 0;
    let result = pull(&store, &Slow(&source), &"r.example/app:1".parse().unwrap(), &mut |layers| {
        told += 1;
        layers.iter().all(|layer| layer.done < 1 << 20)
    });
    assert!(matches!(result, Err(PullError::Cancelled)), "{result:?}");
    assert!(told > 1);
    assert_eq!((files(&dir, "records"), store.catalog().list().count()), (0, 0));
    // What came stays for the next one, and goes when somebody cleans up.
    assert_eq!(files(&dir, "partial"), 1);
    store.change(|store| store.prune(&std::collections::BTreeSet::new(), PruneScope::Nameless)).unwrap();
    assert_eq!((files(&dir, "partial"), files(&dir, "layers")), (0, 0));
}

#[test]
fn layers_that_a_pull_is_about_to_need_are_not_removed() {
    let (_dir, store) = store();
    let source = image();
    let first = pulled(&store, &source, "r.example/app:1").unwrap();
    let diff_ids: Vec<Digest> = first.image.layers.iter().map(|layer| layer.diff_id).collect();
    store
        .change(|store| {
            store.lease(&diff_ids);
            Ok(())
        })
        .unwrap();
    let none = std::collections::BTreeSet::new();
    store.change(|store| store.remove("r.example/app:1", &none, false)).unwrap();
    let path = |store: &SharedStore| store.maker().layers_dir().join(format!("{}.erofs", diff_ids[0].hex()));
    assert!(path(&store).is_file());
    store
        .change(|store| {
            store.release(&diff_ids);
            Ok(())
        })
        .unwrap();
    assert!(path(&store).is_file(), "left over for the next pull");
    assert_eq!(pulled(&store, &source, "r.example/app:1").unwrap().new_layers, 0);
}

/// A store that takes images of `r.example/team` only with a signature of this key, and no others.
fn strict(key: &Signer) -> (tempfile::TempDir, SharedStore) {
    let require = Requirement::Signature { keys_pem: vec![key.pem()], signed_as: None };
    let rules = vec![Rule { repository: "r.example/team/*".into(), require }];
    let policy = Policy { default: Otherwise::Reject, rules };
    policy.check().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = SharedStore::open_with(dir.path(), LIMITS, policy).unwrap();
    (dir, store)
}

/// Puts a signature beside the image, as cosign does.
fn signed(mut source: Memory, by: &Signer, repository: &str) -> Memory {
    let signature = by.sign(payload(repository, &Digest::of(&source.manifest)));
    let digest = Digest::of(signature.payload.as_bytes());
    let manifest = serde_json::json!({"schemaVersion": 2, "layers": [{
        "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": digest, "size": signature.payload.len(),
        "annotations": {"dev.cosignproject.cosign/signature": signature.signature},
    }]});
    source.blobs.insert(digest, signature.payload.into_bytes());
    source.signatures = Some(manifest.to_string().into_bytes());
    source
}

#[test]
fn only_what_its_rule_wants_is_pulled_named_and_kept_accepted() {
    let (key, other) = (Signer::new(), Signer::new());
    let (dir, store) = strict(&key);
    let refused = |source: &Memory, name: &str, words: &str| {
        let error = pulled(&store, source, name).unwrap_err();
        assert!(matches!(error, PullError::Policy { .. }) && error.to_string().contains(words), "{error}");
        assert!(source.asked.lock().unwrap().iter().all(|asked| asked.size < 1 << 20), "no layer was fetched");
    };
    refused(&image(), "elsewhere.example/app:1", "the default is to reject");
    refused(&image(), "r.example/team/app:1", "it has none");
    refused(&signed(image(), &other, "r.example/team/app"), "r.example/team/app:1", "none is of a key");
    refused(&signed(image(), &key, "r.example/team/other"), "r.example/team/app:1", "for the repository");
    let source = signed(image(), &key, "r.example/team/app");
    let pulled = pulled(&store, &source, "r.example/team/app:1").unwrap();
    assert!(store.catalog().verdict(&pulled.image, "r.example/team/app:1").text.contains("signed by the key"));
    // A name that the signature is not for is not given, and by its identity the image has its own name to speak for it.
    let other = "r.example/team/other:1".parse().unwrap();
    let error = store.change(|store| store.tag("r.example/team/app:1", &other)).unwrap_err();
    assert!(error.to_string().contains("policy"), "{error}");
    let tagged = store.change(|store| store.tag("r.example/team/app:1", &"r.example/team/app:2".parse().unwrap()));
    assert_eq!(tagged.unwrap().names.len(), 2);
    assert!(store.catalog().verdict(&pulled.image, &pulled.image.id.to_string()).accepted);
    // The signature is kept; other rules at the next start are for it as well.
    drop(store);
    let (store, _) = SharedStore::open(dir.path(), LIMITS).unwrap();
    assert_eq!(store.catalog().find("r.example/team/app:2").unwrap().signatures.len(), 1);
    let (_other_dir, strange) = strict(&Signer::new());
    assert!(
        !strange
            .catalog()
            .verdict(store.catalog().find("r.example/team/app:1").unwrap(), "r.example/team/app:1")
            .accepted
    );
}

#[test]
fn names_are_given_and_taken_away_and_a_damaged_layer_is_found() {
    let (dir, store) = store();
    let pulled = pulled(&store, &image(), "r.example/app:1").unwrap();
    let name: Reference = "other.example/app:2".parse().unwrap();
    store.change(|store| store.tag("r.example/app:1", &name)).unwrap();
    store.change(|store| store.untag(&"r.example/app:1".parse().unwrap())).unwrap();
    store.change(|store| store.untag(&name)).unwrap();
    assert!(store.change(|store| store.untag(&name)).is_err());
    let id = pulled.image.id.to_string();
    let check = |good: bool| {
        let catalog = store.catalog();
        let layers = catalog.verify(catalog.find(&id).unwrap(), &mut |_| true).unwrap();
        let bad = layers.iter().filter(|layer| matches!(layer.state, LayerState::Damaged(_))).count();
        assert_eq!((layers.len(), bad), (2, usize::from(!good)));
    };
    check(true);
    let layer = store.maker().layers_dir().join(format!("{}.erofs", pulled.image.layers[0].diff_id.hex()));
    std::fs::remove_file(&layer).unwrap();
    std::fs::write(&layer, vec![0; usize::try_from(pulled.image.layers[0].bytes).unwrap()]).unwrap();
    check(false);
    assert!(dir.path().exists());
}
