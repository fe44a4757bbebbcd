//! Sockets as the kernel lists them in /proc/PID/net (proc_pid_net(5)): TCP and UDP of one network namespace.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use byre_api::proto;

/// Sockets of one answer; one is about 100 bytes of message. Listening ones come first, so that they are not what is cut.
const SOCKETS: usize = 8192;
/// Of a file: a line has about 150 bytes, so this is more than a million sockets.
const FILE_BYTES: u64 = 256 << 20;
const FILES: [&str; 4] = ["tcp", "tcp6", "udp", "udp6"];

/// The sockets of the namespace whose directory `net` is.
///
/// # Errors
/// If TCP's sockets cannot be read. A kernel may lack the others.
pub(crate) fn read(net: &Path) -> std::io::Result<proto::ListSocketsResponse> {
    let mut listening = Vec::new();
    let mut others = Vec::new();
    let mut cut = false;
    for protocol in FILES {
        let file = match File::open(net.join(protocol)) {
            Ok(file) => file,
            Err(error) if protocol == "tcp" => return Err(error),
            Err(_) => continue,
        };
        for line in BufReader::new(file.take(FILE_BYTES)).lines().map_while(Result::ok) {
            let Some(socket) = socket(protocol, &line) else { continue };
            let list = if socket.state == "LISTEN" { &mut listening } else { &mut others };
            if list.len() == SOCKETS { cut = true } else { list.push(socket) }
        }
    }
    listening.append(&mut others);
    cut |= listening.len() > SOCKETS;
    listening.truncate(SOCKETS);
    Ok(proto::ListSocketsResponse { sockets: listening, cut })
}

/// `number: local remote state queues timer retransmissions user ...`; the header is none.
fn socket(protocol: &str, line: &str) -> Option<proto::Socket> {
    let mut fields = line.split_whitespace();
    fields.next()?.strip_suffix(':')?;
    let local = address(fields.next()?)?;
    let remote = address(fields.next()?)?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let user = fields.nth(3)?.parse().ok()?;
    Some(proto::Socket {
        protocol: protocol.to_owned(),
        local: local.to_string(),
        remote: remote.to_string(),
        state: state_name(protocol, state).to_owned(),
        user,
    })
}

/// The states of include/net/tcp_states.h, as ss(8) writes them.
fn state_name(protocol: &str, state: u8) -> &'static str {
    match state {
        1 => "ESTAB",
        2 => "SYN-SENT",
        3 => "SYN-RECV",
        4 => "FIN-WAIT-1",
        5 => "FIN-WAIT-2",
        6 => "TIME-WAIT",
        7 if protocol.starts_with("udp") => "UNCONN",
        7 => "CLOSED",
        8 => "CLOSE-WAIT",
        9 => "LAST-ACK",
        10 => "LISTEN",
        11 => "CLOSING",
        _ => "UNKNOWN",
    }
}

/// Words of 32 bits in the machine's order, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    if !words.is_ascii() || !matches!(words.len(), 8 | 32) {
        return None;
    }
    let mut bytes = [0_u8; 16];
    for (index, part) in bytes.chunks_exact_mut(4).enumerate().take(words.len() / 8) {
        let word = u32::from_str_radix(words.get(index * 8..index * 8 + 8)?, 16).ok()?;
        part.copy_from_slice(&word.to_ne_bytes());
    }
    let address = if words.len() == 8 {
        IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))
    } else {
        IpAddr::V6(Ipv6Addr::from(bytes))
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sockets_that_are_open_are_listed_with_their_state() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let answer = read(Path::new("/proc/self/net")).unwrap();
        let found = |protocol: &str, local: SocketAddr, state: &str| {
            let local = local.to_string();
            answer.sockets.iter().any(|it| it.protocol == protocol && it.local == local && it.state == state)
        };
        assert!(found("tcp", listener.local_addr().unwrap(), "LISTEN"));
        assert!(found("tcp", client.local_addr().unwrap(), "ESTAB"));
        assert!(found("udp", datagrams.local_addr().unwrap(), "UNCONN"));
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn both_families_are_read() {
        assert_eq!(address("0100007F:1F90").unwrap().to_string(), "127.0.0.1:8080");
        assert_eq!(address("00000000000000000000000001000000:0050").unwrap().to_string(), "[::1]:80");
        for text in ["", ":", "0100007F", "0100007F:99999", "01:1", "0100007Fxx:1", "é100007:1"] {
            assert_eq!(address(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_line_breaks_the_reader(line in "\\PC{0,120}") {
            let _ = socket("tcp", &line);
            let _ = address(&line);
        }
    }
}
