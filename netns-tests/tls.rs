//! Syslog inside TLS through the virtual address: its connections cannot move, so a drain has them end.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

use super::aggregators::{Aggregator, Client, pair};
use super::lab::{Switch, VIP_V4, wait_until};
use super::ledger::{Account, Ledger};
use super::rsyslog::Rsyslog;

const PORT: u16 = 6514;
const PER_SECOND: u32 = 1_000;

/// Writes `tls.crt`, which signs itself, and `tls.key`.
fn certificate(directory: &Path) {
    let own = rcgen::generate_simple_self_signed(["logs.example.net".to_owned()]).unwrap();
    std::fs::write(directory.join("tls.crt"), own.cert.pem()).unwrap();
    std::fs::write(directory.join("tls.key"), own.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(directory.join("tls.key"), PermissionsExt::from_mode(0o600)).unwrap();
}

#[test]
fn rsyslogs_connections_end_between_two_messages_and_nothing_is_lost() {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let ledger = Ledger::start(&c);
    let directory = TempDir::with_prefix("tls-").unwrap();
    certificate(directory.path());
    let path = directory.path().display();
    let input = format!(
        "[[input.syslog]]\nname = \"tls\"\nlisten = \"tls://:{PORT}\"\n\
         tls = {{ cert_file = \"{path}/tls.crt\", key_file = \"{path}/tls.key\" }}\n"
    );
    let nodes = pair([&a, &b], &input);
    let global = format!("global(defaultNetstreamDriver=\"gtls\" defaultNetstreamDriverCAFile=\"{path}/tls.crt\")\n");
    let action = |framing: &str| {
        format!(
            "type=\"omfwd\" target=\"{VIP_V4}\" port=\"{PORT}\" protocol=\"tcp\" streamDriver=\"gtls\" streamDriverMode=\"1\" \
             streamDriverAuthMode=\"anon\" tcp_framing=\"{framing}\""
        )
    };
    let mut rsyslog = Rsyslog::start(&d, &global, &[action("traditional"), action("octet-counted")], PER_SECOND);
    let client = Client::start(&d, VIP_V4.into(), "one");
    for round in 0..2 {
        let before = ["rsyslog0", "rsyslog1"].map(|name| ledger.count(name));
        wait_until("rsyslog is connected", || {
            ["rsyslog0", "rsyslog1"].iter().zip(before).all(|(name, before)| ledger.count(name) > before + 100)
        });
        client.wait_for_more(30);
        let from = &nodes[(round + 1) % 2];
        wait_until("both are in sync", || nodes.iter().all(Aggregator::is_in_sync));
        let (status, said) = from.ask(&["drain", "--json", "--quiet"]);
        assert_eq!(status, Some(0), "round {round}: {said}");
        let receipt: serde_json::Value = serde_json::from_str(&said).unwrap();
        println!("round {round}: {} {} {}", receipt["verdict"], receipt["connections"], receipt["stages"]);
        assert_eq!(receipt["verdict"], "ZERO LOSS");
        assert_eq!(receipt["connections"]["cut"], 0);
        assert_eq!(from.ask(&["undrain"]).0, Some(0));
        assert_eq!(from.ask(&["await", "standby", "--timeout", "30s"]).0, Some(0));
    }
    client.stop();
    let sent = rsyslog.stop();
    for (at, count) in sent.into_iter().enumerate() {
        let account = ledger.account(&format!("rsyslog{at}"), count);
        println!("rsyslog{at}: {count} sent, {account:?}");
        assert_eq!(account, Account::default());
    }
}
