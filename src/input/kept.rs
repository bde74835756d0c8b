//! Sockets that outlive the process: the service manager keeps them between two runs, so that what arrives meanwhile
//! waits in them.
//!
//! A name says whose socket it is and where: `net/udp/[;;];514`, with semicolons for colons, which a name may not have. Only
//! what a name says of transport and address counts when sockets are taken back: the next configuration may have given
//! them to another input, and what is spoken on a stream is the reader's business. What nobody takes is given up before
//! anything is opened, because it would stand in the way.
//!
//! Datagrams wait in their socket. A connection must not: the kernel would acknowledge what its sender says, and whether
//! there is a next run nobody knows. So a listener that comes to its end is made deaf ([`tcp::ignore`]): its senders' first
//! packets are dropped, they repeat them, and are heard by the next run or refused.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use socket2::{SockRef, Type};

use super::{Configured, Place, Settings, Sockets, receive_buffer_bytes};
use crate::sys::notify::Notifier;
use crate::sys::{tcp, udp};

/// How long process 1 may take to close what is given up. It takes milliseconds.
const GIVING_UP_MAX: Duration = Duration::from_secs(2);

/// What the service manager keeps for us.
#[derive(Debug, Default)]
pub struct Kept {
    notifier: Notifier,
    /// What it kept since the last run and nobody has taken back yet.
    waiting: Vec<(String, OwnedFd)>,
}

impl Kept {
    /// What the service manager has handed over.
    #[must_use]
    pub fn new(notifier: Notifier, descriptors: Vec<(String, OwnedFd)>) -> Kept {
        Kept { notifier, waiting: descriptors }
    }

    /// Gives up what none of `inputs` listens on, or is not what its name says. Returns when the addresses are free.
    pub(super) fn give_up_strangers(&mut self, inputs: &[Configured]) {
        let wanted: Vec<Place> = inputs.iter().flat_map(|input| input.settings.places()).collect();
        let is_wanted = |(name, socket): &(String, OwnedFd)| wanted.iter().any(|place| is_of(place, name, socket));
        let strangers: Vec<_> = self.waiting.extract_if(.., |one| !is_wanted(one)).collect();
        if strangers.is_empty() {
            return;
        }
        for (name, _) in &strangers {
            tracing::info!(name, "a socket of the last run is no longer configured: closed, with what was in it");
        }
        self.give_up(strangers.into_iter().map(|(name, _)| name));
    }

    /// Has what is kept under these names closed. Returns when the addresses are free.
    pub(super) fn give_up(&self, names: impl Iterator<Item = String>) {
        let mut names = names.peekable();
        if names.peek().is_none() {
            return;
        }
        names.for_each(|name| self.remove(&name));
        if let Err(error) = self.notifier.wait_until_read(GIVING_UP_MAX) {
            tracing::warn!(%error, "the service manager may still hold sockets that are no longer configured");
        }
    }

    /// The sockets of the last run for a place, fit for what reads from them now, and the name that they are kept under.
    pub(super) fn take(&mut self, place: &Place, settings: &Settings) -> Option<(String, Sockets)> {
        let taken: Vec<_> = self.waiting.extract_if(.., |(name, socket)| is_of(place, name, socket)).collect();
        let name = taken.first()?.0.clone();
        let mut sockets = taken.into_iter().map(|(_, socket)| socket);
        if place.1.protocol.is_stream() {
            let listener = TcpListener::from(sockets.next()?);
            if let Err(error) = tcp::hear(&listener) {
                tracing::error!(name, %error, "the listening socket of the last run stays deaf: opening another");
                return None;
            }
            return Some((name, Sockets::Tcp(listener)));
        }
        let sockets: Vec<UdpSocket> = sockets.map(Into::into).collect();
        for socket in &sockets {
            let fitted = match settings {
                Settings::Syslog(settings) => udp::set_receive_buffer(socket, receive_buffer_bytes(settings)),
                Settings::Forward(_) => udp::make_answering(socket),
                // RELP has no datagrams.
                Settings::Relp(_) => Ok(()),
            };
            if let Err(error) = fitted {
                tracing::warn!(name, %error, "a socket of the last run keeps its old settings");
            }
        }
        Some((name, Sockets::Udp(sockets)))
    }

