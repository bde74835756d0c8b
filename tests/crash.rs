//! `kill -9` of the real daemon at random moments, under load.
//!
//! A round: the destinations accept and do not read (in one round of four they read), four connections send numbered
//! messages, `status` is asked again and again, the daemon is killed; it starts anew, the destinations read, and what they
//! got is judged:
//!
//! * Every message below the last `durable` that `status` showed arrives, byte for byte. This is seen from the ids of
//!   the output in RFC 5424: they are positions, and the positions of neighbours leave no room for a message between.
//! * Every line is one that was sent, by this round's senders or (a repeat) by the round's before.
//! * Each sender's messages arrive in order, from the first on without a hole.
//! * A repeat has the id it had the first time.
//! * A kill repeats one window and no more: what is in the sockets ([`window_bytes_max`]) and, where the destinations
//!   read, what arrived since the cursors were saved.
//!
//! Some rounds kill the new daemon again while it recovers. `SEED` repeats a run, `TWINLOG_ROUNDS` asks for more than
//! the three rounds of the normal test run.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{Daemon, Lab, free_port, v4, wait_until, wait_until_within};
use socket2::{Domain, Socket, Type};

const CONNECTIONS: u32 = 4;
/// Of one message, without the line feed.
const MESSAGE_BYTES: usize = 256;
/// Messages a second, of all connections.
const RATE: u32 = 50_000;
/// Bytes of an item's header in a batch, before the message.
const ITEM_HEADER_LEN: u64 = 8;
/// Bytes from a message's position to the end of the message.
const ITEM_BYTES: u64 = ITEM_HEADER_LEN + MESSAGE_BYTES as u64;
/// What a stalled destination's socket is told to hold; the kernel doubles it.
const SINK_BUFFER_BYTES: usize = 256 * 1024;
/// The cursors are saved every 100 ms; so much is allowed for it on a busy machine.
const SAVE_SECONDS_MAX: u64 = 1;
/// Of a message as it leaves, with its id and a line feed: at most.
const LINE_BYTES_MAX: u64 = 420;
/// A cursor follows whole batches, and one read of the journal is given out at once.
const GRANULE_BYTES: u64 = 2 * 1024 * 1024;

#[test]
fn nothing_durable_is_lost_and_little_repeated_when_the_daemon_is_killed() {
    let seed = number_from("SEED").unwrap_or_else(|| fastrand::u64(..));
    let rounds = number_from("TWINLOG_ROUNDS").unwrap_or(3);
    println!("SEED={seed} TWINLOG_ROUNDS={rounds}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bench = Bench::new();
    let mut daemon = bench.start();
    let mut figures = Figures::default();
    for round in 0..u32::try_from(rounds).unwrap() {
        daemon = bench.round(round, daemon, &mut random, &mut figures);
    }
    daemon.stop();
    println!("{figures}");
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// What may come once more after a kill with a destination that does not read, in bytes of one output: what its socket
/// and the destination's can hold (delivered since the cursor was saved, or not delivered at all), and the granule of
/// the cursor.
fn window_bytes_max() -> u64 {
    let limits = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_wmem").unwrap();
    let send_buffer: u64 = limits.split_whitespace().nth(2).unwrap().parse().unwrap();
    send_buffer + 2 * SINK_BUFFER_BYTES as u64 + GRANULE_BYTES
}

#[derive(Default)]
struct Figures {
    kills: u64,
    kills_in_recovery: u64,
    readings: u64,
    sent: u64,
    delivered: u64,
    waiting_at_kill: u64,
    beyond_durable: u64,
    repeats: Vec<u64>,
    repeated_bytes_max: u64,
    load: Duration,
    recovery_max: Duration,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut repeats = self.repeats.clone();
        repeats.sort_unstable();
        let (kills, readings) = (self.kills, self.readings);
        writeln!(
            f,
            "kills: {kills}, {readings} of them with destinations that read, and {} in recovery",
            self.kills_in_recovery
        )?;
        let rate = self.sent as f64 / self.load.as_secs_f64();
        writeln!(f, "sent: {} messages at {rate:.0} a second; delivered: {}", self.sent, self.delivered)?;
        writeln!(f, "undelivered at the kills: {}; lost: 0 of the durable ones", self.waiting_at_kill)?;
        writeln!(f, "sent but never durable, so promised to nobody: {}", self.beyond_durable)?;
        let median = repeats.get(repeats.len() / 2).copied().unwrap_or_default();
        let most = repeats.last().copied().unwrap_or_default();
        writeln!(
            f,
            "repeats a round and output: median {median}, most {most} messages, {} bytes",
            self.repeated_bytes_max
        )?;
        write!(
            f,
            "bound a kill: {} bytes; slowest start until it answered: {:?}",
            window_bytes_max(),
            self.recovery_max
        )
    }
}

/// Which message: the whole of it follows from these numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    round: u32,
    connection: u32,
    number: u32,
}

