//! Time per message of a batch's way: `cargo bench --bench batch`.
//!
//! No framework, as in `syslog.rs`: the best of several rounds is printed, because the machine is shared.

use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use twinlog::proto::batch::{Batch, BatchBuilder, Stamp};
use twinlog::proto::envelope::{Flags, Origin, Timestamp, Transport};
use twinlog::proto::position::{Incarnation, Mark};

/// A full batch of a busy input.
const BATCH_BYTES: usize = 1024 * 1024;

fn main() {
    let stamp = Stamp { incarnation: Incarnation(1), node_hash: 2 };
    for size in [64, 256, 1024] {
        let messages = BATCH_BYTES / size;
        let payload = vec![b'x'; size];
        let bytes = fill(&payload, messages, Vec::new()).seal(stamp, Mark::default()).bytes().clone();
        println!("batch of {messages} messages, {size} bytes each");
        let per_message = |name: &str, round: &mut dyn FnMut()| {
            println!("  {name:<36} {:7.2} ns", best(round) / messages as f64);
        };
        let mut memory = Vec::with_capacity(bytes.len());
        per_message("encode", &mut || {
            memory = black_box(fill(&payload, messages, std::mem::take(&mut memory)))
                .seal(stamp, Mark::default())
                .into_memory()
                .expect("nobody else holds it");
        });
        per_message("of it the checksum", &mut || {
            black_box(crc32c::crc32c(black_box(&bytes)));
        });
        per_message("check what was read", &mut || drop(black_box(decode(&bytes))));
        let batch = decode(&bytes);
        per_message("look at every message", &mut || {
            let lengths: usize = batch.envelopes().map(|envelope| envelope.payload.len()).sum();
            assert_eq!(lengths, messages * size);
        });
        let mut out = Vec::with_capacity(bytes.len());
        per_message("copy every message out", &mut || {
            out.clear();
            batch.envelopes().for_each(|envelope| out.extend_from_slice(envelope.payload));
            black_box(out.len());
        });
    }
}

fn fill(payload: &[u8], messages: usize, memory: Vec<u8>) -> BatchBuilder {
    let mut builder = BatchBuilder::in_memory(memory);
    let (received_at, source, transport) = (Timestamp(1), "192.0.2.7:514".parse().ok(), Transport::Tcp);
    builder.set_origin(&Origin { received_at, source, transport, input: "net", tag: b"" });
    (0..messages).for_each(|_| builder.push(Flags::NONE, black_box(payload)));
    builder
}

fn decode(bytes: &Bytes) -> Batch {
    Batch::decode(black_box(bytes)).expect("a sound batch")
}

/// Nanoseconds of the best of several rounds.
fn best(round: &mut dyn FnMut()) -> f64 {
    let rounds = (0..200).map(|_| {
        let begin = Instant::now();
        round();
        begin.elapsed()
    });
    rounds.min().expect("there are rounds").as_nanos() as f64
}
