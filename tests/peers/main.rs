//! The real binary and the programs it lives among: rsyslog, syslog-ng with its loggen, util-linux logger, and the
//! client libraries of fluent-forward.
//!
//! What a peer sends is compared byte for byte with what the same peer wrote into a file of its own, and what a peer
//! received with what was sent. `install.sh` beside this file brings the programs; a missing one is a failure, not a
//! test passed over.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod forward;
mod logger;
mod programs;
mod relp;
mod restarts;
mod rsyslog;
mod syslog_ng;
mod tls;

/// Lines that must come through as they are: text, UTF-8, bytes that are no UTF-8, tabs, quotes, digits first, length.
fn device_lines(count: usize) -> Vec<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = vec![
        b"2026-03-10 12:00:00 begins with a date".to_vec(),
        b"42 begins with a number".to_vec(),
        "umlauts äöü, 日本語, emoji 🪵".into(),
        b"no UTF-8: \xff\xfe \xc3\x28".to_vec(),
        b"tab\there, \"quotes\", back\\slash, %per cent%, [brackets]".to_vec(),
        vec![b'x'; 7000],
    ];
    lines.extend((0..count.saturating_sub(lines.len())).map(|number| format!("line {number}").into_bytes()));
    lines
}

/// A twinlog input that keeps its messages as lines of the file `NAME.out`.
fn input_to_file(name: &str, protocol: &str, port: u16) -> String {
    format!(
        r#"
[[input.syslog]]
name = "{name}"
listen = "{protocol}://127.0.0.1:{port}"

[[output.file]]
name = "{name}"
path = "{name}.out"
match = {{ input = "{name}" }}
"#
    )
}
