//! The IP packet around a VRRP message: what raw sockets of IPv4 and packet sockets give and take whole.
//!
//! A raw socket of IPv6 gives the message alone; source, destination and hop limit come beside it, and a [`Datagram`] is
//! filled in by hand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pnet_base::MacAddr;
use pnet_packet::Packet;
use pnet_packet::ethernet::{EtherType, EtherTypes, MutableEthernetPacket};
use pnet_packet::ip::IpNextHeaderProtocols::Vrrp;
use pnet_packet::ipv4::{self, Ipv4Packet, MutableIpv4Packet};
use pnet_packet::ipv6::{Ipv6Packet, MutableIpv6Packet};

use super::rejection::Rejection;
use super::{Family, HOP_LIMIT};

const ETHERNET_HEADER_LEN: usize = 14;
const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
/// "Internetwork control", as keepalived marks it: switches keep such packets under load. DSCP 48, the two ECN bits 0.
const DSCP_NETWORK_CONTROL: u8 = 48;
/// The same, as IPv6 has it.
const TRAFFIC_CLASS_NETWORK_CONTROL: u8 = DSCP_NETWORK_CONTROL << 2;
/// Fragment offset 0, more fragments 0: a whole datagram.
const MORE_FRAGMENTS: u8 = 1;

/// A message and what its IP header said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// The sender.
    pub source: IpAddr,
    /// A group, or this node.
    pub destination: IpAddr,
    /// TTL or hop limit at arrival.
    pub hop_limit: u8,
    /// The VRRP message, unjudged.
    pub message: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Reads an IPv4 packet, as a raw socket gives it. Options are skipped; the kernel has checked the header's sum.
    pub fn from_ipv4(packet: &'a [u8]) -> Result<Datagram<'a>, Rejection> {
        let header = Ipv4Packet::new(packet).ok_or(Rejection::IpHeader)?;
        let (header_len, total_len) = (usize::from(header.get_header_length()) * 4, header.get_total_length().into());
        let whole = header.get_flags() & MORE_FRAGMENTS == 0 && header.get_fragment_offset() == 0;
        let ours = header.get_version() == 4 && header.get_next_level_protocol() == Vrrp;
        if !ours || !whole || header_len < IPV4_HEADER_LEN {
            return Err(Rejection::IpHeader);
        }
        Ok(Datagram {
            source: header.get_source().into(),
            destination: header.get_destination().into(),
            hop_limit: header.get_ttl(),
            message: packet.get(header_len..total_len).ok_or(Rejection::IpHeader)?,
        })
    }

    /// Reads an IPv6 packet, as a packet socket gives it. An advertisement has no extension headers (RFC 9568, 5.1.2).
    pub fn from_ipv6(packet: &'a [u8]) -> Result<Datagram<'a>, Rejection> {
        let header = Ipv6Packet::new(packet).ok_or(Rejection::IpHeader)?;
        if header.get_version() != 6 || header.get_next_header() != Vrrp {
            return Err(Rejection::IpHeader);
        }
        let end = IPV6_HEADER_LEN + usize::from(header.get_payload_length());
        Ok(Datagram {
            source: header.get_source().into(),
            destination: header.get_destination().into(),
            hop_limit: header.get_hop_limit(),
            message: packet.get(IPV6_HEADER_LEN..end).ok_or(Rejection::IpHeader)?,
        })
    }

    /// A message that is about to leave.
    #[must_use]
    pub fn new(source: IpAddr, destination: IpAddr, message: &'a [u8]) -> Datagram<'a> {
        Datagram { source, destination, hop_limit: HOP_LIMIT, message }
    }

    /// The whole IP packet. `identification` is IPv4's, which tells fragments of two packets apart: any counter.
    ///
    /// `None` if source and destination are of two families, or the message is longer than a packet.
    #[must_use]
    pub fn to_packet(&self, identification: u16) -> Option<Vec<u8>> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.ipv4_packet(source, destination, identification),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.ipv6_packet(source, destination),
            _ => None,
        }
    }

    fn ipv4_packet(&self, source: Ipv4Addr, destination: Ipv4Addr, identification: u16) -> Option<Vec<u8>> {
        let total_len = u16::try_from(IPV4_HEADER_LEN + self.message.len()).ok()?;
        let mut packet = MutableIpv4Packet::owned(vec![0; total_len.into()])?;
        packet.set_version(4);
        packet.set_header_length(5);
        packet.set_dscp(DSCP_NETWORK_CONTROL);
        packet.set_total_length(total_len);
        packet.set_identification(identification);
        packet.set_ttl(self.hop_limit);
        packet.set_next_level_protocol(Vrrp);
        packet.set_source(source);
        packet.set_destination(destination);
        packet.set_payload(self.message);
        packet.set_checksum(ipv4::checksum(&packet.to_immutable()));
        Some(packet.packet().to_vec())
    }

    fn ipv6_packet(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Option<Vec<u8>> {
        let payload_len = u16::try_from(self.message.len()).ok()?;
        let mut packet = MutableIpv6Packet::owned(vec![0; IPV6_HEADER_LEN + self.message.len()])?;
        packet.set_version(6);
        packet.set_traffic_class(TRAFFIC_CLASS_NETWORK_CONTROL);
        packet.set_payload_length(payload_len);
        packet.set_next_header(Vrrp);
        packet.set_hop_limit(self.hop_limit);
        packet.set_source(source);
        packet.set_destination(destination);
        packet.set_payload(self.message);
        Some(packet.packet().to_vec())
    }
}

/// The Ethernet address of a family's group: RFC 1112, 6.4; RFC 2464, 7.
#[must_use]
pub fn group_mac(family: Family) -> MacAddr {
    match family {
        Family::V4 => MacAddr(0x01, 0x00, 0x5e, 0x00, 0x00, 0x12),
        Family::V6 => MacAddr(0x33, 0x33, 0x00, 0x00, 0x00, 0x12),
    }
}

/// An IP packet of `family` in an Ethernet frame, without the checksum at its end, which the device adds.
#[must_use]
pub fn frame(source: MacAddr, destination: MacAddr, family: Family, packet: &[u8]) -> Vec<u8> {
    let kind = match family {
        Family::V4 => EtherTypes::Ipv4,
        Family::V6 => EtherTypes::Ipv6,
    };
    ethernet_frame(source, destination, kind, packet)
}

/// A frame of any `kind`.
pub(super) fn ethernet_frame(source: MacAddr, destination: MacAddr, kind: EtherType, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; ETHERNET_HEADER_LEN + payload.len()];
    let mut frame = MutableEthernetPacket::new(&mut bytes).expect("a header's length is there");
    frame.set_source(source);
    frame.set_destination(destination);
    frame.set_ethertype(kind);
    frame.set_payload(payload);
    bytes
}
