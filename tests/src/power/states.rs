//! The states that a cut can leave: every prefix of what was written, tears of the write behind it, and choices among writes that no flush
//! ordered.

use std::rc::Rc;

use anyhow::Result;

use super::disk::{Base, Disk};
use super::log::{Log, Request};

/// What kind of cut left a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// All requests up to one, whole.
    Prefix,
    /// The same, and a part of the next write.
    Torn,
    /// All that was flushed, and some of what was not.
    Unordered,
}

/// Places in the log that are looked at closely: what happens to other partitions than these changes nothing of what boots.
#[derive(Debug, Clone)]
pub struct Watched(pub Vec<std::ops::Range<u64>>);

impl Watched {
    fn touches(&self, offset: u64, bytes: u64) -> bool {
        self.0.iter().any(|range| offset < range.end && range.start < offset + bytes)
    }
}

/// How many torn and unordered states are wanted at least, and where the draw begins.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// States that are no prefixes.
    pub torn: usize,
    /// Of the draw; the same seed gives the same states.
    pub seed: u64,
}

struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

struct Write {
    offset: u64,
    data: Vec<u8>,
    through: bool,
}

/// Visits the states, each prefix first and then those that differ from it by a tear or an order.
///
/// # Errors
/// If the log or the base cannot be read, or the visitor fails.
pub fn visit(
    base: &Rc<Base>,
    log: &Log,
    watched: &Watched,
    wanted: Wanted,
    visitor: &mut dyn FnMut(Cut, usize, &Disk) -> Result<()>,
) -> Result<()> {
    let mut draw = Draw(wanted.seed | 1);
    let writes = log.requests.iter().filter(|request| is_watched(request, watched)).count().max(1);
    // Half of them tears, half choices; per write that matters.
    let each = wanted.torn.div_ceil(2 * writes).max(1);
    let (mut flushed, mut now) = (Disk::new(base), Disk::new(base));
    let mut epoch: Vec<Write> = Vec::new();
    visitor(Cut::Prefix, 0, &now)?;
    for (index, request) in log.requests.iter().enumerate() {
        let place = index + 1;
        match request {
            Request::Flush => {
                flushed = now.clone();
                epoch.clear();
            }
            Request::Discard { offset, bytes } => {
                now.write(&vec![0; usize::try_from(*bytes)?], *offset)?;
                visitor(Cut::Prefix, place, &now)?;
            }
            Request::Write { offset, bytes, at, through } => {
                let data = log.data(*at, *bytes)?;
                let close = watched.touches(*offset, *bytes);
                if close {
                    tear(&now, *offset, &data, each, &mut draw, &mut |disk| visitor(Cut::Torn, place, disk))?;
                }
                now.write(&data, *offset)?;
                epoch.push(Write { offset: *offset, data, through: *through });
                visitor(Cut::Prefix, place, &now)?;
                if close {
                    reorder(&flushed, &epoch, each, &mut draw, &mut |disk| visitor(Cut::Unordered, place, disk))?;
                }
            }
        }
    }
    Ok(())
}

fn is_watched(request: &Request, watched: &Watched) -> bool {
    match request {
        Request::Write { offset, bytes, .. } => watched.touches(*offset, *bytes),
        Request::Discard { .. } | Request::Flush => false,
    }
}

/// Parts of one write, by sectors of 512 bytes and by blocks of 4 KiB: from its front, from its back, and any of its sectors.
fn tear(
    before: &Disk,
    offset: u64,
    data: &[u8],
    each: usize,
    draw: &mut Draw,
    visitor: &mut dyn FnMut(&Disk) -> Result<()>,
) -> Result<()> {
    for number in 0..each {
        let unit = if number % 2 == 0 { 512 } else { 4096 };
        let units = data.len() / unit;
        if units < 2 {
            continue;
        }
        let mut torn = before.clone();
        match number % 3 {
            0 => torn.write(&data[..(1 + draw.below(units - 1)) * unit], offset)?,
            1 => {
                let from = (1 + draw.below(units - 1)) * unit;
                torn.write(&data[from..], offset + from as u64)?;
            }
            _ => {
                for (index, part) in data.chunks(unit).enumerate() {
                    if draw.next() & 1 == 1 {
                        torn.write(part, offset + (index * unit) as u64)?;
                    }
                }
            }
        }
        visitor(&torn)?;
    }
    Ok(())
}

/// What was flushed, what was written through, and any choice of the rest, each perhaps torn.
fn reorder(
    flushed: &Disk,
    epoch: &[Write],
    each: usize,
    draw: &mut Draw,
    visitor: &mut dyn FnMut(&Disk) -> Result<()>,
) -> Result<()> {
    if epoch.len() < 2 {
        return Ok(());
    }
    for _ in 0..each {
        let mut disk = flushed.clone();
        for write in epoch {
            match (write.through, draw.next() % 4) {
                (true, _) | (false, 0 | 1) => disk.write(&write.data, write.offset)?,
                (false, 2) if write.data.len() > 512 => {
                    let cut = 512 * (1 + draw.below(write.data.len() / 512 - 1));
                    disk.write(&write.data[..cut], write.offset)?;
                }
                (false, _) => {}
            }
        }
        visitor(&disk)?;
    }
    Ok(())
}