    /// Has `sockets` kept; returns the name.
    pub(super) fn store(&self, input: &str, (_, listen): &Place, sockets: &Sockets) -> Option<String> {
        if !self.notifier.is_there() {
            return None;
        }
        let name = name(input, listen.protocol.is_stream(), listen.address);
        let descriptors: Vec<_> = match sockets {
            Sockets::Udp(sockets) => sockets.iter().map(AsFd::as_fd).collect(),
            Sockets::Tcp(listener) => vec![listener.as_fd()],
        };
        match self.notifier.store(&name, &descriptors) {
            Ok(()) => Some(name),
            Err(error) => {
                tracing::warn!(name, %error, "the service manager does not keep this socket over a restart");
                None
            }
        }
    }

    /// Has what is kept under this name closed.
    pub(super) fn remove(&self, name: &str) {
        if let Err(error) = self.notifier.remove(name) {
            tracing::warn!(name, %error, "the service manager does not close this socket");
        }
    }
}

fn name(input: &str, is_stream: bool, address: SocketAddr) -> String {
    let transport = if is_stream { "tcp" } else { "udp" };
    format!("{input}/{transport}/{address}").replace(':', ";")
}

/// Whether the socket of this name is one for the place: the name says so, and the socket itself.
fn is_of((_, listen): &Place, name: &str, socket: &OwnedFd) -> bool {
    let is_stream = listen.protocol.is_stream();
    let named = name.split_once('/').is_some_and(|(_, rest)| self::name("", is_stream, listen.address)[1..] == *rest);
    named && is_bound(socket, is_stream, listen.address)
}

/// Whether it is a socket on this address; with port 0, on any of its ports.
fn is_bound(socket: &OwnedFd, is_stream: bool, address: SocketAddr) -> bool {
    let socket = SockRef::from(socket);
    let expected = if is_stream { Type::STREAM } else { Type::DGRAM };
    let bound = socket.local_addr().ok().and_then(|bound| bound.as_socket());
    let is_there =
        |bound: SocketAddr| bound.ip() == address.ip() && (address.port() == 0 || bound.port() == address.port());
    socket.r#type().is_ok_and(|kind| kind == expected)
        && socket.is_listener().is_ok_and(|listens| listens == is_stream)
        && bound.is_some_and(is_there)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Listen, Protocol};
    use crate::input::Kind;

    fn place(protocol: Protocol, address: SocketAddr) -> Place {
        (Kind::Syslog, Listen { protocol, address })
    }

    #[test]
    fn a_name_is_ascii_without_a_colon_and_says_whose_socket_it_is() {
        assert_eq!(name("net", false, "[::]:514".parse().unwrap()), "net/udp/[;;];514");
        assert_eq!(name("apps", true, "192.0.2.1:24224".parse().unwrap()), "apps/tcp/192.0.2.1;24224");
    }

    #[test]
    fn a_socket_is_known_by_its_name_and_by_itself_whoever_had_it() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(address).unwrap();
        let (udp, tcp): (OwnedFd, OwnedFd) = (udp.into(), tcp.into());
        let here = place(Protocol::Udp, address);
        assert!(is_of(&here, &name("net", false, address), &udp));
        assert!(is_of(&here, &name("of-another-name", false, address), &udp));
        assert!(is_of(&place(Protocol::Tls, address), &name("net", true, address), &tcp), "tcp is tls now");
        assert!(!is_of(&here, &name("net", false, address), &tcp), "a name that lies");
        assert!(!is_of(&place(Protocol::Tcp, address), &name("net", true, address), &udp), "a name that lies");
        let elsewhere = SocketAddr::new(address.ip(), address.port() ^ 1);
        assert!(!is_of(&place(Protocol::Udp, elsewhere), &name("net", false, elsewhere), &udp), "another port");
        for strange in ["", "stored", "net/udp", "net/udp/", "/"] {
            assert!(!is_of(&here, strange, &udp), "{strange:?}");
        }
    }
}
