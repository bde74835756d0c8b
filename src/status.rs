//! What a node says about itself: one value, made on request from what the parts publish.
//!
//! [`Observed`] is everything a look needs; [`Observed::status`] is the look. The shape is the contract of
//! `status --json`; people read [`text`]. Nothing here is kept: rates are the reader's subtraction of two looks.
//!
//! Alone, `pair` is an empty object and `vrrp` and `link` are `null`: a node without a virtual router is in none of its
//! states.

pub mod format;
mod partner;
mod table;
#[cfg(test)]
pub(crate) mod testing;
pub mod text;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use self::partner::{LinkStatus, Partnered};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::config::{self, Config, Input, Listen, Output, OutputKind};
use crate::journal::{Journal, Progress, State};
use crate::metrics::{InputMetrics, Metrics, OutputMetrics, VrrpMetrics};
use crate::program::Program;
use crate::proto::envelope::Timestamp;
use crate::proto::position::{Mark, NodeName};
use crate::proto::stage::Stage;
use crate::vip;

/// Version of the JSON shape: raised when a key changes its meaning or goes.
pub const SCHEMA: u32 = 1;
/// Time without a sign of life of the journal's thread after which the node is not well. It gives one every second.
pub const HEARTBEAT_MAX: Duration = Duration::from_secs(5);

/// Everything a look needs: handles to what the parts of a running daemon publish.
#[derive(Debug)]
pub struct Observed {
    /// The own journal.
    pub journal: Arc<Journal>,
    /// When the journal's thread gave a sign of life: made with the journal, by [`Pulse::of`].
    pub pulse: Pulse,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The stage that the data plane follows.
    pub stage: watch::Receiver<Stage>,
    /// Whether every configured input has all its sockets.
    pub listening: watch::Receiver<bool>,
    /// When the daemon started.
    pub started: Started,
    /// What runs; `None` if the system does not say.
    pub program: Option<Program>,
    /// This node.
    pub node: NodeName,
    /// The configuration in force.
    pub config: watch::Receiver<Arc<Config>>,
    /// What is wrong, in words for an operator; empty when nothing is. What the journal itself says is added to it.
    pub faults: watch::Receiver<Vec<String>>,
    /// How the last reload went; the start counts as one.
    pub reload: watch::Receiver<LastReload>,
    /// The election, if there is a pair.
    pub elected: Option<Elected>,
    /// The link to the other node, if there is a pair.
    pub partnered: Option<Partnered>,
}

/// What can be seen of the election.
#[derive(Clone, Debug)]
pub struct Elected {
    /// The pair's configuration.
    pub pair: config::Pair,
    /// How it stands.
    pub handle: vip::Handle,
    /// What is counted.
    pub metrics: Arc<VrrpMetrics>,
}

impl Elected {
    /// `vrrp` of the contract.
    fn status(&self) -> serde_json::Value {
        let (view, metrics) = (self.handle.view(), &self.metrics);
        serde_json::json!({
            "state": view.state,
            "vip_held": view.vip_held,
            "vip": self.pair.addresses().collect::<Vec<_>>(),
            "vrid": self.pair.vrid.get(),
            "priority": view.priority,
            "master": view.master,
            "peer_answers": view.peer_answers,
            "adverts_sent": metrics.adverts_sent.get(),
            "adverts_received": metrics.adverts_received.get(),
            "adverts_rejected": metrics.rejected.get(),
            "adverts_noted": metrics.noted.get(),
            "transitions": metrics.transitions.get().values().sum::<u64>(),
            "restored": metrics.restored.get(),
            "foreign": view.foreign,
        })
    }

    fn role(&self) -> &'static str {
        if self.handle.view().vip_held { "active" } else { "standby" }
    }

    /// What is wrong with the election and is said nowhere else.
    fn faults(&self) -> Vec<String> {
        let words = |fault: &&'static str| match *fault {
            "interface_down" => Some(format!("the interface {} of the pair is down or gone", self.pair.interface)),
            "own_address_gone" => {
                Some(format!("{} lacks its own address, so it cannot take part", self.pair.interface))
            }
            "data_plane_stalled" => Some("the data plane stands still, so this node holds no address".to_owned()),
            "journal_full" => Some("the journal is full, so a peer that is well takes the address".to_owned()),
            _ => None,
        };
        let view = self.handle.view();
        let foreign = view.foreign.map(|address| {
            let (vrid, interface) = (self.pair.vrid, &self.pair.interface);
            format!("another pair uses our vrid {vrid} on {interface}: {address} advertises other addresses with it")
        });
        view.faults.iter().filter_map(words).chain(foreign).collect()
    }
}

