//! `[pair]`: two nodes, the addresses that one of them holds, and which of the two this machine is.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;

use super::choice::PeerLoss;
use super::diagnostic::{Diagnostic, Severity};
use super::environment::node_name;
use super::reader::{Findings, Table, Value};
use super::sections::{Spots, path, require};
use super::units::Invalid;
use crate::proto::position::NodeName;
use crate::proto::vrrp::advertisement::Password;
use crate::proto::vrrp::interval::Interval;
use crate::proto::vrrp::{Family, Priority, Version, Vrid};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// How long an interface's name may be: `IFNAMSIZ` without its NUL, netdevice(7).
const INTERFACE_NAME_MAX: usize = 15;
/// Virtual addresses of one family that an advertisement of 1500 bytes carries over IPv6: (1500 − 40 − 8) / 16.
const VIPS_MAX: usize = 90;
/// The longest password of version 2, in bytes. RFC 2338, 5.3.10.
const PASSWORD_BYTES_MAX: usize = 8;

/// `[pair]`: this node shares addresses with another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// `vip`: the shared addresses, at least one, all different; they move together. The first decides ties. Required.
    pub vips: Vec<Vip>,
    /// The interface that the addresses are put on. Required.
    pub interface: String,
    /// Which election on this LAN. Default: the last byte of the first address.
    pub vrid: Vrid,
    /// `vrrp_version` and `advert_interval`: 10 ms to 40.95 s with version 3, 1 s to 255 s with version 2. Default
    /// version 3 and 100 ms; 1 s with version 2.
    pub interval: Interval,
    /// Whether this node takes the place of one with a lower priority. Default false.
    pub preempt: bool,
    /// How long it lets that one be master first, at most 1 h. Default 30 s.
    pub preempt_delay: Duration,
    /// File of version 2's simple password, 1 to 8 bytes. Default `None`: no authentication.
    pub auth_pass_file: Option<PathBuf>,
    /// Whether advertisements go to the peer's address and not to the multicast group. Default false.
    pub unicast: bool,
    /// How long the kernel keeps an address that nobody renews, whole seconds from 1 s to 1 h. `None` is `"off"`: for ever.
    /// Default 2 s.
    pub vip_lease: Option<Duration>,
    /// The two nodes, in the order of the file.
    pub nodes: [PairNode; 2],
    /// Which of them this machine is; 0 in a file that is only looked at, on a machine that is neither.
    pub own: usize,
    /// File of the key that both nodes share: 32 random bytes in base64; by it they know each other. Default `pair.key`
    /// beside the configuration file.
    pub key_file: PathBuf,
    /// Port of the nodes' addresses between them. UDP: whether the other's process lives. TCP: the pair link. Default 8514.
    pub port: u16,
    /// What one copy is worth when the peer is away. Default [`PeerLoss::Degrade`].
    pub on_peer_loss: PeerLoss,
}

/// A shared address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vip {
    /// The address. On the link it is a /32 or /128, whatever is written.
    pub address: IpAddr,
    /// The prefix length behind it, if there is one: of the network that it is in. Only checked.
    pub prefix: Option<u8>,
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix {
            Some(prefix) => write!(f, "{}/{prefix}", self.address),
            None => self.address.fmt(f),
        }
    }
}

/// One item of `nodes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairNode {
    /// What it is called; the two differ. Required.
    pub name: NodeName,
    /// Its own address, by which it knows itself; the two differ and are of one family. Required.
    pub address: IpAddr,
    /// 1 to 254. Default 100: the higher address wins, as in the RFC.
    pub priority: Priority,
}

impl Pair {
    /// This machine's node.
    #[must_use]
    pub fn own_node(&self) -> &PairNode {
        &self.nodes[self.own]
    }

    /// The other one.
    #[must_use]
    pub fn peer_node(&self) -> &PairNode {
        &self.nodes[1 - self.own]
    }

    /// The addresses without their prefix lengths, in order.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.vips.iter().map(|vip| vip.address)
    }
}

