//! Bytes that keepalived 2.2.7 sent (`tests/fixtures/vrrp`), and what must not be taken for an advertisement.

use super::*;
use crate::proto::vrrp::announcement::MacAddr;
use crate::proto::vrrp::datagram::{frame, group_mac};

const CAPTURED: &str = include_str!("../../../tests/fixtures/vrrp/captured.txt");

/// The frame of the line that begins with `name`.
fn captured(name: &str) -> Vec<u8> {
    let line = CAPTURED.lines().find_map(|line| line.split_once('\t').filter(|(what, _)| *what == name));
    unhex(line.unwrap_or_else(|| panic!("no {name}")).1)
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| byte.is_ascii_hexdigit()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn datagram(frame: &[u8]) -> Datagram<'_> {
    match frame[12..14] {
        [0x08, 0x00] => Datagram::from_ipv4(&frame[14..]).unwrap(),
        _ => Datagram::from_ipv6(&frame[14..]).unwrap(),
    }
}

fn vips(addresses: &[&str]) -> VipList {
    let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    VipList::new(&addresses).unwrap()
}

fn v2(seconds: u8) -> Interval {
    Interval::V2(Seconds::new(seconds).unwrap())
}

fn v3(centiseconds: u16) -> Interval {
    Interval::V3(Centiseconds::new(centiseconds).unwrap())
}

fn advertisement(interval: Interval, priority: u8, addresses: &[&str]) -> Advertisement {
    Advertisement { vrid: Vrid::new(77).unwrap(), priority: Priority(priority), interval, vips: vips(addresses) }
}

fn expected(version: Version, password: Option<&[u8]>) -> Expected {
    Expected { version, vrid: Vrid::new(77).unwrap(), password: password.map(Password::new) }
}

/// The datagrams of each dialect that keepalived speaks, with what reads them.
fn dialects() -> Vec<(Vec<u8>, Expected)> {
    let v2_password = expected(Version::V2, Some(b"s3cr3t"));
    let [v2, v3] = [Version::V2, Version::V3].map(|version| expected(version, None));
    vec![
        (captured("v2 password, advertisement"), v2_password),
        (captured("v2 two addresses, advertisement"), v2),
        (captured("v3 ipv4, advertisement"), v3),
        (captured("v3 ipv6, advertisement"), v3),
    ]
}

#[test]
fn what_keepalived_sends_is_read_and_written_to_the_last_byte() {
    let password = Some(Password::new(b"s3cr3t"));
    let both = ["10.77.0.100", "10.77.0.101"];
    let six = ["fe80::77:100", "fd77::100"];
    for (name, saying, password) in [
        ("v2 password, advertisement", advertisement(v2(1), 100, &both[..1]), password),
        ("v2 password, leaving", advertisement(v2(1), 0, &both[..1]), password),
        ("v2, advertisement", advertisement(v2(1), 100, &both[..1]), None),
        ("v2 two addresses, advertisement", advertisement(v2(1), 254, &both), None),
        ("v3 ipv4, advertisement", advertisement(v3(50), 100, &both[..1]), None),
        ("v3 ipv4, leaving", advertisement(v3(50), 0, &both[..1]), None),
        ("v3 ipv4 unicast, advertisement", advertisement(v3(50), 100, &both[..1]), None),
        ("v3 ipv6, advertisement", advertisement(v3(50), 100, &six), None),
        ("v3 ipv6, leaving", advertisement(v3(50), 0, &six), None),
    ] {
        let bytes = captured(name);
        let datagram = datagram(&bytes);
        let expected = Expected { version: saying.interval.version(), vrid: saying.vrid, password };
        let received = Advertisement::decode(&datagram, Some(&expected)).unwrap();
        assert_eq!(received.advertisement, saying, "{name}");
        assert_eq!(Advertisement::decode(&datagram, None), Ok(received.clone()), "{name}");
        let dialect = Dialect { password, checksum: received.checksum.unwrap_or_default() };
        assert_eq!(saying.encode(&dialect, datagram.source, datagram.destination), datagram.message, "{name}");
    }
}

