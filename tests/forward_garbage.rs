//! Ten thousand connections of random, cut and oversized bytes: the daemon stays small and goes on answering.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::forward::{Client, bin_of, entries, entry, forward_mode, gzip, message_mode, packed, str_of};
use common::{Lab, free_port, v4};

const CONNECTIONS: usize = 10_000;
const AT_A_TIME: usize = 32;
const RESIDENT_BYTES_MAX: u64 = 300 << 20;

/// Something that a connection may be given.
fn garbage(random: &mut fastrand::Rng, bomb: &[u8]) -> Vec<u8> {
    let sound = || {
        vec![
            message_mode(b"tag", "text", Some(b"id")),
            forward_mode(b"tag", "n", 20, Some(b"id")),
            packed(b"tag", &entries("n", 50), Some(b"id")),
            packed(b"tag", &gzip(&entries("n", 50)), Some(b"id")),
        ]
    };
    match random.u8(..8) {
        0 => (0..random.usize(1..4096)).map(|_| random.u8(..)).collect(),
        1 => {
            let frame = sound().swap_remove(random.usize(..4));
            frame[..random.usize(..frame.len())].to_vec()
        }
        2 => {
            let mut frame = sound().concat();
            for _ in 0..random.usize(1..8) {
                let at = random.usize(..frame.len());
                frame[at] = random.u8(..);
            }
            frame
        }
        3 => [&b"\x92\xa3tag"[..], &[random.choice([0xdd, 0xc6, 0xdf, 0xc9, 0xdb]).unwrap()], &[0xff; 4]].concat(),
        // Claims much, gives a little.
        4 => [&b"\x92\xa3tag\xc6\x03\xff\xff\xff"[..], &vec![b'x'; random.usize(..200_000)]].concat(),
        5 => [&b"\x92"[..], &str_of(&[b't'; 70_000]), &bin_of(&entry("x"))].concat(),
        6 => packed(b"tag", bomb, Some(b"bomb")),
        _ => [&[0x91; 100][..], b"\xdc\xff\xff", &vec![0x93; 10_000]].concat(),
    }
}

#[test]
fn the_daemon_outlives_ten_thousand_connections_of_garbage() {
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let (lab, port) = (Lab::new(), free_port());
    let daemon = lab.start(&format!(
        "[[input.forward]]\nname = \"apps\"\nlisten = \":{port}\"\nmax_chunk = \"4MiB\"\n[[output.file]]\npath = \"out\"\n\
         match = {{ tag = \"none\" }}\n"
    ));
    let bomb = gzip(&entry(&"0".repeat(17 << 20)));
    let left = AtomicUsize::new(CONNECTIONS);
    std::thread::scope(|scope| {
        for worker in 0..AT_A_TIME as u64 {
            let (left, bomb) = (&left, &bomb);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed.wrapping_add(worker));
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                    let mut client = Client::connect(v4(port));
                    client.try_send(&garbage(&mut random, bomb));
                    if random.bool() {
                        client.finish_if_open();
                        client.read_to_close();
                    }
                }
            });
        }
    });
    let mut client = Client::connect(v4(port));
    client.send(&packed(b"tag", &entry("still here"), Some(b"still")));
    client.expect_ack(b"still");
    drop(client);
    daemon.wait_for("/inputs/apps/connections", 0);
    let resident = daemon.resident_memory();
    println!(
        "resident {resident} bytes, at most {}; {}",
        daemon.peak_memory(),
        daemon.node()["inputs"]["apps"]["rejected"]
    );
    assert!(resident < RESIDENT_BYTES_MAX, "{resident} bytes");
    daemon.stop();
}
