//! `cargo xtask release`: builds an image as a release, signs its statement, and publishes it.

use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use byre_release::{Statement, Unverified};
use byre_repository::{Artefact, KeyFolder, Lifetimes, NewRelease, Repository, Role, write_bundle};
use byre_rootfs_build::Manifest;

use crate::{image, keys, packages};

#[derive(clap::Args, Debug)]
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    image: image::Args,
    /// The repository [default: target/repository].
    #[arg(long)]
    repository: Option<PathBuf>,
    /// A further folder with secret keys; may be given several times.
    #[arg(long)]
    signing_keys: Vec<PathBuf>,
    /// The channel whose newest release it becomes.
    #[arg(long, default_value = "stable")]
    channel: String,
    /// Only sign snapshot and timestamp of the repository anew, so that they are good for longer.
    #[arg(long)]
    refresh: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    packages::ensure_installed(packages::FOR_IMAGE)?;
    let top = image::repository()?;
    let folder = args.repository.clone().unwrap_or_else(|| top.join("target/repository"));
    let trusted = keys::development(&args.image, &top)?;
    let mut folders = vec![trusted.clone()];
    for path in &args.signing_keys {
        folders.push(KeyFolder::open(path)?);
    }
    let repository = open(&folder, &folders)?;
    if args.refresh {
        repository.refresh()?;
        println!("release: {} is good for {} more days", folder.display(), Lifetimes::default().online_days);
        return Ok(());
    }
    let mut image_args = args.image.clone();
    // One more than the last, and never the number of an image that was not published: `cargo xtask image` makes 1.
    image_args.install = image_args.install.max(repository.last_install()? + 1).max(2);
    let out = image_args.out.clone().unwrap_or_else(|| top.join("target/release-image"));
    let manifest = image::build(&image_args, &top, &out, &mut |line| eprintln!("{line}"))?;
    let bundle = publish(&repository, &folder, &folders, &out, &manifest, &args.channel)?;
    println!("release: {} (install number {}) is in {}", manifest.version, manifest.install, folder.display());
    println!("release: offline bundle {}", bundle.display());
    Ok(())
}

/// The repository in `folder`, begun with the root metadata of its keys if it is new.
pub(crate) fn open(folder: &Path, keys: &[KeyFolder]) -> Result<Repository> {
    let repository = Repository::open(folder, keys, Lifetimes::default(), byre_tuf::now())?;
    let first = folder.join("metadata/1.root.json");
    if !first.exists() {
        let trusted = keys.first().context("no folder of keys")?;
        std::fs::copy(trusted.root_file(), &first).with_context(|| format!("cannot write {}", first.display()))?;
    }
    Ok(repository)
}

/// Publishes the image in `out`; returns its bundle's path.
pub(crate) fn publish(
    repository: &Repository,
    folder: &Path,
    folders: &[KeyFolder],
    out: &Path,
    manifest: &Manifest,
    channel: &str,
) -> Result<PathBuf> {
    let statement = statement(manifest)?;
    let mut release_keys = Vec::new();
    for keys in folders {
        release_keys.extend(keys.load(Role::Release)?);
    }
    let key = release_keys.first().context("no release key: attach its folder with --signing-keys")?;
    let signed_statement = statement.sign(key)?;
    // What the image itself trusts must be able to read it, or the next update from it would not.
    let trusted = folders.first().context("no folder of keys")?.release_keys_file();
    let trusted = byre_release::ReleaseKeys::parse(&std::fs::read(&trusted)?)?;
    Unverified::new(&signed_statement)?.verify(&trusted)?;
    let [verity, root, uki, sbom] =
        ["root.verity", "root.erofs", "uki.efi", "sbom.spdx.json"].map(|name| out.join(name));
    let files = [
        (Artefact::Verity, verity.as_path()),
        (Artefact::Root, root.as_path()),
        (Artefact::Uki, uki.as_path()),
        (Artefact::Sbom, sbom.as_path()),
    ];
    repository.publish(&NewRelease { statement: &statement, signed_statement, files, channel })?;
    let bundles = folder.join("bundles");
    std::fs::create_dir_all(&bundles)?;
    let bundle = bundles.join(format!("byre-{}-{}.bundle", manifest.version, manifest.install));
    write_bundle(repository, channel, manifest.install, BufWriter::new(std::fs::File::create(&bundle)?))?;
    Ok(bundle)
}

/// What an image is, as its statement says it.
pub(crate) fn statement(manifest: &Manifest) -> Result<Statement> {
    let bytes32 = |text: &str| -> Result<[u8; 32]> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).with_context(|| format!("{text} is no digest"))?;
        Ok(bytes)
    };
    let uki = manifest.sha256.get("uki.efi").context("the manifest lacks uki.efi")?;
    Ok(Statement {
        version: manifest.version.parse()?,
        install: manifest.install,
        minimum_install: manifest.minimum_install,
        build_time: u64::try_from(manifest.epoch)?,
        root_blocks: manifest.data_blocks,
        verity_bytes: manifest.verity_bytes,
        uki_bytes: manifest.uki_bytes,
        root_hash: bytes32(&manifest.root_hash)?,
        uki_sha256: bytes32(uki)?,
    })
}
