//! `/metrics`: the counters and gauges as OpenMetrics 1.0 text.
//!
//! The names are a contract: dashboards and alerts are built on them. The values are read where they are counted, at
//! the time of the scrape; a [`Collector`] walks them, so that an input which comes or goes with a reload needs no
//! registration. Labels only ever have values from the configuration or from a closed set.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::journal::Finding;
use crate::metrics::{InputMetrics, OutputMetrics, Reasons, Received, SocketState};
use crate::proto::stage::Stage;
use crate::status::{Elected, LinkStatus, Observed, OutputStatus, timestamp};

mod process;

/// The content type that names the format.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that is counted, as text.
///
/// # Errors
/// Never in practice: writing to a `String` does not fail.
pub fn render(observed: &Arc<Observed>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(process::Process::read(observed.started.time)));
    let twinlog = registry.sub_registry_with_prefix("twinlog");
    twinlog.register_collector(Box::new(Twinlog(observed.clone())));
    let mut text = String::with_capacity(16 * 1024);
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Twinlog(Arc<Observed>);

impl Collector for Twinlog {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Families(encoder);
        about(&mut out, &self.0)?;
        inputs(&mut out, &self.0)?;
        journal(&mut out, &self.0)?;
        outputs(&mut out, &self.0)?;
        if let Some(elected) = &self.0.elected {
            vrrp(&mut out, elected)?;
        }
        let link =
            self.0.partnered.as_ref().map(|partnered| partnered.link(&self.0.journal, &self.0.journal.progress()));
        link.map_or(Ok(()), |link| replication(&mut out, &self.0, &link))
    }
}

/// The labels of one sample.
type Labels = Vec<(&'static str, String)>;

/// Writes one family after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn counters(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels, u64)>) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, f64>(&value, None)?;
        }
        Ok(())
    }

    fn gauges(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels, f64)>) -> fmt::Result {
        self.of_kind(MetricType::Gauge, name, help, samples)
    }

    fn of_kind(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, u64, f64>(&value, None)
    }

    fn info(&mut self, name: &str, help: &str, labels: Labels) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels)
    }
}

fn seconds(time: SystemTime) -> f64 {
    timestamp(time).0 as f64 / 1e9
}

fn about(out: &mut Families<'_>, observed: &Observed) -> fmt::Result {
    let text = str::to_owned;
    out.info(
        "build",
        "The program that runs",
        vec![
            ("version", text(env!("CARGO_PKG_VERSION"))),
            ("commit", text(option_env!("TWINLOG_COMMIT").unwrap_or("unknown"))),
            ("rustc", text(option_env!("TWINLOG_RUSTC").unwrap_or("unknown"))),
        ],
    )?;
    let config = observed.config.borrow().clone();
    let hash = crate::config::fingerprint(&config);
    out.info(
        "node",
        "This node, and a hash of the configuration in force",
        vec![("pair", String::new()), ("node", observed.node.to_string()), ("config_hash", format!("{hash:08x}"))],
    )?;
    let pending = f64::from(u8::from(observed.restart_pending()));
    out.gauge("restart_pending", "Whether another program is installed than the one that runs", pending)?;
    let reload = *observed.reload.borrow();
    let successful = if reload.successful { 1.0 } else { 0.0 };
    out.gauge("config_reload_successful", "Whether the last reload was applied; the start counts as one", successful)?;
    out.gauge("config_last_reload_timestamp_seconds", "When the last reload was tried", seconds(reload.at))?;
    out.gauge("faults", "What status lists as wrong", observed.faults().len() as f64)?;
    let runs = observed.metrics.hook_runs().into_iter();
    let runs = runs.map(|((event, result), count)| (vec![("event", text(event)), ("result", text(result))], count));
    out.counters("hook_runs", "Commands run for an event, and those that were not", runs)
}

