//! Listening to a LAN for a while: which masters there are, and what each says of itself.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::proto::vrrp::advertisement::Advertisement;
use crate::proto::vrrp::datagram::Datagram;
use crate::proto::vrrp::rejection::Rejection;
use crate::sys::netlink::Interface;
use crate::sys::vrrp_socket::{PACKET_BYTES, VrrpSocket};

/// Senders kept at most: a LAN has 255 elections of each family, and a hostile one must not take all memory.
const SENDERS_MAX: usize = 1024;

/// The newest advertisement of one sender for one election; or why what it sends is none.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) source: IpAddr,
    /// Whether it went to the multicast group.
    pub(super) to_group: bool,
    pub(super) said: Result<Advertisement, Rejection>,
}

impl Heard {
    fn is_same(&self, other: &Heard) -> bool {
        let vrid = |heard: &Heard| heard.said.as_ref().ok().map(|said| said.vrid);
        self.source == other.source && vrid(self) == vrid(other)
    }
}

/// Hears what masters say on an interface, over IPv4 and IPv6, for so long. What this host sends is not heard.
///
/// # Errors
/// What the system says: `EPERM` without `CAP_NET_RAW`.
pub(super) fn listen(interface: &Interface, time: Duration) -> io::Result<Vec<Heard>> {
    let v4 = VrrpSocket::v4(&interface.name, interface.index, None)?;
    // A host may have no IPv6 at all.
    let v6 = VrrpSocket::v6(&interface.name, interface.index, None).ok();
    let sockets: Vec<VrrpSocket> = std::iter::once(v4).chain(v6).collect();
    let (deadline, mut buffer, mut heard) = (Instant::now() + time, vec![0; PACKET_BYTES], Vec::new());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(heard);
        }
        let mut polled: Vec<PollFd<'_>> =
            sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        // Rounded up, or the last millisecond would be spent asking.
        let wait = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, wait) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        for socket in &sockets {
            while let Some(received) = socket.receive(&mut buffer)? {
                let (begin, end) = (received.begin, received.end);
                let datagram = Datagram {
                    hop_limit: received.ttl,
                    ..Datagram::new(received.source, received.destination, &buffer[begin..end])
                };
                let said = Advertisement::decode(&datagram, None).map(|received| received.advertisement);
                let to_group = received.destination.is_multicast();
                note(&mut heard, Heard { source: received.source, to_group, said });
            }
        }
    }
}

fn note(heard: &mut Vec<Heard>, new: Heard) {
    match heard.iter().position(|old| old.is_same(&new)) {
        Some(at) => heard[at] = new,
        None if heard.len() < SENDERS_MAX => heard.push(new),
        None => {}
    }
}

/// The election nearest to `wanted` that nobody on the LAN uses; the same if nobody uses that.
pub(super) fn free_vrid(heard: &[Heard], wanted: u8) -> Option<u8> {
    let used = |vrid: &u8| heard.iter().flat_map(|heard| &heard.said).any(|said| said.vrid.get() == *vrid);
    (wanted..=u8::MAX).chain(1..wanted).find(|vrid| *vrid > 0 && !used(vrid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::vrrp::interval::Interval;
    use crate::proto::vrrp::vip_list::VipList;
    use crate::proto::vrrp::{Priority, Version, Vrid};

    fn heard(vrid: u8) -> Heard {
        let vip = IpAddr::from([192, 0, 2, 10]);
        let said = Advertisement {
            vrid: Vrid::new(vrid).unwrap(),
            priority: Priority::DEFAULT,
            interval: Interval::new(Version::V3, Duration::from_secs(1)).unwrap(),
            vips: VipList::new(&[vip]).unwrap(),
        };
        Heard { source: [192, 0, 2, 1].into(), to_group: true, said: Ok(said) }
    }

    #[test]
    fn the_next_election_that_nobody_uses_is_proposed() {
        let used = [heard(51), heard(52), heard(255)];
        assert_eq!(free_vrid(&used, 50), Some(50));
        assert_eq!(free_vrid(&used, 51), Some(53));
        assert_eq!(free_vrid(&used, 255), Some(1), "after the last comes the first");
        let all: Vec<Heard> = (1..=255).map(heard).collect();
        assert_eq!(free_vrid(&all, 7), None);
    }

    #[test]
    fn a_sender_is_kept_once_for_each_election() {
        let mut all = Vec::new();
        [heard(51), heard(52), heard(51)].into_iter().for_each(|one| note(&mut all, one));
        assert_eq!(all.len(), 2);
    }
}
