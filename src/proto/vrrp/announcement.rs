//! Announcements: "this address is at this MAC now", to every host of the LAN at once.
//!
//! Gratuitous ARP for IPv4 (RFC 5227, 3), unsolicited neighbour advertisements for IPv6 (RFC 4861, 7.2.6). They change an
//! entry that a host already has and create none, and one may be lost: repeat them, see [`REPEAT_AFTER`]. All of them are
//! whole Ethernet frames without the checksum at the end, for a packet socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

pub use pnet_base::MacAddr;
use pnet_packet::Packet;
use pnet_packet::arp::{ArpHardwareTypes, ArpOperation, ArpOperations, MutableArpPacket};
use pnet_packet::ethernet::EtherTypes;
use pnet_packet::icmpv6::ndp::{MutableNeighborAdvertPacket, NdpOption, NdpOptionTypes, NeighborAdvertFlags};
use pnet_packet::icmpv6::{self, Icmpv6Packet, Icmpv6Types};
use pnet_packet::ip::IpNextHeaderProtocols::Icmpv6;
use pnet_packet::ipv6::MutableIpv6Packet;

use super::HOP_LIMIT;
use super::datagram::ethernet_frame;

/// When to announce after taking over: at once, and at these times after it. Neighbours that missed the first ones, or
/// that ignore a second change within a second (Linux before 4.12), hear a later one.
pub const REPEAT_AFTER: [Duration; 7] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// Every node on the link. RFC 4291, 2.7.1.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Its Ethernet address. RFC 2464, 7.
const ALL_NODES_MAC: MacAddr = MacAddr(0x33, 0x33, 0, 0, 0, 1);
const ARP_LEN: usize = 28;
const IPV6_HEADER_LEN: usize = 40;
/// Header, target, and one option of eight bytes.
const NEIGHBOUR_ADVERTISEMENT_LEN: usize = 24 + 8;

/// The frames that announce `vip` at `mac`: for IPv4 a request and a reply, because some hosts learn from one form only;
/// for IPv6 one. `router` is IPv6's flag: whether the device forwards; a wrong one changes the hosts' default routers.
#[must_use]
pub fn frames(mac: MacAddr, vip: IpAddr, router: bool) -> Vec<Vec<u8>> {
    match vip {
        IpAddr::V4(vip) => vec![arp_request(mac, vip), arp_reply(mac, vip)],
        IpAddr::V6(vip) => vec![neighbour_advertisement(mac, vip, router)],
    }
}

/// Gratuitous ARP as a request for the own address: what keepalived and the kernel send.
#[must_use]
pub fn arp_request(mac: MacAddr, vip: Ipv4Addr) -> Vec<u8> {
    // RFC 5227 wants zeros as the target's MAC; keepalived sends ones, and nobody reads them in a request.
    gratuitous_arp(ArpOperations::Request, mac, vip)
}

/// Gratuitous ARP as a reply to everybody.
#[must_use]
pub fn arp_reply(mac: MacAddr, vip: Ipv4Addr) -> Vec<u8> {
    gratuitous_arp(ArpOperations::Reply, mac, vip)
}

fn gratuitous_arp(operation: ArpOperation, mac: MacAddr, vip: Ipv4Addr) -> Vec<u8> {
    let mut bytes = [0; ARP_LEN];
    let mut arp = MutableArpPacket::new(&mut bytes).expect("ARP has one length");
    arp.set_hardware_type(ArpHardwareTypes::Ethernet);
    arp.set_protocol_type(EtherTypes::Ipv4);
    arp.set_hw_addr_len(6);
    arp.set_proto_addr_len(4);
    arp.set_operation(operation);
    arp.set_sender_hw_addr(mac);
    arp.set_sender_proto_addr(vip);
    arp.set_target_hw_addr(MacAddr::broadcast());
    arp.set_target_proto_addr(vip);
    ethernet_frame(mac, MacAddr::broadcast(), EtherTypes::Arp, &bytes)
}