fn vrrp(out: &mut Families<'_>, elected: &Elected) -> fmt::Result {
    let (view, metrics) = (elected.handle.view(), &elected.metrics);
    let vrid = ("vrid", elected.pair.vrid.to_string());
    let with = |name: &'static str, value: &str| vec![vrid.clone(), (name, value.to_owned())];
    let state = if view.faults.is_empty() { view.state } else { "fault" };
    let states = [("init", "Initialize"), ("backup", "Backup"), ("master", "Master"), ("fault", "fault")];
    let states = states.map(|(name, meant)| (with("state", name), f64::from(u8::from(meant == state))));
    out.of_kind(MetricType::Gauge, "vrrp_state", "The election's state: 1 for the one that it is in", states)?;
    let to = metrics.transitions.get().into_iter().map(|(to, count)| (with("to", &to.to_lowercase()), count));
    out.counters("vrrp_transitions", "Changes of the election's state", to)?;
    let count = |value: u64| [(vec![vrid.clone()], value)];
    out.counters("vrrp_adverts_sent", "Advertisements sent", count(metrics.adverts_sent.get()))?;
    out.counters("vrrp_adverts_received", "Advertisements of others", count(metrics.adverts_received.get()))?;
    let invalid = metrics.rejected.get().into_iter().chain(metrics.noted.get());
    let invalid = invalid.map(|(reason, count)| (with("reason", reason), count));
    out.counters("vrrp_adverts_invalid", "Advertisements ignored, or obeyed although they differ", invalid)?;
    let late = &metrics.late_seconds.0;
    let mut family = out.0.encode_descriptor(
        "vrrp_advert_late_seconds",
        "How late own advertisements were",
        None,
        late.metric_type(),
    )?;
    late.encode(family.encode_family(&vec![vrid.clone()])?)?;
    let help = "From the old master's last advertisement to the decision, and from there until the addresses were held";
    let mut family = out.0.encode_descriptor("takeover_seconds", help, None, MetricType::Histogram)?;
    for (phase, took) in [("silence", &metrics.takeover.silence), ("address", &metrics.takeover.address)] {
        took.encode(family.encode_family(&vec![("phase", phase.to_owned())])?)?;
    }
    let gauge = |value: f64| [(vec![vrid.clone()], value)];
    out.gauges("vrrp_priority", "The priority in force", gauge(f64::from(view.priority)))?;
    let last = metrics.last_transition() as f64 / 1e3;
    out.gauges("vrrp_last_transition_timestamp_seconds", "When the election's state last changed", gauge(last))?;
    let held = f64::from(u8::from(view.vip_held));
    let vips = elected.pair.addresses().map(|vip| (vec![("vip", vip.to_string())], held));
    out.gauges("vip_held", "Whether this node holds the shared address", vips)?;
    out.counter(
        "vip_restored",
        "Shared addresses that somebody removed and that were put back",
        metrics.restored.get(),
    )?;
    out.counter(
        "vip_lease_expired",
        "Shared addresses that the kernel removed, not renewed",
        metrics.lease_expired.get(),
    )
}

fn replication(out: &mut Families<'_>, observed: &Observed, link: &LinkStatus) -> fmt::Result {
    let flag = |value: bool| f64::from(u8::from(value));
    out.gauge("replication_connected", "Whether the nodes talk", flag(link.connected))?;
    out.gauge("replication_in_sync", "Whether everything acknowledged is on both nodes", flag(link.in_sync))?;
    out.gauge("replication_lag_messages", "Messages that are safe here and not there", link.lag_messages as f64)?;
    out.gauge("replication_lag_bytes", "Their bytes in the journal", link.lag_bytes as f64)?;
    let rejected = link.rejected.iter().map(|(reason, count)| (vec![("reason", reason.clone())], *count));
    out.counters("replication_rejected", "Connections of the pair's port refused or ended, by reason", rejected)?;
    let stage = *observed.stage.borrow();
    let states = [
        ("none", Stage::Serving),
        ("handover", Stage::HandingOver),
        ("quiescing", Stage::Quiescing),
        ("flushing", Stage::Flushing),
        ("drained", Stage::Drained),
    ];
    let states = states.map(|(name, meant)| (vec![("state", name.to_owned())], flag(meant == stage)));
    out.of_kind(MetricType::Gauge, "drain_state", "Where a drain stands: 1 for the state that it is in", states)
}

