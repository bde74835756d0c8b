//! Ports: free, or taken by the daemon that runs, or by whom.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;

use super::Look;
use crate::config::{Config, Listen, Protocol};

/// A listening socket's state in `/proc/net/tcp`.
const LISTENING: &str = "0A";

/// Tries every address that is listened on.
pub(super) fn look(config: &Config, daemon: Option<u32>) -> Vec<Look> {
    let inputs = config.inputs.iter().flat_map(|input| input.listen()).map(|listen| (listen.protocol, listen.address));
    let admin = config.admin.listen.iter().map(|address| (Protocol::Tcp, *address));
    // Whether the other node's process lives is asked here.
    let pair = config.pair.iter().map(|pair| (Protocol::Udp, SocketAddr::new(pair.own_node().address, pair.port)));
    inputs.chain(admin).chain(pair).map(|(protocol, address)| look_at(&Listen { protocol, address }, daemon)).collect()
}

fn look_at(listen: &Listen, daemon: Option<u32>) -> Look {
    let error = match bind(listen) {
        Ok(()) => return Look::ok("ports", format!("{listen} is free")),
        Err(error) => error,
    };
    match error.kind() {
        io::ErrorKind::AddrInUse => taken(listen, daemon),
        io::ErrorKind::AddrNotAvailable => {
            let fix = "listen on an address of this host, or on all: \":514\"";
            Look::error("ports", format!("{listen}: this host does not have that address"), fix)
        }
        io::ErrorKind::PermissionDenied => {
            let fix = "run this as root; the unit has AmbientCapabilities=CAP_NET_BIND_SERVICE";
            Look::warning("ports", format!("{listen}: this user may not try it"), fix)
        }
        _ => Look::error("ports", format!("{listen}: {error}"), "choose another address"),
    }
}

/// Opens it and closes it again.
fn bind(listen: &Listen) -> io::Result<()> {
    match listen.protocol {
        Protocol::Udp => UdpSocket::bind(listen.address).map(drop),
        Protocol::Tcp | Protocol::Tls => TcpListener::bind(listen.address).map(drop),
    }
}

fn taken(listen: &Listen, daemon: Option<u32>) -> Look {
    let Some((pid, name)) = holder(listen) else {
        let message =
            format!("{listen} is taken{}", if daemon.is_some() { ", perhaps by twinlog, which runs" } else { "" });
        return Look::warning("ports", message, "as root this tells by whom");
    };
    if daemon == Some(pid) {
        return Look::ok("ports", format!("{listen} is twinlog's, which runs (pid {pid})"));
    }
    Look::error(
        "ports",
        format!("{listen} is taken by {name} (pid {pid})"),
        format!("stop {name}, or choose another port"),
    )
}

/// The process that has the socket, as far as this user may look.
fn holder(listen: &Listen) -> Option<(u32, String)> {
    let tables = match listen.protocol {
        Protocol::Udp => ["/proc/net/udp", "/proc/net/udp6"],
        Protocol::Tcp | Protocol::Tls => ["/proc/net/tcp", "/proc/net/tcp6"],
    };
    let tables = tables.map(|table| fs::read_to_string(table).unwrap_or_default());
    let inodes: Vec<u64> = tables.iter().flat_map(|table| inodes(table, listen)).collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = processes.find(|pid| has_any(*pid, &inodes))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some((pid, name.trim().to_owned()))
}

/// The inodes of sockets on this port, in the text of `/proc/net/tcp` or one like it.
fn inodes(table: &str, listen: &Listen) -> Vec<u64> {
    let port = format!(":{:04X}", listen.address.port());
    let lines = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = lines.filter(|words| {
        let listens = listen.protocol == Protocol::Udp || words.get(3) == Some(&LISTENING);
        listens && words.get(1).is_some_and(|local| local.ends_with(&port))
    });
    ours.filter_map(|words| words.get(9)?.parse().ok()).collect()
}

fn has_any(pid: u32, inodes: &[u64]) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut files = files.filter_map(|file| fs::metadata(file.path()).ok());
    files.any(|file| file.mode() & libc::S_IFMT == libc::S_IFSOCK && inodes.contains(&file.ino()))
}

impl Listen {
    /// The port.
    pub(super) fn port(&self) -> u16 {
        SocketAddr::port(&self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_a_port_is_named() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            let address = if protocol == Protocol::Tcp { tcp.local_addr() } else { udp.local_addr() };
            let listen = Listen { protocol, address: address.unwrap() };
            let own = std::process::id();
            assert_eq!(look_at(&listen, Some(own)).verdict, super::super::Verdict::Ok);
            let other = look_at(&listen, None);
            assert_eq!(other.verdict, super::super::Verdict::Error);
            assert!(other.message.ends_with(&format!("(pid {own})")), "{other:?}");
        }
    }
}
