//! A small RELP client, which counts its frames by itself.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// As librelp 1.11 offers.
const OFFERS: &str = "relp_version=0\nrelp_software=librelp,1.11.0,http://librelp.adiscon.com\ncommands=syslog";

/// A connection as a client has it, plain or inside TLS.
pub struct Client<S> {
    stream: S,
    received: Vec<u8>,
    /// Number of the last frame that was sent.
    pub sent: u32,
}

/// A frame of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its number.
    pub txnr: u32,
    /// Its command.
    pub command: String,
    /// Its data.
    pub data: Vec<u8>,
}

impl Client<TcpStream> {
    /// Connects and opens a session.
    #[track_caller]
    pub fn connect(to: SocketAddr) -> Client<TcpStream> {
        let stream = TcpStream::connect(to).expect("twinlog accepts connections");
        stream.set_read_timeout(Some(super::SOON)).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        Client::of(stream)
    }
}

impl<S: Read + Write> Client<S> {
    /// Opens a session on this connection.
    #[track_caller]
    pub fn of(stream: S) -> Client<S> {
        let mut client = Client { stream, received: Vec::new(), sent: 0 };
        client.send("open", OFFERS.as_bytes());
        let opened = client.next().expect("an answer to open");
        let text = String::from_utf8_lossy(&opened.data).into_owned();
        assert_eq!((opened.txnr, opened.command.as_str(), &text[..7]), (1, "rsp", "200 OK\n"));
        assert!(text.ends_with("commands=syslog"), "{text}");
        client
    }

    /// Sends a frame with the next number.
    #[track_caller]
    pub fn send(&mut self, command: &str, data: &[u8]) {
        assert!(self.try_send(command, data), "twinlog reads");
    }

    /// The same, as far as the other side takes it.
    pub fn try_send(&mut self, command: &str, data: &[u8]) -> bool {
        self.sent += 1;
        self.stream.write_all(&frame(self.sent, command, data)).is_ok()
    }

    /// Sends bytes that may be no frame.
    #[track_caller]
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("twinlog reads");
    }

    /// The next frame; `None` at the connection's end.
    pub fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, length)) = parse(&self.received) {
                self.received.drain(..length);
                return Some(frame);
            }
            let mut more = [0; 4096];
            match self.stream.read(&mut more) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.received.extend_from_slice(&more[..count]),
            }
        }
    }

    /// Reads the answer that says that frame `txnr` is safe.
    #[track_caller]
    pub fn expect_ok(&mut self, txnr: u32) {
        let expected = Frame { txnr, command: "rsp".to_owned(), data: b"200 OK".to_vec() };
        assert_eq!(self.next(), Some(expected));
    }

    /// Reads `serverclose` and the end.
    #[track_caller]
    pub fn expect_goodbye(&mut self) {
        let expected = Frame { txnr: 0, command: "serverclose".to_owned(), data: Vec::new() };
        assert_eq!(self.next(), Some(expected));
        assert_eq!(self.next(), None);
    }
}

/// The bytes of a frame.
pub fn frame(txnr: u32, command: &str, data: &[u8]) -> Vec<u8> {
    let space: &[u8] = if data.is_empty() { b"" } else { b" " };
    [format!("{txnr} {command} {}", data.len()).as_bytes(), space, data, b"\n"].concat()
}

fn parse(bytes: &[u8]) -> Option<(Frame, usize)> {
    let head = bytes.iter().position(|byte| *byte == b'\n')?;
    let mut fields = bytes[..head].splitn(4, |byte| *byte == b' ');
    let mut text = || fields.next().map(|field| String::from_utf8_lossy(field).into_owned());
    let (txnr, command) = (text()?.parse().expect("a number"), text()?);
    let length: usize = text()?.parse().expect("a length");
    let begin = bytes[..head].len() - fields.next().map_or(0, <[u8]>::len);
    let end = begin + length;
    if bytes.len() <= end {
        return None;
    }
    assert_eq!(bytes[end], b'\n', "{}", bytes.escape_ascii());
    Some((Frame { txnr, command, data: bytes[begin..end].to_vec() }, end + 1))
}
