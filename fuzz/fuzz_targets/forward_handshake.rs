//! See `targets/forward_handshake.rs`.

#![no_main]

#[path = "../targets/forward_handshake.rs"]
mod forward_handshake;

libfuzzer_sys::fuzz_target!(|data: &[u8]| forward_handshake::run(data));
