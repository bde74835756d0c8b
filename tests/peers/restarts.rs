//! One side goes and comes back while the other sends.

use std::collections::HashSet;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::common::{Lab, connect_and_send, free_port, lines, numbered, v4, wait_until, wait_until_within};
use crate::rsyslog::{follow, start};

const COUNT: usize = 20_000;

/// Writes a hundred lines at a time, about 5 000 a second, while `restart` is called three times.
pub fn write_meanwhile(messages: &[Vec<u8>], mut to: impl Write + Send, mut restart: impl FnMut()) {
    let written = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let begun = Instant::now();
            for (number, chunk) in messages.chunks(100).enumerate() {
                to.write_all(&lines(chunk)).unwrap();
                written.fetch_add(chunk.len(), Ordering::Relaxed);
                // The pace of a sender, not a wait for something: the restart has to find messages on their way.
                let due = Duration::from_millis(20) * u32::try_from(number).expect("few chunks");
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
            }
        });
        for quarter in 1..=3 {
            wait_until("more is written", || written.load(Ordering::Relaxed) >= messages.len() * quarter / 4);
            restart();
        }
    });
}

/// How many of `messages` no line ends with, and how many lines are there more than once.
pub fn lost_and_repeated(messages: &[Vec<u8>], lines: &[Vec<u8>], text: impl Fn(&[u8]) -> Vec<u8>) -> (usize, usize) {
    let got: HashSet<Vec<u8>> = lines.iter().map(|line| text(line)).collect();
    let lost = messages.iter().filter(|message| !got.contains(*message)).count();
    (lost, lines.len() - got.len())
}

#[test]
fn omfwd_loses_nothing_while_twinlog_restarts() {
    let (lab, input) = (Lab::new(), free_port());
    let config = crate::input_to_file("lf", "tcp", input);
    let mut daemon = Some(lab.start(&config));
    let messages: Vec<Vec<u8>> = (0..COUNT).map(|number| format!("line {number}").into_bytes()).collect();
    let file = std::fs::File::create(lab.path("device.log")).unwrap();
    let rsyslog = start(
        &lab,
        "sender",
        &format!(
            "{}action(type=\"omfwd\" target=\"127.0.0.1\" port=\"{input}\" protocol=\"tcp\" template=\"wire\" \
             action.resumeRetryCount=\"-1\" action.resumeInterval=\"1\" \
             queue.type=\"LinkedList\" queue.size=\"100000\" queue.timeoutEnqueue=\"60000\")\n",
            follow(&lab)
        ),
    );
    write_meanwhile(&messages, file, || {
        daemon.take().expect("it runs").stop();
        daemon = Some(lab.start(&config));
    });
    let text = |line: &[u8]| {
        let at = line.windows(5).position(|bytes| bytes == b"line ").expect("our text");
        line[at..].to_vec()
    };
    let last = messages.last().expect("some were made");
    wait_until_within(Duration::from_secs(40), "the last line arrives", || {
        lab.lines_of("lf.out").last().is_some_and(|line| line.ends_with(last))
    });
    rsyslog.stop();
    daemon.expect("it runs").stop();
    let (lost, repeated) = lost_and_repeated(&messages, &lab.lines_of("lf.out"), text);
    eprintln!("omfwd while twinlog restarts three times: {lost} of {COUNT} lost, {repeated} repeated");
    assert_eq!(lost, 0);
}

#[test]
fn nothing_is_lost_while_the_receiving_rsyslog_restarts() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let receiver = format!(
        r#"
module(load="imtcp")
template(name="raw" type="string" string="%rawmsg%\n")
input(type="imtcp" address="127.0.0.1" port="{output}" ruleset="all")
ruleset(name="all") {{ action(type="omfile" file={:?} template="raw") }}
"#,
        lab.path("received")
    );
    let mut rsyslog = Some(start(&lab, "receiver", &receiver));
    let daemon = lab.start(&format!(
        r#"
[[input.syslog]]
listen = "tcp://127.0.0.1:{input}"

[[output.syslog]]
name = "out"
to = "tcp://127.0.0.1:{output}"
retry = {{ min = "50ms", max = "200ms" }}
"#
    ));
    wait_until("rsyslog listens", || daemon.node()["outputs"]["out"]["connected"] == true);
    let messages = numbered("m", COUNT);
    let sender = connect_and_send(v4(input), b"");
    write_meanwhile(&messages, sender, || {
        rsyslog.take().expect("it runs").stop();
        rsyslog = Some(start(&lab, "receiver", &receiver));
    });
    wait_until("the last message arrives", || lab.lines_of("received").last() == messages.last());
    rsyslog.expect("it runs").stop();
    daemon.stop();
    let (lost, repeated) = lost_and_repeated(&messages, &lab.lines_of("received"), <[u8]>::to_vec);
    eprintln!("rsyslog restarts three times: {lost} of {COUNT} lost, {repeated} repeated");
    assert_eq!(lost, 0);
}
