//! `byred image`: serves the image store to the API, one connection per call.
//!
//! What changes the store goes one after the other, under its lock; lists and look-ups read a catalog that is replaced after each change, so
//! they are quick while a load goes on. Archives, manifests and layers are parsed here, sealed, in a process that has no capability, no
//! network and one directory; what registries say comes from `byred pull` as bytes.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use byre_image::digest::Digest;
use byre_image::policy::Policy;
use byre_image::pull::{self, LayerProgress, PullError, SourceFault};
use byre_image::reference::Reference;
use byre_image::shared::SharedStore;
use byre_image::store::{Catalog, Image, LayerCheck, LayerState, Limits, Progress, PruneScope, StoreError};
use byre_protocol::frame::MESSAGE_BYTES;
use byre_protocol::peer::{
    ImageAnswer, ImageCall, ImageRecord, ImageRefusal, LayerStatus, LayerStep, LayerVerified, PULL_SOCKET,
};
use byre_sandbox::stream::{self, StreamError};
use byre_sandbox::{Descriptors, Notifier, profiles};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::fetch::PullService;

/// Where the store lies.
const DIRECTORY: &str = "/data/images";
/// What `byred config` leaves: which images may be used.
const POLICY: &str = "/run/byre/config/image-policy.json";
/// Bytes of it: a configuration document has 64 KiB, and escapes double some of them.
const POLICY_BYTES: u64 = 256 * 1024;
/// Connections at a time. Most are loads that wait for one another; each has a thread and a buffer of 128 KiB.
const CONNECTIONS: usize = 8;
/// A client that neither sends nor takes for so long is gone; an archive may come over a slow line, but not this slow.
const CLIENT_TIME: Duration = Duration::from_secs(60);
/// Bytes of configuration passed on, as the protocol says.
const CONFIG_BYTES: usize = 64 * 1024;
/// Bytes between two messages of a verification.
const VERIFY_STEP: u64 = 64 << 20;
/// What one answer's list may hold: the message's bound without its head.
const LIST_BYTES: usize = MESSAGE_BYTES - 1024;

/// Why the service ended. PID 1 starts it anew.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// Its start failed.
    #[error(transparent)]
    Start(#[from] byre_sandbox::StartError),
    /// The policy cannot be read. Without it nothing may be taken, so nothing is.
    #[error("{POLICY}: {0}; `byred config` and `byred image` must be from one release")]
    Policy(String),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The listener failed.
    #[error("accept: {0}")]
    Accept(io::Error),
}

/// The service, started by PID 1.
pub(crate) fn run() -> Result<(), ImageError> {
    let mut descriptors = Descriptors::from_environment()?;
    let listener = UnixListener::from(descriptors.take("unix")?);
    // The mode belongs to the socket, which PID 1 keeps: whoever had it before may have set another.
    listener.set_nonblocking(false).map_err(ImageError::Accept)?;
    let notifier = Notifier::from_environment()?;
    byre_sandbox::seal(&profiles::IMAGE)?;
    let shared = Arc::new(Shared::open(Path::new(DIRECTORY), policy(Path::new(POLICY))?)?);
    notifier.ready()?;
    shared.serve(&listener)
}

/// The rules; without a file there are none.
fn policy(path: &Path) -> Result<Policy, ImageError> {
    let failed = |why: String| ImageError::Policy(why);
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Policy::default()),
        Err(error) => return Err(failed(error.to_string())),
        Ok(metadata) if metadata.len() > POLICY_BYTES => return Err(failed("it is too long".to_owned())),
        Ok(_) => {}
    }
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let policy: Policy = serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
    policy.check().map_err(|error| failed(error.to_string()))?;
    Ok(policy)
}

/// What all connections share.
struct Shared {
    store: SharedStore,
    connections: AtomicUsize,
    /// Where `byred pull` listens.
    pull_socket: PathBuf,
}

