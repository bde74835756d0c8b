//! Two aggregators, their senders and their destination.
//!
//! The destination is a TCP listener on a host of its own that keeps every line. Messages leave as RFC 5424, so that each
//! shows the id by which a repeat is known.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{Shutdown, shutdown};
use tempfile::TempDir;

use super::lab::{Host, KEY, Program, VIP_V4, VIP_V6, succeed, wait_until, write_key};

pub const FORWARD_PORT: u16 = 24224;
pub const SYSLOG_PORT: u16 = 1514;
pub const SINK_PORT: u16 = 1601;

/// One aggregator on a host.
pub struct Aggregator<'a> {
    pub host: &'a Host,
    directory: TempDir,
    program: Option<Program>,
}

impl<'a> Aggregator<'a> {
    pub fn new(host: &'a Host, key: &str, more: &str) -> Aggregator<'a> {
        let directory = TempDir::with_prefix("twinlog-").unwrap();
        let path = directory.path().display();
        let text = format!(
            "data_dir = \"{path}/data\"\ncontrol_socket = \"{path}/control\"\n\
             [pair]\nvip = [\"{VIP_V4}\", \"{VIP_V6}\"]\nvrid = 77\ninterface = \"eth0\"\n\
             nodes = [{{ name = \"a\", address = \"203.0.113.1\" }}, {{ name = \"b\", address = \"203.0.113.2\" }}]\n{more}\n\
             [[input.syslog]]\nname = \"net\"\nlisten = \":{SYSLOG_PORT}\"\n\
             [[input.forward]]\nname = \"fwd\"\nlisten = \":{FORWARD_PORT}\"\n\
             [[output.syslog]]\nname = \"siem\"\nto = [\"tcp://203.0.113.3:{SINK_PORT}\"]\nformat = \"rfc5424\"\n\
             retry = {{ min = \"50ms\", max = \"200ms\" }}\n"
        );
        std::fs::write(directory.path().join("twinlog.toml"), text).unwrap();
        write_key(directory.path(), key);
        Aggregator { host, directory, program: None }
    }

    pub fn file(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn start(&mut self) {
        let file = self.file("twinlog.toml");
        self.program = Some(self.host.start(env!("CARGO_BIN_EXE_twinlog"), ["run", "--config", &file]));
        wait_until("the daemon answers", || PathBuf::from(self.file("control")).exists());
    }

    /// SIGKILL to everything, as if the host had died.
    pub fn die(&mut self) {
        self.program.take().expect("it was started").kill();
        let _ = std::fs::remove_file(self.file("control"));
    }

    /// What runs.
    pub fn program(&self) -> &Program {
        self.program.as_ref().expect("it was started")
    }

    /// Starts it anew, as a service manager does, once its guardian has ended by itself.
    #[track_caller]
    pub fn restart(&mut self) {
        let program = self.program.take().expect("it was started");
        wait_until("its guardian ends", || kill(program.pid(), None).is_err());
        let _ = std::fs::remove_file(self.file("control"));
        self.start();
    }

    /// As `systemctl stop` does, to its end.
    pub fn stop(&mut self) {
        let program = self.program.take().expect("it was started");
        program.signal(Signal::SIGTERM);
        wait_until("it ends", || kill(program.pid(), None).is_err());
    }

    pub fn ask(&self, arguments: &[&str]) -> (Option<i32>, String) {
        said(self.host.visit(|| self.command(arguments).output()).unwrap())
    }

    /// A question that is still being answered, to a program that finds others in `path` first.
    pub fn begin_to_ask(&self, arguments: &[&str], path: &Path) -> Child {
        let mut command = self.command(arguments);
        command.env("PATH", format!("{}:{}", path.display(), std::env::var("PATH").unwrap()));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        self.host.visit(|| command.spawn()).unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinlog"));
        command.args(["--config", &self.file("twinlog.toml"), "--node", self.host.name]).args(arguments);
        command
    }

    pub fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.ask(&["status", "--json"]).1).unwrap_or_default()
    }

    pub fn is_active(&self) -> bool {
        self.status()["nodes"][0]["role"] == "active"
    }

    pub fn is_in_sync(&self) -> bool {
        self.status()["nodes"][0]["link"]["in_sync"] == true
    }

    /// Whether its first process has ended.
    pub fn has_ended(&self) -> bool {
        self.program.as_ref().is_none_or(|program| kill(program.pid(), None).is_err())
    }

    /// Copies a directory of its own; the daemon must not run.
    pub fn copy_data(&self, from: &str, to: &str) {
        succeed(Command::new("cp").args(["-a", &self.file(from), &self.file(to)]));
    }

    pub fn wipe(&self) {
        std::fs::remove_dir_all(self.directory.path().join("data")).unwrap();
    }
}

/// Exit status and what was said, answers first.
pub fn said(output: Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// A destination that keeps every line, while it is open.
pub struct Destination<'a> {
    host: &'a Host,
    lines: Arc<Mutex<Vec<String>>>,
    open: Option<(TcpListener, JoinHandle<()>)>,
}

