//! Which node is meant, and the connection to it.
//!
//! `--host` names an address; credentials for it come from the context. Without either, the socket of this machine is taken if there is
//! one: then we are on a node.

use std::path::{Path, PathBuf};

use byre_api::client::{Endpoint, PORT, SOCKET, TcpEndpoint, connect};
use byre_api::contexts::{Context, ContextError, Contexts};
use byre_api::pki::ClientIdentity;
use byre_api::proto::boots_client::BootsClient;
use byre_api::proto::config_client::ConfigClient;
use byre_api::proto::debugging_client::DebuggingClient;
use byre_api::proto::image_transfers_client::ImageTransfersClient;
use byre_api::proto::images_client::ImagesClient;
use byre_api::proto::node_client::NodeClient;
use byre_api::proto::supervision_client::SupervisionClient;
use byre_api::proto::update_client::UpdateClient;
use byre_api::proto::workloads_client::WorkloadsClient;
use tonic::transport::Channel;

use crate::args::Global;
use crate::error::Failure;

/// A connected node.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// What to call it when asking a person: the context's name, or the address.
    pub(crate) label: String,
    channel: Channel,
}

impl Node {
    pub(crate) async fn connect(global: &Global) -> Result<Self, Failure> {
        let path = Contexts::default_path();
        let contexts = match &path {
            Ok(path) => Contexts::load(path)?,
            Err(_) => Contexts::default(),
        };
        let base = path.ok().and_then(|path| path.parent().map(PathBuf::from)).unwrap_or_default();
        let (label, endpoint) = choose(global, &contexts, &base, Path::new(SOCKET).exists())?;
        Ok(Self { label, channel: connect(&endpoint).await? })
    }

    pub(crate) fn workloads(&self) -> WorkloadsClient<Channel> {
        WorkloadsClient::new(self.channel.clone())
    }

    pub(crate) fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone())
    }

    pub(crate) fn config(&self) -> ConfigClient<Channel> {
        ConfigClient::new(self.channel.clone())
    }

    pub(crate) fn image_transfers(&self) -> ImageTransfersClient<Channel> {
        ImageTransfersClient::new(self.channel.clone())
    }

    pub(crate) fn boots(&self) -> BootsClient<Channel> {
        BootsClient::new(self.channel.clone())
    }

    pub(crate) fn updates(&self) -> UpdateClient<Channel> {
        UpdateClient::new(self.channel.clone())
    }

    pub(crate) fn supervision(&self) -> SupervisionClient<Channel> {
        SupervisionClient::new(self.channel.clone())
    }

    pub(crate) fn debugging(&self) -> DebuggingClient<Channel> {
        DebuggingClient::new(self.channel.clone())
    }

    pub(crate) fn machine(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }
}

/// The endpoint, and what to call it.
fn choose(global: &Global, contexts: &Contexts, base: &Path, on_a_node: bool) -> Result<(String, Endpoint), Failure> {
    let selected = contexts.select(global.context.as_deref().filter(|name| !name.is_empty()))?;
    match (global.host.as_deref().filter(|host| !host.is_empty()), selected) {
        (Some(host), selected) => {
            let mut context = selected.map(|(_, context)| context.clone()).unwrap_or_else(|| local(host));
            if context.server != host {
                // The name belonged to the other address.
                context.server_name = None;
            }
            context.server = host.into();
            Ok((host.into(), endpoint(&context, base)?))
        }
        (None, Some((name, context))) => Ok((name.into(), endpoint(context, base)?)),
        (None, None) if on_a_node => Ok((SOCKET.into(), Endpoint::Unix(SOCKET.into()))),
        (None, None) => Err(Failure::usage(
            "no node is named",
            "add one with `byrectl context add`, choose one with `byrectl context use`, or give --host",
        )),
    }
}

fn local(server: &str) -> Context {
    Context { server: server.into(), server_name: None, ca: None, certificate: None, key: None }
}

/// The endpoint a context describes, its files read.
fn endpoint(context: &Context, base: &Path) -> Result<Endpoint, Failure> {
    if let Some(path) = context.server.strip_prefix("unix://") {
        if !path.starts_with('/') {
            return Err(Failure::usage(format!("{} is not an absolute path", context.server), "write unix:///path"));
        }
        return Ok(Endpoint::Unix(path.into()));
    }
    let load = |pem: &Option<byre_api::contexts::Pem>, what: &str| match pem {
        Some(pem) => Ok(pem.load(base)?),
        None => Err(Failure::usage(
            format!("no {what} for {}", context.server),
            "a node over TCP needs --ca, --cert and --key in `byrectl context add`",
        )),
    };
    let authority_pem = load(&context.ca, "certificate authority")?;
    let identity = ClientIdentity {
        certificate_pem: load(&context.certificate, "client certificate")?,
        key_pem: load(&context.key, "client key")?,
    };
    let server_name = context.server_name.clone();
    Ok(Endpoint::Tcp(TcpEndpoint { address: address(&context.server)?, server_name, authority_pem, identity }))
}

