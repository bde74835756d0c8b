use super::*;

fn origin(second: u64, input: &str) -> Origin<'_> {
    Origin {
        received_at: Timestamp(second * 1_000_000_000),
        source: Some("192.0.2.7:514".parse().unwrap()),
        transport: Transport::Udp,
        input,
        tag: b"syslog",
    }
}

fn journal() -> JournalId {
    JournalId { node: "agg-a".parse().unwrap(), incarnation: Incarnation(77) }
}

const CHUNK: Chunk<'_> = Chunk { events: 2, plain: true, id: Some(b"c\n") };

fn sample() -> Batch {
    let mut builder = BatchBuilder::new();
    builder.set_origin(&origin(1, "net"));
    builder.push(Flags::NONE, b"<34>one");
    builder.set_origin(&origin(1, "net"));
    builder.push(Flags::TRUNCATED, b"");
    builder.set_origin(&origin(2, "other"));
    builder.push(Flags::NONE, b"\x00\xff");
    builder.push_chunk(Flags::NONE, &CHUNK, b"\x92\x01\x80\x92\x02\x80");
    builder.push_chunk(Flags::NONE, &Chunk { events: 1, plain: false, id: Some(b"") }, b"entries");
    builder.seal(Stamp::from(&journal()), Mark { position: Position(1000), ordinal: 10 })
}

#[test]
fn messages_come_back_as_they_went_in() {
    let batch = Batch::decode(sample().bytes()).unwrap();
    let seen: Vec<_> = batch.envelopes().collect();
    assert_eq!(seen.len(), 5);
    assert_eq!((seen[0].payload, seen[0].origin), (&b"<34>one"[..], origin(1, "net")));
    assert_eq!((seen[1].payload, seen[1].flags), (&b""[..], Flags::TRUNCATED));
    assert_eq!((seen[2].payload, seen[2].origin.input), (&b"\x00\xff"[..], "other"));
    assert_eq!(seen[3].kind, Kind::Forward(CHUNK));
    assert_eq!(seen[3].payload, b"\x92\x01\x80\x92\x02\x80");
    assert_eq!(seen[4].kind, Kind::Forward(Chunk { events: 1, plain: false, id: Some(b"") }));
    assert_eq!(seen.iter().map(Envelope::messages).sum::<u64>(), u64::from(batch.messages()));
    assert_eq!(batch.start(), Mark { position: Position(1000), ordinal: 10 });
    assert_eq!(batch.end().ordinal, 16);
    assert_eq!(batch.last_received(), Timestamp(2_000_000_000));
    assert!(seen.windows(2).all(|w| w[0].position < w[1].position));
}

#[test]
fn an_unchanged_origin_is_written_once() {
    let mut once = BatchBuilder::new();
    once.set_origin(&origin(1, "net"));
    let length = once.len();
    once.set_origin(&origin(1, "net"));
    assert_eq!(once.len(), length);
}

#[test]
fn ipv4_mapped_sources_are_ipv4() {
    let mut builder = BatchBuilder::new();
    let mapped = Origin { source: Some("[::ffff:192.0.2.9]:5".parse().unwrap()), ..origin(1, "net") };
    builder.set_origin(&mapped);
    builder.push(Flags::NONE, b"x");
    let batch = builder.seal(Stamp::from(&journal()), Mark::default());
    assert_eq!(batch.envelopes().next().unwrap().origin.source, Some("192.0.2.9:5".parse().unwrap()));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let good = sample();
    for bit in 0..good.bytes().len() * 8 {
        let mut bytes = good.bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Batch::decode(&bytes.into()).is_err(), "bit {bit}");
    }
}

#[test]
fn a_place_that_no_journal_reaches_is_malformed() {
    for at in [Mark { position: Position(1 << 63), ordinal: 0 }, Mark { position: Position(0), ordinal: u64::MAX }] {
        let mut builder = BatchBuilder::new();
        builder.set_origin(&origin(1, "net"));
        builder.push(Flags::NONE, b"x");
        let batch = builder.seal(Stamp::from(&journal()), at);
        assert_eq!(Batch::decode(batch.bytes()), Err(BatchError::Malformed));
    }
}

#[test]
fn every_cut_is_incomplete() {
    let good = sample();
    for length in 0..good.bytes().len() {
        let cut = good.bytes().slice(..length);
        assert!(matches!(Batch::decode(&cut), Err(BatchError::Incomplete { needed }) if needed > length));
    }
}

#[test]
#[should_panic(expected = "inputs bound")]
fn a_batch_that_no_reader_would_take_is_not_built() {
    let mut builder = BatchBuilder::new();
    builder.set_origin(&origin(1, "net"));
    let half = vec![0; BODY_BYTES_MAX / 2];
    builder.push(Flags::NONE, &half);
    builder.push(Flags::NONE, &half);
}

#[test]
fn a_batch_is_foreign_at_another_place() {
    let batch = sample();
    let stamp = Stamp::from(&journal());
    assert!(Batch::decode_at(batch.bytes(), stamp, Position(1000)).is_ok());
    assert_eq!(Batch::decode_at(batch.bytes(), stamp, Position(1001)), Err(BatchError::Foreign));
    let other = Stamp { incarnation: Incarnation(78), ..stamp };
    assert_eq!(Batch::decode_at(batch.bytes(), other, Position(1000)), Err(BatchError::Foreign));
}
