//! See `targets/forward.rs`.

#![no_main]

#[path = "../targets/forward.rs"]
mod forward;

libfuzzer_sys::fuzz_target!(|data: &[u8]| forward::run(data));
