//! What the nodes say of live TCP connections that move with the addresses.
//!
//! ```text
//! old owner                      new owner
//! Ask                        →
//!                            ←   Answer            the addresses are on its `lo`, or why not
//! Connection, one for each   →                     rebuilt, silent
//! Whole                      →
//!                            ←   Ready             how many are rebuilt; the address moves now, by the election
//! ```
//!
//! Whoever has the addresses has the connections: the new owner lets them live when it has become master, the old one drops
//! its own when it is not any more. Up to there the old owner can take them back, and says [`Move::Abandon`]. Every attempt
//! has a number, so that an answer to an earlier one counts for nothing.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::message::CONTROL_BYTES_MAX;
use crate::proto::syslog::framing::Standing;
use crate::proto::tcp_image::Image;

/// How long rebuilt connections wait for the addresses. Shorter than an old owner waits for a master before it takes them
/// back: nobody has them twice.
pub const KEPT_FOR: Duration = Duration::from_secs(1);
/// Most connections that move at once: what both nodes hold in memory meanwhile, some 64 KiB each at worst.
pub const CONNECTIONS_MAX: usize = 20_000;

/// The number of an attempt.
pub type Attempt = u64;

/// What is said. See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Move {
    /// Whether the other node takes connections, and makes ready for them.
    Ask {
        /// Which attempt.
        attempt: Attempt,
    },
    /// It does, or not.
    Answer {
        /// To which attempt.
        attempt: Attempt,
        /// Why not.
        refused: Option<String>,
    },
    /// One connection.
    Connection {
        /// In which attempt.
        attempt: Attempt,
        /// Which.
        connection: Moving,
    },
    /// That were all.
    Whole {
        /// Of which attempt.
        attempt: Attempt,
        /// How many.
        connections: u32,
    },
    /// They can live as soon as the addresses are there.
    Ready {
        /// Of which attempt.
        attempt: Attempt,
        /// All but these, by number.
        failed: Vec<u32>,
    },
    /// The old owner goes on with them.
    Abandon {
        /// Which attempt.
        attempt: Attempt,
    },
}

/// A connection of plain TCP syslog, as it is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moving {
    /// Its number among those of the old owner.
    pub number: u32,
    /// Its [`Image`], encoded.
    pub image: Bytes,
    /// What was read and makes no whole message yet.
    pub rest: Bytes,
    /// Where the search for messages stands.
    pub standing: Standing,
}

impl Moving {
    /// A connection that can be sent; `None` if it is too large for a message, as one that holds the begin of a huge
    /// message.
    #[must_use]
    pub fn new(number: u32, image: &Image, rest: Vec<u8>, standing: Standing) -> Option<Moving> {
        let mut bytes = Vec::new();
        image.encode(&mut bytes);
        // What stands around it is far less than a kilobyte.
        (bytes.len() + rest.len() < CONTROL_BYTES_MAX - 1024).then_some(Moving {
            number,
            image: bytes.into(),
            rest: rest.into(),
            standing,
        })
    }
}