/// Counts a connection for as long as it lives.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shared {
    fn open(directory: &Path, policy: Policy) -> Result<Self, StoreError> {
        let (store, recovery) = SharedStore::open_with(directory, Limits::default(), policy)?;
        if recovery.swept > 0 {
            eprintln!("removed {} files ({} bytes) of interrupted work", recovery.swept, recovery.swept_bytes);
        }
        for id in &recovery.incomplete {
            eprintln!("image {id} is damaged and cannot be run: remove it and load it again");
        }
        for (name, reason) in &recovery.unreadable {
            eprintln!("record {name} cannot be read and is left as it is: {reason}");
        }
        Ok(Self { store, connections: AtomicUsize::new(0), pull_socket: PULL_SOCKET.into() })
    }

    fn serve(self: &Arc<Self>, listener: &UnixListener) -> Result<(), ImageError> {
        loop {
            let client = match listener.accept() {
                Ok((client, _)) => client,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(ImageError::Accept(error)),
            };
            let others = self.connections.fetch_add(1, Ordering::AcqRel);
            let place = Place(Arc::clone(self));
            if others >= CONNECTIONS {
                refuse_for_now(client);
                continue;
            }
            let thread = std::thread::Builder::new().name("image".to_owned());
            let started = thread.spawn(move || {
                if let Err(error) = place.0.answer(client) {
                    eprintln!("a call is not answered: {error}");
                }
            });
            if let Err(error) = started {
                eprintln!("a call is not answered: {error}");
            }
        }
    }

    /// Answers one connection's call.
    fn answer(&self, mut client: UnixStream) -> Result<(), StreamError> {
        client.set_read_timeout(Some(CLIENT_TIME))?;
        client.set_write_timeout(Some(CLIENT_TIME))?;
        let Some(call) = stream::read::<ImageCall>(&mut client)? else { return Ok(()) };
        let result = match call {
            ImageCall::Load { name } => self.load(&client, name.as_deref()),
            ImageCall::List => return self.list(&mut client),
            ImageCall::Resolve { reference } => self.resolve(&reference),
            ImageCall::Remove { reference, in_use } => self.remove(&reference, &in_use),
            ImageCall::Prune { in_use, all } => self.prune(&in_use, all),
            ImageCall::Tag { reference, name } => self.tag(&reference, &name),
            ImageCall::Untag { name } => self.untag(&name),
            ImageCall::Verify { reference } => self.verify(&client, &reference),
            ImageCall::Pull { reference, credential, ca_pem } => {
                let source = PullService::new(self.pull_socket.clone(), credential, ca_pem);
                let answer = self.pull(&client, &reference, &source).unwrap_or_else(|error| pull_refused(&error));
                return stream::write(&mut client, &answer);
            }
        };
        stream::write(&mut client, &result.unwrap_or_else(|error| refused(&error)))
    }

    fn catalog(&self) -> Arc<Catalog> {
        self.store.catalog()
    }

    /// Brings an image. The client's going away is noticed by the progress that it does not take any more.
    fn pull(&self, client: &UnixStream, reference: &str, source: &PullService) -> Result<ImageAnswer, PullError> {
        let name = match reference.parse::<Reference>() {
            Ok(name) => name,
            Err(error) => return Ok(ImageAnswer::Refused { code: ImageRefusal::Invalid, text: error.to_string() }),
        };
        let mut tell = |layers: &[LayerProgress]| {
            let layers = layers.iter().map(layer_status).collect();
            stream::write(&mut &*client, &ImageAnswer::Layers(layers)).is_ok()
        };
        let pulled = pull::pull(&self.store, source, &name, &mut tell)?;
        Ok(ImageAnswer::Pulled {
            image: Box::new(record(&self.catalog(), &pulled.image, reference)?),
            reference: pulled.reference.to_string(),
            new_layers: u32::try_from(pulled.new_layers).unwrap_or(u32::MAX),
        })
    }

    fn tag(&self, reference: &str, name: &str) -> Result<ImageAnswer, StoreError> {
        let name = match name.parse::<Reference>() {
            Ok(name) => name,
            Err(error) => return Ok(ImageAnswer::Refused { code: ImageRefusal::Invalid, text: error.to_string() }),
        };
        let image = self.store.change(|store| store.tag(reference, &name))?;
        record(&self.catalog(), &image, &name.to_string()).map(|record| ImageAnswer::Image(Box::new(record)))
    }

    fn untag(&self, name: &str) -> Result<ImageAnswer, StoreError> {
        let name = match name.parse::<Reference>() {
            Ok(name) => name,
            Err(error) => return Ok(ImageAnswer::Refused { code: ImageRefusal::Invalid, text: error.to_string() }),
        };
        let image = self.store.change(|store| store.untag(&name))?;
        record(&self.catalog(), &image, &image.id.to_string()).map(|record| ImageAnswer::Image(Box::new(record)))
    }

    /// Reads all of an image, beside whatever else goes on.
    fn verify(&self, client: &UnixStream, reference: &str) -> Result<ImageAnswer, StoreError> {
        let catalog = self.catalog();
        let image = catalog.find(reference)?;
        let mut told = 0;
        let mut wanted = |bytes: u64| {
            if bytes < told + VERIFY_STEP {
                return true;
            }
            told = bytes;
            stream::write(&mut &*client, &ImageAnswer::Progress { step: "reading".to_owned(), bytes }).is_ok()
        };
        let checks = catalog.verify(image, &mut wanted)?;
        Ok(ImageAnswer::Verified(checks.iter().map(layer_verified).collect()))
    }

    fn load(&self, client: &UnixStream, name: Option<&str>) -> Result<ImageAnswer, StoreError> {
        let name = match name.map(str::parse::<Reference>).transpose() {
            Ok(name) => name,
            Err(error) => return Ok(ImageAnswer::Refused { code: ImageRefusal::Invalid, text: error.to_string() }),
        };
        let mut bytes = 0;
        let mut tell = |progress| {
            let answer = progress_answer(progress, &mut bytes);
            // A client that does not want to know any more does not want the image either.
            stream::write(&mut &*client, &answer).is_ok()
        };
        let loaded = self.store.change(|store| store.load(client, name.as_ref(), &mut tell))?;
        let Some(first) = loaded.first() else { return Err(StoreError::NotFound("in the archive".to_owned())) };
        record(&self.catalog(), &first.image, &first.image.id.to_string())
            .map(|record| ImageAnswer::Image(Box::new(record)))
    }

    fn resolve(&self, reference: &str) -> Result<ImageAnswer, StoreError> {
        let catalog = self.catalog();
        let image = catalog.find(reference)?;
        record(&catalog, image, reference).map(|record| ImageAnswer::Image(Box::new(record)))
    }

    /// Sends all images, in as many answers as they need. Configurations are left out: a list is for looking, `Resolve` for running.
    fn list(&self, client: &mut UnixStream) -> Result<(), StreamError> {
        let catalog = self.catalog();
        let mut page = Vec::new();
        let mut page_bytes = 0;
        for image in catalog.list() {
            let record = without_config(image);
            let bytes = byre_protocol::frame::encode(&record)?.len();
            if page_bytes + bytes > LIST_BYTES {
                stream::write(client, &ImageAnswer::Images(std::mem::take(&mut page)))?;
                page_bytes = 0;
            }
            page_bytes += bytes;
            page.push(record);
        }
        stream::write(client, &ImageAnswer::Images(page))
    }

    fn remove(&self, reference: &str, in_use: &[String]) -> Result<ImageAnswer, StoreError> {
        let removed = self.store.change(|store| store.remove(reference, &ids(in_use), false))?;
        let names = removed.untagged.iter().map(Reference::short);
        let what = names.chain(removed.deleted.iter().map(ToString::to_string)).collect();
        Ok(ImageAnswer::Removed { what, bytes: removed.freed_bytes })
    }

    fn prune(&self, in_use: &[String], all: bool) -> Result<ImageAnswer, StoreError> {
        let scope = if all { PruneScope::Unused } else { PruneScope::Nameless };
        let pruned = self.store.change(|store| store.prune(&ids(in_use), scope))?;
        let what = pruned.deleted.iter().map(ToString::to_string).collect();
        Ok(ImageAnswer::Removed { what, bytes: pruned.freed_bytes })
    }
}

