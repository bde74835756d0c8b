//! Positions: where a byte stands in a journal, and how far each promise has come.
//!
//! A journal is one endless stream of bytes, written by one node for as long as that node's disk lives. A
//! [`Position`] is an offset in it; a [`Mark`] is a position together with the number of messages before it, so that a
//! lag is told in bytes and in messages by two subtractions. Positions of different journals are never compared.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Byte offset in a journal's endless stream. Never reused, never rewound; the difference of two is a number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position(pub u64);

impl Position {
    /// The begin of every journal.
    pub const ZERO: Position = Position(0);

    /// The position `bytes` further on.
    #[must_use]
    pub fn advance(self, bytes: u64) -> Position {
        Position(self.0 + bytes)
    }

    /// Bytes between `earlier` and this position; 0 if `earlier` is in fact later.
    #[must_use]
    pub fn bytes_since(self, earlier: Position) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A position and the number of messages before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// Where.
    pub position: Position,
    /// How many messages the journal has had before that place.
    pub ordinal: u64,
}

impl Mark {
    /// Messages between `earlier` and this mark.
    #[must_use]
    pub fn messages_since(self, earlier: Mark) -> u64 {
        self.ordinal.saturating_sub(earlier.ordinal)
    }
}

/// The name of a node: 1 to 64 ASCII letters, digits, `.`, `-` or `_`, so that it can stand in an id, a file and a label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(Arc<str>);

/// Longest node name, in bytes.
pub const NODE_NAME_MAX: usize = 64;

/// A text that is no node name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("a node name has 1 to 64 letters, digits, '.', '-' or '_', not {0:?}")]
pub struct InvalidNodeName(pub String);

impl NodeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = InvalidNodeName;

    fn from_str(text: &str) -> Result<NodeName, InvalidNodeName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if text.is_empty() || text.len() > NODE_NAME_MAX || !text.bytes().all(allowed) {
            return Err(InvalidNodeName(text.to_owned()));
        }
        Ok(NodeName(text.into()))
    }
}

impl TryFrom<String> for NodeName {
    type Error = InvalidNodeName;

    fn try_from(text: String) -> Result<NodeName, InvalidNodeName> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> String {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One life of a node's disk: milliseconds since the epoch when the journal was made, shown in hexadecimal.
///
/// A node whose disk was wiped starts a new incarnation, so that a position never means two different messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// Which journal: the node that writes it, and the life of that node's disk. Positions compare only within one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JournalId {
    /// The one node that ever writes it.
    pub node: NodeName,
    /// Which life of that node's disk.
    pub incarnation: Incarnation,
}

impl fmt::Display for JournalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.incarnation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_its_node_and_its_incarnation_in_hexadecimal() {
        let journal = JournalId { node: "agg-a".parse().unwrap(), incarnation: Incarnation(0x19a_a3f0) };
        assert_eq!(journal.to_string(), "agg-a/19aa3f0");
    }

    #[test]
    fn node_names_that_could_break_an_id_are_refused() {
        for bad in ["", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
        }
        assert!("agg-a.example_1".parse::<NodeName>().is_ok());
    }
}
