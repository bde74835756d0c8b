//! Configuration: what the files say, checked once, and every default.
//!
//! TOML, one table per kind and no `type` key. [`read`] takes the main file and its drop-ins as texts and gives either
//! a [`Config`] that needs no further checking or *all* that is wrong with them, each with its place and one fix.
//! [`load`] is the same with files. Nothing here opens a socket; [`check_environment`] looks at the disk and is asked
//! separately, because `twinlog check` must also judge a file meant for another machine.
//!
//! serde stops at the first error, so the text becomes toml's spanned tree (`toml::de::DeTable`) and the sections take from
//! it what they know (`sections.rs` over `reader.rs`); what nobody took is an unknown key. To add a key: a field with its
//! default here (in `input.rs`, `output.rs`), a line in `sections.rs` (`output_sections.rs`), a line in `effective.rs`.
//! Drop-ins are not merged as texts: a section reads one table that has parts in several files, so every value keeps its
//! own place.
//!
//! The same files serve both nodes of a pair; [`Identity`] is what a machine brings to know which of them it is.

mod address;
mod choice;
mod cross_checks;
mod diagnostic;
mod effective;
mod environment;
mod hook;
mod input;
mod output;
mod output_sections;
mod pair;
#[cfg(test)]
mod pair_tests;
mod path_pattern;
mod reader;
mod secret;
mod sections;
mod tag_pattern;
#[cfg(test)]
mod tests;
mod tls;
mod units;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::address::{Listen, Protocol, Target};
pub use self::choice::{
    Acknowledge, Balance, Choice, ClientAuth, Compress, FileFormat, Framing, HookEvent, HookStyle, LogFormat, LogLevel,
    LogTarget, PeerLoss, SyslogFormat, WhenFull,
};
pub use self::diagnostic::{Diagnostic, Place, Report, Severity};
pub use self::effective::{fingerprint, show_effective};
pub use self::environment::{check_environment, node_name};
pub use self::hook::{Hook, UnsafeCommand, check_command};
pub use self::input::{ForwardInput, Input, RelpInput, SyslogInput, Timezone};
pub use self::output::{
    FileOutput, ForwardOutput, Login, Match, Output, OutputKind, Retry, Rotate, StdoutOutput, SyslogOutput,
};
pub use self::pair::{Identity, Pair, PairNode, Vip, read_pair_key, read_password};
pub use self::path_pattern::{InvalidPathPattern, PathPattern};
pub use self::secret::{SecretError, read_key, read_users};
pub use self::tag_pattern::{InvalidTagPattern, TagPattern};
pub use self::tls::{TlsClient, TlsIdentity, TlsServer};
pub use self::units::{Invalid, duration as read_duration};
use crate::proto::position::NodeName;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// Where the configuration is when nobody says otherwise; drop-ins are in `conf.d` beside it.
pub const DEFAULT_FILE: &str = "/etc/twinlog/twinlog.toml";

/// The whole configuration of one node, every value in force. Checked: users of it need not check again.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// This node's name. Not a key, because the same file serves both nodes of a pair: from `--node`, else
    /// `TWINLOG_NODE`, else that of the node of the pair whose address this machine has, else the host name.
    pub node: NodeName,
    /// `[pair]`. Default `None`: this node is alone.
    pub pair: Option<Pair>,
    /// Where the journal, cursors and receipts are. Default `/var/lib/twinlog`.
    pub data_dir: PathBuf,
    /// Path of the control socket, at most 107 bytes (the kernel's limit). Default `/run/twinlog/control.sock`.
    pub control_socket: PathBuf,
    /// `[journal]`.
    pub journal: Journal,
    /// `[drain]`.
    pub drain: Drain,
    /// `[[input.…]]`, at least one, by kind and then as written. Names are unique.
    pub inputs: Vec<Input>,
    /// `[[output.…]]`, at least one, by kind and then as written. Names are unique.
    pub outputs: Vec<Output>,
    /// `[admin]`.
    pub admin: Admin,
    /// `[log]`.
    pub log: Log,
    /// `[[hook]]`, as written. Default: none.
    pub hooks: Vec<Hook>,
}

