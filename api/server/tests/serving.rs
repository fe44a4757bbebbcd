//! The whole server over real sockets: joining, roles, records. PID 1's side of the protocol is played by a peer that makes nothing and refuses
//! everything, so that what passes the gate is seen to get there.

#![allow(missing_docs)]

mod machine;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use byre_api::client::{AdoptError, ConnectError, Endpoint, TcpEndpoint, adopt, connect};
use byre_api::pki::Authority;
use byre_api::proto;
use byre_api::proto::debugging_client::DebuggingClient;
use byre_api::proto::identity_client::IdentityClient;
use byre_api::proto::images_client::ImagesClient;
use byre_api::proto::node_client::NodeClient;
use byre_api::proto::workloads_client::WorkloadsClient;
use byre_api::role::Role;
use byre_api_server::ApiConfig;
use byre_protocol::control::{Call, FromInit, Refused, RefusedCode, Reply, Request};
use byre_protocol::frame::{self, MESSAGE_BYTES};
use machine::{TOKEN, joinable, machine};
use rustix::net::{RecvFlags, SendFlags};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Answers on PID 1's end until the other one is closed: makes nothing and refuses everything.
fn refusing_init(socket: &OwnedFd) {
    let mut buffer = vec![0; MESSAGE_BYTES];
    while let Ok((length, _)) = frame::receive(socket.as_fd(), &mut buffer, RecvFlags::empty()) {
        let call: Call = frame::decode(&buffer[..length]).unwrap();
        let reply = if call.request == Request::Subscribe {
            Reply::Done
        } else if matches!(call.request, Request::List { .. }) {
            Reply::Page { workloads: Vec::new(), more: false }
        } else {
            Reply::Refused(Refused { code: RefusedCode::NotFound, text: "no such workload".into() })
        };
        let answer = frame::encode(&FromInit::Answer { sequence: call.sequence, reply }).unwrap();
        frame::send(socket.as_fd(), &answer, &[], SendFlags::empty()).unwrap();
    }
}