fn inputs(out: &mut Families<'_>, observed: &Observed) -> fmt::Result {
    let inputs: Vec<(String, Arc<InputMetrics>)> = observed.metrics.inputs().into_iter().collect();
    let label = |name: &String| ("input", name.clone());
    let by_proto = |value: fn(&Received) -> u64| {
        inputs.iter().flat_map(move |(name, input)| {
            input.received().map(|(proto, received)| (vec![label(name), ("proto", proto.to_owned())], value(received)))
        })
    };
    out.counters("input_messages", "Messages taken in", by_proto(|received| received.messages.get()))?;
    out.counters("input_bytes", "Bytes of messages taken in", by_proto(|received| received.bytes.get()))?;
    let rejected = inputs.iter().flat_map(|(name, input)| {
        let reasons = input.rejected.get().into_iter();
        reasons.map(|(reason, count)| (vec![label(name), ("reason", reason.to_owned())], count))
    });
    out.counters("input_rejected", "What was refused, or noted about a message that was kept", rejected)?;
    let sockets: Vec<(Labels, SocketState)> = inputs
        .iter()
        .flat_map(|(name, input)| {
            let sockets = input.sockets().into_iter();
            sockets.map(|(socket, state)| (vec![label(name), ("socket", socket)], state))
        })
        .collect();
    let drops = sockets.iter().map(|(labels, state)| {
        let mut labels = labels.clone();
        labels.insert(1, ("proto", "udp".to_owned()));
        (labels, state.drops)
    });
    out.counters("input_socket_drops", "Datagrams that the kernel dropped: the socket's buffer was full", drops)?;
    let queues = |value: fn(&SocketState) -> u64| {
        sockets.iter().map(move |(labels, state)| (labels.clone(), value(state) as f64))
    };
    out.gauges("input_socket_queue_bytes", "Bytes that wait in the socket", queues(|state| state.queue_bytes))?;
    let limits = queues(|state| state.queue_limit_bytes);
    out.gauges("input_socket_queue_limit_bytes", "Bytes that may wait in the socket", limits)?;
    let connections = inputs.iter().map(|(name, input)| (vec![label(name)], input.connections.get() as f64));
    out.gauges("input_connections", "Connections now open", connections)?;
    // A counter `input_connections` would be a second family of that name, which OpenMetrics forbids. The sample keeps
    // the usual name; its family has it too and no type.
    let total = inputs.iter().map(|(name, input)| (vec![label(name)], input.connections_total.get() as f64));
    out.of_kind(MetricType::Unknown, "input_connections_total", "Connections accepted since the start", total)?;
    let cut = inputs.iter().map(|(name, input)| (vec![label(name)], input.connections_cut.get()));
    out.counters("input_connections_cut", "Connections that a leaving node ended before their senders did", cut)?;
    let help = "Seconds from the receipt of a forward chunk or a RELP message to its acknowledgement";
    let mut acks = out.0.encode_descriptor("input_ack_seconds", help, None, MetricType::Histogram)?;
    for (name, input) in &inputs {
        input.ack_seconds.0.encode(acks.encode_family(&vec![label(name)])?)?;
    }
    let last = inputs.iter().filter(|(_, input)| input.last_message().0 > 0);
    let last = last.map(|(name, input)| (vec![label(name)], input.last_message().0 as f64 / 1e9));
    out.gauges("input_last_message_timestamp_seconds", "When the newest message came", last)
}

