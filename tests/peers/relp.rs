//! rsyslog's `omrelp`, which is librelp, as the sender.

use std::time::Duration;

use crate::common::{Authority, Lab, assert_same, first_arrivals, free_port, lines, wait_until, wait_until_within};
use crate::device_lines;
use crate::restarts::{lost_and_repeated, write_meanwhile};
use crate::rsyslog::{follow, start};

/// A twinlog input that keeps its messages as lines of `NAME.out`.
fn input_to_file(name: &str, listen: &str, more: &str) -> String {
    format!(
        r#"
[[input.relp]]
name = "{name}"
listen = "{listen}"
{more}

[[output.file]]
name = "{name}"
path = "{name}.out"
match = {{ input = "{name}" }}
"#
    )
}

/// An action that sends to this port for as long as it takes, and holds back what it cannot send.
fn action(port: u16, more: &str) -> String {
    format!(
        "action(type=\"omrelp\" target=\"localhost\" port=\"{port}\" template=\"wire\" \
         action.resumeRetryCount=\"-1\" action.resumeInterval=\"1\" \
         queue.type=\"LinkedList\" queue.size=\"100000\" queue.timeoutEnqueue=\"60000\" {more})\n"
    )
}

/// rsyslog's action that writes a file of its own of what it sends.
fn reference(lab: &Lab) -> String {
    format!("action(type=\"omfile\" file={:?} template=\"line\")\n", lab.path("reference"))
}

#[test]
fn omrelp_delivers_every_byte() {
    let (lab, port) = (Lab::new(), free_port());
    let daemon = lab.start(&input_to_file("relp", &format!(":{port}"), ""));
    let messages = device_lines(20_000);
    std::fs::write(lab.path("device.log"), lines(&messages)).unwrap();
    let config = [follow(&lab), "module(load=\"omrelp\")\n".to_owned(), reference(&lab), action(port, "")];
    let rsyslog = start(&lab, "sender", &config.concat());
    daemon.wait_for("/inputs/relp/messages", messages.len() as u64);
    wait_until("all are written", || lab.lines_of("relp.out").len() == messages.len());
    assert_eq!(daemon.number("/inputs/relp/connections"), 1, "one connection is enough");
    rsyslog.stop();
    daemon.wait_for("/inputs/relp/connections", 0);
    assert_eq!(
        daemon.node()["inputs"]["relp"]["rejected"],
        serde_json::json!({}),
        "librelp says close, and waits for its answer"
    );
    daemon.stop();
    let reference = lab.lines_of("reference");
    assert!(reference.iter().zip(&messages).all(|(line, text)| line.ends_with(text)), "rsyslog read other lines");
    assert_same(&lab.lines_of("relp.out"), &reference);
}

#[test]
fn omrelp_delivers_every_byte_inside_tls_with_certificates_on_both_sides() {
    let (lab, port) = (Lab::new(), free_port());
    let authority = Authority::new(&lab, "peers");
    authority.issue(&lab, "server", &["localhost", "127.0.0.1"]);
    authority.issue(&lab, "client", &["twinlog.test"]);
    let tls = "tls = { cert_file = \"server.crt\", key_file = \"server.key\", ca_file = \"peers.ca\" }";
    let daemon = lab.start(&input_to_file("relp", &format!("tls://:{port}"), tls));
    let messages = device_lines(5000);
    std::fs::write(lab.path("device.log"), lines(&messages)).unwrap();
    let credentials = format!(
        "tls=\"on\" tls.authMode=\"name\" tls.permittedPeer=\"localhost\" tls.caCert={:?} tls.myCert={:?} tls.myPrivKey={:?}",
        lab.path("peers.ca"),
        lab.path("client.crt"),
        lab.path("client.key")
    );
    let config = [follow(&lab), "module(load=\"omrelp\")\n".to_owned(), reference(&lab), action(port, &credentials)];
    let rsyslog = start(&lab, "sender", &config.concat());
    daemon.wait_for("/inputs/relp/messages", messages.len() as u64);
    wait_until("all are written", || lab.lines_of("relp.out").len() == messages.len());
    rsyslog.stop();
    daemon.stop();
    assert_same(&lab.lines_of("relp.out"), &lab.lines_of("reference"));
}

#[test]
fn omrelp_loses_nothing_while_twinlog_restarts() {
    let (lab, port) = (Lab::new(), free_port());
    let config = input_to_file("relp", &format!(":{port}"), "");
    let mut daemon = Some(lab.start(&config));
    let messages: Vec<Vec<u8>> = (0..20_000).map(|number| format!("line {number}").into_bytes()).collect();
    let file = std::fs::File::create(lab.path("device.log")).unwrap();
    let sender = [follow(&lab), "module(load=\"omrelp\")\n".to_owned(), action(port, "")];
    let rsyslog = start(&lab, "sender", &sender.concat());
    let mut kills = [false, true, true].into_iter();
    write_meanwhile(&messages, file, || {
        let running = daemon.take().expect("it runs");
        if kills.next() == Some(true) {
            running.kill()
        } else {
            running.stop()
        }
        daemon = Some(lab.start(&config));
    });
    let last = messages.last().expect("some were made");
    wait_until_within(Duration::from_secs(40), "the last line arrives", || {
        lab.lines_of("relp.out").last().is_some_and(|line| line.ends_with(last))
    });
    rsyslog.stop();
    daemon.expect("it runs").stop();
    let text = |line: &[u8]| {
        let at = line.windows(5).position(|bytes| bytes == b"line ").expect("our text");
        line[at..].to_vec()
    };
    let lines = lab.lines_of("relp.out");
    let (lost, repeated) = lost_and_repeated(&messages, &lines, text);
    eprintln!(
        "omrelp while twinlog restarts, one stop and two kills: {lost} of {} lost, {repeated} repeated",
        messages.len()
    );
    assert_eq!(lost, 0);
    let arrived: Vec<Vec<u8>> = lines.iter().map(|line| text(line)).collect();
    assert_same(&first_arrivals(arrived), &messages);
}
