//! Live connections that leave with the addresses, and those that come with them: both sides of what `proto::pair::moving`
//! says, between the pair link, the kernel and the inputs.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Daemon;
use crate::input::{Arrival, Begun, Departures, Held, Phase};
use crate::proto::drain::ENDING_MORE;
use crate::proto::pair::moving::{Attempt, CONNECTIONS_MAX, KEPT_FOR, Move, Moving};
use crate::proto::tcp_image::Image;
use crate::sys::tcp_repair::{self, Restored};
use crate::vip;

/// What moves connections, either way.
pub(super) struct Moves {
    pub(super) departures: Departures,
    /// What stands still to be moved.
    handed_in: mpsc::Receiver<Held>,
    attempts: Attempt,
    /// What comes from the other node.
    coming: Option<Coming>,
}

/// The old owner's side of an attempt.
#[derive(Default)]
pub(super) struct Leaving {
    attempt: Attempt,
    /// Whether the other node takes connections.
    pub(super) peer_takes: Option<bool>,
    /// Whether it has rebuilt what it was told of.
    pub(super) peer_has: Option<bool>,
    /// What it was told of, and can rebuild.
    pub(super) held: Vec<Held>,
    /// How many moved.
    pub(super) moved: u64,
}

/// The new owner's side.
struct Coming {
    attempt: Attempt,
    rebuilt: Vec<(Restored, Image, Begun)>,
    failed: Vec<u32>,
    /// Whether the other node was told that all of them are rebuilt.
    is_whole: bool,
    /// Until when it waits, for more of them or for the addresses.
    until: Instant,
}

impl Moves {
    pub(super) fn new(departures: Departures, handed_in: mpsc::Receiver<Held>) -> Moves {
        Moves { departures, handed_in, attempts: 0, coming: None }
    }

    /// A new attempt; what was handed in too late for an earlier one has been taken back.
    pub(super) fn begin(&mut self) -> Leaving {
        while self.handed_in.try_recv().is_ok() {}
        self.attempts += 1;
        Leaving { attempt: self.attempts, ..Leaving::default() }
    }

    /// When connections that wait for the addresses are given up.
    pub(super) fn give_up_at(&self) -> Option<Instant> {
        self.coming.as_ref().map(|coming| coming.until)
    }

    /// Forgets the connections that wait for the addresses, without a word to their clients.
    pub(super) fn give_up(&mut self) {
        self.coming = None;
    }
}

// The old owner.
impl Daemon<'_> {
    /// Asks whether the other node takes connections, unless this one cannot give any.
    pub(super) fn ask_the_peer(&mut self) {
        let possible = tcp_repair::is_possible();
        if let Err(why) = &possible {
            tracing::warn!(%why, "live connections cannot move: they end");
        }
        let Some(draining) = &mut self.draining else { return };
        let attempt = draining.leaving.attempt;
        let asked = possible.is_ok() && self.partner.as_ref().is_some_and(|partner| partner.say(Move::Ask { attempt }));
        if !asked {
            draining.leaving.peer_takes = Some(false);
        }
    }

    /// Tells the other node of the connections that stand still by now.
    pub(super) fn tell_of_held(&mut self) {
        let (Some(draining), Some(partner)) = (&mut self.draining, &self.partner) else { return };
        let leaving = &mut draining.leaving;
        while let Ok(held) = self.moves.handed_in.try_recv() {
            if leaving.peer_takes != Some(true) {
                // It was late for an attempt that was taken back, and so is it.
                continue;
            }
            let (attempt, connection) = (leaving.attempt, held.moving.clone());
            // One that finds no room is missed when they are counted.
            partner.say(Move::Connection { attempt, connection });
            leaving.held.push(held);
        }
    }

    pub(super) fn tell_of_all(&mut self) {
        self.tell_of_held();
        let (Some(draining), Some(partner)) = (&self.draining, &self.partner) else { return };
        let Leaving { attempt, held, .. } = &draining.leaving;
        partner.say(Move::Whole { attempt: *attempt, connections: held.len() as u32 });
    }

    /// The connections are the other node's.
    pub(super) fn let_go(&mut self) {
        self.moves.departures.want(Phase::Gone);
        if let Some(draining) = &mut self.draining {
            let leaving = &mut draining.leaving;
            leaving.moved = leaving.held.len() as u64;
            leaving.held.clear();
            tracing::info!(connections = leaving.moved, "live connections have moved");
        }
    }

    /// The connections go on here.
    pub(super) fn take_back(&mut self) {
        self.moves.departures.want(Phase::Stay);
        let next = self.moves.begin();
        let Some(draining) = &mut self.draining else { return };
        let attempt = std::mem::replace(&mut draining.leaving, next).attempt;
        if let Some(partner) = &self.partner {
            partner.say(Move::Abandon { attempt });
        }
    }

    /// What the new owner answers.
    fn hear_answer(&mut self, answered: Attempt, refused: Option<&str>) {
        let Some(draining) = self.draining.as_mut().filter(|draining| draining.leaving.attempt == answered) else {
            return;
        };
        if let Some(why) = refused {
            tracing::warn!(why, "the peer takes no live connections: they end");
        }
        draining.leaving.peer_takes = Some(refused.is_none());
    }

    fn hear_ready(&mut self, answered: Attempt, failed: &[u32]) {
        let Some(draining) = self.draining.as_mut().filter(|draining| draining.leaving.attempt == answered) else {
            return;
        };
        let leaving = &mut draining.leaving;
        leaving.held.retain(|held| !failed.contains(&held.number));
        if !failed.is_empty() {
            tracing::warn!(connections = failed.len(), "the peer cannot go on with some connections: they end");
            self.moves.departures.fail(failed);
        }
        // The last look: what came in since is acknowledged here and unknown there.
        let unchanged = leaving.held.iter().all(|held| tcp_repair::unchanged(&held.socket, &held.image));
        leaving.peer_has = Some(unchanged);
    }
}

