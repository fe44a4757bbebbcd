//! Who may call what. Every call passes here before any byte of its message is decoded, and what is not in the table is refused.
//!
//! Over the unix socket the peer's user id counts: root is an administrator, everybody else who may open the socket only reads. Over
//! TCP the role stands in the client certificate, which TLS has verified. A connection that was served with the self-signed certificate
//! reaches [`IDENTITY`] alone.

use std::task::{Context, Poll};

use byre_api::role::Role;
use futures::future::{Either, Ready, ready};
use tonic::{Extensions, Status};
use tower::{Layer, Service};

/// Prefix of the paths of the Identity service.
const IDENTITY: &str = "/byre.node.v1.Identity/";

/// Where a peer comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The unix socket, with this user id.
    Unix {
        /// User id.
        uid: u32,
    },
    /// TLS, with this client certificate.
    Certificate {
        /// Common name.
        name: String,
        /// Serial number.
        serial: String,
    },
}

impl std::fmt::Display for Origin {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix { uid } => write!(formatter, "uid {uid}"),
            Self::Certificate { name, serial } => write!(formatter, "{name} (certificate {serial})"),
        }
    }
}

/// The other end of a connection, known when it was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Where it comes from.
    pub origin: Origin,
    /// What it may do; `None` is nothing.
    pub role: Option<Role>,
    /// Whether we showed it a certificate of the authority; always so on the unix socket.
    pub joined: bool,
    /// When the connection was accepted, in milliseconds since boot.
    pub connected_boot_ms: u64,
}

impl Peer {
    /// The peer of a request that came through the gate.
    ///
    /// # Errors
    /// If there is none, which is a mistake of ours.
    pub(crate) fn of(extensions: &Extensions) -> Result<Self, Status> {
        extensions.get::<Self>().cloned().ok_or_else(|| Status::internal("the connection's peer is not known"))
    }
}

/// The role that a method needs, by its path. `None`: no such method.
#[must_use]
pub(crate) fn needed_role(path: &str) -> Option<Role> {
    if path.starts_with("/grpc.health.v1.Health/") || path.starts_with("/grpc.reflection.") {
        return Some(Role::Reader);
    }
    Some(match path.strip_prefix("/byre.node.v1.")? {
        "Workloads/List"
        | "Workloads/Inspect"
        | "Workloads/Why"
        | "Workloads/Wait"
        | "Workloads/Logs"
        | "Workloads/Stats"
        | "Workloads/Events"
        | "Images/ListImages"
        | "Images/InspectImage"
        | "ImageTransfers/Verify"
        | "Node/Version"
        | "Node/GetNode"
        | "Node/KernelLog"
        | "Boots/ListBoots"
        | "Boots/ShowBoot"
        | "Config/GetConfigSchema"
        | "Config/GetConfig"
        | "Config/PlanConfig"
        | "Config/CompareConfig"
        | "Config/ListConfig"
        | "Update/GetUpdateStatus"
        | "Update/GetUpdateHistory" => Role::Reader,
        // Restart of a service of the node, or a look into it, needs more; that is checked when it is known which workload is meant.
        "Workloads/Create"
        | "Workloads/Start"
        | "Workloads/Stop"
        | "Workloads/Restart"
        | "Workloads/Kill"
        | "Workloads/Remove"
        | "Workloads/Attach"
        | "Workloads/Exec"
        | "Workloads/CopyIn"
        | "Workloads/CopyOut"
        | "Images/Load"
        | "Images/RemoveImage"
        | "Images/PruneImages"
        | "ImageTransfers/Pull"
        | "ImageTransfers/Tag"
        | "ImageTransfers/Untag"
        | "Debugging/ListProcesses"
        | "Debugging/ListSockets"
        | "Supervision/Enable"
        | "Supervision/Disable"
        | "Supervision/Reset"
        | "Update/CheckUpdate" => Role::Operator,
        "Node/Shutdown"
        | "Node/Reexec"
        | "Supervision/Trace"
        | "Identity/GetSigningRequest"
        | "Identity/InstallCertificate"
        | "Config/ApplyConfig"
        | "Config/ConfirmConfig"
        | "Config/UndoConfig"
        | "Update/ApplyUpdate"
        | "Update/ApplyUpdateBundle"
        | "Update/CancelUpdate"
        | "Update/RollbackUpdate" => Role::Admin,
        _ => return None,
    })
}