/// When the daemon started, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// For people.
    pub time: SystemTime,
    /// For durations.
    pub instant: Instant,
}

impl Started {
    /// Now.
    #[must_use]
    pub fn now() -> Started {
        Started { time: SystemTime::now(), instant: Instant::now() }
    }
}

/// How the last reload went.
#[derive(Clone, Copy, Debug)]
pub struct LastReload {
    /// Whether the new configuration is in force.
    pub successful: bool,
    /// When.
    pub at: SystemTime,
}

/// Tells how long ago the journal's thread gave a sign of life.
///
/// The heartbeat is in milliseconds since that thread started, so one reading taken with the clock beside it tells the
/// age of every later one, to within the second between two beats.
#[derive(Clone, Copy, Debug)]
pub struct Pulse {
    beat: u64,
    at: Instant,
}

impl Pulse {
    /// The pulse of a journal that was opened just now.
    #[must_use]
    pub fn of(journal: &Journal, now: Instant) -> Pulse {
        Pulse { beat: journal.heartbeat(), at: now }
    }

    fn age(&self, beat: u64, now: Instant) -> Duration {
        let beat_at = Duration::from_millis(beat.saturating_sub(self.beat));
        now.saturating_duration_since(self.at).saturating_sub(beat_at)
    }
}

/// What `status --json` says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub v: u32,
    /// What the two nodes share; empty without a pair.
    pub pair: Pair,
    /// This node first, then the peer as it last told us.
    pub nodes: Vec<NodeStatus>,
}

/// What the two nodes of a pair share.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Pair {
    /// The shared addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vip: Vec<String>,
    /// The nodes' names, in the order of the configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
}

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// The version that runs.
    pub version: String,
    /// Whether another program is installed than the one that runs, which a restart would change.
    #[serde(default)]
    pub restart_pending: bool,
    /// Its process.
    pub pid: u32,
    /// Seconds since the daemon started.
    pub uptime_seconds: f64,
    /// `standalone`; `active` and `standby` in a pair.
    pub role: String,
    /// `serving`, `quiescing`, `stopping`; with a pair also `handing_over`, `flushing`, `drained`.
    pub stage: String,
    /// What is wrong, in words; empty when nothing is.
    pub faults: Vec<String>,
    /// Whether this node holds nothing that was not delivered.
    pub safe_to_drain: bool,
    /// Why, or why not.
    pub safe_to_drain_reason: String,
    /// The virtual router; `null` without a pair.
    pub vrrp: Option<serde_json::Value>,
    /// The link to the peer; `null` without a pair.
    pub link: Option<LinkStatus>,
    /// The own journal; with a pair also the mirror.
    pub journals: Vec<JournalStatus>,
    /// By name.
    pub inputs: BTreeMap<String, InputStatus>,
    /// By name.
    pub outputs: BTreeMap<String, OutputStatus>,
}

/// One journal. Positions are bytes in its endless stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JournalStatus {
    /// `own`; with a pair also `mirror`.
    pub journal: String,
    /// `NODE/INCARNATION`.
    pub id: String,
    /// `writing`, `waiting` or `poisoned`.
    pub state: String,
    /// Why it is not writing.
    pub state_reason: Option<String>,
    /// Everything before was taken in.
    pub appended: u64,
    /// Everything before is on this node's disk.
    pub durable: u64,
    /// Everything before is on the peer's disk; `null` without a pair.
    pub replicated: Option<u64>,
    /// Everything before was delivered by every output.
    pub delivered: u64,
    /// Bytes on the disk, delivered segments that are not yet removed included.
    pub bytes: u64,
    /// Most bytes it may have.
    pub max_bytes: u64,
    /// Files.
    pub segments: usize,
    /// Messages taken in that at least one output has not delivered.
    pub messages: u64,
    /// Age of the oldest of them in seconds; 0 if there is none.
    pub oldest_seconds: f64,
    /// Messages taken in since the journal was made.
    pub messages_total: u64,
    /// Undelivered messages given up because the journal was full (`when_full = "drop_oldest"`), since the start.
    pub dropped_messages: u64,
}

