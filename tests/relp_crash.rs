//! `kill -9` of the real daemon at random moments, while RELP clients keep their windows full.
//!
//! A round: several clients send numbered messages and note each answer, the daemon is killed, it starts anew. Every message
//! that was ever answered must be in the journal, byte for byte; what was not answered is sent again in the next round, as
//! librelp does. How many stand there twice is printed: nothing in a message tells a repeat.
//!
//! How often, and from which seed: see `common::kills`.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;

use common::kills::kill_at_random;
use common::relp::Client;
use common::{Lab, free_port, journal, v4};

/// Messages that librelp sends ahead of their answers.
const WINDOW: usize = 128;

/// A client's message: the whole of it follows from these numbers, up to some kilobytes.
fn message(client: usize, number: usize) -> Vec<u8> {
    let text = format!("<13>1 - host app - - - client {client} message {number} ");
    [text.into_bytes(), vec![b'x'; number * 7919 % 4000]].concat()
}

/// One client through a round: sends from `answered` on until the connection breaks; returns how many are.
fn send_until_the_end(client: usize, mut answered: usize, port: u16) -> usize {
    let mut connection = Client::connect(v4(port));
    let (first, mut sent) = (answered, answered);
    loop {
        while sent < answered + WINDOW {
            if !connection.try_send("syslog", &message(client, sent)) {
                break;
            }
            sent += 1;
        }
        let Some(frame) = connection.next() else { return answered };
        let expected = u32::try_from(answered - first + 2).unwrap();
        assert_eq!((frame.txnr, &frame.data[..]), (expected, &b"200 OK"[..]), "in order, each once");
        answered += 1;
    }
}

#[test]
fn no_answered_message_is_missing_after_a_kill() {
    let port = free_port();
    let input = format!("[[input.relp]]\nname = \"relp\"\nlisten = \":{port}\"");
    kill_at_random(&input, move |client, from| send_until_the_end(client, from, port), judge);
}

/// Fails if one of each client's answered messages `from` on is missing; returns how many stand in the journal, and how
/// many again.
fn judge(lab: &Lab, from: &[usize], answered: &[usize], round: u64) -> (usize, usize) {
    let payloads = journal::payloads(&lab.path("data"));
    let mut seen: HashMap<&[u8], usize> = HashMap::new();
    payloads.iter().for_each(|payload| *seen.entry(payload).or_default() += 1);
    for (client, (from, to)) in from.iter().zip(answered).enumerate() {
        for number in *from..*to {
            let is_there = seen.contains_key(&message(client, number)[..]);
            assert!(is_there, "round {round}: client {client} message {number} was answered and is lost");
        }
    }
    (payloads.len(), payloads.len() - seen.len())
}
