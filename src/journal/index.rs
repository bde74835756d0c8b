//! The list of segments, shared by the one writer and all readers.

use std::sync::{PoisonError, RwLock};

use super::recovery::Segment;
use crate::proto::position::{Mark, Position};

/// Which segment holds which positions. Written at every append, read once for a megabyte.
#[derive(Debug, Default)]
pub struct Index {
    segments: RwLock<Vec<Segment>>,
}

/// Where to read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this segment.
    In(Segment),
    /// The bytes before `0` are gone; reading goes on there.
    GapUntil(Position),
    /// There is nothing at or after the position.
    End,
}

impl Index {
    /// An index of these segments, in order of position.
    #[must_use]
    pub fn new(segments: Vec<Segment>) -> Index {
        Index { segments: RwLock::new(segments) }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<Segment>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Vec<Segment>> {
        self.segments.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the segment that holds the byte at `position`.
    #[must_use]
    pub fn find(&self, position: Position) -> Place {
        let segments = self.read();
        let next = segments.partition_point(|segment| segment.end <= position);
        match segments.get(next) {
            None => Place::End,
            Some(segment) if segment.start.position <= position => Place::In(*segment),
            Some(segment) => Place::GapUntil(segment.start.position),
        }
    }

    /// The oldest segment.
    #[must_use]
    pub fn first(&self) -> Option<Segment> {
        self.read().first().copied()
    }

    /// The segment that is written.
    #[must_use]
    pub fn last(&self) -> Option<Segment> {
        self.read().last().copied()
    }

    /// Where the second-oldest segment starts: what dropping the oldest would leave.
    #[must_use]
    pub fn second_start(&self) -> Option<Mark> {
        self.read().get(1).map(|segment| segment.start)
    }

    /// Number of segments and the bytes of their batches.
    #[must_use]
    pub fn totals(&self) -> (usize, u64) {
        let segments = self.read();
        (segments.len(), segments.iter().map(|segment| segment.end.bytes_since(segment.start.position)).sum())
    }

    /// A copy of the list.
    #[must_use]
    pub fn segments(&self) -> Vec<Segment> {
        self.read().clone()
    }

    pub(super) fn push(&self, segment: Segment) {
        self.write().push(segment);
    }

    pub(super) fn extend_last(&self, end: Position) {
        if let Some(last) = self.write().last_mut() {
            last.end = end;
        }
    }

    pub(super) fn remove_first(&self) {
        self.write().remove(0);
    }
}
