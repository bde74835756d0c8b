//! TLS between the two nodes of a pair, by the key that both have and nobody else.
//!
//! The 32 bytes are the seed of one Ed25519 key. Both ends show its public half, as a raw public key (RFC 7250) without a
//! certificate, take no other, and prove that they have the seed: TLS 1.3 signs each handshake. So an end without the
//! seed learns that public half and nothing else, and what it recorded of one connection opens no other: there are no
//! tickets and no early data.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::stream::{Stream, Wire};
use super::{HANDSHAKE_MAX, explain, provider};

/// What stands before the seed of an Ed25519 key in PKCS #8. RFC 8410, 7.
const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Bytes that are read from the socket in one call: a mirror is as much as its journal.
const READ_BYTES: usize = 256 * 1024;

/// Shakes hands with whoever has the same key. Cheap to clone.
#[derive(Clone)]
pub struct PairKey {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl fmt::Debug for PairKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PairKey").finish_non_exhaustive()
    }
}

impl PairKey {
    /// Both ends' settings for this key.
    ///
    /// # Panics
    /// Never: any 32 bytes are a seed, and the provider has Ed25519 and TLS 1.3.
    #[must_use]
    pub fn new(seed: &[u8; 32]) -> PairKey {
        let mut provider = provider().as_ref().clone();
        // First what costs least on a processor that has AES; of 128 bits nobody has guessed any.
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        let provider = Arc::new(provider);
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from([&PKCS8_HEAD[..], seed].concat()));
        let key = provider.key_provider.load_private_key(der).expect("any 32 bytes are a seed");
        let public = key.public_key().expect("an Ed25519 key has a public half").to_vec();
        let shown = CertifiedKey::new(vec![CertificateDer::from(public.clone())], key);
        let shown = Arc::new(Shown(Arc::new(shown)));
        let same = Arc::new(Same { public, algorithms: provider.signature_verification_algorithms });
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider speaks TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(same.clone())
            .with_client_cert_resolver(shown.clone());
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect("the provider speaks TLS 1.3")
            .with_client_cert_verifier(same)
            .with_cert_resolver(shown);
        server.send_tls13_tickets = 0;
        PairKey { client: Arc::new(client), server: Arc::new(server) }
    }

    /// Shakes hands as the end that dialled. Only what comes from the other end after it shows that it took this one.
    ///
    /// # Errors
    /// Why there is no connection, in words for the log.
    pub async fn connect(&self, tcp: TcpStream) -> io::Result<Stream> {
        let name = ServerName::IpAddress(tcp.peer_addr()?.ip().into());
        let connector = TlsConnector::from(self.client.clone());
        let stream = within(connector.connect(name, wire(tcp))).await?;
        Ok(Stream::Tls(Box::new(stream.into())))
    }

    /// Shakes hands as the end that was dialled.
    ///
    /// # Errors
    /// As [`connect`](PairKey::connect).
    pub async fn accept(&self, tcp: TcpStream) -> io::Result<Stream> {
        let stream = within(TlsAcceptor::from(self.server.clone()).accept(wire(tcp))).await?;
        Ok(Stream::Tls(Box::new(stream.into())))
    }
}

fn wire(tcp: TcpStream) -> Wire {
    Wire::read_ahead(tcp, READ_BYTES)
}

async fn within<T>(handshake: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(HANDSHAKE_MAX, handshake).await {
        Ok(outcome) => outcome.map_err(explain),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long")),
    }
}

/// The key that both ends show.
#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl rustls::client::ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl rustls::server::ResolvesServerCert for Shown {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }
}

/// Takes the one public key.
#[derive(Debug)]
struct Same {
    public: Vec<u8>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Same {
    fn check(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        // Public on both sides: nothing is learned from how long it takes.
        if shown.as_ref() == self.public {
            return Ok(());
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }
}

/// What is the same whichever end shows the key.
macro_rules! raw_key_of_tls13 {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("the pair speaks TLS 1.3".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            shown: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let key = SubjectPublicKeyInfoDer::from(shown.as_ref());
            verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for Same {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    raw_key_of_tls13!();
}

impl ClientCertVerifier for Same {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    raw_key_of_tls13!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn meet(ours: PairKey, theirs: PairKey) -> (io::Result<Stream>, io::Result<Stream>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let dial = async move {
            let mut stream = ours.connect(TcpStream::connect(address).await?).await?;
            stream.write_all(b"hello").await?;
            stream.flush().await?;
            // A server that refuses says so after the client has finished.
            let mut word = [0; 2];
            stream.read_exact(&mut word).await?;
            Ok(stream)
        };
        let take = async move {
            let (tcp, _) = listener.accept().await?;
            let mut stream = theirs.accept(tcp).await?;
            let mut word = [0; 5];
            stream.read_exact(&mut word).await?;
            stream.write_all(b"ok").await?;
            stream.flush().await?;
            Ok(stream)
        };
        tokio::join!(dial, take)
    }

    #[tokio::test]
    async fn the_same_key_meets_and_another_does_not() {
        let (dialled, taken) = meet(PairKey::new(&[1; 32]), PairKey::new(&[1; 32])).await;
        dialled.unwrap();
        taken.unwrap();
        let (dialled, taken) = meet(PairKey::new(&[1; 32]), PairKey::new(&[2; 32])).await;
        assert!(dialled.is_err() && taken.is_err());
    }

    #[tokio::test]
    async fn a_client_without_a_key_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let curious = async move {
            let mut tcp = TcpStream::connect(address).await.unwrap();
            tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            let mut said = Vec::new();
            let _ = tcp.read_to_end(&mut said).await;
            said
        };
        let take = async move { PairKey::new(&[1; 32]).accept(listener.accept().await.unwrap().0).await };
        let (said, taken) = tokio::join!(curious, take);
        assert!(taken.is_err());
        assert!(said.len() <= 7, "an alert and nothing else: {said:?}");
    }
}
