//! A device's rsyslog, fed at a steady rate.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::lab::{Host, Program, wait_until};

/// Where it hears what its first action forwards; the next port is the second action's.
const PORT: u16 = 5140;

/// It hears lines on a local port for each of its actions, and each forwards its own as they came.
pub struct Rsyslog {
    _program: Program,
    _directory: TempDir,
    stop: Arc<AtomicBool>,
    feeders: Vec<(&'static str, JoinHandle<u64>)>,
}

impl Rsyslog {
    /// Sends so many lines a second by each action, with the action's name in them. `global` comes first in its
    /// configuration; an action is its type and target, queue and template come with it.
    pub fn start(host: &Host, global: &str, actions: &[(&'static str, String)], per_second: u32) -> Rsyslog {
        let directory = TempDir::with_prefix("rsyslog-").unwrap();
        let mut config = format!(
            "{global}module(load=\"imptcp\")\nmodule(load=\"omrelp\")\n\
             template(name=\"raw\" type=\"string\" string=\"%rawmsg%\\n\")\n"
        );
        for (at, (_, action)) in actions.iter().enumerate() {
            let port = PORT + at as u16;
            write!(
                config,
                "input(type=\"imptcp\" port=\"{port}\" ruleset=\"r{at}\")\nruleset(name=\"r{at}\") {{ action({action} template=\"raw\" \
                 queue.type=\"LinkedList\" queue.size=\"200000\" action.resumeRetryCount=\"-1\" action.resumeInterval=\"1\") }}\n"
            )
            .unwrap();
        }
        let file = directory.path().join("rsyslog.conf");
        std::fs::write(&file, config).unwrap();
        let (file, pid) = (file.display().to_string(), directory.path().join("pid").display().to_string());
        let program = host.start("rsyslogd", ["-n", "-f", &file, "-i", &pid]);
        let stop = Arc::new(AtomicBool::new(false));
        let feeders = actions.iter().enumerate().map(|(at, (name, _))| {
            let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, PORT + at as u16));
            wait_until("rsyslog listens", || host.visit(|| connect().is_ok()));
            let (stream, stopping) = (host.visit(connect).unwrap(), stop.clone());
            let name = *name;
            (name, std::thread::spawn(move || feed(stream, name, per_second, &stopping)))
        });
        let feeders = feeders.collect();
        Rsyslog { _program: program, _directory: directory, stop, feeders }
    }

    /// Stops feeding; how many lines each action was given, by its name.
    pub fn stop(&mut self) -> Vec<(&'static str, u64)> {
        self.stop.store(true, Ordering::SeqCst);
        self.feeders.drain(..).map(|(name, feeder)| (name, feeder.join().unwrap())).collect()
    }
}

fn feed(mut stream: TcpStream, name: &str, per_second: u32, stop: &AtomicBool) -> u64 {
    let (begin, mut sent) = (Instant::now(), 0);
    while !stop.load(Ordering::SeqCst) {
        let due = (begin.elapsed().as_secs_f64() * f64::from(per_second)) as u64;
        let mut lines = String::new();
        while sent < due {
            writeln!(lines, "<13>1 - - app - - - event-{name}-{sent}").unwrap();
            sent += 1;
        }
        stream.write_all(lines.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    sent
}
