//! DHCPv4 (RFC 2131, RFC 2132, RFC 3442): what goes over the wire, and what is decided from it.
//!
//! [`frame`] and [`wire`] turn bytes from anybody on the link into checked types; [`machine`] decides, without clock or socket. The
//! packet socket that carries it out is `crate::socket`.

pub mod frame;
pub mod machine;
pub mod wire;