fn journal(out: &mut Families<'_>, observed: &Observed) -> fmt::Result {
    let config = observed.config.borrow().clone();
    let (progress, counters) = (observed.journal.progress(), observed.journal.counters());
    let capacity = config.journal.max_size;
    out.gauge("journal_bytes", "Bytes of the journal's segments", progress.bytes as f64)?;
    out.gauge("journal_capacity_bytes", "Most bytes the journal may have", capacity as f64)?;
    let on_disk = nix::sys::statvfs::statvfs(&config.data_dir);
    let on_disk = on_disk.map_or(u64::MAX, |disk| disk.blocks_available() * disk.fragment_size());
    let free = capacity.saturating_sub(progress.bytes).min(on_disk);
    out.gauge(
        "journal_free_bytes",
        "Bytes it can still grow by: to its capacity or to the end of the disk",
        free as f64,
    )?;
    out.gauge("journal_segments", "Files", progress.segments as f64)?;
    let undelivered = progress.appended.messages_since(progress.delivered);
    out.gauge("journal_messages", "Messages that the slowest output has not delivered", undelivered as f64)?;
    out.gauge("journal_queue_bytes", "Bytes taken in that wait for the disk", progress.waiting_bytes as f64)?;
    out.counter("journal_appended_messages", "Messages written", counters.appended_messages.get())?;
    out.counter("journal_appended_bytes", "Bytes written", counters.appended_bytes.get())?;
    let help = "Seconds that fdatasync took";
    let fsync = out.0.encode_descriptor("journal_fsync_seconds", help, None, MetricType::Histogram)?;
    counters.sync_seconds.encode(fsync)?;
    let errors = [
        ("write", &counters.write_errors),
        ("fsync", &counters.sync_errors),
        ("read", &counters.read_errors),
        ("checksum", &counters.checksum_errors),
    ];
    let errors = errors.map(|(op, counter)| (vec![("op", op.to_owned())], counter.get()));
    out.counters("journal_errors", "What the disk refused, and damage that was met", errors)?;
    let dropped =
        [("full_drop_oldest", &counters.dropped_messages), ("stopped_without_space", &counters.abandoned_messages)];
    let dropped = dropped.map(|(reason, counter)| (vec![("reason", reason.to_owned())], counter.get()));
    out.counters("journal_dropped_messages", "Messages taken in that are lost", dropped)?;
    let torn = observed.journal.findings().iter().map(|finding| match finding {
        Finding::TornTail { bytes, .. } => *bytes,
        _ => 0,
    });
    let help = "Bytes of a torn tail that the last start cut off; they were never promised to anyone";
    out.gauge("journal_truncated_bytes", help, torn.sum::<u64>() as f64)
}

