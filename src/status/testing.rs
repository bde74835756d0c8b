//! A node to look at in tests: a real journal in a directory of its own, and the ends that a daemon would hold.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use super::{LastReload, Observed, Pulse, Started};
use crate::config::{self, Config};
use crate::journal::{FileStorage, Journal, Limits, Settings, WhenFull};
use crate::metrics::Metrics;
use crate::proto::batch::BatchBuilder;
use crate::proto::envelope::{Flags, Origin, Timestamp, Transport};
use crate::proto::pair::promise::Acknowledge;
use crate::proto::position::{Incarnation, Mark};
use crate::proto::stage::Stage;

const CONFIG: &str = r#"
[[input.syslog]]
name = "net"
listen = ":514"
timezone = "UTC"

[[output.syslog]]
name = "siem"
to = ["tcp://siem.example.net:514", "tcp://siem2.example.net:514"]
"#;

/// A directory that goes with its value.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("twinlog-face-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A node and the ends that its daemon would hold.
pub(crate) struct TestNode {
    pub(crate) observed: Arc<Observed>,
    pub(crate) stage: watch::Sender<Stage>,
    pub(crate) listening: watch::Sender<bool>,
    pub(crate) faults: watch::Sender<Vec<String>>,
    pub(crate) scratch: Scratch,
}

impl TestNode {
    pub(crate) fn new() -> TestNode {
        let scratch = Scratch::new();
        let config = Config { data_dir: scratch.path().to_owned(), ..config::parse(CONFIG, "test").unwrap().config };
        let settings = Settings {
            limits: Limits { segment_size: 1 << 20, max_size: 16 << 20 },
            commit_interval: Duration::ZERO,
            when_full: WhenFull::Block,
            acknowledge: Acknowledge::Durable,
        };
        let storage = Arc::new(FileStorage::open(&scratch.path().join("own")).unwrap());
        let node = "agg-a".parse().unwrap();
        let journal = Journal::open(storage, &node, settings, &["siem"], Incarnation(0x19a_a3f0)).unwrap();
        let (stage, listening, faults) =
            (watch::Sender::new(Stage::Serving), watch::Sender::new(true), watch::Sender::new(Vec::new()));
        let observed = Observed {
            pulse: Pulse::of(&journal, Instant::now()),
            journal: Arc::new(journal),
            metrics: Arc::new(Metrics::default()),
            stage: stage.subscribe(),
            listening: listening.subscribe(),
            started: Started::now(),
            program: None,
            node,
            config: watch::channel(Arc::new(config)).1,
            faults: faults.subscribe(),
            reload: watch::channel(LastReload { successful: true, at: SystemTime::now() }).1,
            elected: None,
            partnered: None,
        };
        TestNode { observed: Arc::new(observed), stage, listening, faults, scratch }
    }

    /// Takes messages in and waits until they are safe.
    pub(crate) async fn receive(&self, payloads: &[&[u8]]) -> Mark {
        let mut builder = BatchBuilder::new();
        builder.set_origin(&Origin {
            received_at: Timestamp(1_773_144_000_000_000_000),
            source: Some("192.0.2.7:514".parse().unwrap()),
            transport: Transport::Udp,
            input: "net",
            tag: b"syslog",
        });
        for payload in payloads {
            builder.push(Flags::NONE, payload);
        }
        let appender = self.observed.journal.appender();
        let end = appender.append(builder).await.unwrap();
        appender.durable().wait_for(|durable| *durable >= end).await.unwrap();
        self.observed.metrics.input("net").udp.messages.inc_by(payloads.len() as u64);
        end
    }

    /// Delivers everything before `mark`.
    pub(crate) fn deliver(&self, mark: Mark) {
        self.observed.journal.cursor("siem").advance(mark);
        self.observed.metrics.output("siem").set_connected(Some("tcp://siem.example.net:514".into()));
    }
}
