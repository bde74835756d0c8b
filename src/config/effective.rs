//! Every value in force as TOML, defaults included: what `twinlog check --show-effective` prints.
//!
//! The text reads back to an equal configuration, so it can be kept beside a file and compared after an upgrade.

use std::fmt::{Display, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use super::choice::{Choice, FACILITIES, SEVERITIES};
use super::units::{show_duration, show_size};
use super::{
    Config, FileOutput, ForwardInput, ForwardOutput, Hook, HookStyle, Input, Login, Match, Output, OutputKind, Pair,
    PairNode, Protocol, RelpInput, SyslogInput, SyslogOutput, Timezone, TlsClient, TlsIdentity, TlsServer,
};
use crate::proto::vrrp::Version;

/// What both nodes of a pair should agree on, as a number: everything in force but their names.
#[must_use]
pub fn fingerprint(config: &Config) -> u32 {
    let mut text = show_effective(config);
    for node in config.pair.iter().flat_map(|pair| &pair.nodes) {
        text = text.replace(node.name.as_str(), "");
    }
    crc32c::crc32c(text.as_bytes())
}

/// Every value in force, as a file that says the same.
#[must_use]
pub fn show_effective(config: &Config) -> String {
    let Config { node, pair, data_dir, control_socket, journal, drain, inputs, outputs, admin, log, hooks } = config;
    let mut text = Text(String::new());
    text.line(format_args!("# node {node}: from --node, TWINLOG_NODE, its address in [pair] or the host name"));
    text.key("data_dir", quoted(data_dir.display()));
    text.key("control_socket", quoted(control_socket.display()));

    if let Some(pair) = pair {
        write_pair(&mut text, pair);
    }

    text.table("[journal]");
    text.key("max_size", quoted(show_size(journal.max_size)));
    text.key("segment_size", quoted(show_size(journal.segment_size)));
    text.key("commit_interval", quoted(show_duration(journal.commit_interval)));
    text.key("when_full", word(journal.when_full));
    text.key("acknowledge", word(journal.acknowledge));

    text.table("[drain]");
    text.key("grace", quoted(show_duration(drain.grace)));
    text.key("stop_deadline", quoted(show_duration(drain.stop_deadline)));

    for input in inputs {
        match input {
            Input::Syslog(input) => syslog_input(&mut text, input),
            Input::Forward(input) => forward_input(&mut text, input),
            Input::Relp(input) => relp_input(&mut text, input),
        }
    }
    for output in outputs {
        write_output(&mut text, output);
    }

    text.table("[admin]");
    text.key("listen", list(admin.listen.iter().map(SocketAddr::to_string)));

    text.table("[log]");
    text.key("level", word(log.level));
    text.key("format", word(log.format));
    text.key("target", word(log.target));

    for hook in hooks {
        write_hook(&mut text, hook);
    }
    text.0
}

fn write_hook(text: &mut Text, Hook { on, command, timeout, style, instance }: &Hook) {
    text.table("[[hook]]");
    text.key("on", list(on.iter().map(|event| event.word())));
    text.key("command", list(command));
    text.key("timeout", quoted(show_duration(*timeout)));
    text.key("style", word(*style));
    if *style == HookStyle::Keepalived {
        text.key("instance", quoted(instance));
    }
}

fn write_pair(text: &mut Text, pair: &Pair) {
    text.table("[pair]");
    text.key("vip", list(&pair.vips));
    text.key("interface", quoted(&pair.interface));
    text.key("vrid", pair.vrid.to_string());
    text.key("vrrp_version", if pair.interval.version() == Version::V2 { "2" } else { "3" }.to_owned());
    text.key("advert_interval", quoted(show_duration(pair.interval.duration())));
    text.key("preempt", pair.preempt.to_string());
    if pair.preempt {
        text.key("preempt_delay", quoted(show_duration(pair.preempt_delay)));
    }
    match &pair.auth_pass_file {
        Some(file) => text.key("auth_pass_file", quoted(file.display())),
        None => text.line(format_args!("# auth_pass_file: not set")),
    }
    text.key("unicast", pair.unicast.to_string());
    text.key("vip_lease", quoted(pair.vip_lease.map_or("off".to_owned(), show_duration)));
    let node = |PairNode { name, address, priority }: &PairNode| {
        format!("{{ name = {}, address = {}, priority = {priority} }}", quoted(name), quoted(address))
    };
    text.key("nodes", format!("[{}]", pair.nodes.each_ref().map(node).join(", ")));
    text.key("key_file", quoted(pair.key_file.display()));
    text.key("port", pair.port.to_string());
    text.key("on_peer_loss", word(pair.on_peer_loss));
}

fn syslog_input(text: &mut Text, input: &SyslogInput) {
    text.table("[[input.syslog]]");
    text.key("name", quoted(&input.name));
    text.key("listen", list(&input.listen));
    text.key("max_message", quoted(show_size(input.max_message as u64)));
    text.key("max_connections", input.max_connections.map_or(quoted("off"), |count| count.to_string()));
    text.key("idle_timeout", quoted(input.idle_timeout.map_or("off".to_owned(), show_duration)));
    text.key("udp_rcvbuf", quoted(show_size(input.udp_rcvbuf)));
    text.key("allow", list(&input.allow));
    text.key("timezone", zone(&input.timezone));
    text.key("tag", quoted(&input.tag));
    if let Some(tls) = &input.tls {
        text.key("tls", tls_server(tls));
    }
}

fn relp_input(text: &mut Text, input: &RelpInput) {
    text.table("[[input.relp]]");
    text.key("name", quoted(&input.name));
    text.key("listen", list(&input.listen));
    text.key("max_message", quoted(show_size(input.max_message as u64)));
    text.key("max_connections", input.max_connections.map_or(quoted("off"), |count| count.to_string()));
    text.key("idle_timeout", quoted(input.idle_timeout.map_or("off".to_owned(), show_duration)));
    text.key("allow", list(&input.allow));
    text.key("timezone", zone(&input.timezone));
    text.key("tag", quoted(&input.tag));
    if let Some(tls) = &input.tls {
        text.key("tls", tls_server(tls));
    }
}

fn zone(timezone: &Timezone) -> String {
    quoted(match timezone {
        Timezone::Local => "local",
        Timezone::Named(name) => name,
    })
}

fn tls_server(TlsServer { identity, ca_file, client_auth }: &TlsServer) -> String {
    let mut keys = tls_identity(identity);
    keys.extend(ca_file.iter().map(|file| format!("ca_file = {}", quoted(file.display()))));
    keys.push(format!("client_auth = {}", word(*client_auth)));
    format!("{{ {} }}", keys.join(", "))
}

/// Nothing without a value: what is not there is the system's roots, no certificate, and the target's own name.
fn tls_client(TlsClient { ca_file, identity, server_name }: &TlsClient) -> Option<String> {
    let mut keys: Vec<String> = identity.iter().flat_map(tls_identity).collect();
    keys.extend(ca_file.iter().map(|file| format!("ca_file = {}", quoted(file.display()))));
    keys.extend(server_name.iter().map(|name| format!("server_name = {}", quoted(name))));
    (!keys.is_empty()).then(|| format!("{{ {} }}", keys.join(", ")))
}

fn tls_identity(TlsIdentity { cert_file, key_file }: &TlsIdentity) -> Vec<String> {
    [("cert_file", cert_file), ("key_file", key_file)]
        .map(|(key, file)| format!("{key} = {}", quoted(file.display())))
        .to_vec()
}

fn forward_input(text: &mut Text, input: &ForwardInput) {
    text.table("[[input.forward]]");
    text.key("name", quoted(&input.name));
    // Both protocols stand for each address; the key has the address alone.
    let addresses = input.listen.iter().filter(|listen| listen.protocol == Protocol::Tcp);
    text.key("listen", list(addresses.map(|listen| listen.address)));
    let file = |path: &PathBuf| quoted(path.display());
    for (key, value) in [
        ("shared_key_file", input.shared_key_file.as_ref().map(file)),
        ("self_hostname", input.self_hostname.as_ref().map(quoted)),
        ("users_file", input.users_file.as_ref().map(file)),
    ] {
        match value {
            Some(value) => text.key(key, value),
            None => text.line(format_args!("# {key}: not set")),
        }
    }
    text.key("allow", list(&input.allow));
    text.key("max_chunk", quoted(show_size(input.max_chunk as u64)));
    text.key("max_connections", input.max_connections.map_or(quoted("off"), |count| count.to_string()));
    text.key("idle_timeout", quoted(input.idle_timeout.map_or("off".to_owned(), show_duration)));
    if let Some(tls) = &input.tls {
        text.key("tls", tls_server(tls));
    }
}

fn write_output(text: &mut Text, output: &Output) {
    text.table(match &output.kind {
        OutputKind::Syslog(_) => "[[output.syslog]]",
        OutputKind::Forward(_) => "[[output.forward]]",
        OutputKind::File(_) => "[[output.file]]",
        OutputKind::Stdout(_) => "[[output.stdout]]",
    });
    text.key("name", quoted(&output.name));
    match &output.kind {
        OutputKind::Syslog(SyslogOutput { to, framing, format, tls }) => {
            text.key("to", list(to));
            text.key("framing", word(*framing));
            text.key("format", word(*format));
            if let Some(tls) = tls_client(tls) {
                text.key("tls", tls);
            }
        }
        OutputKind::Forward(forward) => forward_output(text, forward),
        OutputKind::File(FileOutput { path, format, rotate }) => {
            text.key("path", quoted(path));
            text.key("format", word(*format));
            let size = quoted(rotate.size.map_or("off".to_owned(), show_size));
            let age = quoted(rotate.age.map_or("off".to_owned(), show_duration));
            let keep = rotate.keep.map_or(quoted("off"), |count| count.to_string());
            text.key("rotate", format!("{{ size = {size}, age = {age}, keep = {keep} }}"));
        }
        OutputKind::Stdout(stdout) => text.key("format", word(stdout.format)),
    }
    let Match { input, source, facility, severity_at_least, tag } = &output.matches;
    let facility = list(facility.iter().filter_map(|number| FACILITIES.get(usize::from(*number))));
    let severity = severity_at_least.and_then(|number| SEVERITIES.get(usize::from(number)));
    let severity = quoted(severity.copied().unwrap_or("debug"));
    let (input, source, tag) = (list(input), list(source), list(tag));
    text.key(
        "match",
        format!("{{ input = {input}, source = {source}, facility = {facility}, severity_at_least = {severity}, tag = {tag} }}"),
    );
    let (min, max) = (show_duration(output.retry.min), show_duration(output.retry.max));
    text.key("retry", format!("{{ min = {}, max = {} }}", quoted(min), quoted(max)));
}

fn forward_output(text: &mut Text, output: &ForwardOutput) {
    let ForwardOutput { to, require_ack, ack_timeout, balance, compress, window, login, tls } = output;
    text.key("to", list(to));
    text.key("require_ack", require_ack.to_string());
    if *require_ack {
        text.key("ack_timeout", quoted(show_duration(*ack_timeout)));
    }
    text.key("balance", word(*balance));
    text.key("compress", word(*compress));
    text.key("window", window.to_string());
    if let Some(Login { shared_key_file, self_hostname, user }) = login {
        text.key("shared_key_file", quoted(shared_key_file.display()));
        text.key("self_hostname", quoted(self_hostname));
        if let Some((username, password_file)) = user {
            text.key("username", quoted(username));
            text.key("password_file", quoted(password_file.display()));
        }
    }
    if let Some(tls) = tls_client(tls) {
        text.key("tls", tls);
    }
}

struct Text(String);

impl Text {
    fn line(&mut self, line: impl Display) {
        writeln!(self.0, "{line}").expect("writing to a string cannot fail");
    }

    fn table(&mut self, header: &str) {
        self.line(format_args!("\n{header}"));
    }

    fn key(&mut self, key: &str, value: String) {
        self.line(format_args!("{key} = {value}"));
    }
}

fn quoted(text: impl Display) -> String {
    toml::Value::String(text.to_string()).to_string()
}

fn word(value: impl Choice) -> String {
    quoted(value.word())
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(quoted).collect();
    format!("[{}]", items.join(", "))
}
