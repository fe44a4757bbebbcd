//! Garbage, floods and closed connections on the sockets that can be reached from outside.
//!
//! PID 1's own sockets are reachable by its services only; garbage on those is tried in its own tests and by its fuzz targets.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{On, Scenario, WAIT, inspect, same, sh};
use crate::node::Node;

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "sockets::garbage_is_dropped", on: On::Shared(garbage) },
    Scenario { name: "sockets::idle_connections_keep_nobody_out", on: On::Shared(idle) },
    Scenario { name: "sockets::closed_connections_leave_nothing", on: On::Shared(closed) },
];

/// Connections of one try: more than the API serves at once.
const CONNECTIONS: usize = 300;

/// Deterministic bytes that look like nothing (xorshift).
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The API serves, by the same process as before.
fn unharmed(node: &Node, pid: &serde_json::Value) -> Result<()> {
    same("a container can be run", sh(node, &[], "echo fine")?.as_str(), "fine")?;
    same("the API's process", inspect(node, "api")?["workload"]["pid"].clone(), pid.clone())
}

fn garbage(node: &Node) -> Result<()> {
    let pid = inspect(node, "api")?["workload"]["pid"].clone();
    // A TLS record that promises more than it brings, one of the largest size, and plain noise.
    let hello = [&[0x16, 3, 1, 0x40, 0][..], &noise(4000, 1)].concat();
    let huge = [&[0x16, 3, 3, 0xff, 0xff][..], &noise(70_000, 2)].concat();
    for (attempt, bytes) in
        [hello, huge, noise(1 << 20, 3), vec![0; 1 << 16], b"GET / HTTP/1.1\r\n\r\n".to_vec()].iter().enumerate()
    {
        let mut stream = TcpStream::connect(node.api_address())?;
        stream.set_write_timeout(Some(WAIT))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(bytes).ok(); // the node may hang up at any time
        let mut answer = Vec::new();
        stream.take(512).read_to_end(&mut answer).ok();
        ensure!(!answer.windows(4).any(|window| window == b"grpc"), "try {attempt}: the API answered garbage");
    }
    unharmed(node, &pid)
}

fn idle(node: &Node) -> Result<()> {
    let pid = inspect(node, "api")?["workload"]["pid"].clone();
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        // The forwarder or the node may refuse at some number; what counts is what is served afterwards.
        if let Ok(stream) = TcpStream::connect_timeout(&node.api_address(), Duration::from_secs(2)) {
            held.push(stream);
        }
    }
    let served = unharmed(node, &pid);
    drop(held);
    served?;
    unharmed(node, &pid)
}

fn closed(node: &Node) -> Result<()> {
    let pid = inspect(node, "api")?["workload"]["pid"].clone();
    for round in 0..CONNECTIONS {
        let Ok(mut stream) = TcpStream::connect_timeout(&node.api_address(), Duration::from_secs(2)) else { continue };
        if round % 2 == 0 {
            stream.write_all(&noise(round, 7)).ok();
        }
        stream.shutdown(Shutdown::Both).ok();
    }
    unharmed(node, &pid)
}
