//! One server: its questions, what it answered, and when it may be asked again.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::time::{Duration, Instant};

use crate::clock::now_ns;
use crate::packet::{self, PACKET_BYTES, PacketError, Sample};

/// RFC 5905's port.
const PORT: u16 = 123;
/// How long one answer is waited for.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// Packets that are looked at for one answer: whoever sends others must not hold us up.
const PACKETS: usize = 8;
/// Questions of the first round, of which the quickest answer counts; one later.
const BURST: u32 = 4;
const BURST_PAUSE: Duration = Duration::from_secs(2);
/// How long a server that wants fewer questions is left alone.
const RATE_PAUSE: Duration = Duration::from_secs(4096);

/// A server and what is known of it.
#[derive(Debug)]
pub struct Server {
    /// As configured.
    pub name: String,
    /// The address that was asked last.
    pub address: Option<SocketAddr>,
    /// The last answer.
    pub sample: Option<Sample>,
    /// Why there is none.
    pub problem: String,
    not_before: Option<Instant>,
    refuses: bool,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("{0}: is the network up, and the name right?")]
    Name(io::Error),
    #[error("the name has no address")]
    NoAddress,
    #[error("no answer: {0}")]
    Socket(#[from] io::Error),
    #[error("{0}")]
    Packet(#[from] PacketError),
}

impl Server {
    /// One that was not asked yet.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            address: None,
            sample: None,
            problem: String::new(),
            not_before: None,
            refuses: false,
        }
    }

    /// Asks it, unless it asked not to be.
    pub fn ask(&mut self) {
        if self.refuses || self.not_before.is_some_and(|at| Instant::now() < at) {
            self.sample = None;
            return;
        }
        let burst = if self.sample.is_none() && self.problem.is_empty() { BURST } else { 1 };
        self.sample = None;
        let mut best: Option<Sample> = None;
        for number in 0..burst {
            if number > 0 {
                std::thread::sleep(BURST_PAUSE);
            }
            match self.once() {
                Ok(sample) if best.is_none_or(|best| sample.delay_ns < best.delay_ns) => best = Some(sample),
                Ok(_) => {}
                Err(error) => {
                    self.problem = error.to_string();
                    match error {
                        AskError::Packet(PacketError::Rate) => self.not_before = Some(Instant::now() + RATE_PAUSE),
                        AskError::Packet(PacketError::Denied) => self.refuses = true,
                        AskError::Packet(_) | AskError::Name(_) | AskError::NoAddress | AskError::Socket(_) => {}
                    }
                    break;
                }
            }
        }
        if best.is_some() {
            self.problem.clear();
        }
        self.sample = best;
    }

    fn once(&mut self) -> Result<Sample, AskError> {
        // Port and all, for tests and odd set-ups; a plain name has the standard one.
        let resolved = match self.name.parse::<SocketAddr>() {
            Ok(address) => Some(address),
            Err(_) => (self.name.as_str(), PORT).to_socket_addrs().map_err(AskError::Name)?.next(),
        };
        let address = resolved.ok_or(AskError::NoAddress)?;
        self.address = Some(address);
        let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        let mut cookie = [0; 8];
        rustix::rand::getrandom(&mut cookie, rustix::rand::GetRandomFlags::empty()).map_err(io::Error::from)?;
        let cookie = u64::from_ne_bytes(cookie);
        let sent = now_ns();
        socket.send(&packet::request(cookie))?;
        let end = Instant::now() + ANSWER_TIME;
        let mut told = PacketError::NotAsked;
        for _ in 0..PACKETS {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            let mut bytes = [0; PACKET_BYTES + 1];
            let length = socket.recv(&mut bytes)?;
            match packet::answer(bytes.get(..length).unwrap_or_default(), cookie, sent, now_ns()) {
                // Not from the server, or late: its own may still come.
                Err(error @ (PacketError::NotAsked | PacketError::Malformed)) => told = error,
                other => return Ok(other?),
            }
        }
        Err(told.into())
    }
}
