//! No space left on the device, for the journal and for an output.

use std::collections::HashSet;

use crate::common::{Framing, Lab, Sink, assert_same, connect_and_send, free_port, lines, tcp_to_tcp, v4, wait_until};
use crate::load::{MEMORY_BYTES_MAX, Sender, assert_exactly, thick, wait_until_held_back};
use crate::volume::Volume;

const MIB: u64 = 1 << 20;

#[test]
fn a_full_disk_holds_senders_back_and_goes_on_by_itself_when_there_is_space() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let volume = Volume::mounted_at(lab.path("data"), 48 * MIB);
    volume.fill_but(8 * MIB);
    let sink = Sink::tcp(v4(output), Framing::Lf);
    sink.stall();
    // Three quarters of what the configuration allows is not there.
    let journal = "[journal]\nmax_size = \"200MiB\"\nsegment_size = \"1MiB\"\n";
    let daemon = lab.start(&[journal, &tcp_to_tcp(input, "", output)].concat());
    // More than the disk with its space back, the queue (32 MiB) and all socket buffers.
    let sent: Vec<_> = ["one", "two", "three"].map(|name| thick(name, 55_000)).into();
    let count: usize = sent.iter().map(Vec::len).sum();
    let senders: Vec<Sender> = sent.iter().map(|messages| Sender::start(v4(input), messages)).collect();

    wait_until_held_back(&senders);
    let node = daemon.node();
    let faults = node["faults"].to_string();
    assert!(faults.contains("no space for the journal") && faults.contains("No space left on device"), "{faults}");
    assert_eq!(node["journals"][0]["state"], "waiting");
    assert!(volume.free_bytes() < MIB, "{} bytes are free", volume.free_bytes());
    let full = daemon.number("/journals/0/durable");
    let checked = lab.run(["status", "--check"]);
    assert_eq!(checked.status.code(), Some(4), "{checked:?}");

    volume.free();
    wait_until("what has space now is written", || daemon.number("/journals/0/durable") > full + 16 * MIB);
    wait_until_held_back(&senders);
    assert_eq!(sink.count(), 0);

    sink.resume();
    let got = sink.wait_for(count);
    for sender in senders {
        sender.finish().unwrap();
    }
    assert_exactly(&got, &sent);
    daemon.wait_for("/outputs/out/acknowledged", count as u64);
    wait_until("nothing is wrong any more", || daemon.node()["faults"].as_array().is_some_and(Vec::is_empty));
    assert!(daemon.peak_memory() < MEMORY_BYTES_MAX, "{} bytes of memory", daemon.peak_memory());
    daemon.stop();
    assert_eq!(sink.count(), count, "nothing came twice");
}

#[test]
fn a_file_on_a_full_disk_holds_no_other_output_back_and_gets_every_line_whole_later() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let volume = Volume::mounted_at(lab.path("archive"), 32 * MIB);
    volume.fill_but(3 * MIB);
    let sink = Sink::tcp(v4(output), Framing::Lf);
    let daemon = lab.start(&format!(
        r#"
[[input.syslog]]
name = "net"
listen = "tcp://127.0.0.1:{input}"

[[output.syslog]]
name = "siem"
to = "tcp://127.0.0.1:{output}"

[[output.file]]
name = "archive"
path = {:?}
retry = {{ min = "10ms", max = "100ms" }}
"#,
        volume.path("log"),
    ));
    let messages = thick("line", 10_000);
    let sender = connect_and_send(v4(input), &lines(&messages));
    assert_same(&sink.wait_for(messages.len()), &messages);
    daemon.wait_for("/outputs/siem/backlog_messages", 0);

    wait_until("the file's error is in the status", || {
        let archive = &daemon.node()["outputs"]["archive"];
        archive["last_error"].as_str().is_some_and(|error| error.contains("No space left on device"))
            && archive["connected"] == false
    });
    assert!(daemon.number("/outputs/archive/backlog_messages") > 0);
    assert!(daemon.number("/outputs/archive/retries") > 0);
    assert_eq!(daemon.node()["journals"][0]["state"], "writing", "the journal has another disk");

    volume.free();
    daemon.wait_for("/outputs/archive/backlog_messages", 0);
    drop(sender);
    daemon.stop();
    let file = std::fs::read(volume.path("log")).unwrap();
    assert_eq!(file.last(), Some(&b'\n'), "the last line has its end");
    let written: HashSet<&[u8]> = file.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    let sent: HashSet<&[u8]> = messages.iter().map(Vec::as_slice).collect();
    let torn: Vec<String> = written.difference(&sent).map(|line| line.escape_ascii().to_string()).collect();
    assert!(torn.is_empty(), "no such line was sent: {torn:?}");
    assert_eq!(written.len(), sent.len(), "lines that are there");
}
