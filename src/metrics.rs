//! What is counted: one value for each input and output, written by their tasks, read by `status` and `/metrics`.
//!
//! Counters are bumped once for a batch, not once for a message. They live as long as the input or output of that name
//! is configured, across reloads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::proto::envelope::Timestamp;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts by a reason from a closed set.
#[derive(Debug, Default)]
pub struct Reasons(Mutex<BTreeMap<&'static str, u64>>);

impl Reasons {
    /// Counts one.
    pub fn inc(&self, reason: &'static str) {
        self.inc_by(reason, 1);
    }

    /// Counts several at once.
    pub fn inc_by(&self, reason: &'static str, count: u64) {
        *lock(&self.0).entry(reason).or_default() += count;
    }

    /// The counts so far.
    #[must_use]
    pub fn get(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.0).clone()
    }
}

/// What one UDP socket's kernel side says (`SO_MEMINFO`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketState {
    /// Datagrams the kernel dropped because the receive buffer was full, since the socket was opened.
    pub drops: u64,
    /// Bytes in the receive queue, as the kernel accounts them.
    pub queue_bytes: u64,
    /// Limit of the receive queue in bytes.
    pub queue_limit_bytes: u64,
}

/// What one transport of an input took in.
#[derive(Debug, Default)]
pub struct Received {
    /// Messages handed to the journal.
    pub messages: Counter,
    /// Bytes of their payloads.
    pub bytes: Counter,
}

/// The election, if there is a pair.
#[derive(Debug, Default)]
pub struct VrrpMetrics {
    /// Advertisements sent, each family counted.
    pub adverts_sent: Counter,
    /// Advertisements of others that were obeyed or answered.
    pub adverts_received: Counter,
    /// Packets that were ignored, by reason.
    pub rejected: Reasons,
    /// What was strange about advertisements that were obeyed, by name.
    pub noted: Reasons,
    /// Changes of state, by the state that began.
    pub transitions: Reasons,
    /// Addresses that somebody else removed and that were put back.
    pub restored: Counter,
    /// Addresses that the kernel removed because nobody renewed them.
    pub lease_expired: Counter,
    /// How late our own advertisements were.
    pub late_seconds: LateSeconds,
    /// How long takeovers took.
    pub takeover: Takeover,
    /// Notices that the control plane did not take in time.
    pub notices_lost: Counter,
    last_transition: AtomicU64,
}

impl VrrpMetrics {
    /// Notes a change of state.
    pub fn transitioned(&self, state: &'static str, at: SystemTime) {
        self.transitions.inc(state);
        let since_epoch = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.last_transition.store(since_epoch.as_millis() as u64, Ordering::Relaxed);
    }

    /// When the state last changed, in milliseconds since the epoch; zero if it never has.
    #[must_use]
    pub fn last_transition(&self) -> u64 {
        self.last_transition.load(Ordering::Relaxed)
    }
}

/// How late our own advertisements were, in seconds.
#[derive(Debug)]
pub struct LateSeconds(pub Histogram);

impl Default for LateSeconds {
    fn default() -> LateSeconds {
        // From a thread that runs at once to two intervals of 100 ms, after which the node steps back.
        LateSeconds(Histogram::new([0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2]))
    }
}

/// How long takeovers took, by phase, in seconds.
#[derive(Debug)]
pub struct Takeover {
    /// From the old master's last advertisement to the decision.
    pub silence: Histogram,
    /// From the decision until the addresses were on the link.
    pub address: Histogram,
}

impl Default for Takeover {
    fn default() -> Takeover {
        // From a planned move to three intervals of a second and the skew.
        let buckets = [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 1.0, 4.0];
        Takeover { silence: Histogram::new(buckets), address: Histogram::new(buckets) }
    }
}

/// The link between the nodes of a pair.
#[derive(Debug, Default)]
pub struct LinkMetrics {
    /// Connections that were refused or ended because of what the other end did, by reason.
    pub rejected: Reasons,
}

/// One input.
#[derive(Debug, Default)]
pub struct InputMetrics {
    /// Taken in as datagrams.
    pub udp: Received,
    /// Taken in from streams.
    pub tcp: Received,
    /// Taken in from streams inside TLS.
    pub tls: Received,
    /// Events taken in from forward frames.
    pub forward: Received,
    /// Messages taken in through RELP.
    pub relp: Received,
    /// Seconds from the receipt of a forward chunk or a RELP message to its acknowledgement.
    pub ack_seconds: AckSeconds,
    /// Connections now open.
    pub connections: Gauge,
    /// Connections accepted since the start.
    pub connections_total: Counter,
    /// Connections that were ended because the node or its addresses left, although their senders had more time than enough.
    pub connections_cut: Counter,
    /// What was refused, or noted about a message that was kept (`truncated`), by reason.
    pub rejected: Reasons,
    /// By socket (`udp://ADDRESS#N`): the kernel's view. Drops of closed sockets stay counted.
    sockets: Mutex<BTreeMap<String, SocketState>>,
    last_message: AtomicU64,
}

/// Seconds from the receipt of a chunk or a message to its acknowledgement.
#[derive(Debug)]
pub struct AckSeconds(pub Histogram);

impl Default for AckSeconds {
    fn default() -> AckSeconds {
        // From a write that is due at once to the 30 s after which the connection is closed.
        AckSeconds(Histogram::new([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]))
    }
}

