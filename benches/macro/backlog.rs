//! Rows with a backlog: of the only sink over a restart, or of a second sink that is away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::generator::{Connections, Plan};
use crate::load::backlog_messages;
use crate::measure::now_ns;
use crate::message::LINE_BYTES;
use crate::report::{Metric, Row};
use crate::run::{LATENCIES, QUIET, Run, common, per_second, percentiles};
use crate::sink::{Dialect, Sink};

/// The second sink has caught up when it is this much behind the first.
const CAUGHT_UP: Duration = Duration::from_millis(100);

/// How often the sinks are looked at meanwhile.
const LOOK: Duration = Duration::from_millis(10);

impl Run<'_> {
    /// The sink is not there until all is taken in and the relay was restarted with it.
    pub fn backlog(&self) -> Result<Row> {
        let mut relay = self.start_relay()?;
        let before = relay.usage()?;
        let mut connections = Connections::open(relay.address(), &self.plan, self.deadline)?;
        let start_ns = now_ns();
        connections.send(&self.plan, self.deadline)?;
        connections.finish(self.deadline)?;
        let taken_ns = now_ns();
        let startup = relay.restart()?;

        let sink = Sink::open(self.ports.sink, self.plan, Dialect::Syslog)?;
        sink.wait(QUIET, self.deadline)?;
        let after = relay.usage()?;
        let tally = sink.close();
        let mut row = common(self.plan.total(), &tally, before, after);
        row.insert(Metric::IntakeRate, per_second(self.plan.total(), start_ns, taken_ns));
        row.insert(Metric::StartupMs, startup.as_secs_f64() * 1e3);
        row.insert(Metric::DrainRate, per_second(tally.unique, tally.first_ns, tally.last_ns));
        Ok(row)
    }

    /// The load of `tcp1` on a journal that holds much for an output whose sink never comes.
    pub fn full_journal(&self) -> Result<Row> {
        let sink = Sink::open(self.ports.sink, self.plan, Dialect::Syslog)?;
        let relay = self.start_relay()?;
        let mut connections = Connections::open(relay.address(), &self.plan, self.deadline)?;
        self.fill(&mut connections, &sink)?;

        let before = relay.usage()?;
        let (sent, start_ns) = (connections.sent(), now_ns());
        connections.send(&self.plan, self.deadline)?;
        sink.wait(QUIET, self.deadline)?;
        let after = relay.usage()?;
        let tally = sink.close();
        let measured = self.plan.total() - sent;
        let mut row = common(measured, &tally, before, after);
        row.insert(Metric::Rate, per_second(measured - tally.lost().min(measured), start_ns, tally.last_ns));
        row.extend(percentiles(&tally.latency, &LATENCIES));
        Ok(row)
    }

    /// A second sink comes to a backlog while a paced load goes to the first.
    ///
    /// CPU time and bytes written are those of the whole run, spread over what was taken in; each message leaves twice.
    pub fn backlog_live(&self) -> Result<Row> {
        let first = Sink::open(self.ports.sink, self.plan, Dialect::Syslog)?;
        let relay = self.start_relay()?;
        let usage = relay.usage()?;
        let mut connections = Connections::open(relay.address(), &self.plan, self.deadline)?;
        self.fill(&mut connections, &first)?;

        let is_live = AtomicBool::new(true);
        let (second, mut row) = thread::scope(|scope| {
            let generator =
                scope.spawn(|| connections.send_while(&self.plan, self.deadline, || is_live.load(Ordering::Relaxed)));
            let watched = self.watch_draining(&first, || !generator.is_finished());
            // Also after an error: the scope ends only when the generator does.
            is_live.store(false, Ordering::Relaxed);
            generator.join().expect("the generator does not panic")?;
            watched
        })?;

        let sent = connections.sent();
        first.wait_for(sent, QUIET, self.deadline)?;
        second.wait_for(sent, QUIET, self.deadline)?;
        let after = relay.usage()?;
        let (first, second) = (first.close(), second.close());
        row.extend(common(sent, &first, usage, after));
        row.insert(Metric::Lost, (2 * sent - first.unique - second.unique) as f64);
        row.insert(Metric::Repeated, (first.repeated + second.repeated) as f64);
        Ok(row)
    }

    /// Sends what is to wait for the second output, as fast as it is taken, and waits until the first sink has it.
    fn fill(&self, connections: &mut Connections, sink: &Sink) -> Result<()> {
        let plan = Plan { per_stream: backlog_messages(self.options), rate: None, ..self.plan };
        connections.send(&plan, self.deadline)?;
        sink.wait_for(plan.total(), QUIET, self.deadline)?;
        sink.take_latency();
        Ok(())
    }

    /// Looks at the live load for a while, then opens the second sink and looks on until that has caught up, or until the
    /// load has ended.
    fn watch_draining(&self, first: &Sink, is_live: impl Fn() -> bool) -> Result<(Sink, Row)> {
        let opens_ns = now_ns() + u64::from(self.options.seconds) * 1_000_000_000;
        while now_ns() < opens_ns && is_live() {
            self.deadline.pause(LOOK, "watching the live load")?;
        }
        let second = Sink::open(self.ports.second_sink, self.plan, Dialect::Syslog)?;
        // The relay's next try may be a second away.
        while second.unique() == 0 && is_live() {
            self.deadline.pause(LOOK, "waiting for the second sink's connection")?;
        }
        let alone = first.take_latency();

        let behind_max = u64::from(self.options.live_rate) * CAUGHT_UP.as_millis() as u64 / 1000;
        while is_live() && first.unique().saturating_sub(second.unique()) > behind_max {
            self.deadline.pause(LOOK, "waiting for the second sink to catch up")?;
        }
        let rate = per_second(second.unique(), second.first_ns(), now_ns());
        let mut row =
            percentiles(&alone, &[(Metric::AloneP50Ms, 0.5), (Metric::AloneP99Ms, 0.99), (Metric::AloneMaxMs, 1.0)]);
        row.extend(percentiles(
            &first.take_latency(),
            &[(Metric::DrainingP50Ms, 0.5), (Metric::DrainingP99Ms, 0.99), (Metric::DrainingMaxMs, 1.0)],
        ));
        row.insert(Metric::DrainRate, rate);
        row.insert(Metric::DrainMbRate, rate * LINE_BYTES as f64 / 1e6);
        Ok((second, row))
    }
}
