//! The screen of `twinlog status`: what was received, where it is, and whether everything was delivered.
//!
//! The last line is the answer people want; everything above is the proof. A row that needs someone to look begins with
//! `!`, and so does a fault.

use std::fmt::Write;

use super::format;
use super::table::{self, Row, left, right};
use super::{InputStatus, JournalStatus, LinkStatus, NodeStatus, OutputStatus, Status};
use crate::proto::stage::Stage;

/// An earlier look, for rates.
#[derive(Clone, Copy, Debug)]
pub struct Earlier<'a> {
    /// What was seen.
    pub status: &'a Status,
    /// How long before, in seconds.
    pub seconds: f64,
}

/// How to show it.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Columns of the terminal.
    pub width: usize,
    /// Whether with ANSI colours.
    pub colour: bool,
}

/// Shows a status. Without an earlier look there are no rates.
#[must_use]
pub fn render(status: &Status, earlier: Option<Earlier<'_>>, style: Style) -> String {
    let mut out = String::new();
    for node in &status.nodes {
        let before = earlier.and_then(|earlier| {
            let node = earlier.status.nodes.iter().find(|before| before.name == node.name && before.pid == node.pid);
            node.map(|node| Before { node, seconds: earlier.seconds })
        });
        render_node(&mut out, node, before, style);
    }
    out
}

/// What needs someone to look: nothing in it means healthy. `earlier` finds what is rising.
#[must_use]
pub fn problems(status: &Status, earlier: Option<Earlier<'_>>) -> Vec<String> {
    let mut problems = Vec::new();
    for node in &status.nodes {
        problems.extend(node.faults.iter().cloned());
        for (name, output) in node.outputs.iter().filter(|(_, output)| output_is_a_problem(output)) {
            let why = output.last_error.as_ref().map_or(String::new(), |error| format!(": {error}"));
            let behind = format::messages(output.backlog_messages);
            problems.push(format!("output {name} is not connected, {behind} behind{why}"));
        }
        let before = earlier.and_then(|earlier| earlier.status.nodes.iter().find(|before| before.name == node.name));
        for (name, input) in &node.inputs {
            let drops = before.and_then(|before| before.inputs.get(name)).map_or(0, |before| before.kernel_drops);
            if before.is_some() && input.kernel_drops > drops {
                let dropped = input.kernel_drops - drops;
                problems.push(format!("the kernel is dropping datagrams of input {name}: {dropped} just now"));
            }
        }
    }
    problems
}

/// This node in one line: `active, 12,431 messages/s in, 212 to deliver; the journal waits: full`.
#[must_use]
pub fn one_line(status: &Status, earlier: Option<Earlier<'_>>) -> String {
    let Some(node) = status.nodes.first() else { return String::new() };
    let received = |node: &NodeStatus| node.inputs.values().map(|input| input.messages).sum::<u64>();
    let before =
        earlier.and_then(|earlier| Some(Before { node: earlier.status.nodes.first()?, seconds: earlier.seconds }));
    let mut line = node.role.clone();
    if node.stage != Stage::Serving.as_str() {
        let _ = write!(line, ", {}", node.stage);
    }
    let rate = rate(before, received(node), |before| Some(received(before)));
    let waiting = node.journals.first().map_or(0, |journal| journal.messages);
    let _ = write!(line, ", {rate} messages/s in, {} to deliver", format::count(waiting));
    if node.restart_pending {
        line.push_str(", restart pending");
    }
    for fault in &node.faults {
        let _ = write!(line, "; {fault}");
    }
    // Whoever reads lines must not take part of one for another.
    line.replace(|c: char| c.is_control(), " ")
}

#[derive(Clone, Copy)]
struct Before<'a> {
    node: &'a NodeStatus,
    seconds: f64,
}

impl Before<'_> {
    fn rate(self, now: u64, before: u64) -> f64 {
        now.saturating_sub(before) as f64 / self.seconds.max(0.001)
    }
}

