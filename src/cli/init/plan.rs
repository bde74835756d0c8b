//! What the configuration of a new pair is made of, and the file that says it.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::keepalived::Instance;

/// Everything that goes into the file.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub vips: Vec<String>,
    pub interface: String,
    /// `None` for the default: the first VIP's last byte.
    pub vrid: Option<u8>,
    pub nodes: Vec<Node>,
    /// `PROTOCOL://HOST[:PORT]`, those that stand by behind commas.
    pub outputs: Vec<String>,
    /// What was taken from keepalived and is not our default.
    pub imported: Option<Imported>,
}

/// A node of the pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub name: String,
    pub address: IpAddr,
    pub priority: Option<u8>,
}

/// Settings that come from keepalived alone.
#[derive(Debug)]
pub(super) struct Imported {
    pub version: u8,
    pub interval: Duration,
    pub preempt: bool,
    pub preempt_delay: Option<Duration>,
    pub unicast: bool,
    /// The password, and the file that it goes to.
    pub password: Option<(String, PathBuf)>,
    pub instance: String,
    pub notifies: Vec<(&'static [&'static str], Vec<String>)>,
}

impl Imported {
    pub(super) fn of(instance: &Instance, password_file: &Path) -> Imported {
        Imported {
            version: instance.version,
            interval: instance.interval,
            preempt: instance.preempt,
            preempt_delay: instance.preempt_delay,
            unicast: !instance.peers.is_empty(),
            password: instance.password.clone().map(|password| (password, password_file.to_owned())),
            instance: instance.name.clone(),
            notifies: instance.notifies.clone(),
        }
    }
}

/// The node of `NAME=ADDRESS` or `NAME=ADDRESS,PRIORITY`.
pub(super) fn node(text: &str) -> Result<Node, String> {
    let wrong = || format!("{text:?} is no node: write NAME=ADDRESS, such as agg-a=192.0.2.11");
    let (name, rest) = text.split_once('=').ok_or_else(wrong)?;
    let (address, priority) =
        rest.split_once(',').map_or((rest, None), |(address, priority)| (address, Some(priority)));
    let priority = priority.map(|priority| priority.parse().map_err(|_| wrong())).transpose()?;
    Ok(Node { name: name.to_owned(), address: address.parse().map_err(|_| wrong())?, priority })
}

impl Plan {
    /// The file.
    pub(super) fn text(&self) -> String {
        let mut text =
            String::from("# The same file serves both nodes; `twinlog check --show-effective` shows every default.\n");
        self.pair(&mut text);
        text.push_str("\n[[input.syslog]]\nlisten = \":514\"\n\n[[input.forward]]\nlisten = \":24224\"\n");
        for (number, output) in self.outputs.iter().enumerate() {
            let name = (self.outputs.len() > 1).then(|| format!("out-{}", number + 1));
            write_output(&mut text, output, name.as_deref());
        }
        for (on, command) in self.imported.iter().flat_map(|imported| &imported.notifies) {
            let instance = self.imported.as_ref().map_or("", |imported| &imported.instance);
            line(&mut text, "\n[[hook]]");
            line(&mut text, format!("on = {}", list(on)));
            line(&mut text, format!("command = {}", list(command)));
            line(&mut text, "style = \"keepalived\"");
            line(&mut text, format!("instance = {}", quoted(instance)));
        }
        text
    }

    fn pair(&self, text: &mut String) {
        line(text, "[pair]");
        match &self.vips[..] {
            [vip] => line(text, format!("vip       = {}", quoted(vip))),
            vips => line(text, format!("vip       = {}", list(vips))),
        }
        line(text, format!("interface = {}", quoted(&self.interface)));
        if let Some(vrid) = self.vrid {
            line(text, format!("vrid      = {vrid}"));
        }
        if let Some(imported) = &self.imported {
            imported.write(text);
        }
        line(text, "nodes = [");
        for Node { name, address, priority } in &self.nodes {
            let priority = priority.map_or(String::new(), |priority| format!(", priority = {priority}"));
            line(text, format!("  {{ name = {}, address = \"{address}\"{priority} }},", quoted(name)));
        }
        line(text, "]");
    }
}

impl Imported {
    fn write(&self, text: &mut String) {
        if self.version == 2 {
            line(
                text,
                "vrrp_version = 2   # as keepalived has it; 3, on both nodes, can advertise more often than every second",
            );
        }
        line(text, format!("advert_interval = \"{}\"", time(self.interval)));
        if self.preempt {
            line(text, "preempt = true");
            if let Some(delay) = self.preempt_delay {
                line(text, format!("preempt_delay = \"{}\"", time(delay)));
            }
        }
        if self.unicast {
            line(text, "unicast = true");
        }
        if let Some((_, file)) = &self.password {
            line(text, format!("auth_pass_file = {}", quoted(&file.display().to_string())));
        }
    }
}

fn write_output(text: &mut String, output: &str, name: Option<&str>) {
    let forward = output.starts_with("forward://");
    line(text, if forward { "\n[[output.forward]]" } else { "\n[[output.syslog]]" });
    if let Some(name) = name {
        line(text, format!("name = {}", quoted(name)));
    }
    let targets: Vec<&str> = output.split(',').map(|to| to.trim().trim_start_matches("forward://")).collect();
    line(text, format!("to = {}", list(&targets)));
}

fn line(text: &mut String, line: impl AsRef<str>) {
    writeln!(text, "{}", line.as_ref()).expect("writing to a string cannot fail");
}

fn time(time: Duration) -> String {
    if time.subsec_nanos() == 0 { format!("{}s", time.as_secs()) } else { format!("{}ms", time.as_millis()) }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn list<T: AsRef<str>>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(|item| quoted(item.as_ref())).collect();
    format!("[{}]", items.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn the_file_is_that_of_the_contract_and_reads_back() {
        let plan = Plan {
            vips: vec!["192.0.2.10/24".to_owned()],
            interface: "eth0".to_owned(),
            nodes: ["agg-a=192.0.2.11", "agg-b=192.0.2.12,90"].map(|text| node(text).unwrap()).to_vec(),
            outputs: vec!["tcp://siem.example.net:514".to_owned(), "forward://a:1,forward://b".to_owned()],
            ..Plan::default()
        };
        let config = config::parse(&plan.text(), "t.toml").unwrap_or_else(|wrong| panic!("{wrong:?}")).config;
        let pair = config.pair.unwrap();
        assert_eq!((pair.vrid.get(), pair.nodes[1].priority.0), (10, 90));
        assert_eq!(
            config.outputs.iter().map(|output| &*output.name).collect::<Vec<_>>(),
            ["out-1", "out-2"].map(|name| name)
        );
        assert!(config.outputs.iter().any(|output| output.kind.is_forward()));
        assert!(node("agg-a").is_err() && node("a=b").is_err() && node("a=192.0.2.1,x").is_err());
    }
}
