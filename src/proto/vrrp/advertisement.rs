//! Advertisements: what a master says, of either version, over either family.
//!
//! The header is drawn in `wire.rs`. What is covered by the checksum differs:
//!
//! | version, family | checksum |
//! | --- | --- |
//! | 2 | the message, with the eight bytes of authentication |
//! | 3, IPv4 | RFC 5798 and keepalived: with a pseudo-header; RFC 9568 (5.2.8): without. Both are accepted |
//! | 3, IPv6 | with the IPv6 pseudo-header |

use std::net::{IpAddr, Ipv4Addr};

use pnet_packet::ip::IpNextHeaderProtocols::Vrrp;
use pnet_packet::util;

use super::datagram::Datagram;
use super::interval::{Centiseconds, Interval, Seconds};
use super::rejection::Rejection;
use super::vip_list::VipList;
use super::wire::{
    AUTH_LEN, CHECKSUM_WORD, HEADER_LEN, MutableVrrpV2Packet, MutableVrrpV3Packet, TYPE_ADVERTISEMENT, VrrpV2Packet,
    VrrpV3Packet,
};
use super::{Family, HOP_LIMIT, Priority, Version, Vrid};

/// No authentication. RFC 3768, 5.3.6.
const AUTH_NONE: u8 = 0;
/// A password in clear. RFC 2338, 5.3.6.
const AUTH_PASSWORD: u8 = 1;

/// What a master says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// Which election.
    pub vrid: Vrid,
    /// Its priority; 0 when it leaves.
    pub priority: Priority,
    /// When it will speak again; also the version.
    pub interval: Interval,
    /// The addresses it holds; also the family.
    pub vips: VipList,
}

/// A simple password of version 2: eight bytes, in clear on the wire. It keeps out neighbours that are misconfigured, not
/// those that are ill-willed. Not shown by `Debug`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Password([u8; AUTH_LEN]);

/// Which of the two sums a sender of version 3 puts over IPv4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ChecksumForm {
    /// With a pseudo-header: RFC 5798, and the only one that keepalived 2.2.7 takes.
    #[default]
    PseudoHeader,
    /// Over the message alone: RFC 9568.
    MessageOnly,
}

/// What both nodes of a pair agree on beside the standard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dialect {
    /// Version 2's password.
    pub password: Option<Password>,
    /// The sum to send in version 3 over IPv4; either is understood.
    pub checksum: ChecksumForm,
}

/// What is ours among all that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The version in use.
    pub version: Version,
    /// The election.
    pub vrid: Vrid,
    /// Version 2's password.
    pub password: Option<Password>,
}

/// A sound advertisement, and how it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// What it says.
    pub advertisement: Advertisement,
    /// The sum of version 3 over IPv4; `None` where there is but one.
    pub checksum: Option<ChecksumForm>,
}

impl Password {
    /// The password's first eight bytes, with zeros behind, as keepalived does it.
    #[must_use]
    pub fn new(text: &[u8]) -> Password {
        let mut bytes = [0; AUTH_LEN];
        bytes.iter_mut().zip(text).for_each(|(byte, from)| *byte = *from);
        Password(bytes)
    }

    /// Compares all eight bytes, in a time that does not tell how many were right.
    fn matches(&self, bytes: &[u8]) -> bool {
        bytes.len() == AUTH_LEN && self.0.iter().zip(bytes).fold(0, |wrong, (a, b)| wrong | (a ^ b)) == 0
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(…)")
    }
}

