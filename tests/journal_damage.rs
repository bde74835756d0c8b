//! Damage, exhaustively: every cut and every flipped bit of a small journal, and what else may stand in a directory.
//!
//! Whatever is wrong, recovery and reading never panic and never invent a message; they keep every batch that is still
//! sound, before the damage and after it; and writing goes on at a place that no message ever had.

#![allow(clippy::unwrap_used)]

mod world;

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::Arc;

use twinlog::journal::cursors::{self, Saved};
use twinlog::journal::recovery::{self, Finding, OpenError, Recovered};
use twinlog::journal::segment::{self, HEADER_LEN, Header};
use twinlog::journal::storage::Storage;
use twinlog::journal::writer::{Limits, Writer};
use twinlog::proto::batch::{self, Batch};
use twinlog::proto::position::{Incarnation, JournalId, Mark, Position};
use world::storage::{EIO, SimStorage};

const LIMITS: Limits = Limits { segment_size: 620, max_size: 1 << 30 };

type Files = BTreeMap<String, Vec<u8>>;

/// A journal of three segments as it is found after an orderly end; or of three that stand in the files of removed ones, as
/// it is found after a crash, and so are longer than what was written.
struct Sample {
    files: Files,
    batches: Vec<Batch>,
    end: Mark,
}

impl Sample {
    fn new() -> Sample {
        Sample::written_after(0)
    }

    fn recycled() -> Sample {
        let sample = Sample::written_after(4);
        for (file, end) in sample.segments().iter().zip(sample.ends()) {
            let start = segment::position_of(file).unwrap();
            let written = HEADER_LEN as u64 + end.bytes_since(start);
            assert!(written < LIMITS.segment_size, "{file} has old bytes behind its batches");
            assert_eq!(sample.files[file].len() as u64, LIMITS.segment_size);
        }
        sample
    }

    fn both() -> [Sample; 2] {
        [Sample::new(), Sample::recycled()]
    }

    /// Writes the sample after so many segments, of which the last is removed at the end and the others before it begins.
    fn written_after(removed: usize) -> Sample {
        let storage = Arc::new(SimStorage::new(0));
        let recovered = recovery::recover(&*storage, &world::node(), world::INCARNATION).unwrap();
        let mut writer = Writer::new(storage.clone(), &recovered, LIMITS).unwrap();
        // Four of these fill a segment to its last byte.
        for _ in 0..4 * removed {
            world::append(&mut writer, &[b"as before"]).unwrap();
        }
        writer.trim(writer.appended().position).unwrap();
        assert_eq!(writer.bytes(), if removed > 0 { LIMITS.segment_size } else { 0 });
        let texts: [&[&[u8]]; 7] =
            [&[b"<34>one", b"two"], &[b"three"], &[b""], &[b"four", b"five"], &[b"six"], &[b"TWB1"], &[b"seven", b"8"]];
        let batches: Vec<Batch> = texts.iter().map(|messages| world::append(&mut writer, messages).unwrap()).collect();
        let end = writer.commit().unwrap();
        writer.trim(batches[0].start().position).unwrap();
        assert_eq!(writer.index().totals().0, 3);
        let mut saved = recovered.saved;
        for delivered in &batches[..3] {
            let marks = [("siem".to_owned(), delivered.end())].into();
            cursors::save(&*storage, world::INCARNATION, &mut saved, marks).unwrap();
        }
        Sample { files: storage.files(), batches, end }
    }

    fn segments(&self) -> Vec<String> {
        self.files.keys().filter(|name| segment::position_of(name).is_some()).cloned().collect()
    }

    /// Where the batches of each segment end.
    fn ends(&self) -> Vec<Position> {
        let starts = self.segments().into_iter().skip(1).map(|next| segment::position_of(&next).unwrap());
        starts.chain([self.end.position]).collect()
    }

    fn end_of(&self, file: &str) -> Position {
        let index = self.segments().iter().position(|name| name == file).unwrap();
        self.ends()[index]
    }

