//! `cargo xtask keys`: the keys that releases are signed with. docs/keys.md describes the ceremony.
//!
//! Development keys are made below `target/` when an image is built without others. They are as good as any other key to the nodes of that
//! image, and to no others: a production image is built with `--keys`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use byre_repository::{KeyFolder, Lifetimes, Repository, Role};

use crate::image;

/// Where development keys lie in a checkout.
pub(crate) const DEVELOPMENT: &str = "target/keys";

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Make one more key of a role in a folder.
    Add {
        /// release, root, targets, snapshot or timestamp.
        role: Role,
        /// The folder; make one for each medium.
        #[arg(long)]
        keys: PathBuf,
    },
    /// Write root metadata with the keys that the folders hold: the first, or the next version. The old root keys sign it as well.
    Root {
        /// The repository.
        #[arg(long)]
        repository: PathBuf,
        /// A folder with keys; may be given several times.
        #[arg(long, required = true)]
        keys: Vec<PathBuf>,
        /// How many keys of a role must sign, as `root=2`; one, if a role is not named.
        #[arg(long, value_parser = parse_threshold)]
        threshold: Vec<(Role, u64)>,
    },
    /// Write release-keys, the public halves that the next image trusts, into a folder.
    Public {
        /// The folder with the release keys.
        #[arg(long)]
        keys: PathBuf,
    },
}

fn parse_threshold(text: &str) -> Result<(Role, u64)> {
    let (role, number) = text.split_once('=').context("write a threshold as ROLE=NUMBER")?;
    Ok((role.parse()?, number.parse().context("a threshold is a number from 1")?))
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Add { role, keys } => {
            let key = KeyFolder::open(keys)?.add(*role)?;
            println!("made {} key {} in {}", role.name(), key.id(), keys.display());
        }
        What::Root { repository, keys, threshold } => {
            let folders = keys.iter().map(|path| KeyFolder::open(path)).collect::<Result<Vec<_>>>()?;
            let root = write_root(repository, &folders, threshold)?;
            println!("wrote version {root} of the root metadata; build the next image with it");
        }
        What::Public { keys } => {
            let folder = KeyFolder::open(keys)?;
            folder.write_release_keys()?;
            println!("wrote {}", folder.release_keys_file().display());
        }
    }
    Ok(())
}

/// Writes the next root metadata into the repository, and beside the first folder's keys for the next image.
fn write_root(repository: &Path, folders: &[KeyFolder], thresholds: &[(Role, u64)]) -> Result<u64> {
    let opened = Repository::open(repository, folders, Lifetimes::default(), byre_tuf::now())?;
    let (version, root) = opened.write_root(thresholds)?;
    let first = folders.first().context("no folder of keys")?;
    std::fs::write(first.root_file(), root)?;
    Ok(version)
}

/// The folder of keys that an image is built with. Where `--keys` names none, development keys are made on first use.
pub(crate) fn development(args: &image::Args, repository: &Path) -> Result<KeyFolder> {
    let path = args.keys.clone().unwrap_or_else(|| repository.join(DEVELOPMENT));
    let given = args.keys.is_some();
    let folder = KeyFolder::open(&path)?;
    if folder.release_keys_file().exists() && folder.root_file().exists() {
        return Ok(folder);
    }
    ensure!(
        !given,
        "{} has no release-keys or no root.json: make them with cargo xtask keys (docs/keys.md)",
        path.display()
    );
    for role in Role::ALL {
        if folder.load(role)?.is_empty() {
            folder.add(role)?;
        }
    }
    folder.write_release_keys()?;
    // The first root metadata lies with the keys: every repository of these keys begins with it.
    write_root(&path.join("repository"), std::slice::from_ref(&folder), &[])?;
    Ok(folder)
}
