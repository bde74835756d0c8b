//! What each table means: from the spanned tree to a [`Config`]. Limits stand here, defaults in `config.rs`.
//!
//! Each section takes its keys, lets the reader note what is wrong with them, and goes on with the default, so that one
//! run finds everything. What concerns several keys is in `cross_checks.rs`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::address::{self, Listen, Target};
use super::choice::{Acknowledge, FACILITIES, SEVERITIES};
use super::cross_checks;
use super::diagnostic::{Diagnostic, Severity};
use super::hook;
use super::output_sections::{file_output, forward_output, output, syslog_output};
use super::pair::{self, Identity};
use super::reader::{Findings, Spot, Table, Value, nearest};
use super::tls;
use super::units::Invalid;
use super::{
    Config, Drain, ForwardInput, GIB, Input, Journal, KIB, Loaded, MIB, OutputKind, Protocol, RelpInput, Source,
    StdoutOutput, SyslogInput, Timezone,
};

pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

/// The longest path of a Unix socket: `sun_path` without its NUL, unix(7).
const SOCKET_PATH_MAX: usize = 107;

/// The longest name of an input or output, in bytes.
const NAME_MAX: usize = 64;

/// See [`super::read`].
pub(super) fn read(sources: &[Source], identity: &Identity) -> Result<Loaded, Vec<Diagnostic>> {
    let (loaded, diagnostics) = evaluate(sources, identity, true);
    if diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error) {
        return Err(diagnostics);
    }
    Ok(Loaded { warnings: diagnostics, ..loaded })
}

/// What is wrong with some of the files, when the rest cannot be read.
pub(super) fn read_incomplete(sources: &[Source], identity: &Identity) -> Vec<Diagnostic> {
    evaluate(sources, identity, false).1
}

fn evaluate(sources: &[Source], identity: &Identity, complete: bool) -> (Loaded, Vec<Diagnostic>) {
    let (findings, documents) = Findings::parse(sources, complete);
    let root = Table::root(&findings, &documents);
    let mut spots = Spots::default();
    let main = sources.first().map_or(String::new(), |source| source.name.clone());
    let mut config = Config::empty(identity.name().clone());
    let pair = pair::pair(&findings, root.table("pair"), identity, &main, &mut spots);
    let (pair, unrecognised) = pair.map_or((None, None), |(pair, unrecognised)| (Some(pair), unrecognised));
    if let Some(pair) = pair.as_ref().filter(|_| unrecognised.is_none()) {
        config.node = pair.own_node().name.clone();
    }
    config.pair = pair;
    top_level(&findings, root, &mut config, &mut spots);
    cross_checks::check(&findings, &config, &spots);
    let places = spots.places.iter().map(|(key, spot)| (key.clone(), findings.place(spot))).collect();
    (Loaded { config, warnings: Vec::new(), places, main, unrecognised }, findings.take())
}

/// Where things stand that later checks may complain about.
#[derive(Default)]
pub(super) struct Spots {
    /// By key: `data_dir`, `output.NAME.path`.
    pub(super) places: BTreeMap<String, Spot>,
    /// Each socket to listen on.
    pub(super) listens: Vec<(Listen, Spot)>,
    /// Each target of an output, with its output's name.
    pub(super) targets: Vec<(String, Target, Spot)>,
    /// Each input named in a `match`.
    pub(super) inputs_matched: Vec<(String, Spot)>,
    /// Each name of an input, and whether it was written.
    pub(super) input_names: Vec<Named>,
    /// Each name of an output, and whether it was written.
    pub(super) output_names: Vec<Named>,
}

/// A name, where it or its table stands, and whether it was written there or made.
pub(super) struct Named {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) spot: Option<Spot>,
    pub(super) written: bool,
}

impl Spots {
    pub(super) fn keep(&mut self, key: impl Into<String>, table: &Table<'_>, name: &'static str) {
        if let Some(spot) = table.spot_of(name) {
            self.places.insert(key.into(), spot);
        }
    }
}

