//! Whole pulls over the loopback, from a registry that misbehaves: what is survived, what is refused by name, and what is never sent.

use std::time::{Duration, Instant};

use byre_image::compression::Compression;
use byre_image::pack::tarball::TarWriter;
use byre_image::pack::{PackConfig, write_oci_archive};
use byre_image::pull::{PullError, Pulled, pull};
use byre_image::shared::SharedStore;
use byre_image::store;
use byre_image::tar::{Entry, EntryKind, Timestamp};

use crate::blocking::Fetcher;
use crate::settings::Proxy;
use crate::testing::{Auth, Behaviour, TestRegistry};
use crate::{Client, Credential, Host, Limits, Settings};

const STORE: store::Limits = store::Limits { archive_bytes: 1 << 30, layer_bytes: 1 << 30, reserve_bytes: 0 };

/// Quick enough for a test, long enough for a machine that others use too.
fn limits() -> Limits {
    Limits {
        head: Duration::from_secs(2),
        window: Duration::from_millis(1500),
        first_wait: Duration::from_millis(10),
        longest_wait: Duration::from_secs(3),
        ..Limits::default()
    }
}

fn archive() -> Vec<u8> {
    let mut tar = TarWriter::new(tempfile::tempfile().unwrap());
    let mut noise = vec![0_u8; 3 << 20];
    let mut state = 7_u32;
    for byte in &mut noise {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = state.to_be_bytes()[0];
    }
    let entry = Entry {
        path: b"noise".to_vec(),
        kind: EntryKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        size: noise.len() as u64,
        sparse: None,
        xattrs: Vec::new(),
    };
    tar.append(&entry, &noise[..]).unwrap();
    let mut layers = [tar.finish().unwrap()];
    let config = PackConfig { cmd: vec!["noise".into()], ..PackConfig::default() };
    let mut out = Vec::new();
    write_oci_archive(&mut out, &mut layers, Compression::Gzip, &config, None, &mut tempfile::tempfile).unwrap();
    out
}

/// A registry with one image, `app:1`.
fn registry(tls: bool) -> TestRegistry {
    let registry = TestRegistry::start(tls);
    registry.add_archive("1", &archive());
    registry
}

fn known(registry: &TestRegistry) -> Settings {
    let host = Host { ca_pem: registry.ca_pem(), plain_http: registry.ca_pem().is_none(), ..Host::default() };
    let settings = Settings { hosts: [(registry.host(), host)].into(), ..Settings::default() };
    settings.check().unwrap();
    settings
}

fn tried(settings: Settings, credential: Option<Credential>, name: &str) -> Result<Pulled, PullError> {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = SharedStore::open(dir.path(), STORE).unwrap();
    let fetcher = Fetcher::new(Client::with_limits(settings, limits()), credential).unwrap();
    let result = pull(&store, &fetcher, &name.parse().unwrap(), &mut |_| true);
    let images = store.catalog().list().count();
    assert_eq!(images, usize::from(result.is_ok()), "an image is there if and only if it was pulled");
    assert_eq!(std::fs::read_dir(dir.path().join("staging")).unwrap().count(), 0);
    result
}

fn pulled(registry: &TestRegistry, credential: Option<Credential>) -> Result<Pulled, PullError> {
    tried(known(registry), credential, &format!("{}/app:1", registry.host()))
}

fn me() -> Option<Credential> {
    Some(Credential::password("me", "sesame").unwrap())
}

#[test]
fn each_authentication_over_tls_and_without() {
    for tls in [true, false] {
        let registry = registry(tls);
        pulled(&registry, None).unwrap();
        registry.want(Auth::Basic("me".into(), "sesame".into()));
        pulled(&registry, me()).unwrap();
        let error = pulled(&registry, None).unwrap_err().to_string();
        assert!(error.contains("refuses access") && error.contains("credentials"), "{error}");
        registry.want(Auth::Token(Some(("me".into(), "sesame".into()))));
        pulled(&registry, me()).unwrap();
        let wrong = Credential::password("me", "wrong-word").unwrap();
        let error = pulled(&registry, Some(wrong)).unwrap_err().to_string();
        assert!(error.contains("token") && error.contains("incorrect") && !error.contains("wrong-word"), "{error}");
        registry.want(Auth::Token(None));
        pulled(&registry, None).unwrap();
    }
}

