//! `byred podnet`: puts pods into the node's networks: bridges, addresses, routes, published ports and the way out.
//!
//! PID 1 hands it a pod's network namespace and what the pod asks for, and is told the pod's addresses. There is no process per pod: what this
//! service makes is the kernel's, and goes on without it. After a restart PID 1 tells it of every pod again with the addresses that it has, so
//! nothing that runs notices.
//!
//! It has its own uid, CAP_NET_ADMIN for links and rules, and CAP_SYS_ADMIN to enter a network namespace, which is the only kind that its seccomp
//! profile lets it enter. It reads nothing that comes over a network.

mod links;
mod netlink;
mod networks;
mod nft;
mod service;

pub use service::{Asked, PodnetError, Service, Settings, run};
