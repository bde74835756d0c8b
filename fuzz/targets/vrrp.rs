//! VRRP: whatever a LAN sends, and whatever order it comes in.
//!
//! Input: a byte that says what follows. 0: an IPv4 packet, 1: an IPv6 packet, 2 and 3: a message over either with its
//! checksum made right, else: steps of a history of one virtual router. What is read must be written again the same,
//! and no history may make a master that does not know it.

use std::net::IpAddr;
use std::time::Duration;

use twinlog::proto::vrrp::advertisement::{Advertisement, ChecksumForm, Dialect, Expected};
use twinlog::proto::vrrp::datagram::Datagram;
use twinlog::proto::vrrp::interval::{Centiseconds, Interval};
use twinlog::proto::vrrp::settings::{Member, Settings};
use twinlog::proto::vrrp::vip_list::VipList;
use twinlog::proto::vrrp::virtual_router::{Output, State, VirtualRouter};
use twinlog::proto::vrrp::{BootTime, Family, Priority, Version, Vrid};

/// One input.
pub fn run(data: &[u8]) {
    let [kind, rest @ ..] = data else { return };
    match kind {
        0 => drop(Datagram::from_ipv4(rest).map(|datagram| decode(&datagram))),
        1 => drop(Datagram::from_ipv6(rest).map(|datagram| decode(&datagram))),
        2 => decode(&Datagram::new([10, 77, 0, 2].into(), Family::V4.group(), &sealed(rest))),
        3 => decode_ipv6(rest),
        _ => history(rest),
    }
}

fn decode(datagram: &Datagram<'_>) {
    let ours = Expected { version: Version::V3, vrid: Vrid::new(77).expect("not 0"), password: None };
    let judged = Advertisement::decode(datagram, Some(&ours));
    let Ok(received) = Advertisement::decode(datagram, None) else {
        return assert!(judged.is_err(), "what nobody takes is not ours");
    };
    assert!(judged.is_err() || judged.as_ref() == Ok(&received));
    let saying = received.advertisement;
    let checksum = received.checksum.unwrap_or(ChecksumForm::PseudoHeader);
    let dialect = Dialect { password: None, checksum };
    let message = saying.encode(&dialect, datagram.source, datagram.destination);
    let again = Datagram { message: &message, ..*datagram };
    assert_eq!(message.len(), datagram.message.len());
    assert_eq!(Advertisement::decode(&again, None).map(|received| received.advertisement), Ok(saying));
}

/// A checksum over the message alone keeps nearly all random bytes out.
fn sealed(message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    message.resize(message.len().max(8), 0);
    message[6..8].fill(0);
    let sum = !ones_complement(&message);
    message[6..8].copy_from_slice(&sum.to_be_bytes());
    message
}

fn ones_complement(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let sum = words.fold(0, |sum, word| (sum + word) % 0xffff);
    if sum == 0 && bytes.iter().any(|byte| *byte != 0) { 0xffff } else { sum as u16 }
}

/// Over IPv6 the pseudo-header belongs to the sum: it is as if it stood before the message.
fn decode_ipv6(message: &[u8]) {
    let (source, group): (IpAddr, IpAddr) = ("fe80::2".parse().expect("an address"), Family::V6.group());
    let mut message = sealed(message);
    message[6..8].fill(0);
    let mut summed = Vec::new();
    for address in [source, group] {
        if let IpAddr::V6(address) = address {
            summed.extend_from_slice(&address.octets());
        }
    }
    summed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    summed.extend_from_slice(&[0, 0, 0, 112]);
    summed.extend_from_slice(&message);
    let sum = !ones_complement(&summed);
    message[6..8].copy_from_slice(&sum.to_be_bytes());
    decode(&Datagram::new(source, group, &message));
}

/// Steps of four bytes: what, two that say more, and how many milliseconds to wait first.
fn history(steps: &[u8]) {
    let mut router = router();
    let mut now = BootTime::default();
    let mut master = false;
    for step in steps.chunks_exact(4) {
        now = now + Duration::from_millis(u64::from(step[3]) * 4);
        match step[0] % 8 {
            0 => router.handle_startup(now),
            1 => router.handle_shutdown(),
            2 => router.set_priority(now, Priority(step[1])),
            3 => router.set_preempt(step[1] % 2 == 0),
            _ => hear(&mut router, step[0] / 8, step[1], step[2]),
        }
        router.handle_timeout(now);
        while let Some(output) = router.poll_output() {
            match output {
                Output::BecameMaster(_) => {
                    assert!(!master, "master twice");
                    master = true;
                }
                Output::BecameBackup(_) | Output::BecameInitialize(_) => master = false,
                Output::Announce => assert!(master, "only a master announces"),
                Output::Advertise(_) => {}
            }
        }
        assert_eq!(matches!(router.state(), State::Master { .. }), master);
        assert!(router.poll_timeout().is_none_or(|due| due > now), "what is due is done");
    }
}

fn router() -> VirtualRouter {
    let member = |[node, peer, vip]: [&str; 3]| {
        let [address, peer, vip] = [node, peer, vip].map(|text| text.parse().expect("an address"));
        Member { address, peers: vec![peer], vips: VipList::new(&[vip]).expect("one address") }
    };
    let settings = Settings {
        vrid: Vrid::new(77).expect("not 0"),
        interval: interval(10),
        priority: Priority::DEFAULT,
        preempt: true,
        preempt_delay: Duration::from_millis(500),
        members: vec![member(["10.77.0.5", "10.77.0.2", "10.77.0.100"]), member(["fe80::5", "fe80::2", "fd77::100"])],
    };
    VirtualRouter::new(settings).expect("sound settings")
}

fn interval(centiseconds: u8) -> Interval {
    Interval::V3(Centiseconds::new(u16::from(centiseconds).max(1)).expect("1 to 255"))
}

fn hear(router: &mut VirtualRouter, who: u8, priority: u8, centiseconds: u8) {
    let (source, vip): (IpAddr, IpAddr) = match who % 2 {
        0 => ([10, 77, 0, who].into(), [10, 77, 0, 100].into()),
        _ => (format!("fe80::{who:x}").parse().expect("an address"), "fd77::100".parse().expect("an address")),
    };
    let advertisement = Advertisement {
        vrid: Vrid::new(77).expect("not 0"),
        priority: Priority(priority),
        interval: interval(centiseconds),
        vips: VipList::new(&[vip]).expect("one address"),
    };
    let _ = router.handle_advertisement(source, &advertisement);
}
