//! What an acknowledgement to a sender waits for.
//!
//! | `journal.acknowledge` | the other node | `pair.on_peer_loss` | what is promised |
//! | --- | --- | --- | --- |
//! | `durable` | – | – | what is safe here |
//! | `replicated` | has everything, or nearly | – | what is safe on both |
//! | `replicated` | away, or far behind | `degrade` | what is safe here |
//! | `replicated` | away, or far behind | `stop` | what is safe on both |
//!
//! What was promised never shrinks: a peer that comes back has to catch up with it before anything more is promised.

use crate::proto::position::Mark;

/// How far behind a returning node's mirror may be, in bytes, when acknowledgements begin to wait for it again: a fraction
/// of a second's shipping.
const CLOSE_BYTES: u64 = 4 * 1024 * 1024;

/// What an acknowledged message means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledge {
    /// It is safe on this node's disk.
    Durable,
    /// It is safe on both; `alone` says whether one is enough while the other node is away.
    Replicated {
        /// `pair.on_peer_loss = "degrade"`.
        alone: bool,
    },
}

/// Where the other node's copy stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copy {
    /// Nobody can say.
    Away,
    /// It is being shipped.
    CatchingUp,
    /// Close: promises wait for it.
    Followed,
}

/// The promise of one journal.
#[derive(Clone, Debug)]
pub struct Promise {
    acknowledge: Acknowledge,
    copy: Copy,
    durable: Mark,
    replicated: Mark,
    promised: Mark,
}

impl Promise {
    /// A journal that is durable up to `durable` and has no copy yet.
    #[must_use]
    pub fn new(acknowledge: Acknowledge, durable: Mark) -> Promise {
        // What an earlier life of the process promised was durable.
        Promise { acknowledge, copy: Copy::Away, durable, replicated: Mark::default(), promised: durable }
    }

    /// More is safe here.
    pub fn set_durable(&mut self, mark: Mark) {
        self.durable = self.durable.max(mark);
        self.settle();
    }

    /// More is safe on the other node.
    pub fn set_replicated(&mut self, mark: Mark) {
        self.replicated = self.replicated.max(mark);
        self.settle();
    }

    /// The other node is there, and its copy ends at `mark`.
    pub fn peer_came(&mut self, mark: Mark) {
        self.copy = Copy::CatchingUp;
        // A wiped node has less than it had.
        self.replicated = mark;
        self.settle();
    }

    /// The other node is away.
    pub fn peer_left(&mut self) {
        self.copy = Copy::Away;
        self.settle();
    }

    /// Everything before this may be acknowledged.
    #[must_use]
    pub fn promised(&self) -> Mark {
        self.promised
    }

    /// Everything before this is safe on the other node, as far as is known.
    #[must_use]
    pub fn replicated(&self) -> Mark {
        self.replicated
    }

    /// Whether everything that was promised is on both nodes, and what comes will be.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.copy == Copy::Followed && self.replicated >= self.promised
    }

    fn settle(&mut self) {
        let lag = self.durable.position.bytes_since(self.replicated.position);
        if self.copy == Copy::CatchingUp && lag <= CLOSE_BYTES {
            self.copy = Copy::Followed;
        }
        let reached = match (self.acknowledge, self.copy) {
            (Acknowledge::Replicated { .. }, Copy::Followed) | (Acknowledge::Replicated { alone: false }, _) => {
                self.durable.min(self.replicated)
            }
            (Acknowledge::Durable | Acknowledge::Replicated { alone: true }, _) => self.durable,
        };
        self.promised = self.promised.max(reached);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::position::Position;

    fn at(position: u64) -> Mark {
        Mark { position: Position(position), ordinal: position / 100 }
    }

    fn alone() -> Promise {
        Promise::new(Acknowledge::Replicated { alone: true }, at(1000))
    }

    #[test]
    fn with_the_other_node_there_both_disks_are_waited_for() {
        let mut promise = alone();
        promise.peer_came(at(1000));
        promise.set_durable(at(2000));
        assert_eq!(promise.promised(), at(1000));
        promise.set_replicated(at(1500));
        assert_eq!(promise.promised(), at(1500));
        assert!(promise.is_whole());
    }

    #[test]
    fn one_copy_is_enough_while_the_other_node_is_away_unless_told_otherwise() {
        let mut promise = alone();
        promise.set_durable(at(2000));
        assert_eq!(promise.promised(), at(2000));
        assert!(!promise.is_whole());

        let mut strict = Promise::new(Acknowledge::Replicated { alone: false }, at(1000));
        strict.set_durable(at(2000));
        assert_eq!(strict.promised(), at(1000));
        strict.peer_came(at(1200));
        assert_eq!(strict.promised(), at(1200));
        strict.peer_left();
        strict.set_durable(at(3000));
        assert_eq!(strict.promised(), at(1200));
    }

    #[test]
    fn a_node_that_comes_back_is_waited_for_once_it_is_close_and_nothing_is_taken_back() {
        let mut promise = alone();
        let far = 100 * CLOSE_BYTES;
        promise.set_durable(at(far));
        promise.peer_came(at(0));
        assert_eq!(promise.promised(), at(far), "it is far behind: nobody waits for it");
        promise.set_replicated(at(far - CLOSE_BYTES));
        promise.set_durable(at(far + 10));
        assert_eq!(promise.promised(), at(far), "close: from here on it is waited for");
        assert!(!promise.is_whole(), "what was promised alone is not there yet");
        promise.set_replicated(at(far + 5));
        assert_eq!(promise.promised(), at(far + 5));
        assert!(promise.is_whole());
    }

    #[test]
    fn what_is_promised_never_shrinks_when_a_wiped_node_comes_back() {
        let mut promise = alone();
        promise.peer_came(at(1000));
        promise.set_durable(at(5000));
        promise.set_replicated(at(5000));
        promise.peer_left();
        promise.peer_came(at(0));
        assert_eq!(promise.promised(), at(5000));
        assert!(!promise.is_whole());
    }
}
