//! Making containers and being in them: run, create, start, exec, attach.

use byre_api::proto::{
    AttachRequest, AttachStart, ContainerSpec, CreateRequest, CreateResponse, ExecRequest, ExecStart, InspectRequest,
    RemoveRequest, StartRequest, attach_request, exec_request,
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{done, each};
use crate::args::{AttachArgs, ExecArgs, StartArgs};
use crate::args_container::{ContainerArgs, CreateArgs, RunArgs, environment};
use crate::connect::Node;
use crate::detach::DetachKeys;
use crate::error::Failure;
use crate::output::{Output, complain};
use crate::session::{self, Forward, Options};
use crate::stdio::QUEUE;
use crate::terminal;
use crate::text::printable;

pub(super) async fn run(
    connect: impl AsyncFn() -> Result<Node, Failure>,
    output: &Output,
    args: &RunArgs,
) -> Result<(), Failure> {
    if !args.detach {
        check_terminal(args.container.interactive, args.container.tty)?;
    }
    let spec = spec(&args.container)?;
    let node = connect().await.map_err(Failure::not_started)?;
    let (open_stdin, terminal) = (spec.open_stdin, spec.terminal);
    // What begins by itself has nothing to attach to yet.
    let in_background = args.detach || spec.schedule.is_some();
    let created = make(&node, spec, in_background).await.map_err(Failure::not_started)?;
    if in_background {
        return made(output, &created);
    }
    let start = AttachStart {
        workload: created.id.clone(),
        stdin: open_stdin,
        size: terminal::size().filter(|_| terminal),
        logs: false,
        start: true,
    };
    let live = Live { keys: args.detach_keys.clone(), forward: !args.no_sig_proxy, name: &created.name };
    match attached(&node, start, live).await {
        Err(failure @ Failure::NotStarted(_)) => {
            // It never ran; left behind, it would only hold its name. If the node did not even get that far there is nothing to remove.
            let _ = node.workloads().remove(RemoveRequest { workload: created.id, force: true }).await;
            Err(failure)
        }
        other => other,
    }
}

pub(super) async fn create(node: &Node, output: &Output, args: &CreateArgs) -> Result<(), Failure> {
    let created = make(node, spec(&args.container)?, false).await?;
    made(output, &created)
}

fn made(output: &Output, created: &CreateResponse) -> Result<(), Failure> {
    if output.json() {
        return output.document(&json!({"id": created.id, "name": created.name, "warnings": created.warnings}));
    }
    output.line(&printable(&created.id))
}

pub(super) async fn start(node: &Node, output: &Output, args: &StartArgs) -> Result<(), Failure> {
    let names = &args.names.names;
    if !args.attach {
        return each(names, async |name| {
            node.workloads().start(StartRequest { workload: name.into() }).await?;
            done(output, name)
        })
        .await;
    }
    let [name] = names.as_slice() else {
        return Err(Failure::usage("--attach is for one container", "start the others without it"));
    };
    let known = spec_of(node, name).await?;
    let input = args.interactive && known.open_stdin;
    let size = terminal::size().filter(|_| known.terminal);
    let start = AttachStart { workload: name.clone(), stdin: input, size, logs: false, start: true };
    attached(node, start, Live { keys: args.detach_keys.clone(), forward: true, name }).await
}

pub(super) async fn attach(node: &Node, args: &AttachArgs) -> Result<(), Failure> {
    let known = spec_of(node, &args.name).await?;
    let start = AttachStart {
        workload: args.name.clone(),
        stdin: known.open_stdin && !args.no_stdin,
        size: terminal::size().filter(|_| known.terminal),
        logs: args.logs,
        start: false,
    };
    let live = Live { keys: args.detach_keys.clone(), forward: !args.no_sig_proxy, name: &args.name };
    match attached(node, start, live).await {
        // Here nothing was to be started, so nothing failed to.
        Err(Failure::NotStarted(failure)) => Err(*failure),
        other => other,
    }
}

pub(super) async fn exec(node: &Node, args: &ExecArgs) -> Result<(), Failure> {
    check_terminal(args.interactive, args.tty)?;
    let start = ExecStart {
        workload: args.name.clone(),
        command: args.command.clone(),
        env: environment(&args.env_file, &args.env, |name| std::env::var(name).ok())?,
        user: args.user.clone(),
        working_dir: args.workdir.clone(),
        terminal: args.tty,
        size: terminal::size().filter(|_| args.tty),
        stdin: args.interactive,
    };
    let (up, requests) = mpsc::channel(QUEUE);
    first(&up, ExecRequest { message: Some(exec_request::Message::Start(start)) });
    let begin = async {
        let mut down = node.workloads().exec(ReceiverStream::new(requests)).await?.into_inner();
        let ready = session::ready(&mut down).await?;
        Ok::<_, Failure>((down, ready))
    };
    let (down, ready) = begin.await.map_err(Failure::not_started)?;
    if let Err(exit) = ready {
        return session::code(&exit);
    }
    let options =
        Options { input: args.interactive, terminal: args.tty, keys: DetachKeys::none(), forward: Forward::Session };
    let end = session::run(up, down, options).await?;
    session::conclude(end, &args.name)
}

/// How to be in a container's first process.
struct Live<'a> {
    keys: DetachKeys,
    forward: bool,
    name: &'a str,
}

async fn attached(node: &Node, start: AttachStart, live: Live<'_>) -> Result<(), Failure> {
    let (input, workload) = (start.stdin, start.workload.clone());
    let (up, requests) = mpsc::channel(QUEUE);
    first(&up, AttachRequest { message: Some(attach_request::Message::Start(start)) });
    let begin = async {
        let mut down = node.workloads().attach(ReceiverStream::new(requests)).await?.into_inner();
        let ready = session::ready(&mut down).await?;
        Ok::<_, Failure>((down, ready))
    };
    let (down, ready) = begin.await.map_err(Failure::not_started)?;
    let terminal = match ready {
        Ok(terminal) => terminal,
        Err(exit) => return session::code(&exit),
    };
    let forward = if live.forward { Forward::Workload(Box::new(node.workloads()), workload) } else { Forward::Nowhere };
    let end = session::run(up, down, Options { input, terminal, keys: live.keys, forward }).await?;
    session::conclude(end, live.name)
}

/// The queue is new and holds at least one message.
fn first<R>(up: &mpsc::Sender<R>, message: R) {
    let queued = up.try_send(message).is_ok();
    debug_assert!(queued, "a new queue has room");
}

fn spec(args: &ContainerArgs) -> Result<ContainerSpec, Failure> {
    args.spec(terminal::size(), |name| std::env::var(name).ok())
}

async fn make(node: &Node, spec: ContainerSpec, start: bool) -> Result<CreateResponse, Failure> {
    let created = node.workloads().create(CreateRequest { spec: Some(spec), start }).await?.into_inner();
    for warning in &created.warnings {
        complain(&format!("warning: {}", printable(warning)));
    }
    Ok(created)
}

async fn spec_of(node: &Node, name: &str) -> Result<ContainerSpec, Failure> {
    let answer = node.workloads().inspect(InspectRequest { workload: name.into() }).await?.into_inner();
    answer.spec.ok_or_else(|| {
        Failure::failed(
            format!("{} is a service of the node", printable(name)),
            "see its output with `byrectl services logs`",
        )
    })
}

fn check_terminal(interactive: bool, tty: bool) -> Result<(), Failure> {
    if interactive && tty && !terminal::stdin_is_terminal() {
        return Err(Failure::usage("-t needs a terminal, and stdin is none", "leave out -t to pass input on"));
    }
    Ok(())
}
