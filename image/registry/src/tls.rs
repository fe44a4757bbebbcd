//! Which authorities a host's certificate is checked against.
//!
//! A host with authorities of its own is checked against those alone: a public authority cannot then vouch for it. ring is named as the
//! provider each time, since another one may be linked into the same program.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::error::RegistryError;
use crate::settings::Settings;

/// Largest bundle of public authorities: Debian's has 220 KiB.
const MAX_BUNDLE_LEN: u64 = 4 << 20;
/// Hosts whose configuration is kept; more than a node knows apart.
const MAX_KEPT: usize = 64;

/// TLS configurations, made at their first use.
pub(crate) struct Authorities {
    kept: Mutex<HashMap<Option<String>, Arc<ClientConfig>>>,
}

impl Authorities {
    pub(crate) fn new() -> Self {
        Self { kept: Mutex::default() }
    }

    /// The configuration for connections to `authority` (host, or host:port).
    pub(crate) fn of(&self, settings: &Settings, authority: &str) -> Result<Arc<ClientConfig>, RegistryError> {
        let own = settings.hosts.get(authority).and_then(|host| host.ca_pem.as_deref());
        let key = own.map(|_| authority.to_owned());
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = kept.get(&key) {
            return Ok(Arc::clone(config));
        }
        let bad = |why| RegistryError::Authorities { host: authority.to_owned(), why };
        let roots = match own {
            Some(pem) => roots(pem.as_bytes()).map_err(bad)?,
            None => bundle(&settings.authorities).map_err(bad)?,
        };
        let config = Arc::new(config(roots).map_err(|why| bad(why.to_string()))?);
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(key, Arc::clone(&config));
        Ok(config)
    }
}

fn config(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn bundle(path: &Path) -> Result<RootCertStore, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    if std::fs::metadata(path).map_err(failed)?.len() > MAX_BUNDLE_LEN {
        return Err(format!("{} is longer than {MAX_BUNDLE_LEN} bytes", path.display()));
    }
    roots(&std::fs::read(path).map_err(failed)?)
}

fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("not PEM: {error:?}"))?;
        // Old authorities in a bundle may have forms that are refused today; they are left out.
        let _ = roots.add(certificate);
    }
    if roots.is_empty() { Err("no usable certificate in it".to_owned()) } else { Ok(roots) }
}

/// Whether `pem` holds certificates and nothing that is not one.
pub(crate) fn check_authorities(pem: &str) -> Result<(), String> {
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|_| "it is not PEM".to_owned())?;
        RootCertStore::empty().add(certificate).map_err(|error| format!("a certificate in it: {error}"))?;
        count += 1;
    }
    if count == 0 { Err("it has no certificate".to_owned()) } else { Ok(()) }
}
