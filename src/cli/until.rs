//! `twinlog await`.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use tokio::time::sleep;

use super::configuration;
use super::{Exit, Failure, Shared, block_on, duration};
use crate::control::client::{Client, ClientError};
use crate::status::NodeStatus;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum State {
    /// Everything acknowledged is on both nodes
    Synced,
    /// A drain is over
    Drained,
    /// This node would take over from the active one
    Standby,
    /// This node is the active one
    Active,
}

/// Flags of `await`.
#[derive(Debug, Args)]
pub struct Await {
    /// What to wait for
    #[arg(value_enum, value_name = "STATE")]
    state: State,
    /// How long, such as 30s; for ever if it is left out
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
}

impl Await {
    pub(super) fn execute(&self, shared: &Shared) -> anyhow::Result<Exit> {
        let client = Client::new(&configuration::socket(shared));
        let until = self.timeout.map(|timeout| Instant::now() + timeout);
        block_on(async {
            loop {
                let last = match client.status().await {
                    Ok(status) if status.nodes.first().is_some_and(|node| self.holds(node)) => return Ok(Exit::Done),
                    Ok(_) => None,
                    // A daemon that is being restarted comes back; whoever set no limit waits for it.
                    Err(error @ ClientError::Unreachable(_)) if until.is_some() => Some(error),
                    Err(error) => return Err(error.into()),
                };
                if until.is_some_and(|until| Instant::now() >= until) {
                    return match last {
                        Some(error) => Err(error.into()),
                        None => Err(Failure::new(Exit::Deadline, "not in that time").into()),
                    };
                }
                sleep(LOOK).await;
            }
        })
    }

    fn holds(&self, node: &NodeStatus) -> bool {
        match self.state {
            State::Synced => node.link.as_ref().is_some_and(|link| link.in_sync),
            State::Drained => node.stage == "drained",
            State::Standby => node.vrrp.as_ref().is_some_and(|vrrp| vrrp["state"] == "Backup"),
            State::Active => node.role == "active",
        }
    }
}
