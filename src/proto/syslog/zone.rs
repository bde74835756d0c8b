//! The zone of timestamps that do not name theirs.
//!
//! Most BSD timestamps are local time. An input's `timezone` says which: a fixed offset, or a name of the IANA
//! database when the devices keep summer time. The database is compiled in: nothing is read while parsing.
//! `"local"` is not known here; the configuration turns it into the machine's zone name.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Offset, TimeDelta, TimeZone};
use thiserror::Error;

/// A time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// Always this many seconds east of Greenwich.
    Offset(i32),
    /// As the IANA database says.
    Named(chrono_tz::Tz),
}

impl Default for Zone {
    fn default() -> Zone {
        Zone::UTC
    }
}

impl Zone {
    /// Universal time.
    pub const UTC: Zone = Zone::Offset(0);

    /// Turns seconds of local time, counted as if they were UTC, into seconds since the epoch.
    ///
    /// The hour that a clock shows twice in autumn is taken for its first time. The hour that it skips in spring is
    /// read with the offset from before the change: such a device has not changed its clock yet.
    #[must_use]
    pub fn to_utc(self, local: i64) -> i64 {
        match self {
            Zone::Offset(east) => local - i64::from(east),
            Zone::Named(zone) => local - named_offset(zone, local).unwrap_or(0),
        }
    }
}

fn named_offset(zone: chrono_tz::Tz, local: i64) -> Option<i64> {
    let shown = DateTime::from_timestamp(local, 0)?.naive_utc();
    let before = shown.checked_sub_signed(TimeDelta::hours(3))?;
    let offset = zone.offset_from_local_datetime(&shown).earliest();
    let offset = offset.or_else(|| zone.offset_from_local_datetime(&before).earliest())?;
    Some(i64::from(offset.fix().local_minus_utc()))
}

/// A text that names no time zone.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("no time zone {0:?}: use \"UTC\", an offset like \"+02:00\" or a name like \"Europe/Berlin\"")]
pub struct InvalidZone(pub String);

impl FromStr for Zone {
    type Err = InvalidZone;

    fn from_str(text: &str) -> Result<Zone, InvalidZone> {
        if text.eq_ignore_ascii_case("utc") || text.eq_ignore_ascii_case("z") {
            return Ok(Zone::UTC);
        }
        if let Some((Some(east), end)) = super::timestamp::numeric_zone(text.as_bytes())
            && end == text.len()
        {
            return Ok(Zone::Offset(east));
        }
        text.parse().map(Zone::Named).map_err(|_| InvalidZone(text.to_owned()))
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Zone::Offset(0) => f.write_str("UTC"),
            Zone::Offset(east) => {
                let sign = if *east < 0 { '-' } else { '+' };
                write!(f, "{sign}{:02}:{:02}", east.abs() / 3600, east.abs() / 60 % 60)
            }
            Zone::Named(zone) => f.write_str(zone.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_names_are_read_and_shown() {
        for (text, shown) in [
            ("UTC", "UTC"),
            ("z", "UTC"),
            ("+02:00", "+02:00"),
            ("-0330", "-03:30"),
            ("Europe/Berlin", "Europe/Berlin"),
        ] {
            assert_eq!(text.parse::<Zone>().unwrap().to_string(), shown);
        }
        for bad in ["", "local", "+2", "+25:00", "Europe/Bonn", "02:00"] {
            assert!(bad.parse::<Zone>().is_err(), "{bad}");
        }
    }

    #[test]
    fn summer_time_is_applied_and_its_edges_are_decided() {
        let berlin: Zone = "Europe/Berlin".parse().unwrap();
        let at = |text: &str| chrono::NaiveDateTime::parse_from_str(text, "%F %T").unwrap().and_utc().timestamp();
        assert_eq!(berlin.to_utc(at("2026-01-10 12:00:00")), at("2026-01-10 11:00:00"));
        assert_eq!(berlin.to_utc(at("2026-07-10 12:00:00")), at("2026-07-10 10:00:00"));
        assert_eq!(berlin.to_utc(at("2026-03-29 02:30:00")), at("2026-03-29 01:30:00"), "skipped in spring");
        assert_eq!(berlin.to_utc(at("2026-10-25 02:30:00")), at("2026-10-25 00:30:00"), "shown twice in autumn");
    }
}