// The new owner.
impl Daemon<'_> {
    /// What the other node says of connections.
    pub(super) fn hear_of_connections(&mut self, said: Move) {
        match said {
            Move::Ask { attempt } => {
                let patience = self.current().drain.grace + ENDING_MORE;
                let refused = self.expect_connections(patience + KEPT_FOR).err();
                let until = Instant::now() + patience;
                self.moves.coming = refused.is_none().then(|| Coming::new(attempt, until));
                self.say_of_connections(Move::Answer { attempt, refused });
            }
            Move::Connection { attempt, connection } => self.rebuild(attempt, connection),
            Move::Whole { attempt, connections } => {
                let Some(coming) = self.moves.coming.as_mut().filter(|coming| coming.attempt == attempt) else {
                    return;
                };
                // One that got lost on the way here: no answer is an answer, too.
                if coming.rebuilt.len() + coming.failed.len() == connections as usize {
                    (coming.is_whole, coming.until) = (true, Instant::now() + KEPT_FOR);
                    let failed = coming.failed.clone();
                    self.say_of_connections(Move::Ready { attempt, failed });
                }
            }
            Move::Abandon { attempt } => {
                if self.moves.coming.as_ref().is_some_and(|coming| coming.attempt == attempt) {
                    self.moves.give_up();
                }
            }
            Move::Answer { attempt, refused } => self.hear_answer(attempt, refused.as_deref()),
            Move::Ready { attempt, failed } => self.hear_ready(attempt, &failed),
        }
    }

    fn say_of_connections(&self, said: Move) {
        if let Some(partner) = &self.partner {
            partner.say(said);
        }
    }

    /// Makes this host ready for connections that come within some time, or says why it takes none.
    fn expect_connections(&self, within: Duration) -> Result<(), String> {
        let elected = self.observed.elected.as_ref().ok_or("this node has no part in the election")?;
        if elected.handle.view().vip_held || self.draining.is_some() {
            return Err("this node cannot take over".to_owned());
        }
        tcp_repair::is_possible().map_err(|why| why.to_string())?;
        vip::expect(elected.pair.addresses(), within)
            .map_err(|error| format!("the addresses cannot be put on lo: {error}"))
    }

    fn rebuild(&mut self, attempt: Attempt, connection: Moving) {
        let Some(coming) = self.moves.coming.as_mut().filter(|coming| coming.attempt == attempt) else { return };
        coming.until = Instant::now() + KEPT_FOR;
        let Moving { number, image, rest, standing } = connection;
        let rebuilt = Image::decode(&image).map_err(|error| error.to_string()).and_then(|image| {
            if !self.inputs.would_take(image.local) || coming.rebuilt.len() >= CONNECTIONS_MAX {
                return Err(format!("nobody listens on {} here", image.local));
            }
            tcp_repair::restore(&image).map(|restored| (restored, image)).map_err(|error| error.to_string())
        });
        match rebuilt {
            Ok((restored, image)) => {
                coming.rebuilt.push((restored, image, Begun { rest: rest.into(), standing }));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection of the peer's cannot be rebuilt");
                coming.failed.push(number);
            }
        }
    }

    /// The addresses are here: so are the connections. Or the link is gone before all were told: their owner goes on with
    /// them.
    pub(super) fn go_on_with_connections(&mut self) {
        let Some(partner) = &self.partner else { return };
        let is_active = partner.is_active();
        if !is_active && !partner.is_connected() && self.moves.coming.as_ref().is_some_and(|coming| !coming.is_whole) {
            self.moves.give_up();
        }
        if !is_active {
            return;
        }
        let Some(Coming { rebuilt, .. }) = self.moves.coming.take() else { return };
        let count = rebuilt.len();
        for (restored, Image { local, peer: source, .. }, begun) in rebuilt {
            let gone_on =
                restored.go_live().is_ok_and(|stream| self.inputs.take_over(local, Arrival { stream, source, begun }));
            if !gone_on {
                tracing::warn!(%source, "a connection of the peer's ends here");
            }
        }
        tracing::info!(connections = count, "going on with live connections of the peer's");
    }
}

impl Coming {
    fn new(attempt: Attempt, until: Instant) -> Coming {
        Coming { attempt, rebuilt: Vec::new(), failed: Vec::new(), is_whole: false, until }
    }
}
