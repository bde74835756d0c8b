//! A new configuration while messages flow.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::{
    Framing, Lab, Sink, assert_same, connect_and_send, first_arrivals, free_port, lines, message, udp_to, v4,
    wait_until,
};

/// One connection that sends a message every few hundred microseconds until it is told to stop.
struct Stream {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Stream {
    fn start(to: SocketAddr) -> Stream {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut connection = TcpStream::connect(to).expect("twinlog accepts connections");
            let mut sent = 0;
            while !flag.load(Ordering::Relaxed) {
                connection.write_all(&lines(&[Stream::message(sent)])).expect("the connection is not closed");
                sent += 1;
                std::thread::sleep(Duration::from_micros(300));
            }
            sent
        });
        Stream { stop, thread }
    }

    fn message(number: usize) -> Vec<u8> {
        message(&format!("stream {number}"))
    }

    fn stop(self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.thread.join().expect("the connection is not closed");
        (0..sent).map(Stream::message).collect()
    }
}

fn input(name: &str, port: u16) -> String {
    format!(
        "\n[[input.syslog]]\nname = \"{name}\"\nlisten = [\"udp://127.0.0.1:{port}\", \"tcp://127.0.0.1:{port}\"]\n"
    )
}

fn output(name: &str, port: u16, more: &str) -> String {
    format!(
        "\n[[output.syslog]]\nname = \"{name}\"\nto = \"tcp://127.0.0.1:{port}\"\nretry = {{ min = \"50ms\", max = \"200ms\" }}\n{more}\n"
    )
}

#[track_caller]
fn reload(lab: &Lab, config: &str) {
    lab.configure(config);
    let done = lab.run(["reload"]);
    assert!(done.status.success(), "reload: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn inputs_and_outputs_come_change_and_go_and_no_message_is_lost() {
    let (lab, a, b) = (Lab::new(), free_port(), free_port());
    let (p, q, r) = (free_port(), free_port(), free_port());
    let (first, second, third) =
        (Sink::tcp(v4(p), Framing::Lf), Sink::tcp(v4(q), Framing::Lf), Sink::tcp(v4(r), Framing::Lf));
    let start = input("a", a) + &output("first", p, "");
    let daemon = lab.start(&start);
    let stream = Stream::start(v4(a));
    let flows = |sink: &Sink| {
        let before = sink.count();
        wait_until("messages flow", || sink.count() > before + 100);
    };
    flows(&first);

    // An input and an output come: the output gets what is received from now on, or before.
    reload(&lab, &(start.clone() + &input("b", b) + &output("second", q, "match = { input = \"b\" }")));
    flows(&first);
    udp_to(v4(b)).send(b"<13>at b").unwrap();
    assert_same(&second.wait_for(1), &[b"<13>at b".to_vec()]);

    // Both change: another maximum, another match.
    let changed =
        input("b", b) + "max_message = \"480B\"\n" + &output("second", q, "match = { input = [\"a\", \"b\"] }");
    reload(&lab, &(start.clone() + &changed));
    flows(&second);
    udp_to(v4(b)).send(&[b'x'; 1000]).unwrap();
    wait_until("it is cut", || second.messages().contains(&vec![b'x'; 480]));

    // The first output moves to another destination: what the old one has not got goes to the new one.
    reload(&lab, &(input("a", a) + &output("first", r, "") + &changed));
    flows(&third);

    // Both go again.
    reload(&lab, &(input("a", a) + &output("first", r, "")));
    flows(&third);
    wait_until("nobody listens at b", || TcpStream::connect(v4(b)).is_err());
    assert!(daemon.node()["outputs"].get("second").is_none());

    // The same connection has been sending all the time.
    assert_eq!(daemon.number("/inputs/a/connections"), 1);
    let sent = stream.stop();
    daemon.wait_for("/inputs/a/connections", 0);
    daemon.wait_for("/outputs/first/backlog_messages", 0);
    daemon.stop();
    let mut got = first.close();
    got.extend(third.close());
    got.retain(|message| sent.contains(message));
    assert_same(&first_arrivals(got), &sent);
}

#[test]
fn a_wrong_configuration_is_refused_and_the_old_one_serves_on() {
    let (lab, a, p) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(p), Framing::Lf);
    let good = input("a", a) + &output("first", p, "");
    let daemon = lab.start(&good);
    let mut connection = connect_and_send(v4(a), b"<13>before\n");
    sink.wait_for(1);

    let wrong = good.clone() + "\n[journal]\nmax_sizes = \"1GiB\"\n";
    lab.configure(&wrong);
    let refused = lab.run(["reload"]);
    assert_eq!(refused.status.code(), Some(78), "{refused:?}");
    let reason = String::from_utf8(refused.stderr).unwrap();
    assert!(reason.contains("max_size") && reason.contains("twinlog.toml:"), "{reason}");
    connection.write_all(b"<13>after\n").unwrap();
    connect_and_send(v4(a), b"<13>anew\n");
    sink.wait_for(3);

    // An address that is taken is as wrong as a key that is unknown.
    let taken = std::net::TcpListener::bind(v4(free_port())).unwrap();
    lab.configure(&(good + &input("b", taken.local_addr().unwrap().port())));
    let refused = lab.run(["reload"]);
    assert!(!refused.status.success());
    assert!(daemon.node()["inputs"].get("b").is_none());
    connection.write_all(b"<13>still\n").unwrap();
    sink.wait_for(4);
    daemon.stop();
}

#[test]
fn sighup_reloads() {
    let (lab, a, b, p) = (Lab::new(), free_port(), free_port(), free_port());
    let sink = Sink::tcp(v4(p), Framing::Lf);
    let daemon = lab.start(&(input("a", a) + &output("first", p, "")));
    lab.configure(&(input("a", a) + &input("b", b) + &output("first", p, "")));
    daemon.signal(Signal::SIGHUP);
    wait_until("it listens at b", || TcpStream::connect(v4(b)).is_ok());
    connect_and_send(v4(b), b"<13>at b\n");
    assert_same(&sink.wait_for(1), &[b"<13>at b".to_vec()]);

    // A wrong one is refused and said, and serving goes on.
    lab.configure("nonsense = 1\n");
    daemon.signal(Signal::SIGHUP);
    wait_until("the log says so", || String::from_utf8_lossy(&lab.read("stderr")).contains("nonsense"));
    connect_and_send(v4(b), b"<13>again\n");
    sink.wait_for(2);
    daemon.stop();
}
