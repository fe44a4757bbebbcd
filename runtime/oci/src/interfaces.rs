//! Interfaces of the host that a container is given (`linux.netDevices`): moved, renamed, with the addresses they had, and up.
//!
//! Speaks rtnetlink by hand: three messages. An interface that a container has goes back to the host, or away with the namespace, as the kernel does it.

use std::os::fd::{AsFd as _, OwnedFd};

use nix::sched::{CloneFlags, setns};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recv, send, socket_with,
};

use crate::error::{Error, cannot, wrong};

// linux/rtnetlink.h, linux/netlink.h, linux/if_link.h, linux/if_addr.h.
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_PID: u16 = 19;
const IFA_F_PERMANENT: u8 = 0x80;
const UP: u32 = 1;
/// One answer of a dump; the kernel's own buffers have 32 KiB.
const ANSWER_BYTES: usize = 64 * 1024;
/// Addresses of one interface.
const ADDRESSES: usize = 1024;

/// Moves an interface into the network namespace of a process.
pub(crate) fn give(name: &str, inside: &str, pid: u32) -> Result<(), Error> {
    let what = || format!("give the container the interface {name}");
    let index = std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok())
        .ok_or_else(|| wrong(format!("linux.netDevices: there is no interface {name:?}"), "name one of this host"))?;
    let socket = route().map_err(cannot(what()))?;
    let addresses = addresses(&socket, index).map_err(cannot(what()))?;
    let mut link = interface(index, 0, 0);
    attribute(&mut link, IFLA_NET_NS_PID, &pid.to_ne_bytes());
    attribute(&mut link, IFLA_IFNAME, &[inside.as_bytes(), &[0]].concat());
    ask(&socket, RTM_NEWLINK, &link).map_err(cannot(what()))?;
    let own = std::fs::File::open("/proc/self/ns/net").map_err(cannot(what()))?;
    let theirs = std::fs::File::open(format!("/proc/{pid}/ns/net")).map_err(cannot(what()))?;
    setns(theirs.as_fd(), CloneFlags::CLONE_NEWNET).map_err(cannot(what()))?;
    let done = settle(inside, &addresses);
    // Nothing else may be done in the container's network.
    setns(own.as_fd(), CloneFlags::CLONE_NEWNET).map_err(cannot(what()))?;
    done.map_err(cannot(what()))
}

/// Inside: up, with the addresses it had.
fn settle(name: &str, addresses: &[Vec<u8>]) -> Result<(), Errno> {
    let socket = route()?;
    let mut link = interface(0, UP, UP);
    attribute(&mut link, IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
    ask(&socket, RTM_NEWLINK, &link)?;
    let index = rustix::net::netdevice::name_to_index(&socket, name)?;
    for address in addresses {
        let mut address = address.clone();
        if let Some(place) = address.get_mut(4..8) {
            place.copy_from_slice(&index.to_ne_bytes());
        }
        match ask(&socket, RTM_NEWADDR, &address) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn route() -> Result<OwnedFd, Errno> {
    // Protocol 0 is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
    Ok(socket)
}

/// `struct ifinfomsg`.
fn interface(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut message = vec![0_u8; 4];
    for number in [index, flags, change] {
        message.extend_from_slice(&number.to_ne_bytes());
    }
    message
}

/// `struct rtattr` and its value, padded to four bytes.
fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

fn framed(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut message = u32::try_from(body.len() + 16).unwrap_or(u32::MAX).to_ne_bytes().to_vec();
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    // Sequence number and port: there is one question at a time.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    message
}

/// Messages of an answer: kind and body.
fn messages(answer: &[u8]) -> Vec<(u16, &[u8])> {
    let mut rest = answer;
    let mut found = Vec::new();
    while let Some((head, _)) = rest.split_at_checked(16) {
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        let Some(body) = rest.get(16..length) else { break };
        found.push((kind, body));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// The error number of an acknowledgement; 0 is none.
fn error_of(body: &[u8]) -> Result<(), Errno> {
    let number = body.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(-22, i32::from_ne_bytes);
    if number == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(number.saturating_neg())) }
}

fn ask(socket: &OwnedFd, kind: u16, body: &[u8]) -> Result<(), Errno> {
    send(socket, &framed(kind, NLM_F_REQUEST | NLM_F_ACK, body), SendFlags::empty())?;
    let mut answer = vec![0_u8; ANSWER_BYTES];
    loop {
        let (count, _) = recv(socket, &mut answer[..], RecvFlags::empty())?;
        for (kind, body) in messages(&answer[..count]) {
            if kind == NLMSG_ERROR {
                return error_of(body);
            }
        }
    }
}

/// The lasting addresses of an interface that are valid everywhere, as bodies of RTM_NEWADDR.
fn addresses(socket: &OwnedFd, index: u32) -> Result<Vec<Vec<u8>>, Errno> {
    send(socket, &framed(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, &[0; 8]), SendFlags::empty())?;
    let mut found = Vec::new();
    let mut answer = vec![0_u8; ANSWER_BYTES];
    loop {
        let (count, _) = recv(socket, &mut answer[..], RecvFlags::empty())?;
        for (kind, body) in messages(&answer[..count]) {
            match (kind, body) {
                (NLMSG_DONE, _) => return Ok(found),
                (NLMSG_ERROR, body) => error_of(body)?,
                // Family, prefix, flags, scope (0 is global), index.
                (RTM_NEWADDR, [_, _, flags, 0, number @ ..])
                    if flags & IFA_F_PERMANENT != 0
                        && number.get(..4) == Some(&index.to_ne_bytes())
                        && found.len() < ADDRESSES =>
                {
                    found.push(body.to_vec());
                }
                (_, _) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_are_written_and_short_ones_end_the_reading() {
        let two = [framed(16, 0, &[1, 2, 3, 4]), framed(20, 0, &[])].concat();
        assert_eq!(messages(&two), [(16, &[1, 2, 3, 4][..]), (20, &[][..])]);
        assert!(messages(&two[..19]).is_empty());
        assert!(messages(&[0; 40]).is_empty(), "a length of nothing is no message");
    }
}
