//! See `targets/tcp_image.rs`.

#![no_main]

#[path = "../targets/tcp_image.rs"]
mod tcp_image;

libfuzzer_sys::fuzz_target!(|data: &[u8]| tcp_image::run(data));
