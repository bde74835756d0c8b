//! `[[output.…]]`: where messages go, and every default of it.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::{Balance, Compress, FileFormat, Framing, PathPattern, SyslogFormat, TagPattern, Target, TlsClient};

/// One `[[output.…]]` table.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// 1 to 64 of `A-Za-z0-9._-`; also names the output's cursor. Default `syslog-0`, `forward-0`, `file-0`,
    /// `stdout-0`, ….
    pub name: String,
    /// `match`: which messages it takes. Default: all.
    pub matches: Match,
    /// `retry`: how it tries again.
    pub retry: Retry,
    /// Where it sends.
    pub kind: OutputKind,
}

impl Output {
    /// An output that takes everything, with the default retries.
    #[must_use]
    pub fn new(name: String, kind: OutputKind) -> Output {
        Output { name, matches: Match::default(), retry: Retry::default(), kind }
    }
}

/// `match`: all conditions must hold; an empty one always does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    /// Names of inputs; each exists.
    pub input: Vec<String>,
    /// Networks the sender is in.
    pub source: Vec<IpNet>,
    /// Facilities as numbers, 0 (`kern`) to 23 (`local7`), RFC 5424, table 1.
    pub facility: Vec<u8>,
    /// The least severe number taken, 0 (`emerg`) to 6 (`info`), RFC 5424, table 2. `None` is `"debug"`: all.
    pub severity_at_least: Option<u8>,
    /// Patterns of the tag; one of them must match.
    pub tag: Vec<TagPattern>,
}

/// `retry`: exponential, from `min` to `max`, for ever: nothing is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// First wait, 1 ms or more. Default 200 ms.
    pub min: Duration,
    /// Longest wait, at least `min` and at most 1 h. Default 30 s.
    pub max: Duration,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry { min: Duration::from_millis(200), max: Duration::from_secs(30) }
    }
}

/// What an output sends to.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputKind {
    /// `[[output.syslog]]`.
    Syslog(SyslogOutput),
    /// `[[output.forward]]`.
    Forward(ForwardOutput),
    /// `[[output.file]]`.
    File(FileOutput),
    /// `[[output.stdout]]`.
    Stdout(StdoutOutput),
}

impl OutputKind {
    /// Whether it waits for acknowledgements of chunks.
    #[must_use]
    pub fn is_forward(&self) -> bool {
        matches!(self, OutputKind::Forward(_))
    }
}

/// `[[output.syslog]]`: one destination, perhaps reachable in several places.
#[derive(Clone, Debug, PartialEq)]
pub struct SyslogOutput {
    /// The first is the primary, the rest stand by in order; at least one, all different. Required.
    pub to: Vec<Target>,
    /// How messages are told apart on TCP and TLS. Default [`Framing::Auto`].
    pub framing: Framing,
    /// What is sent. Default [`SyslogFormat::Raw`].
    pub format: SyslogFormat,
    /// `tls`: whom we trust on `tls://`, and who we are.
    pub tls: TlsClient,
}

impl SyslogOutput {
    /// An output to `to` with every default.
    #[must_use]
    pub fn new(to: Vec<Target>) -> SyslogOutput {
        SyslogOutput { to, framing: Framing::Auto, format: SyslogFormat::Raw, tls: TlsClient::default() }
    }
}

/// `[[output.forward]]`: fluentd, fluent-bit, another twinlog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardOutput {
    /// The servers; how they are used is `balance`. At least one, all different, over TCP or TLS. Required.
    pub to: Vec<Target>,
    /// Whether a chunk counts as delivered when the server acknowledges it. Default true; false counts what the server's
    /// kernel has taken, which a server that dies with it loses.
    pub require_ack: bool,
    /// How long a server may take to acknowledge a chunk before it is given up, 1 s to 1 h. Default 30 s.
    pub ack_timeout: Duration,
    /// Default [`Balance::Failover`].
    pub balance: Balance,
    /// Default [`Compress::Off`].
    pub compress: Compress,
    /// Chunks sent to a server and not yet acknowledged, 1 to 1024, together at most 16 MiB or one chunk: they are kept in
    /// memory as long. A chunk has the entries of one tag in about 256 KiB of the journal; a server that answers after
    /// 10 ms, with 20 tags, is sent 80 MB/s at most by the default, 64.
    pub window: usize,
    /// What is proven to the servers, and by them. Default `None`: no handshake.
    pub login: Option<Login>,
    /// `tls`: whose certificate is believed, and what is shown; for servers with `tls://`. A `tls` table says it of all.
    pub tls: TlsClient,
}

impl ForwardOutput {
    /// An output to `to` with every default.
    #[must_use]
    pub fn new(to: Vec<Target>) -> ForwardOutput {
        ForwardOutput {
            to,
            require_ack: true,
            ack_timeout: Duration::from_secs(30),
            balance: Balance::Failover,
            compress: Compress::Off,
            window: 64,
            login: None,
            tls: TlsClient::default(),
        }
    }
}

/// How a forward output makes itself known. The files are read for every connection, so that they can be renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// `shared_key_file`: the file of the key that both sides know.
    pub shared_key_file: PathBuf,
    /// `self_hostname`: our name, 1 to 255 bytes; fluentd refuses a client that has its own. Default: the node's name.
    pub self_hostname: String,
    /// `username` and `password_file`, for a server that asks. Default `None`.
    pub user: Option<(String, PathBuf)>,
}

/// `[[output.file]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct FileOutput {
    /// Path with strftime fields; relative ones start in the working directory. Required; no two outputs share one.
    pub path: PathPattern,
    /// What a line is. Default [`FileFormat::Raw`].
    pub format: FileFormat,
    /// When a new file is begun. Default: never.
    pub rotate: Rotate,
}

impl FileOutput {
    /// An output to `path` with every default.
    #[must_use]
    pub fn new(path: PathPattern) -> FileOutput {
        FileOutput { path, format: FileFormat::Raw, rotate: Rotate::default() }
    }
}

/// `rotate`: whichever comes first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rotate {
    /// Bytes in the file, 4 KiB or more. Default `None`: any size.
    pub size: Option<u64>,
    /// Age of the file, 1 s or more. Default `None`: any age.
    pub age: Option<Duration>,
    /// Old files kept, at least 1. Default `None`: all.
    pub keep: Option<u32>,
}

/// `[[output.stdout]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StdoutOutput {
    /// What a line is. Default [`FileFormat::Raw`].
    pub format: FileFormat,
}

impl Default for StdoutOutput {
    fn default() -> StdoutOutput {
        StdoutOutput { format: FileFormat::Raw }
    }
}
