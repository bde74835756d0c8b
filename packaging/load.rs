//! The senders and the destination of `packaging/lab`, and the account of both: `load ADDRESS:PORT` listens there for lines
//! and does what stands on its standard input, a command a line, with an answer of one line each.
//!
//! | Command | What it does | Answer |
//! |---|---|---|
//! | `begin NAME TO KIND…` | lets the senders of these kinds send to the address `TO` | `begun` |
//! | `end` | stops them, and waits for what they have sent | `KIND SENT LOST REPEATED` for each kind |
//! | `datagrams NAME TO COUNT` | sends so many at once | `sent` |
//! | `arrived NAME` | | how many datagrams of that name have |
//!
//! | Kind | Senders | Counted as sent |
//! |---|---|---|
//! | `udp` | one, 2 000 datagrams a second | what was handed to the kernel, or should have been |
//! | `tcp` | ten, 100 lines a second each | what the kernel took |
//! | `forward` | two, one event after the other | what was acknowledged |
//!
//! Every message has a number, so that each can be said to have arrived: `lab:NAME:KIND:SENDER:NUMBER;`. A name is used
//! once.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const SYSLOG: u16 = 514;
const FORWARD: u16 = 24224;
const DATAGRAMS_PER_SECOND: f64 = 2_000.0;
const LINES_PER_SECOND: f64 = 100.0;
/// Shorter than the time between two datagrams.
const TICK: Duration = Duration::from_micros(500);
/// How long a sender waits for a connection or an answer before it tries anew, as devices do.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(20);
/// How long nothing must come before what is missing counts as lost: outputs try again sooner, and so do senders.
const QUIET: Duration = Duration::from_secs(5);
/// How long it is waited for in all.
const ALL_MAX: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let address = std::env::args().nth(1).context("usage: load ADDRESS:PORT")?;
    let sink = Sink::open(&address)?;
    let mut load = None;
    for line in io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["begin" | "datagrams", name, ..] = words[..]
            && sink.arrived().knows(name)
        {
            bail!("{name} would be counted with what has arrived under that name");
        }
        let answer = match words[..] {
            ["begin", name, to, ref kinds @ ..] => {
                load = Some(Load::begin(name, to.parse()?, kinds)?);
                "begun".to_owned()
            }
            ["end"] => load.take().context("nothing has begun")?.end(&sink),
            ["datagrams", name, to, count] => {
                let socket = UdpSocket::bind(("0.0.0.0", 0))?;
                for number in 0..count.parse()? {
                    socket.send_to(syslog(&format!("{name}:udp:0"), number).as_bytes(), (to, SYSLOG))?;
                }
                "sent".to_owned()
            }
            ["arrived", name] => sink.arrived().times(&format!("{name}:udp:0")).len().to_string(),
            _ => bail!("no command: {line}"),
        };
        writeln!(io::stdout(), "{answer}")?;
    }
    Ok(())
}

/// How often each number has arrived, by name, kind and sender.
#[derive(Default)]
struct Arrived {
    times: HashMap<String, HashMap<u64, u64>>,
    last: Option<Instant>,
}

impl Arrived {
    fn knows(&self, name: &str) -> bool {
        self.times.keys().any(|stream| stream.split(':').next() == Some(name))
    }

    fn times(&self, stream: &str) -> HashMap<u64, u64> {
        self.times.get(stream).cloned().unwrap_or_default()
    }
}

/// Takes lines from as many nodes as come. Its threads end with the process.
struct Sink(Arc<Mutex<Arrived>>);

impl Sink {
    fn open(address: &str) -> Result<Sink> {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        let arrived = Arc::<Mutex<Arrived>>::default();
        let counting = arrived.clone();
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let arrived = counting.clone();
                thread::spawn(move || count(connection, &arrived));
            }
        });
        Ok(Sink(arrived))
    }

    fn arrived(&self) -> MutexGuard<'_, Arrived> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(connection: TcpStream, arrived: &Mutex<Arrived>) {
    let (mut reader, mut line) = (BufReader::new(connection), String::new());
    // A line without its end was cut, and its number with it.
    while reader.read_line(&mut line).is_ok() && line.ends_with('\n') {
        if let Some((stream, number)) = mark(&line) {
            let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
            *arrived.times.entry(stream.to_owned()).or_default().entry(number).or_default() += 1;
            arrived.last = Some(Instant::now());
        }
        line.clear();
    }
}

/// What stands between `lab:` and `;`: name, kind and sender, and the number.
fn mark(line: &str) -> Option<(&str, u64)> {
    let (_, rest) = line.split_once("lab:")?;
    let (stream, number) = rest.split_once(';')?.0.rsplit_once(':')?;
    Some((stream, number.parse().ok()?))
}

/// A syslog message with its mark.
fn syslog(stream: &str, number: u64) -> String {
    format!("<13>1 - lab lab - - - lab:{stream}:{number};")
}

/// One sender: its kind, its name with kind and number, and how many it will have sent when it is stopped.
struct Sender {
    kind: &'static str,
    stream: String,
    thread: JoinHandle<u64>,
}

/// Senders at work.
struct Load {
    stop: Arc<AtomicBool>,
    kinds: Vec<String>,
    senders: Vec<Sender>,
}

