//! Ways in for a fuzzer: bytes in, whether they were accepted out. Each holds one decoder of hostile input to what must be true of it.
//!
//! The targets that call these are in `tests/fuzz`; the tests here feed them small seeds so that they stay alive.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::archive::{StageLimits, resolve, stage};
use crate::check;
use crate::digest::Digest;
use crate::erofs::{self, Budget};
use crate::layer;
use crate::reference::Reference;
use crate::store;

/// Bytes that one input may grow to.
const LIMIT: u64 = 16 << 20;

/// Parses a reference; what is accepted reads back the same.
///
/// # Panics
/// If it does not: that is what the fuzzer looks for.
pub fn fuzz_reference(data: &[u8]) -> bool {
    let Some(reference) = std::str::from_utf8(data).ok().and_then(|text| text.parse::<Reference>().ok()) else {
        return false;
    };
    assert_eq!(reference.to_string().parse::<Reference>().as_ref(), Ok(&reference));
    assert_eq!(reference.short().parse::<Reference>().as_ref(), Ok(&reference));
    true
}

/// Reads what a registry answers for a manifest: however it is delivered, what is understood is bounded, and what is
/// delivered without a type is not an image and an index both.
///
/// # Panics
/// If that does not hold.
pub fn fuzz_manifest(data: &[u8]) -> bool {
    const STATED: [&str; 4] = [
        "",
        "application/json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ];
    let mut kinds = [0_u32; 2];
    for stated in STATED {
        match crate::pull::document::read(data, stated) {
            Ok(crate::pull::document::Document::Index { .. }) => kinds[0] += 1,
            Ok(crate::pull::document::Document::Manifest(plan)) => {
                assert!(
                    plan.layers.len() <= crate::archive::MAX_LAYERS && plan.config.1 <= crate::archive::MAX_JSON_LEN
                );
                kinds[1] += 1;
            }
            Err(_) => {}
        }
    }
    kinds != [0, 0]
}

/// Reads a public key in PEM; what is accepted has a name, and signs nothing that it did not.
///
/// # Panics
/// If it does.
pub fn fuzz_key(data: &[u8]) -> bool {
    let Some(key) = std::str::from_utf8(data).ok().and_then(|pem| crate::signature::PublicKey::parse(pem).ok()) else {
        return false;
    };
    let signature = crate::signature::Signature { payload: "{}".to_owned(), signature: "AAAA".to_owned() };
    assert!(signature.verify(&key, &[Digest::of(data)], "r.example/app").is_err(), "three bytes are a signature");
    true
}

/// Reads what cosign signs.
pub fn fuzz_payload(data: &[u8]) -> bool {
    crate::signature::fuzz_payload(data)
}

/// Converts a layer; what is converted passes the bounds check, and is the same file each time.
///
/// # Panics
/// If it does not, or without memory for a file.
pub fn fuzz_layer(data: &[u8]) -> bool {
    let convert = || layer::convert(data, scratch(&[]), Budget::of(LIMIT), &mut |_| true);
    let Ok(made) = convert() else { return false };
    if let Err(error) = check::check(&made.file) {
        panic!("a layer of our own is refused: {error}");
    }
    let again = convert().expect("what was converted once is converted again");
    assert_eq!(content(&made.file), content(&again.file), "one layer, two files");
    true
}

/// The layer file of a tar stream.
///
/// # Panics
/// If it cannot be converted.
#[must_use]
pub fn layer_file(tar: &[u8]) -> Vec<u8> {
    content(&layer::convert(tar, scratch(&[]), Budget::of(LIMIT), &mut |_| true).expect("a good layer").file)
}

/// Checks a layer file, with the right checksum in its superblock if `mend`. What is accepted has room for what it says it holds, and is
/// not accepted without its last block.
///
/// # Panics
/// If that does not hold, or without memory for a file.
pub fn fuzz_check(data: &[u8], mend: bool) -> bool {
    let mut bytes = data.to_vec();
    if mend && let Some(block) = bytes.get_mut(erofs::SUPERBLOCK_OFFSET..erofs::BLOCK_LEN) {
        block[4..8].fill(0);
        let sum = erofs::crc32c(block);
        block[4..8].copy_from_slice(&sum.to_le_bytes());
    }
    let file = scratch(&bytes);
    let Ok(checked) = check::check(&file) else { return false };
    assert!(checked.directories <= checked.entries + 1 && checked.entries <= erofs::MAX_ENTRIES as u64);
    assert!(checked.directories * erofs::INODE_LEN as u64 <= bytes.len() as u64, "more directories than inodes");
    bytes.truncate(bytes.len() - erofs::BLOCK_LEN);
    assert!(check::check(&scratch(&bytes)).is_err(), "a file that is cut off is accepted");
    true
}

/// Reads the store's record of an image; what is accepted is written and read again without change.
///
/// # Panics
/// If it is not.
pub fn fuzz_record(data: &[u8]) -> bool {
    store::fuzz_record(data)
}

/// Stages and resolves an archive, in the empty directory `dir`. What is resolved is what was staged: configurations and layers by their
/// digests, as many layers as the configuration says.
///
/// # Panics
/// If it is not.
pub fn fuzz_archive(data: &[u8], dir: &Path) -> bool {
    let limits = StageLimits { bytes: LIMIT, free: LIMIT };
    let Ok(staged) = stage(data, dir, limits, &mut |_| true) else { return false };
    let Ok(images) = resolve(&staged) else { return false };
    for image in &images {
        assert_eq!(Digest::of(&image.config_bytes), image.id);
        let diff_ids: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id).collect();
        assert_eq!(diff_ids, image.config.diff_ids);
        for layer in &image.layers {
            assert!(layer.path.starts_with(dir), "{} was not staged", layer.path.display());
            let metadata = layer.path.symlink_metadata().expect("a staged file is there");
            assert!(metadata.is_file() && metadata.len() == layer.size);
        }
    }
    !images.is_empty()
}

/// A file in memory.
fn scratch(bytes: &[u8]) -> File {
    let memory = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("memory for a file");
    let mut file = File::from(memory);
    file.write_all(bytes).expect("memory for a file");
    file
}

fn content(file: &File) -> Vec<u8> {
    let length = file.metadata().expect("it is open").len();
    let mut bytes = vec![0; usize::try_from(length).expect("a short file")];
    file.read_exact_at(&mut bytes, 0).expect("it is in memory");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_entry_point_takes_any_bytes(data in prop::collection::vec(any::<u8>(), 0..4096)) {
            fuzz_reference(&data);
            fuzz_layer(&data);
            fuzz_check(&data, true);
            fuzz_record(&data);
            fuzz_archive(&data, tempfile::tempdir().unwrap().path());
        }

        #[test]
        fn a_damaged_layer_is_refused_or_passes_the_check(
            name in "[a-z/.]{1,30}", at in any::<prop::sample::Index>(), to in any::<u8>(),
        ) {
            let mut tar = Vec::new();
            crate::pack::rootfs::busybox(&mut tar, name.as_bytes(), &["sh".to_owned()], 5).unwrap();
            let at = at.index(tar.len());
            tar[at] = to;
            fuzz_layer(&tar);
        }
    }
}
