//! The pair's port under attack: refused, counted by reason, and no harm to whom it serves.
//!
//! Node `a` runs; where the other one should be, on host `b`, is the test. It comes from the peer's address, and in some
//! tests it has the pair key.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::runtime::{Builder, Runtime};
use twinlog::proto::pair::message::{Frame, Held, Hello, Message, PROTOCOL, Status, batches_head, control};
use twinlog::proto::position::{Incarnation, JournalId, Mark, Position};
use twinlog::tls::{PairKey, Stream};

use super::aggregators::{Aggregator, Client, SYSLOG_PORT};
use super::lab::{Host, KEY, Switch, wait_until};

const PORT: u16 = 8514;
/// What [`KEY`] is the base64 of.
const SEED: &[u8; 32] = b"0123456789abcdef0123456789abcdef";

fn lone<'a>(a: &'a Host) -> Aggregator<'a> {
    let mut node = Aggregator::new(a, KEY, "");
    node.start();
    wait_until("it is active", || node.is_active());
    node
}

/// How often the pair's port was abused so.
fn count(node: &Aggregator<'_>, reason: &str) -> u64 {
    node.status()["nodes"][0]["link"]["rejected"][reason].as_u64().unwrap_or(0)
}

fn port_of(host: &Host) -> SocketAddr {
    SocketAddr::new(host.v4().into(), PORT)
}

/// Everything that the other end says, until it closes.
fn hear_out(stream: &mut TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut said);
    said
}

#[test]
fn strangers_are_refused_and_counted() {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let node = lone(&a);
    let client = Client::start(&d, a.v4().into(), "one");

    let mut elsewhere = c.visit(|| TcpStream::connect(port_of(&a))).unwrap();
    assert!(hear_out(&mut elsewhere).is_empty(), "not a byte for another address than the peer's");
    wait_until("it is counted", || count(&node, "denied") == 1);

    let mut garbage = b.visit(|| TcpStream::connect(port_of(&a))).unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(hear_out(&mut garbage).len() <= 7, "an alert and nothing else");
    wait_until("it is counted", || count(&node, "tls") == 1);

    let mut impostor = Impostor::new(&b);
    impostor.key = PairKey::new(&[7; 32]);
    // The end that accepts is convinced last, so the other one may believe that it is through.
    if let Ok(mut stream) = impostor.connect(port_of(&a)) {
        assert!(impostor.is_closed(&mut stream));
    }
    wait_until("it is counted", || count(&node, "tls") == 2);

    client.wait_for_more(20);
    assert_eq!(node.status()["nodes"][0]["link"]["connected"], false);
}

#[test]
fn a_recorded_session_opens_no_other() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let node = lone(&a);
    // On the way is somebody who keeps what the peer says.
    let listener = b.visit(|| TcpListener::bind((b.v4(), 0))).unwrap();
    let between = listener.local_addr().unwrap();
    let to = port_of(&a);
    let tap = b.visit(|| std::thread::spawn(move || record(&listener, to)));
    let mut peer = Impostor::new(&b);
    let mut stream = peer.connect(between).unwrap();
    peer.say(&mut stream, &[control(&Message::Hello(hello()))]);
    wait_until("the session is a true one", || node.status()["nodes"][0]["link"]["connected"] == true);
    drop(stream);
    let recorded = tap.join().unwrap();
    wait_until("it is over", || node.status()["nodes"][0]["link"]["connected"] == false);

    let before = count(&node, "tls");
    let mut replay = b.visit(|| TcpStream::connect(to)).unwrap();
    replay.write_all(&recorded).unwrap();
    let _ = hear_out(&mut replay);
    wait_until("it is counted", || count(&node, "tls") == before + 1);
    assert_eq!(node.status()["nodes"][0]["link"]["connected"], false);
}

