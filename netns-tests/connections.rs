//! Live TCP connections move from one host to another with the address they were made to. The client checks every byte that
//! comes back, and the hosts every byte that came.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use twinlog::proto::tcp_image::Image;
use twinlog::sys::{socket_filter, tcp, tcp_repair};

use super::handover::Node;
use super::lab::{Host, Switch, VIP_V4, VIP_V6, VIPS, wait_until};

const PORT: u16 = 5514;
/// A segment may be past the filter on another processor when that is set.
const PAST_THE_FILTER: Duration = Duration::from_micros(300);
/// What a client has on its way at most, on each connection.
const AHEAD_BYTES: u64 = 100_000;

/// The byte at this place of a connection's stream, which begins with the connection's number.
fn byte_at(connection: u8, at: u64) -> u8 {
    if at == 0 { connection } else { (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ connection }
}

fn bytes_at(connection: u8, at: u64, count: usize) -> Vec<u8> {
    (at..at + count as u64).map(|at| byte_at(connection, at)).collect()
}

/// One connection on the host that has it: checks what comes and sends it back.
struct Echo {
    stream: TcpStream,
    number: Option<u8>,
    received: u64,
    /// Not yet sent back.
    owed: Vec<u8>,
    ended: bool,
}

impl Echo {
    fn new(stream: TcpStream) -> Echo {
        stream.set_nonblocking(true).unwrap();
        Echo { stream, number: None, received: 0, owed: Vec::new(), ended: false }
    }

    /// Reads what is there.
    fn take(&mut self) {
        let mut bytes = [0; 65_536];
        while !self.ended {
            let count = match self.stream.read(&mut bytes) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("a server's connection: {error}"),
            };
            self.ended = count == 0;
            if count > 0 {
                let number = *self.number.get_or_insert(bytes[0]);
                assert_eq!(bytes[..count], bytes_at(number, self.received, count), "connection {number}");
                self.received += count as u64;
                self.owed.extend_from_slice(&bytes[..count]);
            }
        }
    }

    /// Sends back what is owed, as far as it is taken.
    fn give(&mut self) {
        while !self.owed.is_empty() {
            match self.stream.write(&self.owed) {
                Ok(count) => drop(self.owed.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("a server's connection: {error}"),
            }
        }
    }
}

/// A host that serves the address's port.
struct Server<'a> {
    host: &'a Host,
    node: Node,
    listener: TcpListener,
    connections: Vec<Echo>,
}

impl<'a> Server<'a> {
    fn new(host: &'a Host, listen: &str) -> Server<'a> {
        let listener = host.visit(|| tcp::listen(listen.parse().unwrap())).unwrap();
        host.visit(tcp_repair::is_possible).unwrap();
        Server { host, node: Node::of(host), listener, connections: Vec::new() }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            self.connections.push(Echo::new(stream));
        }
    }

    fn serve(&mut self) {
        self.accept();
        for connection in &mut self.connections {
            connection.take();
            connection.give();
        }
    }

    /// Serves until so many bytes more have come.
    fn serve_bytes(&mut self, more: u64) {
        let received = |server: &Server<'_>| server.connections.iter().map(|echo| echo.received).sum::<u64>();
        let enough = received(self) + more;
        wait_until("the connections go on", || {
            self.serve();
            received(self) >= enough
        });
    }

    /// Holds everything still and dumps it, in the bytes that go over the wire.
    fn freeze_and_dump(&mut self) -> Vec<Vec<u8>> {
        socket_filter::drop_syn(&self.listener).unwrap();
        self.accept();
        socket_filter::drop_all(&self.listener).unwrap();
        self.connections.iter().for_each(|echo| tcp_repair::freeze(&echo.stream).unwrap());
        std::thread::sleep(PAST_THE_FILTER);
        let dump = |echo: &mut Echo| {
            echo.take();
            let mut bytes = Vec::new();
            tcp_repair::dump(&echo.stream).unwrap().encode(&mut bytes);
            bytes
        };
        self.connections.iter_mut().map(dump).collect()
    }

    fn restore(&self, images: &[Vec<u8>]) -> Vec<tcp_repair::Restored> {
        let images = images.iter().map(|bytes| Image::decode(bytes).unwrap());
        self.host.visit(|| images.map(|image| tcp_repair::restore(&image).unwrap()).collect())
    }

    fn is_unchanged(&self, images: &[Vec<u8>]) -> bool {
        let mut both = self.connections.iter().zip(images);
        both.all(|(echo, bytes)| tcp_repair::unchanged(&echo.stream, &Image::decode(bytes).unwrap()))
    }

    /// Goes on where it was.
    fn take_back(&mut self) {
        self.connections.iter().for_each(|echo| tcp_repair::take_back(&echo.stream).unwrap());
        socket_filter::remove(&self.listener).unwrap();
    }
}

