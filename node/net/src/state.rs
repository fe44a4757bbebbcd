//! What the network service tells the rest of the node: `/run/byre/net/state.json` and `/run/byre/net/resolv.conf`.
//!
//! Both are replaced in one step and only when they change. The state is also what the service itself reads after a restart, so that
//! the addresses it gave stay its own.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::dhcp::machine::Held;

/// Of the file's form; a reader refuses others.
const VERSION: u32 = 1;
/// glibc reads no more (resolv.conf(5), MAXNS).
const NAME_SERVERS: usize = 3;
/// glibc's line length would allow more; the configuration's limit per link.
const SEARCH_DOMAINS: usize = 6;
/// Thousands of links with full lists stay below.
const STATE_BYTES: u64 = 4 << 20;

/// The links that the service looks after.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetState {
    /// 1.
    pub version: u32,
    /// By interface index.
    pub links: Vec<LinkState>,
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkState {
    /// Its name.
    pub name: String,
    /// Interface index.
    pub index: u32,
    /// Hardware address.
    pub mac: String,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Whether it can carry packets.
    pub carrier: bool,
    /// Addresses that this service gave it, with prefix length.
    pub addresses: Vec<String>,
    /// Routers of its default routes.
    pub gateways: Vec<IpAddr>,
    /// Name servers to be asked over it.
    pub dns: Vec<IpAddr>,
    /// Domains in which names are searched.
    pub search: Vec<String>,
    /// Its lease. `since_ms` and the lease's times count on CLOCK_BOOTTIME.
    pub dhcp4: Option<Held>,
}

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {source}")]
pub struct WriteError {
    path: PathBuf,
    source: std::io::Error,
}

/// The files, and what they hold.
#[derive(Debug)]
pub(crate) struct Files {
    directory: PathBuf,
    state: Vec<u8>,
    resolv: String,
}

impl Files {
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_path_buf(), state: Vec::new(), resolv: String::new() }
    }

    /// What an earlier run of the service left; nothing if it cannot be read.
    pub(crate) fn read(&self) -> NetState {
        read_bounded(&self.directory.join("state.json"), STATE_BYTES)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .filter(|state: &NetState| state.version == VERSION)
            .unwrap_or_default()
    }

    /// Writes what has changed.
    pub(crate) fn write(&mut self, links: Vec<LinkState>) -> Result<(), WriteError> {
        let resolv = resolv_conf(&links);
        if resolv != self.resolv {
            self.replace("resolv.conf", resolv.as_bytes())?;
            self.resolv = resolv;
        }
        // Strings, numbers and lists of them always encode.
        let state = serde_json::to_vec(&NetState { version: VERSION, links }).unwrap_or_default();
        if state != self.state {
            self.replace("state.json", &state)?;
            self.state = state;
        }
        Ok(())
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        let path = self.directory.join(name);
        let temporary = self.directory.join(format!(".{name}.new"));
        let write = || {
            let mut file =
                std::fs::File::options().write(true).create(true).truncate(true).mode(0o644).open(&temporary)?;
            file.write_all(bytes)?;
            std::fs::rename(&temporary, &path)
        };
        write().map_err(|source| WriteError { path: path.clone(), source })
    }
}

/// At most `limit` bytes of a file; a longer one is an error.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(std::io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// resolv.conf(5) for all links together.
fn resolv_conf(links: &[LinkState]) -> String {
    let mut text = String::from("# Written by byred net from its links; see /run/byre/net/state.json.\n");
    let mut servers = Vec::new();
    let mut domains = BTreeSet::new();
    let mut search = Vec::new();
    for link in links.iter().filter(|link| link.carrier) {
        for server in &link.dns {
            if servers.len() < NAME_SERVERS && !servers.contains(server) {
                servers.push(*server);
            }
        }
        for domain in &link.search {
            if search.len() < SEARCH_DOMAINS && domains.insert(domain) {
                search.push(domain.as_str());
            }
        }
    }
    for server in servers {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "nameserver {server}");
    }
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, carrier: bool, dns: &[&str], search: &[&str]) -> LinkState {
        LinkState {
            name: format!("eth{index}"),
            index,
            mac: "02:00:00:00:00:01".into(),
            mtu: 1500,
            carrier,
            addresses: vec!["10.0.0.2/24".into()],
            gateways: Vec::new(),
            dns: dns.iter().map(|text| text.parse().expect("an address")).collect(),
            search: search.iter().map(ToString::to_string).collect(),
            dhcp4: None,
        }
    }

    #[test]
    fn resolv_conf_has_the_first_three_servers_of_links_that_are_up() {
        let links = [
            link(1, false, &["10.9.9.9"], &["down.example"]),
            link(2, true, &["10.0.0.1", "10.0.0.2"], &["a.example", "b.example"]),
            link(3, true, &["10.0.0.2", "fd00::1", "10.0.0.3"], &["a.example"]),
        ];
        let text = resolv_conf(&links);
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            ["nameserver 10.0.0.1", "nameserver 10.0.0.2", "nameserver fd00::1", "search a.example b.example"]
        );
    }

    #[test]
    fn the_state_is_read_back_and_a_broken_one_is_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut files = Files::new(directory.path());
        assert_eq!(files.read(), NetState::default());
        files.write(vec![link(2, true, &[], &[])]).expect("written");
        assert_eq!(files.read().links.len(), 1);
        std::fs::write(directory.path().join("state.json"), b"{\"version\":1,").expect("written");
        assert_eq!(files.read(), NetState::default());
    }
}
