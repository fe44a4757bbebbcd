//! What every service of the node does between its start and its first outside byte: take the descriptors that PID 1 handed it,
//! say that it is ready, and lock itself in.
//!
//! Uid, capabilities, `no_new_privs` and Landlock are applied by the launch child before the service's program runs; the
//! seccomp filter is the service's own, because only here the start-up calls (which need more) are over. This crate parses nothing from
//! outside and keeps no thread.

pub mod channel;
pub mod descriptors;
mod filter;
pub mod notify;
pub mod profile;
pub mod profiles;
pub mod stream;
mod sys;

pub use channel::Channel;
pub use descriptors::{DescriptorError, Descriptors};
pub use filter::{SealError, seal};
pub use notify::Notifier;
pub use profile::{Condition, Group, Profile, Rule};
pub use sys::{Termination, termination};
