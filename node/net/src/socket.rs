//! The packet socket of one link that DHCP goes through: the only `unsafe` of this crate.
//!
//! The kernel's filter passes nothing but unfragmented UDP to the client's port, so that a busy link wakes nobody. What passes is
//! still anybody's packet; [`crate::dhcp::frame`] checks it.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::dhcp::frame::{CLIENT_PORT, Checksum, PACKET_BYTES};
use crate::dhcp::wire::MacAddress;

const ETHERTYPE_IPV4: u16 = 0x0800;
/// Everybody on an Ethernet.
pub(crate) const BROADCAST: MacAddress = [0xff; 6];

/// A packet that passed the filter.
#[derive(Debug)]
pub(crate) struct Received {
    /// From the IPv4 header on.
    pub(crate) packet: Vec<u8>,
    /// Whether its checksum can be believed.
    pub(crate) checksum: Checksum,
    /// Who sent it on this link.
    pub(crate) neighbour: MacAddress,
}

/// An AF_PACKET socket bound to one link.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    fd: OwnedFd,
    index: u32,
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

impl PacketSocket {
    /// Opens one. It hears nothing before its filter is in place: it is bound to a protocol last.
    pub(crate) fn open(index: u32) -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked before it becomes an owned descriptor that nobody else has.
        let fd = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let this = Self { fd, index };
        let filter = filter();
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        this.set_option(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        let on: libc::c_int = 1;
        this.set_option(libc::SOL_PACKET, libc::PACKET_AUXDATA, &on)?;
        let address = this.address(BROADCAST);
        // SAFETY: the pointer and length describe `address`, which outlives the call.
        let result = unsafe {
            libc::bind(this.fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(this) }
    }

    /// Waits for packets of a socket in tokio's loop.
    pub(crate) fn watch(socket: Arc<Self>) -> io::Result<AsyncFd<Arc<Self>>> {
        // SAFETY: the descriptor is the socket's own for as long as it lives, and the AsyncFd keeps it alive.
        unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(Into::into)
    }

    fn set_option<T>(&self, level: i32, name: i32, value: &T) -> io::Result<()> {
        // SAFETY: the pointer and length describe `value`, which outlives the call; the kernel copies what a filter points to.
        let result = unsafe {
            libc::setsockopt(self.fd.as_raw_fd(), level, name, (value as *const T).cast(), size_of::<T>() as u32)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn address(&self, mac: MacAddress) -> libc::sockaddr_ll {
        // SAFETY: sockaddr_ll is plain data for which all zeros are valid.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ETHERTYPE_IPV4.to_be();
        address.sll_ifindex = self.index as i32;
        address.sll_halen = 6;
        address.sll_addr[..6].copy_from_slice(&mac);
        address
    }

    /// Sends a packet, from its IPv4 header on, to a neighbour.
    pub(crate) fn send(&self, packet: &[u8], to: MacAddress) -> io::Result<()> {
        let address = self.address(to);
        // SAFETY: both pointers and lengths describe values that outlive the call.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                libc::MSG_NOSIGNAL,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes one packet; `WouldBlock` when there is none.
    pub(crate) fn receive(&self) -> io::Result<Received> {
        let mut packet = vec![0u8; PACKET_BYTES];
        // Room for one tpacket_auxdata with its header, aligned for cmsghdr.
        let mut control = [0u64; 8];
        // SAFETY: both are plain data for which all zeros are valid.
        let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) = unsafe { (zeroed(), zeroed()) };
        let mut vector = libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: packet.len() };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: every pointer in `message` describes a local with its true length, and all outlive the call.
        let length = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, 0) };
        let Ok(length) = usize::try_from(length) else { return Err(io::Error::last_os_error()) };
        packet.truncate(length);
        let mut neighbour = MacAddress::default();
        neighbour.copy_from_slice(&from.sll_addr[..6]);
        Ok(Received { packet, checksum: checksum(&message), neighbour })
    }
}

fn checksum(message: &libc::msghdr) -> Checksum {
    // SAFETY: `message` was filled by recvmsg, and its control buffer is alive; CMSG_* stay inside it. The data is read unaligned.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(control) = header.as_ref() {
            if control.cmsg_level == libc::SOL_PACKET && control.cmsg_type == libc::PACKET_AUXDATA {
                let data = libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned();
                if data.tp_status & libc::TP_STATUS_CSUMNOTREADY != 0 {
                    return Checksum::NotReady;
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    Checksum::Present
}

/// Classic BPF over a packet that begins with its IPv4 header: UDP, first and only fragment, to the client's port.
fn filter() -> [libc::sock_filter; 9] {
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const LOAD_HALF_INDEXED: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_IND) as u16;
    const HEADER_LENGTH: u16 = (libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const IF_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let op = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    [
        op(LOAD_BYTE, 9, 0, 0),
        op(IF_EQUAL, 17, 0, 6),
        op(LOAD_HALF, 6, 0, 0),
        op(IF_ANY_BIT, 0x3fff, 4, 0),
        op(HEADER_LENGTH, 0, 0, 0),
        op(LOAD_HALF_INDEXED, 2, 0, 0),
        op(IF_EQUAL, u32::from(CLIENT_PORT), 0, 1),
        op(RETURN, PACKET_BYTES as u32, 0, 0),
        op(RETURN, 0, 0, 0),
    ]
}
