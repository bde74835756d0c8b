//! A small fluent-forward client, and the forward chunks that a journal holds.
//!
//! What the client writes is put together byte by byte, so that no mistake of the codec under test can hide in it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha512};
use twinlog::proto::envelope::{Kind, Transport};

use super::journal;

/// A connection as a client has it.
pub struct Client {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Client {
    /// Connects.
    #[track_caller]
    pub fn connect(to: SocketAddr) -> Client {
        Client::of(TcpStream::connect(to).expect("twinlog accepts connections"))
    }

    /// Speaks over this connection.
    pub fn of(stream: TcpStream) -> Client {
        stream.set_read_timeout(Some(super::SOON)).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        Client { stream, received: Vec::new() }
    }

    /// Sends.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("twinlog reads");
    }

    /// Sends as far as the other side takes it.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Says that nothing more comes.
    pub fn finish(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).expect("a connection");
    }

    /// The same, if the other side has not closed already.
    pub fn finish_if_open(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Reads exactly these bytes.
    #[track_caller]
    pub fn expect(&mut self, bytes: &[u8]) {
        let mut got = vec![0; bytes.len()];
        self.stream.read_exact(&mut got).expect("an answer");
        assert_eq!(got.escape_ascii().to_string(), bytes.escape_ascii().to_string());
    }

    /// Reads the acknowledgement of this chunk.
    #[track_caller]
    pub fn expect_ack(&mut self, chunk: &[u8]) {
        self.expect(&ack(chunk));
    }

    /// What comes within the time; empty if nothing does.
    pub fn read_within(&mut self, limit: Duration) -> Vec<u8> {
        self.stream.set_read_timeout(Some(limit)).expect("a socket");
        let mut got = vec![0; 4096];
        let count = self.stream.read(&mut got).unwrap_or_default();
        self.stream.set_read_timeout(Some(super::SOON)).expect("a socket");
        got.truncate(count);
        got
    }

    /// Reads up to the other side's close: what came before it.
    #[track_caller]
    pub fn read_to_close(&mut self) -> Vec<u8> {
        let mut got = Vec::new();
        match self.stream.read_to_end(&mut got) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the connection stays open: {error}"),
        }
        got
    }

    /// The next acknowledged chunk; `None` at the connection's end.
    pub fn next_ack(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some((id, length)) = read_ack(&self.received) {
                self.received.drain(..length);
                return Some(id);
            }
            let mut more = [0; 4096];
            match self.stream.read(&mut more) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.received.extend_from_slice(&more[..count]),
            }
        }
    }

    /// Does the handshake; the PONG as it came: whether it was true, and the rest.
    #[track_caller]
    pub fn shake_hands(&mut self, key: &[u8], user: &str, password: &[u8]) -> (bool, Vec<u8>) {
        let helo = self.read_within(super::SOON);
        assert!(helo.starts_with(b"\x92\xa4HELO\x83\xa5nonce\xc4\x10"), "{}", helo.escape_ascii());
        let nonce = &helo[15..31];
        let auth = helo[31..].strip_prefix(b"\xa4auth\xc4\x10").map_or(&b""[..], |rest| &rest[..16]);
        // Raw bytes in a str, as fluent-bit sends them.
        let salt = [0xff_u8; 16];
        let key_digest = hex(&[&salt, b"client", nonce, key]);
        let password_digest = hex(&[auth, user.as_bytes(), password]);
        let mut ping = b"\x96\xa4PING\xa6client\xb0".to_vec();
        ping.extend_from_slice(&salt);
        ping.extend([&[0xd9, 128][..], key_digest.as_bytes()].concat());
        ping.push(0xa0 | u8::try_from(user.len()).expect("a short name"));
        ping.extend_from_slice(user.as_bytes());
        ping.extend([&[0xd9, 128][..], password_digest.as_bytes()].concat());
        self.send(&ping);
        let pong = self.read_within(super::SOON);
        assert!(pong.starts_with(b"\x95\xa4PONG"), "{}", pong.escape_ascii());
        (pong[6] == 0xc3, pong)
    }
}

