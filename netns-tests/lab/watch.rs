//! When an address was on a host's link, by the word of its kernel.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use twinlog::sys::netlink::{Address, Change, Monitor};
use twinlog::sys::scheduling::make_urgent;

use super::Host;

/// From when on it was there, or was not; the oldest first.
pub type Held = Vec<(Instant, bool)>;

/// A thread that notes when an address comes to the link of one host, and goes.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Held>,
}

impl Watch {
    /// Begins with how it is.
    pub fn start(host: &Host, address: IpAddr) -> Watch {
        let mut monitor = host.visit(Monitor::open).unwrap();
        let index = host.eth0().index;
        let is_it = move |place: &Address| place.address == address && place.index == index;
        let there = host.netlink().addresses(Some(index)).unwrap().iter().any(is_it);
        let mut held = vec![(Instant::now(), there)];
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let _ = make_urgent();
            while !stopping.load(Ordering::Relaxed) {
                let mut ready = [PollFd::new(monitor.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut ready, PollTimeout::from(20u8));
                let changed = monitor.drain(|change| match change {
                    Change::Address(place) if is_it(&place) => held.push((Instant::now(), true)),
                    Change::AddressGone(place) if is_it(&place) => held.push((Instant::now(), false)),
                    Change::Missed => panic!("the kernel had more to say than was read"),
                    _ => {}
                });
                changed.unwrap();
            }
            held
        });
        Watch { stop, thread }
    }

    /// Ends it.
    pub fn stop(self) -> Held {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// How long both hosts had it, in all, between two moments.
pub fn both_hold(held: &[Held; 2], begin: Instant, end: Instant) -> Duration {
    let mut moments: Vec<Instant> = held.iter().flatten().map(|(at, _)| *at).collect();
    moments.extend([begin, end]);
    moments.retain(|at| (begin..=end).contains(at));
    moments.sort();
    let has = |held: &Held, at: Instant| held.iter().rev().find(|(since, _)| *since <= at).is_some_and(|(_, is)| *is);
    moments.windows(2).filter(|pair| held.iter().all(|held| has(held, pair[0]))).map(|pair| pair[1] - pair[0]).sum()
}

#[test]
fn the_time_of_two_holders_is_that_of_both() {
    let begin = Instant::now();
    let at = |milliseconds| begin + Duration::from_millis(milliseconds);
    let one = vec![(at(0), true), (at(50), false)];
    let other = vec![(at(0), false), (at(30), true), (at(40), false), (at(45), true)];
    assert_eq!(both_hold(&[one, other], begin, at(100)), Duration::from_millis(15));
}
