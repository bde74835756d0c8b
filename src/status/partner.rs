//! What a node says about the other one, and about the link between them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::NodeStatus;
use crate::journal::{Journal, Progress};
use crate::metrics::LinkMetrics;
use crate::pair::View;
use crate::pair::mirrors::Mirrors;

/// What can be seen of the other node.
#[derive(Clone, Debug)]
pub struct Partnered {
    /// How the link stands.
    pub view: watch::Receiver<View>,
    /// What this node has of the other one's journals.
    pub mirrors: Arc<Mirrors>,
    /// What is counted.
    pub metrics: Arc<LinkMetrics>,
}

/// The link to the other node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LinkStatus {
    /// Whether the nodes talk.
    pub connected: bool,
    /// Whether everything that was acknowledged to senders is on both disks.
    pub in_sync: bool,
    /// Bytes of the own journal that are safe here and not there.
    pub lag_bytes: u64,
    /// Messages of them.
    pub lag_messages: u64,
    /// Milliseconds from sending a byte to its acknowledgement; `null` without a connection.
    pub rtt_ms: Option<f64>,
    /// The peer's program version, as it last said.
    pub peer_version: Option<String>,
    /// Whether both nodes have the same configuration, as the peer last said.
    pub same_configuration: Option<bool>,
    /// What went wrong last; it may be over.
    pub last_error: Option<String>,
    /// Connections that were refused or ended because of what the other end did, by reason.
    #[serde(default)]
    pub rejected: BTreeMap<String, u64>,
}

impl Partnered {
    /// How the link stands, for the own journal with this progress.
    #[must_use]
    pub fn link(&self, own: &Journal, progress: &Progress) -> LinkStatus {
        let view = self.view.borrow();
        let promise = own.promise();
        let connected = view.connected_since.is_some();
        LinkStatus {
            connected,
            in_sync: connected && promise.is_whole(),
            lag_bytes: progress.durable.position.bytes_since(promise.replicated().position),
            lag_messages: progress.durable.messages_since(promise.replicated()),
            rtt_ms: view.round_trip.filter(|_| connected).map(|time| time.as_secs_f64() * 1e3),
            peer_version: view.program.clone(),
            same_configuration: view.same_configuration,
            last_error: view.error.clone(),
            rejected: super::owned(&self.metrics.rejected.get()),
        }
    }

    /// What is wrong between the nodes, in words.
    pub(super) fn faults(&self, own: &Journal) -> Vec<String> {
        let view = self.view.borrow();
        let mut faults = Vec::new();
        if view.connected_since.is_none() {
            let why = view.error.as_deref().unwrap_or("they have not met yet");
            faults.push(format!("degraded: messages have one copy, because there is no link to the peer: {why}"));
        } else if !own.promise().is_whole() {
            faults.push("degraded: the peer's mirror is catching up".to_owned());
        } else if let Some(error) = &view.error {
            faults.push(error.clone());
        }
        if view.same_configuration == Some(false) {
            faults.push("the two nodes have different configurations".to_owned());
        }
        faults
    }

    /// The other node as it last showed itself.
    pub(super) fn peer(&self) -> Option<NodeStatus> {
        serde_json::from_str(self.view.borrow().shown.as_deref()?).ok()
    }
}
