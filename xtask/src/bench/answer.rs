//! Whether a gRPC server answers: one call by hand over HTTP/2 without TLS (RFC 9113), since nothing else here speaks to a containerd.
//!
//! What it answers is not looked at: that it answers is what is timed.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// One attempt. A connection that the port forwarder took before the guest listened is never answered; the next one is.
const ATTEMPT: Duration = Duration::from_millis(500);
/// Between attempts that were refused.
const RETRY: Duration = Duration::from_millis(20);
/// HEADERS, DATA, SETTINGS, and the flags END_STREAM and END_HEADERS.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Calls `path` without a message until something answers on that stream.
///
/// # Errors
/// If nothing does within `limit`.
pub(super) fn wait(address: SocketAddr, path: &str, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if ask(address, path).unwrap_or(false) {
            return Ok(());
        }
        std::thread::sleep(RETRY);
    }
    bail!("{address} did not answer {path} within {} s", limit.as_secs())
}

fn ask(address: SocketAddr, path: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, ATTEMPT)?;
    stream.set_read_timeout(Some(ATTEMPT))?;
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    out.extend(frame(SETTINGS, 0, 0, &[]));
    out.extend(frame(HEADERS, END_HEADERS, 1, &headers(path)));
    // A gRPC message of no bytes: not compressed, length 0.
    out.extend(frame(DATA, END_STREAM, 1, &[0; 5]));
    stream.write_all(&out)?;
    loop {
        let mut head = [0u8; 9];
        stream.read_exact(&mut head)?;
        let [a, b, c, kind, _, s0, s1, s2, s3] = head;
        let length = u32::from_be_bytes([0, a, b, c]);
        if kind == HEADERS && u32::from_be_bytes([s0, s1, s2, s3]) == 1 {
            return Ok(true);
        }
        std::io::copy(&mut (&mut stream).take(u64::from(length)), &mut std::io::sink())?;
    }
}

fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut out = vec![length[1], length[2], length[3], kind, flags];
    out.extend(stream.to_be_bytes());
    out.extend(content);
    out
}

/// HPACK (RFC 7541): POST and http of the static table, the rest in full.
fn headers(path: &str) -> Vec<u8> {
    let mut out = vec![0x83, 0x86];
    let text = |text: &str| {
        let length = u8::try_from(text.len()).unwrap_or(u8::MAX).min(126);
        let mut coded = vec![length];
        coded.extend(text.bytes().take(usize::from(length)));
        coded
    };
    for (name, value) in
        [(":path", path), (":authority", "peer"), ("content-type", "application/grpc"), ("te", "trailers")]
    {
        let line = [vec![0], text(name), text(value)].concat();
        out.extend(line);
    }
    out
}
