//! Connections leave with the addresses they were made to: those that can move are held still and handed in, the others come
//! to their end before.
//!
//! The daemon says what it wants ([`Phase`]) and counts who has done it ([`Departures::count`]); listeners and connections
//! follow by themselves. A connection to another address of this host takes no part.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use tokio::sync::{mpsc, watch};

use super::{Control, quiescing};
use crate::proto::drain::Connections;
use crate::proto::pair::moving::{CONNECTIONS_MAX, Moving};
use crate::proto::tcp_image::Image;

/// What is wanted of the connections to the shared addresses, and of whoever listens for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// That they go on; listeners hear.
    #[default]
    Stay,
    /// That those end which cannot move, or `all`. Listeners hear no new one; handshakes come to their end.
    End {
        /// Whether none is to move.
        all: bool,
    },
    /// That those which can move stand still. Listeners hear nothing: whatever comes late for a closed connection would be
    /// answered with a reset.
    Hold,
    /// That those which stood still are forgotten: the other node has them.
    Gone,
}

/// What is wanted, and who does not get it.
#[derive(Clone, Debug, Default)]
struct Wanted {
    phase: Phase,
    /// Held connections that end here after all, by number.
    failed: Arc<[u32]>,
    /// Listeners that have done it.
    obeyed: Arc<AtomicUsize>,
}

/// A connection that stands still, handed in to be moved.
#[derive(Debug)]
pub struct Held {
    /// Its number, which is in `moving` too.
    pub number: u32,
    /// What the other node needs.
    pub moving: Moving,
    /// What the kernel said.
    pub image: Image,
    /// The socket, for a last look.
    pub socket: OwnedFd,
}

/// Where the departure of connections is arranged. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Departures(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    addresses: Vec<IpAddr>,
    wanted: watch::Sender<Wanted>,
    listeners: AtomicUsize,
    /// By [`State`].
    connections: [AtomicUsize; 3],
    numbers: AtomicU32,
    held: mpsc::Sender<Held>,
}

/// How a connection to a shared address stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It cannot move, or no longer may.
    Ends,
    /// It can move.
    Stays,
    /// It stands still and is handed in.
    IsHeld,
}

impl Departures {
    /// For the connections to `addresses`; without any, nothing ever departs. What is held comes out of the receiver.
    #[must_use]
    pub fn new(addresses: Vec<IpAddr>) -> (Departures, mpsc::Receiver<Held>) {
        let (held, handed_in) = mpsc::channel(CONNECTIONS_MAX);
        let departures = Departures(Arc::new(Shared {
            addresses,
            wanted: watch::Sender::default(),
            listeners: AtomicUsize::new(0),
            connections: Default::default(),
            numbers: AtomicU32::new(0),
            held,
        }));
        (departures, handed_in)
    }

    /// Says what is wanted from now on.
    pub fn want(&self, phase: Phase) {
        self.0.wanted.send_replace(Wanted { phase, ..Wanted::default() });
    }

    /// What is wanted.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.0.wanted.borrow().phase
    }

    /// Has these held connections end here.
    pub fn fail(&self, numbers: &[u32]) {
        self.0.wanted.send_modify(|wanted| wanted.failed = numbers.into());
    }

    /// How far they are.
    #[must_use]
    pub fn count(&self) -> Connections {
        let count = |state: State| self.0.connections[state as usize].load(Ordering::Acquire);
        let obeyed = self.0.wanted.borrow().obeyed.load(Ordering::Acquire);
        Connections {
            listeners_obeyed: obeyed >= self.0.listeners.load(Ordering::Acquire),
            ending: count(State::Ends),
            staying: count(State::Stays),
            held: count(State::IsHeld),
        }
    }

    /// The part of a listener on `address`; `None` if no shared address is behind it.
    pub(super) fn listener(&self, address: SocketAddr) -> Option<ListenersPart> {
        let may_be_shared = address.ip().is_unspecified() || self.is_shared(address);
        (may_be_shared && !self.0.addresses.is_empty()).then(|| {
            self.0.listeners.fetch_add(1, Ordering::AcqRel);
            let mut wanted = self.0.wanted.subscribe();
            wanted.mark_changed();
            ListenersPart { wanted, departures: self.clone() }
        })
    }

    /// The part of a connection that was made to `local`; `None` if it stays whatever happens.
    pub(super) fn connection(&self, local: SocketAddr, can_move: bool) -> Option<Passenger> {
        self.is_shared(local).then(|| {
            let state = if can_move { State::Stays } else { State::Ends };
            self.0.connections[state as usize].fetch_add(1, Ordering::AcqRel);
            Passenger { departures: self.clone(), state }
        })
    }

    fn is_shared(&self, address: SocketAddr) -> bool {
        self.0.addresses.contains(&address.ip().to_canonical())
    }
}

/// A listener's part.
pub(super) struct ListenersPart {
    wanted: watch::Receiver<Wanted>,
    departures: Departures,
}

impl ListenersPart {
    /// Resolves when something else is wanted; it is done when the returned value is dropped. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> (Phase, Obeyed) {
        // The sender lives in `departures`.
        let _ = self.wanted.changed().await;
        let wanted = self.wanted.borrow_and_update().clone();
        (wanted.phase, Obeyed(wanted.obeyed))
    }
}

