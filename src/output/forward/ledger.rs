//! Which chunks wait, which are with which server, and how far everything has arrived.
//!
//! A value without sockets or clocks. A chunk is kept until it is acknowledged, so that what a dead server had goes to
//! another without being read again. It is in memory at most [`ForwardOutput::window`](crate::config::ForwardOutput::window)
//! times for each server, and once for what is read ahead.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crate::proto::forward::chunks::Outgoing;
use crate::proto::forward::render::ChunkId;
use crate::proto::position::Mark;

/// The place of a chunk in the order of the journal: its batch, and which of the batch's chunks.
type Place = (u64, usize);

/// What was read and has not arrived.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// The batches in order: their ends, and how many of their chunks have not arrived.
    batches: VecDeque<(Mark, usize)>,
    /// Number of the first of them.
    first: u64,
    /// How many chunks of the last of them there are, if it has more: it then counts as one more that has not arrived.
    unfinished: Option<usize>,
    waiting: BTreeMap<Place, Arc<Outgoing>>,
    sent: HashMap<ChunkId, Sent>,
}

#[derive(Debug)]
struct Sent {
    place: Place,
    server: usize,
    chunk: Arc<Outgoing>,
}

impl Ledger {
    /// Adds chunks of the next batch, which ends at `end`; if it `has_more`, those come with the next call.
    pub(super) fn add(&mut self, end: Mark, chunks: Vec<Outgoing>, has_more: bool) {
        let number = self.unfinished.take().unwrap_or_else(|| {
            self.batches.push_back((end, 1));
            0
        });
        let batch = self.first + self.batches.len() as u64 - 1;
        if let Some((_, left)) = self.batches.back_mut() {
            *left += chunks.len();
            *left -= usize::from(!has_more);
        }
        self.unfinished = has_more.then_some(number + chunks.len());
        let places = (number..).map(|number| (batch, number));
        self.waiting.extend(places.zip(chunks.into_iter().map(Arc::new)));
    }

    /// Gives the first waiting chunk to `server`.
    pub(super) fn give(&mut self, server: usize) -> Option<Arc<Outgoing>> {
        let (place, chunk) = self.waiting.pop_first()?;
        self.sent.insert(chunk.id, Sent { place, server, chunk: chunk.clone() });
        Some(chunk)
    }

    /// Whether chunks wait for a server.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether everything that was read has arrived.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.sent.is_empty() && self.unfinished.is_none()
    }

    /// A chunk has arrived; gives it back. `None` if it was with nobody.
    pub(super) fn arrived(&mut self, id: &ChunkId) -> Option<Arc<Outgoing>> {
        let Sent { place: (batch, _), chunk, .. } = self.sent.remove(id)?;
        let (_, left) = &mut self.batches[(batch - self.first) as usize];
        *left -= 1;
        Some(chunk)
    }

    /// Up to where everything has arrived, if that is further than at the last call.
    pub(super) fn progress(&mut self) -> Option<Mark> {
        let mut progress = None;
        while let Some(&(end, 0)) = self.batches.front() {
            self.batches.pop_front();
            self.first += 1;
            progress = Some(end);
        }
        progress
    }

    /// What `server` had waits again, in the place it had; gives the number of its events.
    pub(super) fn take_back(&mut self, server: usize) -> u64 {
        let mut events = 0;
        for (_, Sent { place, chunk, .. }) in self.sent.extract_if(|_, sent| sent.server == server) {
            events += chunk.events;
            self.waiting.insert(place, chunk);
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::position::{Incarnation, JournalId, Position};

    fn chunk(number: u64) -> Outgoing {
        let journal = JournalId { node: "n".parse().unwrap(), incarnation: Incarnation(1) };
        Outgoing { id: ChunkId::derive(&journal, Position(number), b"t"), events: number, parts: Vec::new() }
    }

    fn mark(position: u64) -> Mark {
        Mark { position: Position(position), ordinal: position }
    }

    #[test]
    fn the_cursor_moves_over_the_batches_that_have_arrived_whole() {
        let mut ledger = Ledger::default();
        ledger.add(mark(10), vec![chunk(1), chunk(2)], false);
        ledger.add(mark(20), vec![chunk(3)], false);
        ledger.add(mark(30), Vec::new(), false);
        let arrived = |ledger: &mut Ledger, id| ledger.arrived(id).map(|chunk| chunk.events);
        let ids: Vec<_> = (0..3).map(|_| ledger.give(0).unwrap().id).collect();
        assert_eq!(ledger.give(0), None);
        assert_eq!((arrived(&mut ledger, &ids[2]), ledger.progress()), (Some(3), None));
        assert_eq!((arrived(&mut ledger, &ids[0]), ledger.progress()), (Some(1), None));
        assert_eq!((arrived(&mut ledger, &ids[1]), ledger.progress()), (Some(2), Some(mark(30))));
        assert!(ledger.is_empty());
        assert_eq!(arrived(&mut ledger, &ids[1]), None, "an acknowledgement counts once");
    }

    #[test]
    fn a_batch_that_has_more_chunks_has_not_arrived() {
        let mut ledger = Ledger::default();
        ledger.add(mark(10), vec![chunk(1)], true);
        let id = ledger.give(0).unwrap().id;
        ledger.arrived(&id);
        assert!(ledger.progress().is_none() && !ledger.is_empty());
        ledger.add(mark(10), vec![chunk(2)], true);
        ledger.add(mark(10), Vec::new(), false);
        ledger.add(mark(20), vec![chunk(3)], false);
        assert_eq!([0, 0].map(|server| ledger.give(server).unwrap().events), [2, 3]);
        for number in [3, 2] {
            ledger.arrived(&chunk(number).id);
        }
        assert_eq!(ledger.progress(), Some(mark(20)));
        assert!(ledger.is_empty());
    }

    #[test]
    fn what_a_dead_server_had_goes_to_another_in_its_old_place() {
        let mut ledger = Ledger::default();
        ledger.add(mark(10), (1..=4).map(chunk).collect(), false);
        let events = |ledger: &mut Ledger, server| ledger.give(server).unwrap().events;
        assert_eq!([0, 1, 0].map(|server| events(&mut ledger, server)), [1, 2, 3]);
        assert_eq!(ledger.take_back(0), 4);
        assert_eq!([1, 1, 1].map(|server| events(&mut ledger, server)), [1, 3, 4]);
        assert!(!ledger.has_waiting() && !ledger.is_empty());
        assert_eq!((ledger.take_back(0), ledger.take_back(1)), (0, 10));
    }
}
