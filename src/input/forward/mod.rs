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
use std::net::TcpListener;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::accept::{Door, Newcomer, accept, follow, inside, make_answering};
use super::{Context, Control};
use crate::config::{ForwardInput, SecretError, read_key, read_users};
use crate::proto::forward::handshake::Security;
use crate::tls;
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

/// The task of a listening, non-blocking socket. Must be called on the runtime.
///
/// # Errors
/// What the system says.
pub fn serve(
    listener: TcpListener,
    control: watch::Receiver<Control<Settings>>,
    context: Context,
) -> io::Result<impl Future<Output = ()>> {
    let surroundings = context.surroundings();
    let budget = Arc::new(Budget::new(BUDGET_BYTES));
    let mut reception = Reception { control: control.clone(), context, budget, tls: None };
    accept(listener, control, surroundings, move |connections, newcomer| reception.welcome(connections, newcomer))
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
    fn welcome(&mut self, connections: &mut JoinSet<()>, newcomer: Newcomer) {
        let Control { settings, metrics, .. } = self.control.borrow().clone();
        let ForwardInput { name, allow, max_connections, .. } = &settings.config;
        let (departures, can_move) = (&self.context.departures, false);
        let door =
            Door { input: name, allow, max_connections: *max_connections, metrics: &metrics, departures, can_move };
        let Some(counted) = door.admit(&newcomer, connections.len()) else { return };
        let Newcomer { stream, source, .. } = newcomer;
        make_answering(&stream, source);
        let server = follow(&mut self.tls, settings.config.tls.as_ref());
        let Context { appender, grace, repeats, .. } = self.context.clone();
        let share = Share::new(self.budget.clone());
        let mut stay = counted.stay(self.control.clone());
        connections.spawn(async move {
            let inside = inside(server, stream, source, &metrics, &mut stay, grace).await;
            let Some((stream, transport)) = inside else { return };
            let parts = Parts { stream, source, transport, settings, metrics, appender, repeats, share, counted };
            connection::run(parts, stay, grace).await;
        });
    }
}
