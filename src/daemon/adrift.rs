//! The own journal whose disk went back in time: a restored snapshot, or one that lost what it had called safe.
//!
//! The other node's mirror has more of it than its writer, so a position may mean one message there and another here. The
//! writer begins a new journal; the old one is an orphan from then on, and the mirror the copy of it that counts and that
//! is delivered. What this node has taken in since it went back is nowhere else: the new journal takes it in again, under
//! new ids, with whatever else was not delivered as far as this node knows. Of that, what the mirror has too is delivered
//! twice.
//!
//! The steps can be repeated, so a crash between them costs repeats at most: [`set_aside`] at the end of the run that found
//! out, [`take_in`] at the next start, and only when that is durable the directory goes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::journal::{self, FileStorage, Journal, OWN_DIRECTORY, Read, Settings};
use crate::proto::batch::{Batch, BatchBuilder};
use crate::proto::envelope::Kind;
use crate::proto::position::JournalId;

/// Name below `data_dir` of the directory that has one for each journal that was set aside.
const DIRECTORY: &str = "adrift";

/// Gives the own journal's directory another name, so that the next start makes a new one.
pub(super) fn set_aside(data_dir: &Path, journal: &JournalId) -> io::Result<()> {
    let parent = data_dir.join(DIRECTORY);
    fs::create_dir_all(&parent)?;
    fs::rename(data_dir.join(OWN_DIRECTORY), parent.join(journal.incarnation.to_string()))?;
    // First where it is now: in between it is in both places, or in one.
    File::open(parent)?.sync_all()?;
    File::open(data_dir)?.sync_all()
}

/// The directories that were set aside.
pub(super) fn found(data_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data_dir.join(DIRECTORY)).map_or_else(|_| Vec::new(), Iterator::collect);
    entries.into_iter().flatten().map(|entry| entry.path()).collect()
}

/// Takes into `own` what was not delivered of the journal in `directory`, which then goes. What cannot be read is logged,
/// and the directory stays.
pub(super) async fn take_in(directory: PathBuf, settings: Settings, outputs: Vec<String>, own: Arc<Journal>) {
    let opened = {
        let (directory, node) = (directory.clone(), own.id().clone());
        tokio::task::spawn_blocking(move || open(&directory, &node, settings, &outputs)).await
    };
    let old = match opened {
        Ok(Ok(old)) => old,
        Ok(Err(why)) => return tracing::error!(directory = %directory.display(), "{why}"),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    match copy(&old, &own).await {
        Ok(messages) => {
            let removed = tokio::task::spawn_blocking(move || {
                old.close(Instant::now());
                fs::remove_dir_all(&directory)
            });
            if let Ok(Err(error)) = removed.await {
                tracing::warn!(%error, "cannot remove a journal that was taken in again");
            }
            tracing::warn!(messages, "took in again what was not delivered of the journal that went back in time");
        }
        Err(refused) => {
            tracing::warn!("the next start takes in the rest of the journal that went back in time: {refused}")
        }
    }
}

fn open(directory: &Path, own: &JournalId, settings: Settings, outputs: &[String]) -> Result<Journal, String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot read the journal that went back in time: {error}");
    let storage = FileStorage::open(directory).map_err(|error| failed(&error))?;
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    Journal::open(Arc::new(storage), &own.node, settings, &outputs, own.incarnation).map_err(|error| failed(&error))
}

/// Copies what no output, or not every one, has delivered; returns how many messages those are.
async fn copy(old: &Journal, own: &Journal) -> Result<u64, journal::Refused> {
    let progress = old.progress();
    let (appender, mut reader) = (own.appender(), old.reader(progress.delivered.position));
    let mut taken = own.progress().appended;
    let mut messages = 0;
    while reader.position() < progress.durable.position {
        // What is damaged was logged.
        let Read::Batches(batches) = reader.next().await else { continue };
        for batch in batches {
            taken = appender.append(again(&batch)).await?;
            messages += u64::from(batch.messages());
        }
    }
    let (mut durable, mut state) = (own.durable(), own.state());
    tokio::select! {
        // Both senders live in the journal.
        _ = durable.wait_for(|durable| *durable >= taken) => Ok(messages),
        _ = state.wait_for(|state| matches!(state, journal::State::Poisoned(_))) => Err(journal::Refused::Closed),
    }
}

/// The same messages, to stand elsewhere.
fn again(batch: &Batch) -> BatchBuilder {
    let mut builder = BatchBuilder::with_capacity(batch.bytes().len());
    for envelope in batch.envelopes() {
        builder.set_origin(&envelope.origin);
        match envelope.kind {
            Kind::Syslog => builder.push(envelope.flags, envelope.payload),
            Kind::Forward(chunk) => builder.push_chunk(envelope.flags, &chunk, envelope.payload),
        }
    }
    builder
}