impl Config {
    /// What `twinlog run` does without a file: syslog over UDP and TCP on 127.0.0.1:5514, forward on 127.0.0.1:24224, the
    /// journal and the control socket in `./twinlog-data`, messages as received to stdout. Needs no root.
    #[must_use]
    pub fn standalone_default(node: NodeName) -> Config {
        let data_dir = PathBuf::from("./twinlog-data");
        let loopback = |port| {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            [Protocol::Udp, Protocol::Tcp].map(|protocol| Listen { protocol, address }).to_vec()
        };
        Config {
            control_socket: data_dir.join("control.sock"),
            data_dir,
            inputs: vec![
                Input::Syslog(SyslogInput::new("syslog-0".to_owned(), loopback(5514))),
                Input::Forward(ForwardInput::new("forward-0".to_owned(), loopback(24224))),
            ],
            outputs: vec![Output::new("stdout-0".to_owned(), OutputKind::Stdout(StdoutOutput::default()))],
            ..Config::empty(node)
        }
    }

    /// Every top-level default, and neither inputs nor outputs: what the files add to.
    fn empty(node: NodeName) -> Config {
        Config {
            node,
            pair: None,
            data_dir: PathBuf::from("/var/lib/twinlog"),
            control_socket: PathBuf::from("/run/twinlog/control.sock"),
            journal: Journal::default(),
            drain: Drain::default(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            admin: Admin::default(),
            log: Log::default(),
            hooks: Vec::new(),
        }
    }
}

/// `[journal]`: how much is kept, and what a sender's acknowledgement means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// Bytes on disk before `when_full` applies; at least four segments. Default 10 GiB.
    pub max_size: u64,
    /// Bytes of one segment file, 1 MiB to 4 GiB: what is freed at once. Default 64 MiB.
    pub segment_size: u64,
    /// Longest wait before `fdatasync`, at most 10 s; zero syncs after every write. Default 10 ms.
    pub commit_interval: Duration,
    /// What happens at `max_size`. Default [`WhenFull::Block`].
    pub when_full: WhenFull,
    /// What an acknowledged message means. Default [`Acknowledge::Replicated`] with a pair, [`Acknowledge::Durable`] alone.
    pub acknowledge: Acknowledge,
}

impl Default for Journal {
    fn default() -> Journal {
        Journal {
            max_size: 10 * GIB,
            segment_size: 64 * MIB,
            commit_interval: Duration::from_millis(10),
            when_full: WhenFull::Block,
            acknowledge: Acknowledge::Durable,
        }
    }
}

/// `[drain]`: how long a leaving node waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    /// How long sockets are still read after the node left, for packets under way; at most 5 min. Default 2 s.
    pub grace: Duration,
    /// Longest time from SIGTERM to the end, 1 s to 1 day. Default 60 s.
    pub stop_deadline: Duration,
}

impl Default for Drain {
    fn default() -> Drain {
        Drain { grace: Duration::from_secs(2), stop_deadline: Duration::from_secs(60) }
    }
}

/// `[admin]`: the read-only status page and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admin {
    /// TCP addresses it is served on; `[::]` takes IPv4 too. Default empty: not served.
    pub listen: Vec<SocketAddr>,
}

/// `[log]`: twinlog's own messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least severe that is logged. Default [`LogLevel::Info`].
    pub level: LogLevel,
    /// Default [`LogFormat::Text`].
    pub format: LogFormat,
    /// Default [`LogTarget::Auto`].
    pub target: LogTarget,
}

impl Default for Log {
    fn default() -> Log {
        Log { level: LogLevel::Info, format: LogFormat::Text, target: LogTarget::Auto }
    }
}

/// One configuration file as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// How diagnostics name it: its path.
    pub name: String,
    /// The whole text.
    pub text: String,
}

/// A configuration that may be used, with what should still be said about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// What is in force.
    pub config: Config,
    /// Warnings only.
    pub warnings: Vec<Diagnostic>,
    /// Where the values stand that [`check_environment`] may complain about.
    places: BTreeMap<String, Place>,
    /// The main file's name, for what stands nowhere.
    main: String,
    /// Why this machine is neither node of the pair.
    unrecognised: Option<Diagnostic>,
}