/// Tells a client that there are too many. It has not been read from, so this cannot be the answer to half a call.
fn refuse_for_now(mut client: UnixStream) {
    let text = format!("{CONNECTIONS} image calls are under way: try again when one of them is done");
    let short = Duration::from_millis(100);
    if client.set_write_timeout(Some(short)).is_ok() {
        // One that is gone needs no answer.
        let _ = stream::write(&mut client, &ImageAnswer::Refused { code: ImageRefusal::Internal, text });
    }
}

fn ids(texts: &[String]) -> BTreeSet<Digest> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn progress_answer(progress: Progress, bytes: &mut u64) -> ImageAnswer {
    let step = match progress {
        Progress::Receiving { bytes: received } => {
            *bytes = received;
            "receiving the archive".to_owned()
        }
        Progress::Converting { index, count, .. } => format!("layer {} of {count}", index + 1),
        Progress::Kept { diff_id } => format!("layer {diff_id} is here already"),
        Progress::Stored { id } => format!("image {id} is stored"),
    };
    ImageAnswer::Progress { step, bytes: *bytes }
}

fn record(catalog: &Catalog, image: &Image, asked: &str) -> Result<ImageRecord, StoreError> {
    let config = catalog.config_bytes(image)?;
    let damaged = |what: &str| StoreError::Damaged { id: image.id, what: what.to_owned() };
    if config.len() > CONFIG_BYTES {
        return Err(damaged("its configuration is longer than 64 KiB"));
    }
    let config_json = String::from_utf8(config).map_err(|_| damaged("its configuration is not UTF-8"))?;
    let verdict = catalog.verdict(image, asked);
    Ok(ImageRecord { config_json, accepted: verdict.accepted, verdict: verdict.text, ..without_config(image) })
}

