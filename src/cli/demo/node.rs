//! A node of the demo, and the network that it is on.

use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::super::block_on;
use crate::control::client::Client;
use crate::receipt::Receipt;
use crate::status::NodeStatus;
use crate::sys::namespace::Namespace;
use crate::sys::netlink::Netlink;
use crate::sys::random;

/// Where the device sends from and the destination listens.
pub(super) const DEVICE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The shared address.
pub(super) const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// Port of the destination.
pub(super) const SINK_PORT: u16 = 6514;
const PREFIX: u8 = 24;
const BRIDGE: &str = "bridge";

/// The bridge, in the demo's own namespace, with the device's address.
pub(super) struct Network {
    netlink: Netlink,
    bridge: u32,
}

impl Network {
    pub(super) fn new() -> anyhow::Result<Network> {
        let mut netlink = Netlink::open().context("cannot talk to the kernel")?;
        netlink.make_bridge(BRIDGE).context("cannot make a bridge")?;
        let mut network = Network { netlink, bridge: 0 };
        network.bridge = network.index(BRIDGE)?;
        network.netlink.add_own(DEVICE, PREFIX, network.bridge)?;
        network.netlink.set_up(network.bridge, true)?;
        let lo = network.index("lo")?;
        network.netlink.set_up(lo, true)?;
        Ok(network)
    }

    fn index(&mut self, name: &str) -> anyhow::Result<u32> {
        index(&mut self.netlink, name)
    }

    /// Connects a namespace: `eth0` there, a port of this name here.
    fn connect(&mut self, name: &str, namespace: &Namespace, address: Ipv4Addr) -> anyhow::Result<()> {
        self.netlink.make_cable(name, "eth0", namespace.as_fd()).context("cannot make a cable")?;
        let port = self.index(name)?;
        self.netlink.plug_in(port, self.bridge)?;
        self.netlink.set_up(port, true)?;
        let mut netlink = namespace.visit(Netlink::open)??;
        for name in ["lo", "eth0"] {
            let index = index(&mut netlink, name)?;
            netlink.set_up(index, true)?;
            if name == "eth0" {
                netlink.add_own(address, PREFIX, index)?;
            }
        }
        Ok(())
    }

    /// Cuts or mends a node's cable.
    fn set_cable(&mut self, name: &str, whole: bool) -> anyhow::Result<()> {
        let port = self.index(name)?;
        Ok(self.netlink.set_up(port, whole)?)
    }
}

fn index(netlink: &mut Netlink, name: &str) -> anyhow::Result<u32> {
    let interface = netlink.interface(name)?;
    interface.map(|interface| interface.index).ok_or_else(|| anyhow!("{name} was made and is not there"))
}

/// A twinlog in a namespace.
pub(super) struct Node {
    name: &'static str,
    namespace: Namespace,
    directory: PathBuf,
    running: Option<Child>,
}

