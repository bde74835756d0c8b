//! Senders that go on until they are held back.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::common::{assert_same, lines, message, wait_until_it_stands_still};

/// Memory that a daemon may ever have: the queue before the disk (32 MiB, and as much of datagrams), what is being written
/// and sent, the program.
pub const MEMORY_BYTES_MAX: u64 = 256 << 20;

/// Messages of about 1 KB, so that a disk is full after a few ten thousand.
pub fn thick(name: &str, count: usize) -> Vec<Vec<u8>> {
    let filling = "x".repeat(1000);
    (0..count).map(|number| message(&format!("{name} {number} {filling}"))).collect()
}

/// Sends lines on one connection, in a thread of its own.
pub struct Sender {
    taken: Arc<AtomicUsize>,
    thread: JoinHandle<io::Result<()>>,
}

impl Sender {
    /// Begins.
    pub fn start(to: SocketAddr, messages: &[Vec<u8>]) -> Sender {
        let bytes = lines(messages);
        let taken = Arc::new(AtomicUsize::new(0));
        let counter = taken.clone();
        let thread = std::thread::spawn(move || {
            let mut stream = TcpStream::connect(to)?;
            for part in bytes.chunks(64 * 1024) {
                stream.write_all(part)?;
                counter.fetch_add(part.len(), Ordering::Relaxed);
            }
            Ok(())
        });
        Sender { taken, thread }
    }

    /// Bytes that the kernel took.
    pub fn taken_bytes(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Waits for the end: whether all was taken.
    pub fn finish(self) -> io::Result<()> {
        self.thread.join().expect("senders do not panic")
    }
}

/// Waits until the senders stand still: for a second nothing more was taken from any.
#[track_caller]
pub fn wait_until_held_back(senders: &[Sender]) {
    wait_until_it_stands_still(Duration::from_secs(1), || senders.iter().map(Sender::taken_bytes).sum());
    assert!(senders.iter().any(|sender| !sender.thread.is_finished()), "no sender ever had to wait");
}

/// `got` must be, for each of the connections, exactly what was sent on it, in its order. Connections may be mixed.
#[track_caller]
pub fn assert_exactly(got: &[Vec<u8>], sent: &[Vec<Vec<u8>>]) {
    for messages in sent {
        let name = name_of(&messages[0]);
        let of_it: Vec<Vec<u8>> = got.iter().filter(|message| name_of(message) == name).cloned().collect();
        assert_same(&of_it, messages);
    }
    assert_eq!(got.len(), sent.iter().map(Vec::len).sum::<usize>(), "nothing else arrived");
}

/// The first word of the text: RFC 5424 has seven before it.
fn name_of(message: &[u8]) -> Option<&[u8]> {
    message.split(|byte| *byte == b' ').nth(7)
}
