//! What a certificate says of itself.

use chrono::DateTime;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What a certificate says of itself, unchecked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Seconds since the epoch from which on it counts.
    pub(super) not_before: i64,
    /// Seconds since the epoch until which it counts.
    pub(super) not_after: i64,
    /// Its subject alternative names: host names and addresses.
    pub(super) names: Vec<String>,
    /// Its subject's common name.
    pub(super) common_name: Option<String>,
    /// Whether it may sign others.
    pub(super) is_authority: bool,
}

impl Facts {
    /// Reads a certificate.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<Facts, String> {
        let (_, certificate) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
        let validity = certificate.validity();
        let common_name = certificate.subject().iter_common_name().next();
        let alternative = certificate.subject_alternative_name().ok().flatten();
        Ok(Facts {
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            names: alternative.iter().flat_map(|names| &names.value.general_names).filter_map(name).collect(),
            common_name: common_name.and_then(|name| name.as_str().ok()).map(str::to_owned),
            is_authority: certificate.is_ca(),
        })
    }

    /// Whom it is for: the first alternative name, else the common name.
    pub(super) fn name(&self) -> Option<String> {
        self.names.first().or(self.common_name.as_ref()).cloned()
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(bytes) => Some(std::net::IpAddr::from(bytes).to_string()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| std::net::IpAddr::from(bytes).to_string()),
        },
        _ => None,
    }
}

/// A time as people read it.
pub(super) fn date(seconds: i64) -> String {
    DateTime::from_timestamp(seconds, 0)
        .map_or(format!("second {seconds}"), |time| time.format("%Y-%m-%d %H:%M UTC").to_string())
}
