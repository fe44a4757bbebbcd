//! Reads the Debian archive: which mirror, signed indexes, files by hash.
//!
//! Trust runs from the committed keyring over a suite's signed InRelease to the hash of its package index to the hash of
//! each package; nothing is used that one of these does not cover. The transport (plain HTTP, a proxy, a cache) is trusted
//! for nothing, so it is left to curl, which honours the machine's proxy settings.

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An unpacked package index is about 55 MB today; ten times that is a fault or an attack.
const MAX_INDEX_BYTES: u64 = 512 << 20;

/// Where the two parts of the archive are, without a trailing slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors {
    main: String,
    security: String,
}

impl Mirrors {
    /// The mirrors of this machine's package sources; empty where they name none.
    pub fn of_this_machine() -> Self {
        let mut texts = Vec::new();
        let mut paths = vec![PathBuf::from("/etc/apt/sources.list")];
        if let Ok(entries) = std::fs::read_dir("/etc/apt/sources.list.d") {
            paths.extend(entries.flatten().map(|entry| entry.path()));
        }
        paths.sort();
        for path in paths {
            texts.extend(std::fs::read_to_string(path));
        }
        Self::from_sources(&texts)
    }

    fn from_sources(texts: &[String]) -> Self {
        let uris = || {
            texts
                .iter()
                .flat_map(|text| text.lines())
                .filter(|line| !line.trim_start().starts_with('#'))
                .flat_map(str::split_whitespace)
                .filter(|word| word.starts_with("http://") || word.starts_with("https://"))
                .map(|word| word.trim_end_matches('/'))
        };
        let main = uris().find(|uri| uri.ends_with("/debian"));
        let security = uris().find(|uri| uri.ends_with("/debian-security"));
        Self {
            main: main.unwrap_or_default().to_owned(),
            // Mirrors that have both keep them side by side.
            security: security
                .map_or_else(|| main.map(|main| format!("{main}-security")).unwrap_or_default(), str::to_owned),
        }
    }

    fn base(&self, suite: &str) -> &str {
        if suite.ends_with("-security") { &self.security } else { &self.main }
    }
}

/// One package as a signed index describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stanza {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) arch: String,
    pub(crate) sha256: String,
    pub(crate) size: u64,
    pub(crate) path: String,
}

/// The archive as seen from here: mirrors, keyring, cache.
pub(crate) struct Archive {
    mirrors: Mirrors,
    keyring: PathBuf,
    cache: PathBuf,
}

/// The checked index of one suite.
pub(crate) struct Suite {
    pub(crate) stanzas: Vec<Stanza>,
    /// When the archive signed it, seconds since 1970.
    pub(crate) signed_at: i64,
}

impl Archive {
    pub(crate) fn new(mirrors: Mirrors, keyring: PathBuf, cache: PathBuf) -> Result<Self> {
        ensure!(
            !mirrors.main.is_empty(),
            "apt's sources name no Debian mirror (a URI that ends with /debian); add one"
        );
        std::fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
        Ok(Self { mirrors, keyring, cache })
    }

    /// The file of a package whose hash is known: from the cache, or fetched. `None` if the archive no longer has it.
    pub(crate) fn package(&self, suite: &str, path: &str, sha256: &str, size: u64) -> Result<Option<PathBuf>> {
        ensure!(sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit()), "{path}: no SHA-256 in the lock");
        let cached = self.cache.join(format!("{sha256}.deb"));
        if cached.exists() && file_sha256(&cached)? == sha256 {
            return Ok(Some(cached));
        }
        let url = format!("{}/{path}", self.mirrors.base(suite));
        let fetched = self.cache.join(format!("{sha256}.part"));
        if !download(&url, &fetched, size)? {
            return Ok(None);
        }
        let actual = file_sha256(&fetched)?;
        if actual != sha256 {
            std::fs::remove_file(&fetched).ok();
            bail!("{url}: SHA-256 is {actual}, expected {sha256}; the mirror or something on the way altered it");
        }
        std::fs::rename(&fetched, &cached)?;
        Ok(Some(cached))
    }

    /// Fetches and checks the package index of `suite`.
    pub(crate) fn suite(&self, suite: &str) -> Result<Suite> {
        let base = format!("{}/dists/{suite}", self.mirrors.base(suite));
        let signed = self.cache.join(format!("{suite}.InRelease"));
        ensure!(download(&format!("{base}/InRelease"), &signed, 16 << 20)?, "{base}/InRelease does not exist");
        let release = self.verify(&signed)?;
        let index = "main/binary-amd64/Packages.xz";
        let (hash, size) = index_hash(&release, index).with_context(|| format!("{suite}: no {index} in InRelease"))?;
        let file = self.cache.join(format!("{suite}.Packages.xz"));
        ensure!(
            download(&format!("{base}/main/binary-amd64/by-hash/SHA256/{hash}"), &file, size)?,
            "{base}: the index named by InRelease does not exist; the mirror is being updated, try again"
        );
        ensure!(
            file_sha256(&file)? == hash,
            "{base}/{index}: hash differs from the signed one; try again or change mirror"
        );
        Ok(Suite { stanzas: parse_stanzas(&unpack_index(&file)?), signed_at: release_date(&release)? })
    }

    /// Checks the signature of an InRelease file and returns the text that it covers.
    fn verify(&self, signed: &Path) -> Result<String> {
        let keyring = self.keyring.canonicalize().with_context(|| format!("no keyring {}", self.keyring.display()))?;
        let output = Command::new("gpgv")
            .arg("--keyring")
            .arg(&keyring)
            .args(["--output", "-"])
            .arg(signed)
            .output()
            .context("cannot run gpgv; install the package gpgv")?;
        ensure!(
            output.status.success(),
            "{}: signature not accepted by {}: {}",
            signed.display(),
            keyring.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// The text of a package index (compressed with xz: the only form that every suite has), bounded.
fn unpack_index(file: &Path) -> Result<String> {
    let mut child = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(file)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run xz; install the package xz-utils")?;
    let mut text = String::new();
    child.stdout.take().context("no output from xz")?.take(MAX_INDEX_BYTES).read_to_string(&mut text)?;
    ensure!(child.wait()?.success(), "{} is not a whole index", file.display());
    Ok(text)
}

/// Fetches `url` into `to`; `Ok(false)` when the server says that it does not exist.
fn download(url: &str, to: &Path, max_bytes: u64) -> Result<bool> {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--location", "--retry", "3", "--connect-timeout", "20", "--fail"])
        .args(["--proto", "=http,https", "--max-filesize", &max_bytes.to_string(), "--write-out", "%{http_code}"])
        .arg("--output")
        .arg(to)
        .arg(url)
        .output()
        .context("cannot run curl; install the package curl")?;
    if output.status.success() {
        return Ok(true);
    }
    if output.stdout.ends_with(b"404") {
        return Ok(false);
    }
    bail!("cannot fetch {url}: {}", String::from_utf8_lossy(&output.stderr).trim())
}

/// SHA-256 of a file in hexadecimal.
pub(crate) fn file_sha256(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hex::encode(hasher.finalize()));
        }
        hasher.update(&buffer[..count]);
    }
}

