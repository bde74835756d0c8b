//! Why an advertisement is not listened to, and what is strange about one that is.

/// Why a received packet changes nothing. All of them are the sender's fault, or another pair's business: count, go on.
///
/// The order is that of the checks (RFC 9568, 7.1; RFC 3768, 7.1): a packet with two faults has the first of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rejection {
    /// The IP header is none, or is that of another protocol or of a fragment.
    IpHeader,
    /// A router forwarded it, or somebody far away made it: TTL or hop limit is not 255.
    Ttl,
    /// Another version than the one in use, or version 2 over IPv6.
    Version,
    /// Another packet type; only 1 is defined.
    Type,
    /// Shorter than its fixed fields, addresses and authentication. So is CARP, which has the same protocol number and
    /// first byte as version 2.
    Truncated,
    /// Bytes behind its end: keepalived 2.4's `auth_hmac`, or version 2's authentication in version 3.
    Trailing,
    /// It carries no address. RFC 9568, 5.2.5.
    NoAddress,
    /// The checksum is wrong in every form.
    Checksum,
    /// Another virtual router on the same LAN. Nothing is wrong with that.
    Vrid,
    /// Version 2: another type of authentication than the one in use.
    AuthType,
    /// Version 2: another password.
    Password,
    /// An interval of 0, with which a backup would take over at once (RFC 9568, erratum 8301).
    Interval,
    /// It came over a family in which the virtual router has no address.
    Family,
    /// It comes from our own address: our own packet, looped back, or another host with our address.
    OwnAddress,
    /// Another pair uses our VRID: no node of ours, and not one of our addresses.
    Foreign,
}

impl Rejection {
    /// Every reason, in the order of the checks, for counters that exist before the first packet.
    pub const ALL: [Rejection; 15] = [
        Rejection::IpHeader,
        Rejection::Ttl,
        Rejection::Version,
        Rejection::Type,
        Rejection::Truncated,
        Rejection::Trailing,
        Rejection::NoAddress,
        Rejection::Checksum,
        Rejection::Vrid,
        Rejection::AuthType,
        Rejection::Password,
        Rejection::Interval,
        Rejection::Family,
        Rejection::OwnAddress,
        Rejection::Foreign,
    ];

    /// The reason's name in metrics and `status`; never changes.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Rejection::IpHeader => "ip_header",
            Rejection::Ttl => "ttl",
            Rejection::Version => "version",
            Rejection::Type => "type",
            Rejection::Truncated => "truncated",
            Rejection::Trailing => "trailing",
            Rejection::NoAddress => "no_address",
            Rejection::Checksum => "checksum",
            Rejection::Vrid => "vrid",
            Rejection::AuthType => "auth_type",
            Rejection::Password => "password",
            Rejection::Interval => "interval",
            Rejection::Family => "family",
            Rejection::OwnAddress => "own_address",
            Rejection::Foreign => "foreign",
        }
    }
}

/// What an advertisement of our own virtual router says that our configuration does not. It is obeyed all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Another interval.
    pub interval: bool,
    /// Other virtual addresses.
    pub vip_list: bool,
    /// A sender that is no node of the pair, where these are known.
    pub sender: bool,
}

impl Differences {
    /// The differences' names in metrics and `status`; they never change.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let all = [(self.interval, "interval_differs"), (self.vip_list, "vip_list"), (self.sender, "unknown_sender")];
        all.into_iter().filter(|(differs, _)| *differs).map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_stand_in_the_order_of_the_checks_under_names_of_their_own() {
        assert!(Rejection::ALL.is_sorted());
        let mut names = Rejection::ALL.map(Rejection::as_str).to_vec();
        names.extend(Differences { interval: true, vip_list: true, sender: true }.names());
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