/// Moves the address and everything that is connected to it.
fn hand_over(vip: IpAddr, from: &mut Server<'_>, to: &mut Server<'_>) {
    to.node.add(vip, to.node.lo);
    from.node.add(vip, from.node.lo);
    let images = from.freeze_and_dump();
    let restored = to.restore(&images);
    assert!(from.is_unchanged(&images));
    from.node.remove(vip, from.node.link);
    to.node.add(vip, to.node.link);
    to.node.announce(vip);
    for (live, old) in restored.into_iter().map(|restored| restored.go_live().unwrap()).zip(from.connections.drain(..))
    {
        let Echo { stream, number, received, owed, ended } = old;
        tcp_repair::close_silently(stream).unwrap();
        to.connections.push(Echo { number, received, owed, ended, ..Echo::new(live) });
    }
    // Again, as the daemon does: if the first is lost a client talks to the old host for half a minute.
    to.node.announce(vip);
    from.node.remove(vip, from.node.lo);
    socket_filter::remove(&from.listener).unwrap();
    to.node.remove(vip, to.node.lo);
}

/// Connections that send all the time, and check what comes back; they end with the value.
struct Clients {
    stop: Arc<AtomicBool>,
    /// Bytes that came back.
    returned: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Clients {
    fn start(host: &Host, vip: IpAddr, count: u8) -> Clients {
        let connect = |_| TcpStream::connect(SocketAddr::new(vip, PORT)).unwrap();
        let streams: Vec<TcpStream> = host.visit(|| (0..count).map(connect).collect());
        let (stop, returned) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopping, counted) = (stop.clone(), returned.clone());
        let thread = std::thread::spawn(move || send_and_check(streams, &stopping, &counted));
        Clients { stop, returned, thread: Some(thread) }
    }

    fn returned(&self) -> u64 {
        self.returned.load(Ordering::Relaxed)
    }

