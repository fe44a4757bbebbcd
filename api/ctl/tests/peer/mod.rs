//! A peer for the protocol: it serves the generated traits on a unix socket and answers by rules that each test reads off the names it
//! uses. It is no node: what a node really does is tested against real ones, by the scenarios.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};

use byre_api::proto::images_server::{Images, ImagesServer};
use byre_api::proto::workloads_server::{Workloads, WorkloadsServer};
use byre_api::proto::*;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

type Answer<T> = Result<Response<T>, Status>;
type Stream<T> = ReceiverStream<Result<T, Status>>;

/// What the peer was asked.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) kills: Vec<String>,
    pub(crate) removed: Vec<String>,
    pub(crate) typed: Vec<u8>,
    pub(crate) sizes: Vec<(u32, u32)>,
    pub(crate) signals: Vec<String>,
    pub(crate) copied_in: Vec<u8>,
    pub(crate) copied_to: String,
    pub(crate) copied_whole: bool,
    pub(crate) loaded: usize,
    pub(crate) sent: u64,
}

#[derive(Debug, Clone, Default)]
struct Fake {
    seen: Arc<Mutex<Seen>>,
    killed: Arc<Notify>,
}

/// A running peer with its socket.
pub(crate) struct Peer {
    seen: Arc<Mutex<Seen>>,
    pub(crate) directory: tempfile::TempDir,
}

impl Peer {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let fake = Fake::default();
        let seen = Arc::clone(&fake.seen);
        let listener = std::os::unix::net::UnixListener::bind(directory.path().join("api.sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let incoming = UnixListenerStream::new(tokio::net::UnixListener::from_std(listener).unwrap());
                let images = ImagesServer::new(fake.clone());
                let server =
                    tonic::transport::Server::builder().add_service(WorkloadsServer::new(fake)).add_service(images);
                server.serve_with_incoming(incoming).await.unwrap();
            });
        });
        Self { seen, directory }
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `byrectl` with this peer as its node, and nothing of the environment that could change its answers.
    pub(crate) fn byrectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_byrectl"));
        command.env_clear().env("HOME", self.directory.path()).env("TERM", "xterm").current_dir(self.directory.path());
        command.arg("--host").arg(format!("unix://{}", self.path("api.sock").display())).args(arguments);
        command
    }
}

/// Waits until something holds; a test that waits in vain fails after a while that no machine needs.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("waited in vain: {what}");
}

fn output(stream: OutputStream, data: &[u8]) -> Output {
    Output { stream: stream.into(), data: data.to_vec().into() }
}

fn exit(code: u32) -> Exit {
    Exit { code, ..Exit::default() }
}

/// A tar stream of one entry with exactly this name.
pub(crate) fn tar_of(kind: tar::EntryType, name: &str, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(data.len() as u64);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, data).unwrap();
    builder.into_inner().unwrap()
}

impl Fake {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// What a container does, by its image's name.
    async fn live(
        self,
        workload: String,
        mut up: Streaming<AttachRequest>,
        down: mpsc::Sender<Result<AttachResponse, Status>>,
    ) {
        let say = |message| down.send(Ok(AttachResponse { message: Some(message) }));
        let out = |stream, data: &[u8]| attach_response::Message::Output(output(stream, data));
        let _ = say(attach_response::Message::Ready(AttachReady { terminal: workload == "id-shell" })).await;
        match workload.as_str() {
            "id-code" => {
                let _ = say(out(OutputStream::Stdout, b"out\n")).await;
                let _ = say(out(OutputStream::Stderr, b"err\n")).await;
                let _ = say(attach_response::Message::Exit(exit(42))).await;
            }
            "id-wait" => {
                let _ = say(out(OutputStream::Stdout, b"up\n")).await;
                self.killed.notified().await;
                let _ = say(attach_response::Message::Exit(exit(143))).await;
            }
            "id-deaf" => {
                let _ = say(out(OutputStream::Stdout, b"up\n")).await;
                down.closed().await;
            }
            "id-flood" => {
                while say(out(OutputStream::Stdout, &[b'x'; 65536])).await.is_ok() {
                    self.seen().sent += 65536;
                }
            }
            "id-cut" => {}
            _ => {
                while let Ok(Some(request)) = up.message().await {
                    match request.message {
                        Some(attach_request::Message::Stdin(bytes)) => {
                            self.seen().typed.extend_from_slice(&bytes);
                            let _ = say(out(OutputStream::Stdout, &bytes)).await;
                        }
                        Some(attach_request::Message::Resize(size)) => {
                            self.seen().sizes.push((size.rows, size.columns))
                        }
                        Some(attach_request::Message::StdinClosed(_)) => break,
                        Some(attach_request::Message::Detach(_)) => return,
                        Some(attach_request::Message::Start(_)) | None => {}
                    }
                }
                let _ = say(attach_response::Message::Exit(exit(0))).await;
            }
        }
    }