    /// The batches whose last byte stands before byte `length` of this file.
    fn whole_in(&self, file: &str, length: usize) -> Vec<&Batch> {
        let start = segment::position_of(file).unwrap();
        let end = start.advance(length.saturating_sub(HEADER_LEN) as u64);
        self.batches
            .iter()
            .filter(|batch| {
                let outside = batch.start().position < start || batch.start().position >= self.end_of(file);
                outside || batch.end().position <= end
            })
            .collect()
    }

    /// All but the batch that has byte `at` of this file.
    fn without(&self, file: &str, at: usize) -> Vec<&Batch> {
        let position = at.checked_sub(HEADER_LEN).map(|at| segment::position_of(file).unwrap().advance(at as u64));
        let position = position.filter(|position| *position < self.end_of(file));
        let Some(position) = position else { return self.batches.iter().collect() };
        self.batches.iter().filter(|b| position < b.start().position || b.end().position <= position).collect()
    }
}

struct Opened {
    recovered: Recovered,
    read: Vec<Batch>,
}

/// Opens the journal, reads it, recovers it again, writes on, and reads it once more.
fn open(sample: &Sample, files: &Files) -> Opened {
    let storage = Arc::new(SimStorage::with_files(files));
    let recovered = recovery::recover(&*storage, &world::node(), world::INCARNATION).unwrap();
    let again = recovery::recover(&*storage, &world::node(), world::INCARNATION).unwrap();
    assert_eq!(
        (&again.segments, again.end, again.continues),
        (&recovered.segments, recovered.end, recovered.continues)
    );
    assert_eq!((&again.journal, &again.saved), (&recovered.journal, &recovered.saved));
    let mut writer = Writer::new(storage.clone(), &again, LIMITS).unwrap();
    let read = world::read_all(&*storage, writer.index());
    for batch in &read {
        assert!(sample.batches.contains(batch), "invented: {batch:?}");
    }
    let new = world::append(&mut writer, &[b"afterwards"]).unwrap();
    writer.commit().unwrap();
    let expected: Vec<Batch> = read.iter().cloned().chain([new]).collect();
    assert_eq!(world::read_all(&*storage, writer.index()), expected, "writing on changes nothing that was read");
    let later = recovery::recover(&*storage, &world::node(), world::INCARNATION).unwrap();
    assert_eq!(later.end, writer.appended());
    let writer = Writer::new(storage.clone(), &later, LIMITS).unwrap();
    assert_eq!(world::read_all(&*storage, writer.index()), expected, "a later start finds the same");
    Opened { recovered, read }
}

fn assert_read(read: &[Batch], expected: &[&Batch], what: &str) {
    let read: Vec<&Batch> = read.iter().collect();
    assert_eq!(read, expected, "{what}");
}

#[test]
fn an_untouched_journal_is_read_whole() {
    for sample in Sample::both() {
        let opened = open(&sample, &sample.files);
        assert_eq!(opened.read, sample.batches);
        assert_eq!(opened.recovered.end, sample.end);
        assert_eq!(opened.recovered.findings, []);
        assert_eq!(opened.recovered.saved.marks["siem"], sample.batches[2].end());
    }
}

#[test]
fn a_batch_that_was_being_written_over_old_ones_is_told_from_them() {
    let sample = Sample::recycled();
    let last = sample.segments().pop().unwrap();
    let batch = world::batch(sample.end, &[b"this one was never finished"]);
    let at = HEADER_LEN + sample.end.position.bytes_since(segment::position_of(&last).unwrap()) as usize;
    for written in batch::HEADER_LEN..batch.bytes().len() - 1 {
        let mut files = sample.files.clone();
        files.get_mut(&last).unwrap()[at..at + written].copy_from_slice(&batch.bytes()[..written]);
        let opened = open(&sample, &files);
        assert_eq!(opened.read, sample.batches);
        let torn = Finding::TornTail { from: sample.end.position, bytes: batch.bytes().len() as u64 };
        assert_eq!(opened.recovered.findings, [torn], "{written} bytes were written");
    }
}

