//! The handshake: both sides prove a shared key, the client maybe a user's password, before the first frame.
//!
//! ```text
//! server → client  ["HELO", {"nonce": bin, "auth": bin or "", "keepalive": true}]
//! client → server  ["PING", client hostname, salt, D1, user, D2]
//! server → client  ["PONG", true, "", server hostname, D3]  or  ["PONG", false, reason, "", ""], then close
//!
//! D1 = hex(SHA-512(salt + client hostname + nonce + shared key))
//! D2 = hex(SHA-512(auth + user + password)), meaningless when auth is empty: users are not checked then
//! D3 = hex(SHA-512(salt + server hostname + nonce + shared key))
//! ```
//!
//! Bytes in, bytes out; random bytes are an argument. Each message returned here is to leave in *one* write: fluentd and
//! fluent-bit parse what one read gives. Salts are raw bytes, in a str or a bin: fluent-bit sends 16 that are no UTF-8.
//! Anything but a PING is a failure, and after a failure the connection is closed: fluent-bit would otherwise keep it
//! and send events without another handshake.
//!
//! Not here: the time limit for a silent peer (the shell's, 10 s) and the choice of the key by the client's address.

use std::fmt;

use serde::de::{Deserializer, Error, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha512};
use thiserror::Error;

/// Largest message of a handshake that is worth reading, in bytes: the scanner's limit until it is over.
pub const HANDSHAKE_BYTES_MAX: usize = 8 * 1024;

/// What a server demands. Choose it by the client's address before the HELO.
#[derive(Clone)]
pub struct Security {
    /// Our name. fluentd refuses a server that has its own name; both nodes of a pair may have the same.
    pub self_hostname: String,
    /// The key that both sides know.
    pub shared_key: Vec<u8>,
    /// Who may log in. Empty: users are not checked.
    pub users: Vec<User>,
}

/// A user that may log in.
#[derive(Clone)]
pub struct User {
    /// The name.
    pub name: String,
    /// The password.
    pub password: Vec<u8>,
}

/// What a client proves.
#[derive(Clone)]
pub struct Credentials {
    /// Our name.
    pub self_hostname: String,
    /// The key that both sides know.
    pub shared_key: Vec<u8>,
    /// Name and password, for a server that asks.
    pub user: Option<User>,
}

/// The other side, after a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What it calls itself; not proven beyond the shared key.
    pub hostname: String,
    /// The user whose password it knew.
    pub user: Option<String>,
    /// Whether it keeps a connection for more than one chunk; servers alone say it.
    pub keepalive: bool,
}

/// Why a handshake failed. For the log; the client is told less.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum HandshakeError {
    /// The message is not the one that is due now.
    #[error("expected {0}, got something else")]
    Unexpected(&'static str),
    /// The client does not know the shared key.
    #[error("{0} does not know the shared key")]
    SharedKey(String),
    /// No such user, or another password.
    #[error("{client} does not know the password of user {user}")]
    User {
        /// The client's hostname.
        client: String,
        /// The user's name.
        user: String,
    },
    /// The server refused us.
    #[error("the server refused: {0}")]
    Refused(String),
    /// The server asks for a user, and none is configured.
    #[error("the server asks for a user and a password")]
    UserWanted,
    /// The server does not know the shared key: whoever it is, send it nothing.
    #[error("the server, {0}, does not know the shared key")]
    Server(String),
}

/// The server's side: HELO sent, PING awaited.
#[derive(Debug)]
pub struct Server {
    nonce: [u8; 16],
    /// Empty when users are not checked.
    auth: Vec<u8>,
}

/// How a server answers a PING: send `reply`, then serve the peer or close.
#[derive(Debug)]
pub struct Verdict {
    /// The PONG.
    pub reply: Vec<u8>,
    /// The client, or why not.
    pub outcome: Result<Peer, HandshakeError>,
}

