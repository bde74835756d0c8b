//! What a journal holds, read from its files.

use std::path::Path;

use bytes::Bytes;
use twinlog::journal::segment::{Found, HEADER_LEN, Header, Scan};
use twinlog::proto::batch::{Batch, Stamp};

/// Every sound batch in the journal below `data_dir`, in order, as far as it is written: what the next start would see.
pub fn batches(data_dir: &Path) -> Vec<Batch> {
    let directory = data_dir.join("own");
    let mut files: Vec<_> =
        std::fs::read_dir(&directory).expect("a journal").map(|file| file.expect("a file").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "seg"));
    files.sort();
    let mut batches = Vec::new();
    for file in files {
        let bytes = Bytes::from(std::fs::read(file).expect("a segment"));
        let Ok(header) = Header::decode(&bytes) else { continue };
        let scan = Scan::new(bytes.slice(HEADER_LEN..), header.start.position, Stamp::from(&header.journal));
        batches.extend(scan.filter_map(|found| match found {
            Found::Batch(batch) => Some(batch),
            _ => None,
        }));
    }
    batches
}

/// The payloads of every envelope there, in order.
pub fn payloads(data_dir: &Path) -> Vec<Vec<u8>> {
    batches(data_dir).iter().flat_map(|batch| batch.envelopes().map(|envelope| envelope.payload.to_vec())).collect()
}
