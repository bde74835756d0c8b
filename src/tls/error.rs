//! What is wrong with a certificate, a key or an authority, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A file that TLS cannot use.
#[derive(Debug, Error)]
#[error("{}: {problem}", path.display())]
pub struct TlsError {
    /// The key that names the file: `cert_file`, `key_file` or `ca_file`.
    pub key: &'static str,
    /// The file; the system's roots if there is none.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a file.
#[derive(Debug, Error)]
pub enum Problem {
    /// It cannot be read.
    #[error("cannot read it: {0}")]
    Read(#[source] io::Error),
    /// Others than the owner and the group may read it.
    #[error("others may read this private key (mode {0:04o})")]
    Exposed(u32),
    /// A PEM section is broken.
    #[error("is no PEM: {0}")]
    Pem(String),
    /// There is no `CERTIFICATE` in it.
    #[error("there is no certificate in it")]
    NoCertificate,
    /// There is no private key in it.
    #[error("there is no private key in it")]
    NoKey,
    /// The private key is behind a passphrase.
    #[error("the private key is encrypted")]
    EncryptedKey,
    /// A certificate or key that rustls does not take.
    #[error("cannot be used: {0}")]
    Unusable(String),
    /// The key belongs to another certificate.
    #[error("is not the key of the certificate in {}", .0.display())]
    KeyOfAnother(PathBuf),
    /// The system trusts nobody.
    #[error("the system has no root certificates: {0}")]
    NoRoots(String),
}

impl TlsError {
    pub(super) fn new(key: &'static str, path: &Path, problem: Problem) -> TlsError {
        TlsError { key, path: path.to_owned(), problem }
    }

    /// What to do about it, in one line.
    #[must_use]
    pub fn fix(&self) -> String {
        let path = self.path.display();
        match &self.problem {
            Problem::Read(error) if error.kind() == io::ErrorKind::NotFound && self.path.is_relative() => {
                let here = std::env::current_dir().unwrap_or_default();
                format!("write the whole path: this one starts in {}", here.display())
            }
            Problem::Read(error) if error.kind() == io::ErrorKind::NotFound => "write the path of a file".to_owned(),
            Problem::Read(_) => format!("let this user read it: chown root:twinlog {path}; chmod 0640 {path}"),
            Problem::Exposed(_) => format!("chmod 0640 {path}"),
            Problem::Pem(_) => "write the file anew: a section was cut or changed".to_owned(),
            Problem::NoCertificate => "name a PEM file with -----BEGIN CERTIFICATE-----".to_owned(),
            Problem::NoKey => "name a PEM file with -----BEGIN PRIVATE KEY-----".to_owned(),
            Problem::EncryptedKey => format!("store it without its passphrase: openssl pkey -in {path} -out NEW"),
            Problem::Unusable(_) => "make another: an ECDSA P-256 key, or RSA with 2048 bits or more".to_owned(),
            Problem::KeyOfAnother(_) => "name the certificate and the key that were made together".to_owned(),
            Problem::NoRoots(_) => "add ca_file, or install ca-certificates".to_owned(),
        }
    }
}
