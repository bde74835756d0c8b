//! Closed sets: values that are one of a few words. Each word stands once, here.

use super::units::Invalid;

/// A value that is one of a few words.
pub trait Choice: Copy + PartialEq + Sized + 'static {
    /// Every word and what it means, in the order in which diagnostics list them.
    const WORDS: &'static [(&'static str, Self)];

    /// The word.
    fn word(self) -> &'static str {
        let found = Self::WORDS.iter().find(|(_, value)| *value == self);
        found.map(|(word, _)| *word).expect("every value has its word: the macro lists both")
    }

    /// The value of a word.
    ///
    /// # Errors
    /// If it is none of them.
    fn from_word(text: &str) -> Result<Self, Invalid> {
        if let Some((_, value)) = Self::WORDS.iter().find(|(word, _)| *word == text) {
            return Ok(*value);
        }
        let words: Vec<String> = Self::WORDS.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        Err(Invalid::new(format!("cannot be {text:?}"), format!("write {}", words.join(" or "))))
    }
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl Choice for $name {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, $name::$variant)),+];
        }
    };
}

choice!(
    /// What happens when the journal is full.
    WhenFull {
        /// Senders over TCP wait; over UDP the kernel drops, counted.
        Block = "block",
        /// The oldest segment goes, counted.
        DropOldest = "drop_oldest",
    }
);

choice!(
    /// What an acknowledged message means.
    Acknowledge {
        /// It is on this node's disk.
        Durable = "durable",
        /// It is on both nodes' disks; needs a pair.
        Replicated = "replicated",
    }
);

choice!(
    /// What a node of a pair does while the other is away.
    PeerLoss {
        /// It goes on with one copy and says so.
        Degrade = "degrade",
        /// It acknowledges nothing with one copy.
        Stop = "stop",
    }
);

choice!(
    /// How messages are told apart in a byte stream (RFC 6587).
    Framing {
        /// The length before each inside TLS (RFC 5425, 4.3), a line end after each over plain TCP.
        Auto = "auto",
        /// A line end after each; those inside become spaces.
        Lf = "lf",
        /// The length before each.
        Octet = "octet",
    }
);

choice!(
    /// Whether a TLS client shows a certificate.
    ClientAuth {
        /// It is not asked for one.
        Off = "off",
        /// It is asked, and may have none; one that is shown must be good.
        Optional = "optional",
        /// Without a good one there is no connection.
        Required = "required",
    }
);

choice!(
    /// What leaves through `[[output.syslog]]`.
    SyslogFormat {
        /// The bytes as received.
        Raw = "raw",
        /// RFC 5424 with the message's id as structured data.
        Rfc5424 = "rfc5424",
    }
);

choice!(
    /// How chunks are spread over the servers of `[[output.forward]]`.
    Balance {
        /// To the first that answers; the rest stand by in order.
        Failover = "failover",
        /// To all that answer, in turn.
        RoundRobin = "round_robin",
    }
);

choice!(
    /// Whether `[[output.forward]]` compresses what is not compressed already.
    Compress {
        /// No.
        Off = "off",
        /// With gzip, which every receiver knows.
        Gzip = "gzip",
    }
);

choice!(
    /// What a line of a file or of stdout is.
    FileFormat {
        /// The bytes as received.
        Raw = "raw",
        /// One JSON object with what is known about the message.
        Json = "json",
    }
);

choice!(
    /// The least severe of twinlog's own messages that is logged.
    LogLevel {
        /// What stops the service.
        Error = "error",
        /// What someone should look at in the morning.
        Warn = "warn",
        /// What changed.
        Info = "info",
        /// A peer's mistakes too.
        Debug = "debug",
        /// Every message too.
        Trace = "trace",
    }
);

choice!(
    /// How twinlog's own messages are written.
    LogFormat {
        /// For people.
        Text = "text",
        /// One object a line.
        Json = "json",
    }
);

choice!(
    /// Where twinlog's own messages go.
    LogTarget {
        /// To journald when systemd started the process, else to stderr.
        Auto = "auto",
        /// To journald.
        Journald = "journald",
        /// To stderr.
        Stderr = "stderr",
    }
);

choice!(
    /// What a `[[hook]]` is run for.
    HookEvent {
        /// This node serves: it has the virtual addresses.
        Active = "active",
        /// It stands by.
        Standby = "standby",
        /// Something is wrong; each new fault once.
        Fault = "fault",
        /// Nothing is wrong any more.
        Recovered = "recovered",
        /// It has handed over and delivered what it held.
        Drained = "drained",
        /// Messages are lost: the journal was full, or damaged on the disk.
        Gap = "gap",
        /// A configuration was applied, or refused.
        Reload = "reload",
        /// The daemon stops.
        Stop = "stop",
    }
);

impl HookEvent {
    /// What keepalived's notify scripts call it; `None` for what keepalived does not know.
    #[must_use]
    pub fn keepalived_state(self) -> Option<&'static str> {
        match self {
            HookEvent::Active => Some("MASTER"),
            HookEvent::Standby => Some("BACKUP"),
            HookEvent::Fault => Some("FAULT"),
            HookEvent::Stop => Some("STOP"),
            HookEvent::Recovered | HookEvent::Drained | HookEvent::Gap | HookEvent::Reload => None,
        }
    }
}

choice!(
    /// How a `[[hook]]`'s command is told what happened.
    HookStyle {
        /// One JSON object on its standard input.
        Json = "json",
        /// Four more arguments, as keepalived's `notify` has them: `INSTANCE name MASTER|BACKUP|FAULT|STOP priority`.
        Keepalived = "keepalived",
    }
);

/// Names of the facilities; the index is the number (RFC 5424, table 1).
pub(super) const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];

/// Names of the severities; the index is the number (RFC 5424, table 2).
pub(super) const SEVERITIES: [&str; 8] = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];