#[test]
fn every_cut_of_every_segment_keeps_what_stands_before_it_and_in_the_other_segments() {
    for sample in Sample::both() {
        let segments = sample.segments();
        for file in &segments {
            let written = HEADER_LEN + sample.end_of(file).bytes_since(segment::position_of(file).unwrap()) as usize;
            for length in 0..sample.files[file].len() {
                let mut files = sample.files.clone();
                files.get_mut(file).unwrap().truncate(length);
                let opened = open(&sample, &files);
                assert_read(&opened.read, &sample.whole_in(file, length), &format!("{file} cut to {length}"));
                let inner = file != segments.last().unwrap() && length < written;
                let missing = |finding: &Finding| matches!(finding, Finding::Missing { .. });
                assert_eq!(opened.recovered.findings.iter().any(missing), inner, "{file} cut to {length}");
            }
        }
    }
}

#[test]
fn every_flipped_bit_of_every_segment_costs_one_batch_at_most() {
    for sample in Sample::both() {
        for file in sample.segments() {
            for bit in 0..sample.files[&file].len() * 8 {
                let mut files = sample.files.clone();
                files.get_mut(&file).unwrap()[bit / 8] ^= 1 << (bit % 8);
                let opened = open(&sample, &files);
                assert_read(&opened.read, &sample.without(&file, bit / 8), &format!("{file} bit {bit}"));
            }
        }
    }
}

#[test]
fn every_flipped_bit_of_the_cursors_costs_repeats_at_most() {
    let sample = Sample::new();
    let file = &sample.files["cursors"];
    let marks: Vec<Mark> = sample.batches[..3].iter().map(Batch::end).collect();
    // All that is written in either slot, and some of the zeros behind it.
    let written = (0..file.len()).filter(|at| at % (64 * 1024) < 100 || at % 997 == 0);
    for bit in written.flat_map(|at| (0..8).map(move |bit| at * 8 + bit)) {
        let storage = SimStorage::with_files(&[("cursors".to_owned(), file.clone())].into());
        let mut byte = [0];
        storage.read_at("cursors", bit as u64 / 8, &mut byte).unwrap();
        storage.write_at("cursors", bit as u64 / 8, &[IoSlice::new(&[byte[0] ^ (1 << (bit % 8))])]).unwrap();
        let saved = cursors::load(&storage, world::INCARNATION).unwrap();
        assert!(marks[1..].contains(&saved.marks["siem"]), "bit {bit}: the other slot holds");
    }
    for length in 0..200 {
        let mut files = sample.files.clone();
        files.get_mut("cursors").unwrap().truncate(length * 700);
        assert_eq!(open(&sample, &files).read, sample.batches);
    }
}

#[test]
fn a_failed_save_leaves_the_newest_saved_cursors() {
    let storage = SimStorage::new(1);
    cursors::create(&storage).unwrap();
    let mut saved = Saved::default();
    let marks = |n| BTreeMap::from([("siem".to_owned(), Mark { position: Position(n), ordinal: n })]);
    cursors::save(&storage, world::INCARNATION, &mut saved, marks(1)).unwrap();
    cursors::save(&storage, world::INCARNATION, &mut saved, marks(2)).unwrap();
    for _ in 0..50 {
        storage.fail_call(0, EIO);
        cursors::save(&storage, world::INCARNATION, &mut saved, marks(3)).unwrap_err();
        let found = cursors::load(&storage, world::INCARNATION).unwrap();
        assert!(found.marks == marks(2) || found.marks == marks(3), "{found:?}");
    }
}

#[test]
fn with_every_header_damaged_the_batches_say_which_journal_it_is() {
    for sample in Sample::both() {
        let mut files = sample.files.clone();
        for name in sample.segments() {
            files.get_mut(&name).unwrap()[..HEADER_LEN].fill(0xa5);
        }
        let storage = SimStorage::with_files(&files);
        let recovered = recovery::recover(&storage, &world::node(), Incarnation(1)).unwrap();
        assert_eq!(recovered.journal, world::journal_id());
        assert_eq!(recovered.saved.marks["siem"], sample.batches[2].end());
        let opened = open(&sample, &files);
        assert_eq!(opened.read, sample.batches);
        assert_eq!(opened.recovered.findings.len(), 3);
    }
}