/// Passes one connection on; returns what came from the end that dialled.
fn record(listener: &TcpListener, to: SocketAddr) -> Vec<u8> {
    let (mut from, _) = listener.accept().unwrap();
    let mut to = TcpStream::connect(to).unwrap();
    let (mut answers, mut back) = (to.try_clone().unwrap(), from.try_clone().unwrap());
    let answering = std::thread::spawn(move || drop(std::io::copy(&mut answers, &mut back)));
    let (mut recorded, mut some) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = from.read(&mut some) {
        recorded.extend_from_slice(&some[..read]);
        to.write_all(&some[..read]).unwrap();
    }
    let _ = to.shutdown(Shutdown::Both);
    answering.join().unwrap();
    recorded
}

#[test]
fn a_peer_that_lies_is_refused_and_counted_and_harms_nobody() {
    let switch = Switch::new();
    let (a, b, d) = (switch.host("a"), switch.host("b"), switch.host("d"));
    let node = lone(&a);
    let client = Client::start(&d, a.v4().into(), "one");
    client.wait_for_more(20);
    let own = node.status()["nodes"][0]["journals"][0]["id"].as_str().unwrap().to_owned();
    let (name, incarnation) = own.split_once('/').unwrap();
    let incarnation = Incarnation(u64::from_str_radix(incarnation, 16).unwrap());
    let own = JournalId { node: name.parse().unwrap(), incarnation };
    let far = Mark { position: Position(1 << 50), ordinal: 1 << 40 };
    let greeting = || control(&Message::Hello(hello()));
    let with = |change: fn(&mut Hello)| {
        let mut hello = hello();
        change(&mut hello);
        control(&Message::Hello(hello))
    };
    let mine = Held { journal: own.clone(), ..hello().journals.remove(0) };
    let writes_ours = control(&Message::Hello(Hello { journals: vec![mine], ..hello() }));
    let delivered = Message::Delivered { journal: own, outputs: [("siem".to_owned(), far)].into() };
    let lies: [(&str, Vec<bytes::Bytes>); 9] = [
        ("protocol", vec![with(|hello| hello.protocol = PROTOCOL + 1)]),
        ("stranger", vec![with(|hello| hello.node = "c".parse().unwrap())]),
        ("out_of_turn", vec![writes_ours]),
        ("out_of_turn", vec![greeting(), greeting()]),
        ("position", vec![greeting(), control(&Message::Durable { stream: 0, mark: far })]),
        ("position", vec![greeting(), control(&Message::Skip { stream: 0, to: Mark::default() })]),
        ("position", vec![greeting(), control(&delivered)]),
        ("batch", vec![greeting(), batches_head(0, 100), vec![b'x'; 100].into()]),
        ("frame", vec![greeting(), vec![0xff; 100].into()]),
    ];
    let mut impostor = Impostor::new(&b);
    let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
    for (reason, said) in lies {
        let mut stream = impostor.connect(port_of(&a)).unwrap();
        impostor.say(&mut stream, &said);
        *expected.entry(reason).or_default() += 1;
        wait_until(reason, || count(&node, reason) == expected[reason]);
    }
    client.wait_for_more(20);
    let acknowledged = client.stop();
    let journal = &node.status()["nodes"][0]["journals"][0];
    assert_eq!(journal["delivered"], 0, "what was not delivered stays: {journal}");
    assert!(journal["messages"].as_u64().unwrap() >= acknowledged);
    // The true one is welcome.
    drop(impostor);
    let mut other = Aggregator::new(&b, KEY, "");
    other.start();
    wait_until("both are in sync", || node.is_in_sync() && other.is_in_sync());
}

