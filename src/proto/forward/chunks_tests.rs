use super::super::message::{Frame, Mode, Request, Scratch};
use super::*;
use crate::proto::batch::{BatchBuilder, Stamp};
use crate::proto::envelope::{Flags, Origin, Timestamp, Transport};
use crate::proto::position::{Incarnation, Mark};

const PLAIN: Chunk<'_> = Chunk { events: 1, plain: true, id: None };

fn settings() -> Settings {
    let journal = JournalId { node: "agg-a".parse().unwrap(), incarnation: Incarnation(0x19a_a3f0) };
    Settings { journal, gzip: false, ask_for_ack: true }
}

/// A batch whose messages came with these tags; `None` is a syslog message.
fn batch(items: &[(&str, Option<Chunk<'_>>, &[u8])]) -> Batch {
    let mut builder = BatchBuilder::new();
    for (tag, chunk, payload) in items {
        builder.set_origin(&Origin {
            received_at: Timestamp(1_773_144_000_000_000_001),
            source: None,
            transport: Transport::Tcp,
            input: "in",
            tag: tag.as_bytes(),
        });
        match chunk {
            Some(chunk) => builder.push_chunk(Flags::NONE, chunk, payload),
            None => builder.push(Flags::NONE, payload),
        }
    }
    builder.seal(Stamp::from(&settings().journal), Mark { position: Position(4096), ordinal: 9 })
}

fn packed(batch: &Batch, settings: &Settings) -> Packed {
    pack(batch, 0, settings, |_| true, |_| Zone::UTC)
}

/// Tag, mode, number of entries, entries decompressed; the id in the frame must be the chunk's.
fn read(chunk: &Outgoing) -> (String, Mode, u64, Vec<u8>) {
    let frame = chunk.parts.concat();
    let Ok(Request::Frame(Frame { tag, mode, option, .. })) = Request::parse(&frame) else { panic!("{frame:02x?}") };
    assert_eq!((option.chunk, option.size), (Some(chunk.id.as_bytes()), Some(chunk.events)));
    let Ok(Request::Frame(parsed)) = Request::parse(&frame) else { panic!() };
    let mut scratch = Scratch::default();
    let accepted = parsed.accept(&mut scratch).unwrap();
    assert_eq!((accepted.events, accepted.invalid, accepted.plain), (chunk.events, 0, true));
    let mut entries = Vec::new();
    inflate(&mut entries, accepted.entries, 1 << 20).unwrap();
    (String::from_utf8(tag.to_vec()).unwrap(), mode, chunk.events, entries)
}

fn gzipped(entries: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    gzip(&mut out, entries);
    out
}

const A: &[u8] = b"\x92\x01\x81\xa1a\x01";
const B: &[u8] = b"\x92\x02\x81\xa1b\x02";

#[test]
fn plain_entries_of_a_tag_leave_together_in_their_order() {
    let batch = batch(&[("x", Some(PLAIN), A), ("y", Some(PLAIN), A), ("x", Some(PLAIN), B)]);
    let chunks = packed(&batch, &settings()).chunks;
    assert_eq!(chunks.len(), 2);
    assert_eq!(read(&chunks[0]), ("x".to_owned(), Mode::PackedForward, 2, [A, B].concat()));
    assert_eq!(read(&chunks[1]), ("y".to_owned(), Mode::PackedForward, 1, A.to_vec()));
    let first = batch.envelopes().next().unwrap().position;
    assert_eq!(chunks[0].id, ChunkId::derive(&settings().journal, first, b"x"));
}

#[test]
fn packing_a_batch_again_gives_the_same_chunks() {
    let gzip = gzipped(A);
    let batch =
        batch(&[("x", Some(PLAIN), A), ("x", Some(PLAIN), &gzip), ("s", None, b"<34>m"), ("x", Some(PLAIN), B)]);
    let again = Batch::decode(&batch.bytes().clone()).unwrap();
    for gzip in [false, true] {
        let settings = Settings { gzip, ..settings() };
        assert_eq!(packed(&batch, &settings), packed(&again, &settings));
    }
    let ids = |gzip| packed(&batch, &Settings { gzip, ..settings() }).chunks.iter().map(|c| c.id).collect::<Vec<_>>();
    assert_eq!(ids(false), ids(true));
    let mut unique = ids(false);
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), 3);
}

