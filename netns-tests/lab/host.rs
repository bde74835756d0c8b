//! A host: a network namespace with one cable.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use serde_json::Value;
use twinlog::sys::netlink::{Interface, Netlink};

use super::namespace::Namespace;
use super::{Program, succeed, wait_until};

/// A host of a [`super::Switch`].
pub struct Host {
    /// Its name, which is also that of its port.
    pub name: &'static str,
    number: u8,
    namespace: Namespace,
}

impl Host {
    pub(super) fn new(name: &'static str, number: u8) -> Host {
        Host { name, number, namespace: Namespace::new() }
    }

    pub(super) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(super) fn number(&self) -> u8 {
        self.number
    }

    /// Gives the cable that was just plugged in its addresses.
    #[track_caller]
    pub(super) fn come_up(&self) {
        // Or no IPv6 address, the link-local one included, would be usable for the first second.
        self.set("net/ipv6/conf/eth0/accept_dad", "0");
        self.ip("link set lo up");
        self.ip("link set eth0 up");
        self.ip(&format!("address add {}/24 dev eth0", self.v4()));
        self.ip(&format!("address add {}/64 dev eth0 nodad", self.v6()));
        wait_until("the link-local address is there", || {
            let addresses = self.netlink().addresses(Some(self.eth0().index)).unwrap();
            addresses.iter().any(|address| address.address == IpAddr::V6(self.link_local()) && !address.is_tentative)
        });
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(203, 0, 113, self.number)
    }

    /// Its global IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, self.number.into())
    }

    /// Its link-local address, made of its MAC.
    pub fn link_local(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x00ff, 0xfe00, self.number.into())
    }

    /// The MAC of its `eth0`.
    pub fn mac(&self) -> [u8; 6] {
        [2, 0, 0, 0, 0, self.number]
    }

    /// Runs `visit` there. What `visit` opens or starts stays there.
    pub fn visit<T>(&self, visit: impl FnOnce() -> T) -> T {
        self.namespace.visit(visit)
    }

    /// A connection to its kernel.
    #[track_caller]
    pub fn netlink(&self) -> Netlink {
        self.visit(Netlink::open).unwrap()
    }

    /// Its `eth0`, as it is now.
    #[track_caller]
    pub fn eth0(&self) -> Interface {
        self.netlink().interface("eth0").unwrap().expect("every host has one")
    }

    /// Its `lo`, as it is now.
    #[track_caller]
    pub fn lo(&self) -> Interface {
        self.netlink().interface("lo").unwrap().expect("every host has one")
    }

    /// Starts a program there; it is killed with the value.
    #[track_caller]
    pub fn start<'a>(&self, program: &str, arguments: impl IntoIterator<Item = &'a str>) -> Program {
        self.visit(|| Program::start(program, arguments))
    }

    /// Runs `ip` there to its end, with these arguments, and returns what it wrote.
    #[track_caller]
    pub fn ip(&self, arguments: &str) -> String {
        self.visit(|| succeed(Command::new("ip").args(arguments.split(' '))))
    }

    /// The MAC by which it reaches a neighbour; `None` if it does not know.
    #[track_caller]
    pub fn neighbor(&self, address: IpAddr) -> Option<[u8; 6]> {
        let entries: Value =
            serde_json::from_str(&self.ip(&format!("-j neighbor show to {address} dev eth0"))).unwrap();
        let text = entries[0]["lladdr"].as_str()?.to_owned();
        let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        bytes.try_into().ok()
    }

    /// Which of its addresses the kernel would use towards `address`.
    #[track_caller]
    pub fn source_towards(&self, address: IpAddr) -> IpAddr {
        let route: Value = serde_json::from_str(&self.ip(&format!("-j route get {address}"))).unwrap();
        route[0]["prefsrc"].as_str().expect("a source").parse().unwrap()
    }

    /// Sets a kernel parameter: a path below `/proc/sys`.
    #[track_caller]
    pub fn set(&self, parameter: &str, value: &str) {
        self.visit(|| std::fs::write(format!("/proc/sys/{parameter}"), value)).unwrap();
    }
}