#[test]
fn a_peer_that_reads_nothing_is_given_up_and_senders_go_on() {
    let switch = Switch::new();
    let (a, b, d) = (switch.host("a"), switch.host("b"), switch.host("d"));
    let node = lone(&a);
    let mut impostor = Impostor::new(&b);
    impostor.receive_buffer = Some(4096);
    let mut stream = impostor.connect(port_of(&a)).unwrap();
    impostor.say(&mut stream, &[control(&Message::Hello(hello()))]);
    wait_until("it is believed", || node.status()["nodes"][0]["link"]["connected"] == true);
    // More than the buffers between the nodes hold.
    let flood = d.visit(|| {
        std::thread::spawn(move || {
            let mut sender = TcpStream::connect((std::net::Ipv4Addr::new(203, 0, 113, 1), SYSLOG_PORT)).unwrap();
            let line = format!("<13>1 - - app - - - {}\n", "x".repeat(1000));
            let lines = line.repeat(1000);
            (0..32).for_each(|_| sender.write_all(lines.as_bytes()).unwrap());
        })
    });
    wait_until("it is given up", || {
        impostor.say(&mut stream, &[control(&Message::Status(Status::default()))]);
        std::thread::sleep(Duration::from_millis(100));
        count(&node, "stuck") == 1
    });
    flood.join().unwrap();
    let client = Client::start(&d, a.v4().into(), "one");
    client.wait_for_more(20);
}

#[test]
fn connections_that_never_shake_hands_are_bounded_and_keep_nobody_out() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let node = lone(&a);
    let silent: Vec<TcpStream> = b.visit(|| (0..24).map(|_| TcpStream::connect(port_of(&a)).unwrap()).collect());
    wait_until("those beyond sixteen are closed", || count(&node, "max_connections") >= 8);
    let mut other = Aggregator::new(&b, KEY, "");
    other.start();
    wait_until("the true one gets through", || node.is_in_sync() && other.is_in_sync());
    wait_until("the others' time is over", || count(&node, "handshake_timeout") == 16);
    assert!(node.is_in_sync());
    drop(silent);
}

/// What the node `b` says first.
fn hello() -> Hello {
    let journal = JournalId { node: "b".parse().unwrap(), incarnation: Incarnation(1) };
    let (oldest, durable) = (Mark::default(), Mark::default());
    let held = Held { journal, is_own: true, oldest, durable, delivered: BTreeMap::new() };
    let (program, node) = ("9.9".to_owned(), "b".parse().unwrap());
    Hello { protocol: PROTOCOL, program, node, configuration: 0, journals: vec![held] }
}

/// Somebody on the peer's host.
struct Impostor<'a> {
    host: &'a Host,
    runtime: Runtime,
    key: PairKey,
    receive_buffer: Option<u32>,
}

impl<'a> Impostor<'a> {
    fn new(host: &'a Host) -> Impostor<'a> {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        Impostor { host, runtime, key: PairKey::new(SEED), receive_buffer: None }
    }

    /// Connects and shakes hands.
    fn connect(&mut self, to: SocketAddr) -> std::io::Result<Stream> {
        let connect = async {
            let socket = TcpSocket::new_v4()?;
            if let Some(bytes) = self.receive_buffer {
                socket.set_recv_buffer_size(bytes)?;
            }
            self.key.connect(socket.connect(to).await?).await
        };
        self.host.visit(|| self.runtime.block_on(connect))
    }

    /// Says all of it, or as much as is taken.
    fn say(&mut self, stream: &mut Stream, frames: &[bytes::Bytes]) {
        let say = async {
            for frame in frames {
                stream.write_all(frame).await?;
            }
            stream.flush().await
        };
        // Whoever is refused at once may hear of it here.
        let _ = self.runtime.block_on(say);
    }

    /// Whether the other end closes the connection, whatever it says before.
    fn is_closed(&mut self, stream: &mut Stream) -> bool {
        let end = async {
            let mut some = [0; 4096];
            loop {
                match stream.read(&mut some).await {
                    Ok(0) => return true,
                    Err(error) => return error.kind() != ErrorKind::WouldBlock,
                    Ok(_) => {}
                }
            }
        };
        self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), end).await.unwrap_or(false) })
    }
}

/// The frames are what the node reads: else these tests would show nothing.
#[test]
fn what_the_impostor_says_first_is_a_greeting() {
    let mut bytes = bytes::BytesMut::from(&control(&Message::Hello(hello()))[..]);
    assert_eq!(Frame::take(&mut bytes), Ok(Some(Frame::Control(Message::Hello(hello())))));
}
