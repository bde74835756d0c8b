//! What the tables of outputs mean, as `sections.rs` says it of all others.

use super::address::{self, Protocol, Target};
use super::choice::Framing;
use super::reader::{Findings, Table, Value};
use super::sections::{DAY, HOUR, MILLISECOND, SECOND, Spots, facility, name, network, path, require, severity};
use super::tls;
use super::units::Invalid;
use super::{
    FileOutput, ForwardOutput, InvalidPathPattern, KIB, Login, Match, Output, OutputKind, Retry, Rotate, SyslogOutput,
    TagPattern,
};

/// Most chunks in flight: beyond, no server is kept busier.
const WINDOW_MAX: u32 = 1024;

pub(super) fn output(
    findings: &Findings<'_>,
    table: Table<'_>,
    kind: &'static str,
    spots: &mut Spots,
    read: impl FnOnce(&Findings<'_>, &Table<'_>, &str, &mut Spots) -> OutputKind,
) -> Output {
    let name = name(&table, kind, &mut spots.output_names);
    let kind = read(findings, &table, &name, spots);
    let output =
        Output { matches: matches(table.table("match"), spots), retry: retry(table.table("retry")), name, kind };
    table.finish();
    output
}

pub(super) fn syslog_output(findings: &Findings<'_>, table: &Table<'_>, name: &str, spots: &mut Spots) -> OutputKind {
    let mut output = SyslogOutput::new(Vec::new());
    table.set("to", &mut output.to, |value| {
        value.list(|item| {
            let target: Target = item.parse(str::parse)?;
            spots.targets.push((name.to_owned(), target.clone(), item.spot.clone()));
            Some(target)
        })
    });
    require(findings, table, "to", "to = [\"tcp://siem.example.net:514\"]");
    table.set("framing", &mut output.framing, |value| {
        let framing = value.choice()?;
        if framing == Framing::Octet && output.to.iter().all(|target| target.protocol == Protocol::Udp) {
            value.warning("has no effect over UDP, where a datagram is a message", "remove it");
        }
        Some(framing)
    });
    table.set("format", &mut output.format, Value::choice);
    output.tls = tls::client(findings, table, &format!("output.{name}"), spots);
    tls::check_targets(table, &output);
    OutputKind::Syslog(output)
}

pub(super) fn forward_output(
    findings: &Findings<'_>,
    table: &Table<'_>,
    name: &str,
    spots: &mut Spots,
    own_name: String,
) -> OutputKind {
    let mut output = ForwardOutput::new(Vec::new());
    table.set("to", &mut output.to, |value| {
        value.list(|item| {
            let target = item.parse(address::forward_target)?;
            spots.targets.push((name.to_owned(), target.clone(), item.spot.clone()));
            Some(target)
        })
    });
    require(findings, table, "to", "to = [\"collector.example.net:24224\"]");
    table.set("require_ack", &mut output.require_ack, |value| {
        let required = value.flag()?;
        if !required {
            let what = "false loses what a server has taken and not written when it dies";
            value.warning(what, "leave it out, if the server can acknowledge: fluentd, fluent-bit and twinlog can");
        }
        Some(required)
    });
    table.set("ack_timeout", &mut output.ack_timeout, |value| {
        if !output.require_ack {
            value.warning("has no effect without require_ack", "remove it");
            return None;
        }
        value.duration(SECOND..=HOUR)
    });
    table.set("balance", &mut output.balance, Value::choice);
    table.set("compress", &mut output.compress, Value::choice);
    table.set("window", &mut output.window, |value| {
        let chunks = value.count()?;
        if chunks > WINDOW_MAX {
            value.error(format!("must lie between 1 and {WINDOW_MAX}"), format!("write {WINDOW_MAX}"));
            return None;
        }
        usize::try_from(chunks).ok()
    });
    output.login = login(table, name, spots, own_name);
    output.tls = tls::client(findings, table, &format!("output.{name}"), spots);
    if table.has("tls") {
        output.to.iter_mut().for_each(|target| target.protocol = Protocol::Tls);
    }
    OutputKind::Forward(output)
}

