//! The pair link: whatever a peer says that has the key.
//!
//! Input: whether the greeting is a sound one, the size of the pieces, then the stream, which goes to one session of a node
//! with two journals. Nothing may panic, whatever comes is bounded, and what is to be taken follows what was taken before.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::BytesMut;
use twinlog::proto::pair::message::{Frame, Held, Hello, Message, PROTOCOL, control};
use twinlog::proto::pair::session::{Effect, Session};
use twinlog::proto::position::{Incarnation, JournalId, Mark, Position};

/// One input.
pub fn run(data: &[u8]) {
    let [is_greeted, piece, stream @ ..] = data else { return };
    let now = Instant::now();
    let mut session = Session::new(hello("agg-a", 1), "agg-b".parse().expect("a name"), now);
    let mut received = BytesMut::new();
    if is_greeted % 2 == 1 {
        received.extend_from_slice(&control(&Message::Hello(hello("agg-b", 2))));
    }
    let mut ends: BTreeMap<JournalId, Mark> = BTreeMap::new();
    for bytes in stream.chunks(usize::from(*piece).max(1)) {
        received.extend_from_slice(bytes);
        loop {
            let Ok(frame) = Frame::take(&mut received) else { return };
            let Some(frame) = frame else { break };
            if session.handle_frame(now, frame).is_err() {
                return;
            }
            while let Some(effect) = session.poll_effect() {
                follow(&mut ends, effect);
            }
            while session.poll_transmit().is_some() {}
        }
    }
}

fn follow(ends: &mut BTreeMap<JournalId, Mark>, effect: Effect) {
    match effect {
        Effect::Begin { journal, at } => drop(ends.insert(journal, at)),
        Effect::SkipTo { journal, to } => {
            assert!(ends[&journal].position < to.position, "a skip goes forward");
            ends.insert(journal, to);
        }
        Effect::Take { journal, batches } => {
            for batch in batches {
                assert_eq!(batch.start(), ends[&journal], "what is taken follows what was taken");
                ends.insert(journal.clone(), batch.end());
            }
        }
        Effect::Replicated { mark, .. } => assert!(mark.position <= Position(512), "nobody has what was not sent"),
        _ => {}
    }
}

/// A node that writes one journal and has the mirror of another.
fn hello(node: &str, incarnation: u64) -> Hello {
    let held = |node: &str, incarnation, is_own, position| Held {
        journal: JournalId { node: node.parse().expect("a name"), incarnation: Incarnation(incarnation) },
        is_own,
        oldest: Mark::default(),
        durable: Mark { position: Position(position), ordinal: position / 64 },
        delivered: BTreeMap::new(),
    };
    let journals = vec![held(node, incarnation, true, 512), held("agg-c", 7, false, 64 * incarnation)];
    let node = node.parse().expect("a name");
    Hello { protocol: PROTOCOL, program: "fuzz".to_owned(), node, configuration: 0, journals }
}
