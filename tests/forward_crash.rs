//! `kill -9` of the real daemon at random moments, while clients pipeline acknowledged chunks.
//!
//! A round: several clients send numbered chunks and note each acknowledgement, the daemon is killed, it starts anew.
//! Every chunk that was ever acknowledged must be in the journal, byte for byte; what was not acknowledged is sent again
//! with the same id in the next round, and must be acknowledged then. How many stand there twice is printed: the window
//! of repeats is rebuilt from the journal, so there are few.
//!
//! How often, and from which seed: see `common::kills`.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;

use common::forward::{Client, entries, forward_mode, gzip, journaled, message_mode, packed};
use common::kills::kill_at_random;
use common::{Lab, free_port, v4};

/// Chunks that a client sends ahead of their acknowledgements.
const AHEAD: usize = 32;

/// Which chunk: the whole of it follows from these numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    client: usize,
    number: usize,
}

impl Key {
    fn id(self) -> Vec<u8> {
        format!("{}-{}\n", self.client, self.number).into_bytes()
    }

    fn name(self) -> String {
        format!("client {} chunk {}", self.client, self.number)
    }

    /// Of mixed modes and sizes, up to some ten kilobytes.
    fn frame(self) -> Vec<u8> {
        let id = self.id();
        match self.number % 4 {
            0 => message_mode(b"crash", &self.name(), Some(&id)),
            1 => forward_mode(b"crash", &self.name(), 20, Some(&id)),
            2 => packed(b"crash", &entries(&self.name(), 300), Some(&id)),
            _ => packed(b"crash", &gzip(&entries(&self.name(), 100)), Some(&id)),
        }
    }

    /// What of it must stand in the journal.
    fn entries(self) -> Vec<u8> {
        match self.number % 4 {
            0 => common::forward::entry(&self.name()),
            1 => entries(&self.name(), 20),
            2 => entries(&self.name(), 300),
            _ => gzip(&entries(&self.name(), 100)),
        }
    }
}

/// One client through a round: sends from `acknowledged` on until the connection breaks; returns how many are.
fn send_until_the_end(client: usize, mut acknowledged: usize, port: u16) -> usize {
    let mut connection = Client::connect(v4(port));
    let mut sent = acknowledged;
    loop {
        while sent < acknowledged + AHEAD {
            if !connection.try_send(&Key { client, number: sent }.frame()) {
                break;
            }
            sent += 1;
        }
        let Some(id) = connection.next_ack() else { return acknowledged };
        assert_eq!(id, Key { client, number: acknowledged }.id(), "in order, each once");
        acknowledged += 1;
    }
}

#[test]
fn no_acknowledged_chunk_is_missing_after_a_kill() {
    let port = free_port();
    let input = format!("[[input.forward]]\nname = \"apps\"\nlisten = \":{port}\"");
    kill_at_random(&input, move |client, from| send_until_the_end(client, from, port), judge);
}

/// Fails if one of each client's acknowledged chunks `from` on is missing or another than was sent; returns how many there
/// are, and how many again.
fn judge(lab: &Lab, from: &[usize], acknowledged: &[usize], round: u64) -> (usize, usize) {
    // Sound batches only, as the next start would see them.
    let chunks = journaled(&lab.path("data"));
    let mut seen: HashMap<&[u8], Vec<&[u8]>> = HashMap::new();
    for chunk in &chunks {
        seen.entry(chunk.id.as_deref().unwrap()).or_default().push(&chunk.entries);
    }
    for (client, (from, to)) in from.iter().zip(acknowledged).enumerate() {
        for number in *from..*to {
            let key = Key { client, number };
            let copies = seen.get(&key.id()[..]);
            let copies = copies.unwrap_or_else(|| panic!("round {round}: {key:?} was acknowledged and is lost"));
            let sent = key.entries();
            assert!(copies.iter().all(|copy| *copy == sent), "round {round}: {key:?} is another");
        }
    }
    (chunks.len(), chunks.len() - seen.len())
}