    /// A program that echoes, ends with code 7 at `q`, and with 130 at a signal.
    async fn program(self, mut up: Streaming<ExecRequest>, down: mpsc::Sender<Result<ExecResponse, Status>>) {
        let say = |message| down.send(Ok(ExecResponse { message: Some(message) }));
        let _ = say(exec_response::Message::Ready(ExecReady {})).await;
        let _ = say(exec_response::Message::Output(output(OutputStream::Terminal, b"$ "))).await;
        while let Ok(Some(request)) = up.message().await {
            match request.message {
                Some(exec_request::Message::Stdin(bytes)) => {
                    self.seen().typed.extend_from_slice(&bytes);
                    if bytes.contains(&b'q') {
                        let _ = say(exec_response::Message::Exit(exit(7))).await;
                    }
                }
                Some(exec_request::Message::Resize(size)) => self.seen().sizes.push((size.rows, size.columns)),
                Some(exec_request::Message::Signal(name)) => {
                    self.seen().signals.push(name);
                    let _ = say(exec_response::Message::Exit(exit(130))).await;
                }
                Some(exec_request::Message::StdinClosed(_) | exec_request::Message::Start(_)) | None => {}
            }
        }
    }
}

fn workload() -> Workload {
    Workload {
        id: "0123456789abcdef".into(),
        name: "web".into(),
        kind: WorkloadKind::Container.into(),
        phase: WorkloadPhase::Up.into(),
        wanted_up: true,
        why: "its last run used too much memory".into(),
        status: "Up \u{1b}[31m2 minutes".into(),
        image: "nginx".into(),
        command: "nginx -g daemon off;".into(),
        ..Workload::default()
    }
}

#[tonic::async_trait]
impl Workloads for Fake {
    type LogsStream = Stream<LogsResponse>;
    type AttachStream = Stream<AttachResponse>;
    type ExecStream = Stream<ExecResponse>;
    type StatsStream = Stream<StatsResponse>;
    type EventsStream = Stream<EventsResponse>;
    type CopyOutStream = Stream<CopyOutResponse>;

    async fn create(&self, request: Request<CreateRequest>) -> Answer<CreateResponse> {
        let image = request.into_inner().spec.unwrap_or_default().image;
        if image == "missing" {
            return Err(Status::not_found("no image missing: load it with `byrectl image load`"));
        }
        Ok(Response::new(CreateResponse { id: format!("id-{image}"), name: image, warnings: Vec::new() }))
    }

    async fn start(&self, request: Request<StartRequest>) -> Answer<StartResponse> {
        match request.into_inner().workload.as_str() {
            "gone" => Err(Status::not_found("no workload gone: see `byrectl ps -a`")),
            _ => Ok(Response::new(StartResponse {})),
        }
    }

    async fn stop(&self, _request: Request<StopRequest>) -> Answer<StopResponse> {
        Ok(Response::new(StopResponse {}))
    }

    async fn restart(&self, _request: Request<RestartRequest>) -> Answer<RestartResponse> {
        Ok(Response::new(RestartResponse {}))
    }

