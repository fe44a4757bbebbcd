//! A live session: our input to the node, its output to us, until the program ends, we detach, or something breaks.
//!
//! ```text
//! connected --ready--> running --exit--> ended with its code
//!                        |---detach keys--> detached
//!                        |---third interrupt, or a signal to us in raw mode--> given up with 128 + signal
//!                        '---stream ends without exit--> lost
//! ```
//! Input, output, resizing and signals each have their own waiting place, so that a side that is slow holds back nothing but itself. The
//! terminal is back in its old mode before anything is said about the end.

use std::time::Duration;

use byre_api::proto::workloads_client::WorkloadsClient;
use byre_api::proto::{
    AttachRequest, AttachResponse, ExecRequest, ExecResponse, Exit, KillRequest, Output, TerminalSize, attach_request,
    attach_response, exec_request, exec_response,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tonic::Streaming;
use tonic::transport::Channel;

use crate::detach::{DetachKeys, Detector, Typed};
use crate::error::{Failure, SIGNAL_BASE, reason};
use crate::output::complain;
use crate::stdio::{Sink, input};
use crate::terminal;

/// So many interrupts in one session mean: let me go, whatever the program does.
const INTERRUPTS: u32 = 3;

/// So long the node may take to write what was typed before the detach keys. A container that does not read its input holds nobody.
const FAREWELL: Duration = Duration::from_secs(2);

/// To the node.
#[derive(Debug)]
pub(crate) enum Up {
    Input(Vec<u8>),
    InputClosed,
    Resize(TerminalSize),
    Signal(&'static str),
    Detach,
}

/// From the node.
#[derive(Debug)]
pub(crate) enum Down {
    Ready {
        terminal: bool,
    },
    Output(Output),
    Exit(Exit),
    /// A message that this program is too old to know.
    Unknown,
}

/// How a session ended, if it was not lost.
#[derive(Debug)]
pub(crate) enum End {
    Exit(Exit),
    Detached,
    GivenUp { signal: u8 },
}

/// Where signals to us go.
#[derive(Debug)]
pub(crate) enum Forward {
    /// Nowhere: they end us.
    Nowhere,
    /// With the session (exec).
    Session,
    /// To the workload of that name.
    Workload(Box<WorkloadsClient<Channel>>, String),
}

/// What a session is to do.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) input: bool,
    pub(crate) terminal: bool,
    pub(crate) keys: DetachKeys,
    pub(crate) forward: Forward,
}

impl From<Up> for Option<AttachRequest> {
    fn from(up: Up) -> Self {
        let message = match up {
            Up::Input(bytes) => attach_request::Message::Stdin(bytes.into()),
            Up::InputClosed => attach_request::Message::StdinClosed(true),
            Up::Resize(size) => attach_request::Message::Resize(size),
            Up::Detach => attach_request::Message::Detach(true),
            // Attach has no message for it: signals go to the workload.
            Up::Signal(_) => return None,
        };
        Some(AttachRequest { message: Some(message) })
    }
}

impl From<Up> for Option<ExecRequest> {
    fn from(up: Up) -> Self {
        let message = match up {
            Up::Input(bytes) => exec_request::Message::Stdin(bytes.into()),
            Up::InputClosed => exec_request::Message::StdinClosed(true),
            Up::Resize(size) => exec_request::Message::Resize(size),
            Up::Signal(name) => exec_request::Message::Signal(name.into()),
            // A program that was executed in a container goes with its client.
            Up::Detach => return None,
        };
        Some(ExecRequest { message: Some(message) })
    }
}

impl From<AttachResponse> for Down {
    fn from(answer: AttachResponse) -> Self {
        match answer.message {
            Some(attach_response::Message::Ready(ready)) => Self::Ready { terminal: ready.terminal },
            Some(attach_response::Message::Output(output)) => Self::Output(output),
            Some(attach_response::Message::Exit(exit)) => Self::Exit(exit),
            None => Self::Unknown,
        }
    }
}

impl From<ExecResponse> for Down {
    fn from(answer: ExecResponse) -> Self {
        match answer.message {
            // Exec gets the terminal that was asked for, or fails.
            Some(exec_response::Message::Ready(_)) => Self::Ready { terminal: true },
            Some(exec_response::Message::Output(output)) => Self::Output(output),
            Some(exec_response::Message::Exit(exit)) => Self::Exit(exit),
            None => Self::Unknown,
        }
    }
}

/// Waits for the node's first message. What fails until then did not start; an exit without ready is a start that failed.
pub(crate) async fn ready<D: Into<Down>>(down: &mut Streaming<D>) -> Result<Result<bool, Exit>, Failure> {
    loop {
        match down.message().await?.map(Into::into) {
            Some(Down::Ready { terminal }) => return Ok(Ok(terminal)),
            Some(Down::Exit(exit)) => return Ok(Err(exit)),
            Some(Down::Unknown | Down::Output(_)) => {}
            None => return Err(lost("it ended the session before the start")),
        }
    }
}

/// Runs a session that is ready until it ends. `up` is the sending half of the call's request stream.
pub(crate) async fn run<R, D>(up: mpsc::Sender<R>, down: Streaming<D>, options: Options) -> Result<End, Failure>
where
    R: Send + 'static,
    Up: Into<Option<R>>,
    D: Into<Down>,
{
    let raw = options.terminal && options.input && terminal::stdin_is_terminal();
    let signals = Signals::new()?;
    let (detach, detaching) = watch::channel(false);
    if options.terminal {
        tokio::spawn(resize(up.clone(), signal(SignalKind::window_change()).map_err(no_signals)?));
    }
    let guard = if raw { Some(terminal::RawMode::enter()?) } else { None };
    if options.input {
        let keys = if raw { options.keys } else { DetachKeys::none() };
        tokio::spawn(pass_input(up.clone(), Detector::new(keys), detach));
    }
    let forward = if raw { Forward::Nowhere } else { options.forward };
    let end = tokio::select! {
        end = output(down) => match end {
            Ok(Some(exit)) => Ok(End::Exit(exit)),
            Ok(None) if *detaching.borrow() => Ok(End::Detached),
            Ok(None) => Err(lost("it ended without an exit code")),
            Err(failure) => Err(failure),
        },
        () = farewell(detaching.clone()) => Ok(End::Detached),
        signal = signals.handle(forward, &up) => Ok(End::GivenUp { signal }),
    };
    drop(guard);
    end
}

/// The exit code of a session's end; says what a person should know.
pub(crate) fn conclude(end: End, name: &str) -> Result<(), Failure> {
    match end {
        End::Exit(exit) => code(&exit),
        End::Detached => {
            complain(&format!("detached; it goes on: come back with `byrectl attach {name}`"));
            Ok(())
        }
        End::GivenUp { signal } => Err(Failure::Exit(SIGNAL_BASE.saturating_add(signal))),
    }
}

/// The program's exit code as ours.
pub(crate) fn code(exit: &Exit) -> Result<(), Failure> {
    if exit.out_of_memory {
        complain("killed: its memory limit was reached; give it more with --memory");
    }
    let not_run = (125..=127).contains(&exit.code);
    if not_run && exit.signal == 0 && !exit.reason.is_empty() {
        complain(&crate::text::printable(&exit.reason));
    }
    match exit.code {
        0 => Ok(()),
        code => Err(Failure::Exit(u8::try_from(code).unwrap_or(u8::MAX))),
    }
}

fn lost(detail: &str) -> Failure {
    let remedy = "a container goes on without us: see `byrectl ps`, come back with `byrectl attach`";
    Failure::Lost { detail: detail.into(), remedy: remedy.into() }
}

fn no_signals(error: std::io::Error) -> Failure {
    Failure::io("cannot receive signals", &error)
}

/// Waits until the node has had its time to write what was typed before the detach keys.
async fn farewell(mut detaching: watch::Receiver<bool>) {
    match detaching.wait_for(|detaching| *detaching).await {
        Ok(_) => {}
        // No input, or its end: nobody can detach any more.
        Err(_) => return std::future::pending().await,
    }
    tokio::time::sleep(FAREWELL).await;
}

/// Shows output until the program ends; `None` if the node ends the session before that.
async fn output<D: Into<Down>>(mut down: Streaming<D>) -> Result<Option<Exit>, Failure> {
    let mut sink = Sink::new()?;
    let end = loop {
        match down.message().await.map(|message| message.map(Into::into)) {
            Ok(Some(Down::Output(output))) => {
                let stream = output.stream();
                sink.write(stream, output.data.to_vec()).await?;
            }
            Ok(Some(Down::Exit(exit))) => break Ok(Some(exit)),
            Ok(Some(Down::Ready { .. } | Down::Unknown)) => {}
            Ok(None) => break Ok(None),
            Err(status) if std::error::Error::source(&status).is_some() => break Err(lost(&reason(&status))),
            Err(status) => break Err(status.into()),
        }
    };
    sink.finish().await?;
    end
}

async fn pass_input<R>(up: mpsc::Sender<R>, mut detector: Detector, detach: watch::Sender<bool>)
where
    Up: Into<Option<R>>,
{
    let Ok(mut typed) = input() else { return };
    while let Some(bytes) = typed.recv().await {
        let (bytes, last) = match detector.feed(&bytes) {
            Typed::Pass(bytes) => (bytes, false),
            Typed::Detach(bytes) => (bytes, true),
        };
        if !bytes.is_empty() && !send(&up, Up::Input(bytes)).await {
            return;
        }
        if last {
            detach.send_replace(true);
            send(&up, Up::Detach).await;
            return;
        }
    }
    let rest = detector.rest();
    if !rest.is_empty() {
        send(&up, Up::Input(rest)).await;
    }
    send(&up, Up::InputClosed).await;
}

async fn send<R>(up: &mpsc::Sender<R>, message: Up) -> bool
where
    Up: Into<Option<R>>,
{
    match message.into() {
        Some(message) => up.send(message).await.is_ok(),
        None => true,
    }
}

/// Sends the size at once, because it may have changed since the start, and at each change.
async fn resize<R>(up: mpsc::Sender<R>, mut changes: Signal)
where
    Up: Into<Option<R>>,
{
    loop {
        if let Some(size) = terminal::size()
            && !send(&up, Up::Resize(size)).await
        {
            return;
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}

/// The signals that people and programs send to end or poke a program.
#[derive(Debug)]
struct Signals {
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
    user1: Signal,
    user2: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let of = |kind| signal(kind).map_err(no_signals);
        Ok(Self {
            hangup: of(SignalKind::hangup())?,
            interrupt: of(SignalKind::interrupt())?,
            quit: of(SignalKind::quit())?,
            terminate: of(SignalKind::terminate())?,
            user1: of(SignalKind::user_defined1())?,
            user2: of(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> (&'static str, u8) {
        tokio::select! {
            _ = self.hangup.recv() => ("HUP", 1),
            _ = self.interrupt.recv() => ("INT", 2),
            _ = self.quit.recv() => ("QUIT", 3),
            _ = self.user1.recv() => ("USR1", 10),
            _ = self.user2.recv() => ("USR2", 12),
            _ = self.terminate.recv() => ("TERM", 15),
        }
    }

    /// Forwards signals; returns the number of the one that ends us.
    async fn handle<R>(mut self, forward: Forward, up: &mpsc::Sender<R>) -> u8
    where
        Up: Into<Option<R>>,
    {
        let mut interrupts = 0;
        loop {
            let (name, number) = self.next().await;
            interrupts += u32::from(matches!(name, "INT" | "TERM"));
            if interrupts >= INTERRUPTS {
                return number;
            }
            match &forward {
                Forward::Nowhere => return number,
                Forward::Session => {
                    // A full queue must not hold back the next interrupt.
                    if let Some(message) = Up::Signal(name).into()
                        && up.try_send(message).is_err()
                    {
                        complain(&format!(
                            "signal {name} could not be passed on: the input is stuck; interrupt again to leave"
                        ));
                    }
                }
                Forward::Workload(client, workload) => {
                    tokio::spawn(kill(client.as_ref().clone(), workload.clone(), name));
                }
            }
        }
    }
}

async fn kill(mut client: WorkloadsClient<Channel>, workload: String, signal: &'static str) {
    if let Err(status) = client.kill(KillRequest { workload, signal: signal.into() }).await {
        complain(&format!("signal {signal} could not be passed on: {}", Failure::from(status)));
    }
}
