//! The device that sends numbered messages, the destination that counts them, and the account of both.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::node::{DEVICE, SINK_PORT, VIP};

/// Shorter than the time between two datagrams.
const TICK: Duration = Duration::from_micros(500);
/// Port of syslog over UDP.
const SYSLOG: u16 = 514;

/// Sends syslog datagrams at a steady rate to the shared address.
pub(super) struct Device {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Device {
    /// Begins to send, with number 0.
    pub(super) fn start(per_second: u32) -> anyhow::Result<Device> {
        let socket = UdpSocket::bind((DEVICE, 0)).context("the device cannot open a socket")?;
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopping, counted) = (stop.clone(), sent.clone());
        let thread = thread::spawn(move || {
            let (begin, mut number) = (Instant::now(), 0);
            while !stopping.load(Ordering::Relaxed) {
                let due = (begin.elapsed().as_secs_f64() * f64::from(per_second)) as u64;
                while number < due {
                    let message = format!("<134>1 - device demo - - - number {number}");
                    // What cannot be sent was sent as far as the account goes: it is lost.
                    let _ = socket.send_to(message.as_bytes(), (VIP, SYSLOG));
                    number += 1;
                    counted.store(number, Ordering::Relaxed);
                }
                thread::sleep(TICK);
            }
        });
        Ok(Device { stop, sent, thread })
    }

    /// How many it has sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Stops, and says how many it has sent.
    pub(super) fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        // It panics never, and what it has counted counts all the same.
        let _ = self.thread.join();
        self.sent.load(Ordering::Relaxed)
    }
}

/// How often each number has arrived.
#[derive(Debug, Default)]
struct Arrived {
    times: Vec<u32>,
    last: Option<Instant>,
}

/// A destination that takes lines over TCP from as many nodes as come.
pub(super) struct Sink {
    arrived: Arc<Mutex<Arrived>>,
}

impl Sink {
    /// Listens from now on. Its threads end with the process.
    pub(super) fn open() -> anyhow::Result<Sink> {
        let listener = TcpListener::bind((DEVICE, SINK_PORT)).context("the destination cannot listen")?;
        let arrived = Arc::new(Mutex::new(Arrived::default()));
        let counting = arrived.clone();
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let arrived = counting.clone();
                thread::spawn(move || count(connection, &arrived));
            }
        });
        Ok(Sink { arrived })
    }

    /// Waits until nothing has come for `quiet`, at most `limit`; how often each number came.
    pub(super) fn until_quiet(&self, quiet: Duration, limit: Duration) -> Vec<u32> {
        let deadline = Instant::now() + limit;
        loop {
            let arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
            if arrived.last.is_none_or(|last| last.elapsed() > quiet) || Instant::now() > deadline {
                return arrived.times.clone();
            }
            drop(arrived);
            thread::sleep(quiet / 10);
        }
    }
}

fn count(connection: TcpStream, arrived: &Mutex<Arrived>) {
    let (mut reader, mut line) = (BufReader::new(connection), String::new());
    // A line without its end was cut by a crash, and its number with it.
    while reader.read_line(&mut line).is_ok() && line.ends_with('\n') {
        let number = line.trim_end().rsplit_once(" number ").and_then(|(_, number)| number.parse::<usize>().ok());
        line.clear();
        let Some(number) = number else { continue };
        let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
        if arrived.times.len() <= number {
            arrived.times.resize(number + 1, 0);
        }
        arrived.times[number] += 1;
        arrived.last = Some(Instant::now());
    }
}

/// What came of some of the numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) sent: u64,
    pub(super) lost: u64,
    /// Arrived more than once.
    pub(super) repeated: u64,
    /// Longest run in a row of which none arrived.
    pub(super) longest_gap: u64,
}

impl Account {
    /// Draws it up from how often each number arrived.
    pub(super) fn of(numbers: Range<u64>, times: &[u32]) -> Account {
        let mut account = Account { sent: numbers.end - numbers.start, ..Account::default() };
        let mut gap = 0;
        for number in numbers {
            let times = usize::try_from(number).ok().and_then(|number| times.get(number)).copied().unwrap_or_default();
            gap = if times == 0 { gap + 1 } else { 0 };
            account.lost += u64::from(times == 0);
            account.repeated += u64::from(times > 1);
            account.longest_gap = account.longest_gap.max(gap);
        }
        account
    }

    /// Arrived at least once.
    pub(super) fn delivered(&self) -> u64 {
        self.sent - self.lost
    }

    /// Both together.
    pub(super) fn with(&self, other: &Account) -> Account {
        Account {
            sent: self.sent + other.sent,
            lost: self.lost + other.lost,
            repeated: self.repeated + other.repeated,
            longest_gap: self.longest_gap.max(other.longest_gap),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_tells_what_was_lost_and_what_came_twice() {
        let times = [1, 2, 0, 0, 1, 0, 3];
        let account = Account::of(0..9, &times);
        assert_eq!(account, Account { sent: 9, lost: 5, repeated: 2, longest_gap: 2 });
        assert_eq!(account.delivered(), 4);
        let parts = Account::of(0..4, &times).with(&Account::of(4..9, &times));
        assert_eq!(parts, account);
    }
}
