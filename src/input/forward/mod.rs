//! fluent-forward: chunks of events over TCP, acknowledged when the journal has them, and the heartbeat over UDP.
//!
//! ```text
//!              frames: read, scan, accept ──batch──▶ journal ──durable──▶ answers: {"ack": id}, in order
//! connection ──┤                         └─▶ repeats: seen before? then no batch, but an answer
//!              └ handshake, if a key is configured
//! ```
//!
//! An acknowledgement is a promise, and a frame that asked for one is either promised or its connection is closed:
//! clients do not time out by themselves, and closing beats silence. Memory is bounded three times: by the budget of
//! incomplete frames, by the frames that wait for an answer, and by the journal's queue, before which a connection waits
//! without reading.

mod acknowledgement;
mod budget;
mod connection;
mod frames;
mod handshake;
mod heartbeat;
mod repeats;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::accept::{Door, accept, follow, shake_hands};
use super::{Context, Control};
use crate::config::{ForwardInput, SecretError, read_key, read_users};
use crate::proto::envelope::Transport;
use crate::proto::forward::handshake::Security;
use crate::sys;
use crate::tls::{self, Stream};
use budget::{BUDGET_BYTES, Budget, Share};
use connection::Parts;
pub use heartbeat::Heartbeat;
pub use repeats::Repeats;

/// The settings of an input with its secrets.
pub struct Settings {
    /// What the configuration says.
    pub config: ForwardInput,
    /// What clients must prove; `None`: nothing.
    pub security: Option<Security>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Settings {
    /// Reads the secrets that the configuration names.
    ///
    /// # Errors
    /// Says which file is not used, and why.
    pub fn load(config: ForwardInput) -> Result<Settings, SecretError> {
        let Some(key_file) = &config.shared_key_file else { return Ok(Settings { config, security: None }) };
        let host_name =
            || nix::unistd::gethostname().map_or_else(|_| String::new(), |n| n.to_string_lossy().into_owned());
        let security = Security {
            self_hostname: config.self_hostname.clone().unwrap_or_else(host_name),
            shared_key: read_key(key_file)?,
            users: config.users_file.as_deref().map_or(Ok(Vec::new()), read_users)?,
        };
        Ok(Settings { config, security: Some(security) })
    }
}

/// A listening socket and the connections it made.
pub struct Acceptor {
    listener: tokio::net::TcpListener,
    reception: Reception,
}

impl Acceptor {
    /// Takes over a listening, non-blocking socket. Must be called on the runtime.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(
        listener: TcpListener,
        control: watch::Receiver<Control<Settings>>,
        context: Context,
    ) -> io::Result<Acceptor> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let budget = Arc::new(Budget::new(BUDGET_BYTES));
        Ok(Acceptor { listener, reception: Reception { control, context, budget, tls: None } })
    }

    /// Accepts until the stage says otherwise, then waits for its connections to end; or until the journal is poisoned,
    /// then closes them.
    pub async fn run(self) {
        let Acceptor { listener, mut reception } = self;
        let (control, journal_state) = (reception.control.clone(), reception.context.journal_state.clone());
        accept(listener, control, journal_state, |connections, stream, source| {
            reception.welcome(connections, stream, source);
        })
        .await;
    }
}

struct Reception {
    control: watch::Receiver<Control<Settings>>,
    context: Context,
    budget: Arc<Budget>,
    /// Made from the input's newest `tls`.
    tls: Option<tls::Server>,
}

impl Reception {
    /// Forwarders open a connection each second only to see that they can: nothing here is logged for those.
    fn welcome(&mut self, connections: &mut JoinSet<()>, stream: TcpStream, source: SocketAddr) {
        let Control { settings, metrics, .. } = self.control.borrow().clone();
        let ForwardInput { name, allow, max_connections, .. } = &settings.config;
        let door = Door { input: name, allow, max_connections: *max_connections, metrics: &metrics };
        let Some(counted) = door.admit(source, connections.len()) else { return };
        // An answer is small and wanted now.
        if let Err(error) = sys::tcp::keep_alive(&stream).and_then(|()| stream.set_nodelay(true)) {
            tracing::debug!(%source, %error, "keepalive");
        }
        let tls = follow(&mut self.tls, settings.config.tls.as_ref());
        let Context { appender, grace, repeats, .. } = self.context.clone();
        let share = Share::new(self.budget.clone());
        let control = self.control.clone();
        connections.spawn(async move {
            let _counted = counted;
            let (stream, transport) = match tls {
                None => (Stream::Plain(stream), Transport::Tcp),
                Some(server) => {
                    // Boxed: a handshake is larger than the connection that it becomes.
                    let shaken = Box::pin(shake_hands(server, stream, source, control.clone(), grace)).await;
                    let Some(stream) = shaken else { return };
                    (stream, Transport::Tls)
                }
            };
            let parts = Parts { stream, source, transport, settings, metrics, appender, repeats, share };
            connection::run(parts, control, grace).await;
        });
    }
}