fn without_config(image: &Image) -> ImageRecord {
    ImageRecord {
        id: image.id.to_string(),
        names: image.names.iter().map(Reference::short).collect(),
        manifest_digest: image.manifest.as_ref().map(ToString::to_string),
        layers: image.layers.iter().map(|layer| byre_plan::Digest(*layer.diff_id.bytes())).collect(),
        size_bytes: image.bytes(),
        created_wall_ms: image.created.as_deref().map_or(0, wall_ms),
        config_json: String::new(),
        origins: image.origins.iter().map(|origin| origin.reference.to_string()).collect(),
        accepted: false,
        verdict: String::new(),
    }
}

fn layer_verified(check: &LayerCheck) -> LayerVerified {
    let (good, text) = match &check.state {
        LayerState::Verified => (true, "every byte is what it was".to_owned()),
        LayerState::Unprotected => (true, "its form is good; without fs-verity its content is not known".to_owned()),
        LayerState::Damaged(why) => (false, format!("damaged: {why}")),
    };
    LayerVerified { layer: byre_plan::Digest(*check.diff_id.bytes()), bytes: check.bytes, good, text }
}

/// A time that an image's builder wrote; 0 if it is none.
fn wall_ms(text: &str) -> u64 {
    let milliseconds = OffsetDateTime::parse(text, &Rfc3339).map_or(0, |time| time.unix_timestamp_nanos() / 1_000_000);
    u64::try_from(milliseconds).unwrap_or(0)
}

fn layer_status(layer: &LayerProgress) -> LayerStatus {
    let step = match layer.step {
        pull::LayerStep::Waiting => LayerStep::Waiting,
        pull::LayerStep::Fetching => LayerStep::Fetching,
        pull::LayerStep::Joined => LayerStep::Joined,
        pull::LayerStep::Kept => LayerStep::Kept,
        pull::LayerStep::Done => LayerStep::Done,
    };
    LayerStatus { blob: byre_plan::Digest(*layer.blob.bytes()), step, done: layer.done, total: layer.total }
}

fn pull_refused(error: &PullError) -> ImageAnswer {
    let code = match error {
        PullError::Store(error) => return refused(error),
        PullError::Policy { .. } => ImageRefusal::Denied,
        PullError::Source(error) => match error.fault {
            SourceFault::NotFound => ImageRefusal::NotFound,
            SourceFault::Denied => ImageRefusal::Denied,
            SourceFault::Unavailable | SourceFault::Cancelled => ImageRefusal::Unavailable,
            SourceFault::Invalid => ImageRefusal::Invalid,
        },
        PullError::Manifest(_)
        | PullError::Json { .. }
        | PullError::Ambiguous
        | PullError::OldSchema
        | PullError::MediaType(_)
        | PullError::TwoTypes { .. }
        | PullError::TooLarge { .. }
        | PullError::Digest { .. }
        | PullError::Stated { .. }
        | PullError::Size { .. }
        | PullError::LayerCount { .. }
        | PullError::Cancelled => ImageRefusal::Invalid,
    };
    ImageAnswer::Refused { code, text: error.to_string() }
}

