//! Who a certificate says that somebody is: URIs among its alternative names.

use rustls::pki_types::CertificateDer;
use std::fmt;
use volume::{Error, ErrorKind, NodeId, Result};

/// What the holder of a certificate may do. A certificate may carry several.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// `hawser://controller`: may use the backends of every agent.
    Controller,
    /// `hawser://supervisor`: may watch every agent.
    Supervisor,
    /// `hawser://node/<id>`: may be the agent of that node.
    Node(NodeId),
}

impl Role {
    /// The URI that a certificate carries for it (RFC 5280, 4.2.1.6).
    pub fn uri(&self) -> String {
        match self {
            Self::Controller => "hawser://controller".to_owned(),
            Self::Supervisor => "hawser://supervisor".to_owned(),
            Self::Node(id) => format!("hawser://node/{id}"),
        }
    }

    pub(crate) fn parse(uri: &str) -> Option<Self> {
        match uri.strip_prefix("hawser://")? {
            "controller" => Some(Self::Controller),
            "supervisor" => Some(Self::Supervisor),
            other => NodeId::parse(other.strip_prefix("node/")?).ok().map(Self::Node),
        }
    }

    /// All that a certificate says; names of others are passed over.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Vec<Self>> {
        let parsed = webpki::EndEntityCert::try_from(certificate)
            .map_err(|error| Error::new(ErrorKind::Corrupt, format!("the certificate cannot be read: {error}")))?;
        Ok(parsed.valid_uri_names().filter_map(Self::parse).collect())
    }

    /// Several in words, for refusals.
    pub(crate) fn list(roles: &[Self]) -> String {
        let words: Vec<_> = roles.iter().map(Self::to_string).collect();
        if words.is_empty() { "nobody known here (no hawser:// name)".to_owned() } else { words.join(" and ") }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Controller => f.write_str("a controller"),
            Self::Supervisor => f.write_str("a supervisor"),
            Self::Node(id) => write!(f, "node {id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris() {
        for role in [Role::Controller, Role::Supervisor, Role::Node(NodeId::parse("n_1.example").unwrap())] {
            assert_eq!(Role::parse(&role.uri()), Some(role));
        }
        for foreign in [
            "hawser://",
            "hawser://controller/",
            "hawser://node/",
            "hawser://node/a/b",
            "spiffe://controller",
            "controller",
        ] {
            assert_eq!(Role::parse(foreign), None, "{foreign}");
        }
    }
}
