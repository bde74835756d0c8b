//! `[pair]` from outside: what it means, what is wrong with it, and which of the two nodes a machine is.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::proto::vrrp::Version;

const REST: &str = "[journal]\nacknowledge = \"durable\"\n[[input.syslog]]\nlisten = \":514\"\n[[output.stdout]]\n";

/// The smallest pair of the contract, with further keys.
fn file(keys: &str) -> String {
    let nodes = "{ name = \"agg-a\", address = \"192.0.2.11\" }, { name = \"agg-b\", address = \"192.0.2.12\" }";
    format!("[pair]\nvip = \"192.0.2.10/24\"\ninterface = \"eth0\"\nnodes = [{nodes}]\n{keys}\n{REST}")
}

fn host(addresses: &[&str]) -> Identity {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    Identity::new("somewhere".parse().unwrap(), addresses)
}

fn read_on(text: &str, identity: Identity) -> Result<Loaded, Vec<Diagnostic>> {
    let source = Source { name: "/etc/twinlog/twinlog.toml".to_owned(), text: text.to_owned() };
    read(&[source], identity).and_then(Loaded::recognised)
}

fn pair(text: &str) -> Pair {
    let loaded = read_on(text, host(&["127.0.0.1", "192.0.2.11"]));
    loaded.unwrap_or_else(|found| panic!("{}", Report { diagnostics: &found, colour: false })).config.pair.unwrap()
}

/// The first lines of what is wrong, without the file's name.
fn wrong(text: &str) -> Vec<String> {
    let found = match read_on(text, host(&["192.0.2.11"])) {
        Ok(loaded) => loaded.warnings,
        Err(found) => found,
    };
    let first = |one: &Diagnostic| one.to_string().lines().next().unwrap().to_owned();
    found.iter().map(|one| first(one).trim_start_matches("/etc/twinlog/twinlog.toml:").to_owned()).collect()
}

