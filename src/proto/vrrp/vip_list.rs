//! The virtual addresses of one family, as an advertisement carries them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use thiserror::Error;

use super::Family;

/// 1 to 255 virtual addresses of one family, in the order of the configuration. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VipList(Arc<[IpAddr]>);

/// Addresses that no advertisement can carry.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum InvalidVipList {
    /// None at all, or more than the count's eight bits say. RFC 9568, 5.2.5.
    #[error("an advertisement carries 1 to 255 virtual addresses, not {0}")]
    Count(usize),
    /// IPv4 and IPv6 in one list.
    #[error("an advertisement carries virtual addresses of one family")]
    Mixed,
}

impl VipList {
    /// A list of `addresses`, duplicates and all: what a peer sends is kept as it is.
    pub fn new(addresses: &[IpAddr]) -> Result<VipList, InvalidVipList> {
        if addresses.is_empty() || addresses.len() > usize::from(u8::MAX) {
            return Err(InvalidVipList::Count(addresses.len()));
        }
        if addresses.iter().any(|address| Family::of(*address) != Family::of(addresses[0])) {
            return Err(InvalidVipList::Mixed);
        }
        Ok(VipList(addresses.into()))
    }

    /// Reads the addresses of `family` in `bytes`, without a rest.
    pub(super) fn read(family: Family, bytes: &[u8]) -> Result<VipList, InvalidVipList> {
        let addresses: Vec<IpAddr> = match family {
            Family::V4 => bytes.as_chunks().0.iter().map(|octets: &[u8; 4]| Ipv4Addr::from(*octets).into()).collect(),
            Family::V6 => bytes.as_chunks().0.iter().map(|octets: &[u8; 16]| Ipv6Addr::from(*octets).into()).collect(),
        };
        VipList::new(&addresses)
    }

    /// Appends the addresses as they stand in an advertisement.
    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        for address in self.iter() {
            match address {
                IpAddr::V4(address) => bytes.extend_from_slice(&address.octets()),
                IpAddr::V6(address) => bytes.extend_from_slice(&address.octets()),
            }
        }
    }

    /// The family of all of them.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.0[0])
    }

    /// How many, as the count of an advertisement.
    #[must_use]
    pub fn count(&self) -> u8 {
        self.0.len() as u8
    }

    /// The addresses, in order.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.0.iter().copied()
    }

    /// Whether both name the same addresses, in whatever order: implementations sort differently.
    #[must_use]
    pub fn same_addresses(&self, other: &VipList) -> bool {
        let contains = |list: &VipList, address| list.0.contains(&address);
        self.iter().all(|address| contains(other, address)) && other.iter().all(|address| contains(self, address))
    }

    /// Whether both claim an address.
    #[must_use]
    pub fn overlaps(&self, other: &VipList) -> bool {
        self.iter().any(|address| other.0.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(addresses: &[&str]) -> Result<VipList, InvalidVipList> {
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        VipList::new(&addresses)
    }

    #[test]
    fn a_list_is_one_family_and_fits_the_count() {
        assert_eq!(list(&[]), Err(InvalidVipList::Count(0)));
        assert_eq!(list(&["192.0.2.1"; 256]), Err(InvalidVipList::Count(256)));
        assert_eq!(list(&["192.0.2.1", "2001:db8::1"]), Err(InvalidVipList::Mixed));
        assert_eq!(list(&["192.0.2.1"; 255]).unwrap().count(), 255);
    }

    #[test]
    fn order_does_not_matter() {
        let [ab, ba, a] = [&["192.0.2.1", "192.0.2.2"][..], &["192.0.2.2", "192.0.2.1"], &["192.0.2.1"]]
            .map(|addresses| list(addresses).unwrap());
        assert!(ab.same_addresses(&ba) && !ab.same_addresses(&a) && !a.same_addresses(&ab));
        assert!(ab.overlaps(&a) && !a.overlaps(&list(&["192.0.2.3"]).unwrap()));
    }
}