#[test]
fn the_whole_frame_is_keepalived_s_too() {
    for name in ["v2 password, advertisement", "v3 ipv4, leaving", "v3 ipv6, advertisement"] {
        let mut bytes = captured(name);
        let identification = u16::from_be_bytes([bytes[18], bytes[19]]);
        let datagram = datagram(&bytes);
        let family = Family::of(datagram.source);
        let packet = Datagram::new(datagram.source, datagram.destination, datagram.message).to_packet(identification);
        let ours = frame(MacAddr(2, 0x77, 0, 0, 0, 2), group_mac(family), family, &packet.unwrap());
        if family == Family::V6 {
            // The flow label is the kernel's, random for each socket.
            bytes[15] &= 0xf0;
            bytes[16..18].fill(0);
        }
        assert_eq!(ours, bytes, "{name}");
    }
}

#[test]
fn both_sums_of_version_3_over_ipv4_are_taken() {
    let saying = advertisement(v3(50), 100, &["10.77.0.100"]);
    let [source, group]: [IpAddr; 2] = ["10.77.0.2", "224.0.0.18"].map(|address| address.parse().unwrap());
    for (checksum, sum) in [(ChecksumForm::PseudoHeader, [0x74, 0xf0]), (ChecksumForm::MessageOnly, [0x5f, 0xce])] {
        let message = saying.encode(&Dialect { password: None, checksum }, source, group);
        assert_eq!(message[6..8], sum);
        let received = Advertisement::decode(&Datagram::new(source, group, &message), None);
        assert_eq!(received, Ok(Received { advertisement: saying.clone(), checksum: Some(checksum) }));
    }
}

#[test]
fn over_ipv6_only_the_sum_with_the_pseudo_header_is_right() {
    let mut bytes = captured("v3 ipv6, advertisement");
    bytes[14 + 40 + 6..14 + 40 + 8].copy_from_slice(&[0x6c, 0x0e]);
    assert_eq!(Advertisement::decode(&datagram(&bytes), None), Err(Rejection::Checksum));
}

#[test]
fn every_truncation_is_refused() {
    for (bytes, expected) in dialects() {
        let whole = datagram(&bytes);
        for length in 0..whole.message.len() {
            let cut = Datagram { message: &whole.message[..length], ..whole };
            let outcome = Advertisement::decode(&cut, Some(&expected));
            assert_eq!(outcome, Err(Rejection::Truncated), "{length} bytes");
        }
    }
}

