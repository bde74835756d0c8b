//! `twinlog init`: the configuration of a pair and its key, from flags, from a dialogue, or from keepalived's file.
//!
//! What is not said is proposed by the machine. The file is read with the reader that `run` uses before anything is
//! written; then the key goes into its place, and the configuration last: where that is, all is.

mod files;
mod keepalived;
mod machine;
mod plan;

use std::io::{self, BufRead, IsTerminal, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use clap::{ArgAction, Args, ValueHint};
use serde_json::json;

use self::files::{Draft, Present, Secrecy, present};
use self::keepalived::{Found, Ignored, Instance};
use self::machine::Link;
use self::plan::{Imported, Node, Plan};
use super::{Exit, Failure, Shared, adverts, configuration};
use crate::config::{self, DEFAULT_FILE, Report, Source, node_name, read_pair_key};
use crate::proto::position::NodeName;
use crate::sys;

/// How long other elections are listened for: four intervals of keepalived's default, one second.
const LISTEN: Duration = Duration::from_secs(4);

/// Flags of `init`.
#[derive(Debug, Args)]
pub struct Init {
    /// Address that the two nodes share, with its prefix length; may be repeated
    #[arg(long, value_name = "ADDR/LEN")]
    vip: Vec<String>,
    /// Interface that the address is put on [default: that of the default route]
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Number of the election on this network, 1 to 255 [default: the address's last byte, if nobody uses it]
    #[arg(long, value_name = "N")]
    vrid: Option<u8>,
    /// A node; twice. A priority may follow: NAME=ADDR,PRIORITY
    // The same id as the shared flag, which clap then does not add to this verb.
    #[arg(id = "node", long = "node", value_name = "NAME=ADDR", action = ArgAction::Append)]
    nodes: Vec<String>,
    /// Where messages go: tcp://, tls://, udp:// (syslog) or forward://, with those that stand by behind commas; may be
    /// repeated
    #[arg(long, value_name = "URL")]
    output: Vec<String>,
    /// Take over what a keepalived.conf says; every line that is not is shown
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    from_keepalived: Option<PathBuf>,
    /// Which vrrp_instance of that file, if it has several
    #[arg(long, value_name = "NAME", requires = "from_keepalived")]
    instance: Option<String>,
    /// Replace a configuration that is there; the old one is kept as .bak
    #[arg(long)]
    force: bool,
    /// Ask nothing
    #[arg(short, long)]
    yes: bool,
}

/// Where everything goes.
struct Places {
    config: PathBuf,
    key: PathBuf,
    password: PathBuf,
}

impl Places {
    fn of(shared: &Shared) -> anyhow::Result<Places> {
        let config = shared.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        // The daemon may be started elsewhere, and paths in the file begin there.
        let config = std::path::absolute(&config).with_context(|| format!("no path {}", config.display()))?;
        let key = config.with_file_name("pair.key");
        Ok(Places { password: config.with_file_name("vrrp.password"), key, config })
    }
}

impl Init {
    pub(super) fn execute(&self, shared: &Shared) -> anyhow::Result<Exit> {
        let places = Places::of(shared)?;
        let (instance, ignored) = self.import()?;
        let (plan, link) = self.plan(instance.as_ref(), &places)?;
        let text = plan.text();
        validate(shared, &places, &text)?;
        let written = write(&plan, &places, &text, self.force)?;
        let next = next(&plan, &places, link.as_ref());
        if shared.json {
            let ignored: Vec<_> =
                ignored.iter().map(|i| json!({"line": i.line, "what": i.what, "why": i.why})).collect();
            let answer = json!({ "v": 1, "config": places.config, "key": places.key, "written": written, "ignored": ignored, "next": next });
            writeln!(io::stdout(), "{answer}")?;
            return Ok(Exit::Done);
        }
        if let Some(file) = &self.from_keepalived {
            for Ignored { line, what, why } in &ignored {
                eprintln!("{}:{line}: not taken over: {what}: {why}", file.display());
            }
        }
        let mut out = io::stdout();
        if !shared.quiet {
            match &written[..] {
                [] => writeln!(out, "{} is as it should be", places.config.display())?,
                written => writeln!(out, "wrote {}", shown(written).join(", "))?,
            }
            writeln!(out, "next:")?;
        }
        next.iter().try_for_each(|command| writeln!(out, "  {command}"))?;
        Ok(Exit::Done)
    }

    /// The instance of keepalived's file, and all lines that are not taken over.
    fn import(&self) -> anyhow::Result<(Option<Instance>, Vec<Ignored>)> {
        let Some(file) = &self.from_keepalived else { return Ok((None, Vec::new())) };
        let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let Found { mut instances, mut ignored } = keepalived::read(&String::from_utf8_lossy(&text));
        let names: Vec<String> = instances.iter().map(|instance| instance.name.clone()).collect();
        let wanted = match (&self.instance, &names[..]) {
            (_, []) => return Err(anyhow::anyhow!("{} has no vrrp_instance", file.display())),
            (Some(name), _) => name.clone(),
            (None, [only]) => only.clone(),
            (None, names) if self.asks() => {
                ask(&format!("which vrrp_instance: {}", names.join(", ")), Some(&names[0]))?
            }
            (None, names) => {
                let message = format!(
                    "{} has {} vrrp_instances, and a pair is one: name it with --instance: {}",
                    file.display(),
                    names.len(),
                    names.join(", ")
                );
                return Err(Failure::new(Exit::Usage, message).into());
            }
        };
        let Some(at) = names.iter().position(|name| *name == wanted) else {
            let message = format!("{} has no vrrp_instance {wanted}; it has {}", file.display(), names.join(", "));
            return Err(Failure::new(Exit::Usage, message).into());
        };
        let instance = instances.remove(at);
        let why = "a pair is one instance: import it elsewhere";
        let other = |other: &Instance| Ignored { line: other.line, what: format!("vrrp_instance {}", other.name), why };
        ignored.extend(instances.iter().map(other));
        ignored.extend_from_slice(&instance.ignored);
        ignored.sort_by_key(|ignored| ignored.line);
        Ok((Some(instance), ignored))
    }

    /// Whether there is somebody to ask.
    fn asks(&self) -> bool {
        !self.yes && io::stdin().is_terminal() && io::stderr().is_terminal()
    }

    fn plan(&self, instance: Option<&Instance>, places: &Places) -> anyhow::Result<(Plan, Option<Link>)> {
        let mut missing = Missing { asks: self.asks(), flags: Vec::new() };
        let imported = instance.map_or(&[][..], |instance| &instance.vips);
        let mut vips = if self.vip.is_empty() { imported.to_vec() } else { self.vip.clone() };
        if vips.is_empty() {
            vips.extend(missing.answer("--vip 192.0.2.10/24", "address that the nodes share", None)?);
        }
        let named = self.interface.as_deref().or_else(|| instance.and_then(|instance| instance.interface.as_deref()));
        let link = machine::link(named);
        let proposed = link.as_ref().map(|link| link.interface.name.as_str());
        let interface = match named {
            Some(name) => name.to_owned(),
            None => missing.proposal("--interface eth0", "interface", proposed)?,
        };
        let first = vips.first().and_then(|vip| vip.split('/').next()?.parse().ok());
        let nodes = self.nodes(instance, link.as_ref(), first, &mut missing)?;
        let mut outputs = self.output.clone();
        if outputs.is_empty() {
            let what = "where messages go (tcp://, tls://, udp://, forward://)";
            outputs.extend(missing.answer("--output tcp://siem.example.net:514", what, None)?);
        }
        missing.refuse()?;
        if let Some(link) = &link {
            vips.iter_mut().for_each(|vip| add_prefix(vip, link));
        }
        let vrid = self.vrid.or_else(|| instance.and_then(|instance| instance.vrid));
        let vrid = vrid.or_else(|| self.propose_vrid(link.as_ref(), first?));
        let imported = instance.map(|instance| Imported::of(instance, &places.password));
        Ok((Plan { vips, interface, vrid, nodes, outputs, imported }, link))
    }

    fn nodes(
        &self,
        instance: Option<&Instance>,
        link: Option<&Link>,
        vip: Option<IpAddr>,
        missing: &mut Missing,
    ) -> anyhow::Result<Vec<Node>> {
        let usage = |message: String| Failure::new(Exit::Usage, message);
        // A name alone is what the environment says of this node.
        let (named, own_name): (Vec<&String>, Vec<&String>) = self.nodes.iter().partition(|node| node.contains('='));
        let mut nodes = named.into_iter().map(|node| plan::node(node)).collect::<Result<Vec<_>, _>>().map_err(usage)?;
        if nodes.is_empty() {
            let source = instance.and_then(|instance| instance.source);
            let address = source.or_else(|| link.and_then(|link| link.own_address(vip))).map(|own| own.to_string());
            let name = node_name(own_name.first().map(|name| name.as_str())).ok().map(|name| name.to_string());
            let own = name.zip(address).map(|(name, address)| format!("{name}={address}"));
            let own = missing.proposal("--node agg-a=192.0.2.11", "this node, NAME=ADDRESS", own.as_deref())?;
            nodes.extend(
                Some(own).filter(|own| !own.is_empty()).map(|own| plan::node(&own)).transpose().map_err(usage)?,
            );
        }
        if nodes.len() < 2 {
            let peer = instance.and_then(|instance| instance.peers.first());
            let example = peer.map_or("agg-b=192.0.2.12".to_owned(), |peer| format!("agg-b={peer}"));
            let answer =
                missing.answer(&format!("--node {example} (the other node)"), "the other node, NAME=ADDRESS", None)?;
            nodes.extend(answer.map(|answer| plan::node(&answer)).transpose().map_err(usage)?);
        }
        if let Some(instance) = instance {
            let own =
                |node: &Node| instance.source == Some(node.address) || link.is_some_and(|link| link.has(node.address));
            let own = nodes.iter_mut().find(|node| own(node) && node.priority.is_none());
            own.into_iter().for_each(|node| node.priority = Some(instance.priority));
            if instance.priority != 100 && nodes.iter().any(|node| node.priority.is_none()) {
                eprintln!(
                    "twinlog: the other node's priority is in its own file: --node NAME=ADDR,PRIORITY; 100 is taken"
                );
            }
        }
        Ok(nodes)
    }

    /// The VIP's last byte if nobody has that election; else the next one. `None` is the default.
    fn propose_vrid(&self, link: Option<&Link>, vip: IpAddr) -> Option<u8> {
        let last = match vip {
            IpAddr::V4(vip) => vip.octets()[3],
            IpAddr::V6(vip) => vip.octets()[15],
        };
        let wanted = last.max(1);
        let unless_default = |vrid: u8| Some(vrid).filter(|vrid| *vrid != last);
        let Some(link) = link else { return unless_default(wanted) };
        eprintln!("twinlog: listening on {} for other elections, {} s", link.interface.name, LISTEN.as_secs());
        match adverts::listen(&link.interface, LISTEN) {
            Ok(heard) => adverts::free_vrid(&heard, wanted).and_then(unless_default),
            Err(error) => {
                eprintln!(
                    "twinlog: cannot listen ({error}); `twinlog check --live` tells whether somebody has vrid {wanted}"
                );
                unless_default(wanted)
            }
        }
    }
}

/// What nobody has said, asked for or collected.
struct Missing {
    asks: bool,
    flags: Vec<String>,
}

impl Missing {
    /// An answer; without anybody to ask the flag is noted as missing.
    fn answer(&mut self, flag: &str, question: &str, proposed: Option<&str>) -> anyhow::Result<Option<String>> {
        if self.asks {
            return ask(question, proposed).map(Some);
        }
        self.flags.push(flag.to_owned());
        Ok(None)
    }

    /// The same where the machine proposes something, which is taken if there is nobody to ask.
    fn proposal(&mut self, flag: &str, question: &str, proposed: Option<&str>) -> anyhow::Result<String> {
        match proposed {
            Some(proposed) if !self.asks => Ok(proposed.to_owned()),
            _ => Ok(self.answer(flag, question, proposed)?.unwrap_or_default()),
        }
    }

    fn refuse(self) -> Result<(), Failure> {
        if self.flags.is_empty() {
            return Ok(());
        }
        Err(Failure::new(Exit::Usage, format!("missing, and nobody to ask: {}", self.flags.join(", "))))
    }
}

/// Asks on the terminal until there is an answer.
fn ask(question: &str, proposed: Option<&str>) -> anyhow::Result<String> {
    loop {
        match proposed {
            Some(proposed) => eprint!("{question} [{proposed}]: "),
            None => eprint!("{question}: "),
        }
        let mut answer = String::new();
        if io::stdin().lock().read_line(&mut answer).context("cannot read the answer")? == 0 {
            return Err(Failure::new(Exit::Failed, "no answer, so nothing was written").into());
        }
        match (answer.trim(), proposed) {
            ("", Some(proposed)) => return Ok(proposed.to_owned()),
            ("", None) => {}
            (answer, _) => return Ok(answer.to_owned()),
        }
    }
}

/// An address without a prefix length gets that of the network it is in.
fn add_prefix(vip: &mut String, link: &Link) {
    let prefix = vip.parse().ok().and_then(|address| link.prefix_of(address));
    if let Some(prefix) = prefix {
        *vip = format!("{vip}/{prefix}");
    }
}

/// Reads the text as `run` on the first node would.
fn validate(shared: &Shared, places: &Places, text: &str) -> Result<(), Failure> {
    let source = Source { name: places.config.display().to_string(), text: text.to_owned() };
    let node: NodeName = "localhost".parse().expect("a node name");
    match config::read(&[source], node) {
        Ok(loaded) => {
            let report = Report { diagnostics: &loaded.warnings, colour: shared.color.on(&io::stderr()) };
            eprint!("{report}");
            Ok(())
        }
        Err(diagnostics) => {
            let Failure { exit, message } = configuration::refused(shared, &diagnostics);
            Err(Failure { exit, message: format!("{message}\nnothing was written") })
        }
    }
}

fn shown(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.display().to_string()).collect()
}

/// Puts everything in its place, the configuration last; what was not there already.
fn write(plan: &Plan, places: &Places, text: &str, force: bool) -> anyhow::Result<Vec<PathBuf>> {
    let directory = places.config.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut drafts = Vec::new();
    let password = plan.imported.as_ref().and_then(|imported| imported.password.as_ref());
    if let Some((password, file)) = password {
        drafts.extend(draft(file, format!("{password}\n").as_bytes(), Secrecy::Secret, force)?);
    }
    if let Some(key) = key(places, force)? {
        drafts.extend(draft(&places.key, key.as_bytes(), Secrecy::Secret, force)?);
    }
    drafts.extend(draft(&places.config, text.as_bytes(), Secrecy::Open, force)?);
    let mut written = Vec::new();
    for (draft, place) in drafts {
        draft.put(force).with_context(|| format!("cannot write {}", place.display()))?;
        written.push(place);
    }
    Ok(written)
}

/// A new key, unless there is a sound one: the other node may have it already.
fn key(places: &Places, force: bool) -> anyhow::Result<Option<String>> {
    match read_pair_key(&places.key) {
        Ok(_) => return Ok(None),
        Err(error) if places.key.exists() && !force => {
            return Err(Failure::new(Exit::Failed, format!("{error}; or --force for a new key")).into());
        }
        Err(_) => {}
    }
    let key: [u8; 32] = sys::random::bytes().context("no random bytes")?;
    Ok(Some(base64::engine::general_purpose::STANDARD.encode(key) + "\n"))
}

fn draft(place: &Path, content: &[u8], secrecy: Secrecy, force: bool) -> anyhow::Result<Option<(Draft, PathBuf)>> {
    let shown = place.display();
    match present(place, content).with_context(|| format!("cannot read {shown}"))? {
        Present::Same => return Ok(None),
        Present::Other if !force => {
            let message =
                format!("{shown} is there and says something else: --force replaces it and keeps {shown}.bak");
            return Err(Failure::new(Exit::Unsafe, message).into());
        }
        Present::Other | Present::Nothing => {}
    }
    let draft = Draft::write(place, content, secrecy).with_context(|| format!("cannot write beside {shown}"))?;
    Ok(Some((draft, place.to_owned())))
}

/// The commands that come next.
fn next(plan: &Plan, places: &Places, link: Option<&Link>) -> [String; 3] {
    let own = plan.nodes.iter().position(|node| link.is_some_and(|link| link.has(node.address))).unwrap_or(0);
    let peer = plan.nodes.get(1 - own.min(1)).map_or("PEER".to_owned(), |node| match node.address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    });
    let password = plan.imported.as_ref().and_then(|imported| imported.password.as_ref());
    let mut copied = vec![places.config.clone(), places.key.clone()];
    copied.extend(password.map(|(_, file)| file.clone()));
    let copied = shown(&copied);
    let directory = places.config.parent().unwrap_or(Path::new("/")).display();
    let named =
        if places.config == Path::new(DEFAULT_FILE) { String::new() } else { format!(" --config {}", copied[0]) };
    [
        format!("scp -p {} root@{peer}:{directory}/", copied.join(" ")),
        format!("twinlog{named} check --live"),
        "systemctl enable --now twinlog".to_owned(),
    ]
}