/// What a machine says of itself before it reads the files: they serve both nodes.
#[derive(Clone, Debug)]
pub struct Identity {
    /// What it is called if the files do not say.
    name: NodeName,
    /// Whether somebody gave the name, so that it decides.
    is_given: bool,
    /// Its own addresses.
    addresses: Vec<IpAddr>,
}

impl Identity {
    /// What `given` (`--node`, `TWINLOG_NODE`) and the interfaces say.
    ///
    /// # Errors
    /// As [`node_name`].
    pub fn of_this_machine(given: Option<&str>) -> Result<Identity, Vec<Diagnostic>> {
        let name = node_name(given)?;
        // A machine that does not tell its addresses is neither node, and the diagnostic says how to name it.
        let addresses = getifaddrs().into_iter().flatten().filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        });
        Ok(Identity { name, is_given: given.is_some(), addresses: addresses.collect() })
    }

    /// A machine with this name, which nobody gave, and these addresses.
    #[must_use]
    pub fn new(name: NodeName, addresses: Vec<IpAddr>) -> Identity {
        Identity { name, is_given: false, addresses }
    }

    /// The name where there is no pair.
    #[must_use]
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// Which node this machine is, or why that cannot be said and what to do.
    fn recognise(&self, nodes: &[PairNode; 2]) -> Result<usize, Invalid> {
        let [first, second] = nodes;
        if self.is_given {
            let found = nodes.iter().position(|node| node.name == self.name);
            return found.ok_or_else(|| {
                let what = format!("has no node called {}, which --node or TWINLOG_NODE names", self.name);
                Invalid::new(what, format!("name {} or {}", first.name, second.name))
            });
        }
        let fix = format!("give --node or TWINLOG_NODE: {} or {}", first.name, second.name);
        match [first, second].map(|node| self.addresses.contains(&node.address)) {
            [true, false] => Ok(0),
            [false, true] => Ok(1),
            [true, true] => Err(Invalid::new("are both this machine: it has either address", fix)),
            [false, false] => {
                let (first, second) = (first.address, second.address);
                Err(Invalid::new(format!("are both other machines: this one has neither {first} nor {second}"), fix))
            }
        }
    }
}

impl From<NodeName> for Identity {
    fn from(name: NodeName) -> Identity {
        Identity::new(name, Vec::new())
    }
}

/// Reads the table; `None` if it is nowhere, or too much of it is missing. With it comes why this machine is neither node.
pub(super) fn pair(
    findings: &Findings<'_>,
    table: Table<'_>,
    identity: &Identity,
    main_file: &str,
    spots: &mut Spots,
) -> Option<(Pair, Option<Diagnostic>)> {
    let header = table.spot()?.clone();
    spots.places.insert("pair".to_owned(), header.clone());
    let vips = vips(findings, &table);
    let mut interface = None;
    table.set("interface", &mut interface, |value| value.parse(interface_name).map(Some));
    require(findings, &table, "interface", "interface = \"eth0\"");
    let vrid = vrid(findings, &table, &vips);
    let interval = interval(&table);
    let nodes = nodes(findings, &table);

    let (mut preempt, mut preempt_delay) = (false, 30 * SECOND);
    table.set("preempt", &mut preempt, Value::flag);
    table.set("preempt_delay", &mut preempt_delay, |value| {
        if !preempt {
            value.warning("has no effect without preempt", "add preempt = true");
        }
        value.duration(Duration::ZERO..=HOUR)
    });
    let mut auth_pass_file = None;
    table.set("auth_pass_file", &mut auth_pass_file, |value| {
        if interval.version() == Version::V3 {
            value.error("needs vrrp_version = 2: version 3 has no password", "remove it");
        }
        path(value).map(Some)
    });
    let mut unicast = false;
    table.set("unicast", &mut unicast, Value::flag);
    let mut vip_lease = Some(2 * SECOND);
    table.set("vip_lease", &mut vip_lease, |value| value.unless_off(lease));
    let mut key_file = Path::new(main_file).parent().unwrap_or(Path::new("")).join("pair.key");
    table.set("key_file", &mut key_file, path);
    let mut port = 8514;
    table.set("port", &mut port, |value| value.number(1..=u32::from(u16::MAX)).and_then(|port| port.try_into().ok()));
    let mut on_peer_loss = PeerLoss::Degrade;
    table.set("on_peer_loss", &mut on_peer_loss, Value::choice);
    for (key, name) in [
        ("pair.auth_pass_file", "auth_pass_file"),
        ("pair.key_file", "key_file"),
        ("pair.nodes", "nodes"),
        ("pair.vip", "vip"),
        ("pair.vrrp_version", "vrrp_version"),
        ("pair.unicast", "unicast"),
        ("pair.port", "port"),
    ] {
        spots.keep(key, &table, name);
    }
    table.finish();

    let (nodes, interface, vrid) = (nodes?, interface?, vrid?);
    if vips.is_empty() {
        return None;
    }
    let (own, unrecognised) = match identity.recognise(&nodes) {
        Ok(own) => (own, None),
        Err(Invalid { what, fix }) => {
            let spot = spots.places.get("pair.nodes").unwrap_or(&header);
            let message = format!("`nodes` {what}");
            if identity.is_given {
                findings.note(Severity::Error, spot, message.as_str(), fix.as_str());
            }
            (0, Some(Diagnostic::at(Severity::Error, findings.place(spot), message, fix)))
        }
    };
    let pair = Pair {
        vips,
        interface,
        vrid,
        interval,
        preempt,
        preempt_delay,
        auth_pass_file,
        unicast,
        vip_lease,
        nodes,
        own,
        key_file,
        port,
        on_peer_loss,
    };
    Some((pair, unrecognised))
}

