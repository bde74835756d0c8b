//! fluent-forward: chunks to one server of several, or to all in turn, kept until they are acknowledged.
//!
//! ```text
//! feed ──▶ pack (blocking pool) ──▶ ledger ──▶ session ──▶ server
//!             chunks with ids          ▲          │ acknowledged
//!             cursor ◀─────────────────┴──────────┘
//! ```
//!
//! One task owns the feed, the ledger and the choice of servers; each connection is a task of its own, which it awaits. A
//! server is up when it can be connected to and, with a key, logged in to; there are no heartbeats. It is *proven* when it
//! has acknowledged a chunk: until then it has one chunk on trial, if another is there to do the work. So a server that
//! takes connections and does nothing holds back a chunk and not the stream.
//!
//! When a connection ends, what was not acknowledged on it goes again, to whoever is up, with the ids it had. The cursor
//! follows the acknowledged batches.

mod ledger;
mod login;
mod probe;
mod session;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

pub use self::probe::probe;
use super::Life;
use super::endpoint::Backoff;
use super::feed::Feed;
use super::filter::Filter;
use super::stream::FAIL_BACK_EVERY;
use crate::config::{Balance, Compress, ForwardOutput, Retry, Target};
use crate::proto::batch::Batch;
use crate::proto::envelope::Envelope;
use crate::proto::forward::chunks::{self, Outgoing, Packed, STEP_BYTES, pack};
use crate::proto::position::{JournalId, Mark};
use crate::tls;
use crate::zones::Zones;
use ledger::Ledger;
use session::{Failure, Report, Session};

/// How long the connections may take to end when everything has arrived.
const GOODBYE_MAX: Duration = Duration::from_secs(2);
/// Bytes with a server from which on it gets no more, however few chunks they are: they are in memory.
const WINDOW_BYTES: usize = 16 << 20;

/// Makes chunks of batches.
#[derive(Debug)]
pub struct Packer {
    settings: chunks::Settings,
    filter: Filter,
    zones: Arc<Zones>,
}

impl Packer {
    /// Packs what `filter` takes, as `output` wants it.
    #[must_use]
    pub fn new(output: &ForwardOutput, journal: JournalId, filter: Filter, zones: Arc<Zones>) -> Packer {
        let gzip = output.compress == Compress::Gzip;
        Packer { settings: chunks::Settings { journal, gzip, ask_for_ack: output.require_ack }, filter, zones }
    }

    /// Makes chunks of the first of `unpacked`, and of more as long as they are few.
    fn pack(&self, unpacked: &mut Unpacked) -> Vec<(Mark, Packed)> {
        let (mut all, mut bytes) = (Vec::new(), 0);
        while bytes < STEP_BYTES
            && let Some(batch) = unpacked.batches.front()
        {
            let takes = |envelope: &Envelope<'_>| self.filter.takes(envelope);
            let packed = pack(batch, unpacked.from, &self.settings, takes, |input| self.zones.get(input));
            bytes += packed.chunks.iter().map(Outgoing::bytes).sum::<usize>();
            let end = batch.end();
            unpacked.from = packed.rest.unwrap_or_default();
            if packed.rest.is_none() {
                unpacked.batches.pop_front();
            }
            all.push((end, packed));
        }
        all
    }
}

/// What was read and not made into chunks.
#[derive(Debug, Default)]
struct Unpacked {
    batches: VecDeque<Batch>,
    /// The envelope of the first of them to go on from.
    from: usize,
}

/// The forward output.
pub struct Forward {
    settings: Arc<ForwardOutput>,
    packer: Arc<Packer>,
    tls: tls::Client,
    servers: Vec<Server>,
    unpacked: Unpacked,
    ledger: Ledger,
    /// The server that had the last chunk: the next has its turn.
    last: usize,
    sessions: JoinSet<(usize, Result<(), Failure>)>,
    reports: mpsc::Receiver<(usize, Report)>,
    reporter: mpsc::Sender<(usize, Report)>,
}

