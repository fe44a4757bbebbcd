//! One attempt at one target: connect, and for HTTP and gRPC one request and the beginning of its answer. Never waits.
//!
//! ```text
//! Connecting -> (TCP) passed
//!            -> Asking{sent} -> Reading{gathered} -> passed or failed      (HTTP/1.1, RFC 9112 section 4; gRPC, see `grpc`)
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_protocol::probe::Check;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::sockopt::socket_error;
use rustix::net::{RecvFlags, SendFlags};

use crate::grpc;

/// Bytes of an answer that are looked at: `HTTP/1.1 200 ` and a reason as long as anybody writes it.
const STATUS_LINE_BYTES: usize = 1024;

/// Where it is asked, and what.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) port: u16,
    pub(crate) ask: Ask,
}

/// What is asked once the port has accepted.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    /// Nothing.
    Accept,
    /// A GET of this path.
    Http { path: String },
    /// The health of this service.
    Grpc { service: String },
}

impl Target {
    /// What a definition's check asks for; `None` is not asked here: PID 1 starts commands itself, with the workload's own credentials, and
    /// hears of watchdogs itself.
    pub(crate) fn of(check: Check) -> Option<Self> {
        match check {
            Check::Tcp { port } => Some(Self { port, ask: Ask::Accept }),
            Check::Http { port, path } => Some(Self { port, ask: Ask::Http { path } }),
            Check::Grpc { port, service } => Some(Self { port, ask: Ask::Grpc { service } }),
            Check::Exec { .. } | Check::Watchdog => None,
        }
    }
}

/// What an attempt has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It goes on when the socket is ready.
    Waits,
    /// It answered as it should.
    Passed,
    /// It did not.
    Failed,
}

#[derive(Debug)]
enum Step {
    Connecting,
    Asking { sent: usize },
    Reading { gathered: Vec<u8> },
}

/// What the answer so far is; `None` while it is not whole.
type Judge = fn(&[u8]) -> Option<bool>;

/// An attempt that is under way.
#[derive(Debug)]
pub(crate) struct Attempt {
    socket: OwnedFd,
    /// The whole request; empty for TCP.
    request: Vec<u8>,
    judge: Judge,
    step: Step,
}

impl Attempt {
    /// Over a non-blocking socket on which connect was called.
    pub(crate) fn new(socket: OwnedFd, target: &Target) -> Self {
        let (request, judge): (_, Judge) = match &target.ask {
            Ask::Accept => (Vec::new(), verdict),
            Ask::Http { path } => (request(target.port, path), verdict),
            Ask::Grpc { service } => (grpc::request(target.port, service), grpc::verdict),
        };
        Self { socket, request, judge, step: Step::Connecting }
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> PollFlags {
        match self.step {
            Step::Connecting | Step::Asking { .. } => PollFlags::OUT,
            Step::Reading { .. } => PollFlags::IN,
        }
    }

    /// Goes on as far as the socket lets it; call when it is ready.
    pub(crate) fn advance(&mut self) -> Progress {
        loop {
            match &mut self.step {
                Step::Connecting => match socket_error(&self.socket) {
                    Ok(Ok(())) if self.request.is_empty() => return Progress::Passed,
                    Ok(Ok(())) => self.step = Step::Asking { sent: 0 },
                    Ok(Err(_)) | Err(_) => return Progress::Failed,
                },
                Step::Asking { sent } => {
                    let rest = self.request.get(*sent..).unwrap_or_default();
                    if rest.is_empty() {
                        self.step = Step::Reading { gathered: Vec::new() };
                        continue;
                    }
                    match rustix::net::send(&self.socket, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                        Ok(now) => *sent += now,
                        Err(Errno::AGAIN | Errno::INTR) => return Progress::Waits,
                        Err(_) => return Progress::Failed,
                    }
                }
                Step::Reading { gathered } => {
                    let mut buffer = [0; STATUS_LINE_BYTES];
                    match rustix::net::recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
                        Ok((0, _)) => return Progress::Failed,
                        Ok((received, _)) => gathered.extend_from_slice(buffer.get(..received).unwrap_or_default()),
                        Err(Errno::AGAIN | Errno::INTR) => return Progress::Waits,
                        Err(_) => return Progress::Failed,
                    }
                    match (self.judge)(gathered) {
                        Some(true) => return Progress::Passed,
                        Some(false) => return Progress::Failed,
                        None => {}
                    }
                }
            }
        }
    }
}

impl AsFd for Attempt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn request(port: u16, path: &str) -> Vec<u8> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nUser-Agent: byre-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    request.into_bytes()
}

/// Whether the answer so far is a status line with 200 to 399; `None` while it is not whole.
pub(crate) fn verdict(gathered: &[u8]) -> Option<bool> {
    let Some(end) = gathered.iter().position(|byte| *byte == b'\n') else {
        return (gathered.len() >= STATUS_LINE_BYTES).then_some(false);
    };
    let line = gathered.get(..end).unwrap_or_default();
    let status = line
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| line.strip_prefix(b"HTTP/1.0 "))
        .and_then(|rest| rest.split_first_chunk::<3>())
        .filter(|(digits, rest)| {
            digits.iter().all(u8::is_ascii_digit) && matches!(rest.first(), None | Some(b' ' | b'\r'))
        });
    Some(status.is_some_and(|(digits, _)| matches!(digits.first(), Some(b'2' | b'3'))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_good_status_line_passes() {
        for good in
            ["HTTP/1.1 200 OK\r\n", "HTTP/1.0 204 \n", "HTTP/1.1 399\r\n", "HTTP/1.1 302 Found\r\nLocation: /\r\n"]
        {
            assert_eq!(verdict(good.as_bytes()), Some(true), "{good:?}");
        }
        for bad in [
            "HTTP/1.1 500 \r\n",
            "HTTP/2 200\r\n",
            "\n",
            "HTTP/1.1 20\n",
            "HTTP/1.1 2000 x\n",
            "HTTP/1.1 +20 x\n",
            "SSH-2.0\n",
        ] {
            assert_eq!(verdict(bad.as_bytes()), Some(false), "{bad:?}");
        }
        assert_eq!(verdict(b"HTTP/1.1 200 O"), None);
        assert_eq!(verdict(&[b'x'; STATUS_LINE_BYTES]), Some(false));
    }
}
