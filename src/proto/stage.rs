//! The stages of a node's life that the data plane follows.

/// What the control plane wants of the data plane. A value that is published and compared, not a command: a task that
/// starts late needs no history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Inputs take messages, outputs deliver them.
    #[default]
    Serving,
    /// The other node is asked to take over; nothing ends yet.
    HandingOver,
    /// Inputs finish what is on its way to them and take nothing new; outputs go on.
    Quiescing,
    /// Inputs have ended; what the journal holds reaches the other node and the destinations.
    Flushing,
    /// Everything is somewhere else.
    Drained,
    /// Everything finishes what is in flight and ends.
    Stopping,
}

impl Stage {
    /// The name in `status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Serving => "serving",
            Stage::HandingOver => "handing_over",
            Stage::Quiescing => "quiescing",
            Stage::Flushing => "flushing",
            Stage::Drained => "drained",
            Stage::Stopping => "stopping",
        }
    }
}