fn outputs(out: &mut Families<'_>, observed: &Observed) -> fmt::Result {
    let (status, config) = (observed.status(SystemTime::now()), observed.config.borrow().clone());
    let outputs: Vec<(&String, &OutputStatus)> = status.nodes[0].outputs.iter().collect();
    let metrics: Vec<(String, Arc<OutputMetrics>)> = observed.metrics.outputs().into_iter().collect();
    let label = |name: &str| ("output", name.to_owned());
    let counted =
        |value: fn(&OutputMetrics) -> u64| metrics.iter().map(move |(name, output)| (vec![label(name)], value(output)));
    let seen =
        |value: fn(&OutputStatus) -> f64| outputs.iter().map(move |(name, output)| (vec![label(name)], value(output)));
    let oldest = seen(|output| output.lag_seconds);
    out.gauges("journal_oldest_age_seconds", "Age of the oldest message the output has not delivered", oldest)?;
    out.counters("output_sent_messages", "Messages that left, repeats included", counted(|o| o.sent.get()))?;
    out.counters("output_acked_messages", "Messages known to have arrived", counted(|o| o.acknowledged.get()))?;
    out.counters("output_sent_bytes", "Bytes that left", counted(|o| o.sent_bytes.get()))?;
    out.counters("output_retries", "Tries after the first", counted(|o| o.retries.get()))?;
    let by_reason = |value: fn(&OutputMetrics) -> &Reasons| {
        metrics.iter().flat_map(move |(name, output)| {
            let reasons = value(output).get().into_iter();
            reasons.map(move |(reason, count)| (vec![label(name), ("reason", reason.to_owned())], count))
        })
    };
    out.counters("output_errors", "Failures", by_reason(|output| &output.errors))?;
    out.counters("output_lost_messages", "Messages that will never be delivered", by_reason(|output| &output.lost))?;
    let help = "Seconds from the sending of a chunk to its acknowledgement";
    let mut family = out.0.encode_descriptor("output_ack_seconds", help, None, MetricType::Histogram)?;
    let is_forward = |name: &str| config.outputs.iter().any(|output| output.name == name && output.kind.is_forward());
    for (name, output) in metrics.iter().filter(|(name, _)| is_forward(name)) {
        output.ack_seconds.0.encode(family.encode_family(&vec![label(name)])?)?;
    }
    let unacked = seen(|output| output.in_flight as f64);
    out.gauges("output_unacked_messages", "Messages that left and are not known to have arrived", unacked)?;
    let backlog = seen(|output| output.backlog_messages as f64);
    out.gauges("output_backlog_messages", "Messages taken in and not delivered", backlog)?;
    out.gauges("output_lag_seconds", "Age of the oldest undelivered message", seen(|output| output.lag_seconds))?;
    let up = outputs.iter().flat_map(|(name, output)| {
        output.to.iter().map(|target| {
            let used = output.connected
                && output.target.as_ref().is_none_or(|used| used.split(", ").any(|used| used == target));
            (vec![label(name), ("target", target.clone())], if used { 1.0 } else { 0.0 })
        })
    });
    out.gauges("output_up", "Whether the target is there and in use", up)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::status::testing::TestNode;

    /// Reads an exposition as strictly as the specification says, and gives its samples.
    fn parse(text: &str) -> BTreeMap<String, f64> {
        let (mut samples, mut families) = (BTreeMap::new(), BTreeSet::new());
        let mut family = (String::new(), String::new());
        let body = text.strip_suffix("# EOF\n").expect("ends with EOF");
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(families.insert(name.to_owned()), "{name} comes twice");
                family = (name.to_owned(), kind.to_owned());
                continue;
            }
            if line.starts_with("# HELP ") {
                continue;
            }
            assert!(!line.starts_with('#') && !line.is_empty(), "{line}");
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let suffixes: &[&str] = match family.1.as_str() {
                "counter" => &["_total"],
                "info" => &["_info"],
                "histogram" => &["_bucket", "_count", "_sum"],
                _ => &[""],
            };
            assert!(suffixes.iter().any(|suffix| name == format!("{}{suffix}", family.0)), "{line} in {family:?}");
            if let Some(labels) = series.strip_prefix(name).and_then(|rest| rest.strip_prefix('{')) {
                let labels = labels.strip_suffix('}').unwrap();
                assert!(labels.is_empty() || labels.contains("=\"") && labels.ends_with('"'), "{line}");
                assert!(!labels.is_empty(), "{line}: an empty label set");
            }
            assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{series} comes twice");
        }
        // A sample's name must not be another family's, e.g. of a gauge `x` and a counter `x`.
        for name in &families {
            let clash = name.strip_suffix("_total").filter(|base| families.contains(*base));
            assert!(clash.is_none() || name == "twinlog_input_connections_total", "{name}");
        }
        samples
    }

    #[tokio::test]
    async fn every_number_can_be_read_back() {
        let node = TestNode::new();
        let end = node.receive(&[b"<13>one", b"<13>two", b"<13>three"]).await;
        node.deliver(end);
        let input = node.observed.metrics.input("net");
        input.set_socket("udp://[::]:514#0", SocketState { drops: 488, queue_bytes: 1, queue_limit_bytes: 2 });
        input.rejected.inc("denied");
        node.observed.metrics.output("odd\"na\\me\n").sent.inc();
        let text = render(&node.observed).unwrap();
        let samples = parse(&text);
        let value = |series: &str| *samples.get(series).unwrap_or_else(|| panic!("{series} is not in\n{text}"));
        assert_eq!(value("twinlog_input_messages_total{input=\"net\",proto=\"udp\"}"), 3.0);
        assert_eq!(value("twinlog_input_rejected_total{input=\"net\",reason=\"denied\"}"), 1.0);
        let drops = "twinlog_input_socket_drops_total{input=\"net\",proto=\"udp\",socket=\"udp://[::]:514#0\"}";
        assert_eq!(value(drops), 488.0);
        assert_eq!(value("twinlog_journal_appended_messages_total"), 3.0);
        assert_eq!(value("twinlog_journal_messages"), 0.0);
        assert!(value("twinlog_journal_fsync_seconds_count") >= 1.0);
        assert!(value("twinlog_journal_free_bytes") > 0.0);
        assert_eq!(value("twinlog_output_backlog_messages{output=\"siem\"}"), 0.0);
        assert_eq!(value("twinlog_output_up{output=\"siem\",target=\"tcp://siem.example.net:514\"}"), 1.0);
        assert_eq!(value("twinlog_output_up{output=\"siem\",target=\"tcp://siem2.example.net:514\"}"), 0.0);
        assert_eq!(value("twinlog_output_sent_messages_total{output=\"odd\\\"na\\\\me\\n\"}"), 1.0);
        assert_eq!(value("twinlog_restart_pending"), 0.0);
        assert!(value("process_resident_memory_bytes") > 0.0);
        assert!(text.contains("twinlog_build_info{version="));
    }
}