impl Server {
    /// Begins a handshake with 32 fresh random bytes from the operating system.
    #[must_use]
    pub fn new(security: &Security, random: [u8; 32]) -> Server {
        let (nonce, auth) = random.split_at(16);
        let auth = if security.users.is_empty() { &[] } else { auth };
        Server { nonce: nonce.try_into().expect("half of 32 is 16"), auth: auth.to_vec() }
    }

    /// The HELO, to send first.
    #[must_use]
    pub fn helo(&self) -> Vec<u8> {
        encode(&("HELO", HeloOption { nonce: Text(&self.nonce), auth: Text(&self.auth), keepalive: true }))
    }

    /// Judges `message`, one whole value: the PING, unless the client is none.
    #[must_use]
    pub fn handle_ping(self, security: &Security, message: &[u8]) -> Verdict {
        match decode::<Ping<'_>>(message).filter(|ping| ping.0.0 == b"PING") {
            Some(ping) => self.judge(security, &ping),
            None => refuse("invalid ping message", HandshakeError::Unexpected("PING")),
        }
    }

    /// fluentd's order: the key, then the user.
    fn judge(self, security: &Security, ping: &Ping<'_>) -> Verdict {
        let &Ping(_, Text(hostname), Text(salt), Text(key_digest), Text(user), Text(password_digest)) = ping;
        let key = &security.shared_key;
        let client = lossy(hostname);
        if !equal(key_digest, &digest(&[salt, hostname, &self.nonce, key])) {
            return refuse("shared_key mismatch", HandshakeError::SharedKey(client));
        }
        let mut peer = Peer { hostname: client, user: None, keepalive: false };
        if !self.auth.is_empty() {
            if !self.knows(security, user, password_digest) {
                let error = HandshakeError::User { client: peer.hostname, user: lossy(user) };
                return refuse("username/password mismatch", error);
            }
            peer.user = Some(lossy(user));
        }
        let name = &security.self_hostname;
        let proof = digest(&[salt, name.as_bytes(), &self.nonce, key]);
        let reply = encode(&("PONG", true, "", name, hex(&proof)));
        Verdict { reply, outcome: Ok(peer) }
    }

    /// Looks at every user, so that the time does not tell which of them exist.
    fn knows(&self, security: &Security, user: &[u8], password_digest: &[u8]) -> bool {
        security.users.iter().fold(false, |known, candidate| {
            let expected = digest(&[&self.auth, user, &candidate.password]);
            known | (equal(password_digest, &expected) & (candidate.name.as_bytes() == user))
        })
    }
}

/// The PONG for a client whose address is not allowed; close after it. fluentd says the same.
#[must_use]
pub fn refuse_source(address: std::net::IpAddr) -> Vec<u8> {
    pong_false(&format!("anonymous source host '{address}' denied"))
}

fn refuse(reason: &str, error: HandshakeError) -> Verdict {
    Verdict { reply: pong_false(reason), outcome: Err(error) }
}

fn pong_false(reason: &str) -> Vec<u8> {
    encode(&("PONG", false, reason, "", ""))
}

/// The client's side, before the HELO has come.
pub struct Client {
    credentials: Credentials,
    /// In hexadecimal, as fluentd does: some servers want UTF-8.
    salt: String,
}

/// The client's side: PING sent, PONG awaited. Not `Debug`: it holds the key.
pub struct AwaitingPong {
    /// What the digest that only a server with the key can send ends with.
    nonce_and_key: Vec<u8>,
    salt: String,
    keepalive: bool,
}

impl Client {
    /// Begins a handshake with 16 fresh random bytes from the operating system.
    #[must_use]
    pub fn new(credentials: Credentials, random: [u8; 16]) -> Client {
        Client { credentials, salt: hex(&random) }
    }

