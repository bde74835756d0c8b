//! Forward from the network: scanner, message, entries inside compression too.
//!
//! Input: the size of the pieces, then the stream. The stream is read whole and in pieces and must be cut the same way;
//! what is accepted can be iterated without a flaw, within the limits.

use twinlog::proto::forward::compression::inflate;
use twinlog::proto::forward::entry::Entries;
use twinlog::proto::forward::message::{CHUNK_ID_BYTES_MAX, Request, Scratch, tag_of};
use twinlog::proto::forward::scan::{ScanError, Scanner, Step};

const MAX_CHUNK: usize = 1 << 16;
const INFLATED_BYTES_MAX: usize = 1 << 18;

/// One input.
pub fn run(data: &[u8]) {
    let [piece, stream @ ..] = data else { return };
    let whole = cut(stream, stream.len().max(1));
    for size in [1, usize::from(*piece).max(1)] {
        assert_eq!(cut(stream, size), whole, "pieces of {size}");
    }
    let mut at = 0;
    let mut scratch = Scratch::new(INFLATED_BYTES_MAX);
    for length in whole.0 {
        accept(&stream[at..at + length], &mut scratch);
        at += length;
    }
    let _ = tag_of(&stream[at..]);
}

/// The lengths of the frames, and whether the stream cannot be read on behind them.
fn cut(stream: &[u8], size: usize) -> (Vec<usize>, bool) {
    let mut scanner = Scanner::new(MAX_CHUNK);
    let (mut lengths, mut at, mut end) = (Vec::new(), 0, 0);
    while end < stream.len() {
        end = (end + size).min(stream.len());
        loop {
            match scanner.scan(&stream[at..end]) {
                Ok(Step::Complete(length)) => {
                    assert!(length > 0 && at + length <= end && length <= MAX_CHUNK);
                    lengths.push(length);
                    at += length;
                    if at == end {
                        break;
                    }
                }
                Ok(Step::Incomplete { needed, .. }) => {
                    assert!(needed > end - at && needed <= MAX_CHUNK.max(end - at + 1));
                    break;
                }
                Err(ScanError::TooLarge { .. } | ScanError::TooDeep | ScanError::Reserved) => return (lengths, true),
            }
        }
    }
    (lengths, false)
}

fn accept(bytes: &[u8], scratch: &mut Scratch) {
    let Ok(Request::Frame(frame)) = Request::parse(bytes) else { return };
    assert!(frame.option.chunk.is_none_or(|id| id.len() <= CHUNK_ID_BYTES_MAX));
    let Ok(accepted) = frame.accept(scratch) else { return };
    let (entries, events, invalid) = (accepted.entries.to_vec(), accepted.events, accepted.invalid);
    assert!(!frame.tag.is_empty() || events == 0);
    let mut plain = Vec::new();
    inflate(&mut plain, &entries, INFLATED_BYTES_MAX).expect("what was accepted can be decompressed");
    let mut sound = Entries::new(&plain);
    let seen = sound.by_ref().filter(|entry| entry.time.group_marker().is_none()).count();
    assert_eq!((seen as u64, sound.invalid()), (events, 0), "{invalid} were left out");
}