const HEAD: &str = "<13>1 2026-03-10T12:00:00Z host app - - ";

impl Key {
    /// The message's text: the numbers, and characters that no other message has in the same places.
    fn text(self) -> Vec<u8> {
        let mut text = format!("{} {} {} ", self.round, self.connection, self.number).into_bytes();
        let mut state = (u64::from(self.round) << 40) ^ (u64::from(self.connection) << 32) ^ u64::from(self.number);
        let length = MESSAGE_BYTES - HEAD.len() - "- ".len();
        while text.len() < length {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push(b'!' + (state >> 57) as u8 % 94);
        }
        text
    }

    fn message(self) -> Vec<u8> {
        [HEAD.as_bytes(), b"- ", &self.text()].concat()
    }

    /// The key that stands at the begin of a text; the text must be the one it stands for.
    fn of(text: &[u8]) -> Key {
        let shown = text.escape_ascii();
        let mut numbers = text.splitn(4, |byte| *byte == b' ').map(|word| std::str::from_utf8(word).ok()?.parse().ok());
        let mut next = || numbers.next().flatten().unwrap_or_else(|| panic!("nobody sent {shown}"));
        let key = Key { round: next(), connection: next(), number: next() };
        assert!(text == key.text(), "torn or mixed: {shown}");
        key
    }
}

/// What the two outputs send.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Raw,
    Rfc5424,
}

/// A message as it arrived.
#[derive(Clone, Debug)]
struct Arrival {
    key: Key,
    /// Of the output in RFC 5424.
    id: Option<String>,
    bytes: u64,
}

impl Arrival {
    fn of(line: &[u8], format: Format) -> Arrival {
        let shown = || line.escape_ascii();
        let rest = line.strip_prefix(HEAD.as_bytes()).unwrap_or_else(|| panic!("nobody sent {}", shown()));
        let bytes = line.len() as u64 + 1;
        if format == Format::Raw {
            let text = rest.strip_prefix(b"- ").unwrap_or_else(|| panic!("nobody sent {}", shown()));
            return Arrival { key: Key::of(text), id: None, bytes };
        }
        let element = rest.strip_prefix(b"[twinlog@32473 id=\"").unwrap_or_else(|| panic!("no id in {}", shown()));
        let end = element.iter().position(|byte| *byte == b'"').unwrap();
        let id = String::from_utf8(element[..end].to_vec()).unwrap();
        let text = element.windows(2).position(|pair| pair == b"] ").unwrap() + 2;
        Arrival { key: Key::of(&element[text..]), id: Some(id), bytes }
    }
}

fn position(id: &str) -> u64 {
    id.rsplit('/').next().unwrap().parse().unwrap()
}

/// A destination that reads one connection to its end before it takes the next, as the one output makes them.
struct Destination {
    shared: Arc<DestinationState>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct DestinationState {
    arrivals: Mutex<Vec<Arrival>>,
    /// Messages that came over the newest connection.
    of_connection: AtomicU64,
    stalled: AtomicBool,
    stopping: AtomicBool,
}

impl Destination {
    fn new(port: u16, format: Format) -> Destination {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // Before `listen`, or accepted sockets do not have it.
        socket.set_recv_buffer_size(SINK_BUFFER_BYTES).unwrap();
        socket.bind(&v4(port).into()).unwrap();
        socket.listen(16).unwrap();
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(true).unwrap();
        let shared = Arc::new(DestinationState::default());
        let theirs = shared.clone();
        Destination { shared, thread: Some(std::thread::spawn(move || theirs.run(&listener, format))) }
    }

