//! The fuzzers' corpora through the fuzzers' own functions: what fuzzing once found stays found.
//!
//! The targets are in `fuzz/targets`; `fuzz/README.md` says how to look for more.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

use std::path::Path;

#[path = "../fuzz/targets/batch.rs"]
mod batch;
#[path = "../fuzz/targets/config.rs"]
mod config;
#[path = "../fuzz/targets/forward.rs"]
mod forward;
#[path = "../fuzz/targets/forward_handshake.rs"]
mod forward_handshake;
#[path = "../fuzz/targets/framing.rs"]
mod framing;
#[path = "../fuzz/targets/pair.rs"]
mod pair;
#[path = "../fuzz/targets/relp.rs"]
mod relp;
#[path = "../fuzz/targets/syslog_view.rs"]
mod syslog_view;
#[path = "../fuzz/targets/tcp_image.rs"]
mod tcp_image;
#[path = "../fuzz/targets/vrrp.rs"]
mod vrrp;

/// So many files of so many bytes: corpora are kept for their meaning, not for their number.
const FILES_MAX: usize = 200;
const BYTES_MAX: u64 = 2048;

#[test]
fn the_corpus_of_framing_passes() {
    replay("framing", framing::run);
}

#[test]
fn the_corpus_of_syslog_view_passes() {
    replay("syslog_view", syslog_view::run);
}

#[test]
fn the_corpus_of_batch_passes() {
    replay("batch", batch::run);
}

#[test]
fn the_corpus_of_config_passes() {
    replay("config", config::run);
}

#[test]
fn the_corpus_of_forward_passes() {
    replay("forward", forward::run);
}

#[test]
fn the_corpus_of_forward_handshake_passes() {
    replay("forward_handshake", forward_handshake::run);
}

#[test]
fn the_corpus_of_pair_passes() {
    replay("pair", pair::run);
}

#[test]
fn the_corpus_of_relp_passes() {
    replay("relp", relp::run);
}

#[test]
fn the_corpus_of_tcp_image_passes() {
    replay("tcp_image", tcp_image::run);
}

#[test]
fn the_corpus_of_vrrp_passes() {
    replay("vrrp", vrrp::run);
}

fn replay(target: &str, run: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = directory.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty() && files.len() <= FILES_MAX, "{} files", files.len());
    for file in files {
        let input = std::fs::read(&file).unwrap();
        assert!(input.len() as u64 <= BYTES_MAX, "{} has {} bytes", file.display(), input.len());
        if std::panic::catch_unwind(|| run(&input)).is_err() {
            panic!("{target} fails on {}", file.display());
        }
    }
}