/// Hash and size of `index` in the SHA256 section of a Release file.
fn index_hash(release: &str, index: &str) -> Option<(String, u64)> {
    release.lines().skip_while(|line| *line != "SHA256:").skip(1).take_while(|line| line.starts_with(' ')).find_map(
        |line| {
            let mut words = line.split_whitespace();
            let (hash, size, name) = (words.next()?, words.next()?, words.next()?);
            (name == index).then(|| Some((hash.to_owned(), size.parse().ok()?)))?
        },
    )
}

/// The `Date:` of a Release file in seconds since 1970.
fn release_date(release: &str) -> Result<i64> {
    let date = release.lines().find_map(|line| line.strip_prefix("Date: ")).context("Release has no Date")?;
    let date = date.strip_suffix(" UTC").context("Release date is not UTC")?;
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second]"
    );
    Ok(time::PrimitiveDateTime::parse(date, format)?.assume_utc().unix_timestamp())
}

fn parse_stanzas(text: &str) -> Vec<Stanza> {
    text.split("\n\n").filter_map(parse_stanza).collect()
}

fn parse_stanza(text: &str) -> Option<Stanza> {
    let fields: HashMap<&str, &str> = text.lines().filter_map(|line| line.split_once(": ")).collect();
    let field = |name: &str| fields.get(name).map(|value| (*value).to_owned());
    Some(Stanza {
        name: field("Package")?,
        version: field("Version")?,
        arch: field("Architecture")?,
        sha256: field("SHA256")?,
        size: field("Size")?.parse().ok()?,
        path: field("Filename")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_come_from_the_machines_sources() {
        let one_line = "deb http://mirror.example/debian trixie main\n# deb http://no.example/debian x\n".to_owned();
        let deb822 = "Types: deb\nURIs: https://mirror.example/debian-security/\nSuites: x\n".to_owned();
        let mirrors = Mirrors::from_sources(&[one_line, deb822]);
        assert_eq!(mirrors.base("trixie"), "http://mirror.example/debian");
        assert_eq!(mirrors.base("trixie-security"), "https://mirror.example/debian-security");
        assert!(Mirrors::from_sources(&[]).base("sid").is_empty());
    }

    #[test]
    fn a_release_names_hash_size_and_date() {
        let release = "Date: Sat, 12 Sep 2026 07:55:41 UTC\nMD5Sum:\n 00 1 a/b\nSHA256:\n ff 12 a/b\n ee 13 a/c\n";
        assert_eq!(index_hash(release, "a/c"), Some(("ee".to_owned(), 13)));
        assert_eq!(index_hash(release, "a/d"), None);
        assert_eq!(release_date(release).unwrap(), 1_789_199_741);
    }

    #[test]
    fn stanzas_without_a_hash_are_left_out() {
        let text =
            "Package: a\nVersion: 1\nArchitecture: all\nSHA256: 00\nSize: 5\nFilename: pool/a.deb\n\nPackage: b\n";
        let stanzas = parse_stanzas(text);
        assert_eq!(stanzas.len(), 1);
        assert_eq!((stanzas[0].name.as_str(), stanzas[0].size), ("a", 5));
    }
}
