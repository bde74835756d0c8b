//! What a `keepalived.conf` says that a pair needs: `init --from-keepalived`.
//!
//! The language as keepalived 2.2 reads it: words in lines, blocks in braces, `#` and `!` begin comments, quotes keep
//! words together (keepalived.conf(5)). Pure: text in, instances out. Whatever is not taken over is listed with its line,
//! so that nobody misses a setting without having been told. A password is never shown.

use std::net::IpAddr;
use std::time::Duration;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Every `vrrp_instance`, in order.
    pub instances: Vec<Instance>,
    /// Lines outside of every instance that are not taken over.
    pub ignored: Vec<Ignored>,
}

/// A line that is not taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ignored {
    /// From 1.
    pub line: usize,
    /// The line's keyword, or as much of the line as says what it is.
    pub what: String,
    /// Why, or what happens instead.
    pub why: &'static str,
}

/// One `vrrp_instance`.
#[derive(Debug, Default)]
pub(super) struct Instance {
    pub name: String,
    /// Where it begins, from 1.
    pub line: usize,
    pub interface: Option<String>,
    pub vrid: Option<u8>,
    /// keepalived's default is 100.
    pub priority: u8,
    /// keepalived's default is 2; IPv6 is always 3.
    pub version: u8,
    /// keepalived's default is one second.
    pub interval: Duration,
    /// As written: an address, maybe with a prefix length. No address twice.
    pub vips: Vec<String>,
    pub preempt: bool,
    pub preempt_delay: Option<Duration>,
    pub password: Option<String>,
    /// `unicast_src_ip` or `mcast_src_ip`.
    pub source: Option<IpAddr>,
    pub peers: Vec<IpAddr>,
    /// Events, and the command with its arguments.
    pub notifies: Vec<(&'static [&'static str], Vec<String>)>,
    /// Lines in it that are not taken over.
    pub ignored: Vec<Ignored>,
}

/// A line, and the block that follows it.
#[derive(Debug)]
struct Statement {
    line: usize,
    words: Vec<String>,
    block: Vec<Statement>,
}

impl Statement {
    fn word(&self, at: usize) -> &str {
        self.words.get(at).map_or("", String::as_str)
    }

    fn ignored(&self, why: &'static str) -> Ignored {
        let what = if self.words.len() > 1 && !self.word(0).contains("pass") {
            format!("{} {}", self.word(0), self.word(1))
        } else {
            self.word(0).to_owned()
        };
        Ignored { line: self.line, what, why }
    }
}

const NO_COUNTERPART: &str = "has no counterpart";
const ELECTED: &str = "the election decides who begins";

/// Reads a whole file.
pub(super) fn read(text: &str) -> Found {
    let mut found = Found::default();
    let mut version = 2;
    let statements = parse(text);
    for global in statements.iter().filter(|statement| statement.word(0) == "global_defs") {
        for statement in &global.block {
            match statement.word(0) {
                "vrrp_version" if ["2", "3"].contains(&statement.word(1)) => {
                    version = if statement.word(1) == "3" { 3 } else { 2 };
                }
                _ => found.ignored.push(statement.ignored(NO_COUNTERPART)),
            }
        }
    }
    for statement in &statements {
        match statement.word(0) {
            "global_defs" => {}
            "vrrp_instance" => found.instances.push(instance(statement, version)),
            "vrrp_sync_group" => found.ignored.push(statement.ignored("all addresses of a pair move together")),
            "include" => found.ignored.push(statement.ignored("is not read; import that file itself")),
            "virtual_server" | "virtual_server_group" => {
                found.ignored.push(statement.ignored("balancing load is not what twinlog does"));
            }
            _ => found.ignored.push(statement.ignored(NO_COUNTERPART)),
        }
    }
    found
}