#[test]
fn a_syslog_message_is_tagged_by_its_priority() {
    let batch = batch(&[
        ("site", None, b"<34>1 2003-10-11T22:14:15Z h su - - - failed"),
        ("site", None, b"text"),
        ("site", None, b"<34>Oct 11 22:14:15 h su: again"),
        ("site", None, b"\n"),
    ]);
    let chunks = packed(&batch, &settings()).chunks;
    let tags: Vec<_> = chunks.iter().map(|chunk| (read(chunk).0, chunk.events)).collect();
    assert_eq!(tags, [("site.auth.crit".to_owned(), 2), ("site.user.notice".to_owned(), 1)]);
}

#[test]
fn a_compressed_stream_leaves_as_it_came_and_alone() {
    let gzip = gzipped(&[A, B].concat());
    let two = Chunk { events: 2, ..PLAIN };
    let batch =
        batch(&[("x", Some(PLAIN), A), ("x", Some(two), &gzip), ("x", Some(two), &gzip), ("x", Some(PLAIN), B)]);
    let chunks = packed(&batch, &settings()).chunks;
    let modes: Vec<_> = chunks.iter().map(|chunk| (read(chunk).1, chunk.events)).collect();
    let compressed = Mode::CompressedPackedForward(Encoding::Gzip);
    assert_eq!(modes, [(Mode::PackedForward, 2), (compressed, 2), (compressed, 2)]);
    assert_eq!(chunks[1].parts[1], gzip);
    assert_eq!(read(&chunks[1]).3, [A, B].concat());
}

