//! The configuration from outside: whole files in, a checked value or the full text of what is wrong out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

/// Every key of this version.
const COMPLETE: &str = include_str!("complete.toml");

const SMALLEST: &str = "[[input.syslog]]\nlisten = \":514\"\n[[output.stdout]]\n";

fn node() -> NodeName {
    "agg-a".parse().unwrap()
}

fn source(name: &str, text: &str) -> Source {
    Source { name: name.to_owned(), text: text.to_owned() }
}

fn report(diagnostics: &[Diagnostic]) -> String {
    Report { diagnostics, colour: false }.to_string()
}

/// The first lines of what is wrong with a text, without the file's name.
fn wrong(text: &str) -> Vec<String> {
    let diagnostics = match parse(text, "t.toml") {
        Ok(loaded) => loaded.warnings,
        Err(diagnostics) => diagnostics,
    };
    diagnostics
        .iter()
        .map(|diagnostic| {
            diagnostic.to_string().lines().next().unwrap().trim_start_matches("t.toml:").trim().to_owned()
        })
        .collect()
}

#[test]
fn the_smallest_file_gets_every_default() {
    let loaded = read(&[source("t.toml", SMALLEST)], node()).unwrap();
    let config = loaded.config;
    assert_eq!(loaded.warnings, []);
    assert_eq!(config.node, node());
    assert_eq!(config.data_dir, Path::new("/var/lib/twinlog"));
    assert_eq!(config.control_socket, Path::new("/run/twinlog/control.sock"));
    assert_eq!((config.journal.max_size, config.journal.segment_size), (10 << 30, 64 << 20));
    assert_eq!(config.journal.commit_interval, Duration::from_millis(10));
    assert_eq!((config.drain.grace, config.drain.stop_deadline), (Duration::from_secs(2), Duration::from_secs(60)));
    let [Input::Syslog(input)] = &config.inputs[..] else { panic!("{:?}", config.inputs) };
    assert_eq!((input.name.as_str(), input.tag.as_str()), ("syslog-0", "syslog"));
    assert_eq!(input.listen.iter().map(Listen::to_string).collect::<Vec<_>>(), ["udp://[::]:514", "tcp://[::]:514"]);
    assert_eq!((input.max_message, input.udp_rcvbuf), (64 << 10, 64 << 20));
    assert_eq!((input.max_connections, input.idle_timeout), (None, None));
    let [output] = &config.outputs[..] else { panic!("{:?}", config.outputs) };
    assert_eq!((output.name.as_str(), &output.matches), ("stdout-0", &Match::default()));
    assert_eq!((output.retry.min, output.retry.max), (Duration::from_millis(200), Duration::from_secs(30)));
    assert_eq!(config.admin.listen, []);
    assert_eq!(
        (config.log.level, config.log.format, config.log.target),
        (LogLevel::Info, LogFormat::Text, LogTarget::Auto)
    );
}

#[test]
fn every_key_of_the_complete_file_is_in_force() {
    let loaded = parse(COMPLETE, "complete.toml").unwrap_or_else(|diagnostics| panic!("{}", report(&diagnostics)));
    assert_eq!(report(&loaded.warnings), "");
    let config = loaded.config;
    let [Input::Syslog(network), Input::Syslog(tunnel)] = &config.inputs[..] else { panic!("{:?}", config.inputs) };
    assert_eq!((network.max_connections, network.idle_timeout), (Some(10_000), Some(Duration::from_secs(600))));
    assert_eq!(network.timezone, Timezone::Named("Europe/Berlin".to_owned()));
    assert_eq!((tunnel.name.as_str(), tunnel.listen.len()), ("tunnel", 2));
    let [siem, standby, file, stdout] = &config.outputs[..] else { panic!("{:?}", config.outputs) };
    let OutputKind::Syslog(to) = &siem.kind else { panic!("{siem:?}") };
    assert_eq!(
        to.to.iter().map(Target::to_string).collect::<Vec<_>>(),
        ["tcp://siem-1.example.net:514", "tcp://[2001:db8::2]:601"]
    );
    assert_eq!((to.framing, to.format), (Framing::Octet, SyslogFormat::Rfc5424));
    assert_eq!(siem.matches.input, ["network", "tunnel"]);
    assert_eq!((&siem.matches.facility[..], siem.matches.severity_at_least), (&[4, 10, 16][..], Some(5)));
    assert!(siem.matches.tag[0].matches(b"syslog.a"));
    assert_eq!(standby.matches.source.len(), 1);
    let OutputKind::File(file) = &file.kind else { panic!("{file:?}") };
    assert_eq!(file.rotate, Rotate { size: Some(100 << 20), age: Some(Duration::from_secs(86_400)), keep: Some(14) });
    assert_eq!(stdout.kind, OutputKind::Stdout(StdoutOutput { format: FileFormat::Json }));
    assert_eq!(config.admin.listen.len(), 2);
}

#[test]
fn what_is_in_force_reads_back_the_same() {
    let complete = parse(COMPLETE, "complete.toml").unwrap().config;
    let smallest = parse(SMALLEST, "t.toml").unwrap().config;
    let mut standalone = Config::standalone_default(node());
    for config in [complete, smallest, standalone.clone()] {
        let text = show_effective(&config);
        let loaded = read(&[source("effective.toml", &text)], config.node.clone());
        let loaded = loaded.unwrap_or_else(|diagnostics| panic!("{}\n{text}", report(&diagnostics)));
        assert_eq!((loaded.config, loaded.warnings), (config, vec![]), "{text}");
    }
    standalone.data_dir = PathBuf::from("a \"quoted\" \\ path\n");
    let loaded = read(&[source("effective.toml", &show_effective(&standalone))], node()).unwrap();
    assert_eq!(loaded.config, standalone);
}