fn records(directory: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(directory.join("audit.log")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn code<T>(result: Result<T, Status>) -> Code {
    result.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test]
async fn a_node_is_joined_once_verified_and_serves_with_its_certificate() {
    let machine = machine(joinable, |socket| refusing_init(&socket)).await;
    let admin = machine.client(Role::Admin);
    let before = connect(&Endpoint::Tcp(admin.clone())).await.unwrap_err();
    assert!(matches!(before, ConnectError::Tls(..)), "{before}");

    let wrong = adopt(&admin, &machine.authority, "another-token-another-token-another", &[]).await;
    assert!(matches!(wrong, Err(AdoptError::Proof(_))), "{wrong:?}");
    let reader = adopt(&machine.client(Role::Reader), &machine.authority, TOKEN, &[]).await.unwrap_err();
    assert!(reader.to_string().contains("needs admin"), "{reader}");

    adopt(&admin, &machine.authority, TOKEN, &["127.0.0.1".into()]).await.unwrap();
    let channel = connect(&Endpoint::Tcp(admin)).await.unwrap();
    let version = NodeClient::new(channel).version(proto::VersionRequest {}).await.unwrap().into_inner();
    assert_eq!((version.os_version.as_str(), version.api.as_str()), ("1.2.3", "byre.node.v1"));
    let by_address = TcpEndpoint { server_name: None, ..machine.client(Role::Reader) };
    connect(&Endpoint::Tcp(by_address)).await.unwrap();
    let other_name = TcpEndpoint { server_name: Some("node-2".into()), ..machine.client(Role::Reader) };
    assert!(matches!(connect(&Endpoint::Tcp(other_name)).await, Err(ConnectError::Tls(..))));
    adopt(&machine.client(Role::Admin), &machine.authority, TOKEN, &[]).await.unwrap();

    let installed = records(machine.directory.path());
    let done: Vec<_> = installed.iter().filter(|line| line["phase"] == "done").map(|line| &line["result"]).collect();
    assert_eq!(done, ["Ok", "Ok"]);
    assert!(installed.iter().all(|line| line["method"] == "Identity/InstallCertificate" && line["role"] == "admin"));
}

#[tokio::test]
async fn a_client_of_another_authority_or_without_a_role_gets_nowhere() {
    let machine = machine(joinable, |socket| refusing_init(&socket)).await;
    adopt(&machine.client(Role::Admin), &machine.authority, TOKEN, &[]).await.unwrap();
    let stranger = Authority::generate("stranger").unwrap().client("mallory", Role::Admin).unwrap();
    // With TLS 1.3 the client is done before the server has looked at its certificate: the refusal comes with the first call at the latest.
    if let Ok(channel) = connect(&Endpoint::Tcp(machine.tcp(stranger))).await {
        let refused = NodeClient::new(channel).version(proto::VersionRequest {}).await;
        assert_ne!(code(refused), Code::Ok);
    }
    assert_eq!(records(machine.directory.path()).len(), 2);
}

/// One call of each method, with its path and what it needs.
async fn all_methods(channel: Channel) -> Vec<(&'static str, Role, Code)> {
    let mut workloads = WorkloadsClient::new(channel.clone());
    let mut images = ImagesClient::new(channel.clone());
    let mut node = NodeClient::new(channel.clone());
    let mut identity = IdentityClient::new(channel);
    let none = || tokio_stream::iter(Vec::new());
    let mut codes = Vec::new();
    macro_rules! call {
        ($client:ident.$method:ident($request:expr), $role:ident) => {
            codes.push((stringify!($method), Role::$role, code($client.$method($request).await)));
        };
    }
    call!(workloads.create(proto::CreateRequest::default()), Operator);
    call!(workloads.start(proto::StartRequest::default()), Operator);
    call!(workloads.stop(proto::StopRequest::default()), Operator);
    call!(workloads.restart(proto::RestartRequest::default()), Operator);
    call!(workloads.kill(proto::KillRequest::default()), Operator);
    call!(workloads.remove(proto::RemoveRequest::default()), Operator);
    call!(workloads.list(proto::ListRequest::default()), Reader);
    call!(workloads.inspect(proto::InspectRequest::default()), Reader);
    call!(workloads.why(proto::WhyRequest::default()), Reader);
    call!(workloads.wait(proto::WaitRequest::default()), Reader);
    call!(workloads.logs(proto::LogsRequest::default()), Reader);
    call!(workloads.attach(tokio_stream::iter(Vec::<proto::AttachRequest>::new())), Operator);
    call!(workloads.exec(tokio_stream::iter(Vec::<proto::ExecRequest>::new())), Operator);
    call!(workloads.stats(proto::StatsRequest::default()), Reader);
    call!(workloads.events(proto::EventsRequest::default()), Reader);
    call!(workloads.copy_in(tokio_stream::iter(Vec::<proto::CopyInRequest>::new())), Operator);
    call!(workloads.copy_out(proto::CopyOutRequest::default()), Operator);
    call!(images.load(none()), Operator);
    call!(images.list_images(proto::ListImagesRequest {}), Reader);
    call!(images.inspect_image(proto::InspectImageRequest::default()), Reader);
    call!(images.remove_image(proto::RemoveImageRequest::default()), Operator);
    call!(images.prune_images(proto::PruneImagesRequest::default()), Operator);
    call!(node.version(proto::VersionRequest {}), Reader);
    call!(node.get_node(proto::GetNodeRequest {}), Reader);
    call!(node.kernel_log(proto::KernelLogRequest::default()), Reader);
    call!(node.shutdown(proto::ShutdownRequest::default()), Admin);
    call!(node.reexec(proto::ReexecRequest {}), Admin);
    call!(identity.get_signing_request(proto::GetSigningRequestRequest {}), Admin);
    call!(identity.install_certificate(proto::InstallCertificateRequest::default()), Admin);
    codes
}

#[tokio::test]
async fn every_role_may_do_exactly_what_it_may() {
    let machine = machine(joinable, |socket| refusing_init(&socket)).await;
    adopt(&machine.client(Role::Admin), &machine.authority, TOKEN, &[]).await.unwrap();
    for role in Role::ALL {
        let channel = connect(&Endpoint::Tcp(machine.client(role))).await.unwrap();
        for (method, needed, code) in all_methods(channel).await {
            assert_eq!(
                code == Code::PermissionDenied && method != "install_certificate",
                role < needed && method != "install_certificate",
                "{role} {method}: {code}"
            );
        }
    }
    let recorded = records(machine.directory.path());
    assert!(recorded.iter().all(|line| line["role"] != "reader"), "a refused call changes nothing");
    let by = |method: &str| recorded.iter().filter(|line| line["method"] == method && line["phase"] == "done").count();
    assert_eq!((by("Workloads/Start"), by("Images/PruneImages"), by("Node/Shutdown"), by("Node/Reexec")), (2, 2, 1, 1));
}

#[tokio::test]
async fn before_it_is_joined_a_node_serves_its_identity_alone_over_tcp_and_all_over_the_unix_socket() {
    let machine = machine(joinable, |socket| refusing_init(&socket)).await;
    let channel = connect(&machine.unix()).await.unwrap();
    // Whoever runs this test is root, or not and then may only read.
    let root = rustix::process::getuid().is_root();
    for (method, needed, code) in all_methods(channel).await {
        let refused = !root && needed > Role::Reader;
        assert_eq!(code == Code::PermissionDenied, refused, "{method}: {code}");
    }
}

#[tokio::test]
async fn without_an_authority_nothing_answers_over_tcp() {
    let machine = machine(|_| ApiConfig::default(), |socket| refusing_init(&socket)).await;
    assert!(connect(&Endpoint::Tcp(machine.client(Role::Admin))).await.is_err());
    let channel = connect(&machine.unix()).await.unwrap();
    NodeClient::new(channel).version(proto::VersionRequest {}).await.unwrap();
}

#[tokio::test]
async fn a_deadline_is_honoured() {
    let machine = machine(joinable, |socket| refusing_init(&socket)).await;
    let mut node = NodeClient::new(connect(&machine.unix()).await.unwrap());
    let mut request = tonic::Request::new(proto::VersionRequest {});
    request.set_timeout(std::time::Duration::from_nanos(1));
    assert!(matches!(code(node.version(request).await), Code::DeadlineExceeded | Code::Cancelled));
}

#[tokio::test]
async fn an_administrator_sees_the_whole_node_an_operator_does_not_and_both_looks_are_recorded() {
    let machine = machine(joinable, |socket| refusing_init(&socket)).await;
    adopt(&machine.client(Role::Admin), &machine.authority, TOKEN, &[]).await.unwrap();
    let mut seen = Vec::new();
    for role in Role::ALL {
        let channel = connect(&Endpoint::Tcp(machine.client(role))).await.unwrap();
        let mut debugging = DebuggingClient::new(channel);
        let all = debugging.list_processes(proto::ListProcessesRequest::default()).await;
        let sockets = debugging.list_sockets(proto::ListSocketsRequest::default()).await;
        let gone = debugging.list_processes(proto::ListProcessesRequest { workload: "gone".into() }).await;
        if role == Role::Admin {
            let processes = &all.as_ref().unwrap().get_ref().processes;
            assert!(processes.iter().any(|process| process.pid == std::process::id()));
            let address = machine.client(role).address;
            let port = address.rsplit_once(':').unwrap().1;
            let listens =
                |socket: &proto::Socket| socket.state == "LISTEN" && socket.local.ends_with(&format!(":{port}"));
            assert!(sockets.as_ref().unwrap().get_ref().sockets.iter().any(listens));
        }
        seen.push((code(all), code(sockets), code(gone)));
    }
    let refused = Code::PermissionDenied;
    let expected =
        [(refused, refused, refused), (refused, refused, Code::NotFound), (Code::Ok, Code::Ok, Code::NotFound)];
    assert_eq!(seen, expected);
    let looks = |role: &str| {
        let records = records(machine.directory.path());
        let method = |line: &serde_json::Value| line["method"].as_str().is_some_and(|it| it.starts_with("Debugging/"));
        records.iter().filter(|line| line["phase"] == "done" && line["role"] == role && method(line)).count()
    };
    assert_eq!((looks("operator"), looks("admin")), (3, 3));
}
