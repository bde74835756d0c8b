//! What the parser noticed about a message, as a set with names.

/// What the parser noticed about one message: the flags that are not the envelope's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes(u16);

impl Notes {
    /// Nothing to note.
    pub const NONE: Notes = Notes(0);
    /// A byte order mark stood before the priority.
    pub const BOM_STRIPPED: Notes = Notes(1);
    /// An octet count stood in the message.
    pub const UNEXPECTED_FRAMING: Notes = Notes(1 << 1);
    /// No priority; 13 was assumed.
    pub const PRI_MISSING: Notes = Notes(1 << 2);
    /// No valid priority; 13 was assumed and nothing else was read.
    pub const PRI_INVALID: Notes = Notes(1 << 3);
    /// No timestamp.
    pub const TIMESTAMP_MISSING: Notes = Notes(1 << 4);
    /// The timestamp is no date or no time of day.
    pub const TIMESTAMP_INVALID: Notes = Notes(1 << 5);
    /// The device told its uptime instead of the time.
    pub const TIMESTAMP_UPTIME: Notes = Notes(1 << 6);
    /// The time was in seconds since the epoch.
    pub const TIMESTAMP_EPOCH: Notes = Notes(1 << 7);
    /// The device says that its clock is not synchronised.
    pub const CLOCK_UNSYNCED: Notes = Notes(1 << 8);
    /// The zone word is not known; the input's zone was applied.
    pub const TZ_UNKNOWN: Notes = Notes(1 << 9);
    /// A sequence number of Cisco stood before the time.
    pub const CISCO_SEQ: Notes = Notes(1 << 10);
    /// The structured data is malformed; it is part of the text.
    pub const SD_INVALID: Notes = Notes(1 << 11);
    /// The RFC 5424 header ends early; what is behind the host is part of the text.
    pub const RFC5424_PARTIAL: Notes = Notes(1 << 12);
    /// The text is not UTF-8.
    pub const MSG_NOT_UTF8: Notes = Notes(1 << 13);

    const NAMES: [(Notes, &'static str); 14] = [
        (Notes::BOM_STRIPPED, "bom_stripped"),
        (Notes::UNEXPECTED_FRAMING, "unexpected_framing"),
        (Notes::PRI_MISSING, "pri_missing"),
        (Notes::PRI_INVALID, "pri_invalid"),
        (Notes::TIMESTAMP_MISSING, "timestamp_missing"),
        (Notes::TIMESTAMP_INVALID, "timestamp_invalid"),
        (Notes::TIMESTAMP_UPTIME, "timestamp_uptime"),
        (Notes::TIMESTAMP_EPOCH, "timestamp_epoch"),
        (Notes::CLOCK_UNSYNCED, "clock_unsynced"),
        (Notes::TZ_UNKNOWN, "tz_unknown"),
        (Notes::CISCO_SEQ, "cisco_seq"),
        (Notes::SD_INVALID, "sd_invalid"),
        (Notes::RFC5424_PARTIAL, "rfc5424_partial"),
        (Notes::MSG_NOT_UTF8, "msg_not_utf8"),
    ];

    /// Whether every note of `other` is set.
    #[must_use]
    pub fn contains(self, other: Notes) -> bool {
        self.0 & other.0 == other.0
    }

    /// Adds the notes of `other`.
    pub fn insert(&mut self, other: Notes) {
        self.0 |= other.0;
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The notes' names as they stand in JSON.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Notes::NAMES.into_iter().filter(move |(note, _)| self.contains(*note)).map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_note_has_its_name() {
        let all = Notes(u16::MAX >> 2);
        assert_eq!(all.names().count(), 14);
        assert_eq!(Notes::CISCO_SEQ.names().collect::<Vec<_>>(), ["cisco_seq"]);
    }
}
