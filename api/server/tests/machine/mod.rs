//! A running server with the other ends of its sockets in the test's hand: PID 1's side of the protocol is played by a function of the test.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use byre_api::client::{Endpoint, TcpEndpoint};
use byre_api::pki::{Authority, ClientIdentity};
use byre_api::role::Role;
use byre_api_server::{ApiConfig, FactsSource, NodeFacts, NodeVersion, Options, serve};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// The join token of [`joinable`].
pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// The configuration of a node that can be joined.
pub(crate) fn joinable(authority: &Authority) -> ApiConfig {
    ApiConfig {
        ca_pem: Some(authority.certificate_pem().to_owned()),
        join_token: Some(TOKEN.into()),
        hostname: Some("node-1".into()),
    }
}

/// Facts of no machine.
struct Facts;

impl FactsSource for Facts {
    fn facts(&self) -> NodeFacts {
        NodeFacts { hostname: "node-1".into(), processors: 2, ..NodeFacts::default() }
    }
    fn version(&self) -> NodeVersion {
        NodeVersion { os_version: "1.2.3".into(), ..NodeVersion::default() }
    }
}

/// A server and what is needed to reach it.
pub(crate) struct Machine {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) authority: Authority,
    address: String,
}

impl Machine {
    #[allow(dead_code, reason = "not every test of this crate reaches it that way")]
    pub(crate) fn unix(&self) -> Endpoint {
        Endpoint::Unix(self.directory.path().join("api.sock"))
    }

    pub(crate) fn tcp(&self, identity: ClientIdentity) -> TcpEndpoint {
        TcpEndpoint {
            address: self.address.clone(),
            server_name: Some("node-1".into()),
            authority_pem: self.authority.certificate_pem().into(),
            identity,
        }
    }

    pub(crate) fn client(&self, role: Role) -> TcpEndpoint {
        self.tcp(self.authority.client("erika", role).unwrap())
    }
}

/// Starts the server on a thread of its own with a runtime of its own, as in the real process.
pub(crate) async fn machine(
    configure: impl FnOnce(&Authority) -> ApiConfig,
    init: impl FnOnce(OwnedFd) + Send + 'static,
) -> Machine {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let authority = Authority::generate("test").unwrap();
    std::fs::write(path("api.json"), serde_json::to_vec(&configure(&authority)).unwrap()).unwrap();
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    std::thread::spawn(move || init(theirs));
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap().to_string();
    let unix = std::os::unix::net::UnixListener::bind(path("api.sock")).unwrap();
    let (is_ready, ready) = tokio::sync::oneshot::channel();
    let announce = Box::new(move || is_ready.send(()).unwrap());
    let mut options = Options::new(ours, Arc::new(Facts), announce);
    options.unix = Some(unix.into());
    options.tcp = Some(tcp.into());
    options.state = directory.path().into();
    options.audit = directory.path().into();
    options.config = path("api.json");
    options.sockets.log = path("log.sock");
    options.sockets.image = path("image.sock");
    options.sockets.stats = path("stats.sock");
    options.sockets.config = path("config.sock");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(serve(options))
    });
    ready.await.unwrap();
    Machine { directory, authority, address }
}
