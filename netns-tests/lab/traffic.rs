//! Numbered datagrams from one host, counted on others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use twinlog::sys::scheduling::make_urgent;
use twinlog::sys::udp;

use super::{Host, wait_until};

/// Shorter than the time between two datagrams of 10 000 a second: in bursts they would miss the short moments in which
/// nobody has the address.
const TICK: Duration = Duration::from_micros(50);
/// Room for everything that a test sends: a counter that runs late loses nothing.
const QUEUE_BYTES: usize = 64 << 20;
const PORT: u16 = 5514;

/// A sender at a steady rate; it stops with the value.
pub struct Generator {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Generator {
    /// Sends `per_second` datagrams of 200 bytes to `to` from now on, numbered from 0.
    pub fn start(from: &Host, to: IpAddr, per_second: u32) -> Generator {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = from.visit(|| UdpSocket::bind((any, 0))).unwrap();
        socket.connect((to, PORT)).unwrap();
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopping, counted) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            // One that is not scheduled while the address moves would hide what is lost.
            let _ = make_urgent();
            send_steadily(&socket, per_second, &stopping, &counted);
        });
        Generator { stop, sent, thread: Some(thread) }
    }

    /// Waits until so many have been sent.
    #[track_caller]
    pub fn wait_for(&self, datagrams: u64) {
        wait_until("the datagrams are sent", || self.sent() >= datagrams);
    }

    /// How many have been sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Stops, and says how many were sent.
    pub fn stop(mut self) -> u64 {
        self.end();
        self.sent()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the generator does not panic");
        }
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.end();
    }
}

fn send_steadily(socket: &UdpSocket, per_second: u32, stop: &AtomicBool, sent: &AtomicU64) {
    let begin = Instant::now();
    let mut datagram = [b'x'; 200];
    let mut number = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let due = (begin.elapsed().as_secs_f64() * f64::from(per_second)) as u64;
        while number < due {
            datagram[..8].copy_from_slice(&number.to_be_bytes());
            // An error, as an answer that nobody listens, belongs to an earlier one; this one counts as sent.
            if socket.send(&datagram).is_err() {
                let _ = socket.send(&datagram);
            }
            number += 1;
            sent.store(number, Ordering::Relaxed);
        }
        std::thread::sleep(TICK);
    }
}

/// Takes the datagrams on one host, whatever address they were sent to; it stops with the value.
pub struct Counter {
    stop: Arc<AtomicBool>,
    taken: Arc<AtomicU64>,
    thread: Option<JoinHandle<Vec<u64>>>,
}

impl Counter {
    /// Listens on a host from now on.
    pub fn start(on: &Host) -> Counter {
        let any: SocketAddr = (Ipv6Addr::UNSPECIFIED, PORT).into();
        let socket = on.visit(|| udp::bind(any, 1, QUEUE_BYTES)).unwrap().remove(0);
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (stop, taken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopping, counted) = (Arc::clone(&stop), Arc::clone(&taken));
        let thread = std::thread::spawn(move || take_numbers(&socket, &stopping, &counted));
        Counter { stop, taken, thread: Some(thread) }
    }

    /// How many have come.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Reads what is there, stops, and returns the numbers in the order of arrival.
    pub fn stop(mut self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("stopped once").join().expect("the counter does not panic")
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn take_numbers(socket: &UdpSocket, stop: &AtomicBool, taken: &AtomicU64) -> Vec<u64> {
    let mut numbers = Vec::new();
    let mut datagram = [0; 2048];
    loop {
        // Asked before reading: what was there when the stop came is still read.
        let is_last = stop.load(Ordering::Relaxed);
        match socket.recv(&mut datagram) {
            Ok(_) => numbers.push(u64::from_be_bytes(datagram[..8].try_into().expect("eight bytes"))),
            Err(_) if is_last => break,
            Err(_) => {}
        }
        taken.store(numbers.len() as u64, Ordering::Relaxed);
    }
    let drops = udp::memory_info(&socket.as_raw_fd()).expect("an open socket").drops;
    assert_eq!(drops, 0, "the counter itself dropped datagrams");
    numbers
}

/// What came of numbered datagrams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Sent in all.
    pub sent: u64,
    /// Received, by receiver, each time counted.
    pub by_receiver: Vec<usize>,
    /// Received by nobody.
    pub lost: u64,
    /// Received more than once, by whomever.
    pub doubled: usize,
    /// Longest run of numbers in a row that nobody received; divided by the rate it is a time.
    pub longest_gap: u64,
}

impl Account {
    /// Draws it up from what each receiver got.
    pub fn of(sent: u64, received: &[Vec<u64>]) -> Account {
        let mut times: HashMap<u64, usize> = HashMap::new();
        received.iter().flatten().for_each(|number| *times.entry(*number).or_default() += 1);
        let (mut lost, mut gap, mut longest_gap) = (0, 0, 0);
        for number in 0..sent {
            gap = if times.contains_key(&number) { 0 } else { gap + 1 };
            lost += u64::from(gap > 0);
            longest_gap = gap.max(longest_gap);
        }
        let doubled = times.values().filter(|times| **times > 1).count();
        Account { sent, by_receiver: received.iter().map(Vec::len).collect(), lost, doubled, longest_gap }
    }
}
