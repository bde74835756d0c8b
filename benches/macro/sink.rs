//! The far end: a TCP server that has counted what a relay delivers (`tally.rs`), as lines or as chunks that it
//! acknowledges, and the bare UDP receiver that relays are compared to.

use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, setsockopt, sockopt};

use crate::chunks::{Compressed, Taker};
use crate::generator::Plan;
use crate::measure::{Deadline, Histogram, now_ns};
use crate::message::MESSAGE_BYTES;
use crate::tally::Tally;

const READ_BYTES: usize = 256 * 1024;

/// How long a thread may sleep in the kernel before it looks whether it should end.
const GLANCE: Duration = Duration::from_millis(50);

/// What a relay speaks to the sink.
#[derive(Clone)]
pub enum Dialect {
    /// Lines.
    Syslog,
    /// Chunks of forward, compressed if all of them are given.
    Forward(Option<Arc<Compressed>>),
}

/// A listening sink and its threads: one accepts, one for each connection reads.
pub struct Sink {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    tally: Mutex<Tally>,
    closing: AtomicBool,
    dialect: Dialect,
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().expect("no thread panics while it counts")
    }
}

impl Sink {
    pub fn open(port: u16, plan: Plan, dialect: Dialect) -> Result<Sink> {
        let listener =
            TcpListener::bind(("127.0.0.1", port)).with_context(|| format!("binding the sink to port {port}"))?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared { tally: Mutex::new(Tally::new(plan)), closing: AtomicBool::new(false), dialect });
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Ok(Sink { shared, acceptor: Some(acceptor) })
    }

    /// Waits until all of the plan has come, or nothing new has for `quiet`: then the rest is lost.
    pub fn wait(&self, quiet: Duration, deadline: Deadline) -> Result<()> {
        let total = self.shared.tally().total();
        self.wait_for(total, quiet, deadline)
    }

    /// The same for the first `expected` messages of the plan.
    pub fn wait_for(&self, expected: u64, quiet: Duration, deadline: Deadline) -> Result<()> {
        let since_ns = now_ns();
        loop {
            let (lost, last_ns) = {
                let tally = self.shared.tally();
                (expected.saturating_sub(tally.unique), tally.last_ns.max(since_ns))
            };
            if lost == 0 || now_ns().saturating_sub(last_ns) > quiet.as_nanos() as u64 {
                return Ok(());
            }
            deadline.pause(Duration::from_millis(5), &format!("waiting for {lost} messages at the sink"))?;
        }
    }

    /// Different messages so far.
    pub fn unique(&self) -> u64 {
        self.shared.tally().unique
    }

    /// When the first message came; 0 before.
    pub fn first_ns(&self) -> u64 {
        self.shared.tally().first_ns
    }

    /// The latencies since it was opened, or since this was last asked.
    pub fn take_latency(&self) -> Histogram {
        std::mem::replace(&mut self.shared.tally().latency, Histogram::new())
    }

    /// Closes listener and connections; returns the count.
    pub fn close(mut self) -> Tally {
        self.join();
        self.shared.tally().clone()
    }

    fn join(&mut self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().expect("the acceptor does not panic");
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.join();
    }
}

fn accept(listener: &TcpListener, shared: &Shared) {
    thread::scope(|scope| {
        while !shared.closing.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((socket, _)) => {
                    scope.spawn(move || match &shared.dialect {
                        Dialect::Syslog => receive(socket, shared),
                        Dialect::Forward(compressed) => receive_chunks(socket, shared, compressed.as_deref()),
                    });
                }
                Err(_) => thread::sleep(Duration::from_millis(2)),
            }
        }
    });
}