fn instance(statement: &Statement, version: u8) -> Instance {
    let mut instance = Instance {
        name: statement.word(1).to_owned(),
        line: statement.line,
        priority: 100,
        version,
        interval: Duration::from_secs(1),
        preempt: true,
        ..Instance::default()
    };
    for statement in &statement.block {
        if let Err(why) = instance.take(statement) {
            instance.ignored.push(statement.ignored(why));
        }
    }
    let has_both = [true, false].map(|v6| instance.vips.iter().any(|vip| vip.contains(':') == v6)) == [true; 2];
    if has_both && instance.version == 2 {
        let why = "2 becomes 3, without which IPv6 addresses do not move; keepalived's other node needs vrrp_version 3";
        instance.ignored.push(Ignored { line: statement.line, what: "version".to_owned(), why });
    }
    if instance.vips.iter().any(|vip| vip.contains(':')) {
        instance.version = 3;
    }
    if instance.version == 3 && instance.password.take().is_some() {
        let why = "version 3 has no password, and keepalived ignores it too";
        instance.ignored.push(Ignored { line: statement.line, what: "authentication".to_owned(), why });
    }
    instance
}

impl Instance {
    /// Takes one line over, or says why not.
    fn take(&mut self, statement: &Statement) -> Result<(), &'static str> {
        let value = statement.word(1);
        match statement.word(0) {
            "interface" => self.interface = Some(value.to_owned()),
            "virtual_router_id" => self.vrid = Some(value.parse().map_err(|_| "is no number from 1 to 255")?),
            "priority" => self.priority = value.parse().map_err(|_| "is no number from 1 to 255; 100 is taken")?,
            "version" => {
                self.version = value.parse().ok().filter(|n| [2, 3].contains(n)).ok_or("is neither 2 nor 3")?
            }
            "advert_int" => self.interval = seconds(value).ok_or("is no time; one second is taken")?,
            "nopreempt" => self.preempt = false,
            "preempt" => self.preempt = true,
            "preempt_delay" => self.preempt_delay = Some(seconds(value).ok_or("is no time")?),
            "unicast_src_ip" | "mcast_src_ip" => self.source = Some(value.parse().map_err(|_| "is no address")?),
            "unicast_peer" => self.peers(statement),
            "virtual_ipaddress" | "virtual_ipaddress_excluded" => self.addresses(statement),
            "authentication" => self.authentication(statement),
            "state" => return Err(ELECTED),
            keyword if keyword.starts_with("notify") => self.notify(statement)?,
            "garp_master_delay" | "garp_master_repeat" | "garp_master_refresh" | "garp_master_refresh_repeat" => {
                return Err("twinlog announces the addresses on a schedule of its own");
            }
            "track_interface" | "track_script" | "track_process" | "track_file" | "track_bfd" => {
                return Err("twinlog judges by itself whether the node is fit to serve");
            }
            _ => return Err(NO_COUNTERPART),
        }
        Ok(())
    }

    fn peers(&mut self, statement: &Statement) {
        for line in &statement.block {
            match line.word(0).parse() {
                Ok(peer) => self.peers.push(peer),
                Err(_) => self.ignored.push(line.ignored("is no address")),
            }
        }
    }

    fn addresses(&mut self, statement: &Statement) {
        let excluded = statement.word(0).ends_with("excluded");
        for line in &statement.block {
            let written = line.word(0);
            let address = written.split('/').next().unwrap_or_default();
            if address.parse::<IpAddr>().is_err() {
                self.ignored.push(line.ignored("is no address"));
                continue;
            }
            let known = |vip: &String| vip.split('/').next() == Some(address);
            if !self.vips.iter().any(known) {
                self.vips.push(written.to_owned());
            }
            if excluded {
                self.ignored.push(line.ignored("moves with the others, and is advertised with them"));
            } else if line.words.len() > 1 {
                let why = "the address is taken over; what follows it is not: no label, device, scope or broadcast";
                self.ignored.push(line.ignored(why));
            }
        }
    }

    fn authentication(&mut self, statement: &Statement) {
        let kind = statement.block.iter().find(|line| line.word(0) == "auth_type").map(|line| line.word(1).to_owned());
        for line in &statement.block {
            match line.word(0) {
                "auth_type" if line.word(1) == "PASS" => {}
                "auth_pass" if kind.as_deref() == Some("PASS") => {
                    // What is behind the eighth byte, keepalived does not send either.
                    self.password = Some(line.word(1).chars().take(8).collect());
                }
                _ => self.ignored.push(line.ignored("only a password (auth_type PASS) is known")),
            }
        }
    }

    fn notify(&mut self, statement: &Statement) -> Result<(), &'static str> {
        let on: &[&str] = match statement.word(0) {
            "notify" => &["active", "standby", "fault", "stop"],
            "notify_master" => &["active"],
            "notify_backup" => &["standby"],
            "notify_fault" => &["fault"],
            "notify_stop" => &["stop"],
            _ => return Err(NO_COUNTERPART),
        };
        let command: Vec<String> = statement.word(1).split_whitespace().map(str::to_owned).collect();
        if !command.first().is_some_and(|program| program.starts_with('/')) {
            return Err("the command has no absolute path");
        }
        self.notifies.push((on, command));
        if statement.words.len() > 2 {
            return Err("the hook is taken over, and runs as the daemon's user");
        }
        Ok(())
    }
}

