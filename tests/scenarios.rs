//! Histories of one virtual router, as files: `tests/scenarios/*.txt`, whose README says how to read them.

#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use twinlog::proto::vrrp::advertisement::Advertisement;
use twinlog::proto::vrrp::interval::Interval;
use twinlog::proto::vrrp::settings::{Member, Settings};
use twinlog::proto::vrrp::vip_list::VipList;
use twinlog::proto::vrrp::virtual_router::{Output, VirtualRouter};
use twinlog::proto::vrrp::{BootTime, Family, Priority, Version, Vrid};

#[test]
fn every_scenario_goes_as_written() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<_> = directory.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    assert!(files.len() > 10, "{} scenarios", files.len());
    let mut failures = String::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let (expected, happened) = (expected(&text), Scenario::read(&text).run());
        if expected != happened {
            let name = file.file_name().unwrap().to_string_lossy();
            write!(failures, "\n{name}\n  expected\n{expected}  happened\n{happened}").unwrap();
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

/// The lines of a scenario without comments and indentation.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(|line| line.split('#').next().unwrap().trim()).filter(|line| !line.is_empty())
}

/// What the file says that happens, one event a line.
fn expected(text: &str) -> String {
    lines(text).filter(|line| line.contains(" > ")).map(|line| format!("{}\n", normal(line))).collect()
}

/// Words with one space between.
fn normal(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn time(text: &str) -> BootTime {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos = format!("{fraction:0<9}");
    BootTime(Duration::new(seconds.parse().expect(text), nanos.parse().expect(text)))
}

fn show(time: BootTime) -> String {
    let text = format!("{}.{:09}", time.0.as_secs(), time.0.subsec_nanos());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn addresses(text: &str) -> Vec<IpAddr> {
    text.split(',').map(|address| address.parse().expect(text)).collect()
}

struct Scenario<'a> {
    router: VirtualRouter,
    vips: Vec<VipList>,
    interval: Interval,
    inputs: Vec<(BootTime, Vec<&'a str>)>,
    /// Asleep until then.
    asleep: Option<BootTime>,
    happened: String,
}

impl<'a> Scenario<'a> {
    fn read(text: &'a str) -> Scenario<'a> {
        let mut settings = Settings {
            vrid: Vrid::new(77).unwrap(),
            interval: Interval::new(Version::V3, Duration::from_secs(1)).unwrap(),
            priority: Priority::DEFAULT,
            preempt: false,
            preempt_delay: Duration::ZERO,
            members: Vec::new(),
        };
        let mut inputs = Vec::new();
        let mut version = Version::V3;
        for line in lines(text).filter(|line| !line.contains(" > ")) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [at, "<", ..] => inputs.push((time(at), words[2..].to_vec())),
                ["version", "2"] => version = Version::V2,
                ["interval", seconds] => settings.interval = Interval::new(version, time(seconds).0).unwrap(),
                ["priority", priority] => settings.priority = Priority(priority.parse().unwrap()),
                ["preempt"] => settings.preempt = true,
                ["preempt", "after", delay] => {
                    settings.preempt = true;
                    settings.preempt_delay = time(delay).0;
                }
                ["router", address, "peers", peers, "vips", vips] => settings.members.push(Member {
                    address: address.parse().unwrap(),
                    peers: if peers == "unknown" { Vec::new() } else { addresses(peers) },
                    vips: VipList::new(&addresses(vips)).unwrap(),
                }),
                _ => panic!("what is {line:?}?"),
            }
        }
        assert!(inputs.is_sorted_by_key(|(at, _)| *at), "inputs stand in the order of their times");
        let vips = settings.members.iter().map(|member| member.vips.clone()).collect();
        let interval = settings.interval;
        let router = VirtualRouter::new(settings).unwrap();
        Scenario { router, vips, interval, inputs, asleep: None, happened: String::new() }
    }

    fn run(mut self) -> String {
        let inputs = std::mem::take(&mut self.inputs);
        for (at, words) in inputs {
            self.advance_to(at);
            match words[..] {
                ["start"] => self.router.handle_startup(at),
                ["stop"] => self.router.handle_shutdown(),
                ["priority", priority] => self.router.set_priority(at, Priority(priority.parse().unwrap())),
                ["preempt", "on"] => self.router.set_preempt(true),
                ["preempt", "off"] => self.router.set_preempt(false),
                ["asleep", "until", until] => self.asleep = Some(time(until)),
                ["end"] => return self.happened,
                [source, "priority", priority, ref details @ ..] => self.hear(at, source, priority, details),
                _ => panic!("what is {words:?}?"),
            }
            if self.asleep.is_none() {
                self.router.handle_timeout(at);
            }
            self.note_outputs(at);
        }
        panic!("a scenario ends with `TIME < end`");
    }

    /// Does what is due before `at`, and at `at` unless something is heard at the same time.
    fn advance_to(&mut self, at: BootTime) {
        if let Some(until) = self.asleep {
            if at < until {
                return;
            }
            self.asleep = None;
            self.router.handle_timeout(until);
            self.note_outputs(until);
        }
        while let Some(due) = self.router.poll_timeout().filter(|due| *due < at) {
            self.router.handle_timeout(due);
            self.note_outputs(due);
        }
    }

    fn hear(&mut self, at: BootTime, source: &str, priority: &str, details: &[&str]) {
        let source: IpAddr = source.parse().unwrap();
        let member = self.vips.iter().find(|vips| vips.family() == Family::of(source));
        let mut advertisement = Advertisement {
            vrid: Vrid::new(77).unwrap(),
            priority: Priority(priority.parse().unwrap()),
            interval: self.interval,
            vips: member.unwrap_or(&self.vips[0]).clone(),
        };
        for detail in details.chunks(2) {
            match *detail {
                ["interval", seconds] => {
                    advertisement.interval = Interval::new(self.interval.version(), time(seconds).0).unwrap();
                }
                ["vips", vips] => advertisement.vips = VipList::new(&addresses(vips)).unwrap(),
                _ => panic!("what is {detail:?}?"),
            }
        }
        match self.router.handle_advertisement(source, &advertisement) {
            Ok(differences) => differences.names().for_each(|name| self.note(at, &format!("noted {name}"))),
            Err(rejection) => self.note(at, &format!("ignored {}", rejection.as_str())),
        }
    }

    fn note_outputs(&mut self, at: BootTime) {
        while let Some(output) = self.router.poll_output() {
            let text = match output {
                Output::Advertise(advertisement) => {
                    let family = if advertisement.vips.family() == Family::V6 { " over ipv6" } else { "" };
                    format!("advertise {}{family}", advertisement.priority)
                }
                Output::BecameMaster(cause) => format!("Master {}", cause.as_str()),
                Output::BecameBackup(cause) => format!("Backup {}", cause.as_str()),
                Output::BecameInitialize(cause) => format!("Initialize {}", cause.as_str()),
                Output::Announce => "announce".to_owned(),
            };
            self.note(at, &text);
        }
    }

    fn note(&mut self, at: BootTime, text: &str) {
        writeln!(self.happened, "{} > {text}", show(at)).unwrap();
    }
}
