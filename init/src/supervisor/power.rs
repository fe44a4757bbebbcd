//! Who may ask for the end from outside the API: the power button, Ctrl-Alt-Del, and signals.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use byre_core::Event;
use byre_protocol::control::ShutdownAction;
use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags};
use rustix::net::RecvFlags;

use super::Supervisor;
use super::sources::Source;

/// Input devices watched for a power button: boards have one or two.
const BUTTONS: usize = 8;
/// `struct input_event` of linux/input.h on a 64-bit machine.
const INPUT_EVENT_BYTES: usize = 24;
/// EV_KEY.
const EVENT_KEY: u16 = 1;
/// KEY_POWER.
const KEY_POWER: u16 = 116;
/// Device events read in one wake-up.
const UEVENTS_PER_WAKE_UP: usize = 32;

/// Open input devices by their number.
pub(crate) type Buttons = BTreeMap<u32, OwnedFd>;

impl Supervisor {
    /// Signals arrive through signal-hook's pipe, one byte each; what they were is in the flags.
    pub(super) fn signals(&mut self) {
        let mut bytes = [0_u8; 64];
        while rustix::io::read(&self.environment.signal_pipe, &mut bytes).is_ok_and(|read| read > 0) {}
        if self.reap() {
            // More children have ended than one wake-up looks at: come back for them after the others had their turn.
            let _ = rustix::io::write(&self.environment.signal_pipe_writer, b"c");
        }
        if self.environment.reboot_signal.swap(false, std::sync::atomic::Ordering::Relaxed) {
            self.queue.push_back(Event::ShutdownAsked(ShutdownAction::Reboot));
        }
        if self.environment.power_off_signal.swap(false, std::sync::atomic::Ordering::Relaxed) {
            self.queue.push_back(Event::ShutdownAsked(ShutdownAction::PowerOff));
        }
    }

    /// Device events of the kernel: a new input device may be the power button.
    pub(super) fn uevents(&mut self) {
        let mut buffer = [0_u8; 8192];
        for _ in 0..UEVENTS_PER_WAKE_UP {
            let Some(socket) = &self.environment.uevents else { return };
            let Ok((length, _)) = rustix::net::recv(socket, &mut buffer, RecvFlags::DONTWAIT) else { return };
            let message = buffer.get(..length).unwrap_or_default();
            let fields = || message.split(|byte| *byte == 0);
            if fields().any(|field| field == b"ACTION=add") && fields().any(|field| field == b"SUBSYSTEM=input") {
                let device = fields().find_map(|field| field.strip_prefix(b"DEVNAME=input/event"));
                let number =
                    device.and_then(|digits| std::str::from_utf8(digits).ok()).and_then(|text| text.parse().ok());
                if let Some(number) = number {
                    self.open_button(number);
                }
            }
        }
    }

    pub(super) fn open_button(&mut self, number: u32) {
        if self.environment.buttons.len() >= BUTTONS || self.environment.buttons.contains_key(&number) {
            return;
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(device) = rustix::fs::open(format!("/dev/input/event{number}"), flags, Mode::empty()) else { return };
        if self.sources.add(device.as_fd(), Source::Button(number), EventFlags::IN).is_ok() {
            self.environment.buttons.insert(number, device);
        }
    }

    pub(super) fn button(&mut self, number: u32) {
        let mut buffer = [0_u8; INPUT_EVENT_BYTES * 16];
        let Some(device) = self.environment.buttons.get(&number) else { return };
        let Ok(length) = rustix::io::read(device, &mut buffer) else {
            // Unplugged; closing takes it out of the epoll.
            self.environment.buttons.remove(&number);
            return;
        };
        let pressed = buffer.get(..length).unwrap_or_default().chunks_exact(INPUT_EVENT_BYTES).any(is_power_press);
        if pressed {
            self.queue.push_back(Event::ShutdownAsked(ShutdownAction::PowerOff));
        }
    }
}

fn is_power_press(event: &[u8]) -> bool {
    let word = |from: usize| {
        event.get(from..from.saturating_add(2)).and_then(|pair| pair.try_into().ok()).map(u16::from_ne_bytes)
    };
    let value = event.get(20..24).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    word(16) == Some(EVENT_KEY) && word(18) == Some(KEY_POWER) && value == Some(1)
}
