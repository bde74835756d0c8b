//! util-linux logger: what it sends is what it shows on standard error.

use crate::common::{Lab, assert_same, free_port, lines, sorted, wait_until};
use crate::programs::installed;
use crate::{device_lines, input_to_file};

#[test]
fn logger_delivers_every_byte_in_every_format() {
    let (lab, udp, tcp) = (Lab::new(), free_port(), free_port());
    let daemon = lab.start(&(input_to_file("udp", "udp", udp) + &input_to_file("tcp", "tcp", tcp)));
    std::fs::write(lab.path("device.log"), lines(&device_lines(200))).unwrap();
    let (mut by_udp, mut by_tcp) = (Vec::new(), Vec::new());
    for options in [
        &["--udp", "--rfc3164"][..],
        &["--udp", "--rfc5424"],
        &["--udp", "--octet-count"],
        &["--tcp", "--rfc3164"],
        &["--tcp", "--rfc5424"],
        &["--tcp", "--rfc3164", "--octet-count"],
        &["--tcp", "--rfc5424", "--octet-count"],
    ] {
        let is_udp = options[0] == "--udp";
        let port = if is_udp { udp } else { tcp };
        let mut command = installed("logger");
        command.args(["--server", "127.0.0.1", "--port", &port.to_string(), "--tag", "device", "--size", "8KiB"]);
        command.args(["--priority", "local0.notice", "--stderr"]).args(options);
        let done = command.arg("--file").arg(lab.path("device.log")).output().expect("logger starts");
        assert!(done.status.success(), "{options:?}: {}", String::from_utf8_lossy(&done.stderr));
        let shown = done.stderr.split_inclusive(|byte| *byte == b'\n');
        let shown = shown.map(|line| line.strip_suffix(b"\n").unwrap_or(line).to_vec());
        // A count in a datagram is part of the datagram.
        let is_framed = !is_udp && options.contains(&"--octet-count");
        let sent = shown.map(|line| if is_framed { without_count(&line) } else { line });
        if is_udp { by_udp.extend(sent) } else { by_tcp.extend(sent) }
    }
    assert_eq!((by_udp.len(), by_tcp.len()), (600, 800));
    wait_until("all datagrams are there", || lab.lines_of("udp.out").len() == by_udp.len());
    wait_until("all lines are there", || lab.lines_of("tcp.out").len() == by_tcp.len());
    daemon.stop();
    assert_same(&sorted(lab.lines_of("udp.out")), &sorted(by_udp));
    assert_same(&sorted(lab.lines_of("tcp.out")), &sorted(by_tcp));
}

fn without_count(line: &[u8]) -> Vec<u8> {
    let space = line.iter().position(|byte| *byte == b' ').expect("a count and a space");
    line[space + 1..].to_vec()
}
