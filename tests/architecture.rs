//! The house rules that a reader cannot see, because they are absences (ARCHITECTURE.md).

use std::fs;
use std::path::{Path, PathBuf};

/// Every source file below `directory`, with its text up to its tests.
fn sources(directory: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(directory)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()));
        } else if path.to_str().is_some_and(|name| name.ends_with(".rs") && !name.ends_with("_tests.rs")) {
            let text = fs::read_to_string(&path).expect("a source file");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            found.push((path, code.join("\n")));
        }
    }
    found
}

fn assert_absent(directory: &str, words: &[&str]) {
    let sources = sources(directory);
    assert!(!sources.is_empty(), "nothing to look at in src/{directory}");
    for (path, code) in sources {
        for word in words {
            assert!(!code.contains(word), "{} mentions {word}", path.display());
        }
    }
}

#[test]
fn proto_knows_no_runtime_file_socket_or_clock() {
    let world =
        ["tokio", "std::fs", "std::io::Read", "UdpSocket", "TcpStream", "TcpListener", "Instant::now", "SystemTime"];
    assert_absent("proto", &world);
    assert_absent("proto", &["crate::sys", "crate::journal", "crate::config"]);
}

#[test]
fn sys_knows_nobody_but_one_pure_value() {
    for (path, code) in sources("sys") {
        let code = code.replace("crate::proto::tcp_image::", "");
        assert!(!code.contains("crate::"), "{} knows others", path.display());
    }
}

#[test]
fn the_journal_stands_on_proto_alone() {
    assert_absent("journal", &["crate::sys", "crate::config", "crate::input", "crate::output", "crate::control"]);
}

#[test]
fn shells_do_not_know_each_other() {
    for (shell, others) in [
        ("input", ["crate::output", "crate::control", "crate::daemon"]),
        ("output", ["crate::input", "crate::control", "crate::daemon"]),
        ("control", ["crate::input", "crate::output", "crate::daemon"]),
        ("pair", ["crate::input", "crate::output", "crate::daemon"]),
    ] {
        assert_absent(shell, &others);
    }
}

#[test]
fn only_sys_is_unsafe_and_no_channel_is_unbounded() {
    for (path, code) in sources("") {
        assert!(!code.contains("unbounded_channel"), "{} has an unbounded channel", path.display());
        let raw = code.contains("unsafe {") || code.contains("unsafe impl") || code.contains("allow(unsafe_code)");
        let in_sys = path.components().any(|part| part.as_os_str() == "sys");
        assert!(!raw || in_sys, "{} is unsafe", path.display());
    }
}
