//! twinlog's configuration.

use std::path::Path;

use super::OUTPUT_FILE;
use super::ports::Ports;
use super::setup::{Flow, Setup};

/// The defaults of a standalone node, but for the retry: a backlog's draining should not begin with a wait of 30 s.
pub fn config(dir: &Path, ports: Ports, setup: Setup) -> String {
    let Setup { commit_interval, .. } = setup;
    let (input, outputs) = (input(ports, setup.flow), outputs(dir, ports, setup));
    let dir = dir.display();
    format!(
        r#"data_dir = "{dir}/data"
control_socket = "{dir}/control.sock"

[journal]
max_size = "32GiB"
commit_interval = "{commit_interval}"

[drain]
grace = "100ms"
stop_deadline = "2s"

{input}
{outputs}
[log]
level = "warn"
"#
    )
}

fn input(Ports { input, .. }: Ports, flow: Flow) -> String {
    match flow {
        Flow::Syslog | Flow::File => format!(
            r#"[[input.syslog]]
listen = ["udp://127.0.0.1:{input}", "tcp://127.0.0.1:{input}"]
max_connections = 15000
"#
        ),
        Flow::Forward => format!(
            r#"[[input.forward]]
listen = "127.0.0.1:{input}"
"#
        ),
    }
}

fn outputs(dir: &Path, ports: Ports, Setup { flow, format, has_second_output, .. }: Setup) -> String {
    let retry = r#"retry = { min = "200ms", max = "1s" }"#;
    let syslog = |name: &str, port: u16| {
        format!(
            r#"[[output.syslog]]
name = "{name}"
to = ["tcp://127.0.0.1:{port}"]
framing = "lf"
format = "{format}"
{retry}
"#
        )
    };
    match flow {
        Flow::Syslog if has_second_output => syslog("sink", ports.sink) + &syslog("second", ports.second_sink),
        Flow::Syslog => syslog("sink", ports.sink),
        Flow::Forward => format!(
            r#"[[output.forward]]
to = ["127.0.0.1:{}"]
require_ack = true
{retry}
"#,
            ports.sink
        ),
        Flow::File => format!(
            r#"[[output.file]]
name = "sink"
path = "{}"
format = "{format}"
{retry}
"#,
            dir.join(OUTPUT_FILE).display()
        ),
    }
}
