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
pub use descriptors::Descriptors;
pub use filter::seal;
pub use notify::Notifier;
pub use profile::{Condition, Group, Profile, Rule};
pub use sys::{Termination, termination};

/// Why a service cannot start. It ends with this, and PID 1 starts it anew.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum StartError {
    /// It was not handed what it needs.
    Descriptors(#[from] descriptors::DescriptorError),
    /// It cannot say that it is ready.
    Notify(#[from] notify::NotifyError),
    /// It cannot lock itself in, so it must not go on.
    Seal(#[from] filter::SealError),
}