/// Unsolicited neighbour advertisement from the address itself, with the override flag: hosts replace what they know.
#[must_use]
pub fn neighbour_advertisement(mac: MacAddr, vip: Ipv6Addr, router: bool) -> Vec<u8> {
    let mut message = [0; NEIGHBOUR_ADVERTISEMENT_LEN];
    write_neighbour_advertisement(&mut message, mac, vip, router);
    let mut bytes = [0; IPV6_HEADER_LEN + NEIGHBOUR_ADVERTISEMENT_LEN];
    let mut packet = MutableIpv6Packet::new(&mut bytes).expect("a header's length is there");
    packet.set_version(6);
    packet.set_payload_length(NEIGHBOUR_ADVERTISEMENT_LEN as u16);
    packet.set_next_header(Icmpv6);
    packet.set_hop_limit(HOP_LIMIT);
    packet.set_source(vip);
    packet.set_destination(ALL_NODES);
    packet.set_payload(&message);
    ethernet_frame(mac, ALL_NODES_MAC, EtherTypes::Ipv6, packet.packet())
}

fn write_neighbour_advertisement(message: &mut [u8], mac: MacAddr, vip: Ipv6Addr, router: bool) {
    let flags = NeighborAdvertFlags::Override | if router { NeighborAdvertFlags::Router } else { 0 };
    let mut advertisement = MutableNeighborAdvertPacket::new(message).expect("a header's length is there");
    advertisement.set_icmpv6_type(Icmpv6Types::NeighborAdvert);
    advertisement.set_flags(flags);
    advertisement.set_target_addr(vip);
    let target_link_layer = NdpOption {
        option_type: NdpOptionTypes::TargetLLAddr,
        // In units of eight bytes.
        length: 1,
        data: mac.octets().to_vec(),
    };
    advertisement.set_options(&[target_link_layer]);
    let sum = Icmpv6Packet::new(advertisement.packet()).map(|packet| icmpv6::checksum(&packet, &vip, &ALL_NODES));
    advertisement.set_checksum(sum.expect("a header's length is there"));
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr(0x02, 0x77, 0, 0, 0, 2);

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn gratuitous_arp_is_what_keepalived_sends() {
        let captured = "ffffffffffff0277000000020806000108000604000102770000\
                        00020a4d0064ffffffffffff0a4d0064";
        assert_eq!(hex(&arp_request(MAC, Ipv4Addr::new(10, 77, 0, 100))), captured);
    }

    #[test]
    fn the_reply_form_differs_in_the_operation_alone() {
        let vip = Ipv4Addr::new(10, 77, 0, 100);
        let (request, reply) = (arp_request(MAC, vip), arp_reply(MAC, vip));
        let differing: Vec<usize> = (0..request.len()).filter(|at| request[*at] != reply[*at]).collect();
        assert_eq!((differing, reply[21]), (vec![21], 2));
    }

    #[test]
    fn neighbour_advertisement_is_what_keepalived_sends() {
        let captured = "33330000000102770000000286dd6000000000203afffe800000000000000000000000770100\
                        ff0200000000000000000000000000018800543720000000fe800000000000000000000000770100\
                        0201027700000002";
        let vip = "fe80::77:100".parse().unwrap();
        assert_eq!(hex(&neighbour_advertisement(MAC, vip, false)), captured);
    }

    #[test]
    fn a_forwarding_device_says_so() {
        let vip = "fd77::100".parse().unwrap();
        let frame = neighbour_advertisement(MAC, vip, true);
        assert_eq!(frame[58], 0xa0, "router and override, not solicited");
        let message = Icmpv6Packet::new(&frame[54..]).unwrap();
        assert_eq!(message.get_checksum(), icmpv6::checksum(&message, &vip, &ALL_NODES));
    }

    #[test]
    fn both_forms_of_arp_and_one_neighbour_advertisement_are_sent() {
        assert_eq!(frames(MAC, [10, 77, 0, 100].into(), false).len(), 2);
        assert_eq!(
            frames(MAC, "fd77::100".parse().unwrap(), false),
            [neighbour_advertisement(MAC, "fd77::100".parse().unwrap(), false)]
        );
    }
}
