//! What the boot partition lies on: a span of a disk, or memory in a test.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Something that can be read and written at an offset, and told to put what was written on stable storage.
pub trait Device {
    /// Fills `buffer` from `offset` in bytes.
    ///
    /// # Errors
    /// Those of the device, or an end before the buffer is full.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes `bytes` at `offset`. Not on stable storage before the next [`Device::flush`], and in no order until then.
    ///
    /// # Errors
    /// Those of the device.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Returns when all that was written is on stable storage.
    ///
    /// # Errors
    /// Those of the device.
    fn flush(&mut self) -> io::Result<()>;
}

/// A part of an open disk, such as a partition: nothing outside of it is reached.
#[derive(Debug)]
pub struct Span {
    file: File,
    offset: u64,
    length: u64,
}

impl Span {
    /// `length` bytes of `file` from `offset`.
    #[must_use]
    pub fn new(file: File, offset: u64, length: u64) -> Self {
        Self { file, offset, length }
    }

    /// The place on the disk, if all of it is inside.
    fn place(&self, offset: u64, bytes: usize) -> io::Result<u64> {
        let length = u64::try_from(bytes).unwrap_or(u64::MAX);
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.length);
        let place = self.offset.checked_add(offset).filter(|_| inside);
        place.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "outside of the partition"))
    }
}

impl Device for Span {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, self.place(offset, buffer.len())?)
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, self.place(offset, bytes.len())?)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Memory, for tests and for tools that judge images.
impl Device for Vec<u8> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        byre_slots::gpt::ReadAt::read_exact_at(self.as_slice(), buffer, offset)
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let target = self.get_mut(start..).and_then(|rest| rest.get_mut(..bytes.len()));
        target.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?.copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