    /// Takes the HELO, one whole value; gives the PING to send.
    ///
    /// # Errors
    /// Says why this server gets no PING; close.
    pub fn handle_helo(self, message: &[u8]) -> Result<(Vec<u8>, AwaitingPong), HandshakeError> {
        let Helo(_, option) =
            decode::<Helo<'_>>(message).filter(|helo| helo.0.0 == b"HELO").ok_or(HandshakeError::Unexpected("HELO"))?;
        let Credentials { self_hostname, shared_key, user } = self.credentials;
        let (user, password_digest) = match user {
            _ if option.auth.0.is_empty() => (String::new(), String::new()),
            Some(user) => {
                let password_digest = digest(&[option.auth.0, user.name.as_bytes(), &user.password]);
                (user.name, hex(&password_digest))
            }
            None => return Err(HandshakeError::UserWanted),
        };
        let nonce_and_key = [option.nonce.0, &shared_key].concat();
        let key_digest = digest(&[self.salt.as_bytes(), self_hostname.as_bytes(), &nonce_and_key]);
        let ping = encode(&("PING", self_hostname, &self.salt, hex(&key_digest), user, password_digest));
        Ok((ping, AwaitingPong { nonce_and_key, salt: self.salt, keepalive: option.keepalive }))
    }
}

impl AwaitingPong {
    /// Takes the PONG, one whole value; gives the server that may be sent frames.
    ///
    /// # Errors
    /// Says why it must not be; close.
    pub fn handle_pong(self, message: &[u8]) -> Result<Peer, HandshakeError> {
        let Pong(_, accepted, reason, Text(hostname), Text(proof)) =
            decode::<Pong<'_>>(message).filter(|pong| pong.0.0 == b"PONG").ok_or(HandshakeError::Unexpected("PONG"))?;
        if !accepted {
            return Err(HandshakeError::Refused(lossy(reason.0)));
        }
        if !equal(proof, &digest(&[self.salt.as_bytes(), hostname, &self.nonce_and_key])) {
            return Err(HandshakeError::Server(lossy(hostname)));
        }
        Ok(Peer { hostname: lossy(hostname), user: None, keepalive: self.keepalive })
    }
}

/// Bytes that travel as str or as bin. Written as bin, or as the empty str, which is how no bytes are said.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Text<'a>(pub(super) &'a [u8]);

#[derive(Serialize, Deserialize)]
struct Helo<'a>(#[serde(borrow)] Text<'a>, #[serde(borrow)] HeloOption<'a>);

#[derive(Serialize, Deserialize)]
struct HeloOption<'a> {
    #[serde(borrow, default)]
    nonce: Text<'a>,
    #[serde(borrow, default)]
    auth: Text<'a>,
    #[serde(default = "kept_alive")]
    keepalive: bool,
}

/// fluentd's default for a server that does not say.
fn kept_alive() -> bool {
    true
}

#[derive(Deserialize)]
struct Ping<'a>(
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Text<'a>,
);

#[derive(Deserialize)]
struct Pong<'a>(
    #[serde(borrow)] Text<'a>,
    bool,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Text<'a>,
);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            [] => serializer.serialize_str(""),
            bytes => serializer.serialize_bytes(bytes),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text<'a>, D::Error> {
        struct AnyBytes;

        impl<'de> Visitor<'de> for AnyBytes {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("str or bin")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(text.as_bytes()))
            }

            // `rmp-serde` gives a str that is not UTF-8 as bytes.
            fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Text<'de>, E> {
                Ok(Text(bytes))
            }

            fn visit_unit<E: Error>(self) -> Result<Text<'de>, E> {
                Ok(Text(b""))
            }
        }
        deserializer.deserialize_any(AnyBytes)
    }
}

fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    let mut serializer = rmp_serde::Serializer::new(&mut out).with_struct_map();
    message.serialize(&mut serializer).expect("a Vec takes everything");
    out
}

fn decode<'a, T: Deserialize<'a>>(message: &'a [u8]) -> Option<T> {
    rmp_serde::from_slice(message).ok()
}

fn digest(parts: &[&[u8]]) -> [u8; 64] {
    let mut hash = Sha512::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
        .collect()
}

/// Compares a received digest with ours in a time that does not tell where they differ.
fn equal(received: &[u8], digest: &[u8; 64]) -> bool {
    let expected = hex(digest);
    let difference = received.iter().zip(expected.as_bytes()).fold(0, |any, (a, b)| any | (a ^ b));
    received.len() == expected.len() && std::hint::black_box(difference) == 0
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