    fn stall(&self, stalled: bool) {
        self.shared.stalled.store(stalled, Ordering::Relaxed);
    }

    fn with<T>(&self, look: impl FnOnce(&mut Vec<Arrival>) -> T) -> T {
        assert!(!self.thread.as_ref().unwrap().is_finished(), "the destination got what nobody sent, see above");
        look(&mut self.shared.arrivals.lock().unwrap())
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// How often a destination that waits looks whether it is to do something else.
const TICK: Duration = Duration::from_millis(5);

impl DestinationState {
    fn run(&self, listener: &TcpListener, format: Format) {
        while !self.stopping.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    self.of_connection.store(0, Ordering::Relaxed);
                    self.read(stream, format);
                }
                Err(_) => std::thread::sleep(TICK),
            }
        }
    }

    fn read(&self, mut stream: TcpStream, format: Format) {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(TICK)).unwrap();
        let (mut chunk, mut kept) = (vec![0; 256 * 1024], Vec::new());
        while !self.stopping.load(Ordering::Relaxed) {
            if self.stalled.load(Ordering::Relaxed) {
                std::thread::sleep(TICK);
                continue;
            }
            match stream.read(&mut chunk) {
                // What stands behind the last line feed was cut by the kill and comes again.
                Ok(0) => return,
                Ok(length) => {
                    kept.extend_from_slice(&chunk[..length]);
                    let end = kept.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
                    let lines = kept[..end].split_inclusive(|byte| *byte == b'\n');
                    let arrived: Vec<Arrival> =
                        lines.map(|line| Arrival::of(&line[..line.len() - 1], format)).collect();
                    let count = arrived.len() as u64;
                    self.arrivals.lock().unwrap().extend(arrived);
                    self.of_connection.fetch_add(count, Ordering::Relaxed);
                    kept.drain(..end);
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("the connection to the destination broke: {error}"),
            }
        }
    }
}

/// Sends numbered messages at an even pace until the connection breaks; gives how many it began to send.
fn send(port: u16, round: u32, connection: u32) -> u32 {
    // So many at a time that a connection writes every 5 ms.
    let burst = RATE / CONNECTIONS / 200;
    let Ok(mut stream) = TcpStream::connect(v4(port)) else { return 0 };
    let begin = Instant::now();
    let mut sent = 0;
    loop {
        let due = begin + Duration::from_secs_f64(f64::from(sent) * f64::from(CONNECTIONS) / f64::from(RATE));
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut bytes = Vec::with_capacity(burst as usize * (MESSAGE_BYTES + 1));
        for number in sent..sent + burst {
            bytes.extend(Key { round, connection, number }.message());
            bytes.push(b'\n');
        }
        sent += burst;
        if stream.write_all(&bytes).is_err() {
            return sent;
        }
    }
}

struct Bench {
    lab: Lab,
    config: String,
    input: u16,
    raw: Destination,
    rfc5424: Destination,
    /// Where the journal ended after the last round.
    end: u64,
    /// Ids of the last round's messages.
    last: HashMap<Key, String>,
}

impl Bench {
    fn new() -> Bench {
        let (input, raw, rfc5424) = (free_port(), free_port(), free_port());
        let config = format!(
            r#"
[journal]
segment_size = "4MiB"

[[input.syslog]]
name = "net"
listen = "tcp://127.0.0.1:{input}"

[[output.syslog]]
name = "raw"
to = "tcp://127.0.0.1:{raw}"
retry = {{ min = "20ms", max = "100ms" }}

[[output.syslog]]
name = "rfc"
to = "tcp://127.0.0.1:{rfc5424}"
format = "rfc5424"
retry = {{ min = "20ms", max = "100ms" }}
"#
        );
        let (raw, rfc5424) = (Destination::new(raw, Format::Raw), Destination::new(rfc5424, Format::Rfc5424));
        Bench { lab: Lab::new(), config, input, raw, rfc5424, end: 0, last: HashMap::new() }
    }

