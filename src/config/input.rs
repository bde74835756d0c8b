//! `[[input.…]]`: what is listened for, and every default of it.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::{KIB, Listen, MIB, TlsServer};

/// One `[[input.…]]` table.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// `[[input.syslog]]`.
    Syslog(SyslogInput),
    /// `[[input.forward]]`.
    Forward(ForwardInput),
    /// `[[input.relp]]`.
    Relp(RelpInput),
}

impl Input {
    /// The name, unique among inputs.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Input::Syslog(input) => &input.name,
            Input::Forward(input) => &input.name,
            Input::Relp(input) => &input.name,
        }
    }

    /// What is listened on.
    #[must_use]
    pub fn listen(&self) -> &[Listen] {
        match self {
            Input::Syslog(input) => &input.listen,
            Input::Forward(input) => &input.listen,
            Input::Relp(input) => &input.listen,
        }
    }

    /// Who it is inside TLS, if it is.
    #[must_use]
    pub fn tls(&self) -> Option<&TlsServer> {
        match self {
            Input::Syslog(input) => input.tls.as_ref(),
            Input::Forward(input) => input.tls.as_ref(),
            Input::Relp(input) => input.tls.as_ref(),
        }
    }
}

/// `[[input.syslog]]`: RFC 3164 and RFC 5424 over UDP, TCP and TLS.
#[derive(Clone, Debug, PartialEq)]
pub struct SyslogInput {
    /// 1 to 64 of `A-Za-z0-9._-`. Default `syslog-0`, `syslog-1`, … in the order of the tables.
    pub name: String,
    /// What is listened on, at least one; no two inputs ask for the same. Required.
    pub listen: Vec<Listen>,
    /// Bytes of the longest message, 480 B (RFC 5424, 6.1) to 16 MiB; longer is cut and flagged. Default 64 KiB.
    pub max_message: usize,
    /// TCP connections at a time, those inside TLS included, at least 1. Default `None`: as many as the process may have.
    pub max_connections: Option<u32>,
    /// A TCP connection silent for that long is closed, 1 s to 30 days. Default `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Bytes asked for as the receive buffer of each UDP socket, 4 KiB to 1 GiB. Default 64 MiB.
    pub udp_rcvbuf: u64,
    /// Networks that may send. Default empty: all.
    pub allow: Vec<IpNet>,
    /// Zone of timestamps that name none. Default [`Timezone::Local`].
    pub timezone: Timezone,
    /// Tag of the messages for `match.tag`; they leave through forward as `TAG.FACILITY.SEVERITY`. Default `syslog`.
    pub tag: String,
    /// `tls`: who we are on `tls://`, which needs it. Default `None`.
    pub tls: Option<TlsServer>,
}

impl SyslogInput {
    /// An input with every default.
    #[must_use]
    pub fn new(name: String, listen: Vec<Listen>) -> SyslogInput {
        SyslogInput {
            name,
            listen,
            max_message: 64 * KIB as usize,
            max_connections: None,
            idle_timeout: None,
            udp_rcvbuf: 64 * MIB,
            allow: Vec::new(),
            timezone: Timezone::Local,
            tag: "syslog".to_owned(),
            tls: None,
        }
    }
}

/// `[[input.forward]]`: fluent-forward over TCP, and its heartbeat over UDP.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardInput {
    /// 1 to 64 of `A-Za-z0-9._-`. Default `forward-0`, `forward-1`, … in the order of the tables.
    pub name: String,
    /// What is listened on: TCP for chunks, UDP on the same address for heartbeats. Required.
    pub listen: Vec<Listen>,
    /// File of the key that clients must know. Default `None`: no handshake.
    pub shared_key_file: Option<PathBuf>,
    /// The name in the PONG, 1 to 255 bytes; fluentd refuses a server that has its own. Default `None`: the host name.
    pub self_hostname: Option<String>,
    /// File of the users that may log in, `user:password` a line. Needs `shared_key_file`. Default `None`: any.
    pub users_file: Option<PathBuf>,
    /// Networks that may send. Default empty: all.
    pub allow: Vec<IpNet>,
    /// Bytes of the largest frame, 1 MiB to 64 MiB; a compressed one may have four times as many when decompressed. A
    /// larger one closes its connection: the sender keeps it. Default 64 MiB.
    pub max_chunk: usize,
    /// TCP connections at a time, at least 1. Default `None`: as many as the process may have.
    pub max_connections: Option<u32>,
    /// A connection silent for that long is closed, 1 s to 30 days. Default `None`: never.
    pub idle_timeout: Option<Duration>,
    /// `tls`: every connection begins with its handshake. Default `None`: none does.
    pub tls: Option<TlsServer>,
}

impl ForwardInput {
    /// An input with every default.
    #[must_use]
    pub fn new(name: String, listen: Vec<Listen>) -> ForwardInput {
        ForwardInput {
            name,
            listen,
            shared_key_file: None,
            self_hostname: None,
            users_file: None,
            allow: Vec::new(),
            max_chunk: 64 * MIB as usize,
            max_connections: None,
            idle_timeout: None,
            tls: None,
        }
    }
}

/// `[[input.relp]]`: syslog whose every message is answered, over TCP and TLS.
#[derive(Clone, Debug, PartialEq)]
pub struct RelpInput {
    /// 1 to 64 of `A-Za-z0-9._-`. Default `relp-0`, `relp-1`, … in the order of the tables.
    pub name: String,
    /// What is listened on, TCP or TLS, at least one. Required.
    pub listen: Vec<Listen>,
    /// Bytes of the longest message, 480 B (RFC 5424, 6.1) to 16 MiB; longer is cut and flagged, and answered. Default
    /// 64 KiB.
    pub max_message: usize,
    /// Connections at a time, at least 1. Default `None`: as many as the process may have.
    pub max_connections: Option<u32>,
    /// A connection silent for that long is closed, 1 s to 30 days. Default `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Networks that may send. Default empty: all.
    pub allow: Vec<IpNet>,
    /// Zone of timestamps that name none. Default [`Timezone::Local`].
    pub timezone: Timezone,
    /// Tag of the messages for `match.tag`; they leave through forward as `TAG.FACILITY.SEVERITY`. Default `syslog`.
    pub tag: String,
    /// `tls`: who we are on `tls://`, which needs it. Default `None`.
    pub tls: Option<TlsServer>,
}

impl RelpInput {
    /// An input with every default.
    #[must_use]
    pub fn new(name: String, listen: Vec<Listen>) -> RelpInput {
        RelpInput {
            name,
            listen,
            max_message: 64 * KIB as usize,
            max_connections: None,
            idle_timeout: None,
            allow: Vec::new(),
            timezone: Timezone::Local,
            tag: "syslog".to_owned(),
            tls: None,
        }
    }
}

/// Zone of timestamps that name none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timezone {
    /// `"local"`: this machine's.
    Local,
    /// `"UTC"`, an offset such as `"+02:00"`, or a name of the IANA database such as `"Europe/Berlin"`. Only the form
    /// is checked here; the time zone database says whether the name is one.
    Named(String),
}