#[test]
fn a_missing_segment_in_the_middle_is_a_gap_and_not_an_end() {
    let sample = Sample::new();
    let mut files = sample.files.clone();
    let middle = &sample.segments()[1];
    files.remove(middle);
    let opened = open(&sample, &files);
    assert_read(&opened.read, &sample.whole_in(middle, 0), "the middle is missing");
    assert_eq!(opened.recovered.end, sample.end);
    let from = segment::position_of(middle).unwrap();
    let to = segment::position_of(&sample.segments()[2]).unwrap();
    assert_eq!(opened.recovered.findings, [Finding::Missing { from, to }]);
}

#[test]
fn writing_goes_on_behind_what_was_delivered_and_lost() {
    let sample = Sample::new();
    let mut files = sample.files.clone();
    let storage = SimStorage::with_files(&files);
    let mut saved = cursors::load(&storage, world::INCARNATION).unwrap();
    cursors::save(&storage, world::INCARNATION, &mut saved, [("siem".to_owned(), sample.end)].into()).unwrap();
    files.insert("cursors".to_owned(), storage.files()["cursors"].clone());
    files.remove(&sample.segments()[2]);
    let opened = open(&sample, &files);
    assert_eq!(opened.recovered.end, sample.end);
    assert!(!opened.recovered.continues);
}

#[test]
fn a_mirror_ends_at_its_first_damage_whatever_was_delivered() {
    let storage = Arc::new(SimStorage::new(0));
    let recovered = recovery::recover(&*storage, &world::node(), world::INCARNATION).unwrap();
    let mut writer = Writer::new(storage.clone(), &recovered, LIMITS).unwrap();
    let batches = [0; 3].map(|_| world::append(&mut writer, &[b"as before"]).unwrap());
    let end = writer.commit().unwrap();
    let (mut saved, marks) = (recovered.saved, [("siem".to_owned(), end)].into());
    cursors::save(&*storage, world::INCARNATION, &mut saved, marks).unwrap();
    let mut files = storage.files();
    let damaged = batches[1].start();
    files.get_mut(&segment::file_name(Position::ZERO)).unwrap()[HEADER_LEN + damaged.position.0 as usize + 70] ^= 1;
    let storage = SimStorage::with_files(&files);
    let journal = recovery::recover(&storage, &world::node(), world::INCARNATION).unwrap();
    assert_eq!(journal.end, end, "its writer goes on behind it");
    for _ in 0..2 {
        let mirror = recovery::recover_mirror(&storage, &world::journal_id()).unwrap();
        assert_eq!(mirror.end, damaged, "the rest comes again");
        assert!(mirror.continues && mirror.saved.marks["siem"] == end);
    }
}

#[test]
fn a_segment_that_was_being_made_is_made_anew() {
    for sample in Sample::both() {
        let unborn = segment::file_name(sample.end.position);
        let header = Header { journal: world::journal_id(), start: sample.end }.encode();
        for length in 0..HEADER_LEN {
            for bytes in [header[..length].to_vec(), vec![0; length]] {
                let mut files = sample.files.clone();
                files.insert(unborn.clone(), bytes);
                let opened = open(&sample, &files);
                assert_eq!(opened.read, sample.batches);
                assert_eq!(opened.recovered.end, sample.end, "position and ordinal");
                assert_eq!(opened.recovered.findings, [Finding::Unborn { file: unborn.clone() }]);
            }
        }
    }
}