impl<'a> Destination<'a> {
    /// One that nobody can connect to yet.
    pub fn new(host: &'a Host) -> Destination<'a> {
        Destination { host, lines: Arc::default(), open: None }
    }

    pub fn start(host: &'a Host) -> Destination<'a> {
        let mut destination = Destination::new(host);
        destination.open();
        destination
    }

    pub fn open(&mut self) {
        let address = SocketAddr::new(IpAddr::V4(self.host.v4()), SINK_PORT);
        let listener = self.host.visit(|| TcpListener::bind(address)).unwrap();
        let (incoming, lines) = (listener.try_clone().unwrap(), self.lines.clone());
        let thread = std::thread::spawn(move || {
            for stream in incoming.incoming() {
                let Ok(stream) = stream else { return };
                let lines = lines.clone();
                std::thread::spawn(move || {
                    for line in BufReader::new(stream).lines() {
                        let Ok(line) = line else { return };
                        lines.lock().unwrap().push(line);
                    }
                });
            }
        });
        self.open = Some((listener, thread));
    }

    /// How often each message came, by what the sender numbered it, with the ids that it had.
    pub fn received(&self) -> BTreeMap<String, Vec<String>> {
        let mut received: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in self.lines.lock().unwrap().iter() {
            let Some(at) = line.find("event-") else { continue };
            let event = line[at..].split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next().unwrap();
            let id = line.split("id=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
            received.entry(event.to_owned()).or_default().push(id.to_owned());
        }
        received
    }
}

impl Drop for Destination<'_> {
    fn drop(&mut self) {
        if let Some((listener, thread)) = self.open.take() {
            // The thread waits in accept: shutting the socket down wakes it.
            let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
            let _ = thread.join();
        }
    }
}

/// A forward client that sends one event after the other to the virtual address, and knows which were acknowledged. It
/// connects again and sends the last one again when its connection ends.
pub struct Client {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    pub fn start(host: &Host, to: IpAddr, name: &'static str) -> Client {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopping, counted) = (stop.clone(), acknowledged.clone());
        let run = move || {
            while !stopping.load(Ordering::SeqCst) {
                let _ = talk(SocketAddr::new(to, FORWARD_PORT), name, &stopping, &counted);
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        // A thread is where the one was that started it.
        let thread = host.visit(|| std::thread::spawn(run));
        Client { stop, acknowledged, thread: Some(thread) }
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    #[track_caller]
    pub fn wait_for_more(&self, events: u64) {
        let until = self.acknowledged() + events;
        wait_until("events are acknowledged", || self.acknowledged() >= until);
    }

    /// Stops; returns how many events were acknowledged.
    pub fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
        self.acknowledged()
    }
}

/// Sends events from the first that is not acknowledged on, until the connection ends.
fn talk(to: SocketAddr, name: &str, stop: &AtomicBool, acknowledged: &AtomicU64) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_millis(300))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.set_nodelay(true)?;
    while !stop.load(Ordering::SeqCst) {
        let event = acknowledged.load(Ordering::SeqCst);
        let (message, chunk) = (format!("event-{name}-{event}"), format!("{name}-{event}"));
        let mut bytes = vec![0x93, 0xa3, b'a', b'p', b'p', 0x91, 0x92, 0xce, 0x68, 0, 0, 0, 0x81, 0xa7];
        bytes.extend_from_slice(b"message");
        bytes.extend_from_slice(&[0xd9, message.len() as u8]);
        bytes.extend_from_slice(message.as_bytes());
        bytes.extend_from_slice(&[0x81, 0xa5]);
        bytes.extend_from_slice(b"chunk");
        bytes.extend_from_slice(&[0xd9, chunk.len() as u8]);
        bytes.extend_from_slice(chunk.as_bytes());
        stream.write_all(&bytes)?;
        let mut answer = Vec::new();
        while !answer.ends_with(chunk.as_bytes()) {
            let mut some = [0; 256];
            match stream.read(&mut some)? {
                0 => return Ok(()),
                read => answer.extend_from_slice(&some[..read]),
            }
        }
        acknowledged.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

/// Both nodes, of which `b` is active, and in sync.
#[track_caller]
pub fn pair<'a>(hosts: [&'a Host; 2], more: &str) -> [Aggregator<'a>; 2] {
    let [mut a, mut b] = hosts.map(|host| Aggregator::new(host, KEY, more));
    b.start();
    wait_until("b is active", || b.is_active());
    a.start();
    wait_until("both are in sync", || a.is_in_sync() && b.is_in_sync());
    [a, b]
}

/// Numbered datagrams to the virtual address at a steady rate, with one message each.
pub struct Datagrams {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Datagrams {
    pub fn start(host: &Host, per_second: u32) -> Datagrams {
        Datagrams::named(host, "udp", per_second)
    }

    pub fn named(host: &Host, name: &'static str, per_second: u32) -> Datagrams {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let socket = host.visit(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        socket.connect((VIP_V4, SYSLOG_PORT)).unwrap();
        let thread = std::thread::spawn(move || {
            let begin = Instant::now();
            let mut sent = 0;
            while !stopping.load(Ordering::SeqCst) {
                let due = (begin.elapsed().as_secs_f64() * f64::from(per_second)) as u64;
                while sent < due {
                    socket.send(format!("<13>1 - - app - - - event-{name}-{sent}").as_bytes()).unwrap();
                    sent += 1;
                }
                std::thread::sleep(Duration::from_micros(500));
            }
            sent
        });
        Datagrams { stop, thread }
    }

    /// Stops; returns how many were sent.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

/// Every event of `name` up to `count` has arrived, and an event that came more often came under one id.
#[track_caller]
pub fn assert_arrived(destination: &Destination<'_>, name: &str, count: u64) -> usize {
    let all = || {
        let received = destination.received();
        (0..count).all(|event| received.contains_key(&format!("event-{name}-{event}")))
    };
    wait_until("everything acknowledged has arrived", all);
    let received = destination.received();
    let mut repeats = 0;
    for (event, ids) in received.iter().filter(|(event, _)| event.starts_with(&format!("event-{name}-"))) {
        let different: BTreeSet<&String> = ids.iter().collect();
        // A client that has no answer sends again: that is another message, unless the node that got it knows it.
        assert!(different.len() <= 2, "{event} came as {ids:?}");
        if ids.len() > different.len() {
            println!("{event} came as {ids:?}");
        }
        repeats += ids.len() - different.len();
    }
    repeats
}