impl Advertisement {
    /// The message that says it, with its checksum, to leave from `source` to `destination`.
    ///
    /// Version 2 over IPv6 does not exist; [`Settings`](super::settings::Settings) with both are refused.
    #[must_use]
    pub fn encode(&self, dialect: &Dialect, source: IpAddr, destination: IpAddr) -> Vec<u8> {
        let mut message = vec![0; HEADER_LEN];
        self.vips.write(&mut message);
        match self.interval {
            Interval::V2(seconds) => self.write_v2(seconds, dialect.password, &mut message),
            Interval::V3(centiseconds) => self.write_v3(centiseconds, &mut message),
        }
        let sum = match (self.interval, source, destination, dialect.checksum) {
            (Interval::V3(_), IpAddr::V4(_), IpAddr::V4(_), ChecksumForm::MessageOnly) => sum(&message),
            (Interval::V3(_), ..) => sum_with_pseudo_header(&message, source, destination),
            (Interval::V2(_), ..) => sum(&message),
        };
        message[CHECKSUM_WORD * 2..HEADER_LEN].copy_from_slice(&sum.to_be_bytes());
        message
    }

    fn write_v2(&self, seconds: Seconds, password: Option<Password>, message: &mut Vec<u8>) {
        message.extend_from_slice(&password.map_or([0; AUTH_LEN], |password| password.0));
        let mut header = MutableVrrpV2Packet::new(message).expect("a header's length is there");
        header.set_version(2);
        header.set_kind(TYPE_ADVERTISEMENT);
        header.set_vrid(self.vrid.get());
        header.set_priority(self.priority.0);
        header.set_count(self.vips.count());
        header.set_auth_type(if password.is_some() { AUTH_PASSWORD } else { AUTH_NONE });
        header.set_seconds(seconds.get());
    }

    fn write_v3(&self, centiseconds: Centiseconds, message: &mut [u8]) {
        let mut header = MutableVrrpV3Packet::new(message).expect("a header's length is there");
        header.set_version(3);
        header.set_kind(TYPE_ADVERTISEMENT);
        header.set_vrid(self.vrid.get());
        header.set_priority(self.priority.0);
        header.set_count(self.vips.count());
        header.set_centiseconds(centiseconds.get());
    }

    /// Reads and judges a datagram in the RFCs' order, with what is `expected` or, to look at a strange LAN, anything.
    ///
    /// What only the virtual router can judge (own and foreign addresses) is left to
    /// [`handle_advertisement`](super::virtual_router::VirtualRouter::handle_advertisement).
    pub fn decode(datagram: &Datagram<'_>, expected: Option<&Expected>) -> Result<Received, Rejection> {
        if datagram.hop_limit != HOP_LIMIT {
            return Err(Rejection::Ttl);
        }
        let message = datagram.message;
        let family = Family::of(datagram.source);
        let version = match message.first().map(|byte| byte >> 4) {
            Some(2) if family == Family::V4 => Version::V2,
            Some(3) => Version::V3,
            Some(_) => return Err(Rejection::Version),
            None => return Err(Rejection::Truncated),
        };
        if expected.is_some_and(|expected| expected.version != version) {
            return Err(Rejection::Version);
        }
        if message[0] & 0xf != TYPE_ADVERTISEMENT {
            return Err(Rejection::Type);
        }
        match version {
            Version::V2 => decode_v2(datagram, expected),
            Version::V3 => decode_v3(datagram, expected),
        }
    }
}

fn decode_v2(datagram: &Datagram<'_>, expected: Option<&Expected>) -> Result<Received, Rejection> {
    let message = datagram.message;
    let header = VrrpV2Packet::new(message).ok_or(Rejection::Truncated)?;
    let addresses = addresses(message, header.get_count(), Family::V4, AUTH_LEN)?;
    if !equal(header.get_checksum(), sum(message)) {
        return Err(Rejection::Checksum);
    }
    let vrid = vrid(header.get_vrid(), expected)?;
    if let Some(expected) = expected {
        authenticate(header.get_auth_type(), &message[message.len() - AUTH_LEN..], expected.password)?;
    }
    let interval = Seconds::new(header.get_seconds()).map(Interval::V2).ok_or(Rejection::Interval)?;
    let vips = VipList::read(Family::V4, addresses).map_err(|_| Rejection::NoAddress)?;
    let advertisement = Advertisement { vrid, priority: Priority(header.get_priority()), interval, vips };
    Ok(Received { advertisement, checksum: None })
}

