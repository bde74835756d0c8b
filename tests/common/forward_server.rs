//! A server of fluent-forward that answers as it is told, and keeps what it gets.
//!
//! It is made of the library's own codec, which `forward_corpus.rs` holds against captured clients and servers.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use twinlog::journal::{FileStorage, Journal, Limits, OWN_DIRECTORY, Settings, WhenFull};
use twinlog::proto::batch::BatchBuilder;
use twinlog::proto::envelope::{Chunk, Flags, Origin, Timestamp, Transport};
use twinlog::proto::forward::ack::write_ack;
use twinlog::proto::forward::compression::inflate;
use twinlog::proto::forward::entry::Entries;
use twinlog::proto::forward::handshake::{Security, Server};
use twinlog::proto::forward::json::write_json;
use twinlog::proto::forward::message::{Mode, Request, Scratch};
use twinlog::proto::forward::scan::{Scanner, Step};
use twinlog::proto::pair::promise::Acknowledge;
use twinlog::proto::position::Incarnation;

use super::wait_until_within;

/// How often a server looks whether it is to stop or to answer in another way.
const TICK: Duration = Duration::from_millis(5);
const FRAME_BYTES_MAX: usize = 64 << 20;

/// How a server answers a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// At once.
    #[default]
    Right,
    /// When the answer is another again, the newest chunk first.
    Held,
    /// In single bytes.
    Split,
    /// With an id that nobody sent.
    WrongId,
    /// By closing, in place of the acknowledgement.
    Close,
    /// By closing in the middle of the frame.
    Cut,
    /// It does not even read.
    Deaf,
}

/// A frame as it came.
#[derive(Clone, Debug)]
pub struct Got {
    /// Which of the server's connections it came on.
    pub connection: usize,
    pub chunk: Option<String>,
    pub tag: String,
    pub mode: Mode,
    pub events: u64,
    /// The entries, decompressed.
    pub packed: Vec<u8>,
}

impl Got {
    /// The records.
    pub fn records(&self) -> Vec<Value> {
        let json = |record: &[u8]| {
            let mut out = Vec::new();
            write_json(&mut out, record).expect("a record");
            serde_json::from_slice(&out).expect("JSON")
        };
        Entries::new(&self.packed).map(|entry| json(entry.record)).collect()
    }
}

/// A running server; it ends with the value.
pub struct ForwardServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    got: Mutex<Vec<Got>>,
    answer: Mutex<Answer>,
    stopping: AtomicBool,
    connections: AtomicUsize,
    security: Option<Security>,
}

impl ForwardServer {
    /// A server that acknowledges at once.
    pub fn new(address: SocketAddr) -> ForwardServer {
        ForwardServer::start(address, Answer::Right, None)
    }

    /// A server that answers so, after a handshake if there is `security`.
    pub fn start(address: SocketAddr, answer: Answer, security: Option<Security>) -> ForwardServer {
        let listener = TcpListener::bind(address).expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let shared = Arc::new(Shared { answer: Mutex::new(answer), security, ..Shared::default() });
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || accept(&listener, &shared)
        });
        ForwardServer { address, shared, thread: Some(thread) }
    }

    /// `host:port`, as `to` wants it.
    pub fn target(&self) -> String {
        self.address.to_string()
    }

    /// Answers so from now on.
    pub fn answer(&self, answer: Answer) {
        *self.shared.answer.lock().expect("no thread panics") = answer;
    }

    /// What came so far.
    pub fn got(&self) -> Vec<Got> {
        self.shared.got.lock().expect("no thread panics").clone()
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Waits until so many events came, repeats included, and gives the frames.
    #[track_caller]
    pub fn wait_for(&self, events: usize) -> Vec<Got> {
        wait_until_within(Duration::from_secs(30), "the events are there", || events_of(&self.got()) >= events);
        self.got()
    }

    /// Ends, cutting its connections, and gives what came.
    pub fn close(mut self) -> Vec<Got> {
        self.end();
        self.got()
    }

    fn end(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for ForwardServer {
    fn drop(&mut self) {
        self.end();
    }
}

/// How many events frames have.
pub fn events_of(got: &[Got]) -> usize {
    got.iter().map(|got| got.events as usize).sum()
}

/// The `message` of every event, each frame counted once by its id: what a destination that drops repeats keeps.
pub fn messages_once(got: &[Got]) -> Vec<String> {
    let mut seen = std::collections::HashMap::new();
    let mut messages = Vec::new();
    for got in got {
        let id = got.chunk.clone().expect("a chunk has an id");
        match seen.insert(id.clone(), got.packed.clone()) {
            Some(before) => assert_eq!(before, got.packed, "{id} came with other entries"),
            None => messages.extend(got.records().iter().map(|r| r["message"].as_str().expect("a text").to_owned())),
        }
    }
    messages
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut threads = Vec::new();
    while !shared.stopping.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                let connection = shared.connections.fetch_add(1, Ordering::Relaxed);
                let shared = shared.clone();
                threads.push(std::thread::spawn(move || serve(stream, connection, &shared)));
            }
            Err(_) => std::thread::sleep(TICK),
        }
    }
    for thread in threads {
        let _ = thread.join();
    }
}

/// What a connection has read and not yet taken apart.
struct Input {
    bytes: Vec<u8>,
    scanner: Scanner,
}

