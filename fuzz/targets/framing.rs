//! Framing: whatever comes, in whatever pieces.
//!
//! Input: `max_message - 1`, the size of the pieces, then the stream. The stream is read whole and in pieces and must
//! be cut the same way; nothing is invented, every step moves on, and what is waited for is bounded.

use twinlog::proto::envelope::Flags;
use twinlog::proto::syslog::framing::{Ending, Framer, FramingError, Step};

/// Most digits that are looked at as an octet count; with it the bound of what a reader keeps.
const DIGIT_RUN_MAX: usize = 64;

/// One input.
pub fn run(data: &[u8]) {
    let [limit, piece, stream @ ..] = data else { return };
    let max_message = usize::from(*limit) + 1;
    let whole = read(max_message, stream.len().max(1), stream);
    for size in [1, usize::from(*piece).max(1)] {
        assert_eq!(read(max_message, size, stream), whole, "pieces of {size}, max_message {max_message}");
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    frames: Vec<(Vec<u8>, Flags)>,
    errors: Vec<FramingError>,
    closed: bool,
}

fn read(max_message: usize, size: usize, stream: &[u8]) -> Outcome {
    let mut framer = Framer::new(max_message);
    let mut outcome = Outcome { frames: Vec::new(), errors: Vec::new(), closed: false };
    let mut kept = Vec::new();
    for piece in stream.chunks(size) {
        kept.extend_from_slice(piece);
        loop {
            let consumed = match framer.next(&kept) {
                Step::Frame { payload, flags, consumed } => {
                    assert!(!payload.is_empty() && payload.len() <= max_message);
                    assert!(is_part_of(payload, &kept[..consumed]), "a frame is a part of what was consumed");
                    outcome.frames.push((payload.to_vec(), flags));
                    consumed
                }
                Step::Skip { consumed, error } => {
                    outcome.errors.push(error);
                    consumed
                }
                Step::NeedMore { consumed } => {
                    kept.drain(..consumed);
                    assert!(kept.len() <= (max_message + 2).max(DIGIT_RUN_MAX + 2), "{} bytes are kept", kept.len());
                    break;
                }
                Step::Close(error) => {
                    outcome.errors.push(error);
                    outcome.closed = true;
                    return outcome;
                }
            };
            assert!(consumed > 0, "every step moves on");
            kept.drain(..consumed);
        }
    }
    match framer.finish(&kept) {
        Some(Ending::Frame { payload, flags }) => {
            assert!(!payload.is_empty() && payload.len() <= max_message && kept.starts_with(payload));
            outcome.frames.push((payload.to_vec(), flags));
        }
        Some(Ending::Incomplete(_)) => outcome.errors.push(FramingError::Incomplete),
        None => {}
    }
    outcome
}

fn is_part_of(part: &[u8], whole: &[u8]) -> bool {
    let (part, whole) = (part.as_ptr_range(), whole.as_ptr_range());
    whole.start <= part.start && part.end <= whole.end
}