#[test]
fn the_smallest_pair_gets_every_default() {
    let pair = pair(&file(""));
    assert_eq!(pair.vips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.10/24"]);
    assert_eq!((pair.vrid.get(), pair.interval.version()), (10, Version::V3));
    assert_eq!(pair.interval.duration(), Duration::from_millis(100));
    assert_eq!((pair.preempt, pair.preempt_delay), (false, Duration::from_secs(30)));
    assert_eq!((pair.unicast, pair.vip_lease, &pair.auth_pass_file), (false, Some(Duration::from_secs(2)), &None));
    assert_eq!((pair.port, pair.on_peer_loss), (8514, PeerLoss::Degrade));
    assert_eq!(pair.key_file, Path::new("/etc/twinlog/pair.key"), "beside the file");
    assert_eq!(pair.nodes.each_ref().map(|node| node.priority.0), [100, 100]);
}

#[test]
fn a_machine_is_the_node_whose_address_it_has_or_whose_name_is_given() {
    let name = |identity| read_on(&file(""), identity).map(|loaded| loaded.config.node.to_string());
    assert_eq!(name(host(&["10.0.0.1", "192.0.2.12"])).unwrap(), "agg-b");
    let given = Identity::of_this_machine(Some("agg-a")).unwrap();
    let loaded = read_on(&file(""), given).unwrap();
    let pair = loaded.config.pair.unwrap();
    assert_eq!((&*pair.own_node().name.to_string(), &*pair.peer_node().name.to_string()), ("agg-a", "agg-b"));
    for (identity, what, fix) in [
        (
            host(&["10.0.0.1"]),
            "4:9: error: `nodes` are both other machines: this one has neither 192.0.2.11 nor 192.0.2.12",
            "give --node or TWINLOG_NODE: agg-a or agg-b",
        ),
        (
            host(&["192.0.2.12", "192.0.2.11"]),
            "4:9: error: `nodes` are both this machine: it has either address",
            "give --node or TWINLOG_NODE: agg-a or agg-b",
        ),
        (
            Identity::of_this_machine(Some("agg-c")).unwrap(),
            "4:9: error: `nodes` has no node called agg-c, which --node or TWINLOG_NODE names",
            "name agg-a or agg-b",
        ),
    ] {
        let found = read_on(&file(""), identity).unwrap_err();
        let [found] = &found[..] else { panic!("{found:?}") };
        let text = found.to_string();
        assert!(text.contains(what) && text.contains(fix), "{text}");
    }
}

#[test]
fn a_file_for_other_machines_can_be_looked_at() {
    let loaded = parse(&file(""), "t.toml").unwrap();
    assert_eq!((loaded.config.node.to_string().as_str(), &*loaded.warnings), ("localhost", &[][..]));
    assert_eq!(check_environment(&loaded).iter().filter(|one| one.to_string().contains("other machines")).count(), 1);
}

#[test]
fn version_2_counts_in_seconds_and_may_have_a_password() {
    let pair = pair(&file("vrrp_version = 2\nauth_pass_file = \"pass\"\nvip_lease = \"off\"\nunicast = true"));
    assert_eq!((pair.interval.version(), pair.interval.duration()), (Version::V2, Duration::from_secs(1)));
    assert_eq!((pair.auth_pass_file.as_deref(), pair.vip_lease), (Some(Path::new("pass")), None));
}

#[test]
fn each_mistake_in_a_pair_is_named() {
    for (keys, expected) in [
        ("vrid = 0", "5:8: error: `vrid` must lie between 1 and 255"),
        ("vrid = \"7\"", "5:8: error: `vrid` must be a number, not a text"),
        ("vrrp_version = 4", "5:16: error: `vrrp_version` must lie between 2 and 3"),
        ("advert_interval = \"5ms\"", "5:19: error: `advert_interval` must lie between 10ms and 40950ms"),
        (
            "advert_interval = \"15ms\"",
            "5:19: error: `advert_interval` cannot be that: version 3 advertises every 10 ms to 40.95 s, in steps of 10 ms",
        ),
        (
            "vrrp_version = 2\nadvert_interval = \"1500ms\"",
            "6:19: error: `advert_interval` cannot be that: version 2 advertises every 1 to 255 whole seconds",
        ),
        ("preempt_delay = \"5s\"", "5:17: warning: `preempt_delay` has no effect without preempt"),
        ("auth_pass_file = \"x\"", "5:18: error: `auth_pass_file` needs vrrp_version = 2: version 3 has no password"),
        ("auth_pass = \"x\"", "5:1: error: `auth_pass` in [pair] holds a secret"),
        ("vip_lease = \"1500ms\"", "5:13: error: `vip_lease` must be whole seconds: the kernel counts so"),
        ("vip_lease = \"0s\"", "5:13: error: `vip_lease` must lie between 1s and 1h"),
        ("port = 65536", "5:8: error: `port` must lie between 1 and 65535"),
        ("on_peer_loss = \"wait\"", "5:16: error: `on_peer_loss` cannot be \"wait\""),
        ("vripd = 1", "5:1: error: unknown key `vripd` in [pair]"),
        ("vrid = 1\n[log]\nlevel = \"loud\"", "7:9: error: `level` cannot be \"loud\""),
    ] {
        assert_eq!(wrong(&file(keys)), [expected], "{keys}");
    }
    let replaced = |from: &str, to: &str| wrong(&file("").replace(from, to));
    for (from, to, expected) in [
        ("interface = \"eth0\"", "", "1:1: error: `interface` is missing"),
        (
            "\"eth0\"",
            "\"eth 0\"",
            "3:13: error: `interface` is no name of an interface: 1 to 15 letters without spaces",
        ),
        ("vip = \"192.0.2.10/24\"", "", "1:1: error: `vip` is missing"),
        ("2.10/24", "2.10/33", "2:7: error: `vip` has no prefix length \"33\""),
        ("192.0.2.10/24", "127.0.0.1", "2:7: error: `vip` cannot be 127.0.0.1, which no host of a LAN has"),
        ("192.0.2.10/24", "192.0.2.0", "1:1: error: `vrid` is missing, and the first VIP ends in 0"),
        ("2.10/24\"", "2.10/24\"\nvrid = 8\nvip2 = 1", "4:1: error: unknown key `vip2` in [pair]"),
        ("\"192.0.2.10/24\"", "[\"10.0.0.1\", \"10.0.0.1/8\"]", "2:20: error: `vip` has 10.0.0.1 twice"),
        ("192.0.2.10/24", "192.0.2.12", "2:7: error: 192.0.2.12 is the address of agg-b, so it cannot move"),
        ("192.0.2.10/24", "2001:db8::10", "2:7: error: no VIP is of the family of the nodes' addresses"),
        (
            "192.0.2.10/24",
            "192.0.3.10/24",
            "2:7: warning: 192.0.3.10/24 is in another network than 192.0.2.11, the address of agg-a",
        ),
        ("\"agg-b\"", "\"agg-a\"", "4:9: error: both nodes are called agg-a"),
        ("2.12\" }", "2.12\", priority = 255 }", "4:107: error: `priority` must lie between 1 and 254"),
        ("2.12\" }", "2.12/24\" }", "4:82: error: `address` has no prefix length: it is one host"),
        ("2.12\" }", "2.12\", prio = 9 }", "4:96: error: unknown key `prio` in [pair.nodes]"),
    ] {
        let found = replaced(from, to);
        assert_eq!(found.first().map(String::as_str), Some(expected), "{to}: {found:?}");
    }
    let one = file("").replace(", { name = \"agg-b\", address = \"192.0.2.12\" }", "");
    assert_eq!(wrong(&one), ["4:9: error: `nodes` has two nodes, not 1"]);
}

#[test]
fn two_families_move_together_and_only_over_version_3_and_multicast() {
    let both = file("").replace("\"192.0.2.10/24\"", "[\"192.0.2.10\", \"2001:db8::10/64\"]");
    let addresses: Vec<IpAddr> = pair(&both).addresses().collect();
    assert_eq!(addresses, ["192.0.2.10", "2001:db8::10"].map(|address| address.parse::<IpAddr>().unwrap()));
    let with = |key: &str| wrong(&both.replace("interface", &format!("{key}\ninterface")));
    assert_eq!(with("vrrp_version = 2"), ["3:16: error: version 2 has no IPv6, and 2001:db8::10 is"]);
    let unicast = "3:11: error: unicast cannot carry 2001:db8::10: the nodes' addresses are of the other family";
    assert_eq!(with("unicast = true"), [unicast]);
}

#[test]
fn with_a_pair_acknowledged_means_on_both_disks_unless_told_otherwise() {
    let acknowledge =
        |text: &str| read_on(text, host(&["192.0.2.11"])).map(|loaded| loaded.config.journal.acknowledge).ok();
    let silent = file("").replace("[journal]\nacknowledge = \"durable\"\n", "[journal]\n");
    assert_eq!(acknowledge(&silent), Some(Acknowledge::Replicated));
    assert_eq!(acknowledge(&silent.replace("[journal]\n", "")), Some(Acknowledge::Replicated), "without the table");
    assert_eq!(acknowledge(&file("")), Some(Acknowledge::Durable));
    assert_eq!(pair(&file("on_peer_loss = \"stop\"")).on_peer_loss, PeerLoss::Stop);
}

#[test]
fn secrets_of_a_pair_are_judged_by_their_form() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        use std::os::unix::fs::OpenOptionsExt;
        let path = directory.path().join(name);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.create(true).write(true).mode(0o600).open(&path).unwrap();
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        path
    };
    assert!(read_password(&write("good", "secret12\n")).is_ok());
    let long = read_password(&write("long", "secret123\n")).unwrap_err().what;
    assert!(long.contains("is longer than 8 bytes") && !long.contains("secret"), "{long}");
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n";
    assert_eq!(read_pair_key(&write("key", key)).unwrap()[31], 31);
    let short = read_pair_key(&write("short", "AAEC\n")).unwrap_err().what;
    assert!(short.contains("does not hold 32 bytes in base64") && !short.contains("AAEC"), "{short}");
}
