//! Syslog and RELP inside TLS through the virtual address: these connections cannot move, so a drain has them end.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

use super::aggregators::{Aggregator, Client, pair};
use super::lab::{Switch, VIP_V4, wait_until};
use super::ledger::{Account, Ledger};
use super::rsyslog::Rsyslog;

const PORT: u16 = 6514;
const RELP_PORT: u16 = 2515;
/// Whom the certificate is for.
const NAME: &str = "logs.example.net";
const PER_SECOND: u32 = 1_000;

/// Writes `tls.crt`, which signs itself, and `tls.key`.
fn certificate(directory: &Path) {
    let own = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
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
    let tls = format!("tls = {{ cert_file = \"{path}/tls.crt\", key_file = \"{path}/tls.key\" }}");
    let inputs = format!(
        "[[input.syslog]]\nname = \"tls\"\nlisten = \"tls://:{PORT}\"\n{tls}\n\
         [[input.relp]]\nname = \"relp\"\nlisten = \"tls://:{RELP_PORT}\"\n{tls}\n"
    );
    let nodes = pair([&a, &b], &inputs);
    let global = format!("global(defaultNetstreamDriver=\"gtls\" defaultNetstreamDriverCAFile=\"{path}/tls.crt\")\n");
    let omfwd = |framing: &str| {
        format!(
            "type=\"omfwd\" target=\"{VIP_V4}\" port=\"{PORT}\" protocol=\"tcp\" streamDriver=\"gtls\" streamDriverMode=\"1\" \
             streamDriverAuthMode=\"anon\" tcp_framing=\"{framing}\""
        )
    };
    let omrelp = format!(
        "type=\"omrelp\" target=\"{VIP_V4}\" port=\"{RELP_PORT}\" timeout=\"10\" tls=\"on\" tls.authMode=\"name\" \
         tls.permittedPeer=\"{NAME}\" tls.caCert=\"{path}/tls.crt\" tls.myCert=\"{path}/tls.crt\" tls.myPrivKey=\"{path}/tls.key\""
    );
    let actions = [("lines", omfwd("traditional")), ("counted", omfwd("octet-counted")), ("relp", omrelp)];
    let mut rsyslog = Rsyslog::start(&d, &global, &actions, PER_SECOND);
    let client = Client::start(&d, VIP_V4.into(), "one");
    for round in 0..2 {
        let before = actions.each_ref().map(|(name, _)| ledger.count(name));
        wait_until("rsyslog is connected", || {
            actions.iter().zip(before).all(|((name, _), before)| ledger.count(name) > before + 100)
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
    for (name, count) in sent {
        let account = ledger.account(name, count);
        println!("{name}: {count} sent, {account:?}");
        assert_eq!(account, Account::default());
    }
}