/// A sum of 16-bit words sees every single bit; so nothing that is wrong in one gets through, except what the reserved
/// bits of version 3 would say if the sum agreed.
#[test]
fn every_flipped_bit_is_refused() {
    for (bytes, expected) in dialects() {
        let whole = datagram(&bytes);
        for bit in 0..whole.message.len() * 8 {
            let mut message = whole.message.to_vec();
            message[bit / 8] ^= 1 << (bit % 8);
            let flipped = Datagram { message: &message, ..whole };
            assert!(Advertisement::decode(&flipped, Some(&expected)).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn headers_cut_or_flipped_are_refused_or_change_nothing_of_the_message() {
    for (bytes, _) in dialects() {
        let (packet, whole) = (&bytes[14..], datagram(&bytes));
        let read = |packet: &[u8]| match whole.source {
            IpAddr::V4(_) => Datagram::from_ipv4(packet).map(|datagram| datagram.message.to_vec()),
            IpAddr::V6(_) => Datagram::from_ipv6(packet).map(|datagram| datagram.message.to_vec()),
        };
        for length in 0..packet.len() {
            assert_eq!(read(&packet[..length]), Err(Rejection::IpHeader), "{length} bytes");
        }
        for bit in 0..(packet.len() - whole.message.len()) * 8 {
            let mut packet = packet.to_vec();
            packet[bit / 8] ^= 1 << (bit % 8);
            let message = read(&packet).unwrap_or_default();
            assert!(whole.message.starts_with(&message) || whole.message.ends_with(&message), "bit {bit}");
        }
    }
}

/// `message` with its checksum made right, read by a router of version `version`, VRID 77, without a password.
fn verdict(version: Version, mut message: Vec<u8>) -> Result<Received, Rejection> {
    let sum = sum(&message);
    message[6..8].copy_from_slice(&sum.to_be_bytes());
    let datagram = Datagram::new([10, 77, 0, 2].into(), [224, 0, 0, 18].into(), &message);
    Advertisement::decode(&datagram, Some(&expected(version, None)))
}

#[test]
fn what_version_3_refuses_has_a_name() {
    let sound = unhex("314d6401 0032 0000 0a4d0064");
    let with = |at: usize, byte: u8| {
        let mut message = sound.clone();
        message[at] = byte;
        verdict(Version::V3, message).map(|received| received.advertisement.priority)
    };
    assert_eq!(with(0, 0x31), Ok(Priority(100)));
    assert_eq!(with(0, 0x21), Err(Rejection::Version));
    assert_eq!(with(0, 0x41), Err(Rejection::Version));
    assert_eq!(with(0, 0x32), Err(Rejection::Type));
    assert_eq!(with(1, 78), Err(Rejection::Vrid));
    assert_eq!(with(1, 0), Err(Rejection::Vrid));
    assert_eq!(with(3, 2), Err(Rejection::Truncated));
    assert_eq!(with(3, 0), Err(Rejection::Trailing));
    assert_eq!(with(4, 0xf0), Ok(Priority(100)), "reserved bits are ignored");
    assert_eq!(with(5, 0), Err(Rejection::Interval));
    assert_eq!(verdict(Version::V3, unhex("314d6400 0032 0000")), Err(Rejection::NoAddress));
    let with_authentication = [&sound[..], &[0; 8]].concat();
    assert_eq!(verdict(Version::V3, with_authentication), Err(Rejection::Trailing));
    let with_hmac_trailer = [&sound[..], &[1; 28]].concat();
    assert_eq!(verdict(Version::V3, with_hmac_trailer), Err(Rejection::Trailing));
}

#[test]
fn what_version_2_refuses_has_a_name() {
    let sound = unhex("214d6401 0001 0000 0a4d0064 0000000000000000");
    let with = |at: usize, byte: u8| {
        let mut message = sound.clone();
        message[at] = byte;
        verdict(Version::V2, message).map(|received| received.advertisement.interval)
    };
    assert_eq!(with(0, 0x21), Ok(v2(1)));
    assert_eq!(with(0, 0x31), Err(Rejection::Version));
    assert_eq!(with(4, 1), Err(Rejection::AuthType));
    assert_eq!(with(4, 2), Err(Rejection::AuthType));
    assert_eq!(with(5, 0), Err(Rejection::Interval));
    assert_eq!(with(5, 2), Ok(v2(2)), "another interval is the virtual router's matter");
    assert_eq!(with(15, 9), Ok(v2(1)), "authentication data without authentication means nothing");
    assert_eq!(verdict(Version::V2, sound[..12].to_vec()), Err(Rejection::Truncated));
    assert_eq!(verdict(Version::V2, [&sound[..], &[0; 4]].concat()), Err(Rejection::Trailing));
    let over_ipv6 = Datagram::new("fe80::2".parse().unwrap(), Family::V6.group(), &sound);
    assert_eq!(Advertisement::decode(&over_ipv6, None), Err(Rejection::Version));
}

#[test]
fn all_eight_bytes_of_a_password_count() {
    let bytes = captured("v2 password, advertisement");
    let judge = |password: Option<&[u8]>| {
        Advertisement::decode(&datagram(&bytes), Some(&expected(Version::V2, password))).map(|_| ())
    };
    assert_eq!(judge(Some(b"s3cr3t")), Ok(()));
    assert_eq!(judge(Some(b"s3cr3t\0\0ignored")), Ok(()), "longer ones are cut");
    assert_eq!(judge(Some(b"s3cr3")), Err(Rejection::Password));
    assert_eq!(judge(Some(b"s3cr3t-8")), Err(Rejection::Password));
    assert_eq!(judge(None), Err(Rejection::AuthType));
    assert!(!format!("{:?}", Password::new(b"s3cr3t")).contains("s3"));
}

#[test]
fn forwarded_packets_are_refused_first() {
    let bytes = captured("v3 ipv4, advertisement");
    for hop_limit in [254, 1, 0] {
        let mut far = datagram(&bytes);
        far.hop_limit = hop_limit;
        far.message = &far.message[..3];
        assert_eq!(Advertisement::decode(&far, None), Err(Rejection::Ttl));
    }
}

/// CARP: the same protocol number, group and first byte; 36 bytes, of which the fourth is 7.
#[test]
fn carp_is_no_advertisement() {
    let mut carp = unhex("21 4d 64 07 00 01 0000");
    carp.resize(36, 0x5a);
    assert_eq!(verdict(Version::V2, carp.clone()), Err(Rejection::Truncated));
    assert_eq!(verdict(Version::V3, carp), Err(Rejection::Version));
}
