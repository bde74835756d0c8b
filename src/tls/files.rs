//! PEM files to what rustls takes.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::error::{Problem, TlsError};
use super::provider;
use crate::config::TlsIdentity;

/// Bytes of a file that are read at most. The largest bundle of roots has a quarter of a megabyte.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Reads a certificate with its chain and the key that belongs to it.
pub(super) fn identity(TlsIdentity { cert_file, key_file }: &TlsIdentity) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates("cert_file", cert_file)?;
    let key = private_key(key_file)?;
    CertifiedKey::from_der(chain, key, &provider()).map(Arc::new).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            TlsError::new("key_file", key_file, Problem::KeyOfAnother(cert_file.clone()))
        }
        rustls::Error::InvalidCertificate(error) => {
            TlsError::new("cert_file", cert_file, Problem::Unusable(error.to_string()))
        }
        other => TlsError::new("key_file", key_file, Problem::Unusable(other.to_string())),
    })
}

/// Reads certificates, at least one.
pub(super) fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |problem| TlsError::new(key, path, problem);
    let text = read(path).map_err(wrong)?.1;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if found.is_empty() => Err(wrong(Problem::NoCertificate)),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(Problem::Pem(error.to_string()))),
    }
}

/// Reads whom to trust.
pub(super) fn roots(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca_file", path)? {
        let added = roots.add(certificate);
        added.map_err(|error| TlsError::new("ca_file", path, Problem::Unusable(error.to_string())))?;
    }
    Ok(Arc::new(roots))
}

/// Whom the system trusts. A root that rustls cannot use is passed over, as the system's other users do.
pub(super) fn system_roots() -> Result<Arc<RootCertStore>, TlsError> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(loaded.certs);
    if roots.is_empty() {
        let errors: Vec<String> = loaded.errors.iter().map(ToString::to_string).collect();
        let why = if errors.is_empty() { "none were found".to_owned() } else { errors.join("; ") };
        return Err(TlsError::new("ca_file", Path::new("system"), Problem::NoRoots(why)));
    }
    Ok(Arc::new(roots))
}

/// Reads a key that is nobody else's.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let wrong = |problem| TlsError::new("key_file", path, problem);
    let (mode, text) = read(path).map_err(wrong)?;
    if mode & 0o007 != 0 {
        return Err(wrong(Problem::Exposed(mode & 0o7777)));
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let encrypted = text.windows(9).any(|word| word == b"ENCRYPTED");
        wrong(match error {
            pem::Error::NoItemsFound if encrypted => Problem::EncryptedKey,
            pem::Error::NoItemsFound => Problem::NoKey,
            // Not its text: that quotes the line.
            _ => Problem::Pem("a section of it is broken".to_owned()),
        })
    })
}

/// The mode and the content of a file.
fn read(path: &Path) -> Result<(u32, Vec<u8>), Problem> {
    let read = || {
        let file = File::open(path)?;
        let mode = file.metadata()?.mode();
        let mut text = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
        Ok((mode, text))
    };
    read().map_err(Problem::Read)
}