    fn start(&self) -> Daemon {
        self.lab.start(&self.config)
    }

    /// Ends with a daemon that has delivered everything.
    fn round(&mut self, round: u32, daemon: Daemon, random: &mut fastrand::Rng, figures: &mut Figures) -> Daemon {
        let reading = random.u8(..4) == 0;
        for destination in [&self.raw, &self.rfc5424] {
            destination.with(Vec::clear);
            destination.stall(!reading);
        }
        let input = self.input;
        let begin = Instant::now();
        let senders: Vec<_> = (0..CONNECTIONS).map(|c| std::thread::spawn(move || send(input, round, c))).collect();
        wait_until("messages are durable", || durable(&daemon) > self.end);
        let until = Instant::now() + Duration::from_millis(random.u64(..700));
        let mut promised = durable(&daemon);
        while Instant::now() < until {
            promised = durable(&daemon);
        }
        let waiting = daemon.number("/journals/0/messages");
        // Not right behind an answer: at any point of what the daemon does.
        std::thread::sleep(Duration::from_micros(random.u64(..20_000)));
        daemon.kill();
        figures.load += begin.elapsed();
        let sent: Vec<u32> = senders.into_iter().map(|sender| sender.join().unwrap()).collect();

        let mut kills = 1;
        while random.u8(..4) == 0 {
            self.kill_in_recovery(random);
            kills += 1;
        }
        self.raw.stall(false);
        self.rfc5424.stall(false);
        let begin = Instant::now();
        let daemon = self.start();
        figures.recovery_max = figures.recovery_max.max(begin.elapsed());
        let end = durable(&daemon);
        assert!(end >= promised, "round {round}: {promised} was shown as durable, the journal now ends at {end}");
        self.wait_for_all(&daemon);

        let unsaved = if reading { SAVE_SECONDS_MAX * u64::from(RATE) * LINE_BYTES_MAX } else { 0 };
        let allowed = Allowed { kills, bytes: kills * window_bytes_max() + unsaved };
        let ids = self.judge_rfc5424(round, promised..end, &sent, allowed, figures);
        self.judge_raw(&ids, allowed, figures);
        figures.readings += u64::from(reading);
        figures.kills += 1;
        figures.kills_in_recovery += kills - 1;
        figures.waiting_at_kill += waiting;
        figures.sent += sent.iter().map(|sent| u64::from(*sent)).sum::<u64>();
        let delivered = ids.keys().filter(|key| key.round == round).count() as u64;
        figures.delivered += delivered;
        figures.beyond_durable = figures.sent - figures.delivered;
        self.end = end;
        self.last = ids.into_iter().filter(|(key, _)| key.round == round).collect();
        daemon
    }

