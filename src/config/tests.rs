//! The configuration from outside: whole files in, a checked value or the full text of what is wrong out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

mod mistakes;

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
    let [
        Input::Syslog(network),
        Input::Syslog(encrypted),
        Input::Syslog(tunnel),
        Input::Forward(apps),
        Input::Relp(answered),
    ] = &config.inputs[..]
    else {
        panic!("{:?}", config.inputs)
    };
    let listens = ["tcp://[::]:2514", "tls://192.0.2.11:2515"];
    assert_eq!(answered.listen.iter().map(Listen::to_string).collect::<Vec<_>>(), listens);
    assert_eq!((answered.max_message, answered.max_connections), (128 << 10, Some(200)));
    assert_eq!((answered.tag.as_str(), &answered.timezone), ("relp", &Timezone::Named("+02:00".to_owned())));
    let listens = ["udp://[::]:24224", "tcp://[::]:24224", "udp://127.0.0.1:24225", "tcp://127.0.0.1:24225"];
    assert_eq!(apps.listen.iter().map(Listen::to_string).collect::<Vec<_>>(), listens);
    assert_eq!(apps.shared_key_file.as_deref(), Some(Path::new("/etc/twinlog/forward.key")));
    assert_eq!((apps.max_chunk, apps.max_connections), (16 << 20, Some(5000)));
    assert_eq!((network.max_connections, network.idle_timeout), (Some(10_000), Some(Duration::from_secs(600))));
    assert_eq!(network.timezone, Timezone::Named("Europe/Berlin".to_owned()));
    assert_eq!((tunnel.name.as_str(), tunnel.listen.len()), ("tunnel", 2));
    let [siem, abroad, standby, collector, file, stdout] = &config.outputs[..] else { panic!("{:?}", config.outputs) };
    let OutputKind::Forward(forward) = &collector.kind else { panic!("{collector:?}") };
    let login = Login {
        shared_key_file: "/etc/twinlog/forward.key".into(),
        self_hostname: "logs.example.net".to_owned(),
        user: Some(("twinlog".to_owned(), "/etc/twinlog/forward.password".into())),
    };
    let expected = ForwardOutput {
        ack_timeout: Duration::from_secs(60),
        balance: Balance::RoundRobin,
        compress: Compress::Gzip,
        window: 16,
        login: Some(login),
        ..ForwardOutput::new(forward.to.clone())
    };
    assert_eq!(*forward, expected);
    let OutputKind::Syslog(to) = &siem.kind else { panic!("{siem:?}") };
    assert_eq!(
        to.to.iter().map(Target::to_string).collect::<Vec<_>>(),
        ["tcp://siem-1.example.net:514", "tcp://[2001:db8::2]:601"]
    );
    assert_eq!((to.framing, to.format), (Framing::Octet, SyslogFormat::Rfc5424));
    assert_eq!(siem.matches.input, ["network", "tunnel"]);
    let tls = encrypted.tls.as_ref().unwrap();
    assert_eq!(
        (tls.client_auth, tls.identity.key_file.to_str()),
        (ClientAuth::Optional, Some("/etc/twinlog/tls/server.key"))
    );
    let OutputKind::Syslog(to) = &abroad.kind else { panic!("{abroad:?}") };
    assert_eq!(to.to[0].to_string(), "tls://siem.example.net:6514");
    assert_eq!((to.framing, to.tls.server_name.as_deref()), (Framing::Auto, Some("logs.example.net")));
    assert_eq!(to.tls.identity.as_ref().unwrap().cert_file, Path::new("/etc/twinlog/tls/client.crt"));
    assert_eq!((&siem.matches.facility[..], siem.matches.severity_at_least), (&[4, 10, 16][..], Some(5)));
    assert!(siem.matches.tag[0].matches(b"syslog.a"));
    assert_eq!(standby.matches.source.len(), 1);
    let OutputKind::File(file) = &file.kind else { panic!("{file:?}") };
    assert_eq!(file.rotate, Rotate { size: Some(100 << 20), age: Some(Duration::from_secs(86_400)), keep: Some(14) });
    assert_eq!(stdout.kind, OutputKind::Stdout(StdoutOutput { format: FileFormat::Json }));
    assert_eq!(config.admin.listen.len(), 2);
    let [hook] = &config.hooks[..] else { panic!("{:?}", config.hooks) };
    assert_eq!((hook.program(), hook.command.len(), hook.on.len()), (Path::new("/etc/twinlog/hooks/notify.sh"), 2, 4));
    assert_eq!((hook.style, hook.instance.as_str()), (HookStyle::Keepalived, "VI_1"));
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