    /// Sends nothing more, and waits until everything came back. `serve` serves meanwhile.
    fn finish(mut self, mut serve: impl FnMut()) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().unwrap();
        wait_until("everything comes back", || {
            serve();
            thread.is_finished()
        });
        thread.join().unwrap();
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn send_and_check(mut streams: Vec<TcpStream>, stop: &AtomicBool, returned: &AtomicU64) {
    let mut places = vec![(0, 0); streams.len()];
    streams.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
    let mut done = false;
    while !done {
        let stopping = stop.load(Ordering::Relaxed);
        done = stopping;
        for (number, (stream, (sent, back))) in streams.iter_mut().zip(&mut places).enumerate() {
            let number = number as u8;
            if !stopping && *sent - *back < AHEAD_BYTES {
                match stream.write(&bytes_at(number, *sent, 97)) {
                    Ok(count) => *sent += count as u64,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "connection {number}, sending"),
                }
            }
            let mut bytes = [0; 4096];
            match stream.read(&mut bytes) {
                Ok(count) => {
                    assert_eq!(bytes[..count], bytes_at(number, *back, count), "connection {number}");
                    assert!(count > 0, "connection {number} was closed");
                    *back += count as u64;
                    returned.fetch_add(count as u64, Ordering::Relaxed);
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "connection {number}, reading"),
            }
            done &= sent == back;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Moves `count` connections there, back and there again.
fn moves(vip: IpAddr, listen: &str, count: u8, prepare: impl Fn(&Host)) {
    let switch = Switch::new();
    let (a, b, client) = (switch.host("a"), switch.host("b"), switch.host("client"));
    prepare(&client);
    let (mut here, mut there) = (Server::new(&a, listen), Server::new(&b, listen));
    here.node.add(vip, here.node.link);
    here.node.announce(vip);
    let clients = Clients::start(&client, vip, count);
    let bytes = 2000 * u64::from(count);
    here.serve_bytes(bytes);
    assert_eq!(here.connections.len(), usize::from(count));
    for _ in 0..3 {
        hand_over(vip, &mut here, &mut there);
        std::mem::swap(&mut here, &mut there);
        here.serve_bytes(bytes);
    }
    assert!(clients.returned() > bytes);
    clients.finish(|| here.serve());
}

#[test]
fn a_connection_moves_there_and_back_over_ipv4() {
    moves(VIP_V4.into(), "0.0.0.0:5514", 1, |_| {});
}

#[test]
fn a_connection_moves_there_and_back_over_ipv6() {
    moves(VIP_V6.into(), "[::]:5514", 1, |_| {});
}

#[test]
fn a_hundred_connections_move_under_load_over_ipv4() {
    moves(VIP_V4.into(), "0.0.0.0:5514", 100, |_| {});
}

#[test]
fn a_hundred_connections_move_under_load_over_ipv6() {
    moves(VIP_V6.into(), "[::]:5514", 100, |_| {});
}

#[test]
fn ipv4_connections_of_a_socket_for_both_families_move() {
    moves(VIP_V4.into(), "[::]:5514", 10, |_| {});
}

#[test]
fn clients_without_timestamps_sack_or_window_scaling_move() {
    for off in [
        &["tcp_timestamps"][..],
        &["tcp_sack"],
        &["tcp_window_scaling"],
        &["tcp_timestamps", "tcp_sack", "tcp_window_scaling"],
    ] {
        moves(VIP_V4.into(), "[::]:5514", 3, |client| {
            off.iter().for_each(|option| client.set(&format!("net/ipv4/{option}"), "0"));
        });
    }
}

#[test]
fn what_a_client_has_not_read_moves_with_the_connection() {
    let switch = Switch::new();
    let (a, b, client) = (switch.host("a"), switch.host("b"), switch.host("client"));
    for vip in VIPS {
        let (mut here, mut there) = (Server::new(&a, "[::]:5514"), Server::new(&b, "[::]:5514"));
        here.node.add(vip, here.node.link);
        here.node.announce(vip);
        let mut stream = client.visit(|| TcpStream::connect(SocketAddr::new(vip, PORT))).unwrap();
        wait_until("it is accepted", || {
            here.accept();
            here.connections.len() == 1
        });
        // Until the client's window is shut and our buffer full.
        let mut sent = 0;
        while let Ok(count) = here.connections[0].stream.write(&bytes_at(0, sent, 50_000)) {
            sent += count as u64;
        }
        hand_over(vip, &mut here, &mut there);
        let mut got = vec![0; usize::try_from(sent).unwrap()];
        stream.set_read_timeout(Some(super::lab::SOON)).unwrap();
        stream.read_exact(&mut got).unwrap();
        assert!(got == bytes_at(0, 0, got.len()), "other bytes");
        drop(there.connections);
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "it ends as any other");
        there.node.remove(vip, there.node.link);
    }
}

#[test]
fn connections_that_cannot_move_after_all_go_on_where_they_were() {
    let switch = Switch::new();
    let (a, b, client) = (switch.host("a"), switch.host("b"), switch.host("client"));
    let (mut here, mut there) = (Server::new(&a, "[::]:5514"), Server::new(&b, "[::]:5514"));
    let vip = VIP_V6.into();
    here.node.add(vip, here.node.link);
    there.node.add(vip, there.node.lo);
    let clients = Clients::start(&client, vip, 20);
    here.serve_bytes(40_000);
    for _ in 0..3 {
        let images = here.freeze_and_dump();
        let restored = there.restore(&images);
        // The other host says no, or dies: what it has built is gone without a word.
        drop(restored);
        here.take_back();
        here.serve_bytes(40_000);
    }
    // Nor does one that could not even be dumped notice anything but a pause.
    here.connections.iter().for_each(|echo| tcp_repair::freeze(&echo.stream).unwrap());
    here.take_back();
    here.serve_bytes(40_000);
    clients.finish(|| here.serve());
}

#[test]
fn only_what_is_established_and_read_to_its_end_is_dumped() {
    let switch = Switch::new();
    let (a, client) = (switch.host("a"), switch.host("client"));
    let mut server = Server::new(&a, "[::]:5514");
    let mut stream = client.visit(|| TcpStream::connect((a.v4(), PORT))).unwrap();
    stream.write_all(b"12345").unwrap();
    wait_until("five bytes are there", || {
        server.accept();
        let [echo] = &server.connections[..] else { return false };
        matches!(tcp_repair::dump(&echo.stream), Err(tcp_repair::DumpError::Unread(5)))
    });
    let echo = &mut server.connections[0];
    let mut five = [0; 5];
    echo.stream.read_exact(&mut five).unwrap();
    let image = tcp_repair::dump(&echo.stream).unwrap();
    assert!(tcp_repair::unchanged(&echo.stream, &image));
    tcp_repair::take_back(&echo.stream).unwrap();
    echo.stream.write_all(&five).unwrap();
    stream.read_exact(&mut five).unwrap();
    assert_eq!(five, *b"12345", "it goes on");
    stream.write_all(b"6").unwrap();
    wait_until("something came since", || !tcp_repair::unchanged(&echo.stream, &image));
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    wait_until("the client has closed", || {
        matches!(tcp_repair::dump(&echo.stream), Err(tcp_repair::DumpError::State(8)))
    });
}

#[test]
fn a_listener_that_is_deaf_to_new_connections_hears_them_again() {
    let switch = Switch::new();
    let (a, client) = (switch.host("a"), switch.host("client"));
    let mut server = Server::new(&a, "[::]:5514");
    socket_filter::remove(&server.listener).unwrap();
    socket_filter::drop_syn(&server.listener).unwrap();
    let address = SocketAddr::from((a.v4(), PORT));
    let refused = client.visit(|| TcpStream::connect_timeout(&address, Duration::from_millis(200))).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TimedOut, "neither accepted nor refused");
    socket_filter::remove(&server.listener).unwrap();
    let _stream = client.visit(|| TcpStream::connect(address)).unwrap();
    wait_until("it is accepted", || {
        server.accept();
        !server.connections.is_empty()
    });
}