struct Server {
    target: Target,
    backoff: Backoff,
    link: Link,
}

/// How it stands with a server.
enum Link {
    /// Not tried before `until`.
    Down { until: Instant },
    /// Connecting, or logging in.
    Opening(mpsc::Sender<Arc<Outgoing>>),
    /// Takes chunks.
    Up(Up),
    /// Says goodbye.
    Closing,
}

struct Up {
    chunks: mpsc::Sender<Arc<Outgoing>>,
    window: usize,
    in_flight: usize,
    in_flight_bytes: usize,
    proven: bool,
}

impl Forward {
    /// An output with these settings.
    #[must_use]
    pub fn new(settings: ForwardOutput, packer: Packer, retry: &Retry) -> Forward {
        let now = Instant::now();
        let server = |target: &Target| Server {
            target: target.clone(),
            backoff: Backoff::new(retry.clone(), fastrand::u64(..)),
            link: Link::Down { until: now },
        };
        let servers: Vec<Server> = settings.to.iter().map(server).collect();
        // A session waits when it is full, so any size would do.
        let (reporter, reports) = mpsc::channel(64);
        Forward {
            tls: tls::Client::new(&settings.tls),
            settings: Arc::new(settings),
            packer: Arc::new(packer),
            servers,
            unpacked: Unpacked::default(),
            ledger: Ledger::default(),
            last: 0,
            sessions: JoinSet::new(),
            reports,
            reporter,
        }
    }

