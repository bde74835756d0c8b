//! Two hosts for a mirrored pair: network namespaces on one cable.
//!
//! ```text
//! active  203.0.113.1 eth0 ───── eth0 203.0.113.2  standby
//! ```
//!
//! Generator and sink are on the active node's loopback, as without a pair. Nothing is left behind: namespaces without a
//! name end with their last process.

use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use twinlog::sys::namespace::Namespace;
use twinlog::sys::netlink::Netlink;

use crate::measure::{Deadline, Usage};

/// The nodes, the active one first.
pub const NODES: [&str; 2] = ["active", "standby"];

/// Nobody else hears these nodes.
const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// The network of a pair.
pub struct Cable {
    hosts: [Namespace; 2],
}

impl Cable {
    pub fn make() -> Result<Cable> {
        let make = || Namespace::new().context("making a network namespace, which needs root");
        let hosts = [make()?, make()?];
        let mut netlink = hosts[0].visit(Netlink::open)??;
        netlink.make_cable("eth0", "eth0", hosts[1].as_fd()).context("making a cable")?;
        for (host, last) in hosts.iter().zip(1..) {
            let mut netlink = host.visit(Netlink::open)??;
            for name in ["lo", "eth0"] {
                let interface = netlink.interface(name)?.with_context(|| format!("{name} is not there"))?;
                netlink.set_up(interface.index, true)?;
                if name == "eth0" {
                    netlink.add_own(Ipv4Addr::new(203, 0, 113, last), 24, interface.index)?;
                }
            }
        }
        Ok(Cable { hosts })
    }

    /// Runs `visit` on a node's host: what it opens or starts stays there.
    pub fn visit<T>(&self, node: usize, visit: impl FnOnce() -> Result<T>) -> Result<T> {
        self.hosts[node].visit(visit).context("visiting a network namespace")?
    }
}

/// The lines that make twinlog a node of the pair, with its key beside them in `dir`.
pub fn configuration(dir: &Path) -> Result<String> {
    let key = dir.join("pair.key");
    fs::write(&key, KEY).context("writing the pair's key")?;
    fs::set_permissions(&key, Permissions::from_mode(0o600)).context("closing the pair's key")?;
    let nodes = [(NODES[0], 1, 200), (NODES[1], 2, 100)];
    let nodes = nodes.map(|(name, last, priority)| {
        format!("{{ name = \"{name}\", address = \"203.0.113.{last}\", priority = {priority} }}")
    });
    let (key, nodes) = (key.display(), nodes.join(", "));
    Ok(format!("\n[pair]\nvip = \"203.0.113.100/24\"\ninterface = \"eth0\"\nkey_file = \"{key}\"\nnodes = [{nodes}]\n"))
}

/// Waits until a node is `state`, as `twinlog await` has it.
pub fn wait_until(program: &Path, config: &Path, node: &str, state: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.arg("await").arg(state).args(["--timeout", "60s", "--node", node]).arg("--config").arg(config);
    let output = command.output().context("starting twinlog await")?;
    if !output.status.success() {
        bail!("{node} is not {state}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Bytes that the active node has and the other one has not yet, as `twinlog status` says.
pub fn lag_bytes(status: &serde_json::Value) -> Result<u64> {
    status["nodes"][0]["link"]["lag_bytes"].as_u64().context("twinlog status tells no lag")
}

/// What a node has used: its guardian and its daemon.
pub fn usage(node: &Child) -> Result<Usage> {
    let guardian = node.id();
    let path = format!("/proc/{guardian}/task/{guardian}/children");
    let children = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let daemon = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
    let daemon = Usage::of_process(daemon.context("the guardian has no daemon")?)?;
    Ok(Usage { cpu: daemon.cpu + Usage::of_process(guardian)?.cpu, ..daemon })
}

/// Waits until a process that was told to end has ended, and kills it if it does not.
pub fn reap(mut node: Child, patience: Duration) -> Result<()> {
    let deadline = Deadline::after(patience);
    while node.try_wait()?.is_none() {
        if deadline.pause(Duration::from_millis(2), "waiting for the standby to stop").is_err() {
            node.kill()?;
            node.wait()?;
        }
    }
    Ok(())
}
