//! When a connection is read: at once, or, while its bytes trickle in, now and then with what came meanwhile.
//!
//! Whatever arrives wakes the runtime, whether anybody waits for it or not, and at ten thousand small writes a second those
//! wake-ups are most of what a message costs (`BENCHMARKS.md`, what limits `latency`). So when small reads follow one
//! another within a part of the commit interval, the kernel is asked to tell of much only (`SO_RCVLOWAT`) and the
//! connection is read by a timer, until nothing came, as network drivers do it with interrupts. It costs a message that
//! part, rounded up to what timers can do. Much is told of and read at once, so nobody's window is ever waited for.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::sys;

/// Half of what a new connection's window is: a sender that fills it is not held up.
const SMALL_READ_BYTES: usize = 32 * 1024;
/// The part of the commit interval: little beside what a message waits for the disk.
const PAUSE_PART: u32 = 20;
/// Timers round up to the next millisecond: it is a whole one on average.
const PAUSE_MIN: Duration = Duration::from_micros(500);

/// See the module. One connection's, without TLS: what is read through TLS is asked of the runtime alone.
#[derive(Debug)]
pub struct Pace {
    /// Between small reads; none if the journal is to be quicker than timers are.
    pause: Option<Duration>,
    /// After a small read: until when another one would be soon.
    soon: Option<Instant>,
    is_slow: bool,
}

impl Pace {
    /// The pace of a connection without TLS into a journal that commits so often.
    pub fn new(commit_interval: Duration, is_tls: bool) -> Pace {
        let pause = Some(commit_interval / PAUSE_PART).filter(|pause| *pause >= PAUSE_MIN && !is_tls);
        Pace { pause, soon: None, is_slow: false }
    }

    /// So many bytes were read.
    pub fn has_read(&mut self, tcp: &TcpStream, bytes: usize) {
        let is_small = bytes < SMALL_READ_BYTES;
        self.soon = self.pause.filter(|_| is_small).map(|pause| Instant::now() + pause);
        if !is_small {
            self.hurry(tcp);
        }
    }

    /// Something is there to read: whether it is put off.
    pub fn slow_down(&mut self, tcp: &TcpStream) {
        let is_soon = self.soon.is_some_and(|soon| Instant::now() < soon);
        // If it cannot be put off it is read.
        self.is_slow |= is_soon && sys::tcp::tell_from(tcp, SMALL_READ_BYTES).is_ok();
    }

    /// Nothing is put off any more: the kernel tells of every byte.
    pub fn hurry(&mut self, tcp: &TcpStream) {
        if std::mem::take(&mut self.is_slow) {
            // What was possible before; a socket that is broken is told of anyway.
            let _ = sys::tcp::tell_from(tcp, 1);
        }
    }

    /// Whether the kernel may have something that it does not tell of.
    pub fn is_slow(&self) -> bool {
        self.is_slow
    }

    /// Resolves when a next look is due: at once, unless something was put off. Cancelling loses nothing.
    pub async fn rest(&self, tcp: &TcpStream) {
        if let Some(pause) = self.pause.filter(|_| self.is_slow) {
            tokio::select! {
                () = sleep(pause) => {}
                // Much came. What is wrong with the socket, reading says.
                _ = tcp.readable() => {}
            }
        }
    }
}