/// `1`, `0.1`; keepalived's resolution is a microsecond, ours a centisecond.
fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.parse().ok()?;
    let centiseconds = (seconds * 100.0).round();
    (0.0..=360_000.0).contains(&centiseconds).then(|| Duration::from_millis(centiseconds as u64 * 10))
}

/// Lines and blocks. An end of a block that nobody began is passed over, and one that is missing is at the text's end.
fn parse(text: &str) -> Vec<Statement> {
    let mut open: Vec<Vec<Statement>> = vec![Vec::new()];
    for (line, text) in text.lines().enumerate() {
        let mut words = Vec::new();
        for token in tokens(text) {
            match token {
                Token::Word(word) => words.push(word),
                Token::Open => {
                    finish(&mut open, line + 1, &mut words);
                    open.push(Vec::new());
                }
                Token::Close => {
                    finish(&mut open, line + 1, &mut words);
                    close(&mut open);
                }
            }
        }
        finish(&mut open, line + 1, &mut words);
    }
    while open.len() > 1 {
        close(&mut open);
    }
    open.pop().unwrap_or_default()
}

fn finish(open: &mut [Vec<Statement>], line: usize, words: &mut Vec<String>) {
    if let Some(block) = open.last_mut().filter(|_| !words.is_empty()) {
        block.push(Statement { line, words: std::mem::take(words), block: Vec::new() });
    }
}

/// Gives the innermost block to the line before it.
fn close(open: &mut Vec<Vec<Statement>>) {
    if open.len() > 1
        && let Some(block) = open.pop()
        && let Some(owner) = open.last_mut().and_then(|outer| outer.last_mut())
    {
        owner.block.extend(block);
    }
}

enum Token {
    Word(String),
    Open,
    Close,
}

