//! The switch between the hosts, and what can happen to its cables.

use std::cell::Cell;
use std::process::Command;

use super::namespace::Namespace;
use super::{Host, succeed};

/// A learning bridge without spanning tree or multicast snooping. Its ports have the names of the hosts.
pub struct Switch {
    namespace: Namespace,
    hosts: Cell<u8>,
}

impl Switch {
    /// A switch with no hosts.
    #[track_caller]
    pub fn new() -> Switch {
        let switch = Switch { namespace: Namespace::new(), hosts: Cell::new(0) };
        switch.ip("link add name switch type bridge stp_state 0 forward_delay 0 mcast_snooping 0");
        switch.ip("link set switch up");
        switch
    }

    /// Connects a new host. The Nth one has the addresses `203.0.113.N/24`, `2001:db8::N/64` and the link-local address of
    /// its MAC `02:00:00:00:00:0N`, all usable at once.
    #[track_caller]
    pub fn host(&self, name: &'static str) -> Host {
        let number = self.hosts.get() + 1;
        self.hosts.set(number);
        let host = Host::new(name, number);
        self.connect(&host);
        host
    }

    /// Gives a host that has none its cable: `eth0` with its addresses.
    #[track_caller]
    pub fn connect(&self, host: &Host) {
        let (name, number, theirs) = (host.name, host.number(), host.namespace().path());
        let theirs = theirs.to_str().expect("text");
        self.ip(&format!(
            "link add name {name} type veth peer name eth0 address 02:00:00:00:00:{number:02x} netns {theirs}"
        ));
        self.ip(&format!("link set dev {name} master switch up"));
        host.come_up();
    }

    /// Pulls a host's cable: it sees that its link is down.
    #[track_caller]
    pub fn pull_cable(&self, host: &Host) {
        self.ip(&format!("link set dev {} down", host.name));
    }

    /// Plugs it in again.
    #[track_caller]
    pub fn plug_cable(&self, host: &Host) {
        self.ip(&format!("link set dev {} up", host.name));
    }

    /// The switch forwards nothing to or from a host, which does not see it: its link stays up.
    #[track_caller]
    pub fn disable_port(&self, host: &Host) {
        self.port(host, "state 0");
    }

    /// It forwards again.
    #[track_caller]
    pub fn enable_port(&self, host: &Host) {
        self.port(host, "state 3");
    }

    /// These hosts no longer reach each other; all others still reach them.
    #[track_caller]
    pub fn part(&self, hosts: [&Host; 2]) {
        hosts.into_iter().for_each(|host| self.port(host, "isolated on"));
    }

    /// They reach each other again.
    #[track_caller]
    pub fn heal(&self, hosts: [&Host; 2]) {
        hosts.into_iter().for_each(|host| self.port(host, "isolated off"));
    }

    #[track_caller]
    fn port(&self, host: &Host, change: &str) {
        let arguments = format!("link set dev {} {change}", host.name);
        self.namespace.visit(|| succeed(Command::new("bridge").args(arguments.split(' '))));
    }

    #[track_caller]
    fn ip(&self, arguments: &str) {
        self.namespace.visit(|| succeed(Command::new("ip").args(arguments.split(' '))));
    }
}
