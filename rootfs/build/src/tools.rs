//! The build root: the programs that write image bytes, run from the locked packages with their own C library.
//!
//! They see an empty environment with a fixed clock and locale, so nothing of the host reaches what they write.

use crate::deb;
use crate::lock::{Fetched, Use};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An unpacked build root.
pub(crate) struct Tools {
    root: PathBuf,
    epoch: i64,
}

/// What mke2fs would otherwise read from the host: no defaults beside those on its command line.
const MKE2FS_CONF: &str =
    "[defaults]\n\tbase_features = filetype\n\tdefault_mntopts = acl,user_xattr\n\tenable_periodic_fsck = 0\n";

impl Tools {
    /// Unpacks the tool packages below `cache`, once per set of packages.
    pub(crate) fn unpack(packages: &[Fetched], cache: &Path, epoch: i64) -> Result<Self> {
        let tools: Vec<&Fetched> = packages.iter().filter(|fetched| fetched.package.purpose == Use::Tool).collect();
        let hashes: Vec<&str> = tools.iter().map(|fetched| fetched.package.sha256.as_str()).collect();
        let identity = crate::image::digest(format!("{MKE2FS_CONF}{}", hashes.join("\n")).as_bytes());
        let root = cache.join(format!("tools-{}", &identity[..16]));
        if !root.exists() {
            let staging = cache.join(format!("tools-{}.part", std::process::id()));
            for fetched in &tools {
                deb::unpack(&fetched.file, &staging, |_| true)?;
            }
            std::fs::write(staging.join("mke2fs.conf"), MKE2FS_CONF)?;
            if let Err(error) = std::fs::rename(&staging, &root)
                && !root.exists()
            {
                return Err(error).context("cannot put the build root in place");
            }
        }
        Ok(Self { root, epoch })
    }

    /// The time that everything in the image carries.
    pub(crate) fn epoch(&self) -> i64 {
        self.epoch
    }

    /// A command for `program` (a path below the build root's `/usr`), through the build root's own loader.
    pub(crate) fn command(&self, program: &str) -> Command {
        let usr = self.root.join("usr");
        let mut command = Command::new(usr.join("lib64/ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(usr.join("lib/x86_64-linux-gnu"))
            .arg(usr.join(program))
            .env_clear()
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("SOURCE_DATE_EPOCH", self.epoch.to_string())
            .env("E2FSPROGS_FAKE_TIME", self.epoch.to_string())
            .env("MKE2FS_CONFIG", self.root.join("mke2fs.conf"))
            .env("MKE2FS_SKIP_CHECK_MSG", "1")
            .env("GCONV_PATH", usr.join("lib/x86_64-linux-gnu/gconv"))
            .env("MTOOLSRC", "/dev/null")
            .env("MTOOLS_SKIP_CHECK", "1")
            .stdin(Stdio::null());
        command
    }
}

/// Runs a command; its output is shown only when it fails.
pub(crate) fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed ({}):\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}
