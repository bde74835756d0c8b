//! syslog-ng: its `network()` and `syslog()` drivers on both sides, and its load generator.

use std::collections::BTreeSet;
use std::path::Path;

use crate::common::{
    Lab, assert_same, connect_and_send, free_port, lines, message, numbered, sorted, udp_to, v4, wait_until,
};
use crate::programs::{Program, syslog_ng_modules, unpacked};
use crate::{device_lines, input_to_file};

/// Starts syslog-ng with this configuration and its files in the lab.
pub fn start(lab: &Lab, config: &str) -> Program {
    let path = lab.path("syslog-ng.conf");
    let version = syslog_ng_modules().file_name().expect("a version").to_string_lossy().into_owned();
    let options = "options { keep-hostname(yes); use-dns(no); dns-cache(no); time-reopen(1); log-msg-size(65536); };";
    std::fs::write(&path, format!("@version: {version}\n{options}\n{config}")).unwrap();
    let mut command = unpacked("usr/sbin/syslog-ng");
    command.args(["--foreground", "--stderr", "--no-caps", "--module-path"]).arg(syslog_ng_modules());
    command.arg("--cfgfile").arg(path).arg("--persist-file").arg(lab.path("syslog-ng.persist"));
    command.arg("--pidfile").arg(lab.path("syslog-ng.pid")).arg("--control").arg(lab.path("syslog-ng.ctl"));
    Program::start(lab, "syslog-ng.log", command)
}

fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}

#[test]
fn network_and_syslog_drivers_deliver_every_byte_over_udp_and_tcp() {
    let (lab, ports) = (Lab::new(), [free_port(), free_port(), free_port(), free_port()]);
    let names = ["network-udp", "network-tcp", "syslog-udp", "syslog-tcp"];
    let protocols = ["udp", "tcp", "udp", "tcp"];
    let config: Vec<_> = (0..4).map(|at| input_to_file(names[at], protocols[at], ports[at])).collect();
    let daemon = lab.start(&config.concat());
    let messages = device_lines(5000);
    std::fs::write(lab.path("device.log"), lines(&messages)).unwrap();
    let template = "template(\"<$PRI>$ISODATE device app: $MSG\\n\")";
    let destination = |at: usize| {
        let (driver, port, transport) = (names[at].split('-').next().expect("its driver"), ports[at], protocols[at]);
        let template = if driver == "network" { template } else { "" };
        format!("destination {{ {driver}(\"127.0.0.1\" port({port}) transport(\"{transport}\") {template}); }};\n")
    };
    let config = [
        "log {\n".to_owned(),
        format!("source {{ file({} flags(no-parse) follow-freq(0.1)); }};\n", quoted(&lab.path("device.log"))),
        format!("destination {{ file({} {template}); }};\n", quoted(&lab.path("network.reference"))),
        format!("destination {{ file({} flags(syslog-protocol)); }};\n", quoted(&lab.path("syslog.reference"))),
        (0..4).map(destination).collect(),
        "flags(flow-control); };\n".to_owned(),
    ];
    let syslog_ng = start(&lab, &config.concat());
    for name in names {
        wait_until(&format!("all came by {name}"), || lab.lines_of(&format!("{name}.out")).len() == messages.len());
    }
    for file in ["network.reference", "syslog.reference"] {
        wait_until("syslog-ng wrote its own file", || lab.lines_of(file).len() == messages.len());
    }
    syslog_ng.stop();
    daemon.stop();
    for name in names {
        let reference = lab.lines_of(&format!("{}.reference", name.split('-').next().expect("its driver")));
        assert!(reference.iter().zip(&messages).all(|(line, text)| line.ends_with(text)), "syslog-ng read other lines");
        // Two sockets take in what comes by UDP, so batches of them may change places.
        assert_same(&sorted(lab.lines_of(&format!("{name}.out"))), &sorted(reference));
    }
}