fn tokens(line: &str) -> Vec<Token> {
    let (mut tokens, mut word, mut quote, mut quoted) = (Vec::new(), String::new(), None, false);
    let mut end = |word: &mut String, quoted: &mut bool, token: Option<Token>| {
        if !word.is_empty() || std::mem::take(quoted) {
            tokens.push(Token::Word(std::mem::take(word)));
        }
        tokens.extend(token);
    };
    for c in line.chars() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.push(c),
            ('"' | '\'', None) => (quote, quoted) = (Some(c), true),
            ('#' | '!', None) => break,
            ('{', None) => end(&mut word, &mut quoted, Some(Token::Open)),
            ('}', None) => end(&mut word, &mut quoted, Some(Token::Close)),
            (c, None) if c.is_whitespace() => end(&mut word, &mut quoted, None),
            (c, None) => word.push(c),
        }
    }
    end(&mut word, &mut quoted, None);
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: &str = r#"! a comment
global_defs {
    router_id LVS   # ignored
    vrrp_version 2
}
vrrp_script chk { script "/bin/true" }
vrrp_instance VI_1
{
    state MASTER
    interface eth0
    virtual_router_id 51
    priority 150
    advert_int 2
    nopreempt
    preempt_delay 5
    authentication {
        auth_type PASS
        auth_pass s3cr3t-and-more
    }
    unicast_src_ip 192.0.2.11
    unicast_peer { 192.0.2.12
    }
    virtual_ipaddress {
        192.0.2.10/24 dev eth0 label eth0:1
        192.0.2.10
    }
    virtual_ipaddress_excluded { 192.0.2.20/24 }
    notify "/etc/keepalived/notify.sh core" root
    notify_master /etc/keepalived/master.sh
    notify_deleted /x
}
"#;

    #[test]
    fn an_instance_is_taken_over_and_every_other_line_is_listed() {
        let found = read(PAIR);
        let [instance] = &found.instances[..] else { panic!("{found:?}") };
        assert_eq!((instance.name.as_str(), instance.interface.as_deref()), ("VI_1", Some("eth0")));
        assert_eq!((instance.vrid, instance.priority, instance.version), (Some(51), 150, 2));
        assert_eq!((instance.interval.as_secs(), instance.preempt), (2, false));
        assert_eq!(instance.preempt_delay, Some(Duration::from_secs(5)));
        assert_eq!(instance.vips, ["192.0.2.10/24", "192.0.2.20/24"]);
        assert_eq!(instance.password.as_deref(), Some("s3cr3t-a"));
        assert_eq!(
            (instance.source, &instance.peers[..]),
            ("192.0.2.11".parse().ok(), &["192.0.2.12".parse().unwrap()][..])
        );
        assert_eq!(instance.notifies[0].1, ["/etc/keepalived/notify.sh", "core"]);
        assert_eq!((instance.notifies[1].0, instance.notifies.len()), (&["active"][..], 2));
        let lines = |ignored: &[Ignored]| ignored.iter().map(|ignored| ignored.line).collect::<Vec<_>>();
        assert_eq!(lines(&found.ignored), [3, 6]);
        assert_eq!(lines(&instance.ignored), [9, 24, 27, 28, 30]);
        assert!(!format!("{:?}", instance.ignored).contains("s3cr3t"));
    }

    #[test]
    fn ipv6_is_version_3_and_has_no_password() {
        let text = "vrrp_instance six {\n authentication {\n auth_type PASS\n auth_pass x\n }\n advert_int 0.1\n \
                    virtual_ipaddress {\n fe80::100\n 2001:db8::100/64\n }\n}";
        let instance = &read(text).instances[0];
        assert_eq!((instance.version, &instance.password), (3, &None));
        assert_eq!(instance.interval, Duration::from_millis(100));
        assert_eq!(instance.ignored[0].what, "authentication");
    }

    #[test]
    fn any_text_is_read_without_a_panic() {
        for text in [
            "}}}}",
            "{{{{",
            "vrrp_instance",
            "vrrp_instance {",
            "\"",
            "a { b { c",
            "advert_int {",
            "vrrp_instance x { notify \"\" }",
        ] {
            read(text);
        }
        let whole = PAIR.repeat(3);
        for end in 0..whole.len() {
            read(&whole[..end]);
        }
    }

    #[test]
    fn debians_samples_are_read() {
        // They come with the package, compressed or not; where it is not installed there is nothing to look at.
        let samples = std::fs::read_dir("/usr/share/doc/keepalived/samples").into_iter().flatten().flatten();
        for sample in samples {
            let Ok(text) = std::fs::read_to_string(sample.path()) else { continue };
            for instance in read(&text).instances {
                assert!(instance.vrid.is_some() && !instance.vips.is_empty(), "{:?}: {instance:?}", sample.path());
            }
        }
    }
}
