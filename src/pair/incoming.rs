//! What the other node says, frame by frame.

use std::io;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::conversation::Ended;
use crate::journal::memory::Memory;
use crate::proto::pair::message::Frame;
use crate::proto::pair::session::SessionError;

/// The reading half, and the frame that is being read.
///
/// Each frame stands in memory of its own: its batches go to the mirror without a copy, and the mirror gives the memory back
/// when they are written.
pub(super) struct Incoming<R> {
    half: R,
    received: BytesMut,
    memory: Arc<Memory>,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    pub(super) fn new(half: R) -> Incoming<R> {
        Incoming { half, received: BytesMut::new(), memory: Arc::default() }
    }

    /// Where memory for frames comes from.
    pub(super) fn set_memory(&mut self, memory: Arc<Memory>) {
        self.memory = memory;
    }

    /// The next frame. Cancelling loses nothing.
    pub(super) async fn frame(&mut self) -> Result<Frame, Ended> {
        loop {
            if let Some(frame) = Frame::take(&mut self.received).map_err(SessionError::from)? {
                self.received = BytesMut::new();
                return Ok(frame);
            }
            let missing = Frame::missing(&self.received);
            self.make_room(missing);
            match self.half.read_buf(&mut (&mut self.received).limit(missing)).await {
                Ok(0) => return Err(Ended::Closed),
                // Without a goodbye, as when the process ends.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Ended::Closed),
                read => read?,
            };
        }
    }

    fn make_room(&mut self, bytes: usize) {
        if self.received.capacity() - self.received.len() < bytes {
            let memory = Bytes::from(self.memory.take(self.received.len() + bytes));
            let received = std::mem::replace(&mut self.received, memory.into());
            self.received.extend_from_slice(&received);
        }
    }
}
