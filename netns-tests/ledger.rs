//! A destination that counts: how often each numbered message came, and when an aggregator had received it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};

use super::aggregators::SINK_PORT;
use super::lab::Host;

/// What is known of one message.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    times: u32,
    /// A hash of the id that it had first, and whether it came under another one too.
    id: u64,
    resent: bool,
    /// Microseconds of the day, when it came last.
    received: u64,
}

/// By the sender's name and the message's number.
type Book = BTreeMap<String, Vec<Seen>>;

/// See the module.
pub struct Ledger {
    book: Arc<Mutex<Book>>,
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

/// What became of a sender's messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    pub lost: usize,
    /// Came again under the id that it had.
    pub repeated: usize,
    /// Came again under another: its sender sent it twice.
    pub resent: usize,
}

impl Ledger {
    pub fn start(host: &Host) -> Ledger {
        let address = SocketAddr::new(IpAddr::V4(host.v4()), SINK_PORT);
        let listener = host.visit(|| TcpListener::bind(address)).unwrap();
        let (incoming, book) = (listener.try_clone().unwrap(), Arc::new(Mutex::new(Book::new())));
        let shared = book.clone();
        let thread = std::thread::spawn(move || {
            for stream in incoming.incoming() {
                let Ok(stream) = stream else { return };
                let book = shared.clone();
                std::thread::spawn(move || {
                    for line in BufReader::with_capacity(1 << 20, stream).lines() {
                        let Ok(line) = line else { return };
                        note(&mut book.lock().unwrap(), &line);
                    }
                });
            }
        });
        Ledger { book, listener, thread: Some(thread) }
    }

    /// Waits until the first `count` messages of a sender are there, or nothing more comes; what became of them.
    pub fn account(&self, name: &str, count: u64) -> Account {
        let account = || {
            let book = self.book.lock().unwrap();
            let seen = book.get(name).map(Vec::as_slice).unwrap_or_default();
            let here = seen.iter().take(count as usize).filter(|seen| seen.times > 0).count();
            let resent = seen.iter().filter(|seen| seen.resent).count();
            let repeated = seen.iter().filter(|seen| seen.times > 1 && !seen.resent).count();
            Account { lost: count as usize - here, repeated, resent }
        };
        let mut last = account();
        for _ in 0..20 {
            if last.lost == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(250));
            last = account();
        }
        last
    }

    /// The longest time between two messages in turn that were received, in milliseconds; of those whose numbers are `turn`
    /// apart.
    pub fn longest_pause(&self, name: &str, turn: usize) -> f64 {
        let book = self.book.lock().unwrap();
        let seen = book.get(name).map(Vec::as_slice).unwrap_or_default();
        let longest = (0..turn).map(|first| {
            let times: Vec<u64> =
                seen.iter().skip(first).step_by(turn).filter(|seen| seen.times > 0).map(|seen| seen.received).collect();
            times.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or_default()
        });
        longest.max().unwrap_or_default() as f64 / 1e3
    }

    /// How many messages of a sender are here.
    pub fn count(&self, name: &str) -> usize {
        let book = self.book.lock().unwrap();
        book.get(name).map_or(0, |seen| seen.iter().filter(|seen| seen.times > 0).count())
    }

    pub fn has(&self, name: &str, number: u64) -> bool {
        let book = self.book.lock().unwrap();
        book.get(name).and_then(|seen| seen.get(number as usize)).is_some_and(|seen| seen.times > 0)
    }

    #[track_caller]
    pub fn wait_for_within(&self, name: &str, count: usize, seconds: u64) {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        while self.count(name) < count {
            assert!(Instant::now() < deadline, "{} of {count} messages came", self.count(name));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn note(book: &mut Book, line: &str) {
    let Some(at) = line.find("event-") else { return };
    let event = line[at + 6..].split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next().unwrap_or_default();
    let Some((name, number)) = event.rsplit_once('-') else { return };
    let Ok(number) = number.parse::<usize>() else { return };
    if !book.contains_key(name) {
        book.insert(name.to_owned(), Vec::new());
    }
    let seen = book.get_mut(name).expect("it is there");
    if seen.len() <= number {
        seen.resize(number + 1, Seen::default());
    }
    let mut hasher = DefaultHasher::new();
    line.split("id=\"").nth(1).and_then(|rest| rest.split('"').next()).hash(&mut hasher);
    let (seen, id) = (&mut seen[number], hasher.finish());
    seen.resent |= seen.times > 0 && seen.id != id;
    (seen.times, seen.id) = (seen.times + 1, id);
    seen.received = line.split(' ').nth(1).and_then(of_the_day).unwrap_or_default();
}

/// `2026-03-10T12:00:00.000001Z`, without its date.
fn of_the_day(time: &str) -> Option<u64> {
    let (_, time) = time.split_once('T')?;
    let mut parts = time.trim_end_matches('Z').split(':');
    let (hours, minutes): (u64, u64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let seconds: f64 = parts.next()?.parse().ok()?;
    Some((hours * 60 + minutes) * 60_000_000 + (seconds * 1e6) as u64)
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // The thread waits in accept: shutting the socket down wakes it.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
