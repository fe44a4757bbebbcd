//! What one installation needs to reach its nodes: an authority, a client certificate for each role, a join token, and the machine
//! configuration that tells a node of them.
//!
//! Kept in one folder and made once, so that a node that has joined can be reached again. The keys in it are worth as much as the nodes.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use byre_api::client::{AdoptError, ConnectError, Endpoint, TcpEndpoint, adopt, connect};
use byre_api::pki::{Authority, ClientIdentity};
use byre_api::proto::VersionRequest;
use byre_api::proto::node_client::NodeClient;
use byre_api::role::Role;

use crate::ctl::Ctl;

/// Bytes of randomness of a join token; it is written as twice as many hexadecimal digits.
const TOKEN_BYTES: usize = 16;
/// How often a node that does not answer yet is asked again.
const RETRY: Duration = Duration::from_millis(50);

/// The files of an installation.
#[derive(Debug, Clone)]
pub struct Credentials {
    folder: PathBuf,
    /// The node's name.
    hostname: String,
}

/// Why a node did not answer.
enum Unanswered {
    /// What answered has no certificate of our authority.
    Stranger,
    /// Not up yet, as far as can be seen.
    Yet(String),
}

/// One full answer of the API: the connection alone may be the port forwarder's.
async fn ask(endpoint: &TcpEndpoint) -> Result<(), Unanswered> {
    let channel = connect(&Endpoint::Tcp(endpoint.clone())).await.map_err(|error| match error {
        ConnectError::Tls(_, ref tls) if tls.kind() == std::io::ErrorKind::InvalidData => Unanswered::Stranger,
        ConnectError::Unreachable(..)
        | ConnectError::Timeout(_)
        | ConnectError::Tls(..)
        | ConnectError::Credentials(..)
        | ConnectError::Protocol(..) => Unanswered::Yet(error.to_string()),
    })?;
    let answer = NodeClient::new(channel).version(VersionRequest {}).await;
    answer.map(drop).map_err(|status| Unanswered::Yet(status.message().to_owned()))
}

/// The name of a role's files and context.
#[must_use]
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Reader => "reader",
        Role::Operator => "operator",
        Role::Admin => "admin",
    }
}

impl Credentials {
    /// Those in `folder`, made if it has none.
    ///
    /// # Errors
    /// If files cannot be read or written.
    pub fn in_folder(folder: &Path, hostname: &str) -> Result<Self> {
        let this = Self { folder: folder.to_owned(), hostname: hostname.to_owned() };
        // Written last: a folder without it was left half made and is made again.
        if !this.configuration().exists() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            this.make().with_context(|| format!("cannot make credentials in {}", folder.display()))?;
        }
        Ok(this)
    }

    fn make(&self) -> Result<()> {
        let authority = Authority::generate("Byre development authority")?;
        self.write("ca.pem", authority.certificate_pem())?;
        self.write("ca.key", &authority.key_pem())?;
        for role in Role::ALL {
            let name = role_name(role);
            let client = authority.client(name, role)?;
            self.write(&format!("{name}.pem"), &client.certificate_pem)?;
            self.write(&format!("{name}.key"), &client.key_pem)?;
        }
        let mut random = [0u8; TOKEN_BYTES];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let token = hex::encode(random);
        self.write("token", &token)?;
        let configuration = format!(
            "version = 1\n\n[identity]\nhostname = \"{}\"\n\n[api]\njoin_token = \"{token}\"\nca_pem = \"\"\"\n{}\"\"\"\n",
            self.hostname,
            authority.certificate_pem()
        );
        self.write("node.toml", &configuration)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.folder.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// The machine configuration (TOML), to be handed to the machine.
    #[must_use]
    pub fn configuration(&self) -> PathBuf {
        self.folder.join("node.toml")
    }

    /// Where a node is reached, and as whom.
    ///
    /// # Errors
    /// If a file is missing.
    pub fn endpoint(&self, address: &str, role: Role) -> Result<TcpEndpoint> {
        let name = role_name(role);
        Ok(TcpEndpoint {
            address: address.to_owned(),
            server_name: None,
            authority_pem: self.read("ca.pem")?,
            identity: ClientIdentity {
                certificate_pem: self.read(&format!("{name}.pem"))?,
                key_pem: self.read(&format!("{name}.key"))?,
            },
        })
    }

    /// Waits until the node answers, and joins it unless it has joined before. `alive` is asked between attempts: an error of it (the machine
    /// is gone) ends the wait.
    ///
    /// # Errors
    /// If the limit passes, the machine is gone, or what answers is not our node.
    pub fn join(&self, address: &str, limit: Duration, mut alive: impl FnMut() -> Result<()>) -> Result<()> {
        let endpoint = self.endpoint(address, Role::Admin)?;
        let authority = Authority::from_pem(&self.read("ca.pem")?, &self.read("ca.key")?)?;
        let token = self.read("token")?;
        let names = [self.hostname.clone()];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let deadline = Instant::now() + limit;
        loop {
            alive()?;
            // One that joined before shows a certificate of ours; a new one a self-signed one, and is adopted.
            let refused = match runtime.block_on(ask(&endpoint)) {
                Ok(()) => return Ok(()),
                Err(Unanswered::Stranger) => match runtime.block_on(adopt(&endpoint, &authority, &token, &names)) {
                    Ok(_) => return Ok(()),
                    Err(AdoptError::Connect(error)) => error.to_string(),
                    Err(AdoptError::Call { status, .. }) if status.code() == tonic::Code::Unavailable => {
                        status.message().to_owned()
                    }
                    Err(error) => bail!("the node cannot be joined: {error}"),
                },
                Err(Unanswered::Yet(reason)) => reason,
            };
            ensure!(Instant::now() < deadline, "no answer within {} seconds: {refused}", limit.as_secs());
            std::thread::sleep(RETRY);
        }
    }

    /// The arguments of `byrectl` that make this node known to it as the context `name`, in this role.
    #[must_use]
    pub fn context_arguments(&self, address: &str, name: &str, role: Role) -> Vec<String> {
        let path = |name: String| self.folder.join(name).to_string_lossy().into_owned();
        let (ca, role_name) = (path("ca.pem".into()), role_name(role));
        let (certificate, key) = (path(format!("{role_name}.pem")), path(format!("{role_name}.key")));
        let mut words =
            vec!["context", "add", name, "--server", address, "--ca", &ca, "--cert", &certificate, "--key", &key];
        if role == Role::Admin {
            words.push("--use");
        }
        words.into_iter().map(str::to_owned).collect()
    }

    /// Writes a context for each role into the file of contexts that `ctl` uses, under the role's name; the administrator's is current.
    ///
    /// # Errors
    /// If `byrectl` refuses.
    pub fn write_contexts(&self, ctl: &Ctl, address: &str) -> Result<()> {
        for role in Role::ALL {
            let arguments = self.context_arguments(address, role_name(role), role);
            ctl.ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}
