//! `match`: which messages an output takes. What a filter does not ask for is not looked at.
//!
//! The entries of a forward frame are taken or left together: they share input, source and tag. To `facility` and
//! `severity_at_least` they are `user.notice`, whatever their records say.

use std::net::IpAddr;

use crate::config::Match;
use crate::proto::envelope::{Envelope, Kind};
use crate::proto::syslog::priority::Priority;

/// A compiled `match` table; every condition that is there must hold.
#[derive(Clone, Debug)]
pub struct Filter(Match);

impl Filter {
    /// The filter of a `match` table.
    #[must_use]
    pub fn new(table: Match) -> Filter {
        Filter(table)
    }

    /// Whether the output takes the message.
    #[must_use]
    pub fn takes(&self, envelope: &Envelope<'_>) -> bool {
        let Match { input, source, facility, severity_at_least, tag } = &self.0;
        if !input.is_empty() && !input.iter().any(|name| name == envelope.origin.input) {
            return false;
        }
        if !source.is_empty() {
            let Some(ip) = envelope.origin.source.map(|source| source.ip()) else { return false };
            if !source.iter().any(|network| network.contains::<&IpAddr>(&ip)) {
                return false;
            }
        }
        if !tag.is_empty() && !tag.iter().any(|pattern| pattern.matches(envelope.origin.tag)) {
            return false;
        }
        if facility.is_empty() && severity_at_least.is_none() {
            return true;
        }
        // An event's record may say otherwise, but to read the records of all would cost more than everything else.
        let priority = match envelope.kind {
            Kind::Syslog => Priority::of(envelope.payload),
            Kind::Forward(_) => Priority::default(),
        };
        let facility_fits = facility.is_empty() || facility.contains(&priority.facility());
        // A lower number is more severe (RFC 5424, table 2).
        facility_fits && severity_at_least.is_none_or(|least| priority.severity() <= least)
    }
}
