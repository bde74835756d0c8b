//! Why there is no TLS connection, in words that say which side has to do something.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

use super::facts::date;

/// The same error with its reason in plain words. What is not about TLS stays as it is.
#[must_use]
pub fn explain(error: io::Error) -> io::Error {
    let Some(reason) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(error.kind(), "closed by the other side in the handshake"),
            _ => error,
        };
    };
    io::Error::new(error.kind(), words(reason))
}

fn words(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(reason) => certificate(reason),
        Error::NoCertificatesPresented => "it showed no certificate".to_owned(),
        Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => "it asks for a certificate of ours".to_owned(),
            AlertDescription::UnknownCA => "it does not trust the authority of our certificate".to_owned(),
            AlertDescription::CertificateExpired => "it says that our certificate expired".to_owned(),
            AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
                format!("it refuses our certificate, or wants one ({alert:?})")
            }
            AlertDescription::ProtocolVersion => "it speaks no TLS version of ours (1.2, 1.3)".to_owned(),
            other => format!("it ended the handshake: {other:?}"),
        },
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => "it does not speak TLS".to_owned(),
        other => other.to_string(),
    }
}

fn certificate(reason: &CertificateError) -> String {
    let seconds = |time: &rustls_pki_types::UnixTime| date(i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
    match reason {
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("its certificate expired on {}", seconds(not_after))
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("its certificate counts only from {}", seconds(not_before))
        }
        CertificateError::UnknownIssuer => "its certificate is signed by nobody that ca_file names".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } if presented.is_empty() => {
            format!("its certificate is not for {}: it has no subject alternative name", expected.to_str())
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<&str> = presented.iter().map(|name| bare(name)).collect();
            format!("its certificate is not for {} but for {}", expected.to_str(), names.join(", "))
        }
        other => format!("its certificate cannot be used: {other}"),
    }
}

/// `DnsName("a.test")`, as webpki has it, without its wrapping.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"')
}