fn decode_v3(datagram: &Datagram<'_>, expected: Option<&Expected>) -> Result<Received, Rejection> {
    let Datagram { source, destination, message, .. } = *datagram;
    let family = Family::of(source);
    let header = VrrpV3Packet::new(message).ok_or(Rejection::Truncated)?;
    let addresses = addresses(message, header.get_count(), family, 0)?;
    let checksum = match header.get_checksum() {
        found if equal(found, sum_with_pseudo_header(message, source, destination)) => ChecksumForm::PseudoHeader,
        found if family == Family::V4 && equal(found, sum(message)) => ChecksumForm::MessageOnly,
        _ => return Err(Rejection::Checksum),
    };
    let vrid = vrid(header.get_vrid(), expected)?;
    let interval = Centiseconds::new(header.get_centiseconds()).map(Interval::V3).ok_or(Rejection::Interval)?;
    let vips = VipList::read(family, addresses).map_err(|_| Rejection::NoAddress)?;
    let advertisement = Advertisement { vrid, priority: Priority(header.get_priority()), interval, vips };
    Ok(Received { advertisement, checksum: (family == Family::V4).then_some(checksum) })
}

/// The bytes of `count` addresses, if the message is exactly as long as they and `trailer` bytes ask for.
fn addresses(message: &[u8], count: u8, family: Family, trailer: usize) -> Result<&[u8], Rejection> {
    let size = match family {
        Family::V4 => 4,
        Family::V6 => 16,
    };
    let end = HEADER_LEN + usize::from(count) * size;
    match message.len() {
        length if length < end + trailer => Err(Rejection::Truncated),
        length if length > end + trailer => Err(Rejection::Trailing),
        _ if count == 0 => Err(Rejection::NoAddress),
        _ => Ok(&message[HEADER_LEN..end]),
    }
}

fn vrid(number: u8, expected: Option<&Expected>) -> Result<Vrid, Rejection> {
    let vrid = Vrid::new(number).ok_or(Rejection::Vrid)?;
    if expected.is_some_and(|expected| expected.vrid != vrid) {
        return Err(Rejection::Vrid);
    }
    Ok(vrid)
}

/// Without a password the eight bytes mean nothing and are not looked at. RFC 3768, 5.3.6.1.
fn authenticate(auth_type: u8, data: &[u8], password: Option<Password>) -> Result<(), Rejection> {
    match (auth_type, password) {
        (AUTH_NONE, None) => Ok(()),
        (AUTH_PASSWORD, Some(password)) if password.matches(data) => Ok(()),
        (AUTH_PASSWORD, Some(_)) => Err(Rejection::Password),
        _ => Err(Rejection::AuthType),
    }
}

/// In ones' complement 0xffff is zero too, and some send it.
fn equal(found: u16, right: u16) -> bool {
    found == right || (found == u16::MAX && right == 0)
}

/// Over the message alone.
fn sum(message: &[u8]) -> u16 {
    util::checksum(message, CHECKSUM_WORD)
}

fn sum_with_pseudo_header(message: &[u8], source: IpAddr, destination: IpAddr) -> u16 {
    match (source, destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            util::ipv6_checksum(message, CHECKSUM_WORD, &[], &source, &destination, Vrrp)
        }
        (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4_sum(message, source, destination),
        // No packet has both families, and no sum would be right.
        _ => !sum(message),
    }
}

fn ipv4_sum(message: &[u8], source: Ipv4Addr, destination: Ipv4Addr) -> u16 {
    util::ipv4_checksum(message, CHECKSUM_WORD, &[], &source, &destination, Vrrp)
}

#[cfg(test)]
#[path = "advertisement_tests.rs"]
mod tests;
