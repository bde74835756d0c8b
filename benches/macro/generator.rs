//! The load: one thread that writes stamped messages to a relay, over many TCP connections (as datagrams:
//! `datagrams.rs`).
//!
//! It shares the cores with the relay, so it must cost little: blocks of messages are built once and only their stamps
//! are written anew. One thread is enough: it makes some millions of messages a second.
//!
//! A paced message is stamped with the time at which it was *due*, not at which it was written: a relay that holds the
//! generator up pays for it in its latency. Those written together bear the time of the first.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::prctl;

use crate::measure::{Deadline, now_ns};
use crate::message::{LINE_BYTES, MESSAGE_BYTES, Stamp, unstamped, write_stamp};

/// Sleep of a generator that has nothing due, or nowhere to write: short against any relay's latency.
pub const TICK: Duration = Duration::from_micros(100);

/// How many messages are sent, on how many streams, and how fast.
#[derive(Clone, Copy)]
pub struct Plan {
    pub streams: u32,
    pub per_stream: u32,
    /// Messages a second over all streams; none: as fast as they are taken.
    pub rate: Option<u32>,
}

impl Plan {
    pub fn total(&self) -> u64 {
        u64::from(self.streams) * u64::from(self.per_stream)
    }

    /// How many messages should have been made by now, and when the next one is due.
    pub fn due(&self, start_ns: u64, made: u64) -> (u64, u64) {
        let now = now_ns();
        match self.rate {
            None => (self.total(), now),
            Some(rate) => {
                let due = (now - start_ns) as u128 * u128::from(rate) / 1_000_000_000;
                let next_ns = start_ns + made * 1_000_000_000 / u64::from(rate);
                (self.total().min(due as u64 + 1), next_ns)
            }
        }
    }
}

/// The generator's end of its TCP connections.
pub struct Connections(Vec<Connection>);

impl Connections {
    /// Connects all streams of `plan`, one after the other.
    pub fn open(relay: SocketAddr, plan: &Plan, deadline: Deadline) -> Result<Connections> {
        // Room for a write of 64 KiB each, less when there are thousands: their blocks are all in memory.
        let block_lines = (65_536 / plan.streams).clamp(16, 256);
        let connect = |stream| {
            deadline.check("connecting")?;
            Connection::open(relay, stream, block_lines as usize)
        };
        (0..plan.streams).map(connect).collect::<Result<_>>().map(Connections)
    }

    /// Sends the whole plan, round robin, and returns when the kernel has taken the last byte. What was sent before by a
    /// part of the plan is not sent again.
    pub fn send(&mut self, plan: &Plan, deadline: Deadline) -> Result<()> {
        self.send_while(plan, deadline, || true)
    }

    /// The same, but no new message is made when `wanted` has said no.
    pub fn send_while(&mut self, plan: &Plan, deadline: Deadline, wanted: impl Fn() -> bool) -> Result<()> {
        precise_sleep()?;
        let start_ns = now_ns();
        let mut made = 0;
        loop {
            deadline.check("sending over TCP")?;
            let mut progress = false;
            let is_wanted = wanted();
            for connection in &mut self.0 {
                let (due, due_ns) = plan.due(start_ns, made);
                if is_wanted && connection.is_flushed() {
                    let wanted = (due - made).min((plan.per_stream - connection.next).into());
                    made += connection.fill(wanted as usize, due_ns);
                }
                progress |= connection.flush()?;
            }
            let is_done = |connection: &Connection| !is_wanted || connection.next == plan.per_stream;
            if self.0.iter().all(|connection| connection.is_flushed() && is_done(connection)) {
                return Ok(());
            }
            if !progress {
                std::thread::sleep(TICK);
            }
        }
    }

    /// Messages made so far.
    pub fn sent(&self) -> u64 {
        self.0.iter().map(|connection| u64::from(connection.next)).sum()
    }

    /// Ends the streams and waits until the relay has closed each: it has then read everything.
    pub fn finish(self, deadline: Deadline) -> Result<()> {
        for Connection { mut socket, .. } in self.0 {
            socket.shutdown(Shutdown::Write).context("ending a stream")?;
            loop {
                match socket.read(&mut [0; 64]) {
                    Ok(0) => break,
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                    Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error.into()),
                    _ => deadline.pause(Duration::from_millis(1), "waiting for the relay to read to the end")?,
                }
            }
        }
        Ok(())
    }
}

struct Connection {
    socket: TcpStream,
    stream: u32,
    /// Sequence number of the next message to be made.
    next: u32,
    /// Prebuilt lines; those in `written..filled` are still to be sent.
    block: Vec<u8>,
    filled: usize,
    written: usize,
}

impl Connection {
    fn open(relay: SocketAddr, stream: u32, block_lines: usize) -> Result<Connection> {
        let socket = TcpStream::connect_timeout(&relay, Duration::from_secs(10))
            .with_context(|| format!("connecting stream {stream} to the relay"))?;
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let mut line = unstamped().to_vec();
        line.push(b'\n');
        Ok(Connection { socket, stream, next: 0, block: line.repeat(block_lines), filled: 0, written: 0 })
    }

    fn is_flushed(&self) -> bool {
        self.written == self.filled
    }

    /// Stamps up to `wanted` messages into the flushed block; returns how many.
    fn fill(&mut self, wanted: usize, sent_ns: u64) -> u64 {
        let lines = wanted.min(self.block.len() / LINE_BYTES);
        self.filled = lines * LINE_BYTES;
        self.written = 0;
        for line in self.block[..self.filled].chunks_exact_mut(LINE_BYTES) {
            write_stamp(&mut line[..MESSAGE_BYTES], Stamp { stream: self.stream, sequence: self.next }, sent_ns);
            self.next += 1;
        }
        lines as u64
    }

    /// Writes what the socket takes; whether it took anything.
    fn flush(&mut self) -> Result<bool> {
        if self.is_flushed() {
            return Ok(false);
        }
        match self.socket.write(&self.block[self.written..self.filled]) {
            Ok(bytes) => {
                self.written += bytes;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).context("writing to the relay"),
        }
    }
}

/// Takes the 50 µs that the kernel adds to sleeps by default off this thread's.
pub fn precise_sleep() -> Result<()> {
    prctl::set_timerslack(1).context("setting the timer slack")
}
