//! What is in the packages beside the program agrees with it: the unit, the manual, the examples, the metrics that dashboard
//! and alerts ask for. The packages themselves are built and judged by `packaging/build` and `packaging/check`.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(source(path)).unwrap()
}

fn twinlog(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twinlog"));
    command.args(arguments).env("TWINLOG_NODE", "agg-a").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Whether a program is installed; without it the tests that need it fail where they must not be left out.
fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap().status.success();
    assert!(found || std::env::var_os("CI").is_none(), "{program} is not installed: packaging/install.sh");
    found
}

/// Every `"quoted string"` in these files.
fn literals(files: &[&str]) -> BTreeSet<String> {
    let texts = files.iter().map(|file| read(file));
    texts.flat_map(|text| text.split('"').map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Every word that begins with `prefix`.
fn words(text: &str, prefix: &str) -> BTreeSet<String> {
    let all = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    all.filter(|word| word.starts_with(prefix)).map(str::to_owned).collect()
}

#[test]
fn the_manual_names_every_key_in_the_section_of_its_table() {
    let shown = twinlog(&["check", "--show-effective", source("src/config/complete.toml").to_str().unwrap()]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let page = read("packaging/man/twinlog.toml.5");
    let section = |name: &str| {
        let begin = page.find(&format!(".SS {name}\n")).unwrap_or_else(|| panic!("no section {name}"));
        page[begin + 4..].split("\n.SS ").next().unwrap().to_owned()
    };
    let names = |text: &str, key: &str| text.contains(&format!(".B {key}\n"));
    let mut table = "Top level".to_owned();
    let mut keys = 0;
    for line in text(&shown.stdout).lines() {
        if line.starts_with('[') {
            table = line.to_owned();
            continue;
        }
        // What is not set is shown as well: `# auth_pass_file: not set`.
        let unset = line.strip_prefix("# ").and_then(|line| line.strip_suffix(": not set"));
        let Some(key) = unset.or_else(|| line.split_once(" = ").map(|(key, _)| key)) else { continue };
        assert!(names(&section(&table), key), "{table}: {key}");
        keys += 1;
        // Those of a table inside the line, which have sections of their own.
        let value: toml::Table = toml::from_str(if unset.is_some() { "" } else { line }).unwrap();
        let mut inside: Vec<&toml::Table> = value.values().filter_map(toml::Value::as_table).collect();
        let arrays = value.values().filter_map(toml::Value::as_array).flatten();
        inside.extend(arrays.filter_map(toml::Value::as_table));
        for inner in inside.iter().flat_map(|table| table.keys()) {
            assert!(names(&page, inner), "{table}: {key}.{inner}");
        }
    }
    assert!(keys > 60, "only {keys} keys were shown");
}

#[test]
fn every_manual_page_renders_without_a_warning() {
    if !has("groff") {
        return;
    }
    let pages = TempDir::new().unwrap();
    assert!(twinlog(&["man", "--dir", pages.path().to_str().unwrap()]).status.success());
    let mut all: Vec<PathBuf> = fs::read_dir(&pages).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.push(source("packaging/man/twinlog.toml.5"));
    assert!(all.len() > 15);
    for page in all {
        // What `man --warnings` asks of it, and more.
        let shown = Command::new("groff").args(["-mandoc", "-ww", "-Tutf8", "-z"]).arg(&page).output().unwrap();
        assert_eq!((shown.status.code(), text(&shown.stderr).as_str()), (Some(0), ""), "{}", page.display());
    }
}

#[test]
fn the_unit_is_sound_and_exposes_no_more_than_it_needs() {
    if !has("systemd-analyze") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let unit = directory.path().join("twinlog.service");
    fs::write(&unit, read("systemd/twinlog.service").replace("/usr/bin/twinlog", env!("CARGO_BIN_EXE_twinlog")))
        .unwrap();
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output().unwrap();
    assert!(verified.status.success(), "{}", text(&verified.stderr));
    let complaints: Vec<String> =
        text(&verified.stderr).lines().filter(|line| line.contains("twinlog.service")).map(str::to_owned).collect();
    assert!(complaints.is_empty(), "{complaints:?}");
    let security = ["security", "--offline=true", "--threshold=18", "--no-pager"];
    let judged = Command::new("systemd-analyze").args(security).arg(&unit).output().unwrap();
    assert!(judged.status.success(), "{}", text(&judged.stdout));
}

#[test]
fn the_examples_are_configurations() {
    let examples = fs::read_dir(source("packaging/examples")).unwrap().map(|entry| entry.unwrap().path());
    let examples: Vec<PathBuf> = examples.collect();
    assert!(examples.len() >= 2);
    for example in examples {
        // Read as a file for others: what this machine lacks for it is not its fault.
        let shown = twinlog(&["check", "--show-effective", example.to_str().unwrap()]);
        assert!(shown.status.success(), "{}: {}", example.display(), text(&shown.stderr));
    }
}

#[test]
fn dashboard_and_alerts_ask_for_metrics_that_there_are() {
    let known = literals(&["src/exposition.rs", "src/exposition/process.rs"]);
    let is_known = |name: &str| {
        let bare = name.strip_prefix("twinlog_").unwrap_or(name);
        let suffixes = ["", "_total", "_bucket", "_count", "_sum", "_info"];
        suffixes.iter().any(|suffix| bare.strip_suffix(suffix).is_some_and(|name| known.contains(name)))
    };
    let dashboard: Value = serde_json::from_str(&read("packaging/grafana.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let asked = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut asked: Vec<String> = asked.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    let rules = read("packaging/prometheus.rules.yml");
    asked.push(rules.split_once("groups:").unwrap().1.to_owned());
    let names: BTreeSet<String> =
        asked.iter().flat_map(|text| [words(text, "twinlog_"), words(text, "process_")]).flatten().collect();
    assert!(names.len() > 20, "{names:?}");
    for name in &names {
        assert!(is_known(name), "{name} is no metric of ours");
    }
}