fn hex(parts: &[&[u8]]) -> String {
    let digest = Sha512::digest(parts.concat());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `{"ack": chunk}`.
pub fn ack(chunk: &[u8]) -> Vec<u8> {
    [b"\x81\xa3ack", str_of(chunk).as_slice()].concat()
}

fn read_ack(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let rest = bytes.strip_prefix(b"\x81\xa3ack")?;
    let (head, length) = match *rest.first()? {
        short @ 0xa0..=0xbf => (1, usize::from(short & 0x1f)),
        0xd9 => (2, usize::from(*rest.get(1)?)),
        other => panic!("{other:#x} begins no id that was sent"),
    };
    Some((rest.get(head..head + length)?.to_vec(), 5 + head + length))
}

/// A str.
pub fn str_of(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("short");
    let head = match length {
        0..32 => vec![0xa0 | length as u8],
        32..256 => vec![0xd9, length as u8],
        _ => [&[0xdb][..], &length.to_be_bytes()].concat(),
    };
    [head, bytes.to_vec()].concat()
}

/// A bin.
pub fn bin_of(bytes: &[u8]) -> Vec<u8> {
    [&[0xc6][..], &u32::try_from(bytes.len()).expect("short").to_be_bytes(), bytes].concat()
}

/// `{"message": text}`.
pub fn record(text: &str) -> Vec<u8> {
    [b"\x81\xa7message".to_vec(), str_of(text.as_bytes())].concat()
}

/// An EventTime, as fixext 8.
pub fn event_time(seconds: u32, nanos: u32) -> Vec<u8> {
    [&[0xd7, 0][..], &seconds.to_be_bytes(), &nanos.to_be_bytes()].concat()
}

/// An entry, with an EventTime.
pub fn entry(text: &str) -> Vec<u8> {
    [vec![0x92], event_time(1_773_144_000, 7), record(text)].concat()
}

/// Entries `NAME 0`, `NAME 1` and so on, packed.
pub fn entries(name: &str, count: usize) -> Vec<u8> {
    (0..count).flat_map(|number| entry(&format!("{name} {number}"))).collect()
}

fn with_option(mut frame: Vec<u8>, chunk: Option<&[u8]>, more: &[(&str, &[u8])]) -> Vec<u8> {
    if chunk.is_none() && more.is_empty() {
        return frame;
    }
    frame[0] += 1;
    frame.push(0x80 | (more.len() + usize::from(chunk.is_some())) as u8);
    if let Some(chunk) = chunk {
        frame.extend([str_of(b"chunk"), str_of(chunk)].concat());
    }
    for (key, value) in more {
        frame.extend([&str_of(key.as_bytes())[..], value].concat());
    }
    frame
}

/// A frame in Message mode.
pub fn message_mode(tag: &[u8], text: &str, chunk: Option<&[u8]>) -> Vec<u8> {
    let frame = [&[0x93][..], &str_of(tag), &event_time(1_773_144_000, 7), &record(text)].concat();
    with_option(frame, chunk, &[])
}

/// A frame in Forward mode, of `count` entries.
pub fn forward_mode(tag: &[u8], name: &str, count: u16, chunk: Option<&[u8]>) -> Vec<u8> {
    let packed = entries(name, count.into());
    let frame = [&[0x92][..], &str_of(tag), &[0xdc], &count.to_be_bytes(), &packed].concat();
    with_option(frame, chunk, &[])
}

/// A frame in PackedForward mode, of these entries, maybe compressed.
pub fn packed(tag: &[u8], packed: &[u8], chunk: Option<&[u8]>) -> Vec<u8> {
    packed_with(tag, packed, chunk, &[])
}

/// The same with more options, each value as MessagePack.
pub fn packed_with(tag: &[u8], packed: &[u8], chunk: Option<&[u8]>, more: &[(&str, &[u8])]) -> Vec<u8> {
    with_option([&[0x92][..], &str_of(tag), &bin_of(packed)].concat(), chunk, more)
}

/// Compressed with gzip.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    twinlog::proto::forward::compression::gzip(&mut out, bytes);
    out
}

/// A chunk as the journal holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journaled {
    /// The input.
    pub input: String,
    /// The tag.
    pub tag: Vec<u8>,
    /// The chunk's id.
    pub id: Option<Vec<u8>>,
    /// The entries, maybe compressed.
    pub entries: Vec<u8>,
    /// Number of events.
    pub events: u32,
    /// How it came.
    pub transport: Transport,
}

/// Every chunk in the journal below `data_dir`, in order, as far as it is written.
pub fn journaled(data_dir: &Path) -> Vec<Journaled> {
    let mut chunks = Vec::new();
    for batch in journal::batches(data_dir) {
        for envelope in batch.envelopes() {
            let Kind::Forward(chunk) = envelope.kind else { continue };
            chunks.push(Journaled {
                input: envelope.origin.input.to_owned(),
                tag: envelope.origin.tag.to_vec(),
                id: chunk.id.map(<[u8]>::to_vec),
                entries: envelope.payload.to_vec(),
                events: chunk.events,
                transport: envelope.origin.transport,
            });
        }
    }
    chunks
}