    async fn kill(&self, request: Request<KillRequest>) -> Answer<KillResponse> {
        self.seen().kills.push(request.into_inner().signal);
        self.killed.notify_one();
        Ok(Response::new(KillResponse {}))
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Answer<RemoveResponse> {
        self.seen().removed.push(request.into_inner().workload);
        Ok(Response::new(RemoveResponse {}))
    }

    async fn list(&self, _request: Request<ListRequest>) -> Answer<ListResponse> {
        Ok(Response::new(ListResponse { workloads: vec![workload()] }))
    }

    async fn why(&self, _request: Request<WhyRequest>) -> Answer<WhyResponse> {
        let cause = |workload: &str, reason: &str, text: &str| Cause {
            workload: workload.into(),
            reason: reason.into(),
            text: text.into(),
            ..Cause::default()
        };
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let exit = Some(Exit { code: 137, signal: 9, out_of_memory: true, reason: String::new() });
        Ok(Response::new(WhyResponse {
            workload: Some(workload()),
            chain: vec![cause("web", "waiting", "it waits for db"), cause("db", "stopped", "somebody stopped it")],
            history: vec![Run { started: at(0), ended: at(60), exit }],
        }))
    }

    async fn inspect(&self, request: Request<InspectRequest>) -> Answer<InspectResponse> {
        let name = request.into_inner().workload;
        let spec = ContainerSpec { open_stdin: true, terminal: name == "id-shell", ..ContainerSpec::default() };
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let exit = Some(Exit { code: 137, signal: 9, out_of_memory: true, reason: String::new() });
        Ok(Response::new(InspectResponse {
            history: vec![Run { started: at(0), ended: at(60), exit }],
            workload: Some(workload()),
            spec: Some(spec),
            ..InspectResponse::default()
        }))
    }

    async fn wait(&self, _request: Request<WaitRequest>) -> Answer<WaitResponse> {
        Ok(Response::new(WaitResponse { exit: Some(exit(3)) }))
    }

    async fn logs(&self, _request: Request<LogsRequest>) -> Answer<Self::LogsStream> {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let piece = |stream: OutputStream, data: &'static [u8]| LogsResponse {
                stream: stream.into(),
                data: data.into(),
                ..LogsResponse::default()
            };
            let _ = sender.send(Ok(piece(OutputStream::Stdout, b"one\n"))).await;
            let _ = sender.send(Ok(piece(OutputStream::Stderr, b"two\n"))).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn attach(&self, request: Request<Streaming<AttachRequest>>) -> Answer<Self::AttachStream> {
        let mut up = request.into_inner();
        let Some(AttachRequest { message: Some(attach_request::Message::Start(start)) }) = up.message().await? else {
            return Err(Status::invalid_argument("start comes first"));
        };
        if start.workload == "id-unstartable" {
            return Err(Status::failed_precondition("no memory for it: give it less"));
        }
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(self.clone().live(start.workload, up, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn exec(&self, request: Request<Streaming<ExecRequest>>) -> Answer<Self::ExecStream> {
        let mut up = request.into_inner();
        let Some(ExecRequest { message: Some(exec_request::Message::Start(start)) }) = up.message().await? else {
            return Err(Status::invalid_argument("start comes first"));
        };
        if start.workload == "gone" {
            return Err(Status::not_found("no workload gone: see `byrectl ps -a`"));
        }
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(self.clone().program(up, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn stats(&self, _request: Request<StatsRequest>) -> Answer<Self::StatsStream> {
        Err(Status::unimplemented("stats"))
    }

    async fn events(&self, _request: Request<EventsRequest>) -> Answer<Self::EventsStream> {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            while sender.send(Ok(EventsResponse { action: "up".into(), ..EventsResponse::default() })).await.is_ok() {}
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn copy_in(&self, request: Request<Streaming<CopyInRequest>>) -> Answer<CopyInResponse> {
        let mut up = request.into_inner();
        while let Some(request) = up.message().await? {
            match request.message {
                Some(copy_in_request::Message::Start(start)) => self.seen().copied_to = start.directory,
                Some(copy_in_request::Message::Tar(bytes)) => self.seen().copied_in.extend_from_slice(&bytes),
                None => {}
            }
        }
        self.seen().copied_whole = true;
        Ok(Response::new(CopyInResponse {}))
    }

    async fn copy_out(&self, request: Request<CopyOutRequest>) -> Answer<Self::CopyOutStream> {
        let tar = match request.into_inner().path.as_str() {
            "/file" => tar_of(tar::EntryType::Regular, "file", b"data"),
            "/directory" => tar_of(tar::EntryType::Directory, "directory/", b""),
            "/hostile" => tar_of(tar::EntryType::Regular, "../../hostile", b"data"),
            path => return Err(Status::failed_precondition(format!("{path} is not there: check the path"))),
        };
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            for piece in tar.chunks(100) {
                let _ = sender.send(Ok(CopyOutResponse { tar: piece.to_vec().into() })).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// The contents of a directory, for comparison.
pub(crate) fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tonic::async_trait]
impl Images for Fake {
    type LoadStream = Stream<LoadResponse>;

    async fn load(&self, request: Request<Streaming<LoadRequest>>) -> Answer<Self::LoadStream> {
        let mut up = request.into_inner();
        let Some(LoadRequest { message: Some(load_request::Message::Start(start)) }) = up.message().await? else {
            return Err(Status::invalid_argument("start comes first"));
        };
        let (sender, receiver) = mpsc::channel(1);
        let fake = self.clone();
        tokio::spawn(async move {
            let mut loaded = 0;
            while let Ok(Some(request)) = up.message().await {
                let Some(load_request::Message::Archive(bytes)) = request.message else { continue };
                loaded += bytes.len();
                let step = LoadProgress { step: "reading".into(), bytes: loaded as u64 };
                let _ = sender.send(Ok(LoadResponse { message: Some(load_response::Message::Progress(step)) })).await;
                if start.name == "corrupt" {
                    let _ = sender.send(Err(Status::invalid_argument("the archive is corrupt: make it again"))).await;
                    return;
                }
            }
            fake.seen().loaded = loaded;
            let image = Image { id: "sha256:00".into(), names: vec![start.name], ..Image::default() };
            let _ = sender.send(Ok(LoadResponse { message: Some(load_response::Message::Image(image)) })).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn list_images(&self, _request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        Ok(Response::new(ListImagesResponse::default()))
    }

    async fn inspect_image(&self, _request: Request<InspectImageRequest>) -> Answer<InspectImageResponse> {
        Ok(Response::new(InspectImageResponse::default()))
    }

    async fn remove_image(&self, _request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        Ok(Response::new(RemoveImageResponse::default()))
    }

    async fn prune_images(&self, _request: Request<PruneImagesRequest>) -> Answer<PruneImagesResponse> {
        Ok(Response::new(PruneImagesResponse::default()))
    }
}