#[test]
fn its_receivers_write_what_was_sent() {
    let (lab, input) = (Lab::new(), free_port());
    let (lf, octet, udp) = (free_port(), free_port(), free_port());
    let log = |source: &str, name: &str| {
        let file = quoted(&lab.path(name));
        format!("log {{ source {{ {source}; }}; destination {{ file({file} template(\"$MSG\\n\")); }}; }};\n")
    };
    // `syslog()` counts octets but then parses, whatever the flags say; what it was given stands in $RAWMSG.
    let raw = |source: &str, name: &str| {
        let file = quoted(&lab.path(name));
        format!("log {{ source {{ {source}; }}; destination {{ file({file} template(\"$RAWMSG\\n\")); }}; }};\n")
    };
    let config = [
        log(&format!("network(ip(\"127.0.0.1\") port({lf}) transport(\"tcp\") flags(no-parse))"), "lf"),
        raw(&format!("syslog(ip(\"127.0.0.1\") port({octet}) transport(\"tcp\") flags(store-raw-message))"), "octet"),
        log(
            &format!("network(ip(\"127.0.0.1\") port({udp}) transport(\"udp\") flags(no-parse) so-rcvbuf(8388608))"),
            "udp",
        ),
    ];
    let syslog_ng = start(&lab, &config.concat());
    let output = |name: &str, protocol: &str, port: u16, more: &str| {
        format!(
            "[[output.syslog]]\nname = \"{name}\"\nto = \"{protocol}://127.0.0.1:{port}\"\n\
             retry = {{ min = \"50ms\", max = \"200ms\" }}\n{more}\n"
        )
    };
    let daemon = lab.start(&format!(
        "\n[[input.syslog]]\nlisten = [\"tcp://127.0.0.1:{input}\", \"udp://127.0.0.1:{input}\"]\n{}{}{}",
        output("lf", "tcp", lf, ""),
        output("octet", "tcp", octet, "framing = \"octet\""),
        output("udp", "udp", udp, "")
    ));
    let first = message("are you there?");
    wait_until("syslog-ng writes what comes", || {
        udp_to(v4(input)).send(&first).unwrap();
        ["lf", "octet", "udp"].iter().all(|name| !lab.read(name).is_empty())
    });
    let mut messages = numbered("m", 2000);
    messages.extend(device_lines(6).iter().map(|text| [&message("")[..], text].concat()));
    connect_and_send(v4(input), &lines(&messages));
    // The questions came by another socket: one of them may be taken in late.
    let received = |name: &str| {
        let mut lines = lab.lines_of(name);
        lines.retain(|line| *line != first);
        lines
    };
    for name in ["lf", "octet", "udp"] {
        wait_until(&format!("all came by {name}"), || received(name).len() >= messages.len());
    }
    syslog_ng.stop();
    daemon.stop();
    for name in ["lf", "octet", "udp"] {
        assert_same(&received(name), &messages);
    }
}

#[test]
fn loggen_loses_nothing() {
    const EACH: usize = 20_000;
    let (lab, udp, tcp) = (Lab::new(), free_port(), free_port());
    let daemon = lab.start(&(input_to_file("udp", "udp", udp) + &input_to_file("tcp", "tcp", tcp)));
    let run = |arguments: &[&str], port: u16| {
        let mut command = unpacked("usr/bin/loggen");
        command.args(["--inet", "--quiet", "--size", "256"]).args(arguments).arg("127.0.0.1").arg(port.to_string());
        let done = command.output().expect("loggen starts");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let number = EACH.to_string();
    run(&["--stream", "--rate", "100000", "--number", &number], tcp);
    run(&["--stream", "--rate", "100000", "--number", &number, "--syslog-proto"], tcp);
    run(&["--dgram", "--rate", "20000", "--number", &number], udp);
    daemon.wait_for("/inputs/tcp/messages", 2 * EACH as u64);
    daemon.wait_for("/inputs/udp/messages", EACH as u64);
    wait_until("all are written", || daemon.number("/outputs/udp/backlog_messages") == 0);
    wait_until("all are written", || daemon.number("/outputs/tcp/backlog_messages") == 0);
    daemon.stop();
    let (lines, datagrams) = (lab.lines_of("tcp.out"), lab.lines_of("udp.out"));
    assert_eq!((lines.len(), datagrams.len()), (2 * EACH, EACH));
    for run in [&lines[..EACH], &lines[EACH..], &datagrams[..]] {
        let numbers: BTreeSet<usize> = run.iter().map(|line| sequence_number(line)).collect();
        assert_eq!((numbers.len(), numbers.first(), numbers.last()), (EACH, Some(&0), Some(&(EACH - 1))));
        assert!(run.iter().all(|line| line.ends_with(b"PADD")
            || line.ends_with(b"PAD")
            || line.ends_with(b"PA")
            || line.ends_with(b"P")));
    }
}

/// The number in `seq: 0000000042,`.
fn sequence_number(line: &[u8]) -> usize {
    let text = std::str::from_utf8(line).expect("loggen writes text");
    let digits = text.split_once("seq: ").expect("a sequence number").1.split(',').next().expect("digits");
    digits.parse().expect("a number")
}