impl Input {
    /// The next whole value; `None` when the connection or the server ends. `idle` is called while there is none.
    fn next(
        &mut self,
        stream: &mut TcpStream,
        shared: &Shared,
        mut idle: impl FnMut(&mut TcpStream),
    ) -> Option<Vec<u8>> {
        let mut chunk = vec![0; 64 * 1024];
        loop {
            if !self.bytes.is_empty()
                && let Step::Complete(length) = self.scanner.scan(&self.bytes).expect("MessagePack")
            {
                return Some(self.bytes.drain(..length).collect());
            }
            if shared.stopping.load(Ordering::Relaxed) {
                let _ = stream.shutdown(Shutdown::Both);
                return None;
            }
            idle(stream);
            let answer = *shared.answer.lock().expect("no thread panics");
            if answer == Answer::Cut && !self.bytes.is_empty() {
                return None;
            }
            if answer == Answer::Deaf {
                std::thread::sleep(TICK);
                continue;
            }
            match stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(length) => self.bytes.extend_from_slice(&chunk[..length]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return None,
            }
        }
    }
}

fn serve(mut stream: TcpStream, connection: usize, shared: &Shared) {
    stream.set_nonblocking(false).expect("a socket");
    stream.set_nodelay(true).expect("a socket");
    stream.set_read_timeout(Some(TICK)).expect("a socket");
    let mut input = Input { bytes: Vec::new(), scanner: Scanner::new(FRAME_BYTES_MAX) };
    if let Some(security) = &shared.security {
        let server = Server::new(security, [7; 32]);
        let _ = stream.write_all(&server.helo());
        let Some(ping) = input.next(&mut stream, shared, |_| {}) else { return };
        let verdict = server.handle_ping(security, &ping);
        let _ = stream.write_all(&verdict.reply);
        if verdict.outcome.is_err() {
            return;
        }
    }
    let answer = || *shared.answer.lock().expect("no thread panics");
    let (mut held, mut scratch) = (Vec::new(), Scratch::default());
    loop {
        let release = |stream: &mut TcpStream| {
            if answer() == Answer::Right {
                while let Some(chunk) = held.pop() {
                    acknowledge(stream, chunk, 511);
                }
            }
        };
        let Some(frame) = input.next(&mut stream, shared, release) else { return };
        let Ok(Request::Frame(frame)) = Request::parse(&frame) else { panic!("not a frame: {frame:02x?}") };
        let accepted = frame.accept(&mut scratch).expect("entries");
        assert_eq!((accepted.invalid, accepted.plain), (0, true), "every receiver must take it");
        let mut packed = Vec::new();
        inflate(&mut packed, accepted.entries, FRAME_BYTES_MAX).expect("a stream");
        let chunk = frame.option.chunk.map(|id| String::from_utf8(id.to_vec()).expect("base64"));
        let tag = String::from_utf8(frame.tag.to_vec()).expect("a tag of ours");
        let got = Got { connection, chunk: chunk.clone(), tag, mode: frame.mode, events: accepted.events, packed };
        let now = answer();
        shared.got.lock().expect("no thread panics").push(got);
        let Some(chunk) = chunk else { continue };
        match now {
            Answer::Right => acknowledge(&mut stream, chunk, 511),
            Answer::Split => acknowledge(&mut stream, chunk, 1),
            Answer::WrongId => acknowledge(&mut stream, "AAAAAAAAAAAAAAAAAAAAAA==".to_owned(), 511),
            Answer::Held | Answer::Deaf => held.push(chunk),
            Answer::Close | Answer::Cut => return,
        }
    }
}

fn acknowledge(stream: &mut TcpStream, chunk: String, piece: usize) {
    let mut ack = Vec::new();
    write_ack(&mut ack, chunk.as_bytes());
    for piece in ack.chunks(piece) {
        let _ = stream.write_all(piece);
    }
}

/// A chunk as a client would have sent it, to put into a journal: tag, entries, how many, whether all are plain.
pub type Journaled<'a> = (&'a str, &'a [u8], u32, bool);

/// Puts chunks into the journal of a daemon that does not run; `name` is its output.
pub fn journal(data_dir: &Path, name: &str, chunks: &[Journaled<'_>]) {
    let directory = data_dir.join(OWN_DIRECTORY);
    std::fs::create_dir_all(&directory).expect("a directory in the lab");
    let storage = Arc::new(FileStorage::open(&directory).expect("a directory in the lab"));
    let settings = Settings {
        limits: Limits { segment_size: 64 << 20, max_size: 1 << 30 },
        commit_interval: Duration::ZERO,
        when_full: WhenFull::Block,
        acknowledge: Acknowledge::Durable,
    };
    let node = "node-a".parse().expect("a name");
    let journal = Journal::open(storage, &node, settings, &[name], Incarnation(0x19a_a3f0)).expect("a journal");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut builder = BatchBuilder::new();
        for (tag, entries, events, plain) in chunks {
            builder.set_origin(&Origin {
                received_at: Timestamp(1_773_144_000_000_000_000),
                source: Some("192.0.2.7:51400".parse().expect("an address")),
                transport: Transport::Tcp,
                input: "apps",
                tag: tag.as_bytes(),
            });
            builder.push_chunk(Flags::NONE, &Chunk { events: *events, plain: *plain, id: None }, entries);
        }
        let appender = journal.appender();
        let end = appender.append(builder).await.expect("room");
        appender.durable().wait_for(|durable| *durable >= end).await.expect("a disk");
    });
}
