//! `GET /tail`: a sample of what comes in, for a person to look at.
//!
//! A task with a reader of its own at the durable end. It shows at most so many messages a second, and it counts the
//! others: what is too much for the limit, and what it did not even read because it fell behind, are one number in a
//! line `{"skipped":N}`. A client that reads slowly is waited for here and nowhere else.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::journal::{Read, Reader};
use crate::proto::batch::Batch;
use crate::proto::render::JsonLines;
use crate::proto::syslog::shared_text::SharedText;
use crate::status::Observed;
use crate::zones::Zones;

/// Messages a second if the client does not say.
pub(super) const LIMIT_DEFAULT: u32 = 100;
/// Most messages a second that a client may ask for.
pub(super) const LIMIT_MAX: u32 = 10_000;
/// Bytes behind the end at which it stops reading and goes to the end: so much is a few milliseconds of reading.
const BEHIND_MAX: u64 = 4 * 1024 * 1024;
/// Lines are handed on in pieces of about this size.
const PIECE_BYTES: usize = 32 * 1024;
/// Pieces that may wait for the client.
const PIECES: usize = 4;

/// What a client wants to see.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Messages a second.
    pub(super) limit: u32,
    /// Only of this input.
    pub(super) input: Option<String>,
    /// Whether with `raw_b64`.
    pub(super) raw: bool,
}

/// Starts the task. It ends when the receiver is dropped.
pub(super) fn start(observed: &Observed, wanted: Wanted) -> mpsc::Receiver<Bytes> {
    let (pieces, receiver) = mpsc::channel(PIECES);
    let reader = observed.journal.reader(observed.journal.progress().durable.position);
    let tail = Tail {
        reader,
        text: SharedText::new(observed.journal.id()),
        zones: Zones::of(&observed.config.borrow()),
        window: Window { until: Instant::now(), left: 0, limit: wanted.limit },
        wanted,
        seen: observed.journal.progress().durable.ordinal,
        skipped: 0,
        out: Vec::new(),
    };
    // Nobody awaits it: it holds only a reader, and the dropped receiver is its end.
    tokio::spawn(tail.run(pieces));
    receiver
}

/// The rest of a second's allowance.
struct Window {
    until: Instant,
    left: u32,
    limit: u32,
}

impl Window {
    fn renew(&mut self, now: Instant) {
        if now >= self.until {
            *self = Window { until: now + Duration::from_secs(1), left: self.limit, limit: self.limit };
        }
    }
}

struct Tail {
    reader: Reader,
    text: SharedText,
    zones: Zones,
    wanted: Wanted,
    window: Window,
    /// Messages of the journal before the next batch, to count what is jumped over.
    seen: u64,
    skipped: u64,
    out: Vec<u8>,
}

impl Tail {
    async fn run(mut self, pieces: mpsc::Sender<Bytes>) {
        loop {
            let read = tokio::select! {
                () = pieces.closed() => return,
                read = self.reader.next() => read,
            };
            self.window.renew(Instant::now());
            if let Read::Batches(batches) = read {
                for batch in &batches {
                    self.show(batch);
                    if self.out.len() >= PIECE_BYTES && !self.send(&pieces).await {
                        return;
                    }
                }
            }
            if self.window.left == 0 {
                let until = self.window.until;
                tokio::select! {
                    () = pieces.closed() => return,
                    () = sleep_until(until) => {}
                }
            }
            self.jump_if_behind();
            if !self.send(&pieces).await {
                return;
            }
        }
    }

    /// Renders what the allowance permits, spread over the batch.
    fn show(&mut self, batch: &Batch) {
        // Between this batch and the last may be a gap in the journal.
        self.skipped += batch.start().ordinal.saturating_sub(self.seen);
        self.seen = batch.end().ordinal;
        // Of so many messages so many are shown, at even distances.
        let (all, allowed) = (u64::from(batch.messages()), u64::from(self.window.left.min(batch.messages())));
        let mut turn = 0;
        for envelope in batch.envelopes() {
            if self.wanted.input.as_ref().is_some_and(|input| input != envelope.origin.input) {
                continue;
            }
            let mut left_out = 0;
            let wanted = || {
                turn += 1;
                let shown = turn * allowed / all > (turn - 1) * allowed / all;
                left_out += u64::from(!shown);
                shown
            };
            let zone = self.zones.get(envelope.origin.input);
            let mut lines = JsonLines { text: &mut self.text, zone, raw: self.wanted.raw };
            match lines.write(&mut self.out, &envelope, wanted) {
                Ok(lines) => self.window.left -= u32::try_from(lines).unwrap_or(self.window.left),
                Err(error) => tracing::error!(position = %envelope.position, %error, "cannot show a chunk"),
            }
            self.skipped += left_out;
        }
    }

    fn jump_if_behind(&mut self) {
        let end = self.reader.end();
        if end.position.bytes_since(self.reader.position()) > BEHIND_MAX {
            self.skipped += end.ordinal.saturating_sub(self.seen);
            self.seen = end.ordinal;
            self.reader.seek(end.position);
        }
    }

    /// Hands on what is rendered, the number of skipped messages last; false if the client has gone.
    async fn send(&mut self, pieces: &mpsc::Sender<Bytes>) -> bool {
        if self.skipped > 0 {
            let line = format!("{{\"skipped\":{}}}\n", self.skipped);
            self.out.extend_from_slice(line.as_bytes());
            self.skipped = 0;
        }
        if self.out.is_empty() {
            return true;
        }
        pieces.send(std::mem::take(&mut self.out).into()).await.is_ok()
    }
}