/// One input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InputStatus {
    /// Messages taken in since the start.
    pub messages: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Connections now open.
    pub connections: i64,
    /// What was refused, or noted about a message that was kept, by reason.
    pub rejected: BTreeMap<String, u64>,
    /// Datagrams that the kernel dropped because nobody read them in time.
    pub kernel_drops: u64,
    /// Where it listens.
    pub listen: Vec<String>,
    /// Seconds since the newest message; `null` if there was none.
    pub silent_seconds: Option<f64>,
}

/// One output.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OutputStatus {
    /// Messages that left, repeats included.
    pub sent: u64,
    /// Messages known to have arrived.
    pub acknowledged: u64,
    /// Messages that left and are not known to have arrived.
    pub in_flight: i64,
    /// Tries after the first.
    pub retries: u64,
    /// Whether its destination is there.
    pub connected: bool,
    /// Messages taken in and not delivered.
    pub backlog_messages: u64,
    /// Bytes of the journal that they take.
    pub backlog_bytes: u64,
    /// Age in seconds of the oldest message that is not delivered; 0 if there is none.
    pub lag_seconds: f64,
    /// The newest error; it may be over.
    pub last_error: Option<String>,
    /// Destinations, the primary first.
    pub to: Vec<String>,
    /// The one in use.
    pub target: Option<String>,
    /// Everything before this position was delivered.
    pub delivered: u64,
    /// Failures by reason.
    pub errors: BTreeMap<String, u64>,
    /// Messages that will never be delivered, by reason.
    pub lost: BTreeMap<String, u64>,
}

impl Observed {
    /// Looks.
    #[must_use]
    pub fn status(&self, now: SystemTime) -> Status {
        let now = timestamp(now);
        let config = self.config.borrow().clone();
        // The cursors first: what is delivered in between then makes the backlog too large, never too small.
        let delivered = self.journal.delivered();
        let progress = self.journal.progress();
        let of = |output: &Output| {
            let mark = delivered.get(&output.name).copied().unwrap_or(progress.oldest);
            (output.name.clone(), output_status(output, &self.metrics.output(&output.name), mark, &progress, now))
        };
        let outputs: BTreeMap<_, _> = config.outputs.iter().map(of).collect();
        let inputs = config
            .inputs
            .iter()
            .map(|input| (input.name().to_owned(), input_status(input, &self.metrics.input(input.name()), now)));
        let link = self.partnered.as_ref().map(|partnered| partnered.link(&self.journal, &progress));
        let mut journal = journal_status(&self.journal, true, &progress, config.journal.max_size);
        journal.oldest_seconds = outputs.values().map(|output| output.lag_seconds).fold(0.0, f64::max);
        let mirrors = self.partnered.iter().flat_map(|partnered| partnered.mirrors.all());
        let mirrors = mirrors.map(|mirror| journal_status(&mirror, false, &mirror.progress(), config.journal.max_size));
        let (safe_to_drain, safe_to_drain_reason) = match &link {
            Some(link) => safe_to_hand_over(&journal, link),
            None => safe_to_drain(&journal, &outputs),
        };
        let journals = std::iter::once(journal).chain(mirrors).collect();
        let node = NodeStatus {
            name: self.node.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            restart_pending: self.restart_pending(),
            pid: std::process::id(),
            uptime_seconds: (self.started.instant.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
            role: self.elected.as_ref().map_or("standalone", Elected::role).to_owned(),
            stage: self.stage().to_owned(),
            faults: self.faults(),
            safe_to_drain,
            safe_to_drain_reason,
            vrrp: self.elected.as_ref().map(Elected::status),
            link,
            journals,
            inputs: inputs.collect(),
            outputs,
        };
        let pair = self.elected.as_ref().map_or_else(Pair::default, |elected| Pair {
            vip: elected.pair.addresses().map(|vip| vip.to_string()).collect(),
            nodes: elected.pair.nodes.iter().map(|node| node.name.to_string()).collect(),
        });
        let peer = self.partnered.as_ref().and_then(Partnered::peer);
        Status { v: SCHEMA, pair, nodes: std::iter::once(node).chain(peer).collect() }
    }

    /// This node's part of [`status`](Observed::status) as JSON: what the other node shows of it.
    #[must_use]
    pub fn shown(&self) -> Option<String> {
        serde_json::to_string(self.status(SystemTime::now()).nodes.first()?).ok()
    }

    /// The stage, for people: a hand-over is one too, although the data plane goes on as before.
    fn stage(&self) -> &'static str {
        let stage = *self.stage.borrow();
        let hands_over = self.elected.as_ref().is_some_and(|elected| elected.handle.view().is_handing_over);
        if stage == Stage::Serving && hands_over { "handing_over" } else { stage.as_str() }
    }