#[test]
fn credentials_of_the_settings_are_used_for_their_host_alone() {
    let registry = registry(true);
    registry.want(Auth::Basic("me".into(), "sesame".into()));
    let mut settings = known(&registry);
    let config = format!(r#"{{"auths":{{"{}":{{"username":"me","password":"sesame"}}}}}}"#, registry.host());
    settings.add_docker_config(&config).unwrap();
    tried(settings, None, &format!("{}/app:1", registry.host())).unwrap();
}

#[test]
fn a_certificate_of_nobody_is_refused() {
    let registry = registry(true);
    let other = self::registry(true);
    let mut settings = known(&registry);
    settings.hosts.get_mut(&registry.host()).unwrap().ca_pem = other.ca_pem();
    let error = tried(settings, None, &format!("{}/app:1", registry.host())).unwrap_err().to_string();
    assert!(error.contains("no secure connection") && error.contains("ca_pem"), "{error}");
    // Without `plain_http`, nothing is said in clear.
    let plain = self::registry(false);
    let settings = Settings { authorities: "/nonexistent".into(), ..Settings::default() };
    let error = tried(settings, None, &format!("{}/app:1", plain.host())).unwrap_err().to_string();
    assert!(error.contains("certificates"), "{error}");
    assert!(plain.seen().is_empty());
}

#[test]
fn a_broken_line_is_resumed_with_a_range() {
    let registry = registry(false);
    registry.behave(Behaviour::CutAfter { bytes: 1 << 20, times: 3 });
    pulled(&registry, None).unwrap();
    let blobs = registry.seen().iter().filter(|target| target.contains("/blobs/")).count();
    assert_eq!(blobs, 5, "the configuration, which is too small to be cut, and a layer with three cuts");
    registry.behave(Behaviour::RangeIgnored);
    pulled(&registry, None).unwrap();
    registry.behave(Behaviour::RangeWrong);
    let error = pulled(&registry, None).unwrap_err().to_string();
    assert!(error.contains("another range"), "{error}");
    registry.behave(Behaviour::ChangedMidway(1 << 20));
    registry.forget();
    pulled(&registry, None).unwrap();
    let blobs = registry.seen().iter().filter(|target| target.contains("/blobs/")).count();
    assert_eq!(
        blobs, 4,
        "the configuration, a layer cut off, a rest that does not belong to it, and the layer once more"
    );
}

#[test]
fn an_overloaded_registry_is_given_time_and_not_for_ever() {
    let registry = registry(false);
    for (status, retry_after) in [(429, Some("1".to_owned())), (503, None), (500, None)] {
        registry.behave(Behaviour::Status { status, times: 2, retry_after });
        let began = Instant::now();
        pulled(&registry, None).unwrap();
        assert!(status != 429 || began.elapsed() >= Duration::from_secs(2), "Retry-After is kept to");
    }
    registry.behave(Behaviour::Status { status: 503, times: usize::MAX, retry_after: None });
    registry.forget();
    let error = pulled(&registry, None).unwrap_err().to_string();
    assert!(error.contains("503 to 4 tries") && error.contains("slow down"), "{error}");
    assert_eq!(registry.seen().len(), 4);
    registry.behave(Behaviour::Status { status: 429, times: usize::MAX, retry_after: Some("86400".into()) });
    let error = pulled(&registry, None).unwrap_err().to_string();
    assert!(error.contains("86400 s"), "{error}");
    registry.behave(Behaviour::Status { status: 403, times: usize::MAX, retry_after: None });
    let error = pulled(&registry, None).unwrap_err().to_string();
    assert!(error.contains("refuses access"), "{error}");
}

#[test]
fn every_mischief_is_refused_by_name() {
    let registry = registry(false);
    for (behaviour, words) in [
        (Behaviour::WrongBlob, "digest"),
        (Behaviour::WrongManifest, "changed on its way"),
        (Behaviour::EndlessBlob, "larger than"),
        (Behaviour::EndlessManifest, "larger than 4194304"),
        (Behaviour::GiantManifest, "larger than 4194304"),
        (Behaviour::WrongLength, "its manifest says"),
        (Behaviour::EndlessHead, "malformed"),
        (Behaviour::NotHttp, "malformed"),
        (Behaviour::RedirectLoop, "redirects more than 5 times"),
        (Behaviour::RedirectTo("ftp://elsewhere".into()), "no address"),
        (Behaviour::Drip, "sends too slowly"),
        (Behaviour::Challenge("Negotiate".into()), "unknown way"),
        (Behaviour::Challenge("Bearer realm=\"file:///etc/passwd\"".into()), "not an http"),
        (Behaviour::Challenge("Basic realm=\"never ends".into()), "unknown way"),
    ] {
        let shown = format!("{behaviour:?}");
        registry.behave(behaviour);
        let mut settings = limits();
        settings.tries = 1;
        settings.window = Duration::from_millis(700);
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = SharedStore::open(dir.path(), STORE).unwrap();
        let fetcher = Fetcher::new(Client::with_limits(known(&registry), settings), None).unwrap();
        let name = format!("{}/app:1", registry.host()).parse().unwrap();
        let error = pull(&store, &fetcher, &name, &mut |_| true).unwrap_err().to_string();
        assert!(error.contains(words), "{shown}: {error}");
        assert_eq!(store.catalog().list().count(), 0, "{shown}");
    }
}

#[test]
fn a_silent_registry_is_given_up() {
    let registry = registry(false);
    registry.behave(Behaviour::Silent);
    let quick = Limits { head: Duration::from_millis(300), tries: 2, first_wait: Duration::from_millis(1), ..limits() };
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = SharedStore::open(dir.path(), STORE).unwrap();
    let fetcher = Fetcher::new(Client::with_limits(known(&registry), quick), None).unwrap();
    let name = format!("{}/app:1", registry.host()).parse().unwrap();
    let began = Instant::now();
    let error = pull(&store, &fetcher, &name, &mut |_| true).unwrap_err().to_string();
    assert!(error.contains("too slowly") && began.elapsed() < Duration::from_secs(4), "{error}");
}

#[test]
fn a_redirect_is_followed_without_the_credential() {
    let registry = registry(false);
    let storage = self::registry(false);
    registry.want(Auth::Basic("me".into(), "sesame".into()));
    registry.behave(Behaviour::RedirectTo(format!("http://{}", storage.host())));
    pulled(&registry, me()).unwrap();
    assert!(storage.seen().iter().any(|target| target.contains("/blobs/")));
    assert_eq!(storage.authorizations(), []);
    assert!(!registry.authorizations().is_empty());
    // A storage that asks for a credential gets none either.
    storage.want(Auth::Basic("me".into(), "sesame".into()));
    let error = pulled(&registry, me()).unwrap_err().to_string();
    assert!(error.contains("refuses access"), "{error}");
    assert_eq!(storage.authorizations(), []);
    // TLS is not left.
    let secure = self::registry(true);
    secure.behave(Behaviour::RedirectTo(format!("http://{}", storage.host())));
    let error = pulled(&secure, None).unwrap_err().to_string();
    assert!(error.contains("no TLS"), "{error}");
}

#[test]
fn mirrors_come_first_and_the_registry_after_all_of_them() {
    let (registry, mirror) = (registry(false), registry(false));
    registry.want(Auth::Basic("me".into(), "sesame".into()));
    let mut settings = known(&registry);
    settings.hosts.insert(mirror.host(), Host { plain_http: true, ..Host::default() });
    let gone = "https://127.0.0.1:1".to_owned();
    settings.hosts.get_mut(&registry.host()).unwrap().mirrors = vec![gone, format!("http://{}", mirror.host())];
    settings.check().unwrap();
    let name = format!("{}/app:1", registry.host());
    tried(settings.clone(), me(), &name).unwrap();
    assert!(registry.seen().is_empty(), "the mirror had everything");
    assert!(mirror.seen().iter().all(|target| target.ends_with(&format!("?ns={}", registry.host()))));
    assert_eq!(mirror.authorizations(), [], "the credential is the registry's");
    // A mirror that lies or breaks costs time and nothing else.
    for behaviour in [Behaviour::WrongBlob, Behaviour::WrongManifest, Behaviour::EndlessManifest, Behaviour::RangeWrong]
    {
        registry.forget();
        mirror.behave(behaviour.clone());
        tried(settings.clone(), me(), &name).unwrap_or_else(|error| panic!("{behaviour:?}: {error}"));
        assert!(!registry.seen().is_empty(), "{behaviour:?}");
    }
}

#[test]
fn an_index_leads_to_the_image_of_this_machine_and_pins_it() {
    let registry = registry(true);
    let manifest = registry.add_archive("1", &archive());
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let size = {
        // The size of the manifest is what an index has to say of it.
        let client = Client::with_limits(known(&registry), limits());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let reference: byre_image::reference::Reference = format!("{}/app:1", registry.host()).parse().unwrap();
        runtime.block_on(client.manifest(&(&reference).into(), "1", None, false)).unwrap().bytes.len()
    };
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{manifest}",
        "size":{size},"platform":{{"os":"linux","architecture":"{architecture}"}}}}]}}"#
    );
    let index = registry.add_manifest("multi", "application/vnd.oci.image.index.v1+json", index.into_bytes());
    let multi = tried(known(&registry), None, &format!("{}/app:multi", registry.host())).unwrap();
    assert_eq!((multi.reference.digest(), multi.image.manifest), (Some(&index), Some(manifest)));
    let pinned = tried(known(&registry), None, &format!("{}/app@{index}", registry.host())).unwrap();
    assert!(pinned.image.names.is_empty() && pinned.image.id == multi.image.id);
    let none = tried(known(&registry), None, &format!("{}/app:none", registry.host())).unwrap_err().to_string();
    assert!(none.contains("has no") && none.contains("app:none"), "{none}");
}

#[test]
fn a_plain_registry_is_reached_through_a_proxy() {
    // A registry answers absolute addresses as a proxy would: what counts is who was connected to.
    let proxy = registry(false);
    let mut settings = Settings {
        hosts: [("registry.invalid:80".to_owned(), Host { plain_http: true, ..Host::default() })].into(),
        proxy: Some(Proxy::parse(&format!("http://me:sesame@{}", proxy.host())).unwrap()),
        ..Settings::default()
    };
    tried(settings.clone(), None, "registry.invalid:80/app:1").unwrap();
    assert!(
        proxy.seen().iter().all(|target| target.starts_with("http://registry.invalid/v2/app/")),
        "{:?}",
        proxy.seen()
    );
    settings.no_proxy.push(".invalid".to_owned());
    assert!(tried(settings, None, "registry.invalid:80/app:1").is_err());
}
