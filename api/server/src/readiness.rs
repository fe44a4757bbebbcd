//! Registering descriptors with the runtime's poller: the one `unsafe` of this crate.

use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers `descriptor` with the current runtime.
///
/// # Errors
/// If it is of a kind that cannot be polled (a plain file).
pub(crate) fn register(descriptor: OwnedFd, interest: Interest) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, is owned by the `AsyncFd` from here on, always gives the same number, and closes it only when the
    // `AsyncFd` is dropped or taken apart.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}
