//! rsyslog (GnuTLS) and syslog-ng (OpenSSL) inside TLS, as senders and as receivers, certificates checked on both sides.

use crate::common::{
    Authority, Daemon, Lab, assert_same, connect_and_send, first_arrivals, free_port, lines, message, numbered, v4,
    wait_until,
};
use crate::programs::Program;
use crate::rsyslog::{follow, start};
use crate::{device_lines, syslog_ng};

/// A twinlog input that wants a certificate and keeps its messages as lines of `NAME.out`.
fn input_to_file(name: &str, port: u16) -> String {
    format!(
        r#"
[[input.syslog]]
name = "{name}"
listen = "tls://127.0.0.1:{port}"
tls = {{ cert_file = "server.crt", key_file = "server.key", ca_file = "peers.ca" }}

[[output.file]]
name = "{name}"
path = "{name}.out"
match = {{ input = "{name}" }}
"#
    )
}

/// An authority, `server` for localhost and `client` for twinlog.test.
fn certificates(lab: &Lab) {
    let authority = Authority::new(lab, "peers");
    authority.issue(lab, "server", &["localhost", "127.0.0.1"]);
    authority.issue(lab, "client", &["twinlog.test"]);
}

/// rsyslog's global settings for its TLS driver with this certificate.
fn gtls(lab: &Lab, name: &str) -> String {
    let file = |name: &str| lab.path(name);
    format!(
        "global(defaultNetstreamDriver=\"gtls\" defaultNetstreamDriverCAFile={:?} \
         defaultNetstreamDriverCertFile={:?} defaultNetstreamDriverKeyFile={:?})\n",
        file("peers.ca"),
        file(&format!("{name}.crt")),
        file(&format!("{name}.key"))
    )
}

/// syslog-ng's `tls()` with this certificate.
fn tls(lab: &Lab, name: &str) -> String {
    let file = |name: &str| lab.path(name).display().to_string();
    format!(
        "tls(ca-file(\"{}\") cert-file(\"{}\") key-file(\"{}\") peer-verify(required-trusted))",
        file("peers.ca"),
        file(&format!("{name}.crt")),
        file(&format!("{name}.key"))
    )
}

#[test]
fn omfwd_delivers_every_byte_in_lines_and_counted_frames() {
    let (lab, lf, octet) = (Lab::new(), free_port(), free_port());
    certificates(&lab);
    let daemon = lab.start(&[input_to_file("lf", lf), input_to_file("octet", octet)].concat());
    let messages = device_lines(5000);
    std::fs::write(lab.path("device.log"), lines(&messages)).unwrap();
    let action = |port: u16, more: &str| {
        format!(
            "action(type=\"omfwd\" target=\"127.0.0.1\" port=\"{port}\" protocol=\"tcp\" template=\"wire\" \
             streamDriver=\"gtls\" streamDriverMode=\"1\" streamDriverAuthMode=\"x509/name\" \
             streamDriverPermittedPeers=\"localhost\" {more})\n"
        )
    };
    let config = [
        gtls(&lab, "client"),
        follow(&lab),
        format!("action(type=\"omfile\" file={:?} template=\"line\")\n", lab.path("reference")),
        action(lf, ""),
        action(octet, "tcp_framing=\"octet-counted\""),
    ];
    let rsyslog = start(&lab, "sender", &config.concat());
    for name in ["lf", "octet"] {
        daemon.wait_for(&format!("/inputs/{name}/messages"), messages.len() as u64);
        wait_until("all are written", || lab.lines_of(&format!("{name}.out")).len() == messages.len());
    }
    rsyslog.stop();
    daemon.stop();
    let reference = lab.lines_of("reference");
    assert!(reference.iter().zip(&messages).all(|(line, text)| line.ends_with(text)), "rsyslog read other lines");
    for name in ["lf", "octet"] {
        assert_same(&lab.lines_of(&format!("{name}.out")), &reference);
    }
}

