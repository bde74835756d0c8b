//! Every mistake that a configuration can have, and what is said of it.

use super::wrong;

#[test]
fn each_mistake_is_named() {
    let input = |keys: &str| format!("[[input.syslog]]\nlisten = \":514\"\n{keys}\n[[output.stdout]]\n");
    let output = |table: &str| format!("[[input.syslog]]\nlisten = \":514\"\n{table}\n");
    for (text, expected) in [
        (
            String::new(),
            vec![
                "error: there is no input, so nothing would come in",
                "error: there is no output, so the journal would only fill",
            ],
        ),
        (
            "[[input]]\nlisten = 1\n[[output.stdout]]".into(),
            vec!["1:1: error: `input` must be a table", "error: there is no input, so nothing would come in"],
        ),
        ("[[input.sylog]]\n[[output.stdout]]".into(), vec!["1:9: error: unknown key `sylog` in [input]"]),
        (
            "[input.syslog]\nlisten = \":514\"\n[[output.stdout]]".into(),
            vec!["1:1: error: `syslog` is a list of tables"],
        ),
        (
            "[[input.syslog]]\nlisten = 514\n[[output.stdout]]".into(),
            vec!["2:10: error: `listen` needs a colon before the port"],
        ),
        ("[[input.syslog]]\nlisten = []\n[[output.stdout]]".into(), vec!["2:10: error: `listen` is empty"]),
        (
            "[[input.syslog]]\nlisten = [\":0\"]\n[[output.stdout]]".into(),
            vec![
                "2:11: warning: udp://[::]:0 gets another port at every start",
                "2:11: warning: tcp://[::]:0 gets another port at every start",
            ],
        ),
        (input("max_message = \"100B\""), vec!["3:15: error: `max_message` must lie between 480B and 16MiB"]),
        (input("max_message = \"64KB\""), vec!["3:15: error: `max_message` has no unit \"KB\""]),
        (input("max_message = [\"64KiB\"]"), vec!["3:15: error: `max_message` must be one text, not a list"]),
        (input("max_connections = 0"), vec!["3:19: error: `max_connections` must lie between 1 and 4294967295"]),
        (input("max_connections = \"9\""), vec!["3:19: error: `max_connections` must be a number, not a text"]),
        (input("max_connections = \"off\"\nidle_timeout = \"off\""), vec![]),
        (
            input("allow = [\"10.0.0.0/8\", \"10.0.0.1/8\", \"x\"]"),
            vec![
                "3:24: error: `allow` has host bits set behind the prefix of \"10.0.0.1/8\"",
                "3:38: error: `allow` has no network \"x\"",
            ],
        ),
        (input("timezone = \"middle earth\""), vec!["3:12: error: `timezone` has no time zone \"middle earth\""]),
        (input("timezone = \"+15:00\""), vec!["3:12: error: `timezone` has no time zone \"+15:00\""]),
        (input("timezone = \"-03:30\""), vec![]),
        (input("tag = \"\""), vec!["3:7: error: `tag` has 1 to 255 bytes"]),
        (input("name = \"größe\""), vec!["3:8: error: `name` has 1 to 64 letters, digits, '.', '-' or '_'"]),
        (
            input("name = \"syslog-1\"\n[[input.syslog]]\nlisten = \":515\""),
            vec!["3:8: error: the name `syslog-1` is already that of the input at t.toml:4:1"],
        ),
        (
            input("[[input.syslog]]\nlisten = \"udp://:514\""),
            vec!["4:10: error: udp://[::]:514 is already taken by udp://[::]:514 at t.toml:2:10"],
        ),
        (
            input("tls = { cert_file = \"a\", key_file = \"b\" }"),
            vec!["3:7: warning: `tls` has no effect without tls://"],
        ),
        (
            input("[[input.syslog]]\nlisten = \"tls://:514\"\ntls = { cert_file = \"a\", cert = 1 }"),
            vec![
                "4:10: error: tls://[::]:514 is already taken by tcp://[::]:514 at t.toml:2:10",
                "5:7: error: `key_file` is missing",
                "5:26: error: unknown key `cert` in [input.syslog.tls]",
            ],
        ),
        (
            input(
                "[[input.syslog]]\nlisten = \"tls://:1\"\ntls.cert_file = \"a\"\ntls.key_file = \"b\"\ntls.client_auth = \"optional\"",
            ),
            vec!["7:19: error: `client_auth` needs to know whose certificates are good"],
        ),
        (
            input(
                "[[input.syslog]]\nlisten = \"tls://:1\"\ntls = { cert_file = \"a\", key_file = \"b\", ca_file = \"c\", client_auth = \"off\" }",
            ),
            vec!["5:71: warning: `client_auth` is \"off\", so `ca_file` has no effect"],
        ),
        (
            output("[[output.syslog]]\nto = \"tcp://a\"\ntls = { ca_file = \"c\" }"),
            vec!["5:7: warning: `tls` has no effect without tls://"],
        ),
        (
            output("[[output.syslog]]\nto = \"tls://a\"\ntls = { cert_file = \"c\", server_name = \"a b\" }"),
            vec![
                "5:21: error: `cert_file` is of no use without `key_file`",
                "5:40: error: `server_name` must be a host name or an address",
            ],
        ),
        (
            output("[[output.syslog]]\nto = [\"tls://a\", \"udp://b\"]"),
            vec!["4:6: error: `to` mixes udp:// with connections"],
        ),
        (output("[[output.syslog]]\nto = [\"tls://a\", \"tcp://b\"]"), vec![]),
        (
            input("[admin]\nlisten = \":514\""),
            vec!["4:10: error: tcp://[::]:514 is already taken by tcp://[::]:514 at t.toml:2:10"],
        ),
        (
            input("[log]\nlevel = \"warning\"\ncolour = 1"),
            vec!["4:9: error: `level` cannot be \"warning\"", "5:1: error: unknown key `colour` in [log]"],
        ),
        (
            input("[journal]\nacknowledge = \"replicated\""),
            vec!["4:15: error: `acknowledge` cannot be \"replicated\" on a node without a pair"],
        ),
        (
            input("[journal]\nmax_size = \"200MiB\""),
            vec!["4:12: error: `max_size` 200MiB holds fewer than 4 segments of 64MiB"],
        ),
        (
            input("[journal]\nmax_size = \"1GB\"\nsegment_size = 65536"),
            vec!["4:12: error: `max_size` has no unit \"GB\"", "5:16: error: `segment_size` needs a unit"],
        ),
        (
            input("[[hook]]\non = \"active\"\n[[input.forward]]\nlisten = 1"),
            vec!["3:1: error: `command` is missing", "6:10: error: `listen` needs a colon before the port"],
        ),
        (
            input(
                "[[hook]]\non = [\"activ\", \"gap\"]\ncommand = \"notify.sh now\"\ntimeout = \"1ms\"\nstyle = \"keepalived\"",
            ),
            vec![
                "4:7: error: `on` cannot be \"activ\"",
                "4:16: error: `on` has \"gap\", for which keepalived has no word",
                "5:11: error: `command` must begin with the program's absolute path",
                "6:11: error: `timeout` must lie between 100ms and 1h",
            ],
        ),
        (
            input("[[hook]]\non = []\ncommand = [\"/bin/true\"]\ninstance = \"VI_1\"\nshell = true"),
            vec![
                "4:6: error: `on` is empty",
                "6:12: warning: `instance` has no effect without style = \"keepalived\"",
                "7:1: error: unknown key `shell` in [[hook]]",
            ],
        ),
        (
            input(
                "[[input.forward]]\nlisten = \"tcp://:24224\"\nusers_file = \"u\"\nmax_chunk = \"256MiB\"\npassword = 1",
            ),
            vec![
                "4:10: error: `listen` has no protocol here: chunks come over TCP, heartbeats over UDP, both to one address",
                "5:14: error: `users_file` needs shared_key_file: users log in after the key",
                "6:13: error: `max_chunk` must lie between 1MiB and 64MiB",
                "7:1: error: `password` in [[input.forward]] holds a secret",
            ],
        ),
        (
            input("[[input.forward]]\nlisten = \":514\""),
            vec![
                "4:10: error: udp://[::]:514 is already taken by udp://[::]:514 at t.toml:2:10",
                "4:10: error: tcp://[::]:514 is already taken by tcp://[::]:514 at t.toml:2:10",
            ],
        ),
        (
            input("[[input.relp]]\nlisten = [\"udp://:2514\", \"tls://:514\"]\nudp_rcvbuf = \"1MiB\""),
            vec![
                "4:10: error: `listen` with tls:// needs `tls`",
                "4:11: error: `listen` cannot be udp://: RELP goes over TCP",
                "4:26: error: tls://[::]:514 is already taken by tcp://[::]:514 at t.toml:2:10",
                "5:1: error: unknown key `udp_rcvbuf` in [[input.relp]]",
            ],
        ),
        (
            input("[output.stdout]"),
            vec!["3:1: error: `stdout` is a list of tables", "4:10: error: `stdout` is here a second time"],
        ),
        (output("[[output.forward]]"), vec!["3:1: error: `to` is missing"]),
        (
            output("[[output.forward]]\nto = \"127.0.0.1:514\"\nbalance = \"all\"\ncompress = true\nwindow = 2000"),
            vec![
                "4:6: error: tcp://127.0.0.1:514 is this node's own tcp://[::]:514: every message would come back for ever",
                "5:11: error: `balance` cannot be \"all\"",
                "6:12: error: `compress` must be a text, not true or false",
                "7:10: error: `window` must lie between 1 and 1024",
            ],
        ),
        (
            output("[[output.forward]]\nto = [\"a\", \"a:24224\"]\nrequire_ack = false\nack_timeout = \"5s\""),
            vec![
                "4:12: error: tcp://a:24224 is in the list twice",
                "5:15: warning: `require_ack` false loses what a server has taken and not written when it dies",
                "6:15: warning: `ack_timeout` has no effect without require_ack",
            ],
        ),
        (
            output("[[output.forward]]\nto = \"a\"\nusername = \"u\"\nshared_key = \"k\""),
            vec![
                "5:12: error: `username` needs password_file",
                "5:12: error: `username` needs shared_key_file: without a key nobody asks",
                "6:1: error: `shared_key` in [[output.forward]] holds a secret",
            ],
        ),
        (output("[[output.file]]"), vec!["3:1: error: `path` is missing"]),
        (
            output("[[output.file]]\npath = \"/var/log/%Q\""),
            vec!["4:8: error: `path` has a `%` field that is not known"],
        ),
        (
            output("[[output.file]]\nname = \"a\"\npath = \"/a/b\"\n[[output.file]]\nname = \"b\"\npath = \"/a//b\""),
            vec!["8:8: error: the output at t.toml:5:8 writes to the same file"],
        ),
        (
            output("[[output.file]]\npath = \"/a\"\nrotate = { keep = 3 }"),
            vec!["5:19: warning: `keep` has no effect: without size or age no new file is begun"],
        ),
        (
            output("[[output.file]]\npath = \"/a\"\n[[output.stdout]]\nname = \"file-0\""),
            vec!["6:8: error: the name `file-0` is already that of the output at t.toml:3:1"],
        ),
        (
            output("[[output.syslog]]\nto = [\"tcp://a\", \"tcp://a:514\"]"),
            vec!["4:18: error: tcp://a:514 is in the list twice"],
        ),
        (
            output("[[output.syslog]]\nto = \"udp://127.0.0.1\""),
            vec![
                "4:6: error: udp://127.0.0.1:514 is this node's own udp://[::]:514: every message would come back for ever",
            ],
        ),
        (
            output("[[output.syslog]]\nto = \"udp://a\"\nframing = \"octet\""),
            vec!["5:11: warning: `framing` has no effect over UDP, where a datagram is a message"],
        ),
        (output("[[output.syslog]]\nframing = \"octet\"\nto = \"tcp://a\""), vec![]),
        (
            output("[[output.stdout]]\nretry = { min = \"1min\", max = \"30s\" }"),
            vec!["4:17: error: `min` must not be longer than `max`, 30s"],
        ),
        (
            output(
                "[[output.stdout]]\nmatch = { facility = \"local9\", severity_at_least = \"bad\", tag = [\"a\", 3] }",
            ),
            vec![
                "4:22: error: `facility` has no facility \"local9\"",
                "4:52: error: `severity_at_least` has no severity \"bad\"",
                "4:71: error: `tag` must be a text, not a number",
            ],
        ),
        (output("[[output.stdout]]\nmatch = true"), vec!["4:9: error: `match` must be a table"]),
    ] {
        assert_eq!(wrong(&text), expected, "{text}");
    }
}
