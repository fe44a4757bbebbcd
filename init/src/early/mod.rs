//! The initramfs stage: from the kernel's first process to PID 1 in the verified root.
//!
//! ```text
//! mounts -> modules -> watchdog -> disk -> attempts -> slot -> verity -> root -> switch
//!    \_________\__________\_________\________\_________\_______\_______\______-> give up: message, record, reboot
//! ```
//! It must not panic (a panic here says less than a message and a reboot), must not trust a disk before its tree is
//! matched with the root hash of the signed command line, and must not wait without a deadline. Every stage is one line on
//! the console. Nothing is ever repaired here but the order of the two slots.

mod attempts;
mod boot_partition;
mod cmdline;
mod console;
mod crash;
mod demote;
mod devices;
mod firmware;
mod modules;
mod slot;
mod switch;
mod sys;
mod watchdog;

use console::Console;
use std::path::PathBuf;

/// Why the early stage gave up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EarlyError {
    /// A mount that everything needs.
    #[error("cannot mount {what} on {at}: {errno}")]
    Mount {
        /// Device or type.
        what: String,
        /// Mount point.
        at: &'static str,
        /// The system's error.
        errno: rustix::io::Errno,
    },
    /// A file of the initramfs or the kernel.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A module that does not load.
    #[error("module {name} does not load: {errno}; is the initramfs of this kernel")]
    Module {
        /// Its name.
        name: String,
        /// The system's error.
        errno: std::io::Error,
    },
    /// The command line lacks what a verified boot needs.
    #[error("the kernel command line has no valid {0}; boot through the kernel image of a slot")]
    CommandLine(&'static str),
    /// No disk came up in time.
    #[error("no disk with {wanted} after {seconds} s; disks seen: {seen}")]
    NoDisk {
        /// What was looked for.
        wanted: String,
        /// The deadline.
        seconds: u64,
        /// What was there.
        seen: String,
    },
    /// More than one disk claims to be the booted one.
    #[error("{first} and {second} both hold {wanted}; remove one of the two disks")]
    TwoDisks {
        /// One.
        first: String,
        /// Other.
        second: String,
        /// What both have.
        wanted: String,
    },
    /// The partition table lacks something.
    #[error("disk {disk}: {source}")]
    Table {
        /// The disk's name.
        disk: String,
        /// What is wrong.
        source: byre_slots::gpt::GptError,
    },
    /// Neither slot holds the root.
    #[error("no slot of {disk} holds root {hash}: {detail}")]
    NoSlot {
        /// The disk's name.
        disk: String,
        /// The root hash.
        hash: String,
        /// What each slot holds.
        detail: String,
    },
    /// Device-mapper.
    #[error(transparent)]
    Verity(#[from] byre_verity::DmError),
    /// The last step.
    #[error("cannot execute {path}: {errno}")]
    Execute {
        /// The program.
        path: &'static str,
        /// The system's error.
        errno: std::io::Error,
    },
}

/// Seconds between a last message and the reboot: time to read it, the same as after a kernel panic.
const REBOOT_DELAY_S: i64 = 5;

/// Runs the stage; the process is PID 1 of the verified root afterwards, or the machine reboots.
pub(crate) fn run() -> ! {
    let mut console = Console::open();
    let error = match boot(&mut console) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    console.line("failed", &error.to_string());
    console.line("reboot", &format!("in {REBOOT_DELAY_S} s"));
    sys::pause(REBOOT_DELAY_S);
    sys::reboot()
}

/// A value that cannot exist: success is another program's to report.
enum Never {}

fn boot(console: &mut Console) -> Result<Never, EarlyError> {
    switch::mount_kernel_filesystems()?;
    console.reopen();
    console.line("mounts", "proc, sys, dev, run");
    let cmdline = cmdline::read()?;
    let uevents = devices::Uevents::open();
    let loaded = modules::load_all()?;
    console.line("modules", &format!("{loaded} loaded"));
    if !switch::mount_efi_variables() {
        console.line("firmware", "no EFI variables: the disk is found by its root hash");
    }
    let watchdog = watchdog::open();
    console.line("watchdog", &watchdog.describe());
    let loader = slot::Loader::read();
    let disk = devices::find_disk(&uevents, &loader, &cmdline)?;
    console.line("disk", &disk.describe());
    if loader.boot_partition.is_some() {
        match firmware::keep_fallbacks(&disk) {
            Ok(true) => console.line("firmware", "boot options of both slots written"),
            Ok(false) => {}
            Err(error) => console.line("firmware", &format!("boot options not written: {error}")),
        }
    }
    let chosen = slot::choose(&disk, &cmdline, &loader);
    let record = attempts::Recorder::begin(&disk, &chosen, &watchdog, console);
    let result = chosen.and_then(|slot| enter(console, &cmdline, &disk, &slot, &watchdog, &record));
    if let Err(error) = &result {
        record.failed(error);
    }
    result
}

/// Opens the chosen slot and goes there.
fn enter(
    console: &mut Console,
    cmdline: &cmdline::CommandLine,
    disk: &devices::Disk,
    slot: &slot::Chosen,
    watchdog: &watchdog::Watchdog,
    record: &attempts::Recorder,
) -> Result<Never, EarlyError> {
    let trial = if record.on_trial { ", on trial" } else { "" };
    console.line("slot", &format!("{}{trial}", slot.describe()));
    let device = slot.open_verity(cmdline)?;
    console.line("verity", &format!("{device} root hash {}", cmdline.root_hash));
    switch::mount_root(&device)?;
    console.line("root", "erofs, read-only");
    switch::into_root()?;
    console.line("switch", switch::INIT);
    switch::execute(disk, slot, watchdog, record)
}