#[test]
fn what_not_every_receiver_takes_leaves_plain() {
    // fluent-bit's metadata, plain and compressed; zstd's frame of one raw block (RFC 8878, 3.1.1.2).
    let nested = b"\x92\x92\x05\x81\x01\x02\x81\x03\x04";
    let mut zstd = vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, A.len() as u8, (A.len() << 3) as u8 | 1, 0, 0];
    zstd.extend_from_slice(A);
    let with_metadata = Chunk { plain: false, ..PLAIN };
    let gzip = gzipped(nested);
    let items: [(&str, Option<Chunk<'_>>, &[u8]); 3] =
        [("x", Some(with_metadata), nested), ("x", Some(PLAIN), &zstd), ("x", Some(with_metadata), &gzip)];
    let chunks = packed(&batch(&items), &settings()).chunks;
    assert_eq!(chunks.len(), 1);
    let plain = b"\x92\x05\x81\x03\x04";
    assert_eq!(read(&chunks[0]), ("x".to_owned(), Mode::PackedForward, 3, [plain, A, plain].concat()));
    let broken = Packed { chunks: Vec::new(), unreadable: 1, rest: None };
    assert_eq!(packed(&batch(&[("x", Some(PLAIN), &zstd[..10])]), &settings()), broken);
}

#[test]
fn large_streams_are_slices_of_the_batch_and_small_ones_are_copied_together() {
    let large = A.repeat(COPY_BELOW);
    let many = Chunk { events: COPY_BELOW as u32, ..PLAIN };
    let batch =
        batch(&[("x", Some(PLAIN), A), ("x", Some(PLAIN), B), ("x", Some(many), &large), ("x", Some(PLAIN), A)]);
    let chunks = packed(&batch, &settings()).chunks;
    assert_eq!(chunks.len(), 1);
    let lengths: Vec<_> = chunks[0].parts[1..4].iter().map(Bytes::len).collect();
    assert_eq!(lengths, [2 * A.len(), large.len(), A.len()]);
    let at = chunks[0].parts[2].as_ptr();
    assert!(batch.bytes().as_ptr_range().contains(&at));
    assert_eq!(read(&chunks[0]).3, [A, B, &large, A].concat());
    assert_eq!(chunks[0].bytes(), chunks[0].parts.concat().len());
}

#[test]
fn a_full_chunk_is_followed_by_another_of_its_tag() {
    let large = A.repeat(CHUNK_BYTES_FULL / A.len() + 1);
    let many = Chunk { events: (large.len() / A.len()) as u32, ..PLAIN };
    let batch = batch(&[("x", Some(many), &large), ("x", Some(PLAIN), A), ("x", Some(PLAIN), B)]);
    let events: Vec<_> = packed(&batch, &settings()).chunks.iter().map(|chunk| chunk.events).collect();
    assert_eq!(events, [u64::from(many.events), 2]);
}

#[test]
fn what_an_output_does_not_take_is_in_no_chunk() {
    let batch = batch(&[("x", Some(PLAIN), A), ("y", Some(PLAIN), B)]);
    let chunks = pack(&batch, 0, &settings(), |envelope| envelope.origin.tag == b"y", |_| Zone::UTC).chunks;
    assert_eq!(chunks.iter().map(|chunk| read(chunk).0).collect::<Vec<_>>(), ["y"]);
}

#[test]
fn without_acknowledgement_a_frame_has_no_id() {
    let settings = Settings { ask_for_ack: false, gzip: true, ..settings() };
    let frame = packed(&batch(&[("x", Some(PLAIN), A)]), &settings).chunks[0].parts.concat();
    let Ok(Request::Frame(frame)) = Request::parse(&frame) else { panic!() };
    assert_eq!((frame.option.chunk, frame.option.compressed), (None, Some(&b"gzip"[..])));
}

#[test]
fn a_decompressed_stream_leaves_in_chunks_that_receivers_take_each_with_its_id() {
    let stream: Vec<u8> =
        (0..600_000_u32).flat_map(|n| [&b"\x92\x01\x81\xa1a\xce"[..], &n.to_be_bytes()].concat()).collect();
    let zstd = ruzstd::encoding::compress_to_vec(&stream[..], ruzstd::encoding::CompressionLevel::Fastest);
    let batch = batch(&[("x", Some(PLAIN), A), ("x", Some(PLAIN), &zstd), ("x", Some(PLAIN), B)]);
    let chunks = packed(&batch, &settings()).chunks;
    assert_eq!(chunks.len(), 6);
    assert!(chunks.iter().all(|chunk| chunk.bytes() < CHUNK_BYTES_FULL + 200));
    let ids: std::collections::HashSet<_> = chunks.iter().map(|chunk| chunk.id).collect();
    assert_eq!(ids.len(), chunks.len());
    let entries = chunks.iter().flat_map(|chunk| chunk.parts[1..chunk.parts.len() - 1].concat());
    assert!(entries.eq([A, &stream, B].concat()));
}

#[test]
fn bombs_are_packed_one_after_the_other() {
    let bomb = ruzstd::encoding::compress_to_vec(
        &[&b"\x92\x01\x81\xa1a\xdb\x01\x00\x00\x00"[..], &vec![0; 16 << 20]].concat()[..],
        ruzstd::encoding::CompressionLevel::Fastest,
    );
    let batch = batch(&[("x", Some(PLAIN), &bomb), ("y", Some(PLAIN), &bomb), ("y", Some(PLAIN), A)]);
    let step = |from| pack(&batch, from, &settings(), |_| true, |_| Zone::UTC);
    let steps = [step(0), step(1), step(2)];
    assert_eq!(steps.each_ref().map(|step| (step.chunks.len(), step.rest)), [(1, Some(1)), (1, Some(2)), (1, None)]);
    assert_eq!(steps[1], step(1));
}