fn vips(findings: &Findings<'_>, table: &Table<'_>) -> Vec<Vip> {
    let mut vips: Vec<Vip> = Vec::new();
    if let Some(value) = table.get("vip") {
        for item in value.items() {
            let Some(vip) = item.parse(vip) else { continue };
            if vips.iter().any(|other| other.address == vip.address) {
                item.error(format!("has {} twice", vip.address), "remove one");
            } else {
                vips.push(vip);
            }
        }
        if vips.len() > VIPS_MAX {
            value.error(format!("has more than the {VIPS_MAX} addresses of one advertisement"), "make it two pairs");
        }
    }
    require(findings, table, "vip", "vip = \"192.0.2.10/24\"");
    vips
}

/// `"192.0.2.10"`, `"192.0.2.10/24"`, `"2001:db8::10/64"`.
fn vip(text: &str) -> Result<Vip, Invalid> {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let address = unicast_address(address)?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map(|prefix| {
        let number = prefix.parse().ok().filter(|number| (1..=longest).contains(number));
        let what = || Invalid::new(format!("has no prefix length {prefix:?}"), format!("write \"{address}\""));
        number.ok_or_else(what)
    });
    Ok(Vip { address, prefix: prefix.transpose()? })
}

/// An address that one host of a LAN can have.
fn unicast_address(text: &str) -> Result<IpAddr, Invalid> {
    let fix = "write one such as \"192.0.2.10\" or \"2001:db8::10\"";
    let address: IpAddr = text.parse().map_err(|_| Invalid::new(format!("has no address {text:?}"), fix))?;
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() || is_broadcast {
        return Err(Invalid::new(format!("cannot be {address}, which no host of a LAN has"), fix));
    }
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Err(Invalid::new(format!("cannot be {address}"), format!("write \"{v4}\"")));
    }
    Ok(address)
}

fn interface_name(text: &str) -> Result<String, Invalid> {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '/';
    if text.is_empty() || text.len() > INTERFACE_NAME_MAX || [".", ".."].contains(&text) || !text.chars().all(plain) {
        let what = format!("is no name of an interface: 1 to {INTERFACE_NAME_MAX} letters without spaces");
        return Err(Invalid::new(what, "write one that `ip link` shows, such as \"eth0\""));
    }
    Ok(text.to_owned())
}

