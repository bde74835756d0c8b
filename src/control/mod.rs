//! The control socket: what the command line, scripts and `curl --unix-socket` ask of a running daemon.
//!
//! HTTP/1.1, because everyone has a client for it. The same answers are on the admin listener (`admin.rs`), except
//! those that change something or show messages: these need the rights on the socket's file.
//!
//! | Path | Answer | Admin too |
//! |---|---|---|
//! | `GET /status.json` | [`Status`](crate::status::Status) | yes |
//! | `GET /metrics` | OpenMetrics text | yes |
//! | `GET /livez`, `/healthz` | 200 while the journal's thread moves, else 503 | yes |
//! | `GET /readyz` | 200 if it could serve, else 503; a line for each check | yes |
//! | `GET /active` | 200 on the node that serves, else 503 | yes |
//! | `GET /tail?limit=N&input=NAME&raw=1` | messages as JSON lines, as long as the client stays | no |
//! | `POST /failover?force=1` | 200, 409 [`FailOverRefused`] | no |
//! | `POST /drain?until=handover&deadline=SECONDS&force=1` | 202 [`DrainReport`], 409 [`DrainRefused`] | no |
//! | `GET /drain` | 200 [`DrainReport`] | no |
//! | `POST /undrain` | 200, 409 [`DrainRefused`] | no |
//! | `POST /reload` | 200 [`ReloadReport`], 422 [`ReloadRefused`] | no |
//!
//! - `server`: the socket and its connections. `client`: the other end. `answer`: the table above. `serve`: one
//!   connection, with the limits that make a slow or hostile client cost only itself. `health`, `tail`: what they say.

pub mod client;
pub mod server;

pub(crate) mod answer;
mod health;
pub(crate) mod serve;
mod tail;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::proto::drain::{self, Until};
use crate::receipt::Receipt;

/// Most requests that wait for the daemon's main loop.
pub const REQUESTS_MAX: usize = 16;

/// What the daemon's main loop is asked to do. The channel holds [`REQUESTS_MAX`]; beyond, a client hears 503.
#[derive(Debug)]
pub enum Request {
    /// Read the configuration again and apply it, or nothing of it.
    Reload {
        /// Gets the outcome. Whoever asked may have gone meanwhile.
        reply: oneshot::Sender<Result<ReloadReport, ReloadRefused>>,
    },
    /// Hand the shared addresses over to the peer.
    FailOver {
        /// Also if the peer does not answer, or lacks messages.
        force: bool,
        /// Gets the outcome.
        reply: oneshot::Sender<Result<(), FailOverRefused>>,
    },
    /// Begin a drain.
    Drain {
        /// How.
        wish: DrainWish,
        /// Gets how it stands; a drain that is under way goes on.
        reply: oneshot::Sender<Result<DrainReport, DrainRefused>>,
    },
    /// Say how the drain stands.
    DrainReport {
        /// Gets it.
        reply: oneshot::Sender<DrainReport>,
    },
    /// Serve again.
    Undrain {
        /// Gets the outcome.
        reply: oneshot::Sender<Result<(), DrainRefused>>,
    },
}

/// How to drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainWish {
    /// When it is over. Default [`Until::Empty`].
    pub until: Option<Until>,
    /// When it is over at the latest, from now on. Default 10 min.
    pub deadline: Option<Duration>,
    /// Also if the peer cannot take over.
    pub force: bool,
}

/// How a drain stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DrainReport {
    /// Its stage; `null` if there is none.
    pub stage: Option<drain::Stage>,
    /// Whether there is nothing more to wait for.
    pub is_over: bool,
    /// Why the last one was called off.
    pub failure: Option<String>,
    /// Seconds since it began.
    pub seconds: f64,
    /// Messages of this node's journal that are not delivered yet.
    pub left: u64,
    /// What it came to.
    pub receipt: Option<Receipt>,
}

/// Why there is no drain, or no end of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRefused {
    /// In one line.
    pub reason: String,
}

/// What a reload changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// One line for each change (`output siem: restarted`); empty if the files say what is in force.
    pub changes: Vec<String>,
    /// Warnings about the files, as `check` shows them.
    pub warnings: Vec<String>,
}

/// Why a reload changed nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadRefused {
    /// In one line, e.g. `3 errors in the configuration` or `data_dir cannot change without a restart`.
    pub reason: String,
    /// What is wrong with the configuration and the files it names, as `check` shows it; empty if they are fine.
    pub diagnostics: Vec<String>,
}

/// Why the addresses did not move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailOverRefused {
    /// Of which kind.
    pub why: Unmoved,
    /// In one line.
    pub reason: String,
}

/// Kinds of a hand-over that was none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unmoved {
    /// There was nothing to hand over.
    NotActive,
    /// The peer does not answer; exit status 5.
    Unsafe,
    /// The peer was asked and did not take over.
    NobodyTookOver,
    /// The daemon is busy or stops.
    Busy,
}