fn top_level(findings: &Findings<'_>, root: Table<'_>, config: &mut Config, spots: &mut Spots) {
    root.set("data_dir", &mut config.data_dir, path);
    root.set("control_socket", &mut config.control_socket, socket_path);
    spots.keep("data_dir", &root, "data_dir");
    spots.keep("control_socket", &root, "control_socket");
    journal(root.table("journal"), &mut config.journal, spots);
    drain(root.table("drain"), &mut config.drain);

    let inputs = root.table("input");
    for table in inputs.tables("syslog") {
        config.inputs.push(Input::Syslog(syslog_input(findings, table, spots)));
    }
    for table in inputs.tables("forward") {
        config.inputs.push(Input::Forward(forward_input(findings, table, spots)));
    }
    for table in inputs.tables("relp") {
        config.inputs.push(Input::Relp(relp_input(findings, table, spots)));
    }
    if inputs.is_empty() {
        let fix = "add [[input.syslog]] with listen = \":514\"";
        findings.note_missing(None, "there is no input, so nothing would come in", fix);
    }
    inputs.finish();

    let outputs = root.table("output");
    for table in outputs.tables("syslog") {
        config.outputs.push(output(findings, table, "syslog", spots, syslog_output));
    }
    for table in outputs.tables("forward") {
        let own_name = config.node.to_string();
        config.outputs.push(output(findings, table, "forward", spots, |findings, table, name, spots| {
            forward_output(findings, table, name, spots, own_name)
        }));
    }
    for table in outputs.tables("file") {
        config.outputs.push(output(findings, table, "file", spots, file_output));
    }
    for table in outputs.tables("stdout") {
        config.outputs.push(output(findings, table, "stdout", spots, |_, table, _, _| {
            let mut stdout = StdoutOutput::default();
            table.set("format", &mut stdout.format, Value::choice);
            OutputKind::Stdout(stdout)
        }));
    }
    if outputs.is_empty() {
        let fix = "add [[output.syslog]] with to = [\"tcp://siem.example.net:514\"]";
        findings.note_missing(None, "there is no output, so the journal would only fill", fix);
    }
    outputs.finish();

    let admin = root.table("admin");
    admin.set("listen", &mut config.admin.listen, |value| {
        value.list(|item| {
            let address = item.parse(|text| address::listen_address(text, None))?;
            spots.listens.push((Listen { protocol: Protocol::Tcp, address }, item.spot.clone()));
            Some(address)
        })
    });
    admin.finish();

    let log = root.table("log");
    log.set("level", &mut config.log.level, Value::choice);
    log.set("format", &mut config.log.format, Value::choice);
    log.set("target", &mut config.log.target, Value::choice);
    log.finish();

    for (number, table) in root.tables("hook").into_iter().enumerate() {
        config.hooks.push(hook::hook(findings, table, number, spots));
    }

    root.finish();
}

fn journal(table: Table<'_>, journal: &mut Journal, spots: &mut Spots) {
    let is_pair = spots.places.contains_key("pair");
    if is_pair {
        journal.acknowledge = Acknowledge::Replicated;
    }
    table.set("max_size", &mut journal.max_size, |value| value.size(4 * MIB..=1 << 50));
    table.set("segment_size", &mut journal.segment_size, |value| value.size(MIB..=4 * GIB));
    table.set("commit_interval", &mut journal.commit_interval, |value| value.duration(Duration::ZERO..=10 * SECOND));
    table.set("when_full", &mut journal.when_full, Value::choice);
    table.set("acknowledge", &mut journal.acknowledge, |value| {
        let acknowledge = value.choice()?;
        if acknowledge == Acknowledge::Replicated && !is_pair {
            value.error("cannot be \"replicated\" on a node without a pair", "write \"durable\"");
            return None;
        }
        Some(acknowledge)
    });
    spots.keep("journal.acknowledge", &table, "acknowledge");
    spots.keep("journal.segment_size", &table, "segment_size");
    spots.keep("journal.max_size", &table, "max_size");
    table.finish();
}

fn drain(table: Table<'_>, drain: &mut Drain) {
    table.set("grace", &mut drain.grace, |value| value.duration(Duration::ZERO..=300 * SECOND));
    table.set("stop_deadline", &mut drain.stop_deadline, |value| value.duration(SECOND..=DAY));
    table.finish();
}

fn syslog_input(findings: &Findings<'_>, table: Table<'_>, spots: &mut Spots) -> SyslogInput {
    let name = name(&table, "syslog", &mut spots.input_names);
    let mut input = SyslogInput::new(name, Vec::new());
    listen(findings, &table, &mut input.listen, spots, "listen = \":514\"", address::listen);
    table.set("max_message", &mut input.max_message, message_bytes);
    table.set("max_connections", &mut input.max_connections, |value| value.unless_off(Value::count));
    table.set("idle_timeout", &mut input.idle_timeout, idle_timeout);
    table.set("udp_rcvbuf", &mut input.udp_rcvbuf, |value| value.size(4 * KIB..=GIB));
    table.set("allow", &mut input.allow, |value| value.list(network));
    table.set("timezone", &mut input.timezone, |value| value.parse(timezone));
    table.set("tag", &mut input.tag, |value| value.parse(tag));
    input.tls = tls::server(findings, &table, &format!("input.{}", input.name), spots);
    tls::check_listens(findings, &table, &input.listen, "listen = \"tls://:6514\"");
    table.finish();
    input
}

