//! The offline bundle: the metadata and one release of a repository in a single tar file, in the order in which a node reads it.
//!
//! First `metadata/`, then the channel's statement, the hash tree, the root and the kernel image below `targets/`. A node writes the parts into
//! its slot as they come by, so the order is part of the format.

use std::io::Write;

use anyhow::{Context, Result};

use crate::publish::{Artefact, Repository, artefact_name, channel_target};

/// Writes the bundle of the newest release of `channel`, which has this install number.
///
/// # Errors
/// When a part is missing or cannot be written.
pub fn write_bundle(repository: &Repository, channel: &str, install: u64, to: impl Write) -> Result<()> {
    let mut builder = tar::Builder::new(to);
    let append = |builder: &mut tar::Builder<_>, name: &str, bytes: &[u8]| -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(u64::try_from(bytes.len())?);
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::Regular);
        builder.append_data(&mut header, name, bytes).with_context(|| format!("cannot write {name}"))
    };
    for (name, bytes) in repository.current_metadata()? {
        append(&mut builder, &format!("metadata/{name}"), &bytes)?;
    }
    let parts = [Artefact::Verity, Artefact::Root, Artefact::Uki].map(|part| artefact_name(install, part));
    for name in std::iter::once(channel_target(channel)).chain(parts) {
        let path = repository.target_file(&name)?;
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        append(&mut builder, &format!("targets/{name}"), &bytes)?;
    }
    builder.finish()?;
    builder.into_inner()?.flush()?;
    Ok(())
}
