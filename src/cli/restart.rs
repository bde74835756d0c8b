//! The second half of `drain --restart`: the service is restarted, and the node comes back.
//!
//! By `systemctl`, as an administrator would do it: it waits until the service says that it serves, and tells when it does
//! not. Only `twinlog.service` is ever restarted, and only if it is what runs the daemon that was drained. A daemon that
//! somebody has started by hand is in whatever service its shell is in, and that is not ours to restart.

use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::Uid;
use serde_json::json;
use tokio::time::sleep;

use super::configuration;
use super::{Exit, Failure, Shared};
use crate::control::client::Client;
use crate::status::NodeStatus;

/// The service, as the packages name it.
const UNIT: &str = "twinlog.service";
/// How long the node may take to be back if nobody says: as long as a drain.
const BACK_MAX: Duration = Duration::from_secs(600);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// A restart that can be carried out as soon as the node is drained.
#[derive(Debug)]
pub(super) struct Restart {
    /// The version that runs before.
    version: String,
    /// Whether there was a peer to be in sync with.
    had_peer: bool,
    /// How long the node may take to be back.
    patience: Duration,
}

impl Restart {
    /// Looks whether the service can be restarted: who asks, what runs the daemon, and whether the installed program
    /// takes the configuration.
    pub(super) async fn prepare(
        shared: &Shared,
        client: &Client,
        patience: Option<Duration>,
    ) -> anyhow::Result<Restart> {
        if !Uid::effective().is_root() {
            let message = "only root can restart the service: sudo twinlog drain --restart";
            return Err(Failure::new(Exit::Failed, message).into());
        }
        let status = client.status().await?;
        let Some(node) = status.nodes.into_iter().next() else {
            return Err(Failure::new(Exit::Failed, "the daemon says nothing of itself").into());
        };
        if !is_run_by_the_service(node.pid) {
            let message = format!(
                "systemd's {UNIT} does not run this daemon (process {}), so it cannot be restarted from here: drain it \
                 without --restart, then restart it the way it was started",
                node.pid
            );
            return Err(Failure::new(Exit::Failed, message).into());
        }
        // Who it is may be said to the service alone, in its environment.
        let shared = Shared { node: shared.node.clone().or(Some(node.name)), ..shared.clone() };
        configuration::for_run(&shared).map_err(|refused| {
            let message = format!("{refused}\nnothing was drained: a restart would end with this");
            Failure::new(refused.exit, message)
        })?;
        Ok(Restart {
            version: node.version,
            had_peer: node.link.is_some_and(|link| link.connected),
            patience: patience.unwrap_or(BACK_MAX),
        })
    }

    /// Restarts the service, and waits until the node is back.
    pub(super) async fn carry_out(self, shared: &Shared, client: &Client) -> anyhow::Result<()> {
        if !shared.quiet && !shared.json {
            writeln!(io::stderr(), "            restarting {UNIT}")?;
        }
        let begun = Instant::now();
        let restarted = Command::new("systemctl").args(["restart", UNIT]).stdin(Stdio::null()).status();
        if !restarted.is_ok_and(|status| status.success()) {
            let message = format!("the service did not come back: systemctl status {UNIT}; journalctl -u {UNIT} -e");
            return Err(Failure::new(Exit::Failed, message).into());
        }
        let node = self.back(client, begun + self.patience).await?;
        let seconds = (begun.elapsed().as_secs_f64() * 1e3).round() / 1e3;
        let mut out = io::stdout();
        if shared.json {
            let in_sync = node.link.is_some_and(|link| link.in_sync);
            let answer = json!({
                "v": 1, "node": node.name, "version": node.version, "version_before": self.version, "role": node.role,
                "in_sync": in_sync, "seconds": seconds,
            });
            writeln!(out, "{answer}")?;
        } else if !shared.quiet {
            let NodeStatus { name, version, role, .. } = &node;
            let before = if *version == self.version { String::new() } else { format!(" instead of {}", self.version) };
            let peer = if self.had_peer { ", in sync with its peer" } else { "" };
            writeln!(out, "restarted    {name} is back after {seconds:.3} s: twinlog {version}{before}, {role}{peer}")?;
        }
        Ok(())
    }

    /// The node, as soon as it serves again.
    async fn back(&self, client: &Client, until: Instant) -> anyhow::Result<NodeStatus> {
        loop {
            let node = client.status().await.ok().and_then(|status| status.nodes.into_iter().next());
            if let Some(node) = node.filter(|node| self.is_back(node)) {
                return Ok(node);
            }
            if Instant::now() >= until {
                let what = if self.had_peer { "in sync with its peer" } else { "in service" };
                let message =
                    format!("restarted, but not {what} within {:?}; `twinlog status` says why", self.patience);
                return Err(Failure::new(Exit::Deadline, message).into());
            }
            sleep(LOOK).await;
        }
    }

    fn is_back(&self, node: &NodeStatus) -> bool {
        let has_role = node.vrrp.as_ref().is_none_or(|vrrp| vrrp["state"] != "Initialize");
        let has_peer = !self.had_peer || node.link.as_ref().is_some_and(|link| link.in_sync);
        node.stage == "serving" && has_role && has_peer
    }
}

/// Whether the service's main process is this daemon, or its parent: with a pair that is the guardian.
fn is_run_by_the_service(daemon: u32) -> bool {
    let mut show = Command::new("systemctl");
    show.args(["show", "--property=MainPID", "--value", UNIT]).stdin(Stdio::null());
    let main = show.output().ok().filter(|shown| shown.status.success());
    let main = main.and_then(|shown| String::from_utf8(shown.stdout).ok()?.trim().parse::<u32>().ok());
    // A service that does not run has the number 0.
    main.is_some_and(|main| main != 0 && (main == daemon || parent(daemon) == Some(main)))
}

fn parent(process: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_parent_and_is_not_the_service() {
        assert_eq!(parent(std::process::id()), Some(std::os::unix::process::parent_id()));
        assert_eq!(parent(u32::MAX), None);
        assert!(!is_run_by_the_service(std::process::id()));
    }
}