fn relp_input(findings: &Findings<'_>, table: Table<'_>, spots: &mut Spots) -> RelpInput {
    let name = name(&table, "relp", &mut spots.input_names);
    let mut input = RelpInput::new(name, Vec::new());
    listen(findings, &table, &mut input.listen, spots, "listen = \":2514\"", address::listen_relp);
    table.set("max_message", &mut input.max_message, message_bytes);
    table.set("max_connections", &mut input.max_connections, |value| value.unless_off(Value::count));
    table.set("idle_timeout", &mut input.idle_timeout, idle_timeout);
    table.set("allow", &mut input.allow, |value| value.list(network));
    table.set("timezone", &mut input.timezone, |value| value.parse(timezone));
    table.set("tag", &mut input.tag, |value| value.parse(tag));
    input.tls = tls::server(findings, &table, &format!("input.{}", input.name), spots);
    tls::check_listens(findings, &table, &input.listen, "listen = \"tls://:2515\"");
    table.finish();
    input
}

fn message_bytes(value: &Value<'_>) -> Option<usize> {
    value.size(480..=16 * MIB).map(|bytes| usize::try_from(bytes).expect("16 MiB fit"))
}

fn idle_timeout(value: &Value<'_>) -> Option<Option<Duration>> {
    value.unless_off(|value| value.duration(SECOND..=30 * DAY))
}

fn forward_input(findings: &Findings<'_>, table: Table<'_>, spots: &mut Spots) -> ForwardInput {
    let name = name(&table, "forward", &mut spots.input_names);
    let mut input = ForwardInput::new(name, Vec::new());
    listen(findings, &table, &mut input.listen, spots, "listen = \":24224\"", address::listen_forward);
    let some_path = |value: &Value<'_>| path(value).map(Some);
    table.set("shared_key_file", &mut input.shared_key_file, some_path);
    table.set("self_hostname", &mut input.self_hostname, |value| value.parse(host_name).map(Some));
    table.set("users_file", &mut input.users_file, some_path);
    if let Some(value) = table.get("users_file").filter(|_| table.get("shared_key_file").is_none()) {
        value.error("needs shared_key_file: users log in after the key", "add shared_key_file = \"forward.key\"");
    }
    for key in ["shared_key_file", "users_file"] {
        spots.keep(format!("input.{}.{key}", input.name), &table, key);
    }
    table.set("allow", &mut input.allow, |value| value.list(network));
    table.set("max_chunk", &mut input.max_chunk, |value| {
        value.size(MIB..=64 * MIB).map(|bytes| usize::try_from(bytes).expect("64 MiB fit"))
    });
    table.set("max_connections", &mut input.max_connections, |value| value.unless_off(Value::count));
    table.set("idle_timeout", &mut input.idle_timeout, idle_timeout);
    input.tls = tls::server(findings, &table, &format!("input.{}", input.name), spots);
    table.finish();
    input
}

/// `listen` of an input, each item by `read`.
fn listen(
    findings: &Findings<'_>,
    table: &Table<'_>,
    target: &mut Vec<Listen>,
    spots: &mut Spots,
    example: &str,
    read: fn(&str) -> Result<Vec<Listen>, Invalid>,
) {
    table.set("listen", target, |value| {
        let listens = value.list(|item| {
            let listens = item.parse(read)?;
            spots.listens.extend(listens.iter().map(|listen| (listen.clone(), item.spot.clone())));
            Some(listens)
        });
        listens.map(|listens| listens.concat())
    });
    require(findings, table, "listen", example);
}

/// Notes that a key is not there, or is there and empty.
pub(super) fn require(findings: &Findings<'_>, table: &Table<'_>, key: &'static str, example: &str) {
    match table.get(key) {
        None => findings.note_missing(table.spot(), format!("`{key}` is missing"), format!("add {example}")),
        Some(value) if value.items().is_empty() => value.error("is empty", format!("write {example}")),
        Some(_) => {}
    }
}

/// The name of an input or output; without one its kind and its number among them.
pub(super) fn name(table: &Table<'_>, kind: &'static str, names: &mut Vec<Named>) -> String {
    let number = names.iter().filter(|named| named.kind == kind).count();
    let mut name = format!("{kind}-{number}");
    table.set("name", &mut name, |value| value.parse(plain_name));
    let (written, spot) = (table.spot_of("name").is_some(), table.spot_of("name").or_else(|| table.spot().cloned()));
    names.push(Named { name: name.clone(), kind, spot, written });
    name
}

