//! The least that a relay can do which keeps what it takes: read, write to a file, sync it, send on.
//!
//! A process of its own, so that what it costs is counted like any relay's: this program, started with [`ARGUMENT`]. It
//! cuts what it reads behind the last line end, or, for chunks, not at all: then each connection goes on as one of its own,
//! and what comes back goes back. What it takes is sent on when it is synced, ten milliseconds after the oldest byte, into
//! a file whose blocks were written before. There is no checksum, no id, no memory of what was sent, and no second thread.
//! What a relay costs beside it is its own; what it costs, the kernel asks of everybody.

use std::fs::{self, File};
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::uio::pwritev;

use crate::relay::{Flow, Ports};

/// The first argument that makes this program the bare relay; the second is its configuration, beside which its file is.
pub const ARGUMENT: &str = "bare-relay";

const READ_BYTES: usize = 256 * 1024;
/// Bytes that are written before they are due, as twinlog does it.
const WRITE_BYTES: usize = 1 << 20;
/// Bytes of a lane at which it is synced and sent before it is due.
const LANE_BYTES: usize = 16 << 20;
/// Longest wait of a byte for its sync.
const COMMIT_INTERVAL: Duration = Duration::from_millis(10);
/// More than the sockets and the journal of any relay hold, and less than the page cache.
const FILE_BYTES: usize = 256 << 20;

/// Tokens of what is waited for: the listener, the connections by their numbers, and what comes back on their lanes.
const LISTENER: u64 = u64::MAX;
const BACK: u64 = 1 << 32;

/// What [`run`] reads.
pub fn config(ports: Ports, flow: Flow) -> Result<String> {
    let mode = match flow {
        Flow::Syslog => "lines",
        Flow::Forward => "chunks",
        Flow::File => bail!("the bare relay writes no files"),
    };
    Ok(format!("{} {} {mode}", ports.input, ports.sink))
}

/// Relays until it is killed.
pub fn run(config: &Path) -> Result<()> {
    let text = fs::read_to_string(config).context("reading the bare relay's configuration")?;
    let words: Vec<&str> = text.split(' ').collect();
    let [input, sink, mode] = words[..] else { bail!("the bare relay's configuration is {text:?}") };
    Bare::open(input.parse()?, sink.parse()?, mode == "lines", &config.with_file_name("journal"))?.relay()
}

struct Bare {
    epoll: Epoll,
    listener: TcpListener,
    sink: u16,
    /// All connections go to the first lane, cut into lines; else each to its own.
    lines: bool,
    sources: Vec<Option<Source>>,
    lanes: Vec<Lane>,
    file: File,
    /// Where in the file the next byte goes.
    at: usize,
    /// Since when something waits for its sync.
    since: Option<Instant>,
    _udp: UdpSocket,
}

struct Source {
    socket: TcpStream,
    lane: usize,
    /// Of a line that has not ended.
    begin: Vec<u8>,
}

/// A connection to the sink, and what waits for it.
struct Lane {
    socket: TcpStream,
    bytes: Box<[u8]>,
    filled: usize,
    written: usize,
}

