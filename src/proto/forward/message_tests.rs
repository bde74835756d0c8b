//! Frames of every mode, from the protocol's tables; what real clients send is in `tests/forward_corpus.rs`.

use super::super::compression::gzip;
use super::*;

fn frame(bytes: &[u8]) -> Frame<'_> {
    match Request::parse(bytes) {
        Ok(Request::Frame(frame)) => frame,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_second_element_says_the_mode() {
    for (bytes, mode) in [
        (&b"\x93\xa1t\x01\x80"[..], Mode::Message),
        (b"\x94\xa1t\xd7\0\0\0\0\x01\0\0\0\0\x80\xc0", Mode::Message),
        (b"\x92\xa1t\x90", Mode::Forward),
        (b"\x93\xa1t\xdd\0\0\0\0\xdf\0\0\0\0", Mode::Forward),
        (b"\x92\xa1t\xc4\0", Mode::PackedForward),
        (b"\x92\xc4\x01t\xa0", Mode::PackedForward),
        (b"\x92\xa1t\xc4\x02\x1f\x8b", Mode::CompressedPackedForward(Encoding::Gzip)),
        (b"\x92\xa1t\xdb\0\0\0\x04\x28\xb5\x2f\xfd", Mode::CompressedPackedForward(Encoding::Zstd)),
    ] {
        let frame = frame(bytes);
        assert_eq!((frame.tag, frame.mode), (&b"t"[..], mode), "{bytes:02x?}");
    }
}

#[test]
fn heartbeats_are_not_frames() {
    for bytes in [&b"\xc0"[..], b"\x92\xa0\x90", b"\x93\xa0\x90\xc0", b"\x92\xa0\xdc\0\0"] {
        assert_eq!(Request::parse(bytes), Ok(Request::Heartbeat), "{bytes:02x?}");
    }
    assert_eq!(frame(b"\x93\xa0\x90\x81\xa5chunk\xa1c").option.chunk, Some(&b"c"[..]));
}

#[test]
fn what_is_no_request_has_a_name() {
    let long_tag = [&b"\x92\xc6\0\x01\0\0"[..], &[b't'; 65_536], b"\x90"].concat();
    let long_chunk = [&b"\x93\xa1t\x90\x81\xa5chunk\xda\x01\xe1"[..], &[b'c'; 481]].concat();
    for (bytes, error) in [
        (&b"\x81\xa1t\x01"[..], FrameError::NotAnArray(0x81)),
        (b"{", FrameError::NotAnArray(b'{')),
        (b"\x16", FrameError::NotAnArray(0x16)),
        (b"\x91\xa1t", FrameError::Length(1)),
        (b"\x95\xa1t\x01\x80\x80\x80", FrameError::Length(5)),
        (b"\x92\xa1t\x01", FrameError::Length(2)),
        (b"\x94\xa1t\x90\x80\x80", FrameError::Length(4)),
        (b"\x92\x01\x90", FrameError::Tag),
        (&long_tag, FrameError::Tag),
        (b"\x92\xa1t\xc0", FrameError::SecondElement),
        (b"\x93\xa1t\x80\x80", FrameError::SecondElement),
        (b"\x93\xa1t\x90\x01", FrameError::Option),
        (b"\x93\xa1t\x90\x81\xa5chunk\x01", FrameError::Option),
        (&long_chunk, FrameError::Option),
        (b"", FrameError::Malformed),
        (b"\xc0\xc0", FrameError::Malformed),
        (b"\x92\xa1t\x90\x90", FrameError::Malformed),
        (b"\x92\xa1t\x91", FrameError::Malformed),
        (b"\x92\xa1t\xdd\xff\xff\xff\xff\xc0", FrameError::Malformed),
        (b"\x93\xa1t\x90\xdf\xff\xff\xff\xff\xc0", FrameError::Malformed),
    ] {
        assert_eq!(Request::parse(bytes), Err(error), "{bytes:02x?}");
    }
}

#[test]
fn options_come_in_any_order_and_unknown_ones_are_ignored() {
    let bytes = b"\x93\xa1t\x90\xdf\0\0\0\x08\x01\x02\xa1x\x91\xc0\xa4size\xcd\x01\0\xd9\x05chunk\xc4\x02c\n\xaacompressed\xa4text\
        \xadfluent_signal\x00\xa8metadata\x81\x01\x02\xc4\x01z\xd4\x05\x05";
    let option = frame(bytes).option;
    assert_eq!((option.size, option.chunk, option.compressed), (Some(256), Some(&b"c\n"[..]), Some(&b"text"[..])));
    assert_eq!((option.fluent_signal, option.metadata), (Some(0), Some(&b"\x81\x01\x02"[..])));
    assert_eq!(option.raw, Some(&bytes[4..]));
    let nil = frame(b"\x93\xa1t\x90\x81\xa5chunk\xc0").option;
    assert_eq!(nil.chunk, None);
}

#[test]
fn sound_entries_are_journaled_as_received() {
    let mut scratch = Scratch::default();
    let entries = b"\x92\x01\x80\x92\xd7\0\0\0\0\x01\0\0\0\x02\x81\xa1a\xa1\xff";
    let forward = [b"\x93\xa1t\x92", &entries[..], b"\xc0"].concat();
    let packed = [b"\x92\xa1t\xc4\x13", &entries[..]].concat();
    for bytes in [&forward, &packed] {
        let frame = frame(bytes);
        let accepted = frame.accept(&mut scratch).unwrap();
        assert_eq!((accepted.entries, accepted.events, accepted.invalid), (&entries[..], 2, 0));
        assert!(accepted.plain && accepted.encoding == Encoding::Plain);
        assert!(bytes.as_ptr_range().contains(&accepted.entries.as_ptr()), "borrowed from the frame");
    }
    let mut blob = Vec::new();
    gzip(&mut blob, entries);
    gzip(&mut blob, entries);
    let bytes = [b"\x92\xa1t\xc4", &[blob.len() as u8][..], &blob].concat();
    let frame = frame(&bytes);
    let accepted = frame.accept(&mut scratch).unwrap();
    assert_eq!((accepted.entries, accepted.events, accepted.encoding), (&blob[..], 4, Encoding::Gzip));
}

#[test]
fn a_message_becomes_one_entry() {
    let mut scratch = Scratch::default();
    for (bytes, entries, plain) in [
        (&b"\x93\xa1t\xd2\0\0\0\x05\x81\xa1a\x01"[..], &b"\x92\xd2\0\0\0\x05\x81\xa1a\x01"[..], true),
        (b"\x94\xa1t\x05\x80\x81\xa8metadata\x80", b"\x92\x05\x80", true),
        (b"\x94\xa1t\x05\x80\x81\xa8metadata\x81\x01\x02", b"\x92\x92\x05\x81\x01\x02\x80", false),
    ] {
        let accepted = frame(bytes).accept(&mut scratch).unwrap();
        assert_eq!((accepted.entries, accepted.events, accepted.plain), (entries, 1, plain), "{bytes:02x?}");
    }
    for bytes in [&b"\x93\xa1t\x05\x90"[..], b"\x93\xa1t\xd4\x05\x01\x80"] {
        let accepted = frame(bytes).accept(&mut scratch).unwrap();
        assert_eq!((accepted.entries, accepted.events, accepted.invalid), (&b""[..], 0, 1), "{bytes:02x?}");
    }
}

#[test]
fn unsound_entries_are_left_out() {
    let mut scratch = Scratch::default();
    let entries = b"\x92\x01\x80\x93\x01\x02\x03\x92\x02\x80";
    let mut blob = Vec::new();
    gzip(&mut blob, entries);
    for bytes in [
        [b"\x92\xa1t\x93", &entries[..]].concat(),
        [b"\x92\xa1t\xc4\x0a", &entries[..]].concat(),
        [b"\x92\xa1t\xc4", &[blob.len() as u8][..], &blob].concat(),
    ] {
        let accepted = frame(&bytes).accept(&mut scratch).unwrap();
        assert_eq!((accepted.entries, accepted.events, accepted.invalid), (&b"\x92\x01\x80\x92\x02\x80"[..], 2, 1));
        assert_eq!(accepted.encoding, Encoding::Plain);
    }
    let accepted = frame(b"\x92\xa1t\xc4\x05\x92\x01\x80\x92\x02").accept(&mut scratch).unwrap();
    assert_eq!((accepted.entries, accepted.events, accepted.invalid), (&b"\x92\x01\x80"[..], 1, 1));
}

#[test]
fn a_frame_without_entries_is_accepted() {
    let mut scratch = Scratch::default();
    let mut blob = Vec::new();
    gzip(&mut blob, b"");
    let compressed = [b"\x92\xa1t\xc4", &[blob.len() as u8][..], &blob].concat();
    for bytes in [&b"\x92\xa1t\x90"[..], b"\x92\xa1t\xc4\0", b"\x93\xa1t\xc4\0\x81\xaacompressed\xa4gzip", &compressed]
    {
        let accepted = frame(bytes).accept(&mut scratch).unwrap();
        assert_eq!((accepted.entries, accepted.events, accepted.invalid), (&b""[..], 0, 0));
    }
}

#[test]
fn what_cannot_be_kept_has_a_name() {
    let mut scratch = Scratch::new(1000);
    let mut accept = |bytes: &[u8]| frame(bytes).accept(&mut scratch).map(|accepted| accepted.events).unwrap_err();
    assert!(matches!(accept(b"\x92\xa0\x91\x92\x01\x80"), AcceptError::EmptyTag));
    assert!(matches!(accept(b"\x93\xa1t\xc4\x01\x80\x81\xadfluent_signal\x02"), AcceptError::NotLogs(2)));
    assert!(matches!(accept(b"\x93\xa1t\xc4\x01\x80\x81\xaacompressed\xa3lz4"), AcceptError::Compression));
    assert!(matches!(accept(b"\x93\xa1t\xc4\x01\x80\x81\xaacompressed\xa4gzip"), AcceptError::Compression));
    let mut bomb = Vec::new();
    gzip(&mut bomb, &[0; 1001]);
    let bytes = [b"\x92\xa1t\xc4", &[bomb.len() as u8][..], &bomb].concat();
    assert!(matches!(accept(&bytes), AcceptError::Inflate(InflateError::TooLarge { limit: 1000 })));
    let bytes = b"\x92\xa1t\xc4\x04\x1f\x8b\x08\x00";
    assert!(matches!(accept(bytes), AcceptError::Inflate(InflateError::Corrupt { encoding: "gzip", .. })));
}
