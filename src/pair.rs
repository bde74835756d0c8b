//! The pair link: one connection between the nodes, and the mirrors of what comes over it.
//!
//! Both nodes listen and both dial; the one with the lower address decides which connection stands, by being the first
//! to speak on it. What is said, and in which order, is `proto::pair`; here are sockets, journals and clocks.
//!
//! - `link`: finding each other, again and again.
//! - `conversation`: one connection, driving one [`Session`](crate::proto::pair::session::Session).
//! - `incoming`: its frames as they arrive.
//! - `mirrors`: the other node's journals on this node's disk.

mod conversation;
mod incoming;
mod link;
pub mod mirrors;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;

use crate::config;
use crate::journal::Journal;
use crate::metrics::LinkMetrics;
use crate::proto::pair::message::Status;
use crate::proto::pair::moving::{CONNECTIONS_MAX, Move};
use crate::supervise::Supervisor;
use crate::tls::PairKey;
use mirrors::Mirrors;

/// Notices that may wait to be told; beyond, the link waits.
const NOTICES_MAX: usize = 64;
/// What may wait of all that is said about connections that move, either way. What finds no room is not said: then
/// connections do not move.
const MOVES_MAX: usize = CONNECTIONS_MAX + 16;

/// What the link is made of.
#[derive(Debug)]
pub struct Settings {
    /// The two nodes.
    pub pair: config::Pair,
    /// What they know each other by.
    pub key: PairKey,
    /// A fingerprint of the configuration, to be compared.
    pub configuration: u32,
    /// What is counted.
    pub metrics: Arc<LinkMetrics>,
}

/// How the link stands.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// When the connection came to be; `None` while there is none.
    pub connected_since: Option<SystemTime>,
    /// The other node's program version, as it last said.
    pub program: Option<String>,
    /// Whether both have the same configuration, as it last said.
    pub same_configuration: Option<bool>,
    /// How the other node is, while there is a connection.
    pub peer: Option<Status>,
    /// Since when it is, or is not, the active one.
    pub peer_role_since: Option<Instant>,
    /// How long a byte and its acknowledgement take.
    pub round_trip: Option<Duration>,
    /// What the other node last showed of itself.
    pub shown: Option<String>,
    /// Whether the peer has more of this node's own journal than it has itself: its disk went back in time.
    pub is_adrift: bool,
    /// Why there is no connection, or why a journal is not mirrored; what went wrong last.
    pub error: Option<String>,
}

/// What happened to the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The nodes are talking.
    Connected,
    /// They are not any more; why.
    Lost(String),
    /// The other node has more of a journal than the one that writes it. It is not mirrored.
    RolledBack(String),
}

impl Settings {
    /// Whether this node says which connection stands.
    fn decides(&self) -> bool {
        self.pair.own_node().address < self.pair.peer_node().address
    }
}

/// What every part of the link shares.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    own: Arc<Journal>,
    mirrors: Arc<Mirrors>,
    /// How this node is.
    told: watch::Receiver<Status>,
    view: watch::Sender<View>,
    /// The number of the conversation that counts; any other ends.
    standing: watch::Sender<u64>,
    notices: mpsc::Sender<Notice>,
    /// What this node says of connections that move; of the conversation that counts.
    moves: Mutex<mpsc::Receiver<Move>>,
    /// What the other one says of them.
    moves_heard: mpsc::Sender<Move>,
}

impl Shared {
    /// Makes another conversation the one that counts; returns its number.
    fn stand(&self) -> u64 {
        let mut number = 0;
        self.standing.send_modify(|standing| {
            *standing += 1;
            number = *standing;
        });
        number
    }
}

/// The running link.
#[derive(Debug)]
pub struct Pair {
    task: JoinHandle<()>,
    view: watch::Receiver<View>,
    moves: mpsc::Sender<Move>,
}

/// What comes out of the link.
#[derive(Debug)]
pub struct Told {
    /// What happened to it.
    pub notices: mpsc::Receiver<Notice>,
    /// What the other node says of connections that move.
    pub moves: mpsc::Receiver<Move>,
}

impl Pair {
    /// Listens on this node's address, and talks to the other node whenever there is one. `told` is how this node is.
    /// On the runtime at hand.
    ///
    /// # Errors
    /// What the system says of the listening socket.
    pub fn start(
        settings: Settings,
        own: Arc<Journal>,
        mirrors: Arc<Mirrors>,
        told: watch::Receiver<Status>,
        supervisor: &Supervisor,
    ) -> io::Result<(Pair, Told)> {
        let address = SocketAddr::new(settings.pair.own_node().address, settings.pair.port);
        let listener = tokio::net::TcpListener::from_std(crate::sys::tcp::listen(address)?)?;
        let (notices, told_of) = mpsc::channel(NOTICES_MAX);
        let (moves, own_moves) = mpsc::channel(MOVES_MAX);
        let (moves_heard, their_moves) = mpsc::channel(MOVES_MAX);
        let view = watch::Sender::default();
        let subscribed = view.subscribe();
        let (standing, own_moves) = (watch::Sender::default(), Mutex::new(own_moves));
        let shared = Shared { settings, own, mirrors, told, view, standing, notices, moves: own_moves, moves_heard };
        let task = supervisor.spawn("pair link", link::run(listener, Arc::new(shared)));
        Ok((Pair { task, view: subscribed, moves }, Told { notices: told_of, moves: their_moves }))
    }

    /// Says something of connections that move, if there is a connection; whether there was room for it.
    pub fn say(&self, said: Move) -> bool {
        self.moves.try_send(said).is_ok()
    }

    /// How it stands.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// Ends it: the other node hears that the connection is closed.
    pub async fn end(self) {
        self.task.abort();
        // A panic was reported to the supervisor.
        let _ = self.task.await;
    }
}
