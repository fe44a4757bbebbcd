//! Roles of the node's API, and how a client certificate carries one. What a role may do is decided by the server alone.
//!
//! A client certificate has its role in the organization (O, 2.5.4.10) of its subject: `byre:reader`, `byre:operator` or `byre:admin`. The
//! common name says who it is, for the record of changes. A certificate with no or more than one such organization has no role. Node
//! certificates carry `byre:node`, which is not a role of a client.

use x509_parser::prelude::{FromDer, X509Certificate};

/// The organization in a node's certificate.
pub const NODE_ORGANIZATION: &str = "byre:node";

/// What a client may do; each role may do all that the one before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads.
    Reader,
    /// Changes workloads and images.
    Operator,
    /// Changes the machine.
    Admin,
}

impl Role {
    /// All roles, least first.
    pub const ALL: [Self; 3] = [Self::Reader, Self::Operator, Self::Admin];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// The organization that a client certificate carries for it.
    #[must_use]
    pub fn organization(self) -> &'static str {
        match self {
            Self::Reader => "byre:reader",
            Self::Operator => "byre:operator",
            Self::Admin => "byre:admin",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Why a text is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("role {0:?} is not known: use reader, operator or admin")]
pub struct UnknownRole(pub String);

impl std::str::FromStr for Role {
    type Err = UnknownRole;
    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or_else(|| UnknownRole(text.to_owned()))
    }
}

/// Who a certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Common name; empty if it has none.
    pub name: String,
    /// Serial number in hexadecimal digits.
    pub serial: String,
    /// Its role, if it has exactly one.
    pub role: Option<Role>,
}

/// Why a certificate could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("certificate cannot be parsed: {0}")]
pub struct BadCertificate(pub String);

/// Reads who a certificate (DER) names. It must have been verified before: nothing is checked here.
///
/// # Errors
/// If it is not a certificate.
pub fn subject(certificate_der: &[u8]) -> Result<Subject, BadCertificate> {
    let (_, certificate) =
        X509Certificate::from_der(certificate_der).map_err(|error| BadCertificate(error.to_string()))?;
    let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
    let mut roles = certificate
        .subject()
        .iter_organization()
        .filter_map(|organization| organization.as_str().ok())
        .filter_map(|organization| Role::ALL.into_iter().find(|role| role.organization() == organization));
    let role = match (roles.next(), roles.next()) {
        (Some(role), None) => Some(role),
        (None | Some(_), _) => None,
    };
    let serial = certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Subject { name: name.to_owned(), serial, role })
}

/// The SubjectPublicKeyInfo (DER) of a certificate (DER).
///
/// # Errors
/// If it is not a certificate.
pub fn public_key_info(certificate_der: &[u8]) -> Result<Vec<u8>, BadCertificate> {
    let (_, certificate) =
        X509Certificate::from_der(certificate_der).map_err(|error| BadCertificate(error.to_string()))?;
    Ok(certificate.public_key().raw.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_ordered_and_read_back_what_they_write() {
        assert!(Role::Reader < Role::Operator && Role::Operator < Role::Admin);
        for role in Role::ALL {
            assert_eq!(role.name().parse(), Ok(role));
        }
        assert!("root".parse::<Role>().is_err());
    }

    #[test]
    fn bytes_that_are_no_certificate_are_refused() {
        assert!(subject(b"no certificate").is_err());
        assert!(public_key_info(&[]).is_err());
    }
}
