//! Layers: tar streams from anybody's image, turned into one erofs file.

use byre_image::pack::rootfs;

use crate::{Target, Verdict};

/// See the table.
pub(super) static TARGET: Target = Target {
    name: "layer",
    about: "layers as tar streams, plain or compressed: what is converted passes the bounds check, and converts to the same bytes again",
    sources: &[
        "image/src/layer.rs",
        "image/src/tar",
        "image/src/erofs",
        "image/src/compression.rs",
        "image/src/check.rs",
    ],
    longest: 24 * 1024,
    run,
    seeds,
};

fn run(input: &[u8]) -> Verdict {
    Verdict::of(byre_image::fuzz::fuzz_layer(input))
}

/// A small root with directories, links and files.
pub(super) fn tar() -> Vec<u8> {
    let mut tar = Vec::new();
    rootfs::busybox(&mut tar, b"#!/bin/true\n", &["sh".to_owned()], 5).expect("it is written to memory");
    tar
}

/// Entries that need more than the oldest header: long names, attributes, whiteouts, hard links, sparse files.
fn extended() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    append(&mut builder, tar::EntryType::Directory, "d/", "", b"");
    append(&mut builder, tar::EntryType::Regular, "d/file", "", b"data");
    append(&mut builder, tar::EntryType::Regular, &format!("d/{}", "n".repeat(150)), "", b"more");
    append(&mut builder, tar::EntryType::Link, "d/link", "d/file", b"");
    append(&mut builder, tar::EntryType::Regular, "d/.wh.gone", "", b"");
    append(&mut builder, tar::EntryType::Regular, "d/.wh..wh..opq", "", b"");
    append(&mut builder, tar::EntryType::Fifo, "d/fifo", "", b"");
    let extensions = [("SCHILY.xattr.user.a", &b"b"[..]), ("mtime", b"5.25"), ("uid", b"70000")];
    builder.append_pax_extensions(extensions).expect("it is written to memory");
    append(&mut builder, tar::EntryType::Regular, "d/last", "", b"");
    builder.into_inner().expect("it is written to memory")
}

/// One entry.
pub(super) fn append(builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, link: &str, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(data.len() as u64);
    if !link.is_empty() {
        header.set_link_name(link).expect("a short name");
    }
    header.set_cksum();
    builder.append_data(&mut header, name, data).expect("it is written to memory");
}

fn seeds() -> Vec<Vec<u8>> {
    vec![tar(), extended()]
}
