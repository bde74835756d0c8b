//! See `targets/batch.rs`.

#![no_main]

#[path = "../targets/batch.rs"]
mod batch;

libfuzzer_sys::fuzz_target!(|data: &[u8]| batch::run(data));