fn refused(error: &StoreError) -> ImageAnswer {
    ImageAnswer::Refused { code: code(error), text: error.to_string() }
}

fn code(error: &StoreError) -> ImageRefusal {
    match error {
        StoreError::NotFound(_) | StoreError::Ambiguous { .. } => ImageRefusal::NotFound,
        StoreError::InUse(_) | StoreError::SeveralNames { .. } => ImageRefusal::InUse,
        StoreError::NoSpace { .. } | StoreError::TooManyImages => ImageRefusal::NoSpace,
        StoreError::Archive(_)
        | StoreError::Layer { .. }
        | StoreError::DiffId { .. }
        | StoreError::Check { .. }
        | StoreError::NameForSeveral(_)
        | StoreError::PinnedName(_)
        | StoreError::Cancelled => ImageRefusal::Invalid,
        StoreError::Policy { .. } => ImageRefusal::Denied,
        StoreError::TooManyNames(_) => ImageRefusal::NoSpace,
        StoreError::Io { .. } | StoreError::Locked(_) | StoreError::Damaged { .. } => ImageRefusal::Internal,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;

    use super::*;

    fn call(shared: &Shared, call: &ImageCall, archive: &[u8]) -> Vec<ImageAnswer> {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| shared.answer(theirs).unwrap());
            stream::write(&mut ours, call).unwrap();
            // A refusal may come before all is sent.
            let _ = ours.write_all(archive);
            ours.shutdown(Shutdown::Write).unwrap();
            let mut answers = Vec::new();
            while let Ok(Some(answer)) = stream::read(&mut ours) {
                answers.push(answer);
            }
            answers
        })
    }

    #[test]
    fn refusals_are_answers_and_change_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let shared = Shared::open(directory.path(), Policy::default()).unwrap();
        let load = |name: &str| ImageCall::Load { name: Some(name.to_owned()) };
        for (asked, archive, code) in [
            (load("x:1"), &b"not an archive at all"[..], ImageRefusal::Invalid),
            (load("UPPER CASE"), &b""[..], ImageRefusal::Invalid),
            (ImageCall::Resolve { reference: "nothing".to_owned() }, &b""[..], ImageRefusal::NotFound),
            (ImageCall::Remove { reference: "nothing".to_owned(), in_use: vec![] }, &b""[..], ImageRefusal::NotFound),
        ] {
            let answers = call(&shared, &asked, archive);
            let refusal = answers.last().unwrap();
            assert!(matches!(refusal, ImageAnswer::Refused { code: found, .. } if *found == code), "{refusal:?}");
        }
        assert_eq!(call(&shared, &ImageCall::List, b""), vec![ImageAnswer::Images(vec![])]);
        let pruned = call(&shared, &ImageCall::Prune { in_use: vec![], all: true }, b"");
        assert_eq!(pruned, vec![ImageAnswer::Removed { what: vec![], bytes: 0 }]);
    }

    #[test]
    fn lists_are_quick_while_a_load_waits_for_its_client() {
        let directory = tempfile::tempdir().unwrap();
        let shared = Shared::open(directory.path(), Policy::default()).unwrap();
        let (mut slow, theirs) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            // Its client goes away in the end, so the refusal cannot be sent.
            scope.spawn(|| drop(shared.answer(theirs)));
            stream::write(&mut slow, &ImageCall::Load { name: None }).unwrap();
            slow.write_all(&[0; 100]).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            assert!(shared.store.is_changing());
            assert_eq!(call(&shared, &ImageCall::List, b""), vec![ImageAnswer::Images(vec![])]);
            slow.shutdown(Shutdown::Both).unwrap();
        });
        assert!(!shared.store.is_changing());
    }

    #[test]
    fn a_builders_time_is_read_or_is_none() {
        assert_eq!(wall_ms("1970-01-01T00:00:01.5Z"), 1500);
        assert_eq!(wall_ms("yesterday"), 0);
    }
}
