//! twinlog's configuration.

use std::path::Path;

use super::Flow;
use super::ports::Ports;

/// The defaults of a standalone node, but for the retry: a backlog's draining should not begin with a wait of 30 s.
pub fn config(dir: &Path, Ports { input, sink }: Ports, flow: Flow) -> String {
    let dir = dir.display();
    let flow = match flow {
        Flow::Syslog => format!(
            r#"[[input.syslog]]
listen = ["udp://127.0.0.1:{input}", "tcp://127.0.0.1:{input}"]
max_connections = 15000

[[output.syslog]]
to = ["tcp://127.0.0.1:{sink}"]
framing = "lf"
format = "raw""#
        ),
        Flow::Forward => format!(
            r#"[[input.forward]]
listen = "127.0.0.1:{input}"

[[output.forward]]
to = ["127.0.0.1:{sink}"]
require_ack = true"#
        ),
    };
    format!(
        r#"data_dir = "{dir}/data"
control_socket = "{dir}/control.sock"

[journal]
max_size = "32GiB"

[drain]
grace = "100ms"
stop_deadline = "2s"

{flow}
retry = {{ min = "200ms", max = "1s" }}

[log]
level = "warn"
"#
    )
}
