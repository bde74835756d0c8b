use super::super::budget::Budget;
use super::*;
use crate::config::ForwardInput;
use crate::proto::batch::Stamp;
use crate::proto::forward::compression::gzip;
use crate::proto::forward::render::packed_forward;
use crate::proto::position::{Incarnation, Mark};

fn frames<R: AsyncRead + Unpin>(reader: R) -> Frames<R> {
    let config = ForwardInput::new("apps".to_owned(), Vec::new());
    Frames::new(
        (reader, Vec::new()),
        ("192.0.2.7:51400".parse().unwrap(), Transport::Tls),
        Arc::new(Settings { config, security: None }),
        Arc::default(),
        Arc::default(),
        Arc::default(),
        Share::new(Arc::new(Budget::new(1 << 20))),
    )
}

#[tokio::test]
async fn frames_without_events_ask_for_so_many_answers_at_a_time() {
    let stream = b"\x93\xa1t\x90\x81\xa5chunk\xa1x".repeat(5000);
    let mut frames = frames(&stream[..]);
    let (mut reads, mut answers) = (0, 0);
    while answers < 5000 {
        let taken = frames.next().await;
        assert!(taken.end.is_none() && taken.asked.len() <= ASKED_MAX);
        (reads, answers) = (reads + 1, answers + taken.asked.len());
        assert_eq!(frames.is_between_frames(), answers == 5000);
    }
    assert_eq!(reads, 5);
}

/// One event with a text of so many bytes.
fn entry(bytes: usize) -> Vec<u8> {
    let length = u32::try_from(bytes).unwrap().to_be_bytes();
    [&b"\x92\x01\x81\xa1a\xdb"[..], &length, &vec![b'x'; bytes]].concat()
}

#[tokio::test]
async fn of_frames_that_are_alike_no_more_is_read_than_ends_with_one() {
    let mut stream = Vec::new();
    (0..50).for_each(|_| packed_forward(&mut stream, b"t", &entry(200_000), 1, None));
    let mut frames = frames(&stream[..]);
    let (mut events, mut kept) = (0, Vec::new());
    while events < 50 {
        let taken = frames.next().await;
        assert!(taken.end.is_none());
        events += taken.batch.messages();
        kept.push(frames.rest.len());
    }
    assert!(kept[0] > BEGIN_BYTES && kept[2..].iter().all(|kept| *kept <= MARGIN_BYTES), "{kept:?}");
}

/// Gives all that is asked for, or as much of it as it likes.
struct Pieces {
    bytes: Vec<u8>,
    sizes: Option<fastrand::Rng>,
    reads: usize,
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let most = room.remaining().min(self.bytes.len());
        let any = |sizes: &mut fastrand::Rng| if sizes.bool() { most } else { sizes.usize(..=most).max(1).min(most) };
        let length = self.sizes.as_mut().map_or(most, any);
        room.put_slice(&self.bytes[..length]);
        self.bytes.drain(..length);
        self.reads += 1;
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_large_frame_is_read_in_large_pieces_whether_or_not_it_says_where_it_ends() {
    let entries = entry(300).repeat(20_000);
    let mut packed = Vec::new();
    packed_forward(&mut packed, b"t", &entries, 20_000, None);
    let listed = [b"\x92\xa1t\xdd", &20_000_u32.to_be_bytes()[..], &entries].concat();
    for frame in [packed, listed] {
        let length = frame.len();
        let mut frames = frames(Pieces { bytes: frame.repeat(3), sizes: None, reads: 0 });
        let mut events = 0;
        while events < 60_000 {
            let taken = frames.next().await;
            assert!(taken.end.is_none());
            events += taken.batch.messages();
        }
        let reads = frames.reader.reads;
        assert!(reads <= 3 * length / READ_BYTES + 10, "{reads} reads of three frames of {length} bytes");
    }
}

#[tokio::test]
async fn every_frame_comes_out_whole_whatever_the_sizes_of_frames_and_reads() {
    for seed in 0..20 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut stream, mut expected) = (Vec::new(), Vec::new());
        for _ in 0..30 {
            let magnitude = rng.u32(4..21);
            let length = rng.usize(..1 << magnitude);
            packed_forward(&mut stream, b"t", &entry(length), 1, None);
            expected.push(length);
        }
        let mut frames = frames(Pieces { bytes: stream, sizes: Some(rng), reads: 0 });
        let mut found = Vec::new();
        loop {
            let taken = frames.next().await;
            let batch = taken.batch.seal(Stamp { incarnation: Incarnation(1), node_hash: 0 }, Mark::default());
            found.extend(batch.envelopes().map(|envelope| envelope.payload.len() - entry(0).len()));
            if let Some(end) = taken.end {
                assert!(matches!(end, End::Stream));
                break;
            }
        }
        assert_eq!(found, expected, "seed {seed}");
    }
}

#[tokio::test]
async fn others_have_their_turn_between_large_decompressed_frames() {
    let large = [&b"\x92\x01\x81\xa1a\xdb\0\x80\0\0"[..], &vec![b'x'; 8 << 20]].concat();
    let (mut packed, mut stream) = (Vec::new(), Vec::new());
    gzip(&mut packed, &large);
    (0..5).for_each(|_| packed_forward(&mut stream, b"t", &packed, 1, None));
    let mut frames = frames(&stream[..]);
    let mut events = Vec::new();
    for _ in 0..3 {
        events.push(frames.next().await.batch.messages());
    }
    assert_eq!(events, [2, 2, 1]);
}

#[tokio::test]
async fn an_end_without_close_notify_is_one_between_frames_and_a_fault_inside_one() {
    struct Truncated(&'static [u8], io::ErrorKind);

    impl AsyncRead for Truncated {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            room.put_slice(std::mem::take(&mut self.0));
            let ended = room.filled().is_empty();
            Poll::Ready(if ended { Err(self.1.into()) } else { Ok(()) })
        }
    }

    for kind in [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset] {
        let silent = frames(Truncated(b"", kind)).next().await.end;
        assert!(matches!(silent, Some(End::Stream)), "a heartbeat");
        let mut cut = frames(Truncated(b"\x93\xa1t", kind));
        assert!(cut.next().await.end.is_none());
        assert!(matches!(cut.next().await.end, Some(End::Fault(Closed::Incomplete(3) | Closed::Broken(_), _))));
    }
}
