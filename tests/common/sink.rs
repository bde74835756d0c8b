//! A destination: takes messages over TCP, TLS or UDP and keeps them in the order of arrival.

use std::io::{ErrorKind, Read};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::wait_until_within;

/// How the stream is cut into messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// RFC 6587, 3.4.2.
    Lf,
    /// RFC 6587, 3.4.1.
    Octet,
    /// Octet-counted if digits, a space and `<` come, else a line: what most receivers do.
    Either,
}

/// How often a sink looks whether it is to stop.
const TICK: Duration = Duration::from_millis(5);

/// A running destination; it ends with the value.
pub struct Sink {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    messages: Mutex<Vec<Vec<u8>>>,
    stalled: AtomicBool,
    stopping: AtomicBool,
    connections: AtomicUsize,
}

impl Sink {
    /// Listens on TCP.
    pub fn tcp(address: SocketAddr, framing: Framing) -> Sink {
        Sink::streams(address, framing, None)
    }

    /// Listens on TCP and shakes hands.
    pub fn tls(address: SocketAddr, framing: Framing, config: Arc<ServerConfig>) -> Sink {
        Sink::streams(address, framing, Some(config))
    }

    fn streams(address: SocketAddr, framing: Framing, tls: Option<Arc<ServerConfig>>) -> Sink {
        let listener = TcpListener::bind(address).expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        Sink::run(address, move |shared| accept(&listener, framing, tls.as_ref(), shared))
    }

    /// Listens on UDP.
    pub fn udp(address: SocketAddr) -> Sink {
        let socket = UdpSocket::bind(address).expect("a free port");
        socket.set_read_timeout(Some(TICK)).expect("a socket");
        Sink::run(address, move |shared| receive(&socket, shared))
    }

    fn run(address: SocketAddr, work: impl FnOnce(&Arc<Shared>) + Send + 'static) -> Sink {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        Sink { address, shared, thread: Some(std::thread::spawn(move || work(&theirs))) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What has arrived so far.
    pub fn messages(&self) -> Vec<Vec<u8>> {
        self.shared.messages.lock().expect("sinks do not panic").clone()
    }

    /// How many have arrived so far.
    pub fn count(&self) -> usize {
        self.shared.messages.lock().expect("sinks do not panic").len()
    }

    /// Connections now open.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Waits for at least `count` messages and gives all.
    #[track_caller]
    pub fn wait_for(&self, count: usize) -> Vec<Vec<u8>> {
        // For how long is a matter of the number: a test may send a hundred thousand on a busy machine.
        let limit = Duration::from_secs(20) + Duration::from_millis(count as u64 / 2);
        let mut last = 0;
        wait_until_within(limit, &format!("{count} messages at {}", self.address), || {
            last = self.count();
            last >= count
        });
        self.messages()
    }

    /// Leaves what comes in the kernel from now on, so that the sender's window closes.
    pub fn stall(&self) {
        self.shared.stalled.store(true, Ordering::Relaxed);
    }

    /// Reads again.
    pub fn resume(&self) {
        self.shared.stalled.store(false, Ordering::Relaxed);
    }

    /// Stops listening, half-closes the connections and reads them to their end, as a receiver should: what its kernel
    /// has acknowledged is not lost.
    pub fn close(mut self) -> Vec<Vec<u8>> {
        self.end();
        self.messages()
    }

    fn end(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    fn keep(&self, messages: impl IntoIterator<Item = Vec<u8>>) {
        self.messages.lock().expect("sinks do not panic").extend(messages);
    }
}

fn receive(socket: &UdpSocket, shared: &Shared) {
    let mut datagram = vec![0; 65_536];
    while !shared.stopping() {
        if let Ok(length) = socket.recv(&mut datagram) {
            shared.keep([datagram[..length].to_vec()]);
        }
    }
}

fn accept(listener: &TcpListener, framing: Framing, tls: Option<&Arc<ServerConfig>>, shared: &Arc<Shared>) {
    let mut connections = Vec::new();
    while !shared.stopping() {
        match listener.accept() {
            Ok((stream, _)) => {
                let shared = shared.clone();
                let incoming = Incoming::new(stream, tls);
                shared.connections.fetch_add(1, Ordering::Relaxed);
                connections.push(std::thread::spawn(move || {
                    read(incoming, framing, &shared);
                    shared.connections.fetch_sub(1, Ordering::Relaxed);
                }));
            }
            Err(_) => std::thread::sleep(TICK),
        }
    }
    for connection in connections {
        let _ = connection.join();
    }
}

/// A connection with or without TLS.
enum Incoming {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Incoming {
    fn new(stream: TcpStream, tls: Option<&Arc<ServerConfig>>) -> Incoming {
        stream.set_nonblocking(false).expect("a socket");
        stream.set_read_timeout(Some(TICK)).expect("a socket");
        match tls {
            None => Incoming::Plain(stream),
            Some(config) => {
                let session = ServerConnection::new(config.clone()).expect("a configuration");
                Incoming::Tls(Box::new(StreamOwned::new(session, stream)))
            }
        }
    }

    fn read(&mut self, chunk: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Incoming::Plain(stream) => stream.read(chunk),
            Incoming::Tls(stream) => stream.read(chunk),
        }
    }

    fn half_close(&mut self) {
        let _ = match self {
            Incoming::Plain(stream) => stream.shutdown(Shutdown::Write),
            Incoming::Tls(stream) => {
                stream.conn.send_close_notify();
                let _ = stream.conn.write_tls(&mut stream.sock);
                stream.sock.shutdown(Shutdown::Write)
            }
        };
    }
}

fn read(mut stream: Incoming, framing: Framing, shared: &Shared) {
    let (mut chunk, mut pending) = (vec![0; 256 * 1024], Vec::new());
    let mut half_closed = false;
    loop {
        if shared.stopping() && !half_closed {
            half_closed = true;
            stream.half_close();
        }
        if shared.stalled.load(Ordering::Relaxed) && !half_closed {
            std::thread::sleep(TICK);
            continue;
        }
        match stream.read(&mut chunk) {
            Ok(0) => return,
            Ok(length) => {
                pending.extend_from_slice(&chunk[..length]);
                shared.keep(take_frames(&mut pending, framing));
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

/// Takes the whole frames out of `bytes`. What is cut off by the end of a connection is no message: it comes again.
fn take_frames(bytes: &mut Vec<u8>, framing: Framing) -> Vec<Vec<u8>> {
    let (mut frames, mut at) = (Vec::new(), 0);
    while let Some((begin, end, next)) = frame(&bytes[at..], framing) {
        frames.push(bytes[at + begin..at + end].to_vec());
        at += next;
    }
    bytes.drain(..at);
    frames
}

/// Begin and end of the first frame's content, and where the next begins.
fn frame(bytes: &[u8], framing: Framing) -> Option<(usize, usize, usize)> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let is_counted = match framing {
        Framing::Lf => false,
        Framing::Octet => true,
        Framing::Either => digits > 0 && bytes.get(digits..digits + 2)? == b" <",
    };
    if !is_counted {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        return Some((0, end, end + 1));
    }
    let space = bytes.get(digits)?;
    assert_eq!(*space, b' ', "an octet count");
    let count: usize = std::str::from_utf8(&bytes[..digits]).expect("digits").parse().expect("a length");
    let (begin, end) = (digits + 1, digits + 1 + count);
    (end <= bytes.len()).then_some((begin, end, end))
}