#[test]
fn syslog_ng_delivers_every_byte_by_network_and_syslog() {
    let (lab, ports) = (Lab::new(), [free_port(), free_port()]);
    certificates(&lab);
    let names = ["network", "syslog"];
    let daemon = lab.start(&[input_to_file(names[0], ports[0]), input_to_file(names[1], ports[1])].concat());
    let messages = device_lines(5000);
    std::fs::write(lab.path("device.log"), lines(&messages)).unwrap();
    let template = "template(\"<$PRI>$ISODATE device app: $MSG\\n\")";
    let (log, credentials) = (lab.path("device.log"), tls(&lab, "client"));
    let file = |name: &str| lab.path(&format!("{name}.reference")).display().to_string();
    let config = format!(
        r#"log {{
source {{ file("{}" flags(no-parse) follow-freq(0.1)); }};
destination {{ file("{}" {template}); }};
destination {{ file("{}" flags(syslog-protocol)); }};
destination {{ network("127.0.0.1" port({}) transport("tls") {credentials} {template}); }};
destination {{ syslog("127.0.0.1" port({}) transport("tls") {credentials}); }};
flags(flow-control); }};
"#,
        log.display(),
        file("network"),
        file("syslog"),
        ports[0],
        ports[1]
    );
    let peer = syslog_ng::start(&lab, &config);
    for name in names {
        daemon.wait_for(&format!("/inputs/{name}/messages"), messages.len() as u64);
        for end in ["out", "reference"] {
            wait_until("all are written", || lab.lines_of(&format!("{name}.{end}")).len() == messages.len());
        }
    }
    peer.stop();
    daemon.stop();
    for name in names {
        let reference = lab.lines_of(&format!("{name}.reference"));
        assert!(reference.iter().zip(&messages).all(|(line, text)| line.ends_with(text)), "syslog-ng read other lines");
        assert_same(&lab.lines_of(&format!("{name}.out")), &reference);
    }
}

/// The output `NAME` to a peer inside TLS.
fn output(name: &str, port: u16, more: &str) -> String {
    format!(
        r#"
[[output.syslog]]
name = "{name}"
to = "tls://localhost:{port}"
retry = {{ min = "50ms", max = "200ms" }}
tls = {{ ca_file = "peers.ca", cert_file = "client.crt", key_file = "client.key" }}
{more}
"#
    )
}

/// Sends lines through twinlog to a peer that writes them to the files `names`, and compares.
fn assert_written_as_sent(lab: &Lab, daemon: Daemon, peer: Program, input: u16, names: &[&str]) {
    let mut messages = numbered("m", 2000);
    messages.extend(device_lines(6).iter().map(|text| [&message("")[..], text].concat()));
    connect_and_send(v4(input), &lines(&messages));
    for name in names {
        wait_until(&format!("all came by {name}"), || lab.lines_of(name).len() >= messages.len());
        daemon.wait_for(&format!("/outputs/{name}/acknowledged"), messages.len() as u64);
    }
    peer.stop();
    daemon.stop();
    for name in names {
        assert_same(&first_arrivals(lab.lines_of(name)), &messages);
    }
}

#[test]
fn imtcp_writes_what_was_sent() {
    let (lab, input, lf, octet) = (Lab::new(), free_port(), free_port(), free_port());
    certificates(&lab);
    let receiver = |port: u16, name: &str| {
        let file = lab.path(name);
        format!(
            r#"
input(type="imtcp" address="127.0.0.1" port="{port}" ruleset="{name}")
ruleset(name="{name}") {{ action(type="omfile" file={file:?} template="raw") }}
"#
        )
    };
    let config = [
        gtls(&lab, "server"),
        "module(load=\"imtcp\" streamDriver.name=\"gtls\" streamDriver.mode=\"1\" \
         streamDriver.authMode=\"x509/name\" permittedPeer=\"twinlog.test\")\n"
            .to_owned(),
        "template(name=\"raw\" type=\"string\" string=\"%rawmsg%\\n\")\n".to_owned(),
        receiver(lf, "lf"),
        receiver(octet, "octet"),
    ];
    let peer = start(&lab, "receiver", &config.concat());
    let daemon = lab.start(
        &[
            format!("\n[[input.syslog]]\nlisten = \"tcp://127.0.0.1:{input}\"\n"),
            output("lf", lf, "framing = \"lf\""),
            output("octet", octet, ""),
        ]
        .concat(),
    );
    assert_written_as_sent(&lab, daemon, peer, input, &["lf", "octet"]);
}

#[test]
fn the_receivers_of_syslog_ng_write_what_was_sent() {
    let (lab, input, lf, octet) = (Lab::new(), free_port(), free_port(), free_port());
    certificates(&lab);
    let log = |source: String, name: &str, field: &str| {
        let file = lab.path(name);
        format!(
            "log {{ source {{ {source}; }}; destination {{ file(\"{}\" template(\"${field}\\n\")); }}; }};\n",
            file.display()
        )
    };
    let with = format!("transport(\"tls\") {}", tls(&lab, "server"));
    let config = [
        log(format!("network(ip(\"127.0.0.1\") port({lf}) {with} flags(no-parse))"), "lf", "MSG"),
        log(format!("syslog(ip(\"127.0.0.1\") port({octet}) {with} flags(store-raw-message))"), "octet", "RAWMSG"),
    ];
    let peer = syslog_ng::start(&lab, &config.concat());
    let daemon = lab.start(
        &[
            format!("\n[[input.syslog]]\nlisten = \"tcp://127.0.0.1:{input}\"\n"),
            output("lf", lf, "framing = \"lf\""),
            output("octet", octet, ""),
        ]
        .concat(),
    );
    assert_written_as_sent(&lab, daemon, peer, input, &["lf", "octet"]);
}