#[test]
fn everything_wrong_is_reported_at_once_each_with_its_place_and_one_fix() {
    let text = r#"data_dir = 7
password = "hunter2"

[journal]
max_size = "100MiB"
segment_size = "64MiB"
comit_interval = "10ms"
when_full = "drop-oldest"

[[hook]]
on = "master"

[[input.syslog]]
listn = ":514"
max_message = "32MiB"

[[input.syslog]]
listen = ["tls://:6514", ":514", "udp://127.0.0.1:514"]
idle_timeout = 10

[[output.syslog]]
to = "siem.example.net:514"
match = { input = "syslog-7", tag = "{a" }

[[output.syslog]]
name = "second"
to = "tcp://siem.example.net"
"#;
    let expected = r#"t.toml:1:12: error: `data_dir` must be a text, not a number
  1 | data_dir = 7
    |            ^ write "7"
t.toml:2:1: error: `password` at the top level holds a secret
  2 | password = *********
    | ^^^^^^^^ remove it: secrets are read from files only, and none is needed here
t.toml:6:16: error: `max_size` 100MiB holds fewer than 4 segments of 64MiB
  6 | segment_size = "64MiB"
    |                ^^^^^^^ set max_size = "256MiB" or more, or a smaller segment_size
t.toml:7:1: error: unknown key `comit_interval` in [journal]
  7 | comit_interval = "10ms"
    | ^^^^^^^^^^^^^^ did you mean `commit_interval`?
t.toml:8:13: error: `when_full` cannot be "drop-oldest"
  8 | when_full = "drop-oldest"
    |             ^^^^^^^^^^^^^ write "block" or "drop_oldest"
t.toml:10:1: error: `command` is missing
 10 | [[hook]]
    | ^^^^^^^^ add command = ["/etc/twinlog/hooks/notify.sh"]
t.toml:11:6: error: `on` cannot be "master"
 11 | on = "master"
    |      ^^^^^^^^ write "active" or "standby" or "fault" or "recovered" or "drained" or "gap" or "reload" or "stop"
t.toml:13:1: error: `listen` is missing
 13 | [[input.syslog]]
    | ^^^^^^^^^^^^^^^^ add listen = ":514"
t.toml:14:1: error: unknown key `listn` in [[input.syslog]]
 14 | listn = ":514"
    | ^^^^^ did you mean `listen`?
t.toml:15:15: error: `max_message` must lie between 480B and 16MiB
 15 | max_message = "32MiB"
    |               ^^^^^^^ write "16MiB"
t.toml:18:10: error: `listen` with tls:// needs `tls`
 18 | listen = ["tls://:6514", ":514", "udp://127.0.0.1:514"]
    |          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ add tls = { cert_file = "/etc/twinlog/tls/server.crt", key_file = "/etc/twinlog/tls/server.key" }
t.toml:18:34: error: udp://127.0.0.1:514 is already taken by udp://[::]:514 at t.toml:18:26
 18 | listen = ["tls://:6514", ":514", "udp://127.0.0.1:514"]
    |                                  ^^^^^^^^^^^^^^^^^^^^^ choose another port, or remove one of them
t.toml:19:16: error: `idle_timeout` needs a unit
 19 | idle_timeout = 10
    |                ^^ write "10s"
t.toml:21:1: warning: without a name this output is `syslog-0` only as long as the order stays
 21 | [[output.syslog]]
    | ^^^^^^^^^^^^^^^^^ add name = "syslog-0": its place in the journal is kept under it
t.toml:22:6: error: `to` needs a protocol
 22 | to = "siem.example.net:514"
    |      ^^^^^^^^^^^^^^^^^^^^^^ write "tcp://siem.example.net:514" or "udp://siem.example.net:514"
t.toml:23:19: error: there is no input `syslog-7`
 23 | match = { input = "syslog-7", tag = "{a" }
    |                   ^^^^^^^^^^ did you mean "syslog-0"?
t.toml:23:37: error: `tag` has a brace without its partner
 23 | match = { input = "syslog-7", tag = "{a" }
    |                                     ^^^^ write a pattern such as "app.**" or "{a,b}.*"
16 errors, 1 warning
"#;
    assert_eq!(report(&parse(text, "t.toml").unwrap_err()), expected);
}

