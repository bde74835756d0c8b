//! Certificates: an authority of the test's own, what it issues as PEM files in the lab, and TLS ends that use them.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned, SupportedProtocolVersion, crypto,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::Lab;

/// A connection of the test's own, inside TLS.
pub type TlsConnection = StreamOwned<ClientConnection, TcpStream>;

/// Signs certificates. Its own is `NAME.ca` in the lab.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: String,
}

impl Authority {
    /// A new authority.
    pub fn new(lab: &Lab, name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, format!("{name} authority"));
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        let file = format!("{name}.ca");
        fs::write(lab.path(&file), issuer.pem()).expect("a file in the lab");
        Authority { issuer, file }
    }

    /// Writes `NAME.crt` and `NAME.key` for these names, good for centuries.
    pub fn issue(&self, lab: &Lab, name: &str, names: &[&str]) {
        self.issue_until(lab, name, names, 2999);
    }

    /// Writes `NAME.crt` and `NAME.key` for these names, good to the end of a year.
    pub fn issue_until(&self, lab: &Lab, name: &str, names: &[&str], year: i32) {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(year, 12, 31));
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        place(lab, &format!("{name}.crt"), &certificate.pem());
        place(lab, &format!("{name}.key"), &key.serialize_pem());
    }

    /// Its certificate's name in the lab.
    pub fn file(&self) -> &str {
        &self.file
    }
}

/// Moves a file into its place, as whoever renews certificates does.
pub fn place(lab: &Lab, name: &str, text: &str) {
    let draft = lab.path(&format!(".{name}"));
    fs::write(&draft, text).expect("a file in the lab");
    fs::set_permissions(&draft, PermissionsExt::from_mode(0o600)).expect("our file");
    fs::rename(draft, lab.path(name)).expect("our file");
}

fn provider() -> Arc<crypto::CryptoProvider> {
    Arc::new(crypto::aws_lc_rs::default_provider())
}

fn roots(lab: &Lab, file: &str) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(lab.path(file)).expect("a certificate")).expect("an authority");
    Arc::new(roots)
}

fn identity(lab: &Lab, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from_pem_file(lab.path(&format!("{name}.crt"))).expect("a certificate");
    (vec![certificate], PrivateKeyDer::from_pem_file(lab.path(&format!("{name}.key"))).expect("a key"))
}

/// A client that trusts `ca`, and shows the certificate `name` if there is one.
pub fn tls_client(lab: &Lab, ca: &str, name: Option<&str>, only_12: bool) -> Arc<ClientConfig> {
    let versions: &[&SupportedProtocolVersion] = if only_12 { &[&TLS12] } else { &[&TLS13] };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots(lab, ca));
    Arc::new(match name.map(|name| identity(lab, name)) {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("a pair"),
        None => builder.with_no_client_auth(),
    })
}

/// A server with the certificate `name`, which asks for one of `client_ca` if that is given.
pub fn tls_server(lab: &Lab, name: &str, client_ca: Option<&str>) -> Arc<ServerConfig> {
    let builder =
        ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13, &TLS12]).expect("versions");
    let builder = match client_ca {
        Some(ca) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots(lab, ca), provider());
            builder.with_client_cert_verifier(verifier.build().expect("roots"))
        }
        None => builder.with_no_client_auth(),
    };
    let (chain, key) = identity(lab, name);
    Arc::new(builder.with_single_cert(chain, key).expect("a pair"))
}

/// Connects and shakes hands with `localhost`.
pub fn tls_connect(to: SocketAddr, config: Arc<ClientConfig>) -> std::io::Result<TlsConnection> {
    let tcp = TcpStream::connect(to)?;
    tcp.set_read_timeout(Some(Duration::from_secs(20)))?;
    let name = ServerName::try_from("localhost").expect("a name");
    let mut stream = StreamOwned::new(ClientConnection::new(config, name).expect("a configuration"), tcp);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}