impl Node {
    /// Makes its host, with the address `192.0.2.LAST`, and writes its configuration.
    pub(super) fn new(network: &mut Network, name: &'static str, last: u8, key: &str) -> anyhow::Result<Node> {
        let namespace = Namespace::new().context("cannot make a network namespace")?;
        network.connect(name, &namespace, Ipv4Addr::new(192, 0, 2, last))?;
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory)?;
        fs::write(directory.join("twinlog.toml"), configuration(&directory))?;
        let mut file = File::options().create_new(true).write(true).mode(0o600).open(directory.join("pair.key"))?;
        file.write_all(key.as_bytes())?;
        Ok(Node { name, namespace, directory, running: None })
    }

    /// Starts the program that this is.
    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        let file = self.directory.join("twinlog.toml");
        let log = File::options().create(true).append(true).open(self.log())?;
        // Not by its path: it may be below what is mounted here.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("twinlog").arg("run").arg("--config").arg(&file).args(["--node", self.name]);
        // A group of its own, which is killed as a host is, and which a terminal does not interrupt.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = self.namespace.visit(|| command.spawn())?;
        self.running = Some(child.with_context(|| format!("cannot start {}", self.name))?);
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    fn client(&self) -> Client {
        Client::new(&self.directory.join("control.sock"))
    }

    /// Whether the shared address is on its link.
    pub(super) fn holds(&mut self) -> anyhow::Result<bool> {
        if let Some(child) = &mut self.running
            && let Some(status) = child.try_wait()?
        {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            return Err(anyhow!("{} ended with {status}:\n{log}", self.name));
        }
        let mut netlink = self.namespace.visit(Netlink::open)??;
        let link = index(&mut netlink, "eth0")?;
        Ok(netlink.places_of(VIP.into())?.iter().any(|place| place.index == link))
    }

    /// What it says of itself; `None` while it does not.
    fn status(&self) -> Option<NodeStatus> {
        let status = block_on(async { Ok(self.client().status().await?) });
        status.ok()?.nodes.into_iter().next()
    }

    /// Whether it runs, and everything acknowledged is on both nodes.
    pub(super) fn is_in_sync(&self) -> bool {
        self.status().and_then(|node| node.link).is_some_and(|link| link.in_sync)
    }

    /// Whether it would take over.
    pub(super) fn is_standby(&self) -> bool {
        self.status().and_then(|node| node.vrrp).is_some_and(|vrrp| vrrp["state"] == "Backup")
    }

    /// Drains it; what came of it.
    pub(super) fn drain(&self) -> anyhow::Result<Receipt> {
        let client = self.client();
        block_on(async {
            let begun = client.drain("until=empty&deadline=10").await?;
            let mut report = begun.map_err(|refused| anyhow!("{} is not drained: {}", self.name, refused.reason))?;
            while !report.is_over {
                tokio::time::sleep(Duration::from_millis(20)).await;
                report = client.drain_report().await?;
            }
            report
                .receipt
                .ok_or_else(|| anyhow!("{} is not drained: {}", self.name, report.failure.unwrap_or_default()))
        })
    }

    /// Ends its drained state.
    pub(super) fn undrain(&self) -> anyhow::Result<()> {
        let outcome = block_on(async { Ok(self.client().undrain().await?) })?;
        outcome.map_err(|refused| anyhow!("{} stays drained: {}", self.name, refused.reason))
    }

    /// Cuts its cable and kills all its processes, as when the power fails.
    pub(super) fn crash(&mut self, network: &mut Network) -> anyhow::Result<()> {
        network.set_cable(self.name, false)?;
        if let Some(mut child) = self.running.take() {
            killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL)?;
            child.wait()?;
        }
        Ok(())
    }

    /// The power is back.
    pub(super) fn return_from_crash(&mut self, network: &mut Network) -> anyhow::Result<()> {
        network.set_cable(self.name, true)?;
        self.start()
    }
}

/// A pair key.
pub(super) fn key() -> anyhow::Result<String> {
    use base64::Engine;
    Ok(base64::engine::general_purpose::STANDARD.encode(random::bytes::<32>()?))
}

fn configuration(directory: &Path) -> String {
    format!(
        "data_dir = {:?}\n\
         control_socket = {:?}\n\
         [pair]\n\
         vip = \"{VIP}/{PREFIX}\"\n\
         interface = \"eth0\"\n\
         nodes = [{{ name = \"agg-a\", address = \"192.0.2.11\" }}, {{ name = \"agg-b\", address = \"192.0.2.12\" }}]\n\
         [journal]\n\
         segment_size = \"8MiB\"\n\
         max_size = \"64MiB\"\n\
         [[input.syslog]]\n\
         listen = \":514\"\n\
         [[output.syslog]]\n\
         to = [\"tcp://{DEVICE}:{SINK_PORT}\"]\n\
         retry = {{ min = \"200ms\", max = \"1s\" }}\n",
        directory.join("data"),
        directory.join("control.sock"),
    )
}