impl InputMetrics {
    /// What came in, by protocol, as the label `proto` names it.
    #[must_use]
    pub fn received(&self) -> [(&'static str, &Received); 5] {
        [("udp", &self.udp), ("tcp", &self.tcp), ("tls", &self.tls), ("forward", &self.forward), ("relp", &self.relp)]
    }

    /// Notes when the newest message came.
    pub fn saw_message(&self, at: Timestamp) {
        self.last_message.store(at.0, Ordering::Relaxed);
    }

    /// When the newest message came; zero if none has.
    #[must_use]
    pub fn last_message(&self) -> Timestamp {
        Timestamp(self.last_message.load(Ordering::Relaxed))
    }

    /// Replaces what is known of a socket.
    pub fn set_socket(&self, name: &str, state: SocketState) {
        lock(&self.sockets).insert(name.to_owned(), state);
    }

    /// The sockets.
    #[must_use]
    pub fn sockets(&self) -> BTreeMap<String, SocketState> {
        lock(&self.sockets).clone()
    }

    /// Datagrams that the kernel dropped, over all sockets.
    #[must_use]
    pub fn kernel_drops(&self) -> u64 {
        lock(&self.sockets).values().map(|socket| socket.drops).sum()
    }
}

/// One output.
#[derive(Debug, Default)]
pub struct OutputMetrics {
    /// Messages that left (and will be repeated if they are not known to have arrived).
    pub sent: Counter,
    /// Bytes that left.
    pub sent_bytes: Counter,
    /// Messages known to have arrived: acknowledged by the peer or its TCP, written to the disk, accepted by the kernel
    /// (UDP).
    pub acknowledged: Counter,
    /// Messages sent and not yet known to have arrived.
    pub in_flight: Gauge,
    /// Tries after the first, of connecting or of writing.
    pub retries: Counter,
    /// Failures by reason.
    pub errors: Reasons,
    /// Messages that could not be delivered and never will be, by reason (`gone`, `damaged`, `unreadable`).
    pub lost: Reasons,
    /// Seconds from the sending of a chunk to its acknowledgement; of forward outputs.
    pub ack_seconds: AckSeconds,
    connected: AtomicBool,
    /// Of mirrors, and of the own journal.
    oldest_undelivered: [AtomicU64; 2],
    last_error: Mutex<Option<String>>,
    target: Mutex<Option<String>>,
}

impl OutputMetrics {
    /// Notes that a destination is (no longer) there, and which one.
    pub fn set_connected(&self, target: Option<String>) {
        self.connected.store(target.is_some(), Ordering::Relaxed);
        *lock(&self.target) = target;
    }

    /// Whether a destination is there.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// The destination in use.
    #[must_use]
    pub fn target(&self) -> Option<String> {
        lock(&self.target).clone()
    }

    /// Notes when the oldest message of the own journal, or of a mirror, was received that has not arrived yet; `None` if
    /// there is none.
    pub fn set_oldest_undelivered(&self, is_own: bool, received: Option<Timestamp>) {
        self.oldest_undelivered[usize::from(is_own)].store(received.map_or(0, |at| at.0), Ordering::Relaxed);
    }

    /// When the oldest message was received that has not arrived yet.
    #[must_use]
    pub fn oldest_undelivered(&self) -> Option<Timestamp> {
        let times = self.oldest_undelivered.iter().map(|at| at.load(Ordering::Relaxed));
        times.filter(|at| *at > 0).min().map(Timestamp)
    }

    /// Keeps the newest error's text for `status`.
    pub fn set_last_error(&self, error: String) {
        *lock(&self.last_error) = Some(error);
    }

    /// The newest error's text.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        lock(&self.last_error).clone()
    }
}

/// Everything that is counted, by the names of inputs and outputs.
#[derive(Debug, Default)]
pub struct Metrics {
    inputs: Mutex<BTreeMap<String, Arc<InputMetrics>>>,
    outputs: Mutex<BTreeMap<String, Arc<OutputMetrics>>>,
    /// Runs of hooks by event and result.
    hook_runs: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

impl Metrics {
    /// The input of this name; made at the first call.
    #[must_use]
    pub fn input(&self, name: &str) -> Arc<InputMetrics> {
        lock(&self.inputs).entry(name.to_owned()).or_default().clone()
    }

    /// The output of this name; made at the first call.
    #[must_use]
    pub fn output(&self, name: &str) -> Arc<OutputMetrics> {
        lock(&self.outputs).entry(name.to_owned()).or_default().clone()
    }

    /// All inputs.
    #[must_use]
    pub fn inputs(&self) -> BTreeMap<String, Arc<InputMetrics>> {
        lock(&self.inputs).clone()
    }

    /// All outputs.
    #[must_use]
    pub fn outputs(&self) -> BTreeMap<String, Arc<OutputMetrics>> {
        lock(&self.outputs).clone()
    }

    /// Counts a run of a hook, or one that did not come about.
    pub fn hook_ran(&self, event: &'static str, result: &'static str) {
        *lock(&self.hook_runs).entry((event, result)).or_default() += 1;
    }

    /// Runs of hooks by event and result.
    #[must_use]
    pub fn hook_runs(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        lock(&self.hook_runs).clone()
    }

    /// Forgets what is no longer configured.
    pub fn retain(&self, input: impl Fn(&str) -> bool, output: impl Fn(&str) -> bool) {
        lock(&self.inputs).retain(|name, _| input(name));
        lock(&self.outputs).retain(|name, _| output(name));
    }
}