/// Whether `peer` may call `path`.
///
/// # Errors
/// The status that says why not and what to do.
pub(crate) fn admit(peer: &Peer, path: &str) -> Result<(), Status> {
    let Some(needed) = needed_role(path) else {
        return Err(Status::unimplemented(format!("{path} is not a method of this node; compare the versions")));
    };
    if !peer.joined && !path.starts_with(IDENTITY) {
        return Err(Status::unavailable(
            "this node has no certificate yet: sign and install one first (docs/api.md, \"Joining\")",
        ));
    }
    match peer.role {
        Some(role) if role >= needed => Ok(()),
        Some(role) => Err(Status::permission_denied(format!(
            "{} has the role {role}, {path} needs {needed}: use a certificate with that role",
            peer.origin
        ))),
        None => Err(Status::permission_denied(format!(
            "{} has no role: its certificate must carry the organization {} or another of byre:reader, byre:operator, byre:admin",
            peer.origin,
            needed.organization()
        ))),
    }
}

/// Puts the gate before a service.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GateLayer;

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;
    fn layer(&self, inner: S) -> Gate<S> {
        Gate { inner }
    }
}

/// A service behind the gate.
#[derive(Debug, Clone)]
pub(crate) struct Gate<S> {
    inner: S,
}

impl<S, B, R> Service<http::Request<B>> for Gate<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    R: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let admitted = match request.extensions().get::<Peer>() {
            Some(peer) => admit(peer, request.uri().path()),
            None => Err(Status::internal("the connection's peer is not known")),
        };
        match admitted {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn every_method_of_the_contract_has_a_role_and_nothing_else_has() {
        let set = prost_types::FileDescriptorSet::decode(byre_api::proto::DESCRIPTORS).unwrap();
        let mut methods = 0;
        for file in set.file.iter().filter(|file| file.package() == "byre.node.v1") {
            for service in &file.service {
                for method in &service.method {
                    methods += 1;
                    let path = format!("/byre.node.v1.{}/{}", service.name(), method.name());
                    assert!(needed_role(&path).is_some(), "{path}");
                }
            }
        }
        assert!(methods >= 37, "{methods}");
        assert_eq!(needed_role("/byre.node.v1.Workloads/Unheard"), None);
        assert_eq!(needed_role("/other.Service/List"), None);
        assert_eq!(needed_role(""), None);
    }

    #[test]
    fn a_role_may_do_what_it_needs_and_all_below() {
        let peer = |role, joined| Peer { origin: Origin::Unix { uid: 1 }, role, joined, connected_boot_ms: 0 };
        let code = |role, joined, path| admit(&peer(role, joined), path).map_err(|status| status.code());
        let cases = [
            ("/byre.node.v1.Workloads/List", Role::Reader),
            ("/byre.node.v1.Workloads/Exec", Role::Operator),
            ("/byre.node.v1.Node/Shutdown", Role::Admin),
        ];
        for (path, needed) in cases {
            for role in Role::ALL {
                let expected = if role >= needed { Ok(()) } else { Err(tonic::Code::PermissionDenied) };
                assert_eq!(code(Some(role), true, path), expected, "{role} {path}");
            }
            assert_eq!(code(None, true, path), Err(tonic::Code::PermissionDenied));
            assert_eq!(code(Some(Role::Admin), false, path), Err(tonic::Code::Unavailable));
        }
        assert_eq!(code(Some(Role::Admin), false, "/byre.node.v1.Identity/GetSigningRequest"), Ok(()));
        assert_eq!(code(Some(Role::Admin), true, "/x.Y/Z"), Err(tonic::Code::Unimplemented));
    }
}