#[test]
fn a_segment_that_was_being_made_behind_a_hole_does_not_say_how_many_messages_the_hole_had() {
    let storage = Arc::new(SimStorage::new(0));
    let recovered = recovery::recover_mirror(&*storage, &world::journal_id()).unwrap();
    let mut writer = Writer::new(storage.clone(), &recovered, LIMITS).unwrap();
    world::append(&mut writer, &[b"before"]).unwrap();
    let end = writer.commit().unwrap();
    let behind = Mark { position: end.position.advance(5000), ordinal: end.ordinal + 40 };
    let mut files = storage.files();
    files.insert(segment::file_name(behind.position), Vec::new());

    let storage = Arc::new(SimStorage::with_files(&files));
    for _ in 0..2 {
        let mirror = recovery::recover_mirror(&*storage, &world::journal_id()).unwrap();
        assert_eq!((mirror.end, mirror.continues), (end, false), "it is told of the hole again");
        let mut writer = Writer::new(storage.clone(), &mirror, LIMITS).unwrap();
        writer.skip_to(behind).unwrap();
        assert_eq!(world::append(&mut writer, &[b"behind"]).unwrap().start(), behind);
        let read = world::read_all(&*storage, writer.index());
        assert_eq!(read.last().unwrap().start(), behind);
        // As if only the name of it had reached the disk.
        storage.truncate(&segment::file_name(behind.position), 0).unwrap();
    }

    // Its writer went on there because that much was delivered.
    let mut saved = cursors::load(&*storage, world::INCARNATION).unwrap();
    let marks = [("siem".to_owned(), behind)].into();
    cursors::save(&*storage, world::INCARNATION, &mut saved, marks).unwrap();
    let journal = recovery::recover(&*storage, &world::node(), world::INCARNATION).unwrap();
    assert_eq!((journal.end, journal.continues), (behind, false));
}

#[test]
fn an_empty_last_segment_takes_a_batch_that_is_larger_than_a_segment() {
    let sample = Sample::new();
    let mut files = sample.files.clone();
    let header = Header { journal: world::journal_id(), start: sample.end }.encode();
    files.insert(segment::file_name(sample.end.position), header.to_vec());
    let storage = Arc::new(SimStorage::with_files(&files));
    let recovered = recovery::recover(&*storage, &world::node(), world::INCARNATION).unwrap();
    let mut writer = Writer::new(storage.clone(), &recovered, LIMITS).unwrap();
    let large = world::append(&mut writer, &[&[b'x'; 5000]]).unwrap();
    let small = world::append(&mut writer, &[b"x"]).unwrap();
    writer.commit().unwrap();
    writer.trim(large.start().position).unwrap();
    assert_eq!(world::read_all(&*storage, writer.index()), [large, small]);
}

#[test]
fn files_that_are_not_ours_are_left_alone() {
    Sample::both().iter().for_each(leaves_strangers_alone);
}

fn leaves_strangers_alone(sample: &Sample) {
    let second = segment::position_of(&sample.segments()[1]).unwrap();
    let strange = [
        ("lock".to_owned(), vec![]),
        ("notes.txt".to_owned(), b"hello".to_vec()),
        ("zz.seg".to_owned(), vec![7; 300]),
        ("ffffffffffffffff.seg".to_owned(), vec![7; 300]),
        // Segments by name, in the middle of another one.
        (segment::file_name(second.advance(5)), vec![]),
        (segment::file_name(second.advance(7)), vec![0xff; 4000]),
        (segment::file_name(Position(sample.end.position.0 - 1)), vec![]),
        (segment::file_name(Position(sample.end.position.0 - 2)), b"TWB1".repeat(100)),
    ];
    for (name, bytes) in strange {
        let mut files = sample.files.clone();
        files.insert(name.clone(), bytes.clone());
        let opened = open(sample, &files);
        assert_eq!(opened.read, sample.batches, "{name}");
        assert_eq!(opened.recovered.end, sample.end, "{name}");
    }
}

#[test]
fn a_sealed_segment_that_has_grown_hides_nothing_of_the_next() {
    let sample = Sample::new();
    for file in &sample.segments()[..2] {
        let mut files = sample.files.clone();
        files.get_mut(file).unwrap().extend_from_slice(&[0; 5000]);
        assert_eq!(open(&sample, &files).read, sample.batches);
    }
}

