//! VRRP: two or three routers on one LAN elect the one that holds the virtual addresses.
//!
//! ```text
//! IP packet ──datagram──▶ Datagram ──advertisement──▶ Advertisement ──virtual_router──▶ Output ──▶ advertisement, frames
//! ```
//!
//! The *master* advertises itself to a multicast group; a *backup* that hears nothing for a *master down interval* takes
//! its place. Higher priority wins, then the higher address. RFC 9568, which says *active* for a master, is version 3 and
//! obsoletes RFC 5798; operators, keepalived and every MIB say master, and *active* is a role of our nodes. Version 2 is
//! RFC 3768, its simple password RFC 2338.
//!
//! Bytes and times go in, values come out; nobody here opens a socket. What follows differs from the RFCs on purpose:
//!
//! | RFC | here | because |
//! | --- | --- | --- |
//! | version 2: another interval or list is dropped | obeyed and reported | a change rolled out node by node would make two masters |
//! | a master that gives way is silent | it sends one last advertisement | the winner announces the addresses; else the LAN sends to the loser until its ARP entries age |
//! | priority 0 counts, whoever sends it | only that of the master that was last heard | a master that gave way would start a third router |
//! | priority 0 means: wait for the skew time | not if the sender is the only peer there is | the skew orders several backups, and here is one |
//! | without preemption a lower priority stays master | not priority 1: that one asks to be relieved | a node with a full journal must not serve, and must if nobody else can |
//! | nothing but silence or priority 0 ends a master | the word of its host that the process is dead does too | a killed process cannot say that it leaves |
//! | an owner hears nobody (3768; erratum 8298 of 9568) | owners are ordered by address | two owners by mistake would both be masters |
//! | a late timer is a timer | whoever is late by two intervals listens first | a resumed virtual machine would steal the addresses |
//! | IPv4 and IPv6 are two virtual routers | one election carries both | they move together, and cannot be apart for a moment |
//!
//! Not here: authentication header (RFC 2338's type 2), virtual MAC addresses, accept mode (we always accept).

pub mod advertisement;
pub mod announcement;
pub mod datagram;
pub mod interval;
pub mod rejection;
pub mod settings;
pub mod vip_list;
pub mod virtual_router;
mod wire;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU8;
use std::ops::Add;
use std::time::Duration;

/// IP protocol number. RFC 9568, 5.1.1.4.
pub const PROTOCOL: u8 = 112;
/// TTL and hop limit of every advertisement: no router has forwarded it. RFC 9568, 5.1.1.3.
pub const HOP_LIMIT: u8 = 255;
/// Where advertisements go over IPv4. RFC 9568, 5.1.1.2.
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
/// Where advertisements go over IPv6. RFC 9568, 5.1.2.2.
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);

/// Version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// RFC 3768: IPv4, whole seconds, maybe a password.
    V2,
    /// RFC 9568: IPv4 and IPv6, centiseconds.
    V3,
}

/// Address family: each has its own group, lists and checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `address`.
    #[must_use]
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The multicast group of advertisements.
    #[must_use]
    pub fn group(self) -> IpAddr {
        match self {
            Family::V4 => GROUP_V4.into(),
            Family::V6 => GROUP_V6.into(),
        }
    }
}

/// Virtual router identifier, 1 to 255: one election on a LAN. RFC 9568, 5.2.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vrid(NonZeroU8);

impl Vrid {
    /// An identifier; `None` for 0.
    #[must_use]
    pub fn new(number: u8) -> Option<Vrid> {
        NonZeroU8::new(number).map(Vrid)
    }

    /// The number on the wire.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0.get()
    }
}

impl fmt::Display for Vrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How much a router wants to be master; the highest wins. RFC 9568, 5.2.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(pub u8);

impl Priority {
    /// "I am leaving": another may take over after its skew time.
    pub const LEAVING: Priority = Priority(0);
    /// "Take it if you can": a master that holds the addresses only while nobody better does. Any higher priority takes
    /// its place, also without preemption and its delay.
    pub const YIELDING: Priority = Priority(1);
    /// What a backup has unless somebody says otherwise.
    pub const DEFAULT: Priority = Priority(100);
    /// The router whose own addresses the virtual ones are: master without listening first.
    pub const OWNER: Priority = Priority(255);
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A moment, as the time since the host's boot, sleep included: `CLOCK_BOOTTIME`.
///
/// Not an `Instant`, whose clock stands still while the host sleeps: it would not show a stall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootTime(pub Duration);

impl BootTime {
    /// Time from `earlier` to this moment; zero if `earlier` is in fact later.
    #[must_use]
    pub fn since(self, earlier: BootTime) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for BootTime {
    type Output = BootTime;

    fn add(self, time: Duration) -> BootTime {
        BootTime(self.0.saturating_add(time))
    }
}
