//! Drain receipts: what a drain came to, with its counts, kept as `DATA_DIR/receipts/ID.json`.
//!
//! The counts come from the journal's marks and the kernel's counters; nothing in here is hoped for.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Name of the receipts' directory below `data_dir`.
const DIRECTORY: &str = "receipts";
/// Receipts that are kept; the oldest go.
pub const RECEIPTS_MAX: usize = 1000;

/// One receipt. The shape is the contract's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Version of the shape: 1.
    pub v: u32,
    /// Its name: when it began, and the node.
    pub id: String,
    /// The node that was drained.
    pub node: String,
    /// When it began, RFC 3339 in UTC.
    pub started: String,
    /// When it ended.
    pub finished: String,
    /// `ZERO LOSS`, `LOSS n` or `UNPROVEN (why)`.
    pub verdict: String,
    /// Messages that are gone.
    pub lost: u64,
    /// Counts of messages.
    pub messages: Messages,
    /// Counts of TCP connections.
    pub connections: Connections,
    /// How long each stage took.
    pub stages: Vec<Took>,
}

/// Counts of messages: what the node held when the drain began, and what came until its inputs had ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Messages {
    /// Undelivered at the begin, and received since.
    pub received: u64,
    /// Of them, delivered by every output of either node.
    pub delivered: u64,
    /// Of the rest, safe on the other node.
    pub handed_over: u64,
    /// Refused in the meantime, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Datagrams that the kernel dropped in the meantime.
    pub kernel_drops: u64,
    /// Messages that may arrive twice, under the same id.
    pub repeats_possible: u64,
}

/// Counts of TCP connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Moved to the other node alive.
    pub moved: u64,
    /// Read to their end and closed.
    pub closed: u64,
    /// Ended although their sender had more to say.
    pub cut: u64,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Took {
    /// Its name.
    pub stage: String,
    /// Seconds.
    pub seconds: f64,
}

// A time that was measured is a number.
impl Eq for Took {}

impl Receipt {
    /// Whether nothing was lost, and that is proven.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.verdict == "ZERO LOSS"
    }

    /// As people read it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let Receipt { messages, connections, .. } = self;
        let stages: Vec<String> =
            self.stages.iter().map(|took| format!("{} {:.3} s", took.stage.replace('_', " "), took.seconds)).collect();
        let refused: u64 = messages.refused.values().sum();
        let _ = writeln!(text, "receipt      {}", self.id);
        let _ = writeln!(text, "node         {}   from {} to {}", self.node, self.started, self.finished);
        let _ = writeln!(text, "stages       {}", stages.join(", "));
        let _ = writeln!(
            text,
            "messages     {} received = {} delivered + {} on the peer; {refused} refused, {} dropped by the kernel, {} repeats possible",
            messages.received,
            messages.delivered,
            messages.handed_over,
            messages.kernel_drops,
            messages.repeats_possible
        );
        let _ = writeln!(
            text,
            "connections  {} moved, {} closed, {} cut",
            connections.moved, connections.closed, connections.cut
        );
        let _ = writeln!(text, "verdict      {}", self.verdict);
        text
    }

    /// Keeps it, safe against loss of power. Blocks.
    ///
    /// # Errors
    /// What the system says.
    pub fn keep(&self, data_dir: &Path) -> io::Result<()> {
        let directory = data_dir.join(DIRECTORY);
        fs::create_dir_all(&directory)?;
        let (path, new) = (directory.join(format!("{}.json", self.id)), directory.join("new"));
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(&new, &path)?;
        fs::File::open(&directory)?.sync_all()?;
        let kept = files(&directory)?;
        for oldest in kept.iter().take(kept.len().saturating_sub(RECEIPTS_MAX)) {
            fs::remove_file(oldest)?;
        }
        Ok(())
    }
}

/// All receipts of a data directory, the oldest first. A file that is none is left out.
///
/// # Errors
/// What the system says.
pub fn read(data_dir: &Path) -> io::Result<Vec<Receipt>> {
    let files = files(&data_dir.join(DIRECTORY))?;
    let receipts = files.iter().map(|file| fs::read(file).map(|bytes| serde_json::from_slice(&bytes).ok()));
    receipts.filter_map(Result::transpose).collect()
}

/// By name, and so by age.
fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(id: &str) -> Receipt {
        let messages = Messages { received: 10, delivered: 7, handed_over: 3, ..Messages::default() };
        Receipt {
            v: 1,
            id: id.to_owned(),
            node: "agg-a".to_owned(),
            started: "2026-03-10T12:00:00Z".to_owned(),
            finished: "2026-03-10T12:00:03Z".to_owned(),
            verdict: "ZERO LOSS".to_owned(),
            lost: 0,
            messages,
            connections: Connections::default(),
            stages: vec![Took { stage: "handing_over".to_owned(), seconds: 0.25 }],
        }
    }

    #[test]
    fn receipts_are_kept_and_read_in_their_order() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()).unwrap(), []);
        for id in ["20260310T120001Z-agg-a", "20260310T120000Z-agg-a"] {
            receipt(id).keep(directory.path()).unwrap();
        }
        fs::write(directory.path().join("receipts/torn.json"), "{").unwrap();
        let ids: Vec<String> = read(directory.path()).unwrap().into_iter().map(|receipt| receipt.id).collect();
        assert_eq!(ids, ["20260310T120000Z-agg-a", "20260310T120001Z-agg-a"]);
    }

    #[test]
    fn the_shape_is_the_contracts() {
        let json = serde_json::to_value(receipt("x")).unwrap();
        for key in "v id node started finished verdict lost messages connections stages".split(' ') {
            assert!(json.get(key).is_some(), "{key}");
        }
        for key in "received delivered handed_over refused kernel_drops repeats_possible".split(' ') {
            assert!(json["messages"].get(key).is_some(), "{key}");
        }
        for key in "moved closed cut".split(' ') {
            assert!(json["connections"].get(key).is_some(), "{key}");
        }
        assert_eq!(json["stages"][0], serde_json::json!({ "stage": "handing_over", "seconds": 0.25 }));
        assert!(receipt("x").text().contains("10 received = 7 delivered + 3 on the peer"));
    }
}