fn vrid(findings: &Findings<'_>, table: &Table<'_>, vips: &[Vip]) -> Option<Vrid> {
    if let Some(value) = table.get("vrid") {
        let number = value.number(1..=u32::from(u8::MAX))?;
        return u8::try_from(number).ok().and_then(Vrid::new);
    }
    let last = match vips.first()?.address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    };
    let vrid = Vrid::new(last);
    if vrid.is_none() {
        findings.note_missing(table.spot(), "`vrid` is missing, and the first VIP ends in 0", "add vrid = 10");
    }
    vrid
}

/// The interval in the unit of the version, each with its own default.
fn interval(table: &Table<'_>) -> Interval {
    let mut version = Version::V3;
    table.set("vrrp_version", &mut version, |value| {
        value.number(2..=3).map(|number| if number == 2 { Version::V2 } else { Version::V3 })
    });
    let (default, most) = match version {
        Version::V2 => (SECOND, 255 * SECOND),
        Version::V3 => (Duration::from_millis(100), Duration::from_millis(40_950)),
    };
    let mut interval = Interval::new(version, default).expect("a default is one");
    table.set("advert_interval", &mut interval, |value| {
        let least = if version == Version::V2 { SECOND } else { Duration::from_millis(10) };
        let time = value.duration(least..=most)?;
        let interval = Interval::new(version, time);
        if let Err(error) = &interval {
            let step = if version == Version::V2 { "write \"1s\"" } else { "write \"100ms\"" };
            value.error(format!("cannot be that: {error}"), step);
        }
        interval.ok()
    });
    interval
}

fn lease(value: &Value<'_>) -> Option<Duration> {
    let lease = value.duration(SECOND..=HOUR)?;
    if lease.subsec_nanos() != 0 {
        value.error("must be whole seconds: the kernel counts so", "write \"2s\"");
        return None;
    }
    Some(lease)
}

fn nodes(findings: &Findings<'_>, table: &Table<'_>) -> Option<[PairNode; 2]> {
    let example =
        "nodes = [{ name = \"agg-a\", address = \"192.0.2.11\" }, { name = \"agg-b\", address = \"192.0.2.12\" }]";
    let Some(value) = table.get("nodes") else {
        findings.note_missing(table.spot(), "`nodes` is missing", format!("add {example}"));
        return None;
    };
    let tables = table.tables("nodes");
    if tables.len() != 2 {
        value.error(format!("has two nodes, not {}", tables.len()), format!("write {example}"));
    }
    let nodes: Vec<Option<PairNode>> = tables.into_iter().map(|table| node(findings, table)).collect();
    let nodes: Vec<PairNode> = nodes.into_iter().collect::<Option<_>>()?;
    <[PairNode; 2]>::try_from(nodes).ok()
}

fn node(findings: &Findings<'_>, table: Table<'_>) -> Option<PairNode> {
    let (mut name, mut address, mut priority) = (None, None, Priority::DEFAULT);
    table.set("name", &mut name, |value| {
        value.parse(|text| {
            text.parse::<NodeName>()
                .map(Some)
                .map_err(|error| Invalid::new(format!("is none: {error}"), "write \"agg-a\""))
        })
    });
    table.set("address", &mut address, |value| value.parse(node_address).map(Some));
    table.set("priority", &mut priority, |value| {
        let number = value.number(1..=254)?;
        u8::try_from(number).ok().map(Priority)
    });
    require(findings, &table, "name", "name = \"agg-a\"");
    require(findings, &table, "address", "address = \"192.0.2.11\"");
    table.finish();
    Some(PairNode { name: name?, address: address?, priority })
}

fn node_address(text: &str) -> Result<IpAddr, Invalid> {
    if text.contains('/') {
        let plain = text.split('/').next().unwrap_or_default();
        return Err(Invalid::new("has no prefix length: it is one host", format!("write \"{plain}\"")));
    }
    let address = unicast_address(text)?;
    match address {
        // Both nodes may have it on every link, and a connection to it would need to name the link.
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            Err(Invalid::new("cannot be of the link alone", "write the node's global or unique local address"))
        }
        _ => Ok(address),
    }
}

