//! What a load asks of a relay's configuration.

/// What goes through a relay, and how it leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    pub flow: Flow,
    /// Of the output; `raw` is the bytes as received.
    pub format: &'static str,
    /// Longest wait before `fdatasync`.
    pub commit_interval: &'static str,
    /// Whether everything goes to another syslog output too, which has a sink of its own.
    pub has_second_output: bool,
}

impl Setup {
    /// The one that every relay has. All others are twinlog's alone.
    pub const SYSLOG: Setup =
        Setup { flow: Flow::Syslog, format: "raw", commit_interval: "10ms", has_second_output: false };
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Syslog in, syslog out.
    Syslog,
    /// Forward in, forward out.
    Forward,
    /// Syslog in, a file.
    File,
}