impl Load {
    fn begin(name: &str, to: IpAddr, kinds: &[&str]) -> Result<Load> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut senders = Vec::new();
        for kind in kinds {
            let (kind, count, work): (_, _, fn(IpAddr, &str, &AtomicBool) -> u64) = match *kind {
                "udp" => ("udp", 1, send_datagrams),
                "tcp" => ("tcp", 10, send_lines),
                "forward" => ("forward", 2, send_events),
                _ => bail!("no kind: {kind}"),
            };
            for sender in 0..count {
                let (stream, stopping) = (format!("{name}:{kind}:{sender}"), stop.clone());
                let theirs = stream.clone();
                senders.push(Sender { kind, stream, thread: thread::spawn(move || work(to, &theirs, &stopping)) });
            }
        }
        Ok(Load { stop, kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(), senders })
    }

    /// Stops, waits, and draws up the account.
    fn end(self, sink: &Sink) -> String {
        self.stop.store(true, Ordering::Relaxed);
        let senders = self.senders.into_iter();
        // One that has panicked has sent nothing that anybody could count on, and says so on stderr.
        let sent: Vec<(&str, String, u64)> =
            senders.map(|one| (one.kind, one.stream, one.thread.join().unwrap_or_default())).collect();
        let begin = Instant::now();
        loop {
            let arrived = sink.arrived();
            let is_all = sent.iter().all(|(_, stream, sent)| lost(*sent, &arrived.times(stream)) == 0);
            let is_quiet = begin.max(arrived.last.unwrap_or(begin)).elapsed() > QUIET;
            if is_all || is_quiet || begin.elapsed() > ALL_MAX {
                break;
            }
            drop(arrived);
            thread::sleep(Duration::from_millis(200));
        }
        let arrived = sink.arrived();
        let accounts = self.kinds.iter().map(|kind| {
            let mut account = (0, 0, 0);
            for (_, stream, sent) in sent.iter().filter(|(of, ..)| of == kind) {
                let times = arrived.times(stream);
                let repeated = times.values().map(|times| times - 1).sum::<u64>();
                account = (account.0 + sent, account.1 + lost(*sent, &times), account.2 + repeated);
            }
            format!("{kind} {} {} {}", account.0, account.1, account.2)
        });
        accounts.collect::<Vec<_>>().join(" ")
    }
}

fn lost(sent: u64, times: &HashMap<u64, u64>) -> u64 {
    (0..sent).filter(|number| !times.contains_key(number)).count() as u64
}

/// How many are due at this rate since `begin`.
fn due(begin: Instant, per_second: f64) -> u64 {
    (begin.elapsed().as_secs_f64() * per_second) as u64
}

fn send_datagrams(to: IpAddr, stream: &str, stop: &AtomicBool) -> u64 {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a free port");
    let (begin, mut number) = (Instant::now(), 0);
    while !stop.load(Ordering::Relaxed) {
        while number < due(begin, DATAGRAMS_PER_SECOND) {
            // What cannot be sent was sent as far as the account goes: it is lost.
            let _ = socket.send_to(syslog(stream, number).as_bytes(), (to, SYSLOG));
            number += 1;
        }
        thread::sleep(TICK);
    }
    number
}

/// As rsyslog does it: looks before each line whether the other side has closed, and connects again if so.
fn send_lines(to: IpAddr, stream: &str, stop: &AtomicBool) -> u64 {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut connection) = connect(to, SYSLOG) else {
            thread::sleep(PAUSE);
            continue;
        };
        let (begin, before) = (Instant::now(), number);
        while !stop.load(Ordering::Relaxed) && is_open(&mut connection) {
            if number - before >= due(begin, LINES_PER_SECOND) {
                thread::sleep(TICK);
            } else if connection.write_all((syslog(stream, number) + "\n").as_bytes()).is_ok() {
                number += 1;
            } else {
                break;
            }
        }
        // What is sent is on its way: the close comes behind it.
    }
    number
}

fn is_open(connection: &mut TcpStream) -> bool {
    let looked = connection.set_nonblocking(true).and_then(|()| connection.read(&mut [0; 16]));
    let is_open = !matches!(looked, Ok(0)) && !matches!(&looked, Err(error) if error.kind() != ErrorKind::WouldBlock);
    is_open && connection.set_nonblocking(false).is_ok()
}

/// Sends the first event that is not acknowledged until it is, over a new connection if need be, then the next.
fn send_events(to: IpAddr, stream: &str, stop: &AtomicBool) -> u64 {
    let mut acknowledged = 0;
    while !stop.load(Ordering::Relaxed) {
        // Why a connection ended does not matter: the next one begins where it stood.
        let _ = talk(to, stream, stop, &mut acknowledged);
        thread::sleep(PAUSE);
    }
    acknowledged
}

fn talk(to: IpAddr, stream: &str, stop: &AtomicBool, acknowledged: &mut u64) -> io::Result<()> {
    let mut connection = connect(to, FORWARD)?;
    while !stop.load(Ordering::Relaxed) {
        let chunk = format!("{stream}:{acknowledged}");
        connection.write_all(&frame(&format!("lab:{chunk};"), &chunk))?;
        let mut answer = Vec::new();
        while !answer.ends_with(chunk.as_bytes()) {
            let mut some = [0; 256];
            match connection.read(&mut some)? {
                0 => return Ok(()),
                read => answer.extend_from_slice(&some[..read]),
            }
        }
        *acknowledged += 1;
    }
    Ok(())
}

/// `["lab", [[time, {"message": text}]], {"chunk": chunk}]`, in MessagePack.
fn frame(text: &str, chunk: &str) -> Vec<u8> {
    let word = |text: &str| [&[0xd9, text.len() as u8], text.as_bytes()].concat();
    let event = [&[0x92, 0xce, 0x68, 0, 0, 0, 0x81][..], &word("message"), &word(text)].concat();
    [&[0x93][..], &word("lab"), &[0x91], &event, &[0x81], &word("chunk"), &word(chunk)].concat()
}

fn connect(to: IpAddr, port: u16) -> io::Result<TcpStream> {
    let connection = TcpStream::connect_timeout(&SocketAddr::new(to, port), PATIENCE)?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    Ok(connection)
}
