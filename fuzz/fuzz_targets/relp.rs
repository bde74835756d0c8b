//! See `targets/relp.rs`.

#![no_main]

#[path = "../targets/relp.rs"]
mod relp;

libfuzzer_sys::fuzz_target!(|data: &[u8]| relp::run(data));
