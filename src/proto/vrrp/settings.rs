//! What makes a virtual router: its settings, checked once.

use std::net::IpAddr;
use std::time::Duration;

use thiserror::Error;

use super::interval::Interval;
use super::vip_list::VipList;
use super::{Family, Priority, Version, Vrid};

/// What a virtual router is, until the configuration changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Which election.
    pub vrid: Vrid,
    /// How often a master advertises; also the version.
    pub interval: Interval,
    /// The router's priority at the start.
    pub priority: Priority,
    /// Whether to take the place of a master with lower priority.
    pub preempt: bool,
    /// How long to let it be master first, from its first advertisement on. Zero: a master down interval all the same.
    pub preempt_delay: Duration,
    /// One or two families; the first decides ties.
    pub members: Vec<Member>,
}

/// The virtual router in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Where our advertisements come from: the interface's primary address, over IPv6 its link-local one.
    pub address: IpAddr,
    /// Where the other nodes' come from, as far as known.
    pub peers: Vec<IpAddr>,
    /// The addresses that the master holds.
    pub vips: VipList,
}

/// Settings that are no virtual router.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum InvalidSettings {
    /// None, or one family twice.
    #[error("a virtual router has one or two families")]
    Members,
    /// An address of one family beside virtual addresses of the other.
    #[error("the node's address {0} and its virtual addresses are of two families")]
    Family(IpAddr),
    /// Version 2 is older than VRRP for IPv6.
    #[error("version 2 has no IPv6")]
    Version2OverIpv6,
    /// Priority 0 is no priority to start with.
    #[error("a router starts with a priority of 1 to 255")]
    Priority,
}

impl Settings {
    pub(super) fn check(&self) -> Result<(), InvalidSettings> {
        match &self.members[..] {
            [_] => {}
            [first, second] if Family::of(first.address) != Family::of(second.address) => {}
            _ => return Err(InvalidSettings::Members),
        }
        if let Some(member) = self.members.iter().find(|member| Family::of(member.address) != member.vips.family()) {
            return Err(InvalidSettings::Family(member.address));
        }
        if self.interval.version() == Version::V2 && self.member(Family::V6).is_some() {
            return Err(InvalidSettings::Version2OverIpv6);
        }
        if self.priority == Priority::LEAVING {
            return Err(InvalidSettings::Priority);
        }
        Ok(())
    }

    /// The virtual router in `family`.
    pub(super) fn member(&self, family: Family) -> Option<&Member> {
        self.members.iter().find(|member| Family::of(member.address) == family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(address: &str, vip: &str) -> Member {
        let vips = VipList::new(&[vip.parse().unwrap()]).unwrap();
        Member { address: address.parse().unwrap(), peers: Vec::new(), vips }
    }

    fn check(version: Version, priority: u8, members: Vec<Member>) -> Result<(), InvalidSettings> {
        let settings = Settings {
            vrid: Vrid::new(77).unwrap(),
            interval: Interval::new(version, Duration::from_secs(1)).unwrap(),
            priority: Priority(priority),
            preempt: false,
            preempt_delay: Duration::ZERO,
            members,
        };
        settings.check()
    }

    #[test]
    fn settings_that_are_no_virtual_router_are_refused() {
        let v4 = || member("10.77.0.1", "10.77.0.100");
        let v6 = || member("fe80::1", "fd77::100");
        assert_eq!(check(Version::V3, 100, vec![v4(), v6()]), Ok(()));
        assert_eq!(check(Version::V2, 255, vec![v4()]), Ok(()));
        assert_eq!(check(Version::V3, 100, vec![]), Err(InvalidSettings::Members));
        assert_eq!(check(Version::V3, 100, vec![v4(), v4()]), Err(InvalidSettings::Members));
        let mixed = member("10.77.0.1", "fd77::100");
        assert_eq!(check(Version::V3, 100, vec![mixed]), Err(InvalidSettings::Family([10, 77, 0, 1].into())));
        assert_eq!(check(Version::V2, 100, vec![v4(), v6()]), Err(InvalidSettings::Version2OverIpv6));
        assert_eq!(check(Version::V3, 0, vec![v4()]), Err(InvalidSettings::Priority));
    }
}
