//! Three questions that machines ask: does it live, could it serve, does it serve?

use crate::journal::State;
use crate::proto::stage::Stage;
use crate::status::{HEARTBEAT_MAX, Observed};

/// One check of an answer.
struct Check {
    name: &'static str,
    ok: bool,
    finding: String,
}

/// The checks behind one answer.
pub(super) struct Health(Vec<Check>);

impl Health {
    /// Restart it if not: the journal's thread gave a sign of life in the last five seconds, and with a pair the
    /// election's too.
    pub(super) fn live(observed: &Observed) -> Health {
        let mut checks = vec![heartbeat(observed)];
        if let Some(elected) = &observed.elected {
            let silent = elected.handle.silent_for();
            // Its thread ends first when the daemon stops.
            let ok = silent <= HEARTBEAT_MAX || elected.handle.view().has_left;
            checks.push(Check { name: "vip", ok, finding: format!("{:.1} s ago", silent.as_secs_f64()) });
        }
        Health(checks)
    }

    /// Send nothing to it if not: it stores, it listens, and it is not leaving.
    pub(super) fn ready(observed: &Observed) -> Health {
        let (writing, finding) = match &*observed.journal.state().borrow() {
            State::Writing => (true, "writing".to_owned()),
            State::Waiting(why) => (false, format!("waiting: {why}")),
            State::Poisoned(why) => (false, why.to_string()),
        };
        let journal = Check { name: "journal", ok: writing, finding };
        let ok = *observed.listening.borrow();
        let finding = if ok { "listening" } else { "not all sockets are open" };
        let inputs = Check { name: "inputs", ok, finding: finding.to_owned() };
        let mut checks = vec![heartbeat(observed), journal, inputs, serving(observed)];
        if let Some(elected) = &observed.elected {
            let faults = elected.handle.view().faults;
            let finding = if faults.is_empty() { "taking part".to_owned() } else { faults.join(", ") };
            checks.push(Check { name: "election", ok: faults.is_empty(), finding });
        }
        Health(checks)
    }

    /// Whether it is the node that serves: alone, whenever it is not leaving; of a pair, the one with the addresses.
    pub(super) fn active(observed: &Observed) -> Health {
        let mut checks = vec![serving(observed)];
        if let Some(elected) = &observed.elected {
            let view = elected.handle.view();
            checks.push(Check { name: "vip", ok: view.vip_held, finding: view.state.to_owned() });
        }
        Health(checks)
    }

    /// Whether all checks hold.
    pub(super) fn ok(&self) -> bool {
        self.0.iter().all(|check| check.ok)
    }

    /// A line for each check.
    pub(super) fn text(&self) -> String {
        let line =
            |check: &Check| format!("{:<4} {}: {}\n", if check.ok { "ok" } else { "FAIL" }, check.name, check.finding);
        self.0.iter().map(line).collect()
    }
}

fn heartbeat(observed: &Observed) -> Check {
    let age = observed.heartbeat_age();
    Check { name: "heartbeat", ok: age <= HEARTBEAT_MAX, finding: format!("{:.1} s ago", age.as_secs_f64()) }
}

fn serving(observed: &Observed) -> Check {
    let stage = *observed.stage.borrow();
    Check { name: "stage", ok: stage == Stage::Serving, finding: stage.as_str().to_owned() }
}