fn rate(before: Option<Before<'_>>, now: u64, earlier: impl Fn(&NodeStatus) -> Option<u64>) -> String {
    let rate = before.and_then(|before| Some(before.rate(now, earlier(before.node)?)));
    rate.map_or_else(|| "–".to_owned(), format::rate)
}

fn render_node(out: &mut String, node: &NodeStatus, before: Option<Before<'_>>, style: Style) {
    let bold = |text: &str| if style.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() };
    let _ = writeln!(out, "{} {}      up {}\n", node.role, bold(&node.name), format::uptime(node.uptime_seconds));
    nodes(out, node, before, style);
    out.push('\n');
    if let Some(link) = &node.link {
        let _ = writeln!(out, "  LINK to the peer: {}\n", link_state(link));
    }
    inputs(out, node, before, style);
    out.push('\n');
    outputs(out, node, before, style);
    out.push('\n');
    let (red, reset) = if style.colour { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    for fault in &node.faults {
        let _ = writeln!(out, "{red}! {fault}{reset}");
    }
    for (name, output) in node.outputs.iter().filter(|(_, output)| output_is_a_problem(output)) {
        if let Some(error) = &output.last_error {
            let _ = writeln!(out, "{red}! {name}: {error}{reset}");
        }
    }
    restart_pending(out, node);
    verdict(out, node, style);
}

fn nodes(out: &mut String, node: &NodeStatus, before: Option<Before<'_>>, style: Style) {
    let columns = [
        left("NODE"),
        left("ROLE"),
        left("STAGE"),
        right("UPTIME").dispensable(2),
        right("IN/s"),
        right("OUT/s"),
        right("JOURNAL"),
        left("STATE"),
        left("VERSION").dispensable(3),
    ];
    let received = |node: &NodeStatus| node.inputs.values().map(|input| input.messages).sum::<u64>();
    let arrived = |node: &NodeStatus| node.outputs.values().map(|output| output.acknowledged).sum::<u64>();
    let journal = node.journals.first();
    let row = Row {
        cells: vec![
            node.name.clone(),
            node.role.clone(),
            node.stage.clone(),
            format::uptime(node.uptime_seconds),
            rate(before, received(node), |before| Some(received(before))),
            rate(before, arrived(node), |before| Some(arrived(before))),
            journal.map_or(String::new(), journal_cell),
            journal.map_or(String::new(), |journal| journal.state.clone()),
            node.version.clone(),
        ],
        problem: !node.faults.is_empty(),
    };
    table::write(out, &columns, &[row], style.width, style.colour);
}

fn link_state(link: &LinkStatus) -> String {
    match link {
        LinkStatus { connected: false, .. } => "none: one copy of every message".to_owned(),
        LinkStatus { in_sync: true, .. } => "in sync: both nodes have everything".to_owned(),
        _ => format!("catching up: {} ({}) behind", format::messages(link.lag_messages), format::bytes(link.lag_bytes)),
    }
}

fn journal_cell(journal: &JournalStatus) -> String {
    let size = format!("{} of {}", format::bytes(journal.bytes), format::bytes(journal.max_bytes));
    match journal.oldest_seconds {
        age if age > 0.0 => format!("{size} (oldest {})", format::seconds(age)),
        _ => size,
    }
}

fn inputs(out: &mut String, node: &NodeStatus, before: Option<Before<'_>>, style: Style) {
    let columns = [
        left("INPUT"),
        left("LISTENS ON").dispensable(2),
        right("RECEIVED"),
        right("RATE/s"),
        right("KERNEL DROPS"),
        right("CONNS").dispensable(1),
        right("BAD"),
    ];
    let row = |(name, input): (&String, &InputStatus)| {
        let earlier = |before: &NodeStatus| before.inputs.get(name).map(|input| input.messages);
        let drops = before.and_then(|before| before.node.inputs.get(name)).map(|before| before.kernel_drops);
        Row {
            cells: vec![
                name.clone(),
                listen_cell(&input.listen),
                format::count(input.messages),
                rate(before, input.messages, earlier),
                format::count(input.kernel_drops),
                input.connections.to_string(),
                format::count(input.rejected.values().sum()),
            ],
            problem: drops.is_some_and(|drops| input.kernel_drops > drops),
        }
    };
    table::write(out, &columns, &node.inputs.iter().map(row).collect::<Vec<_>>(), style.width, style.colour);
}