fn plain_name(text: &str) -> Result<String, Invalid> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if !text.is_empty() && text.len() <= NAME_MAX && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    let mut plain: String = text.chars().map(|c| if u8::try_from(c).is_ok_and(allowed) { c } else { '-' }).collect();
    plain.truncate(NAME_MAX);
    let fix = if text.is_empty() { "write one or leave the key out".to_owned() } else { format!("write \"{plain}\"") };
    Err(Invalid::new(format!("has 1 to {NAME_MAX} letters, digits, '.', '-' or '_'"), fix))
}

pub(super) fn path(value: &Value<'_>) -> Option<PathBuf> {
    value.parse(|text| match text {
        "" => Err(Invalid::new("cannot be empty", "write a path")),
        _ if text.contains('\0') => Err(Invalid::new("cannot hold a NUL", "write a path")),
        _ => Ok(PathBuf::from(text)),
    })
}

fn socket_path(value: &Value<'_>) -> Option<PathBuf> {
    let path = path(value)?;
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        value.error(format!("is longer than the {SOCKET_PATH_MAX} bytes of a socket's path"), "write a shorter path");
        return None;
    }
    Some(path)
}

/// `"10.0.0.0/8"`, or an address for the network of that one host.
pub(super) fn network(value: &Value<'_>) -> Option<IpNet> {
    value.parse(|text| {
        let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        let network = network.map_err(|_| Invalid::new(format!("has no network {text:?}"), "write \"10.0.0.0/8\""))?;
        if network != network.trunc() {
            let what = format!("has host bits set behind the prefix of {text:?}");
            return Err(Invalid::new(what, format!("write \"{}\"", network.trunc())));
        }
        Ok(network)
    })
}

/// A name to show in a handshake: any text, but what fits an answer that clients take in one read.
fn host_name(text: &str) -> Result<String, Invalid> {
    if text.is_empty() || text.len() > 255 {
        return Err(Invalid::new("has 1 to 255 bytes", "write \"logs.example.net\""));
    }
    Ok(text.to_owned())
}

fn tag(text: &str) -> Result<String, Invalid> {
    if text.is_empty() || text.len() > 255 {
        return Err(Invalid::new("has 1 to 255 bytes", "write \"syslog\""));
    }
    Ok(text.to_owned())
}

/// `"local"`, `"UTC"`, `"+02:00"` or the form of an IANA name.
fn timezone(text: &str) -> Result<Timezone, Invalid> {
    let digits = |text: &str, most: u32| text.len() == 2 && text.parse::<u32>().is_ok_and(|number| number <= most);
    let offset = text.strip_prefix(['+', '-']).and_then(|text| text.split_once(':'));
    let is_offset = offset.is_some_and(|(hours, minutes)| digits(hours, 14) && digits(minutes, 59));
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_uppercase())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-+".contains(&b))
    };
    match text {
        "local" => Ok(Timezone::Local),
        "utc" | "Z" => Ok(Timezone::Named("UTC".to_owned())),
        _ if is_offset || text.split('/').all(part) => Ok(Timezone::Named(text.to_owned())),
        _ => {
            let fix = "write \"local\", \"UTC\", an offset like \"+02:00\" or a name like \"Europe/Berlin\"";
            Err(Invalid::new(format!("has no time zone {text:?}"), fix))
        }
    }
}

pub(super) fn facility(text: &str) -> Result<u8, Invalid> {
    named_number(text, "facility", &FACILITIES)
}

/// The number; `None` for `"debug"`, which is every severity.
pub(super) fn severity(text: &str) -> Result<Option<u8>, Invalid> {
    let text = match text {
        "emergency" | "panic" => "emerg",
        "critical" => "crit",
        "error" => "err",
        "warn" => "warning",
        "informational" => "info",
        _ => text,
    };
    let number = named_number(text, "severity", &SEVERITIES)?;
    Ok(Some(number).filter(|number| usize::from(*number) < SEVERITIES.len() - 1))
}

fn named_number(text: &str, what: &str, names: &[&str]) -> Result<u8, Invalid> {
    let found = names.iter().position(|name| *name == text);
    found.and_then(|number| u8::try_from(number).ok()).ok_or_else(|| {
        let fix =
            nearest(text, names).map_or(format!("use one of {}", names.join(", ")), |name| format!("write \"{name}\""));
        Invalid::new(format!("has no {what} {text:?}"), fix)
    })
}
