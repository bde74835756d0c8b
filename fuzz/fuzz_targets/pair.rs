//! See `targets/pair.rs`.

#![no_main]

#[path = "../targets/pair.rs"]
mod pair;

libfuzzer_sys::fuzz_target!(|data: &[u8]| pair::run(data));
