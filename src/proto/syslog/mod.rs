//! Syslog: an *originator* makes a message, a *relay* passes it on, a *collector* keeps it (RFC 5424, section 3).