/// `udp+tcp :514` for the two of one address, else the first and how many more.
fn listen_cell(listen: &[String]) -> String {
    match listen {
        [] => "–".to_owned(),
        [udp, tcp] => match (udp.strip_prefix("udp://"), tcp.strip_prefix("tcp://")) {
            (Some(udp), Some(tcp)) if udp == tcp => format!("udp+tcp {}", udp.replace("[::]:", ":")),
            _ => format!("{udp} (+1)"),
        },
        [one] => one.replace("[::]:", ":"),
        [first, rest @ ..] => format!("{first} (+{})", rest.len()),
    }
}

fn outputs(out: &mut String, node: &NodeStatus, before: Option<Before<'_>>, style: Style) {
    let columns = [
        left("OUTPUT"),
        left("TO").dispensable(3),
        right("SENT/s"),
        right("UNACKED").dispensable(2),
        right("BACKLOG"),
        right("OLDEST"),
        right("RETRIES").dispensable(1),
        left("STATE"),
    ];
    let row = |(name, output): (&String, &OutputStatus)| {
        let earlier = |before: &NodeStatus| before.outputs.get(name).map(|output| output.sent);
        Row {
            cells: vec![
                name.clone(),
                to_cell(output),
                rate(before, output.sent, earlier),
                format::count(output.in_flight.max(0).unsigned_abs()),
                format::count(output.backlog_messages),
                match output.lag_seconds {
                    age if age > 0.0 => format::seconds(age),
                    _ => "–".to_owned(),
                },
                format::count(output.retries),
                output_state(output).to_owned(),
            ],
            problem: output_is_a_problem(output) || !output.lost.is_empty(),
        }
    };
    table::write(out, &columns, &node.outputs.iter().map(row).collect::<Vec<_>>(), style.width, style.colour);
}

fn to_cell(output: &OutputStatus) -> String {
    let first = output.target.as_ref().or(output.to.first()).map_or("–", String::as_str);
    match output.to.len() {
        0 | 1 => first.to_owned(),
        several => format!("{first} (+{})", several - 1),
    }
}

fn output_state(output: &OutputStatus) -> &'static str {
    match (output.connected, output.backlog_messages) {
        (true, _) => "ok",
        (false, 0) => "idle",
        (false, _) => "down",
    }
}

fn output_is_a_problem(output: &OutputStatus) -> bool {
    !output.connected && output.backlog_messages > 0
}

fn restart_pending(out: &mut String, node: &NodeStatus) {
    if node.restart_pending {
        let runs = &node.version;
        // Without a peer nobody serves meanwhile, and a drain would only ask for --force.
        let apply = if node.vrrp.is_some() { "twinlog drain --restart" } else { "systemctl restart twinlog" };
        let _ = writeln!(out, "Restart pending: {runs} runs, and another twinlog is installed: {apply}");
    }
}

