//! The frames that announce an address, and advertisements, made here from the RFCs and not by the code under test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where advertisements go over IPv4 (RFC 9568, 5.1.1.2).
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);

/// A gratuitous ARP request (RFC 5227, 3), or an unsolicited neighbor advertisement with the override flag (RFC 4861,
/// 7.2.6).
pub fn announcement(address: IpAddr, mac: [u8; 6]) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp(1, mac, address, [0xff; 6], address),
        IpAddr::V6(address) => neighbor_advertisement(address, mac),
    }
}

/// An ARP packet to everybody.
pub fn arp(operation: u16, mac: [u8; 6], sender: Ipv4Addr, asked: [u8; 6], target: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(mac);
    frame.extend(sender.octets());
    frame.extend(asked);
    frame.extend(target.octets());
    frame
}

fn neighbor_advertisement(address: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac);
    let pseudo_header =
        [&address.octets()[..], &all_nodes.octets(), &[0, 0, 0, message.len() as u8, 0, 0, 0, 58]].concat();
    let sum = checksum(&[pseudo_header, message.clone()].concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 1];
    frame.extend(mac);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, message.len() as u8, 58, 255]);
    frame.extend(address.octets());
    frame.extend(all_nodes.octets());
    frame.extend(message);
    frame
}

/// An advertisement of version 3 over IPv4 as it should be (RFC 9568, 5.1.1, 5.2), from `source` to the group.
pub fn advertisement(source: Ipv4Addr, vrid: u8, priority: u8, centiseconds: u8, vip: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![0x31, vrid, priority, 1, 0, centiseconds, 0, 0];
    message.extend(vip.octets());
    sum_up(source, &mut message);
    message
}

/// Gives a message of version 3 over IPv4 the right checksum (RFC 9568, 5.2.8).
pub fn sum_up(source: Ipv4Addr, message: &mut [u8]) {
    message[6..8].fill(0);
    let pseudo_header = [&source.octets()[..], &GROUP.octets(), &[0, 112, 0, message.len() as u8]].concat();
    let sum = checksum(&[&pseudo_header, &*message].concat());
    message[6..8].copy_from_slice(&sum.to_be_bytes());
}

/// A VRRP message in an IPv4 packet to the group, in a frame.
pub fn to_the_group(mac: [u8; 6], source: Ipv4Addr, ttl: u8, message: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0xc0, 0, 20 + message.len() as u8, 0, 0, 0, 0, ttl, 112, 0, 0];
    header.extend(source.octets());
    header.extend(GROUP.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&[1, 0, 0x5e, 0, 0, 18][..], &mac, &[8, 0], &header, message].concat()
}

/// RFC 1071; an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}