    fn kill_in_recovery(&self, random: &mut fastrand::Rng) {
        let path = self.lab.configure(&self.config);
        let mut command = self.lab.command(["run", "--config", path.to_str().unwrap()]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(random.u64(..60_000)));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits until both destinations have everything that this life of the daemon sends them.
    fn wait_for_all(&self, daemon: &Daemon) {
        for (name, destination) in [("raw", &self.raw), ("rfc", &self.rfc5424)] {
            wait_until_within(Duration::from_secs(60), &format!("output {name} delivers everything"), || {
                let output = &daemon.node()["outputs"][name];
                let arrived = destination.with(|_| destination.shared.of_connection.load(Ordering::Relaxed));
                output["connected"] == true && output["backlog_messages"] == 0 && output["sent"] == arrived
            });
        }
    }

    fn judge_rfc5424(
        &self,
        round: u32,
        Range { start: promised, end }: Range<u64>,
        sent: &[u32],
        allowed: Allowed,
        figures: &mut Figures,
    ) -> HashMap<Key, String> {
        let arrivals = self.rfc5424.with(|arrivals| arrivals.clone());
        let mut ids = self.last.clone();
        let mut first = Vec::new();
        for arrival in &arrivals {
            let id = arrival.id.clone().unwrap();
            match ids.get(&arrival.key) {
                Some(before) => assert_eq!(*before, id, "a repeat of {:?} has another id", arrival.key),
                None => {
                    assert_eq!(arrival.key.round, round, "{:?} comes late", arrival.key);
                    first.push((arrival.key, position(&id)));
                    ids.insert(arrival.key, id);
                }
            }
        }
        assert_in_order_without_holes(first.iter().map(|(key, _)| *key), sent);
        let mut expected_from = self.end;
        for (key, position) in &first {
            let between = position.checked_sub(expected_from);
            // An origin and a batch's header may stand between two messages, but no message.
            assert!(
                between.is_some_and(|bytes| bytes < ITEM_BYTES),
                "before {key:?}: {position} after {expected_from}"
            );
            expected_from = position + ITEM_BYTES;
        }
        assert_eq!(expected_from, end, "the last message ends where the journal does");
        assert!(first.iter().any(|(_, position)| position + ITEM_BYTES == promised), "{promised} ends a message");
        let positions = arrivals.iter().map(|arrival| position(arrival.id.as_ref().unwrap()));
        assert_one_window(&arrivals, positions, first.len(), allowed, figures);
        ids
    }

    fn judge_raw(&self, ids: &HashMap<Key, String>, allowed: Allowed, figures: &mut Figures) {
        let arrivals = self.raw.with(|arrivals| arrivals.clone());
        let mut seen = std::collections::HashSet::new();
        for arrival in &arrivals {
            assert!(ids.contains_key(&arrival.key), "only the raw output delivered {:?}", arrival.key);
            seen.insert(arrival.key);
        }
        let old = |key: &Key| self.last.contains_key(key);
        let first = seen.iter().filter(|key| !old(key)).count();
        assert_eq!(first, ids.keys().filter(|key| !old(key)).count(), "the raw output delivers the same messages");
        let positions = arrivals.iter().map(|arrival| position(&ids[&arrival.key]));
        assert_one_window(&arrivals, positions, first, allowed, figures);
    }
}

fn durable(daemon: &Daemon) -> u64 {
    daemon.number("/journals/0/durable")
}

/// What a sender sent arrives in its order and from the first on; more than it sent does not arrive.
fn assert_in_order_without_holes(keys: impl Iterator<Item = Key>, sent: &[u32]) {
    let mut next = vec![0; sent.len()];
    for key in keys {
        let expected = &mut next[key.connection as usize];
        assert_eq!(key.number, *expected, "connection {}", key.connection);
        *expected += 1;
        assert!(*expected <= sent[key.connection as usize], "{key:?} was never sent");
    }
}

/// How much may be repeated.
#[derive(Clone, Copy)]
struct Allowed {
    /// Times that the output goes back.
    kills: u64,
    /// Bytes in all.
    bytes: u64,
}

/// The output goes back at most once for every kill, and by at most a window.
fn assert_one_window(
    arrivals: &[Arrival],
    positions: impl Iterator<Item = u64>,
    first: usize,
    Allowed { kills, bytes: bytes_max }: Allowed,
    figures: &mut Figures,
) {
    let positions: Vec<u64> = positions.collect();
    let steps_back = positions.windows(2).filter(|pair| pair[1] <= pair[0]).count() as u64;
    assert!(steps_back <= kills, "{steps_back} steps back after {kills} kills");
    let bytes: u64 = arrivals.iter().map(|arrival| arrival.bytes).sum();
    let repeats = (arrivals.len() - first) as u64;
    let repeated = if arrivals.is_empty() { 0 } else { bytes / arrivals.len() as u64 * repeats };
    assert!(repeated <= bytes_max, "{repeats} repeats, {repeated} bytes, after {kills} kills");
    figures.repeats.push(repeats);
    figures.repeated_bytes_max = figures.repeated_bytes_max.max(repeated);
}
