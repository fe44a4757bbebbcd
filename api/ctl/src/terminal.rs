//! Our own terminal: its size, raw mode, and getting out of raw mode whatever happens.
//!
//! The settings from before are kept in one place, so that the guard's drop, the panic hook and the end of the process all restore the
//! same ones, once. Raw mode is only entered where signals that could end us are already handled.

use std::io::IsTerminal as _;
use std::sync::Mutex;

use byre_api::proto::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::error::Failure;

/// The settings to go back to; empty if we are not in raw mode.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

pub(crate) fn stdin_is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// The size of the terminal we are on, if any.
pub(crate) fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(std::io::stdout()).or_else(|_| tcgetwinsize(std::io::stdin())).ok()?;
    if size.ws_row == 0 || size.ws_col == 0 {
        return None;
    }
    Some(TerminalSize { rows: size.ws_row.into(), columns: size.ws_col.into() })
}

/// Raw mode for as long as it lives.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Every byte that is typed arrives as it is, Ctrl-C as well.
    pub(crate) fn enter() -> Result<Self, Failure> {
        let failed = |error: rustix::io::Errno| Failure::io("cannot set up the terminal", &error.into());
        let before = tcgetattr(std::io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        install_hook();
        *kept() = Some(before);
        if let Err(error) = tcsetattr(std::io::stdin(), OptionalActions::Now, &raw) {
            restore();
            return Err(failed(error));
        }
        Ok(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Back to the settings from before; does nothing outside raw mode. It may be called as often as one likes.
pub(crate) fn restore() {
    if let Some(before) = kept().take() {
        // If it fails the terminal is gone. Not Drain: a terminal stopped by Ctrl-S would hold us for ever.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &before);
    }
}

fn kept() -> std::sync::MutexGuard<'static, Option<Termios>> {
    BEFORE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A panic aborts without running drops, so the terminal is restored before its message is printed.
fn install_hook() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            print(panic);
        }));
    });
}
