//! See `targets/framing.rs`.

#![no_main]

#[path = "../targets/framing.rs"]
mod framing;

libfuzzer_sys::fuzz_target!(|data: &[u8]| framing::run(data));