#[test]
fn empty_files_everywhere_are_a_journal_without_messages() {
    let sample = Sample::new();
    let files: Files = sample.files.keys().map(|name| (name.clone(), Vec::new())).collect();
    let opened = open(&sample, &files);
    assert_eq!(opened.read, []);
    let last = segment::position_of(sample.segments().last().unwrap()).unwrap();
    assert!(opened.recovered.end.position >= last, "positions are not used again");
}

#[test]
fn a_directory_of_garbage_is_survived() {
    let sample = Sample::new();
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..300 {
        let mut files = Files::new();
        for _ in 0..rng.usize(1..6) {
            let name = match rng.u8(..4) {
                0 => "cursors".to_owned(),
                1 => segment::file_name(Position(rng.u64(..1 << 20))),
                _ => segment::file_name(Position(rng.u64(..600))),
            };
            let length = rng.usize(..800);
            files.insert(name, (0..length).map(|_| rng.u8(..)).collect());
        }
        assert_eq!(open(&sample, &files).read, []);
    }
}

#[test]
fn a_newer_segment_is_refused() {
    let sample = Sample::new();
    for name in sample.segments() {
        let mut files = sample.files.clone();
        let header = files.get_mut(&name).unwrap();
        header[8] = 2;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..HEADER_LEN]);
        header[12..16].copy_from_slice(&crc.to_le_bytes());
        let refused = recovery::recover(&SimStorage::with_files(&files), &world::node(), world::INCARNATION);
        assert!(matches!(refused, Err(OpenError::Newer { file, .. }) if file == name));
    }
}

#[test]
fn a_newer_batch_at_the_end_is_refused_and_not_cut() {
    let sample = Sample::new();
    let mut files = sample.files.clone();
    let name = sample.segments().pop().unwrap();
    let mut batch = world::batch(sample.end, &[b"from the future"]).bytes().to_vec();
    batch[4] = 2;
    let crc = crc32c::crc32c_append(
        crc32c::crc32c_append(crc32c::crc32c(&batch[batch::HEADER_LEN..]), &batch[..28]),
        &batch[32..batch::HEADER_LEN],
    );
    batch[28..32].copy_from_slice(&crc.to_le_bytes());
    files.get_mut(&name).unwrap().extend_from_slice(&batch);
    let storage = SimStorage::with_files(&files);
    let refused = recovery::recover(&storage, &world::node(), world::INCARNATION);
    assert!(matches!(refused, Err(OpenError::Newer { .. })), "{refused:?}");
    assert_eq!(storage.files(), files);
}

#[test]
fn the_journal_of_another_node_is_refused_and_not_touched() {
    let sample = Sample::new();
    let storage = SimStorage::with_files(&sample.files);
    let refused = recovery::recover(&storage, &"agg-b".parse().unwrap(), world::INCARNATION);
    assert!(matches!(refused, Err(OpenError::Foreign { found, .. }) if found == "agg-a"));
    assert_eq!(storage.files(), sample.files);
}

#[test]
fn two_journals_in_one_directory_are_refused_and_not_touched() {
    let sample = Sample::new();
    let mut files = sample.files.clone();
    let journal = JournalId { incarnation: Incarnation(5), ..world::journal_id() };
    files.insert(segment::file_name(sample.end.position), Header { journal, start: sample.end }.encode().to_vec());
    let storage = SimStorage::with_files(&files);
    let refused = recovery::recover(&storage, &world::node(), world::INCARNATION);
    assert!(matches!(refused, Err(OpenError::Mixed { .. })), "{refused:?}");
    assert_eq!(storage.files(), files);
}

#[test]
fn recovery_that_cannot_read_refuses_and_changes_nothing() {
    let sample = Sample::new();
    for call in 0.. {
        let storage = SimStorage::with_files(&sample.files);
        storage.fail_call(call, EIO);
        let result = recovery::recover(&storage, &world::node(), world::INCARNATION);
        assert_eq!(storage.files(), sample.files);
        if storage.calls() <= call {
            assert!(result.is_ok());
            break;
        }
        assert!(matches!(result, Err(OpenError::Io { .. })), "call {call}: {result:?}");
    }
}