fn verdict(out: &mut String, node: &NodeStatus, style: Style) {
    let bold = |text: &str| if style.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() };
    for (name, output) in node.outputs.iter().filter(|(_, output)| !output.lost.is_empty()) {
        let lost = format::messages(output.lost.values().sum());
        let reasons: Vec<&str> = output.lost.keys().map(String::as_str).collect();
        let _ = writeln!(out, "! {lost} will never reach {name} ({})", reasons.join(", "));
    }
    let _ = if node.safe_to_drain {
        writeln!(out, "{} {}.", bold("Safe to drain: yes:"), node.safe_to_drain_reason)
    } else {
        writeln!(out, "{} {}.", bold("Safe to drain: no:"), node.safe_to_drain_reason)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        serde_json::from_str(include_str!("../../tests/fixtures/status.json")).unwrap()
    }

    /// Five seconds before, with so many messages less.
    fn earlier(status: &Status) -> Status {
        let mut earlier = status.clone();
        let node = &mut earlier.nodes[0];
        node.inputs.get_mut("net").unwrap().messages -= 60_510;
        let siem = node.outputs.get_mut("siem").unwrap();
        siem.sent -= 62_155;
        siem.acknowledged -= 62_150;
        earlier
    }

    fn plain(width: usize) -> Style {
        Style { width, colour: false }
    }

    #[test]
    fn a_healthy_node_on_a_wide_screen() {
        let mut status = status();
        status.nodes[0].outputs.remove("archive");
        status.nodes[0].faults.clear();
        let before = earlier(&status);
        let shown = render(&status, Some(Earlier { status: &before, seconds: 5.0 }), plain(usize::MAX));
        let expected = "\
standalone agg-a      up 3 d 03:42

  NODE   ROLE        STAGE       UPTIME    IN/s   OUT/s                              JOURNAL  STATE    VERSION
  agg-a  standalone  serving  3 d 03:42  12,102  12,430  1.20 GiB of 10.0 GiB (oldest 0.3 s)  writing  0.1.0

  INPUT  LISTENS ON    RECEIVED  RATE/s  KERNEL DROPS  CONNS  BAD
  net    udp+tcp :514    3.41 G  12,102             0     14   17

  OUTPUT  TO                               SENT/s  UNACKED  BACKLOG  OLDEST  RETRIES  STATE
  siem    tcp://siem.example.net:514 (+1)  12,431      212      212   0.3 s        0  ok

Safe to drain: no: 212 messages not yet delivered to siem.
";
        assert_eq!(shown, expected, "\n{shown}");
    }

    #[test]
    fn what_needs_someone_to_look_is_marked_and_narrow_screens_lose_the_least_important() {
        let status = status();
        let mut before = earlier(&status);
        before.nodes[0].inputs.get_mut("net").unwrap().kernel_drops = 0;
        let mut status = status;
        status.nodes[0].inputs.get_mut("net").unwrap().kernel_drops = 488;
        let earlier = Earlier { status: &before, seconds: 5.0 };
        let shown = render(&status, Some(earlier), plain(80));
        assert!(shown.lines().all(|line| line.chars().count() <= 110), "{shown}");
        assert!(!shown.contains("VERSION"), "{shown}");
        for marked in
            ["! agg-a ", "! net ", "! archive ", "! the journal waits: full", "! archive: no space left on device"]
        {
            assert!(shown.lines().any(|line| line.starts_with(marked)), "{marked}\n{shown}");
        }
        let problems = problems(&status, Some(earlier));
        assert_eq!(problems.len(), 3, "{problems:?}");
    }

    #[test]
    fn one_line_says_role_rate_backlog_and_faults() {
        let mut status = status();
        let before = earlier(&status);
        let earlier = Earlier { status: &before, seconds: 5.0 };
        let line = one_line(&status, Some(earlier));
        assert_eq!(line, "standalone, 12,102 messages/s in, 212 to deliver; the journal waits: full");
        let node = &mut status.nodes[0];
        (node.stage, node.restart_pending, node.faults) = ("stopping".into(), true, vec!["one\ntwo".into()]);
        assert_eq!(
            one_line(&status, None),
            "standalone, stopping, – messages/s in, 212 to deliver, restart pending; one two"
        );
    }

    #[test]
    fn a_pending_restart_is_said_above_the_verdict() {
        let mut status = status();
        assert!(!render(&status, None, plain(100)).contains("Restart pending"));
        status.nodes[0].restart_pending = true;
        let shown = render(&status, None, plain(100));
        let line = shown.lines().rev().nth(1).unwrap();
        assert_eq!(line, "Restart pending: 0.1.0 runs, and another twinlog is installed: systemctl restart twinlog");
        status.nodes[0].vrrp = Some(serde_json::Value::Null);
        assert!(render(&status, None, plain(100)).contains("another twinlog is installed: twinlog drain --restart\n"));
    }

    #[test]
    fn colours_come_only_when_asked_for() {
        assert!(!render(&status(), None, plain(100)).contains('\x1b'));
        assert!(render(&status(), None, Style { width: 100, colour: true }).contains("\x1b[31m! archive"));
    }
}
