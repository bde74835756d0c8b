//! An output at work on one journal: it sends what is durable, a few batches at a time, and moves the cursor over what its
//! destination has acknowledged. In the place of `output::feed` and of the outputs behind it.

use std::collections::VecDeque;
use std::time::Duration;

use twinlog::proto::batch::Batch;
use twinlog::proto::position::{JournalId, Position};

use crate::journal::Journal;
use crate::surroundings::Surroundings;

/// Batches on their way to a destination.
const WINDOW: usize = 4;
/// `drain.grace`.
const GRACE: Duration = Duration::from_secs(2);

struct Flight {
    batch: Batch,
    arrives: Duration,
    answered: Duration,
    has_arrived: bool,
}

/// See the module.
pub struct Delivery {
    output: usize,
    pub journal: JournalId,
    at: Position,
    flights: VecDeque<Flight>,
    /// When it ends whatever is in flight, once it was told to leave.
    ends: Option<Duration>,
}

impl Delivery {
    /// Starts at the cursor.
    pub fn new(output: usize, journal: &Journal) -> Delivery {
        let at = journal.cursor(crate::OUTPUTS[output]).mark().position;
        Delivery { output, journal: journal.id.clone(), at, flights: VecDeque::new(), ends: None }
    }

    /// The rest is left to the other node.
    pub fn leave(&mut self, now: Duration) {
        self.ends.get_or_insert(now + GRACE);
    }

    /// Does what it can; false once it has ended.
    pub fn step(&mut self, journal: Option<&Journal>, around: &mut Surroundings) -> bool {
        let Some(journal) = journal else { return false };
        let cursor = journal.cursor(crate::OUTPUTS[self.output]);
        if !around.destinations[self.output].is_there {
            self.flights.clear();
            self.at = cursor.mark().position;
            return self.ends.is_none();
        }
        let now = around.now;
        for flight in self.flights.iter_mut().filter(|flight| !flight.has_arrived && flight.arrives <= now) {
            flight.has_arrived = true;
            arrive(around, self.output, &self.journal, &flight.batch);
        }
        while self.flights.front().is_some_and(|flight| flight.answered <= around.now) {
            let flight = self.flights.pop_front().unwrap();
            cursor.advance(flight.batch.end());
        }
        match self.ends {
            Some(ends) if self.flights.is_empty() || ends <= around.now => return false,
            Some(_) => return true,
            None => {}
        }
        if self.flights.len() < WINDOW
            && let Ok(Some((batches, next))) = journal.read(self.at)
        {
            self.at = next;
            // The other node may have delivered what comes only now.
            let delivered = cursor.mark();
            batches.into_iter().filter(|batch| batch.end() > delivered).for_each(|batch| self.send(around, batch));
        }
        true
    }

    fn send(&mut self, around: &mut Surroundings, batch: Batch) {
        let delay = around.destinations[self.output].delay_max;
        let last = self.flights.back().map_or(Duration::ZERO, |flight| flight.answered);
        let arrives = around.now + around.some(delay);
        let answered = (arrives + around.some(delay)).max(last);
        self.flights.push_back(Flight { batch, arrives, answered, has_arrived: false });
    }

    /// The process is gone: of what it had sent, some still arrives.
    pub fn die(self, around: &mut Surroundings) {
        for flight in self.flights {
            if !around.destinations[self.output].is_there || around.chance(2) {
                break;
            }
            if !flight.has_arrived {
                arrive(around, self.output, &self.journal, &flight.batch);
            }
        }
    }
}

fn arrive(around: &mut Surroundings, output: usize, journal: &JournalId, batch: &Batch) {
    let destination = &mut around.destinations[output];
    around.ledger.delivered(destination.output, journal, batch);
    if let Some(first) = destination.take(around.now, journal, batch) {
        let start = batch.start().position;
        assert!(around.excuses_repeat(first), "{journal}/{start} was delivered at {first:?} and again, for no reason");
    }
}
