//! What a failed handshake means, in words for the person who must act.

use rustls::{AlertDescription, CertificateError, Error as TlsError};
use std::io;
use volume::{Error, ErrorKind};

/// At the agent: of a connection that came in.
pub(crate) fn of_client(error: &io::Error) -> Error {
    let words = match inner(error) {
        Some(TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            "its certificate is not signed by an authority in the agent's ca".to_owned()
        }
        Some(TlsError::InvalidCertificate(why)) => format!("its certificate does not count: {why}"),
        Some(TlsError::NoCertificatesPresented) => "it shows no certificate; the agent wants a controller's".to_owned(),
        Some(TlsError::InvalidMessage(_)) => "it does not speak TLS".to_owned(),
        Some(TlsError::AlertReceived(alert)) => format!("it refuses the agent's certificate: {}", alert_words(*alert)),
        Some(other) => format!("the TLS handshake failed: {other}"),
        None => format!("the connection broke in the TLS handshake: {error}"),
    };
    Error::new(ErrorKind::PermissionDenied, words)
}

/// At the agent: whether one of the two was signed by somebody in whom the other does not believe.
pub(crate) fn is_of_another_authority(error: &io::Error) -> bool {
    matches!(
        inner(error),
        Some(
            TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)
                | TlsError::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError)
        )
    )
}

/// At the controller: of a connection to an agent, in any of the causes of `error`.
pub(crate) fn of_agent(error: &(dyn std::error::Error + 'static)) -> String {
    let mut next = Some(error);
    while let Some(cause) = next {
        let found = cause.downcast_ref::<TlsError>().or_else(|| cause.downcast_ref::<io::Error>().and_then(inner));
        match found {
            Some(TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
                return "its certificate is not signed by an authority in the controller's ca".to_owned();
            }
            Some(TlsError::InvalidCertificate(why)) => return format!("its certificate does not count: {why}"),
            Some(TlsError::InvalidMessage(_)) => {
                return "it does not speak TLS: another program listens there".to_owned();
            }
            Some(TlsError::AlertReceived(alert)) => {
                return format!("it refuses the controller's certificate: {}", alert_words(*alert));
            }
            Some(_) | None => next = cause.source(),
        }
    }
    let text = chain(error);
    // HTTP/2 keeps no more than the words of what it met.
    match text.rsplit_once("received fatal alert: ") {
        Some((_, "UnknownCA" | "DecryptError")) => {
            let words = alert_words(AlertDescription::UnknownCA);
            format!("it refuses the controller's certificate: {words}")
        }
        Some((_, "CertificateExpired")) => {
            let words = alert_words(AlertDescription::CertificateExpired);
            format!("it refuses the controller's certificate: {words}")
        }
        Some((_, alert)) => format!("it refuses the controller's certificate: {alert}"),
        None => text,
    }
}

fn inner(error: &io::Error) -> Option<&TlsError> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = error.get_ref().map(|inner| inner as _);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<TlsError>() {
            return Some(found);
        }
        next = match cause.downcast_ref::<io::Error>() {
            Some(io) => io.get_ref().map(|inner| inner as _),
            None => cause.source(),
        };
    }
    None
}

/// RFC 8446, 6.2.
fn alert_words(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::UnknownCA => "it is not signed by an authority in the other side's ca".to_owned(),
        AlertDescription::CertificateExpired => "it has expired, or is not valid yet".to_owned(),
        AlertDescription::CertificateRequired => "none was shown".to_owned(),
        other => format!("{other:?}"),
    }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
