//! The writes of arming a slot, recorded natively: the shipped code on the boot partition of a real image.

use std::io;
use std::rc::Rc;

use anyhow::Result;
use byre_loader::fat::Fat;
use byre_loader::{Device, commit};
use byre_slots::Slot;

use super::disk::{Base, Disk};
use super::log::{Log, Request};

/// A boot partition that remembers what reaches it.
#[derive(Debug)]
struct Recorder {
    disk: Disk,
    offset: u64,
    requests: Vec<Request>,
    data: Vec<u8>,
}

impl Device for Recorder {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.read(buffer, self.offset + offset)
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (offset, at) = (self.offset + offset, self.data.len() as u64);
        self.disk.write(bytes, offset)?;
        self.requests.push(Request::Write { offset, bytes: bytes.len() as u64, at, through: false });
        self.data.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.requests.push(Request::Flush);
        Ok(())
    }
}

/// Arms slot b with a kernel image, counts a try as the loader does, and blesses it; gives all that was written.
///
/// # Errors
/// If the protocol fails.
pub fn record(base: &Rc<Base>, boot_offset: u64, image: &[u8]) -> Result<Log> {
    let recorder = Recorder { disk: Disk::new(base), offset: boot_offset, requests: Vec::new(), data: Vec::new() };
    let mut fat = Fat::open(recorder)?;
    let mut rest = image;
    let mut fill = |part: &mut [u8]| io::Read::read_exact(&mut rest, part);
    commit::place_image(&mut fat, Slot::B, image.len() as u64, &mut fill)?;
    commit::commit(&mut fat, Slot::B)?;
    fat.rename(byre_loader::entries::DIRECTORY, "b+2.conf", "b+1-1.conf")?;
    commit::bless(&mut fat, Slot::B)?;
    let recorder = fat.into_device();
    Ok(Log::in_memory(recorder.requests, recorder.data))
}
