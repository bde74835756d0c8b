//! The loads: how much each sends and how, which relays can do it, and what it is called.

use clap::ValueEnum;

use crate::Options;
use crate::chunks::CHUNK_EVENTS;
use crate::generator::Plan;
use crate::message::LINE_BYTES;
use crate::relay::{Flow, Kind, Setup};
use crate::run::IDLE;

/// Connections of the forward loads.
const FORWARD_STREAMS: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Load {
    Tcp1,
    Tcp1Rfc5424,
    Tcp1000,
    Tcp10000,
    FileRaw,
    FileJson,
    Udp,
    Udp10k,
    #[value(name = "rate1k")]
    Rate1k,
    Latency,
    #[value(name = "latency-1ms")]
    Latency1ms,
    #[value(name = "rate100k")]
    Rate100k,
    #[value(name = "rate1m")]
    Rate1m,
    #[value(name = "rate300k")]
    Rate300k,
    #[value(name = "rate300k-rfc5424")]
    Rate300kRfc5424,
    #[value(name = "rate300k-file-raw")]
    Rate300kFileRaw,
    #[value(name = "rate300k-file-json")]
    Rate300kFileJson,
    Backlog,
    BacklogLive,
    FullJournal,
    Idle10k,
    Forward,
    ForwardGzip,
    ForwardPaced,
}

