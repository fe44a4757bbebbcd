//! The table of targets, and what several of them share.

mod api;
mod archive;
mod boots;
mod bundle;
mod config;
mod control;
mod copy;
mod core;
mod dhcp;
mod disk;
mod erofs;
mod launch;
mod layer;
mod log;
mod ntp;
mod records;
mod registry;
mod release;
mod texts;

use crate::Target;

/// All targets. Few enough that 30 seconds of each, two at a time, fit into every test run: what is related shares one, and the first byte
/// of an input picks the decoder.
pub static TARGETS: &[&Target] = &[
    &control::TARGET,
    &core::TARGET,
    &launch::TARGET,
    &disk::TARGET,
    &records::TARGET,
    &release::TARGET,
    &log::TARGET,
    &config::TARGET,
    &dhcp::TARGET,
    &ntp::TARGET,
    &texts::TARGET,
    &bundle::TARGET,
    &layer::TARGET,
    &erofs::TARGET,
    &archive::TARGET,
    &copy::TARGET,
    &registry::TARGET,
    &api::TARGET,
    &boots::TARGET,
];

/// The number of the decoder that an input is for, and the rest of it.
fn pick(input: &[u8], decoders: u8) -> Option<(u8, &[u8])> {
    let (first, rest) = input.split_first()?;
    Some((first % decoders, rest))
}

/// A seed for one of several decoders.
fn seed(decoder: u8, input: impl AsRef<[u8]>) -> Vec<u8> {
    [&[decoder], input.as_ref()].concat()
}

/// Cuts an input into pieces: two bytes of length (little-endian) before each, what is left over is the last.
fn pieces(mut input: &[u8], most: usize) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    while pieces.len() < most
        && let Some((length, rest)) = input.split_first_chunk::<2>()
    {
        let (piece, rest) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
        pieces.push(piece);
        input = rest;
    }
    pieces
}

/// What [`pieces`] cuts.
fn joined(pieces: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        out.extend_from_slice(&u16::try_from(piece.len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend_from_slice(piece);
    }
    out
}

/// A directory for one input, gone afterwards.
fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("byre-fuzz-").tempdir().expect("room for a directory of one input")
}