    /// Whether another program is installed than the one that runs.
    #[must_use]
    pub fn restart_pending(&self) -> bool {
        self.program.as_ref().is_some_and(Program::is_replaced)
    }

    /// What is wrong: what the daemon says, and what the journal's state says.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.faults.borrow().clone();
        match &*self.journal.state().borrow() {
            State::Writing => {}
            State::Waiting(why) => faults.push(format!("the journal waits: {why}")),
            State::Poisoned(why) => faults.push(why.to_string()),
        }
        faults.extend(self.elected.iter().flat_map(Elected::faults));
        faults.extend(self.partnered.iter().flat_map(|partnered| partnered.faults(&self.journal)));
        let silent = self.heartbeat_age();
        if silent > HEARTBEAT_MAX {
            faults.push(format!("the journal has not moved for {} s: does its disk hang?", silent.as_secs()));
        }
        faults
    }

    /// Time since the journal's thread gave a sign of life.
    #[must_use]
    pub fn heartbeat_age(&self) -> Duration {
        self.pulse.age(self.journal.heartbeat(), Instant::now())
    }
}

fn journal_status(journal: &Journal, is_own: bool, progress: &Progress, max_bytes: u64) -> JournalStatus {
    let (state, state_reason) = match &*journal.state().borrow() {
        State::Writing => ("writing", None),
        State::Waiting(why) => ("waiting", Some(why.clone())),
        State::Poisoned(why) => ("poisoned", Some(why.to_string())),
    };
    let replicated = is_own.then(|| journal.promise().replicated().position.0);
    JournalStatus {
        journal: if is_own { "own" } else { "mirror" }.to_owned(),
        id: journal.id().to_string(),
        state: state.to_owned(),
        state_reason,
        appended: progress.appended.position.0,
        durable: progress.durable.position.0,
        replicated: replicated.filter(|position| *position > 0),
        delivered: progress.delivered.position.0,
        bytes: progress.bytes,
        max_bytes,
        segments: progress.segments,
        messages: progress.appended.messages_since(progress.delivered),
        oldest_seconds: 0.0,
        messages_total: progress.appended.ordinal,
        dropped_messages: journal.counters().dropped_messages.get(),
    }
}

fn input_status(input: &Input, metrics: &InputMetrics, now: Timestamp) -> InputStatus {
    let last = metrics.last_message();
    InputStatus {
        messages: metrics.received().map(|(_, received)| received.messages.get()).iter().sum(),
        bytes: metrics.received().map(|(_, received)| received.bytes.get()).iter().sum(),
        connections: metrics.connections.get(),
        rejected: owned(&metrics.rejected.get()),
        kernel_drops: metrics.kernel_drops(),
        listen: input.listen().iter().map(Listen::to_string).collect(),
        silent_seconds: (last.0 > 0).then(|| last.seconds_until(now)),
    }
}

fn output_status(
    output: &Output,
    metrics: &OutputMetrics,
    delivered: Mark,
    progress: &Progress,
    now: Timestamp,
) -> OutputStatus {
    let backlog_messages = progress.appended.messages_since(delivered);
    let oldest = metrics.oldest_undelivered().filter(|_| backlog_messages > 0);
    OutputStatus {
        sent: metrics.sent.get(),
        acknowledged: metrics.acknowledged.get(),
        in_flight: metrics.in_flight.get(),
        retries: metrics.retries.get(),
        connected: metrics.connected(),
        backlog_messages,
        backlog_bytes: progress.appended.position.bytes_since(delivered.position),
        lag_seconds: oldest.map_or(0.0, |oldest| oldest.seconds_until(now)),
        last_error: metrics.last_error(),
        to: destinations(&output.kind),
        target: metrics.target(),
        delivered: delivered.position.0,
        errors: owned(&metrics.errors.get()),
        lost: owned(&metrics.lost.get()),
    }
}

fn destinations(kind: &OutputKind) -> Vec<String> {
    match kind {
        OutputKind::Syslog(syslog) => syslog.to.iter().map(ToString::to_string).collect(),
        OutputKind::Forward(forward) => forward.to.iter().map(ToString::to_string).collect(),
        OutputKind::File(file) => vec![file.path.to_string()],
        OutputKind::Stdout(_) => vec!["stdout".to_owned()],
    }
}

