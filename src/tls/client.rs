//! The connecting side.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ProtocolVersion};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::error::TlsError;
use super::explain::explain;
use super::follow::Followed;
use super::stream::{Stream, Wire};
use super::{HANDSHAKE_MAX, files, provider};
use crate::config::TlsClient;

/// Shortest time in which a TLS 1.3 server may still refuse us; see [`Client::connect`].
const REFUSAL_MIN: Duration = Duration::from_secs(1);

/// Connects to TLS servers of one trust. Cheap to clone.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    settings: TlsClient,
    config: Followed<Arc<ClientConfig>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.0.settings).finish()
    }
}

impl Client {
    /// A client that reads its files at the first connection.
    #[must_use]
    pub fn new(settings: &TlsClient) -> Client {
        let identity = settings.identity.iter().flat_map(|files| [&files.cert_file, &files.key_file]);
        let files = identity.chain(&settings.ca_file).cloned().collect();
        Client(Arc::new(Inner { settings: settings.clone(), config: Followed::new(files, Duration::ZERO) }))
    }

    /// A client that has read its files.
    ///
    /// # Errors
    /// The first file that cannot be used, or that the system has no roots.
    pub fn load(settings: &TlsClient) -> Result<Client, TlsError> {
        let client = Client::new(settings);
        client.config()?;
        Ok(client)
    }

    /// Shakes hands with `host`, whose certificate must be for it, or for `server_name` if that is set. A name is also
    /// what the server is asked for (SNI); an address is not.
    ///
    /// In TLS 1.3 the client has finished before the server has looked at the client's certificate, so what is sent
    /// then may be acknowledged by the server's TCP and thrown away by its TLS. This waits for the server's first word
    /// (most send a session ticket at once), or, because a server need not say anything, for four times the length of
    /// the handshake and at least a second.
    ///
    /// # Errors
    /// Why there is no connection, in words for `last_error`.
    pub async fn connect(&self, host: &str, tcp: TcpStream) -> io::Result<Stream> {
        let config = self.config().map_err(io::Error::other)?;
        let name = self.0.settings.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("no certificate can be for {name:?}")))?;
        let begun = Instant::now();
        let handshake = TlsConnector::from(config).connect(name, Wire::new(tcp));
        let mut stream = match timeout(HANDSHAKE_MAX, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(explain(error)),
            Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long")),
        };
        if stream.get_ref().1.protocol_version() == Some(ProtocolVersion::TLSv1_3) {
            let limit = REFUSAL_MIN.max(begun.elapsed() * 4);
            // Its silence is consent.
            timeout(limit, first_word(&mut stream)).await.unwrap_or(Ok(())).map_err(explain)?;
        }
        Ok(Stream::Tls(Box::new(stream.into())))
    }

    fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let settings = &self.0.settings;
        // Without files it is made once, and nothing is ever said about it.
        let shown = settings.identity.as_ref().map(|files| &files.cert_file).or(settings.ca_file.as_ref());
        let what = shown.cloned().unwrap_or_default();
        self.0.config.get(Instant::now(), &what.display(), || client_config(settings))
    }
}

/// Resolves when the server has sent anything after its handshake. Data stays for the first read.
async fn first_word(stream: &mut tokio_rustls::client::TlsStream<Wire>) -> io::Result<()> {
    loop {
        let (wire, session) = stream.get_mut();
        let state = session.process_new_packets().map_err(io::Error::other)?;
        if session.tls13_tickets_received() > 0 || state.plaintext_bytes_to_read() > 0 {
            return Ok(());
        }
        if state.peer_has_closed() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the destination after the handshake"));
        }
        wire.tcp().readable().await?;
        match session.read_tls(&mut wire.ready()) {
            Ok(0) => {
                let closed = "closed by the destination after the handshake";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, closed));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn client_config(settings: &TlsClient) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = settings.ca_file.as_deref().map_or_else(files::system_roots, files::roots)?;
    let identity = settings.identity.as_ref().map(files::identity).transpose()?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider speaks TLS 1.2 and 1.3")
        .with_root_certificates(roots);
    Ok(Arc::new(match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity))),
        None => builder.with_no_client_auth(),
    }))
}
