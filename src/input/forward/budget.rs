//! The memory that incomplete frames may take, all connections of a listener together.
//!
//! What a connection keeps is charged when it is kept, so the sum may go beyond the budget by what the worker threads
//! read at once and no further: with nothing left nobody reads. Frames that are all half there would then wait for each
//! other for ever; so one of the connections inside a frame at a time may go on beyond the budget, until that frame is
//! whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Bytes of incomplete frames of one listener.
pub(super) const BUDGET_BYTES: usize = 256 << 20;

/// What is left for everyone.
#[derive(Debug)]
pub(super) struct Budget {
    left: AtomicIsize,
    room: Notify,
    /// Who may go on when nothing is left.
    overdraft: Arc<Semaphore>,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Budget {
        let left = isize::try_from(bytes).unwrap_or(isize::MAX);
        Budget { left: AtomicIsize::new(left), room: Notify::new(), overdraft: Arc::new(Semaphore::new(1)) }
    }

    fn has_room(&self) -> bool {
        self.left.load(Ordering::Acquire) > 0
    }
}

/// What one connection has of it; given back with the value.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    held: usize,
    overdraft: Option<OwnedSemaphorePermit>,
}

impl Share {
    pub(super) fn new(budget: Arc<Budget>) -> Share {
        Share { budget, held: 0, overdraft: None }
    }

    /// Charges what is kept now instead of what was kept before.
    pub(super) fn hold(&mut self, bytes: usize) {
        if bytes == 0 {
            self.overdraft = None;
        }
        let (more, before) = (bytes as isize - self.held as isize, self.held);
        if more == 0 {
            return;
        }
        self.held = bytes;
        let left = self.budget.left.fetch_sub(more, Ordering::AcqRel);
        if bytes < before && left <= 0 && left - more > 0 {
            self.budget.room.notify_waiters();
        }
    }

    /// Whether this connection goes on beyond the budget, and others wait for it.
    pub(super) fn is_overdrawn(&self) -> bool {
        self.overdraft.is_some()
    }

    /// Resolves when this connection may read. Cancelling loses nothing but the place in the queue.
    pub(super) async fn room(&mut self) {
        while self.overdraft.is_none() {
            let mut room = std::pin::pin!(self.budget.room.notified());
            // Before looking: a notice in between must not be missed.
            room.as_mut().enable();
            if self.budget.has_room() {
                return;
            }
            if self.held == 0 {
                room.await;
                continue;
            }
            tokio::select! {
                () = room => {}
                // The semaphore is never closed.
                turn = self.budget.overdraft.clone().acquire_owned() => self.overdraft = turn.ok(),
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.hold(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn half_frames_that_fill_the_budget_come_to_their_end_one_after_the_other() {
        let budget = Arc::new(Budget::new(100));
        let [mut a, mut b, mut idle] = [(); 3].map(|()| Share::new(budget.clone()));
        a.hold(60);
        b.hold(60);
        a.room().await;
        assert!(a.is_overdrawn());
        assert!(waits(&mut b) && waits(&mut idle));
        a.hold(200);
        a.hold(0);
        b.room().await;
        idle.room().await;
        assert!(!b.is_overdrawn() && !idle.is_overdrawn(), "there is room again");
        drop((a, b, idle));
        assert_eq!(budget.left.load(Ordering::Relaxed), 100);
    }

    /// Whether there is no room now.
    fn waits(share: &mut Share) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::pin!(share.room()).poll(&mut context).is_pending()
    }
}
