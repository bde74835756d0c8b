//! RELP: whatever comes, in whatever pieces.
//!
//! Input: `max_message - 1`, the size of the pieces, then the stream. The stream is read whole and in pieces and must give
//! the same messages, answers and end; nothing is invented, every step moves on, and what is waited for is bounded.

use twinlog::proto::envelope::Flags;
use twinlog::proto::relp::frame::HEADER_BYTES_MAX;
use twinlog::proto::relp::{Session, SessionError, Step};

/// One input.
pub fn run(data: &[u8]) {
    let [limit, piece, stream @ ..] = data else { return };
    let max_message = usize::from(*limit) + 1;
    let whole = read(max_message, stream.len().max(1), stream);
    for size in [1, usize::from(*piece).max(1)] {
        assert_eq!(read(max_message, size, stream), whole, "pieces of {size}, max_message {max_message}");
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    messages: Vec<(Vec<u8>, Flags)>,
    answers: Vec<u8>,
    error: Option<SessionError>,
}

fn read(max_message: usize, size: usize, stream: &[u8]) -> Outcome {
    let mut session = Session::new(max_message);
    let mut outcome = Outcome::default();
    let mut kept = Vec::new();
    for piece in stream.chunks(size) {
        kept.extend_from_slice(piece);
        loop {
            match session.next(&kept) {
                Step::Took { consumed, message, answer } => {
                    assert!(consumed > 0, "every step moves on");
                    if let Some(message) = message {
                        let payload = message.payload;
                        assert!(!payload.is_empty() && payload.len() <= max_message);
                        assert!(is_part_of(payload, &kept[..consumed]), "a message is a part of what was consumed");
                        outcome.messages.push((payload.to_vec(), message.flags));
                    }
                    answer.into_iter().for_each(|answer| answer.write(&mut outcome.answers));
                    kept.drain(..consumed);
                }
                Step::NeedMore { consumed } => {
                    kept.drain(..consumed);
                    assert!(kept.len() <= HEADER_BYTES_MAX + max_message, "{} bytes are kept", kept.len());
                    break;
                }
                Step::Close { error, answer } => {
                    answer.into_iter().for_each(|answer| answer.write(&mut outcome.answers));
                    outcome.error = Some(error);
                    return outcome;
                }
            }
        }
    }
    outcome.error = session.finish(&kept).err();
    outcome
}

fn is_part_of(part: &[u8], whole: &[u8]) -> bool {
    let (part, whole) = (part.as_ptr_range(), whole.as_ptr_range());
    whole.start <= part.start && part.end <= whole.end
}
