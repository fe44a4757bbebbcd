//! Makes the empty file systems for state and data, the same bytes every time.

use crate::tools::{Tools, run};
use anyhow::{Context, Result};
use std::path::Path;

/// What the two file systems differ in.
pub(crate) struct Ext4<'a> {
    pub(crate) label: &'a str,
    pub(crate) bytes: u64,
    pub(crate) journal_mib: u32,
    /// Blocks of 4096 bytes in a group, where the usual 32768 would leave no room for a second one and its copy of the superblock.
    pub(crate) blocks_per_group: Option<u32>,
    /// Features beyond the common ones.
    pub(crate) extra_features: &'a str,
    /// Extended options beyond the common ones.
    pub(crate) extra_options: &'a str,
}

/// The features that both have, spelled out so that no configuration file decides.
const FEATURES: &str = "has_journal,extent,huge_file,flex_bg,metadata_csum,metadata_csum_seed,64bit,dir_nlink,\
                        extra_isize,filetype,sparse_super,large_file,ext_attr,dir_index,resize_inode";

/// Writes the file system `fs` into the new sparse file `path`.
pub(crate) fn build(tools: &Tools, path: &Path, fs: &Ext4<'_>) -> Result<()> {
    let file = std::fs::File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    file.set_len(fs.bytes)?;
    drop(file);
    let uuid = crate::disk::derived_guid(&format!("file system {}", fs.label)).to_string();
    let mut features = FEATURES.to_owned();
    let mut options = format!("hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard");
    for (list, extra) in [(&mut features, fs.extra_features), (&mut options, fs.extra_options)] {
        if !extra.is_empty() {
            list.push(',');
            list.push_str(extra);
        }
    }
    // Inode per 16 KiB, 256-byte inodes: room for a container host's many small files, and for project ids.
    let groups = fs.blocks_per_group.map(|blocks| ["-g".to_owned(), blocks.to_string()]);
    run(tools
        .command("sbin/mke2fs")
        .args(groups.iter().flatten())
        .args(["-t", "ext4", "-q", "-F", "-b", "4096", "-I", "256", "-i", "16384", "-m", "3", "-e", "remount-ro"])
        .args(["-L", fs.label, "-U", &uuid, "-O", &features, "-E", &options])
        .args(["-J", &format!("size={}", fs.journal_mib)])
        .arg(path))?;
    Ok(())
}
