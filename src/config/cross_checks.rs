//! What concerns several keys: names used twice, sockets asked for twice, sizes that do not fit each other.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use super::diagnostic::Severity;
use super::pair;
use super::reader::{Findings, Spot, nearest};
use super::sections::{Named, Spots};
use super::units::show_size;
use super::{Config, OutputKind};

/// Segments that the journal's size must hold at least: one being written, one being read, one being freed, one spare.
const SEGMENTS_MIN: u64 = 4;

pub(super) fn check(findings: &Findings<'_>, config: &Config, spots: &Spots) {
    journal_sizes(findings, config, spots);
    names(findings, "input", &spots.input_names);
    names(findings, "output", &spots.output_names);
    unstable_names(findings, &spots.output_names);
    matched_inputs(findings, spots);
    listens(findings, spots);
    targets(findings, spots);
    file_paths(findings, config, spots);
    if let Some(pair) = &config.pair {
        pair::check(findings, pair, spots);
    }
}

fn journal_sizes(findings: &Findings<'_>, config: &Config, spots: &Spots) {
    let (max, segment) = (config.journal.max_size, config.journal.segment_size);
    let written = spots.places.get("journal.segment_size").or_else(|| spots.places.get("journal.max_size"));
    let Some(spot) = written.filter(|_| segment * SEGMENTS_MIN > max) else { return };
    let (shown_max, shown_segment) = (show_size(max), show_size(segment));
    let message = format!("`max_size` {shown_max} holds fewer than {SEGMENTS_MIN} segments of {shown_segment}");
    let fix = format!("set max_size = \"{}\" or more, or a smaller segment_size", show_size(segment * SEGMENTS_MIN));
    findings.note(Severity::Error, spot, message, fix);
}

fn names(findings: &Findings<'_>, what: &str, names: &[Named]) {
    let mut seen: BTreeMap<&str, &Named> = BTreeMap::new();
    for named in names {
        let Some(first) = seen.insert(&named.name, named) else { continue };
        // The one that was written is the one to change.
        let (taken, other) = if named.written || !first.written { (named, first) } else { (first, named) };
        if let (Some(spot), Some(other)) = (&taken.spot, &other.spot) {
            let message =
                format!("the name `{}` is already that of the {what} at {}", named.name, findings.name_of(other));
            findings.note(Severity::Error, spot, message, "give it another name");
        }
    }
}

/// An output's name is what its cursor is kept under. Made names follow the order of the tables, so that a table put
/// before another would take over its cursor, and what the other had not delivered would be skipped.
fn unstable_names(findings: &Findings<'_>, outputs: &[Named]) {
    for named in outputs.iter().filter(|named| !named.written) {
        let alike = outputs.iter().filter(|other| other.kind == named.kind).count();
        if let Some(spot) = named.spot.as_ref().filter(|_| alike > 1) {
            let message = format!("without a name this output is `{}` only as long as the order stays", named.name);
            let fix = format!("add name = \"{}\": its place in the journal is kept under it", named.name);
            findings.note(Severity::Warning, spot, message, fix);
        }
    }
}

fn matched_inputs(findings: &Findings<'_>, spots: &Spots) {
    let names: Vec<&str> = spots.input_names.iter().map(|named| &*named.name).collect();
    for (name, spot) in &spots.inputs_matched {
        if !names.contains(&&**name) {
            let fix = match nearest(name, &names) {
                Some(name) => format!("did you mean \"{name}\"?"),
                None if names.is_empty() => "remove it".to_owned(),
                None => format!("the inputs are: {}", names.join(", ")),
            };
            findings.note(Severity::Error, spot, format!("there is no input `{name}`"), fix);
        }
    }
}

fn listens(findings: &Findings<'_>, spots: &Spots) {
    for (at, (listen, spot)) in spots.listens.iter().enumerate() {
        if let Some((other, first)) = spots.listens[..at].iter().find(|(other, _)| other.overlaps(listen)) {
            let message = format!("{listen} is already taken by {other} at {}", findings.name_of(first));
            findings.note(Severity::Error, spot, message, "choose another port, or remove one of them");
        }
        if listen.address.port() == 0 {
            let message = format!("{listen} gets another port at every start");
            findings.note(Severity::Warning, spot, message, "write a port, unless this is a test");
        }
    }
}

fn targets(findings: &Findings<'_>, spots: &Spots) {
    for (at, (output, target, spot)) in spots.targets.iter().enumerate() {
        if spots.targets[..at].iter().any(|(other, earlier, _)| other == output && earlier == target) {
            findings.note(Severity::Error, spot, format!("{target} is in the list twice"), "remove one");
        }
        if let Some((listen, _)) = spots.listens.iter().find(|(listen, _)| {
            let own =
                |ip: IpAddr| ip.is_loopback() && listen.address.ip().is_unspecified() || ip == listen.address.ip();
            let address = target.address().filter(|address| address.port() == listen.address.port());
            listen.protocol == target.protocol && address.is_some_and(|address| own(address.ip()))
        }) {
            let message = format!("{target} is this node's own {listen}: every message would come back for ever");
            findings.note(Severity::Error, spot, message, "send to another address");
        }
    }
}

fn file_paths(findings: &Findings<'_>, config: &Config, spots: &Spots) {
    let mut seen: BTreeMap<&Path, &Spot> = BTreeMap::new();
    for output in &config.outputs {
        let OutputKind::File(file) = &output.kind else { continue };
        let Some(spot) = spots.places.get(&format!("output.{}.path", output.name)) else { continue };
        if let Some(first) = seen.insert(Path::new(file.path.as_str()), spot) {
            let message = format!("the output at {} writes to the same file", findings.name_of(first));
            findings.note(Severity::Error, spot, message, "give each output its own file");
        }
    }
}
