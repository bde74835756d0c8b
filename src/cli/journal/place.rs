//! A place in a journal as people name it: a position, a message's id, or a time.

use std::str::FromStr;

use chrono::DateTime;

use crate::proto::batch::Batch;
use crate::proto::envelope::{Envelope, Timestamp};
use crate::proto::position::{JournalId, Position};

/// A place in a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A position.
    Position(Position),
    /// The position of a message of this journal: `NODE/INCARNATION`.
    Id(String, Position),
    /// When messages were received.
    Time(Timestamp),
}

impl Place {
    /// Whether a message stands before this place.
    pub(super) fn is_after(&self, envelope: &Envelope<'_>) -> bool {
        match self {
            Place::Position(position) | Place::Id(_, position) => envelope.position < *position,
            Place::Time(time) => envelope.origin.received_at < *time,
        }
    }

    /// Whether every message of a batch stands before this place.
    pub(super) fn is_after_all_of(&self, batch: &Batch) -> bool {
        match self {
            Place::Position(position) | Place::Id(_, position) => batch.end().position <= *position,
            Place::Time(time) => batch.last_received() < *time,
        }
    }

    /// Where to begin, if that is known.
    pub(super) fn position(&self) -> Option<Position> {
        match self {
            Place::Position(position) | Place::Id(_, position) => Some(*position),
            Place::Time(_) => None,
        }
    }

    /// That it is a place in this journal.
    pub(super) fn must_be_in(&self, journal: &JournalId) -> anyhow::Result<()> {
        match self {
            Place::Id(other, _) if *other != journal.to_string() => {
                anyhow::bail!("that message is of journal {other}, this is {journal}")
            }
            _ => Ok(()),
        }
    }
}

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Place, &'static str> {
        const HELP: &str = "a place is a position (8123), a message's id (agg-a/19aa3f0/8123) or a time \
                            (2026-03-10T11:00:00Z)";
        if let Some((journal, position)) = text.rsplit_once('/') {
            // An event of a forward chunk is found with its chunk.
            let position = position.split_once('.').map_or(position, |(chunk, _)| chunk);
            let position = position.parse().map_err(|_| HELP)?;
            return Ok(Place::Id(journal.to_owned(), Position(position)));
        }
        if let Ok(position) = text.parse() {
            return Ok(Place::Position(Position(position)));
        }
        let time = DateTime::parse_from_rfc3339(text).map_err(|_| HELP)?;
        let nanos = time.timestamp_nanos_opt().and_then(|nanos| u64::try_from(nanos).ok());
        nanos.map(|nanos| Place::Time(Timestamp(nanos))).ok_or(HELP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_positions_ids_or_times() {
        assert_eq!("8123".parse(), Ok(Place::Position(Position(8123))));
        assert_eq!("agg-a/19aa3f0/8123".parse(), Ok(Place::Id("agg-a/19aa3f0".into(), Position(8123))));
        assert_eq!("agg-a/19aa3f0/8123.7".parse(), Ok(Place::Id("agg-a/19aa3f0".into(), Position(8123))));
        assert_eq!("1970-01-01T01:00:01+01:00".parse(), Ok(Place::Time(Timestamp(1_000_000_000))));
        for bad in ["", "yesterday", "a/b/c", "-1", "2026-03-10"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }
}
