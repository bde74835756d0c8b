//! The accepting side.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::SingleCertAndKey;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::error::{Problem, TlsError};
use super::explain::explain;
use super::follow::Followed;
use super::stream::{Stream, Wire};
use super::{HANDSHAKE_MAX, files, provider};
use crate::config::{ClientAuth, TlsServer};

/// How often the files are looked at: three `stat` calls, which thousands of connections a second should not repeat.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Accepts TLS connections with one certificate. Cheap to clone.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    settings: TlsServer,
    config: Followed<Arc<ServerConfig>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Server").field(&self.0.settings).finish()
    }
}

impl Server {
    /// A server that reads its files at the first connection.
    #[must_use]
    pub fn new(settings: &TlsServer) -> Server {
        let identity = &settings.identity;
        let mut files = vec![identity.cert_file.clone(), identity.key_file.clone()];
        files.extend(settings.ca_file.clone());
        Server(Arc::new(Inner { settings: settings.clone(), config: Followed::new(files, LOOK_EVERY) }))
    }

    /// A server that has read its files.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn load(settings: &TlsServer) -> Result<Server, TlsError> {
        let server = Server::new(settings);
        server.config()?;
        Ok(server)
    }

    /// The settings it was made from.
    #[must_use]
    pub fn settings(&self) -> &TlsServer {
        &self.0.settings
    }

    /// Shakes hands, within [`HANDSHAKE_MAX`].
    ///
    /// # Errors
    /// Why there is no connection, in words for the log: the client's mistake, its refusal, or our own files.
    pub async fn accept(&self, tcp: TcpStream) -> io::Result<Stream> {
        let config = self.config().map_err(io::Error::other)?;
        match timeout(HANDSHAKE_MAX, TlsAcceptor::from(config).accept(Wire::new(tcp))).await {
            Ok(Ok(stream)) => Ok(Stream::Tls(Box::new(stream.into()))),
            Ok(Err(error)) => Err(explain(error)),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long")),
        }
    }

    fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let settings = &self.0.settings;
        let what = settings.identity.cert_file.display();
        self.0.config.get(Instant::now(), &what, || server_config(settings))
    }
}

/// Makes what handshakes are made from. Sessions are resumed from memory only, so one that began under another certificate
/// authority ends with it.
fn server_config(settings: &TlsServer) -> Result<Arc<ServerConfig>, TlsError> {
    let identity = files::identity(&settings.identity)?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider speaks TLS 1.2 and 1.3");
    let roots = settings.ca_file.as_ref().filter(|_| settings.client_auth != ClientAuth::Off);
    let resolver = Arc::new(SingleCertAndKey::from(identity));
    let Some(ca_file) = roots else {
        return Ok(quiet(builder.with_no_client_auth().with_cert_resolver(resolver)));
    };
    let verifier = WebPkiClientVerifier::builder_with_provider(files::roots(ca_file)?, provider());
    let verifier = match settings.client_auth {
        ClientAuth::Optional => verifier.allow_unauthenticated(),
        ClientAuth::Off | ClientAuth::Required => verifier,
    };
    let verifier = verifier.build();
    let verifier = verifier.map_err(|error| TlsError::new("ca_file", ca_file, Problem::Unusable(error.to_string())))?;
    Ok(quiet(builder.with_client_cert_verifier(verifier).with_cert_resolver(resolver)))
}

/// Without session tickets, which the senders of one-way protocols never read: a socket that is closed with something
/// unread is reset and what it had to send is thrown away (OpenSSL's issue 10880), and rsyslog, which looks for an end by
/// `MSG_PEEK`, sees the ticket in front of it for ever. Sessions of TLS 1.2 are resumed all the same.
fn quiet(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.send_tls13_tickets = 0;
    Arc::new(config)
}