fn owned(reasons: &BTreeMap<&'static str, u64>) -> BTreeMap<String, u64> {
    reasons.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect()
}

/// Whether this node holds nothing that was not delivered. Nothing is lost by stopping it otherwise: what is in the
/// journal stays there and leaves after the next start. A node that is drained for good has no next start.
fn safe_to_drain(journal: &JournalStatus, outputs: &BTreeMap<String, OutputStatus>) -> (bool, String) {
    if let Some(why) = &journal.state_reason {
        return (false, format!("the journal is not writing: {why}"));
    }
    let behind: Vec<String> = outputs
        .iter()
        .filter(|(_, output)| output.backlog_messages > 0)
        .map(|(name, output)| {
            let messages = format::messages(output.backlog_messages);
            let oldest = match output.lag_seconds {
                age if age >= 0.1 => format!(", the oldest {} old", format::seconds(age)),
                _ => String::new(),
            };
            let state = if output.connected { "" } else { ", which is not connected" };
            format!("{messages} not yet delivered to {name}{state}{oldest}")
        })
        .collect();
    match behind.as_slice() {
        [] if journal.appended > journal.durable => (false, "messages are on their way to the disk".to_owned()),
        [] => (true, "everything received was delivered".to_owned()),
        behind => (false, behind.join("; ")),
    }
}

/// Whether the other node can take over without anything being lost: what this node still holds is there, too.
fn safe_to_hand_over(journal: &JournalStatus, link: &LinkStatus) -> (bool, String) {
    if let Some(why) = &journal.state_reason {
        return (false, format!("the journal is not writing: {why}"));
    }
    match link {
        LinkStatus { connected: false, .. } => (false, "there is no link to the peer".to_owned()),
        LinkStatus { in_sync: false, lag_messages, .. } => {
            (false, format!("the peer lacks {}", format::messages(*lag_messages)))
        }
        _ => (true, "the peer has everything".to_owned()),
    }
}

/// A system time as the journal's timestamps count; 0 before 1970.
#[must_use]
pub fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_received_is_safe_to_drain_when_every_output_has_it() {
        let node = testing::TestNode::new();
        let end = node.receive(&[b"<13>one", b"<13>two"]).await;
        let status = node.observed.status(SystemTime::now());
        let seen = &status.nodes[0];
        assert!(!seen.safe_to_drain);
        assert_eq!(seen.safe_to_drain_reason, "2 messages not yet delivered to siem, which is not connected");
        assert_eq!((seen.outputs["siem"].backlog_messages, seen.journals[0].messages), (2, 2));
        assert_eq!(seen.journals[0].appended, end.position.0);
        node.deliver(end);
        let seen = &node.observed.status(SystemTime::now()).nodes[0];
        assert!(seen.safe_to_drain, "{}", seen.safe_to_drain_reason);
        assert_eq!(seen.inputs["net"].messages, 2);
    }

    #[tokio::test]
    async fn the_shape_is_the_contracts() {
        let node = testing::TestNode::new();
        let json = serde_json::to_value(node.observed.status(SystemTime::now())).unwrap();
        assert_eq!((&json["v"], &json["pair"]), (&1.into(), &serde_json::json!({})));
        let node = &json["nodes"][0];
        for key in
            "name version pid uptime_seconds role stage faults safe_to_drain safe_to_drain_reason vrrp link journals \
                    inputs outputs"
                .split_ascii_whitespace()
        {
            assert!(node.get(key).is_some(), "{key}");
        }
        for key in "journal appended durable replicated delivered bytes messages oldest_seconds".split(' ') {
            assert!(node["journals"][0].get(key).is_some(), "{key}");
        }
        for key in "messages bytes connections rejected kernel_drops".split(' ') {
            assert!(node["inputs"]["net"].get(key).is_some(), "{key}");
        }
        for key in "sent acknowledged in_flight retries connected backlog_messages lag_seconds last_error".split(' ') {
            assert!(node["outputs"]["siem"].get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn a_pulse_that_beats_is_young_and_one_that_stands_still_ages() {
        let start = Instant::now();
        let pulse = Pulse { beat: 250, at: start };
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(pulse.age(10_250, after(10)), Duration::ZERO);
        assert_eq!(pulse.age(10_250, after(17)), Duration::from_secs(7));
        assert_eq!(pulse.age(10_400, after(10)), Duration::ZERO, "a beat after the reading is no time travel");
    }
}