impl Load {
    /// As on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().expect("no load is hidden").get_name().to_owned()
    }

    pub fn plan(self, options: &Options) -> Plan {
        let unpaced = |streams, per_stream| Plan { streams, per_stream, rate: None };
        match self {
            Load::Tcp1 | Load::Tcp1Rfc5424 | Load::FileRaw | Load::FileJson | Load::Backlog => {
                unpaced(1, options.messages)
            }
            Load::Tcp1000 => unpaced(1000, options.messages / 1000),
            Load::Tcp10000 => unpaced(10_000, (options.messages / 10_000).max(1)),
            Load::Udp | Load::Udp10k => paced(options.udp_rate, options.seconds),
            Load::Rate1k => paced(1000, options.seconds),
            Load::Latency | Load::Latency1ms => paced(10_000, options.seconds),
            Load::Rate100k => paced(100_000, options.seconds),
            Load::Rate1m => paced(1_000_000, options.seconds),
            Load::Rate300k | Load::Rate300kRfc5424 | Load::Rate300kFileRaw | Load::Rate300kFileJson => {
                paced(300_000, options.seconds)
            }
            Load::FullJournal => unpaced(1, backlog_messages(options) + options.messages),
            Load::BacklogLive => {
                // What goes live before the second sink comes, and after it at most.
                let live = options.live_rate * (options.seconds + options.live_seconds);
                Plan { streams: 1, per_stream: backlog_messages(options) + live, rate: Some(options.live_rate) }
            }
            Load::Idle10k => unpaced(10_000, 1),
            Load::Forward | Load::ForwardGzip => {
                let per_stream = options.messages / FORWARD_STREAMS;
                unpaced(FORWARD_STREAMS, per_stream.next_multiple_of(CHUNK_EVENTS))
            }
            Load::ForwardPaced => {
                let per_stream = 100_000 * options.seconds / FORWARD_STREAMS;
                Plan { streams: FORWARD_STREAMS, per_stream, rate: Some(100_000) }
            }
        }
    }

    /// What it asks of a relay.
    pub fn setup(self) -> Setup {
        let syslog = Setup::SYSLOG;
        match self {
            Load::Tcp1Rfc5424 | Load::Rate300kRfc5424 => Setup { format: "rfc5424", ..syslog },
            Load::FileRaw | Load::Rate300kFileRaw => Setup { flow: Flow::File, ..syslog },
            Load::FileJson | Load::Rate300kFileJson => Setup { flow: Flow::File, format: "json", ..syslog },
            Load::Latency1ms => Setup { commit_interval: "1ms", ..syslog },
            Load::BacklogLive | Load::FullJournal => Setup { has_second_output: true, ..syslog },
            Load::Forward | Load::ForwardGzip | Load::ForwardPaced => Setup { flow: Flow::Forward, ..syslog },
            _ => syslog,
        }
    }

    /// Whether a relay can do it, and whether the row would tell something.
    pub fn suits(self, relay: Kind) -> bool {
        match relay {
            Kind::Twinlog => true,
            // The mirror adds to what is taken in and to the time until it is safe; the rest is a single node's.
            Kind::TwinlogMirrored => matches!(
                self,
                Load::Tcp1
                    | Load::Rate1k
                    | Load::Latency
                    | Load::Latency1ms
                    | Load::Rate100k
                    | Load::Rate1m
                    | Load::Forward
                    | Load::ForwardPaced
            ),
            Kind::Bare => matches!(
                self,
                Load::Tcp1
                    | Load::Tcp1000
                    | Load::Tcp10000
                    | Load::Rate1k
                    | Load::Latency
                    | Load::Rate100k
                    | Load::Rate300k
                    | Load::Rate1m
                    | Load::Forward
                    | Load::ForwardGzip
                    | Load::ForwardPaced
            ),
            _ if self == Load::Backlog => relay.is_persistent(),
            _ => self.setup() == Setup::SYSLOG,
        }
    }

    pub fn about(self, options: &Options) -> String {
        let Options { messages, udp_rate, seconds, live_rate, .. } = options;
        let backlog = backlog_messages(options);
        match self {
            Load::Tcp1 => format!("{messages} messages over one TCP connection, as fast as they are taken"),
            Load::Tcp1Rfc5424 => "the same as tcp1, parsed and sent on as RFC 5424 with the message's id".to_owned(),
            Load::Tcp1000 => format!("{messages} messages over 1000 TCP connections, as fast as they are taken"),
            Load::Tcp10000 => format!("{messages} messages over 10000 TCP connections, as fast as they are taken"),
            Load::FileRaw => format!("{messages} messages over one TCP connection into a file, as received"),
            Load::FileJson => format!("{messages} messages over one TCP connection into a file, as JSON"),
            Load::Udp => format!("{udp_rate} datagrams a second for {seconds} s"),
            Load::Udp10k => format!("{udp_rate} datagrams a second from 10000 addresses for {seconds} s"),
            Load::Rate1k => format!("1000 messages a second over one TCP connection for {seconds} s"),
            Load::Latency => format!("10000 messages a second over one TCP connection for {seconds} s"),
            Load::Latency1ms => "the same as latency, commit_interval = \"1ms\"".to_owned(),
            Load::Rate100k => format!("100000 messages a second over one TCP connection for {seconds} s"),
            Load::Rate1m => format!("1000000 messages a second over one TCP connection for {seconds} s"),
            Load::Rate300k => format!("300000 messages a second over one TCP connection for {seconds} s"),
            Load::Rate300kRfc5424 => "the same, parsed and sent on as RFC 5424".to_owned(),
            Load::Rate300kFileRaw => "the same into a file, as received".to_owned(),
            Load::Rate300kFileJson => "the same into a file, as JSON".to_owned(),
            Load::Backlog => format!("{messages} messages taken in while the sink refuses, restart, draining"),
            Load::BacklogLive => {
                format!(
                    "{backlog} messages wait for a second sink; it comes while {live_rate} a second go to the first"
                )
            }
            Load::FullJournal => format!("the same as tcp1 on {backlog} messages that wait for another output"),
            Load::Idle10k => format!("10000 TCP connections that have sent one message each, idle for {IDLE:?}"),
            Load::Forward => format!("{messages} events in acknowledged chunks of {CHUNK_EVENTS}, forward in and out"),
            Load::ForwardGzip => format!("the same, {messages} events in chunks compressed with gzip"),
            Load::ForwardPaced => format!("100000 events a second in acknowledged chunks for {seconds} s"),
        }
    }
}

/// Messages that wait for the second output of [`Load::BacklogLive`] and [`Load::FullJournal`].
pub fn backlog_messages(options: &Options) -> u32 {
    (options.backlog_bytes / LINE_BYTES as u64) as u32
}

fn paced(rate: u32, seconds: u32) -> Plan {
    Plan { streams: 1, per_stream: rate * seconds, rate: Some(rate) }
}