#[test]
fn what_is_no_toml_does_not_hide_the_rest() {
    let text = "data_dir = \n[journal]\nmax_sise = \"1GiB\"\nsegment_size = 64MiB\n[[input.syslog]]\nlisten = \":514\"\nlisten = \":515\"\n";
    let expected = [
        "1:12: error: string values must be quoted",
        "3:1: error: unknown key `max_sise` in [journal]",
        "4:16: error: string values must be quoted",
        "7:1: error: `listen` is here a second time",
    ];
    assert_eq!(wrong(text), expected, "and the missing output is not claimed");
}

#[test]
fn drop_ins_add_and_may_not_redefine() {
    let main =
        source("twinlog.toml", "[log]\nlevel = \"warn\"\n[[input.syslog]]\nlisten = \":514\"\n[[output.stdout]]\n");
    let more = source("conf.d/10-more.toml", "[[input.syslog]]\nlisten = \":515\"\n[log]\nformat = \"json\"\n");
    let again = source("conf.d/20-again.toml", "data_dir = \"/x\"\n[log]\nlevel = \"info\"\n");
    let loaded = read(&[main.clone(), more.clone()], node()).unwrap();
    assert_eq!(loaded.config.inputs.iter().map(Input::name).collect::<Vec<_>>(), ["syslog-0", "syslog-1"]);
    assert_eq!((loaded.config.log.level, loaded.config.log.format), (LogLevel::Warn, LogFormat::Json));
    let expected = r#"conf.d/20-again.toml:3:9: error: `log.level` is already set at twinlog.toml:2:9
  3 | level = "info"
    |         ^^^^^^ keep one of them
1 error
"#;
    assert_eq!(report(&read(&[main, more, again], node()).unwrap_err()), expected);
}

#[test]
fn secrets_are_never_shown() {
    for text in [
        "password = \"hunter2\"",
        "password = hunter2",
        "password = \"hunter2",
        "[admin]\nadmin_token = \"hunter2\"",
        "[[output.syslog]]\nto = \"tcp://me:hunter2@siem\"",
        "[[output.syslog]]\nto = \"me:hunter2@siem\"",
        "[[output.syslog]]\nto = [\"https://me:hunter2@siem\"]",
        "[[output.stdout]]\nretry = { min = 3, \"shared_key\" = 'hunter2' }",
    ] {
        let shown = report(&parse(text, "t.toml").unwrap_err());
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("***"), "{shown}");
    }
}

#[test]
fn a_long_or_wild_line_is_shown_in_a_window() {
    let text = format!("allow = [{}\"x\"]\n\"\\u001b[31m\" = 1\n\t[log]\n\tlevel\t= 1", "\"10.0.0.0/8\", ".repeat(60));
    let diagnostics =
        parse(&format!("[[output.stdout]]\n[[input.syslog]]\nlisten = \":514\"\n{text}"), "t.toml").unwrap_err();
    let shown = report(&diagnostics);
    assert!(shown.lines().all(|line| line.chars().count() < 180), "{shown}");
    assert!(!shown.contains('\x1b') && !shown.contains('\t'), "{shown}");
    assert!(shown.contains("  7 |  level = 1\n    |          ^ write \"error\""), "{shown}");
    let coloured = Report { diagnostics: &diagnostics, colour: true }.to_string();
    assert!(coloured.contains("\x1b[1;31merror\x1b[0m"), "{coloured}");
}

#[test]
fn files_are_taken_in_the_order_of_their_names_and_all_are_looked_at() {
    let directory = Scratch::new("files");
    let main = directory.0.join("twinlog.toml");
    std::fs::write(&main, SMALLEST).unwrap();
    assert_eq!(files_of(&main).unwrap(), std::slice::from_ref(&main));
    let drop_ins = directory.0.join("conf.d");
    std::fs::create_dir(&drop_ins).unwrap();
    for (name, text) in
        [("20-b.toml", &b"# \xff"[..]), ("10-a.toml", b"[log]\nlevl = 1"), (".#x.toml", b"x"), ("y.bak", b"x")]
    {
        std::fs::write(drop_ins.join(name), text).unwrap();
    }
    let files = files_of(&main).unwrap();
    assert_eq!(files, [main, drop_ins.join("10-a.toml"), drop_ins.join("20-b.toml")]);
    let shown = report(&load(&files, node()).unwrap_err()).replace(directory.0.to_str().unwrap(), "");
    let expected = "/conf.d/20-b.toml:1:3: error: the file is not UTF-8 from here on\n  1 | # \u{fffd}\n    |   ^ save it as UTF-8\n\
        /conf.d/10-a.toml:2:1: error: unknown key `levl` in [log]\n  2 | levl = 1\n    | ^^^^ did you mean `level`?\n2 errors\n";
    assert_eq!(shown, expected);
    let missing = load(&[directory.0.join("none.toml")], node()).unwrap_err();
    assert_eq!(missing.len(), 1);
    assert!(missing[0].message.starts_with("cannot read it: No such file"), "{missing:?}");
}

