//! Ports that no other test takes, in this process or another.

use std::fs::{File, OpenOptions};
use std::net::{Ipv6Addr, TcpListener, UdpSocket};
use std::sync::Mutex;

/// Below what Linux gives to outgoing connections (`net.ipv4.ip_local_port_range`), or one of those could have it.
const FIRST: u16 = 12_000;
const LAST: u16 = 31_999;

/// The locks of the ports given out: the kernel frees them with the process.
static TAKEN: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A port that nothing listens on, UDP or TCP, and that stays ours until the process ends.
///
/// # Panics
/// If there is none.
pub fn free_port() -> u16 {
    let directory = std::env::temp_dir().join("twinlog-test-ports");
    std::fs::create_dir_all(&directory).expect("the directory for temporary files");
    let mut taken = TAKEN.lock().expect("no test panics in here");
    // Different processes begin in different places, so that they seldom meet.
    let span = usize::from(LAST - FIRST) + 1;
    let begin = std::process::id() as usize * 61 + taken.len();
    for step in 0..span {
        let port = FIRST + u16::try_from((begin + step) % span).expect("below the span");
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(directory.join(port.to_string()));
        let file = file.expect("a file for the lock");
        if file.try_lock().is_ok() && is_free(port) {
            taken.push(file);
            return port;
        }
    }
    panic!("all ports are taken");
}

fn is_free(port: u16) -> bool {
    let any = (Ipv6Addr::UNSPECIFIED, port);
    TcpListener::bind(any).is_ok() && UdpSocket::bind(any).is_ok()
}
