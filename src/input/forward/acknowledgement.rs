//! What forward answers: `{"ack": chunk}`.

use std::sync::Arc;

use super::repeats::{Fingerprint, Repeats};
use crate::input::answers::Answer;
use crate::proto::forward::ack::write_ack;
use crate::proto::position::Mark;

/// The acknowledgement of one frame.
#[derive(Debug)]
pub(super) struct Acknowledgement {
    pub(super) id: Box<[u8]>,
    /// Of a chunk that this connection appended.
    pub(super) fingerprint: Option<Fingerprint>,
}

impl Answer for Acknowledgement {
    type Memory = Arc<Repeats>;

    fn write(&self, out: &mut Vec<u8>) {
        write_ack(out, &self.id);
    }

    fn settle<'a>(repeats: &Arc<Repeats>, answers: impl Iterator<Item = (&'a Acknowledgement, Mark)>) {
        repeats.settled(answers.filter_map(|(answer, mark)| Some((answer.fingerprint?, mark))));
    }
}
