//! No room, no destination.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::common::{
    Framing, Lab, Sink, assert_same, first_arrivals, free_port, lines, message, tcp_to_tcp, v4, wait_until,
    wait_until_it_stands_still,
};

/// Messages of about 1 KB, so that a journal is full after a few thousand.
fn thick(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| message(&format!("{number} {}", "x".repeat(1000)))).collect()
}

/// Sends in a thread of its own and counts the bytes that the kernel took.
fn send_in_background(to: SocketAddr, bytes: Vec<u8>) -> (Arc<AtomicUsize>, JoinHandle<()>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = taken.clone();
    let thread = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(to).expect("twinlog accepts connections");
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match stream.write(&rest[..rest.len().min(64 * 1024)]) {
                Ok(count) => {
                    rest = &rest[count..];
                    counter.fetch_add(count, Ordering::Relaxed);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("the connection broke: {error}"),
            }
        }
    });
    (taken, thread)
}

const SMALL_JOURNAL: &str = "[journal]\nmax_size = \"8MiB\"\nsegment_size = \"1MiB\"\n";

#[test]
fn a_full_journal_makes_senders_wait_and_loses_nothing() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    sink.stall();
    let daemon = lab.start(&[SMALL_JOURNAL, &tcp_to_tcp(input, "", output)].concat());
    let messages = thick(150_000);
    let bytes = lines(&messages);
    let all = bytes.len();
    let (taken, sender) = send_in_background(v4(input), bytes);

    wait_until_it_stands_still(Duration::from_secs(2), || taken.load(Ordering::Relaxed));
    // The queue before the disk (32 MiB), the journal, and what the kernel's four socket buffers hold.
    let held = taken.load(Ordering::Relaxed);
    assert!(held < all, "all {all} bytes were taken: the sender never had to wait");
    assert!(daemon.peak_memory() < 256 << 20, "{} bytes of memory", daemon.peak_memory());

    sink.resume();
    let got = sink.wait_for(messages.len());
    sender.join().unwrap();
    assert_same(&first_arrivals(got), &messages);
    daemon.wait_for("/inputs/net/messages", messages.len() as u64);
    daemon.wait_for("/outputs/out/acknowledged", messages.len() as u64);
    assert!(daemon.peak_memory() < 256 << 20, "{} bytes of memory", daemon.peak_memory());
    daemon.stop();
}

#[test]
fn whoever_waits_for_room_is_not_idle() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    sink.stall();
    let daemon = lab.start(&[SMALL_JOURNAL, &tcp_to_tcp(input, "idle_timeout = \"1s\"", output)].concat());
    // Far more than the 128 connections that may hold what finds no room; the others wait with all of theirs unread.
    let messages = thick(200_000);
    let senders: Vec<_> = messages.chunks(1000).map(|some| send_in_background(v4(input), lines(some)).1).collect();
    // Twice as long as they may be silent.
    wait_until_it_stands_still(Duration::from_secs(2), || daemon.number("/inputs/net/messages") as usize);
    let open = daemon.number("/inputs/net/connections");
    assert!(
        open > 128 && daemon.number("/inputs/net/messages") < messages.len() as u64,
        "nobody had to wait: {open} open"
    );
    sink.resume();
    let got = sink.wait_for(messages.len());
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    assert_eq!(first_arrivals(got).len(), messages.len());
    assert_eq!(daemon.number("/inputs/net/rejected/idle_timeout"), 0);
    daemon.stop();
}

#[test]
fn what_a_full_journal_drops_is_counted_and_told_in_gap_messages() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let daemon = lab.start(&drops_oldest(input, output));
    let messages = thick(40_000);
    // Nobody listens at the destination yet, so nothing is on its way.
    send_in_background(v4(input), lines(&messages)).1.join().unwrap();
    daemon.wait_until_durable(messages.len());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    let newest = messages.last().expect("some were made");
    wait_until("the newest arrives", || sink.messages().contains(newest));
    daemon.wait_for("/outputs/out/backlog_messages", 0);
    daemon.stop();

    let (got, dropped) = without_gaps(sink.close());
    assert!(dropped > 0, "{} messages arrived and no gap", got.len());
    // An output that waits for its destination holds what it sends first, a MiB of it; that arrives although dropped.
    let in_hand =
        (got.len() + dropped).checked_sub(messages.len()).expect("no message is missing that was not told of");
    assert!(in_hand <= 1024, "{in_hand} messages arrived that were said to be dropped");
    assert_in_order(&got, &messages);
}

