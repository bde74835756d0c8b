//! The loads: how much each sends and how, which relays can do it, and what it is called.

use clap::ValueEnum;

use crate::Options;
use crate::chunks::CHUNK_EVENTS;
use crate::generator::Plan;
use crate::relay::{Flow, Kind, Setup};
use crate::run::IDLE;

/// Connections of the forward loads.
const FORWARD_STREAMS: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Load {
    Tcp1,
    Tcp1000,
    Udp,
    Latency,
    Backlog,
    Idle10k,
    Forward,
    ForwardGzip,
    ForwardPaced,
}

impl Load {
    /// As on the command line.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    pub fn plan(self, options: &Options) -> Plan {
        match self {
            Load::Tcp1 | Load::Backlog => Plan { streams: 1, per_stream: options.messages, rate: None },
            Load::Tcp1000 => Plan { streams: 1000, per_stream: options.messages / 1000, rate: None },
            Load::Udp => paced(options.udp_rate, options.seconds),
            Load::Latency => paced(10_000, options.seconds),
            Load::Idle10k => Plan { streams: 10_000, per_stream: 1, rate: None },
            Load::Forward | Load::ForwardGzip => {
                let per_stream = options.messages / FORWARD_STREAMS;
                Plan { streams: FORWARD_STREAMS, per_stream: per_stream.next_multiple_of(CHUNK_EVENTS), rate: None }
            }
            Load::ForwardPaced => {
                let per_stream = 100_000 * options.seconds / FORWARD_STREAMS;
                Plan { streams: FORWARD_STREAMS, per_stream, rate: Some(100_000) }
            }
        }
    }

    /// What it asks of a relay.
    pub fn setup(self) -> Setup {
        match self {
            Load::Forward | Load::ForwardGzip | Load::ForwardPaced => Setup { flow: Flow::Forward, ..Setup::SYSLOG },
            _ => Setup::SYSLOG,
        }
    }

    /// Whether a relay can do it.
    pub fn suits(self, relay: Kind) -> bool {
        match self {
            Load::Tcp1000 | Load::Udp | Load::Backlog | Load::Idle10k | Load::ForwardGzip
                if relay == Kind::TwinlogMirrored =>
            {
                false
            }
            Load::Backlog => relay.is_persistent(),
            _ => self.setup() == Setup::SYSLOG || matches!(relay, Kind::Twinlog | Kind::TwinlogMirrored),
        }
    }

    pub fn about(self, options: &Options) -> String {
        let Options { messages, udp_rate, seconds, .. } = options;
        match self {
            Load::Tcp1 => format!("{messages} messages over one TCP connection, as fast as they are taken"),
            Load::Tcp1000 => format!("{messages} messages over 1000 TCP connections, as fast as they are taken"),
            Load::Udp => format!("{udp_rate} datagrams a second for {seconds} s"),
            Load::Latency => format!("10000 messages a second over one TCP connection for {seconds} s"),
            Load::Backlog => format!("{messages} messages taken in while the sink refuses, restart, draining"),
            Load::Idle10k => format!("10000 TCP connections that have sent one message each, idle for {IDLE:?}"),
            Load::Forward => format!("{messages} events in acknowledged chunks of {CHUNK_EVENTS}, forward in and out"),
            Load::ForwardGzip => format!("the same, {messages} events in chunks compressed with gzip"),
            Load::ForwardPaced => format!("100000 events a second in acknowledged chunks for {seconds} s"),
        }
    }
}

fn paced(rate: u32, seconds: u32) -> Plan {
    Plan { streams: 1, per_stream: rate * seconds, rate: Some(rate) }
}
