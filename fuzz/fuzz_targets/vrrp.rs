//! See `targets/vrrp.rs`.

#![no_main]

#[path = "../targets/vrrp.rs"]
mod vrrp;

libfuzzer_sys::fuzz_target!(|data: &[u8]| vrrp::run(data));
