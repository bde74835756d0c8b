//! What an output reads: the journal from its cursor on, with the bookkeeping that every kind of output shares.
//!
//! Batches that were read and are not known to have arrived stay noted in order, so that the cursor moves over the
//! arrived prefix and `status` can tell the age of the oldest one. After a failure the feed goes back to the cursor.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;

use super::Wish;
use crate::journal::{Cursor, Read, Reader, SkipCause};
use crate::metrics::OutputMetrics;
use crate::proto::batch::Batch;
use crate::proto::envelope::Timestamp;
use crate::proto::position::Mark;

/// One output's view of a journal.
#[derive(Debug)]
pub struct Feed {
    reader: Reader,
    wish: watch::Receiver<Wish>,
    /// Whether the journal is the one that this node writes.
    is_own: bool,
    cursor: Cursor,
    metrics: Arc<OutputMetrics>,
    /// Read ahead of its time, to know how old the oldest undelivered message is while there is no destination.
    held: Option<Vec<Batch>>,
    /// Ends and ages of the batches that were given out and have not arrived.
    pending: VecDeque<(Mark, Timestamp)>,
    /// Ordinal of the next message, if none is missing.
    expected: u64,
    /// Why messages before the next batch are missing, if some are.
    missing: Option<&'static str>,
}

impl Feed {
    /// A feed that starts at the cursor.
    #[must_use]
    pub(super) fn new(
        mut reader: Reader,
        is_own: bool,
        cursor: Cursor,
        metrics: Arc<OutputMetrics>,
        wish: watch::Receiver<Wish>,
    ) -> Feed {
        let start = cursor.mark();
        reader.seek(start.position);
        let expected = start.ordinal;
        Feed { reader, wish, is_own, cursor, metrics, held: None, pending: VecDeque::new(), expected, missing: None }
    }

    /// Whether the rest is left to the other node.
    fn is_left(&self) -> bool {
        *self.wish.borrow() == Wish::Leave
    }

    /// The next batches, in order. Waits for some; cancelling loses nothing.
    pub async fn next(&mut self) -> Vec<Batch> {
        self.peek().await;
        if self.is_left() {
            std::future::pending::<()>().await;
        }
        let batches = self.held.take().unwrap_or_default();
        self.pending.extend(batches.iter().map(|batch| (batch.end(), batch.first_received())));
        batches
    }

    /// Waits until there is something to deliver, without giving it out.
    pub async fn peek(&mut self) {
        while self.held.is_none() {
            match self.reader.next().await {
                Read::Batches(mut batches) => {
                    self.count_missing(&batches);
                    // The other node may have delivered what comes only now, as after a split brain.
                    let delivered = self.cursor.mark();
                    batches.retain(|batch| batch.end() > delivered);
                    if batches.is_empty() {
                        continue;
                    }
                    if self.pending.is_empty() {
                        self.metrics.set_oldest_undelivered(self.is_own, batches.first().map(Batch::first_received));
                    }
                    self.held = Some(batches);
                }
                Read::Skipped { from, to, cause } => {
                    let reason = match cause {
                        SkipCause::Gone => "gone",
                        SkipCause::Damaged(_) => "damaged",
                        SkipCause::Unreadable => "unreadable",
                    };
                    self.missing.get_or_insert(reason);
                    tracing::error!(%from, %to, reason, "a stretch of the journal cannot be delivered");
                }
            }
        }
    }

    /// Counts the messages that a skipped stretch held: the batch behind it tells how many came before.
    fn count_missing(&mut self, batches: &[Batch]) {
        if let (Some(first), Some(reason)) = (batches.first(), self.missing.take()) {
            self.metrics.lost.inc_by(reason, first.start().ordinal.saturating_sub(self.expected));
        }
        if let Some(last) = batches.last() {
            self.expected = last.end().ordinal;
        }
    }

    /// Everything before `mark` has arrived.
    pub fn arrived(&mut self, mark: Mark) {
        while self.pending.front().is_some_and(|(end, _)| *end <= mark) {
            self.pending.pop_front();
        }
        self.cursor.advance(mark);
        let held = self.held.as_ref().and_then(|batches| batches.first()).map(Batch::first_received);
        self.metrics.set_oldest_undelivered(self.is_own, self.pending.front().map(|(_, received)| *received).or(held));
    }

    /// Goes back to the cursor: what was given out and has not arrived is given out again.
    pub fn rewind(&mut self) {
        if !self.pending.is_empty() {
            self.pending.clear();
            self.held = None;
            let start = self.cursor.mark();
            self.reader.seek(start.position);
            self.expected = start.ordinal;
        }
    }

    /// Whether everything that is durable was given out, or the rest is not to be.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.is_left() || self.held.is_none() && self.reader.position() >= self.reader.end().position
    }

    /// What this output counts.
    #[must_use]
    pub fn metrics(&self) -> &OutputMetrics {
        &self.metrics
    }
}