    /// Delivers until the output's life ends.
    pub async fn run(mut self, mut feed: Feed, mut life: Life) {
        // What an earlier life of this output left behind.
        feed.metrics().in_flight.set(0);
        feed.metrics().set_connected(None);
        loop {
            self.open_sessions(Instant::now());
            self.hand_out(&feed);
            if !self.ledger.has_waiting() && !self.unpacked.batches.is_empty() {
                self.pack(&mut feed).await;
                continue;
            }
            if life.is_stopping() && (!self.is_up() || (feed.is_at_end() && self.ledger.is_empty())) {
                return self.leave().await;
            }
            let next_try = self.candidate().map(|(_, until)| until);
            tokio::select! {
                Some((server, report)) = self.reports.recv() => self.reported(server, report, &mut feed, &life),
                Some(ended) = self.sessions.join_next(), if !self.sessions.is_empty() => match ended {
                    Ok((server, ended)) => self.ended(server, ended, &mut feed, &life),
                    // A bug: it must end this task too, for the supervisor to hear of it.
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                batches = feed.next(), if !self.ledger.has_waiting() => self.unpacked.batches = batches.into(),
                () = sleep_until(next_try.unwrap_or_else(Instant::now)), if next_try.is_some() => {}
                over = life.turn() => if over { return },
            }
        }
    }

    /// Makes chunks of some of what was read. Not here: a large one takes a while to decompress.
    async fn pack(&mut self, feed: &mut Feed) {
        let (packer, mut unpacked) = (self.packer.clone(), std::mem::take(&mut self.unpacked));
        let pack = move || (packer.pack(&mut unpacked), unpacked);
        let packed = match tokio::task::spawn_blocking(pack).await {
            Ok((packed, unpacked)) => {
                self.unpacked = unpacked;
                packed
            }
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        for (end, Packed { chunks, unreadable, rest }) in packed {
            if unreadable > 0 {
                tracing::error!(before = %end.position, events = unreadable, "a chunk cannot be read and is left out");
                feed.metrics().lost.inc_by("unreadable", unreadable);
            }
            self.ledger.add(end, chunks, rest.is_some());
        }
        // What the output does not take has arrived.
        if let Some(mark) = self.ledger.progress() {
            feed.arrived(mark);
        }
    }

    /// Starts a session with every server whose time has come.
    fn open_sessions(&mut self, now: Instant) {
        while let Some((number, until)) = self.candidate()
            && until <= now
        {
            let (sender, chunks) = mpsc::channel(self.settings.window);
            let server = &mut self.servers[number];
            server.link = Link::Opening(sender);
            let session = Session {
                server: number,
                target: server.target.clone(),
                settings: self.settings.clone(),
                tls: self.tls.clone(),
                chunks,
                reports: self.reporter.clone(),
            };
            self.sessions.spawn(async move { (number, session.run().await) });
        }
    }

    /// The server to connect to next, and when: in round robin the one whose time comes first, else the first whose time
    /// has come of those that are preferred to the one in use, one after the other.
    fn candidate(&self) -> Option<(usize, Instant)> {
        let failover = self.settings.balance == Balance::Failover;
        if failover && self.servers.iter().any(|server| matches!(server.link, Link::Opening(_))) {
            return None;
        }
        let preferred = self.servers.iter().take_while(|server| !failover || !matches!(server.link, Link::Up(_)));
        let down = preferred.enumerate().filter_map(|(number, server)| match server.link {
            Link::Down { until } => Some((number, until)),
            _ => None,
        });
        let now = Instant::now();
        down.min_by_key(|(number, until)| ((*until).max(now), *number))
    }

    /// Gives waiting chunks to servers that have room, and ends the connections to those that are no longer needed.
    fn hand_out(&mut self, feed: &Feed) {
        while self.ledger.has_waiting()
            && let Some(number) = self.choose()
            && let Link::Up(up) = &mut self.servers[number].link
            && let Some(chunk) = self.ledger.give(number)
        {
            up.in_flight += 1;
            up.in_flight_bytes += chunk.bytes();
            self.last = number;
            feed.metrics().sent.inc_by(chunk.events);
            feed.metrics().sent_bytes.inc_by(chunk.bytes() as u64);
            feed.metrics().in_flight.inc_by(chunk.events as i64);
            // There is room for a window; if the session has just ended, the chunk is taken back when that is heard.
            let _ = up.chunks.try_send(chunk);
        }
        if self.settings.balance == Balance::Failover
            && let Some(first) = self.servers.iter().position(|server| server.link.is_proven())
        {
            for server in &mut self.servers[first + 1..] {
                if matches!(&server.link, Link::Up(up) if up.in_flight == 0) {
                    server.link = Link::Closing;
                }
            }
        }
    }

    /// Who gets the next chunk, if anyone has room.
    fn choose(&self) -> Option<usize> {
        let any_proven = self.servers.iter().any(|server| server.link.is_proven());
        let up = self.servers.iter().enumerate().filter_map(|(number, server)| match &server.link {
            Link::Up(up) => Some((number, up)),
            _ => None,
        });
        let on_trial = |up: &Up| any_proven && !up.proven;
        let has_room =
            |up: &Up| up.in_flight < if on_trial(up) { 1 } else { up.window } && up.in_flight_bytes < WINDOW_BYTES;
        match self.settings.balance {
            // One whose trial goes on is passed over; the first of the others waits for room rather than give way.
            Balance::Failover => {
                let mut able = up.filter(|(_, up)| !on_trial(up) || up.in_flight == 0);
                able.next().filter(|(_, up)| has_room(up)).map(|(number, _)| number)
            }
            Balance::RoundRobin => {
                let turn = |number: usize| (number + self.servers.len() - self.last - 1) % self.servers.len();
                up.filter(|(_, up)| has_room(up)).map(|(number, _)| number).min_by_key(|number| turn(*number))
            }
        }
    }

    fn reported(&mut self, number: usize, report: Report, feed: &mut Feed, life: &Life) {
        let server = &mut self.servers[number];
        match report {
            Report::Up { window } => {
                let Link::Opening(chunks) = &server.link else { return };
                let up = Up {
                    chunks: chunks.clone(),
                    window,
                    in_flight: 0,
                    in_flight_bytes: 0,
                    proven: !self.settings.require_ack,
                };
                tracing::info!(output = life.name(), target = %server.target, "connected");
                server.link = Link::Up(up);
                self.rest_preferred(number);
                self.show_connected(feed);
            }
            Report::Arrived(id, after) => {
                let Some(chunk) = self.ledger.arrived(&id) else { return };
                if let Link::Up(up) = &mut server.link {
                    up.in_flight -= 1;
                    up.in_flight_bytes -= chunk.bytes();
                    up.proven = true;
                    if up.window == 1 && self.settings.window > 1 {
                        // It closes the connection now: so do we, and begin another.
                        server.link = Link::Closing;
                    }
                }
                server.backoff.reset();
                feed.metrics().acknowledged.inc_by(chunk.events);
                feed.metrics().in_flight.dec_by(chunk.events as i64);
                feed.metrics().ack_seconds.0.observe(after.as_secs_f64());
                if let Some(mark) = self.ledger.progress() {
                    feed.arrived(mark);
                }
            }
        }
    }

    /// One that answers is in use: those preferred to it are tried now and then.
    fn rest_preferred(&mut self, in_use: usize) {
        let next = Instant::now() + FAIL_BACK_EVERY;
        for server in &mut self.servers[..in_use] {
            if let Link::Down { until } = &mut server.link {
                *until = (*until).max(next);
            }
        }
    }

    fn ended(&mut self, number: usize, ended: Result<(), Failure>, feed: &mut Feed, life: &Life) {
        // What it had reported counts, or its chunks would go again.
        while let Ok((server, report)) = self.reports.try_recv() {
            self.reported(server, report, feed, life);
        }
        let now = Instant::now();
        let server = &mut self.servers[number];
        let was_up = matches!(server.link, Link::Up(_));
        let mut until = now;
        // Of one that we leave anyway, nothing is an error.
        if let Err(error) = ended
            && !matches!(server.link, Link::Closing)
        {
            let target = &server.target;
            match error {
                _ if was_up => tracing::warn!(output = life.name(), %target, %error, "connection lost"),
                // Only a person can help, and the pauses grow.
                _ if error.is_refusal() => tracing::warn!(output = life.name(), %target, %error, "cannot log in"),
                _ => tracing::debug!(output = life.name(), %target, %error, "cannot connect"),
            }
            feed.metrics().errors.inc(error.reason());
            feed.metrics().retries.inc();
            feed.metrics().set_last_error(format!("{target}: {error}"));
            until += server.backoff.pause();
        }
        server.link = Link::Down { until };
        let events = self.ledger.take_back(number);
        feed.metrics().in_flight.dec_by(events as i64);
        if self.settings.balance == Balance::Failover {
            match self.servers.iter().position(|server| matches!(server.link, Link::Up(_))) {
                Some(in_use) => self.rest_preferred(in_use),
                // Whoever answers first has its turn.
                None if was_up => {
                    self.servers.iter_mut().enumerate().for_each(|(other, server)| match &mut server.link {
                        Link::Down { until } if other != number => *until = now,
                        _ => {}
                    })
                }
                None => {}
            }
        }
        self.show_connected(feed);
    }

    fn is_up(&self) -> bool {
        self.servers.iter().any(|server| matches!(server.link, Link::Up(_)))
    }

    fn show_connected(&self, feed: &Feed) {
        let up = self.servers.iter().filter(|server| matches!(server.link, Link::Up(_)));
        let names: Vec<String> = up.map(|server| server.target.to_string()).collect();
        feed.metrics().set_connected((!names.is_empty()).then(|| names.join(", ")));
    }

    /// Ends the connections; those that are up say goodbye if there is time.
    async fn leave(mut self) {
        if !self.is_up() {
            return;
        }
        self.servers.clear();
        let _ = timeout(GOODBYE_MAX, async { while self.sessions.join_next().await.is_some() {} }).await;
    }
}

impl Link {
    fn is_proven(&self) -> bool {
        matches!(self, Link::Up(up) if up.proven)
    }
}
