//! Plain TCP syslog through the virtual address, over connections that never end by themselves.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::aggregators::SYSLOG_PORT;
use super::lab::{Host, VIPS};

/// Numbered lines at a steady rate, in turn over so many connections. Some are written in two pieces, so that a connection
/// is mostly inside of one.
pub struct Lines {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Sent>,
}

/// What was sent, and what the connections noticed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sent {
    pub lines: u64,
    /// Connections that were reset or closed, as their clients saw it.
    pub broken: Vec<String>,
    /// The last line of each other connection, by number.
    pub last: Vec<u64>,
}

struct Connection {
    stream: TcpStream,
    /// What the kernel has not taken yet.
    unsent: Vec<u8>,
    /// The end of the last line, kept for the next turn.
    rest: Vec<u8>,
    is_broken: bool,
}

impl Lines {
    /// Over both families in turn.
    pub fn start(host: &Host, connections: usize, per_second: u32) -> Lines {
        Lines::named(host, "tcp", connections, per_second)
    }

    pub fn named(host: &Host, name: &'static str, connections: usize, per_second: u32) -> Lines {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let connect = |at: usize| {
            let stream = TcpStream::connect(SocketAddr::new(VIPS[at % VIPS.len()], SYSLOG_PORT)).unwrap();
            stream.set_nonblocking(true).unwrap();
            Connection { stream, unsent: Vec::new(), rest: Vec::new(), is_broken: false }
        };
        let mut connections: Vec<Connection> = host.visit(|| (0..connections).map(connect).collect());
        let thread = std::thread::spawn(move || {
            let begin = Instant::now();
            let mut sent = Sent::default();
            while !stopping.load(Ordering::SeqCst) {
                let due = (begin.elapsed().as_secs_f64() * f64::from(per_second)) as u64;
                while sent.lines < due {
                    let at = sent.lines as usize % connections.len();
                    connections[at].say(name, sent.lines);
                    sent.lines += 1;
                }
                connections.iter_mut().for_each(|connection| connection.go_on(&mut sent.broken));
                std::thread::sleep(Duration::from_micros(500));
            }
            // Everything has to leave; then all end as clients do.
            let deadline = Instant::now() + Duration::from_secs(10);
            for connection in &mut connections {
                connection.finish();
                while !connection.unsent.is_empty() && !connection.is_broken && Instant::now() < deadline {
                    connection.go_on(&mut sent.broken);
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            let count = connections.len() as u64;
            let lasting = connections.iter().zip(0..count).filter(|(connection, _)| !connection.is_broken);
            sent.last = lasting.map(|(_, at)| (sent.lines - 1 - at) / count * count + at).collect();
            sent
        });
        Lines { stop, thread }
    }

    /// Stops; says what was sent.
    pub fn stop(self) -> Sent {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

impl Connection {
    fn say(&mut self, name: &str, number: u64) {
        let line = format!("<13>1 - - app - - - event-{name}-{number}\n");
        self.unsent.append(&mut self.rest);
        let now = if number.is_multiple_of(3) { line.len() / 2 } else { line.len() };
        self.unsent.extend_from_slice(&line.as_bytes()[..now]);
        self.rest.extend_from_slice(&line.as_bytes()[now..]);
    }

    fn finish(&mut self) {
        self.unsent.append(&mut self.rest);
    }

    fn go_on(&mut self, broken: &mut Vec<String>) {
        let failed = match (self.is_broken, self.stream.read(&mut [0; 16])) {
            (true, _) => return,
            (false, Ok(0)) => Some("closed".to_owned()),
            (false, Ok(_)) => Some("answered".to_owned()),
            (false, Err(error)) if error.kind() == ErrorKind::WouldBlock => None,
            (false, Err(error)) => Some(error.to_string()),
        };
        let failed = failed.or_else(|| match self.stream.write(&self.unsent) {
            Ok(count) => {
                self.unsent.drain(..count);
                None
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => Some(error.to_string()),
        });
        if let Some(why) = failed {
            self.is_broken = true;
            broken.push(why);
        }
    }
}