impl Drop for ListenersPart {
    fn drop(&mut self) {
        self.departures.0.listeners.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Counts a listener that has done what was wanted, when dropped.
pub(super) struct Obeyed(Arc<AtomicUsize>);

impl Drop for Obeyed {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// A connection to a shared address, counted for as long as it lives.
#[derive(Debug)]
pub(super) struct Passenger {
    departures: Departures,
    state: State,
}

impl Passenger {
    /// Notes how it stands now.
    pub(super) fn set(&mut self, state: State) {
        let counts = &self.departures.0.connections;
        // Never in none of them: the daemon would take it for ended.
        counts[state as usize].fetch_add(1, Ordering::AcqRel);
        counts[self.state as usize].fetch_sub(1, Ordering::AcqRel);
        self.state = state;
    }

    /// A number for it, while it is held.
    pub(super) fn number(&self) -> u32 {
        self.departures.0.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Hands it in; whether somebody takes it.
    pub(super) fn hand_in(&mut self, held: Held) -> bool {
        let is_taken = self.departures.0.held.try_send(held).is_ok();
        if is_taken {
            self.set(State::IsHeld);
        }
        is_taken
    }

    /// What becomes of a held connection, once that is known.
    pub(super) async fn outcome(&self, number: u32) -> Phase {
        let mut wanted = self.departures.0.wanted.subscribe();
        let decided = |wanted: &Wanted| wanted.phase != Phase::Hold || wanted.failed.contains(&number);
        // The sender lives in `departures`.
        match wanted.wait_for(decided).await {
            Ok(wanted) if wanted.phase == Phase::Hold => Phase::End { all: true },
            Ok(wanted) => wanted.phase,
            Err(_) => Phase::Stay,
        }
    }
}

impl Drop for Passenger {
    fn drop(&mut self) {
        self.departures.0.connections[self.state as usize].fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a connection has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Finish and end.
    End,
    /// Stand still.
    Hold,
}

/// How long a connection may stay: as long as its listener serves, and the address is here.
pub(super) struct Stay<S> {
    control: watch::Receiver<Control<S>>,
    passage: Option<(watch::Receiver<Wanted>, bool)>,
}

impl<S> Stay<S> {
    pub(super) fn new(control: watch::Receiver<Control<S>>, passenger: Option<&Passenger>) -> Stay<S> {
        let passage =
            passenger.map(|passenger| (passenger.departures.0.wanted.subscribe(), passenger.state == State::Stays));
        Stay { control, passage }
    }

    /// Resolves when the connection has to do something. Cancelling loses nothing.
    pub(super) async fn due(&mut self) -> Due {
        let Some((wanted, can_move)) = &mut self.passage else {
            quiescing(&mut self.control).await;
            return Due::End;
        };
        let can_move = *can_move;
        let concerned = |wanted: &Wanted| match wanted.phase {
            Phase::Stay => false,
            Phase::End { all } => all || !can_move,
            // One that is not held by now came too late.
            Phase::Hold | Phase::Gone => true,
        };
        tokio::select! {
            biased;
            () = quiescing(&mut self.control) => Due::End,
            wanted = wanted.wait_for(concerned) => match wanted.map(|wanted| wanted.phase) {
                Ok(Phase::Hold) if can_move => Due::Hold,
                _ => Due::End,
            },
        }
    }

    /// Resolves when the connection has to end; for those that cannot move.
    pub(super) async fn is_over(&mut self) {
        self.due().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn departures() -> Departures {
        Departures::new(vec!["192.0.2.10".parse().unwrap()]).0
    }

    #[test]
    fn only_connections_to_shared_addresses_are_counted_in_what_they_are() {
        let departures = departures();
        assert!(departures.connection("192.0.2.11:514".parse().unwrap(), true).is_none());
        let mut one = departures.connection("192.0.2.10:514".parse().unwrap(), true).unwrap();
        let two = departures.connection("[::ffff:192.0.2.10]:514".parse().unwrap(), false).unwrap();
        let count = |ending, staying, held| Connections { ending, staying, held, listeners_obeyed: true };
        assert_eq!(departures.count(), count(1, 1, 0));
        one.set(State::IsHeld);
        assert_eq!(departures.count(), count(1, 0, 1));
        drop((one, two));
        assert_eq!(departures.count(), count(0, 0, 0));
    }

    #[tokio::test]
    async fn a_listener_has_obeyed_when_it_says_so_each_time() {
        let departures = departures();
        assert!(departures.listener("192.0.2.11:514".parse().unwrap()).is_none());
        let mut listener = departures.listener("[::]:514".parse().unwrap()).unwrap();
        for phase in [Phase::Stay, Phase::Hold, Phase::Gone] {
            departures.want(phase);
            assert!(!departures.count().listeners_obeyed);
            let (wanted, obeyed) = listener.next().await;
            assert_eq!(wanted, phase);
            assert!(!departures.count().listeners_obeyed);
            drop(obeyed);
            assert!(departures.count().listeners_obeyed);
        }
        departures.want(Phase::Stay);
        drop(listener);
        assert!(departures.count().listeners_obeyed, "nobody is left to obey");
    }

    #[tokio::test]
    async fn a_held_connection_hears_what_becomes_of_it() {
        let departures = departures();
        let passenger = departures.connection("192.0.2.10:514".parse().unwrap(), true).unwrap();
        departures.want(Phase::Hold);
        departures.fail(&[7]);
        assert_eq!(passenger.outcome(7).await, Phase::End { all: true });
        for phase in [Phase::Stay, Phase::Gone] {
            departures.want(phase);
            assert_eq!(passenger.outcome(6).await, phase);
        }
    }
}