impl Bare {
    fn open(input: u16, sink: u16, lines: bool, file: &Path) -> Result<Bare> {
        let file = File::options().read(true).write(true).create_new(true).open(file)?;
        let block = vec![0; WRITE_BYTES];
        for at in (0..FILE_BYTES).step_by(WRITE_BYTES) {
            pwritev(&file, &[IoSlice::new(&block)], at as i64)?;
        }
        file.sync_all()?;
        let epoll = Epoll::new(EpollCreateFlags::empty())?;
        // Nobody sends to it: whoever starts a relay waits until both are there.
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, input))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, input))?;
        listener.set_nonblocking(true)?;
        epoll.add(listener.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        let (sources, lanes) = (Vec::new(), Vec::new());
        Ok(Bare { epoll, listener, sink, lines, sources, lanes, file, at: 0, since: None, _udp: udp })
    }

    fn relay(mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let left =
                self.since.map(|since| COMMIT_INTERVAL.saturating_sub(since.elapsed()).as_micros().div_ceil(1000));
            let timeout = left.map_or(EpollTimeout::NONE, |left| EpollTimeout::from(left as u8));
            let count = self.epoll.wait(&mut events, timeout)?;
            for event in &events[..count] {
                match event.data() {
                    LISTENER => self.accept()?,
                    back @ BACK.. => self.pass_back((back - BACK) as usize)?,
                    source => self.take(source as usize)?,
                }
            }
            if self.since.is_some_and(|since| since.elapsed() >= COMMIT_INTERVAL) {
                self.commit()?;
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("accepting"),
            };
            socket.set_nonblocking(true)?;
            let number = self.sources.len() as u64;
            self.epoll.add(socket.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, number))?;
            let lane = if self.lines { 0 } else { self.sources.len() };
            self.sources.push(Some(Source { socket, lane, begin: Vec::new() }));
            if lane == self.lanes.len() {
                let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, self.sink)).context("connecting to the sink")?;
                if !self.lines {
                    self.epoll.add(socket.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, BACK + number))?;
                }
                let bytes = vec![0; LANE_BYTES].into();
                self.lanes.push(Lane { socket, bytes, filled: 0, written: 0 });
            }
        }
    }

    /// Reads once from a connection.
    fn take(&mut self, number: usize) -> Result<()> {
        let Some(source) = &mut self.sources[number] else { return Ok(()) };
        let lane = &mut self.lanes[source.lane];
        let from = lane.filled + source.begin.len();
        let read = match source.socket.read(&mut lane.bytes[from..from + READ_BYTES]) {
            Ok(0) => {
                // Closing it takes it out of the epoll.
                self.sources[number] = None;
                return Ok(());
            }
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("reading"),
        };
        lane.bytes[lane.filled..from].copy_from_slice(&source.begin);
        source.begin.clear();
        let end = from + read;
        let whole = if self.lines {
            memchr::memrchr(b'\n', &lane.bytes[lane.filled..end]).map_or(0, |last| last + 1)
        } else {
            end - lane.filled
        };
        lane.filled += whole;
        source.begin.extend_from_slice(&lane.bytes[lane.filled..end]);
        self.since.get_or_insert_with(Instant::now);
        if lane.filled - lane.written >= WRITE_BYTES {
            self.write()?;
        }
        // Room for one more read, with the begin of a line.
        if self.lanes.iter().any(|lane| lane.filled + 2 * READ_BYTES > LANE_BYTES) {
            self.commit()?;
        }
        Ok(())
    }

    /// Hands an answer of the sink back.
    fn pass_back(&mut self, number: usize) -> Result<()> {
        let mut answer = [0; 4096];
        let read = self.lanes[number].socket.read(&mut answer).context("reading answers")?;
        match &mut self.sources[number] {
            Some(source) if read > 0 => source.socket.write_all(&answer[..read]).context("answering"),
            _ => Ok(()),
        }
    }

    /// Writes what is not written yet, and begins the file anew where it ends.
    fn write(&mut self) -> Result<()> {
        for lane in &mut self.lanes {
            let mut left = &lane.bytes[lane.written..lane.filled];
            while !left.is_empty() {
                let part = &left[..left.len().min(FILE_BYTES - self.at)];
                let written = pwritev(&self.file, &[IoSlice::new(part)], self.at as i64)?;
                self.at = (self.at + written) % FILE_BYTES;
                left = &left[written..];
            }
            lane.written = lane.filled;
        }
        Ok(())
    }

    /// Makes all that was taken safe, and sends it on.
    fn commit(&mut self) -> Result<()> {
        self.since = None;
        self.write()?;
        self.file.sync_data()?;
        for lane in &mut self.lanes {
            lane.socket.write_all(&lane.bytes[..lane.filled]).context("sending")?;
            (lane.filled, lane.written) = (0, 0);
        }
        Ok(())
    }
}