fn login(table: &Table<'_>, name: &str, spots: &mut Spots, own_name: String) -> Option<Login> {
    let (mut key_file, mut self_hostname, mut username, mut password_file) = (None, own_name, None, None);
    let some_path = |value: &Value<'_>| path(value).map(Some);
    table.set("shared_key_file", &mut key_file, some_path);
    table.set("self_hostname", &mut self_hostname, |value| value.parse(handshake_name));
    table.set("username", &mut username, |value| value.parse(handshake_name).map(Some));
    table.set("password_file", &mut password_file, some_path);
    for key in ["shared_key_file", "password_file"] {
        spots.keep(format!("output.{name}.{key}"), table, key);
    }
    for (key, other) in [("username", "password_file"), ("password_file", "username")] {
        if let Some(value) = table.get(key).filter(|_| table.get(other).is_none()) {
            value.error(format!("needs {other}"), format!("add {other}, or remove {key}"));
        }
    }
    for key in ["self_hostname", "username"] {
        if let Some(value) = table.get(key).filter(|_| table.get("shared_key_file").is_none()) {
            value.error("needs shared_key_file: without a key nobody asks", "add shared_key_file = \"forward.key\"");
        }
    }
    Some(Login { shared_key_file: key_file?, self_hostname, user: username.zip(password_file) })
}

/// A name to show in a handshake: any text, but what fits a message that servers take in one read.
fn handshake_name(text: &str) -> Result<String, Invalid> {
    if text.is_empty() || text.len() > 255 {
        return Err(Invalid::new("has 1 to 255 bytes", "write \"logs.example.net\""));
    }
    Ok(text.to_owned())
}

pub(super) fn file_output(findings: &Findings<'_>, table: &Table<'_>, name: &str, spots: &mut Spots) -> OutputKind {
    let unset = "unset".parse().expect("a file name is a pattern");
    let mut output = FileOutput::new(unset);
    table.set("path", &mut output.path, |value| {
        value.parse(|text| {
            text.parse().map_err(|error: InvalidPathPattern| {
                Invalid::new(error.to_string(), "write a path such as \"/var/log/remote/%Y-%m-%d.log\"")
            })
        })
    });
    require(findings, table, "path", "path = \"/var/log/remote/all.log\"");
    spots.keep(format!("output.{name}.path"), table, "path");
    table.set("format", &mut output.format, Value::choice);
    output.rotate = rotate(table.table("rotate"));
    OutputKind::File(output)
}

fn rotate(table: Table<'_>) -> Rotate {
    let mut rotate = Rotate::default();
    table.set("size", &mut rotate.size, |value| value.unless_off(|value| value.size(4 * KIB..=1 << 50)));
    table.set("age", &mut rotate.age, |value| value.unless_off(|value| value.duration(SECOND..=3650 * DAY)));
    table.set("keep", &mut rotate.keep, |value| {
        let keep = value.unless_off(Value::count)?;
        if keep.is_some() && rotate.size.is_none() && rotate.age.is_none() {
            value.warning("has no effect: without size or age no new file is begun", "add size = \"100MiB\"");
        }
        Some(keep)
    });
    table.finish();
    rotate
}

fn retry(table: Table<'_>) -> Retry {
    let mut retry = Retry::default();
    table.set("min", &mut retry.min, |value| value.duration(MILLISECOND..=HOUR));
    table.set("max", &mut retry.max, |value| value.duration(MILLISECOND..=HOUR));
    if retry.min > retry.max
        && let Some(value) = table.get("min").or_else(|| table.get("max"))
    {
        let max = super::units::show_duration(retry.max);
        value.error(format!("must not be longer than `max`, {max}"), "write a shorter one or raise `max`");
    }
    table.finish();
    retry
}

fn matches(table: Table<'_>, spots: &mut Spots) -> Match {
    let mut matches = Match::default();
    table.set("input", &mut matches.input, |value| {
        value.list(|item| {
            let name = item.text()?;
            spots.inputs_matched.push((name.clone(), item.spot.clone()));
            Some(name)
        })
    });
    table.set("source", &mut matches.source, |value| value.list(network));
    table.set("facility", &mut matches.facility, |value| value.list(|item| item.parse(facility)));
    table.set("severity_at_least", &mut matches.severity_at_least, |value| value.parse(severity));
    table.set("tag", &mut matches.tag, |value| {
        value.list(|item| {
            item.parse(|text| {
                TagPattern::compile(text).map_err(|error| {
                    Invalid::new(error.to_string(), "write a pattern such as \"app.**\" or \"{a,b}.*\"")
                })
            })
        })
    });
    table.finish();
    matches
}