/// What concerns several keys of a pair.
pub(super) fn check(findings: &Findings<'_>, pair: &Pair, spots: &Spots) {
    let Some(header) = spots.places.get("pair") else { return };
    let spot = |key: &str| spots.places.get(key).unwrap_or(header);
    let wrong = |key: &str, message: String, fix: &str| findings.note(Severity::Error, spot(key), message, fix);
    let [first, second] = &pair.nodes;
    if first.name == second.name {
        wrong("pair.nodes", format!("both nodes are called {}", first.name), "give each its own name");
    }
    if first.address == second.address {
        wrong("pair.nodes", format!("both nodes have the address {}", first.address), "give each its own address");
    } else if Family::of(first.address) != Family::of(second.address) {
        let message = "one node has an IPv4 address and the other an IPv6 address".to_owned();
        wrong("pair.nodes", message, "give both the address of one family");
    }
    for node in pair.nodes.iter().filter(|node| pair.addresses().any(|address| address == node.address)) {
        let message = format!("{} is the address of {}, so it cannot move", node.address, node.name);
        wrong("pair.vip", message, "choose an address that no host has");
    }
    let strangers = || pair.addresses().filter(|vip| Family::of(*vip) != Family::of(first.address));
    if strangers().count() == pair.vips.len() {
        let message = "no VIP is of the family of the nodes' addresses".to_owned();
        wrong("pair.vip", message, "give the nodes by their addresses of the VIP's family");
    } else if let Some(stranger) = strangers().next().filter(|_| pair.unicast) {
        let message = format!("unicast cannot carry {stranger}: the nodes' addresses are of the other family");
        wrong("pair.unicast", message, "remove unicast, or the VIP");
    }
    if pair.interval.version() == Version::V2
        && let Some(address) = pair.addresses().find(IpAddr::is_ipv6)
    {
        wrong("pair.vrrp_version", format!("version 2 has no IPv6, and {address} is"), "write 3");
    }
    outside_its_network(findings, pair, spot("pair.vip"));
}

/// A prefix length is there to be compared: most often one of the two addresses is mistyped.
fn outside_its_network(findings: &Findings<'_>, pair: &Pair, spot: &super::reader::Spot) {
    for vip in &pair.vips {
        let network = vip.prefix.and_then(|prefix| ipnet::IpNet::new(vip.address, prefix).ok());
        let Some(network) = network else { continue };
        let alike = pair.nodes.iter().filter(|node| node.address.is_ipv4() == vip.address.is_ipv4());
        for node in alike.filter(|node| !network.contains(&node.address)) {
            let message = format!("{vip} is in another network than {}, the address of {}", node.address, node.name);
            findings.note(Severity::Warning, spot, message, "compare the two");
        }
    }
}

/// Version 2's password in `file`.
///
/// # Errors
/// As [`super::read_key`]; or it is longer than 8 bytes.
pub fn read_password(file: &Path) -> Result<Password, super::SecretError> {
    let text = super::read_key(file)?;
    if text.len() > PASSWORD_BYTES_MAX {
        let what = format!("the password in {} is longer than {PASSWORD_BYTES_MAX} bytes", file.display());
        return Err(super::SecretError { what, fix: "shorten it, on both nodes".to_owned() });
    }
    Ok(Password::new(&text))
}

/// The pair's key in `file`: 32 bytes in base64.
///
/// # Errors
/// As [`super::read_key`]; or it is no such key.
pub fn read_pair_key(file: &Path) -> Result<[u8; 32], super::SecretError> {
    use base64::Engine;
    let text = super::read_key(file)?;
    let key = base64::engine::general_purpose::STANDARD.decode(&text).ok().and_then(|key| key.try_into().ok());
    key.ok_or_else(|| super::SecretError {
        what: format!("{} does not hold 32 bytes in base64", file.display()),
        fix: format!("write one and copy it to the other node: head -c 32 /dev/urandom | base64 > {}", file.display()),
    })
}