#[test]
fn no_dropped_message_is_forgotten_when_the_gap_messages_are_dropped_too() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let daemon = lab.start(&drops_oldest(input, output));
    let messages = thick(40_000);
    let mut sender = TcpStream::connect(v4(input)).unwrap();
    let mut sent = 0;
    for some in messages.chunks(1000) {
        sender.write_all(&lines(some)).unwrap();
        sent += some.len();
        // In the journal, not in the queue before it: so gap messages stand between them.
        daemon.wait_until_durable(sent);
    }
    let sink = Sink::tcp(v4(output), Framing::Lf);
    let newest = messages.last().expect("some were made");
    wait_until("the newest arrives", || sink.messages().contains(newest));
    daemon.wait_for("/outputs/out/backlog_messages", 0);
    daemon.stop();

    let (got, dropped) = without_gaps(sink.close());
    let told = got.len() + dropped;
    assert!(
        messages.len() <= told,
        "{} of {} arrived, and only {dropped} were said to be dropped",
        got.len(),
        messages.len()
    );
    assert_in_order(&got, &messages);
}

#[test]
fn what_was_on_its_way_when_it_was_dropped_is_counted_and_may_arrive() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    sink.stall();
    let daemon = lab.start(&drops_oldest(input, output));
    let messages = thick(40_000);
    send_in_background(v4(input), lines(&messages)).1.join().unwrap();
    // Through the queue before the journal, so that the journal had to drop.
    daemon.wait_until_durable(messages.len());
    sink.resume();
    let newest = messages.last().expect("some were made");
    wait_until("the newest arrives", || sink.messages().contains(newest));
    daemon.wait_for("/outputs/out/backlog_messages", 0);
    daemon.stop();

    let (got, dropped) = without_gaps(sink.close());
    assert!(dropped > 0, "{} messages arrived and no gap", got.len());
    // None is missing that no gap message tells of. The kernels' buffers hold some that nobody has confirmed.
    assert!(messages.len() <= got.len() + dropped, "{} arrived, {dropped} dropped", got.len());
    assert_in_order(&got, &messages);
}

fn drops_oldest(input: u16, output: u16) -> String {
    let journal = "[journal]\nmax_size = \"4MiB\"\nsegment_size = \"1MiB\"\nwhen_full = \"drop_oldest\"\n";
    [journal, &tcp_to_tcp(input, "", output), "retry = { min = \"50ms\", max = \"200ms\" }\n"].concat()
}

/// What arrived apart from gap messages, and how many messages these say were dropped.
fn without_gaps(arrived: Vec<Vec<u8>>) -> (Vec<Vec<u8>>, usize) {
    let (gaps, rest): (Vec<_>, Vec<_>) = first_arrivals(arrived).into_iter().partition(|line| is_gap(line));
    (rest, gaps.iter().map(|gap| dropped(gap)).sum())
}

#[track_caller]
fn assert_in_order(got: &[Vec<u8>], sent: &[Vec<u8>]) {
    let mut left = sent.iter();
    assert!(got.iter().all(|message| left.any(|sent| sent == message)), "they arrive in order");
}

fn is_gap(line: &[u8]) -> bool {
    line.windows(22).any(|bytes| bytes == b" gap [twinlog@32473 dr")
}

fn dropped(gap: &[u8]) -> usize {
    let text = std::str::from_utf8(gap).unwrap();
    text.split_once("dropped=\"").unwrap().1.split('"').next().unwrap().parse().unwrap()
}
