//! See `targets/syslog_view.rs`.

#![no_main]

#[path = "../targets/syslog_view.rs"]
mod syslog_view;

libfuzzer_sys::fuzz_target!(|data: &[u8]| syslog_view::run(data));
