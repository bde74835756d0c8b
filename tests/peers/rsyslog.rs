//! rsyslog: `omfwd` as the sender, `imtcp` and `imudp` as receivers.

use crate::common::{
    Lab, assert_same, connect_and_send, free_port, lines, message, numbered, sorted, udp_to, v4, wait_until,
};
use crate::programs::{Program, installed};
use crate::{device_lines, input_to_file};

/// Starts rsyslogd with this configuration and a work directory in the lab.
pub fn start(lab: &Lab, name: &str, config: &str) -> Program {
    let work = lab.path(&format!("{name}.work"));
    std::fs::create_dir_all(&work).unwrap();
    let path = lab.path(&format!("{name}.conf"));
    let global = format!(
        "global(workDirectory={work:?} maxMessageSize=\"64k\" parser.escapeControlCharactersOnReceive=\"off\")\n"
    );
    std::fs::write(&path, global + config).unwrap();
    let mut command = installed("rsyslogd");
    command.arg("-n").arg("-f").arg(path).arg("-i").arg(work.join("pid"));
    Program::start(lab, &format!("{name}.log"), command)
}

/// Reads `device.log` in the lab and follows it; `wire` is how a message looks, `line` the same for a file.
pub fn follow(lab: &Lab) -> String {
    let header = "<%PRI%>1 %TIMESTAMP:::date-rfc3339% %HOSTNAME% %app-name% %procid% %msgid% %structured-data% %msg%";
    format!(
        r#"
module(load="imfile" mode="inotify")
template(name="wire" type="string" string="{header}")
template(name="line" type="string" string="{header}\n")
input(type="imfile" file={:?} tag="device:" severity="notice" facility="local0")
"#,
        lab.path("device.log")
    )
}

#[test]
fn omfwd_delivers_every_byte_over_udp_lines_and_counted_frames() {
    let (lab, udp, tcp, octet) = (Lab::new(), free_port(), free_port(), free_port());
    let daemon = lab.start(
        &[input_to_file("udp", "udp", udp), input_to_file("lf", "tcp", tcp), input_to_file("octet", "tcp", octet)]
            .concat(),
    );
    let messages = device_lines(5000);
    std::fs::write(lab.path("device.log"), lines(&messages)).unwrap();
    let action = |more: &str| format!("action(type=\"omfwd\" target=\"127.0.0.1\" template=\"wire\" {more})\n");
    let config = [
        follow(&lab),
        format!("action(type=\"omfile\" file={:?} template=\"line\")\n", lab.path("reference")),
        action(&format!("port=\"{udp}\" protocol=\"udp\"")),
        action(&format!("port=\"{tcp}\" protocol=\"tcp\"")),
        action(&format!("port=\"{octet}\" protocol=\"tcp\" tcp_framing=\"octet-counted\"")),
    ];
    let rsyslog = start(&lab, "sender", &config.concat());
    for name in ["udp", "lf", "octet"] {
        wait_until(&format!("all came by {name}"), || {
            lab.lines_of(&format!("{name}.out")).len() as u64 + daemon.number("/inputs/udp/kernel_drops")
                == messages.len() as u64
        });
    }
    rsyslog.stop();
    for name in ["udp", "lf", "octet"] {
        assert_eq!(daemon.number(&format!("/inputs/{name}/messages")), messages.len() as u64, "{name}");
        assert_eq!(daemon.node()["inputs"][name]["rejected"].as_object().map_or(0, serde_json::Map::len), 0, "{name}");
    }
    daemon.stop();
    let reference = lab.lines_of("reference");
    assert_eq!(reference.len(), messages.len());
    assert!(reference.iter().zip(&messages).all(|(line, text)| line.ends_with(text)), "rsyslog read other lines");
    assert_same(&sorted(lab.lines_of("udp.out")), &sorted(reference.clone()));
    assert_same(&lab.lines_of("lf.out"), &reference);
    assert_same(&lab.lines_of("octet.out"), &reference);
}

#[test]
fn imtcp_and_imudp_write_what_was_sent() {
    let (lab, input) = (Lab::new(), free_port());
    let (lf, octet, udp) = (free_port(), free_port(), free_port());
    let receiver = |module: &str, port: u16, name: &str, more: &str| {
        let file = lab.path(name);
        format!(
            r#"
input(type="{module}" address="127.0.0.1" port="{port}" ruleset="{name}" {more})
ruleset(name="{name}") {{ action(type="omfile" file={file:?} template="raw") }}
"#
        )
    };
    let config = [
        "module(load=\"imtcp\")\nmodule(load=\"imudp\")\n".to_owned(),
        "template(name=\"raw\" type=\"string\" string=\"%rawmsg%\\n\")\n".to_owned(),
        receiver("imtcp", lf, "lf", ""),
        receiver("imtcp", octet, "octet", ""),
        receiver("imudp", udp, "udp", "rcvbufSize=\"8m\""),
    ];
    let rsyslog = start(&lab, "receiver", &config.concat());
    let daemon = lab.start(&format!(
        r#"
[[input.syslog]]
listen = ["tcp://127.0.0.1:{input}", "udp://127.0.0.1:{input}"]

[[output.syslog]]
name = "lf"
to = "tcp://127.0.0.1:{lf}"
retry = {{ min = "50ms", max = "200ms" }}

[[output.syslog]]
name = "octet"
to = "tcp://127.0.0.1:{octet}"
framing = "octet"
retry = {{ min = "50ms", max = "200ms" }}

[[output.syslog]]
name = "udp"
to = "udp://127.0.0.1:{udp}"
retry = {{ min = "50ms", max = "200ms" }}
"#
    ));
    // Nobody tells that rsyslog listens, and a datagram to nobody is gone.
    let first = message("are you there?");
    wait_until("rsyslog writes what comes", || {
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
    rsyslog.stop();
    daemon.stop();
    for name in ["lf", "octet", "udp"] {
        assert_same(&received(name), &messages);
    }
}