/// `host:port`, with the usual port if none is given.
pub(crate) fn address(server: &str) -> Result<String, Failure> {
    let bad = || Failure::usage(format!("{server:?} is no address"), "write host:port, [ipv6]:port or unix:///path");
    let port = |text: &str| text.parse::<u16>().is_ok_and(|port| port != 0);
    let host = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
    };
    if let Some(rest) = server.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').ok_or_else(bad)?;
        if inside.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(bad());
        }
        return match after.strip_prefix(':') {
            Some(text) if port(text) => Ok(server.into()),
            None if after.is_empty() => Ok(format!("{server}:{PORT}")),
            Some(_) | None => Err(bad()),
        };
    }
    match server.split_once(':') {
        Some((name, text)) if host(name) && port(text) => Ok(server.into()),
        None if host(server) => Ok(format!("{server}:{PORT}")),
        Some(_) | None => Err(bad()),
    }
}

/// Whether a server could be written into a context.
pub(crate) fn check_server(server: &str) -> Result<(), Failure> {
    match server.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(()),
        Some(_) => Err(Failure::usage(format!("{server} is not an absolute path"), "write unix:///path")),
        None => address(server).map(drop),
    }
}

/// The file of contexts, and where it is.
pub(crate) fn contexts() -> Result<(PathBuf, Contexts), ContextError> {
    let path = Contexts::default_path()?;
    let contexts = Contexts::load(&path)?;
    Ok((path, contexts))
}

#[cfg(test)]
mod tests {
    use byre_api::contexts::Pem;

    use super::*;
    use crate::args::Format;

    fn global(context: Option<&str>, host: Option<&str>) -> Global {
        Global { context: context.map(Into::into), host: host.map(Into::into), output: Format::Table }
    }

    fn contexts() -> Contexts {
        let pem = || Some(Pem::from("-----BEGIN X-----".to_owned()));
        let tcp = Context {
            server: "node:7443".into(),
            server_name: Some("other".into()),
            ca: pem(),
            certificate: pem(),
            key: pem(),
        };
        let mut contexts = Contexts { current: Some("tcp".into()), ..Contexts::default() };
        contexts.insert("tcp", tcp).unwrap();
        contexts.insert("local", local("unix:///run/x.sock")).unwrap();
        contexts
    }

    #[test]
    fn the_node_is_the_host_given_else_the_context_else_this_machine() {
        let base = Path::new("/");
        let chosen =
            |global: &Global, contexts: &Contexts, here| choose(global, contexts, base, here).map(|(_, to)| to);
        let to = chosen(&global(None, Some("unix:///a.sock")), &contexts(), false).unwrap();
        assert_eq!(to, Endpoint::Unix("/a.sock".into()));
        let to = chosen(&global(Some("local"), None), &contexts(), false).unwrap();
        assert_eq!(to, Endpoint::Unix("/run/x.sock".into()));
        let Endpoint::Tcp(tcp) = chosen(&global(None, None), &contexts(), true).unwrap() else { panic!() };
        assert_eq!((tcp.address.as_str(), tcp.server_name.as_deref()), ("node:7443", Some("other")));
        let Endpoint::Tcp(tcp) = chosen(&global(None, Some("10.0.0.1")), &contexts(), true).unwrap() else { panic!() };
        assert_eq!((tcp.address.as_str(), tcp.server_name), ("10.0.0.1:7443", None));
        let to = chosen(&global(None, None), &Contexts::default(), true).unwrap();
        assert_eq!(to, Endpoint::Unix(SOCKET.into()));
        assert_eq!(chosen(&global(None, None), &Contexts::default(), false).unwrap_err().code(), 2);
        assert!(chosen(&global(Some("gone"), None), &contexts(), false).is_err());
        assert!(chosen(&global(None, Some("node:1")), &Contexts::default(), false).is_err(), "no credentials");
    }

    #[test]
    fn addresses() {
        assert_eq!(address("node").unwrap(), "node:7443");
        assert_eq!(address("[::1]").unwrap(), "[::1]:7443");
        assert_eq!(address("[::1]:80").unwrap(), "[::1]:80");
        for text in
            ["", ":", "node:", "node:0", "node:99999", "::1", "[::1", "[x]:1", "http://node:1", "no de:1", "a:b:1"]
        {
            assert!(address(text).is_err(), "{text}");
        }
    }
}