impl Loaded {
    /// The same, if this machine is a node of the pair or there is none. A file that is only looked at may be for others.
    ///
    /// # Errors
    /// That it is not, or could be both; with the warnings.
    pub fn recognised(mut self) -> Result<Loaded, Vec<Diagnostic>> {
        match self.unrecognised.take() {
            None => Ok(self),
            Some(diagnostic) => {
                self.warnings.push(diagnostic);
                Err(self.warnings)
            }
        }
    }

    /// A diagnostic about the value of a key (`data_dir`, `input.NAME.tls.cert_file`), at its place if its place was
    /// kept.
    #[must_use]
    pub fn diagnostic(&self, severity: Severity, key: &str, message: String, fix: String) -> Diagnostic {
        match self.places.get(key) {
            Some(place) => Diagnostic::at(severity, place.clone(), message, fix),
            None => Diagnostic::of_file(severity, &self.main, message, fix),
        }
    }
}

impl From<Config> for Loaded {
    /// A configuration that is in no file.
    fn from(config: Config) -> Loaded {
        Loaded { config, warnings: Vec::new(), places: BTreeMap::new(), main: String::new(), unrecognised: None }
    }
}

/// Reads one text as a whole configuration. Pure, never panics; the node is called `localhost`.
///
/// # Errors
/// All that is wrong, in the order of the text.
pub fn parse(text: &str, file_name: &str) -> Result<Loaded, Vec<Diagnostic>> {
    let node: NodeName = "localhost".parse().expect("a valid node name");
    read(&[Source { name: file_name.to_owned(), text: text.to_owned() }], node)
}

/// Reads the main file and its drop-ins, in this order. Pure.
///
/// # Errors
/// All that is wrong, file by file, warnings included.
pub fn read(sources: &[Source], identity: impl Into<Identity>) -> Result<Loaded, Vec<Diagnostic>> {
    sections::read(sources, &identity.into())
}

/// Reads files, the main one first; see [`files_of`].
///
/// # Errors
/// All that is wrong, in files that can be read and in those that cannot.
pub fn load(files: &[PathBuf], identity: impl Into<Identity>) -> Result<Loaded, Vec<Diagnostic>> {
    let identity = identity.into();
    let (mut sources, mut unreadable) = (Vec::new(), Vec::new());
    for file in files {
        let name = file.display().to_string();
        match std::fs::read(file).map(String::from_utf8) {
            Ok(Ok(text)) => sources.push(Source { name, text }),
            Ok(Err(error)) => unreadable.push(diagnostic::not_utf8(&name, &error)),
            Err(error) => {
                let fix = format!("check that {name} is a file that this user may read");
                unreadable.push(Diagnostic::of_file(Severity::Error, &name, format!("cannot read it: {error}"), fix));
            }
        }
    }
    if unreadable.is_empty() {
        return sections::read(&sources, &identity);
    }
    // What is missing may be in the file that could not be read, but a wrong value is wrong in any case.
    unreadable.extend(sections::read_incomplete(&sources, &identity));
    Err(unreadable)
}

/// The main file and the drop-ins in `conf.d` beside it, in the order of their names. Hidden files are left out: editors
/// keep their drafts so.
///
/// # Errors
/// If there is a `conf.d` that cannot be listed: going on without the drop-ins would be another configuration.
pub fn files_of(main: &Path) -> Result<Vec<PathBuf>, Vec<Diagnostic>> {
    let mut files = vec![main.to_owned()];
    let drop_ins = main.parent().unwrap_or(Path::new("")).join("conf.d");
    let listed = match std::fs::read_dir(&drop_ins) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    let mut listed = listed.map_err(|error| {
        let fix = "let this user list the directory, or remove it";
        let name = drop_ins.display().to_string();
        vec![Diagnostic::of_file(Severity::Error, &name, format!("cannot list it: {error}"), fix)]
    })?;
    listed.retain(|path| {
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        !hidden && path.extension().is_some_and(|extension| extension == "toml")
    });
    listed.sort();
    files.append(&mut listed);
    Ok(files)
}
