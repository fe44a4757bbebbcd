//! The Debian root that the suites run in: the newest packages of the peers, the suites from their Debian sources, and what those need.
//!
//! Kept below `target/conformance` as long as what it is made of stays the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::native;
use crate::packages::{self, Needed};

/// What making it needs.
const NEEDED: &[Needed] = &[
    Needed { program: "mmdebstrap", package: "mmdebstrap" },
    Needed { program: "unshare", package: "util-linux" },
    Needed { program: "ip", package: "iproute2" },
    Needed { program: "/usr/share/keyrings/debian-archive-keyring.gpg", package: "debian-archive-keyring" },
];
/// The suite with the newest versions, and one whose sources serve when the mirror lacks the newest's.
const SUITE: &str = "sid";
const SOURCES_TOO: &str = "trixie";
/// The peers, what uses a runtime, and what the suites are written in.
const PACKAGES: &str = "ca-certificates,crun,runc,containerd,podman,netavark,criu,bats,python3,jq,iproute2,busybox-static,uidmap,procps,kmod,\
    e2fsprogs,gcc,libc6-dev,make,dpkg-dev,util-linux,attr,acl,golang-any,xz-utils,bzip2,gawk";

const PREPARE: &str = include_str!("prepare.sh");
/// Files of ours in its `/conformance`.
const FILES: [(&str, &str); 5] = [
    ("build.sh", include_str!("build.sh")),
    ("run.sh", include_str!("run.sh")),
    ("guest.sh", include_str!("guest.sh")),
    ("tap.go", include_str!("tap.go")),
    ("engines.sh", include_str!("engines.sh")),
];

/// A root that was made.
#[derive(Debug)]
pub(crate) struct DebianRoot {
    path: PathBuf,
    versions: String,
}

impl DebianRoot {
    /// Makes it, unless it is there.
    ///
    /// # Errors
    /// If packages or sources cannot be fetched, or a suite does not build.
    pub(crate) fn make(repository: &Path) -> Result<Self> {
        // SAFETY: geteuid has no preconditions and cannot fail.
        ensure!(unsafe { libc::geteuid() } == 0, "the suites make containers: run this as root");
        packages::ensure_installed(NEEDED)?;
        let folder = repository.join("target/conformance");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let (path, known) = (folder.join("root"), folder.join("inputs"));
        let inputs = format!("{SUITE} {SOURCES_TOO} {PACKAGES}\n{PREPARE}");
        if fs::read_to_string(&known).ok().as_deref() != Some(&inputs) {
            println!("making the Debian root of the suites ({SUITE}): some minutes");
            fs::remove_file(&known).ok();
            if path.exists() {
                fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
            bootstrap(&folder, &path)?;
            fs::write(&known, inputs)?;
        }
        // Our own files may have changed since.
        let build = FILES[0].1.to_owned() + FILES[3].1;
        for (name, content) in FILES {
            fs::write(path.join("conformance").join(name), content)?;
        }
        let built = folder.join("built");
        if fs::read_to_string(&built).ok().as_deref() != Some(&build) {
            println!("building the suites");
            let log = folder.join("build.log");
            let status = native::enter(&path, &["sh", "/conformance/build.sh"])?
                .stdout(fs::File::create(&log)?)
                .stderr(fs::File::options().append(true).open(&log)?)
                .status()
                .context("cannot run unshare")?;
            ensure!(status.success(), "the suites do not build: see {}", log.display());
            fs::write(&built, build)?;
        }
        let versions = fs::read_to_string(path.join("conformance/versions")).context("versions are not known")?;
        Ok(Self { path, versions })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts a runtime where the suites look for it.
    pub(crate) fn install(&self, program: &Path, name: &str) -> Result<()> {
        let to = self.path.join("conformance/bin").join(name);
        fs::copy(program, &to).with_context(|| format!("cannot copy {} to {}", program.display(), to.display()))?;
        Ok(())
    }

    /// `name version` of a package, without Debian's revision.
    pub(crate) fn version(&self, package: &str) -> String {
        let found = self.versions.lines().find_map(|line| line.strip_prefix(package)?.strip_prefix(' '));
        let version = found.unwrap_or("of unknown version");
        let name = package.strip_prefix("source-").unwrap_or(package);
        format!("{name} {}", version.split(['+', '-']).next().unwrap_or(version))
    }
}

fn bootstrap(folder: &Path, path: &Path) -> Result<()> {
    let staging = tempfile::tempdir()?;
    let files = staging.path().join("files");
    fs::create_dir(&files)?;
    for (name, content) in FILES {
        fs::write(files.join(name), content)?;
    }
    let script = staging.path().join("prepare.sh");
    fs::write(&script, PREPARE)?;
    let log = fs::File::create(folder.join("mmdebstrap.log"))?;
    let sources = format!(
        "sed -i -n 'p; h; s/^deb /deb-src /p; g; s/^deb \\(.*\\) {SUITE} \\(.*\\)/deb-src \\1 {SOURCES_TOO} \\2/p' \"$1\"/etc/apt/sources.list"
    );
    let status = Command::new("mmdebstrap")
        .args(["--variant=minbase", "--format=directory", &format!("--include={PACKAGES}")])
        .args(["--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Check-Valid-Until \"false\""])
        .arg(format!("--setup-hook={sources}"))
        .arg(format!("--customize-hook=sh '{}' \"$1\" '{}'", script.display(), files.display()))
        .arg(SUITE)
        .arg(path)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .context("cannot run mmdebstrap")?;
    ensure!(status.success(), "mmdebstrap failed: see {}", folder.join("mmdebstrap.log").display());
    Ok(())
}