/// Reads one connection until it ends or the sink closes. A cut last line is dropped: it counts as lost.
fn receive(mut socket: TcpStream, shared: &Shared) {
    socket.set_nonblocking(false).and_then(|()| socket.set_read_timeout(Some(GLANCE))).expect("a fresh socket obeys");
    let mut buffer = vec![0; READ_BYTES];
    let mut carried = 0;
    while !shared.closing.load(Ordering::Relaxed) {
        let filled = match socket.read(&mut buffer[carried..]) {
            Ok(0) => return,
            Ok(bytes) => carried + bytes,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            Err(_) => return,
        };
        let rest = shared.tally().take_lines(&buffer[..filled], now_ns());
        // A line longer than the buffer is none of ours: let it go, so that there is always room to read into.
        carried = if rest < READ_BYTES { rest } else { 0 };
        buffer.copy_within(filled - rest..filled, 0);
    }
}

/// Reads and acknowledges chunks until the connection ends or the sink closes.
fn receive_chunks(mut socket: TcpStream, shared: &Shared, compressed: Option<&Compressed>) {
    socket.set_nonblocking(false).and_then(|()| socket.set_read_timeout(Some(GLANCE))).expect("a fresh socket obeys");
    socket.set_nodelay(true).expect("a fresh socket obeys");
    let mut taker = Taker::new();
    let (mut buffer, mut replies) = (vec![0; 2 * READ_BYTES], Vec::new());
    let mut carried = 0;
    while !shared.closing.load(Ordering::Relaxed) {
        let filled = match socket.read(&mut buffer[carried..]) {
            Ok(0) => return,
            Ok(bytes) => carried + bytes,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            Err(_) => return,
        };
        let now = now_ns();
        replies.clear();
        let taken = taker.take(&buffer[..filled], &mut replies, |entries| {
            shared.tally().take_chunk(entries, compressed, now);
        });
        let (taken, needed) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                eprintln!("macro: the relay's stream is no forward: {error:#}");
                shared.tally().foreign += 1;
                return;
            }
        };
        if socket.write_all(&replies).is_err() {
            return;
        }
        buffer.copy_within(taken..filled, 0);
        carried = filled - taken;
        if buffer.len() < needed.max(carried + 1) {
            buffer.resize(needed + READ_BYTES, 0);
        }
    }
}

/// What receiving and throwing away cost.
pub struct Bare {
    pub datagrams: u64,
    /// User and system time of the receiving thread.
    pub cpu: Duration,
}

/// A socket with the receive buffer that the relays have, set before anybody sends to it.
pub fn bind_bare() -> Result<UdpSocket> {
    const RCVBUF_BYTES: usize = 64 << 20;
    let socket = UdpSocket::bind("127.0.0.1:0").context("binding the bare receiver")?;
    if setsockopt(&socket, sockopt::RcvBufForce, &RCVBUF_BYTES).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RCVBUF_BYTES).context("setting the receive buffer")?;
    }
    Ok(socket)
}

/// The least a UDP receiver can do: `recvmmsg` in a loop, until `expected` datagrams have come or none has for `quiet`.
pub fn receive_bare(socket: &UdpSocket, expected: u64, quiet: Duration) -> Result<Bare> {
    const BATCH: usize = 64;
    socket.set_read_timeout(Some(quiet))?;
    let mut arena = vec![0; BATCH * MESSAGE_BYTES];
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let before = thread_cpu()?;
    let mut datagrams = 0;
    while datagrams < expected {
        // Anew for each call, because nix ties the slices to its result: a nanosecond a datagram.
        let mut slices = arena.chunks_exact_mut(MESSAGE_BYTES).map(|slot| [IoSliceMut::new(slot)]).collect::<Vec<_>>();
        match recvmmsg(socket.as_raw_fd(), &mut headers, &mut slices, MsgFlags::MSG_WAITFORONE, None) {
            Ok(received) => datagrams += received.count() as u64,
            Err(Errno::EAGAIN) => break,
            Err(error) => return Err(error).context("receiving datagrams"),
        }
    }
    Ok(Bare { datagrams, cpu: thread_cpu()? - before })
}

fn thread_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).context("reading the thread's CPU time")?;
    let time =
        |value: nix::sys::time::TimeVal| Duration::from_micros((value.tv_sec() * 1_000_000 + value.tv_usec()) as u64);
    Ok(time(usage.user_time()) + time(usage.system_time()))
}