#[test]
fn the_environment_is_judged_with_the_place_of_the_key() {
    let directory = Scratch::new("environment");
    let here = directory.0.to_str().unwrap();
    std::fs::write(directory.0.join("file"), "").unwrap();
    let check = |data_dir: &str, output: &str| {
        let text = format!("data_dir = \"{here}/{data_dir}\"\n{SMALLEST}[[output.file]]\npath = \"{here}/{output}\"\n");
        report(&check_environment(&parse(&text, "t.toml").unwrap())).replace(here, "")
    };
    assert_eq!(check("new/deep", "%Y.log"), "");
    let shown = check("file", "none/%Y/x.log");
    assert!(shown.starts_with("t.toml:1:12: error: /file is no directory\n"), "{shown}");
    assert!(shown.contains("t.toml:6:8: error: the directory /none is not there\n"), "{shown}");
    std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
        .create(directory.0.join("open"))
        .unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(directory.0.join("open"), open).unwrap();
    assert!(check("open", "x.log").contains("t.toml:1:12: warning: others may write to /open (mode 0777)\n"));
    assert!(check_environment(&Config::standalone_default(node()).into()).is_empty());
}

#[test]
fn the_node_is_named_by_what_is_given() {
    assert_eq!(node_name(Some("agg-a")).unwrap(), node());
    let wrong = node_name(Some("agg a")).unwrap_err()[0].to_string();
    assert!(wrong.starts_with("error: a node name has 1 to 64 letters"), "{wrong}");
}

#[test]
fn no_text_makes_it_panic_and_what_is_accepted_reads_back_the_same() {
    let mut random = fastrand::Rng::with_seed(514);
    let pieces: Vec<&str> = COMPLETE.split_inclusive([' ', '\n', '"']).collect();
    let odd = [
        "\"",
        "\"\"\"",
        "[",
        "]",
        "{",
        "}",
        "=",
        "\n",
        "\\",
        "é",
        "\u{0}",
        "-1",
        "99999999999999999999",
        "0x10",
        "1e400",
        "nan",
        "1979-05-27",
    ];
    let mut accepted = 0;
    for _ in 0..20_000 {
        let mut text = COMPLETE.to_owned();
        for _ in 0..random.usize(1..4) {
            let at = text.floor_char_boundary(random.usize(..=text.len()));
            let end = text.floor_char_boundary((at + random.usize(..6)).min(text.len()));
            match random.u8(..4) {
                0 => text.replace_range(at..end, ""),
                1 => text.insert_str(at, odd[random.usize(..odd.len())]),
                2 => text.insert_str(at, pieces[random.usize(..pieces.len())]),
                _ => text.replace_range(at..end, odd[random.usize(..odd.len())]),
            }
        }
        match parse(&text, "t.toml") {
            Ok(loaded) => {
                accepted += 1;
                let again = parse(&show_effective(&loaded.config), "t.toml")
                    .unwrap_or_else(|d| panic!("{}\n{text}", report(&d)));
                assert_eq!(again.config, loaded.config, "{text}");
            }
            Err(diagnostics) => {
                assert!(diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error), "{text}");
                assert!(!report(&diagnostics).is_empty());
            }
        }
    }
    assert!(accepted > 1000, "{accepted}");
}

#[test]
fn a_deep_or_huge_text_ends_in_diagnostics() {
    for text in ["[".repeat(50_000), "a = [".repeat(50_000), "a.".repeat(50_000), "a = {a = ".repeat(50_000)] {
        assert!(parse(&text, "t.toml").is_err());
    }
    let many: String = (0..2_000).map(|number| format!("key-{number} = 1\n")).collect();
    assert_eq!(parse(&many, "t.toml").unwrap_err().len(), 1_000, "nobody reads more");
    let ports = "\":0\", ".repeat(600);
    let warned = format!("[[input.syslog]]\nlisten = [{ports}]\n[[output.stdout]]\nname = \"-\"\nx = 1\n");
    assert!(parse(&warned, "t.toml").is_err(), "warnings never push out an error");
}

/// A directory that is gone after the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("twinlog-config-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}
