//! Which of the two nodes delivers which journals: a function of what is known of both, asked whenever something changes.
//!
//! | this node | the other one, over the link | this node delivers |
//! | --- | --- | --- |
//! | standby | – | nothing |
//! | active | no link | its own journal and the mirrors |
//! | active | standby, its outputs have stopped | its own journal and the mirrors |
//! | active | active too: advertisements are lost | its own journal only |
//! | active just now | its outputs may still be sending | nothing yet, for [`PATIENCE`] at most |
//! | active | standby just now, its outputs may still be sending | its own journal only, for [`PATIENCE`] at most |
//!
//! A node that is set aside, by a drain, is out of this table: it leaves everything to the other one, if there is a link to
//! it; without one, nobody says that anybody else delivers what it has.
//!
//! A planned move repeats nothing by the last two rows, nor does a split brain that heals: the last deliveries are known
//! before the first new one. A node that cannot say when it stopped is waited for no longer than [`PATIENCE`]; the price are
//! repeats under equal ids.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::proto::position::Mark;

/// How long a node that has just become active waits for the other's outputs to stop: their grace, 2 s by default, and
/// half as much again.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// What a node delivers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Deliver {
    /// Nothing: the other node does, or nobody yet.
    #[default]
    Nothing,
    /// Its own journal.
    Own,
    /// Its own journal and what it has of the other node's.
    OwnAndMirror,
}

/// What is known of the other node while there is a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Whether it holds the addresses.
    pub is_active: bool,
    /// Whether any of its outputs may be sending.
    pub is_delivering: bool,
    /// How long it has been the active one, or not.
    pub role_for: Duration,
}

/// What this node delivers. `active_for` is how long it has been the active one, if it is.
#[must_use]
pub fn deliver(active_for: Option<Duration>, peer: Option<Peer>) -> Deliver {
    match (active_for, peer) {
        (None, _) => Deliver::Nothing,
        (Some(_), None | Some(Peer { is_active: false, is_delivering: false, .. })) => Deliver::OwnAndMirror,
        (Some(time), Some(Peer { is_delivering: true, .. })) if time < PATIENCE => Deliver::Nothing,
        (Some(_), Some(Peer { is_active: false, role_for, .. })) if role_for >= PATIENCE => Deliver::OwnAndMirror,
        (Some(_), Some(_)) => Deliver::Own,
    }
}

/// What a node delivers that was set aside.
#[must_use]
pub fn deliver_aside(is_connected: bool) -> Deliver {
    if is_connected { Deliver::Nothing } else { Deliver::OwnAndMirror }
}

/// Whether a mirror may go: it is neither shipped nor taken, so that its writer is no more, and all of it is delivered.
/// `outputs` is what they have delivered of it; without any nobody can say.
#[must_use]
pub fn is_spent(is_living: bool, outputs: &BTreeMap<String, Mark>, durable: Mark) -> bool {
    !is_living && !outputs.is_empty() && outputs.values().all(|mark| *mark >= durable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_module_holds() {
        let (soon, late) = (Duration::from_millis(10), PATIENCE);
        let peer = |is_active, is_delivering, role_for| Some(Peer { is_active, is_delivering, role_for });
        for other in [None, peer(false, false, late), peer(true, true, late), peer(false, true, late)] {
            assert_eq!(deliver(None, other), Deliver::Nothing, "a standby, beside {other:?}");
        }
        for time in [soon, late] {
            assert_eq!(deliver(Some(time), None), Deliver::OwnAndMirror);
            assert_eq!(deliver(Some(time), peer(false, false, soon)), Deliver::OwnAndMirror);
            assert_eq!(deliver(Some(time), peer(true, false, soon)), Deliver::Own);
            assert_eq!(deliver(Some(soon), peer(false, true, time)), Deliver::Nothing);
            assert_eq!(deliver(Some(soon), peer(true, true, time)), Deliver::Nothing);
            assert_eq!(deliver(Some(late), peer(true, true, time)), Deliver::Own);
        }
        assert_eq!(deliver(Some(late), peer(false, true, soon)), Deliver::Own, "it says when it has stopped");
        assert_eq!(deliver(Some(late), peer(false, true, late)), Deliver::OwnAndMirror);
    }
}
