//! Where to listen and where to send: `":514"`, `"udp://192.0.2.1:514"`, `"tcp://siem.example.net"`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::units::Invalid;

/// The port of syslog where a target names none (RFC 5426; custom over TCP).
pub const SYSLOG_PORT: u16 = 514;

/// The port of syslog inside TLS where a target names none (RFC 5425, 4.1).
pub const SYSLOG_TLS_PORT: u16 = 6514;
/// The port of fluent-forward where a target names none.
pub const FORWARD_PORT: u16 = 24224;

/// How bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// One datagram, one message.
    Udp,
    /// A byte stream.
    Tcp,
    /// A byte stream inside TLS.
    Tls,
}

impl Protocol {
    /// Whether it takes a TCP port: TLS does.
    #[must_use]
    pub fn is_stream(self) -> bool {
        self != Protocol::Udp
    }

    fn syslog_port(self) -> u16 {
        if self == Protocol::Tls { SYSLOG_TLS_PORT } else { SYSLOG_PORT }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Udp => "udp",
            Protocol::Tcp => "tcp",
            Protocol::Tls => "tls",
        })
    }
}

/// One socket to listen on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listen {
    /// Datagrams, streams or streams inside TLS.
    pub protocol: Protocol,
    /// Where. `[::]` takes IPv4 too (`":514"` means that), every other address only its own family. Port 0 lets the
    /// kernel choose.
    pub address: SocketAddr,
}

impl Listen {
    /// Whether one host cannot have both: the same port of UDP or of TCP, and addresses that cover a common one.
    #[must_use]
    pub fn overlaps(&self, other: &Listen) -> bool {
        let covers = |a: IpAddr, b: IpAddr| {
            a == b || a == IpAddr::V6(Ipv6Addr::UNSPECIFIED) || (a.is_unspecified() && b.is_ipv4() == a.is_ipv4())
        };
        let (a, b) = (self.address, other.address);
        let same_port = a.port() == b.port() && a.port() != 0;
        let same_kind = self.protocol.is_stream() == other.protocol.is_stream();
        same_kind && same_port && (covers(a.ip(), b.ip()) || covers(b.ip(), a.ip()))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.protocol, self.address)
    }
}

/// Reads one `listen` entry; without a protocol it opens both.
pub(super) fn listen(text: &str) -> Result<Vec<Listen>, Invalid> {
    let (protocol, rest) = split_protocol(text)?;
    let address = listen_address(rest, protocol)?;
    let protocols = protocol.map_or(vec![Protocol::Udp, Protocol::Tcp], |protocol| vec![protocol]);
    Ok(protocols.into_iter().map(|protocol| Listen { protocol, address }).collect())
}

/// Reads one `listen` entry of a forward input: always both protocols, because UDP is only the heartbeat.
pub(super) fn listen_forward(text: &str) -> Result<Vec<Listen>, Invalid> {
    match split_protocol(text)? {
        (None, _) => listen(text),
        (Some(_), rest) => {
            let what = "has no protocol here: chunks come over TCP, heartbeats over UDP, both to one address";
            Err(Invalid::new(what, format!("write \"{rest}\"")))
        }
    }
}

/// Reads one `listen` entry of a RELP input; without a protocol it opens TCP.
pub(super) fn listen_relp(text: &str) -> Result<Vec<Listen>, Invalid> {
    let (protocol, rest) = split_protocol(text)?;
    let protocol = protocol.unwrap_or(Protocol::Tcp);
    if protocol == Protocol::Udp {
        return Err(Invalid::new("cannot be udp://: RELP goes over TCP", format!("write \"{rest}\"")));
    }
    let address = listen_address(rest, Some(protocol))?;
    Ok(vec![Listen { protocol, address }])
}

/// Reads `":514"`, `"192.0.2.1:514"` or `"[2001:db8::1]:514"`; the protocol is for the diagnostic only.
pub(super) fn listen_address(text: &str, protocol: Option<Protocol>) -> Result<SocketAddr, Invalid> {
    let prefix = protocol.map_or(String::new(), |protocol| format!("{protocol}://"));
    let usual = protocol.map_or(SYSLOG_PORT, Protocol::syslog_port);
    if let Some(port) = text.strip_prefix(':').or_else(|| text.strip_prefix("*:"))
        && let Ok(port) = port.parse()
    {
        return Ok(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    }
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        let address = SocketAddr::from((ip, usual));
        return Err(Invalid::new("needs a port", format!("write \"{prefix}{address}\"")));
    }
    if text.parse::<u16>().is_ok() {
        return Err(Invalid::new("needs a colon before the port", format!("write \"{prefix}:{text}\"")));
    }
    let fix = format!("write \"{prefix}:{usual}\" for all addresses, or \"{prefix}192.0.2.1:{usual}\" for one");
    Err(Invalid::new("must be an address and a port of this host", fix))
}

/// Where an output sends to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Datagrams, streams or streams inside TLS.
    pub protocol: Protocol,
    /// Host name or address, IPv6 without brackets. Looked up at every connection.
    pub host: String,
    /// Default 514; 6514 inside TLS.
    pub port: u16,
}

impl Target {
    /// The address, if the host is one and not a name.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        Some(SocketAddr::from((self.host.parse::<IpAddr>().ok()?, self.port)))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            return write!(f, "{}://[{}]:{}", self.protocol, self.host, self.port);
        }
        write!(f, "{}://{}:{}", self.protocol, self.host, self.port)
    }
}

impl FromStr for Target {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Target, Invalid> {
        let (protocol, rest) = split_protocol(text)?;
        let Some(protocol) = protocol else {
            return Err(Invalid::new("needs a protocol", format!("write \"tcp://{rest}\" or \"udp://{rest}\"")));
        };
        let (host, port) = split_host(rest);
        let usual = protocol.syslog_port();
        if host.parse::<IpAddr>().is_err() && !is_host_name(host) {
            let example = format!("{protocol}://siem.example.net:{usual}");
            return Err(Invalid::new("must be a host and a port", format!("write it as \"{example}\"")));
        }
        let port = match port.map(str::parse) {
            None => usual,
            Some(Ok(port)) if port > 0 => port,
            _ => {
                let fix = format!("write \"{protocol}://{host}:{usual}\"");
                return Err(Invalid::new("needs a port from 1 to 65535", fix));
            }
        };
        Ok(Target { protocol, host: host.to_owned(), port })
    }
}

/// Reads one server of a forward output: `"collector.example.net"`, `"192.0.2.1:24224"`, `"tls://collector:24224"`.
pub(super) fn forward_target(text: &str) -> Result<Target, Invalid> {
    let (protocol, rest) = split_protocol(text)?;
    if protocol == Some(Protocol::Udp) {
        return Err(Invalid::new("cannot be udp://: forward goes over TCP", format!("write \"{rest}\"")));
    }
    let (host, port) = split_host(rest);
    if host.parse::<IpAddr>().is_err() && !is_host_name(host) {
        return Err(Invalid::new("must be a host and a port", "write it as \"collector.example.net:24224\""));
    }
    let port = match port.map(str::parse) {
        None => FORWARD_PORT,
        Some(Ok(port)) if port > 0 => port,
        _ => return Err(Invalid::new("needs a port from 1 to 65535", format!("write \"{host}:{FORWARD_PORT}\""))),
    };
    Ok(Target { protocol: protocol.unwrap_or(Protocol::Tcp), host: host.to_owned(), port })
}

fn split_protocol(text: &str) -> Result<(Option<Protocol>, &str), Invalid> {
    // Before anything that repeats the text in a fix: this may be a password.
    if text.contains('@') {
        return Err(Invalid::new("cannot carry a user or a password", "leave out everything up to the @"));
    }
    let Some((protocol, rest)) = text.split_once("://") else { return Ok((None, text)) };
    match protocol {
        "udp" => Ok((Some(Protocol::Udp), rest)),
        "tcp" => Ok((Some(Protocol::Tcp), rest)),
        "tls" => Ok((Some(Protocol::Tls), rest)),
        _ => Err(Invalid::new(format!("has no protocol {protocol:?}"), format!("write \"tcp://{rest}\""))),
    }
}

/// Host and port as texts; `[…]` and bare IPv6 addresses are hosts with colons in them.
fn split_host(text: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        return (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':').unwrap_or("")) });
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => (host, Some(port)),
        _ => (text, None),
    }
}

/// Letters, digits, hyphens and, because they are in use, underscores; at most 253 bytes (RFC 1123, 2.1).
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
    };
    let numeric = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    text.len() <= 253 && !numeric && text.strip_suffix('.').unwrap_or(text).split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listened(text: &str) -> Vec<String> {
        listen(text).unwrap().iter().map(Listen::to_string).collect()
    }

    #[test]
    fn a_port_alone_listens_everywhere_over_both_protocols() {
        assert_eq!(listened(":514"), ["udp://[::]:514", "tcp://[::]:514"]);
        assert_eq!(listened("udp://:514"), ["udp://[::]:514"]);
        assert_eq!(listened("tcp://0.0.0.0:601"), ["tcp://0.0.0.0:601"]);
        assert_eq!(listened("tls://:6514"), ["tls://[::]:6514"]);
        assert_eq!(listened("[2001:db8::1]:514"), ["udp://[2001:db8::1]:514", "tcp://[2001:db8::1]:514"]);
    }

    #[test]
    fn relp_listens_over_tcp_or_inside_tls() {
        let listened =
            |text| listen_relp(text).map(|listens| listens.iter().map(Listen::to_string).collect::<Vec<_>>());
        assert_eq!(listened(":2514").unwrap(), ["tcp://[::]:2514"]);
        assert_eq!(listened("tls://192.0.2.1:2515").unwrap(), ["tls://192.0.2.1:2515"]);
        assert_eq!(listened("udp://:2514").unwrap_err().fix, "write \":2514\"");
    }

    #[test]
    fn a_listen_entry_that_is_nearly_right_is_completed() {
        for (text, fix) in [
            ("514", "write \":514\""),
            ("tcp://601", "write \"tcp://:601\""),
            ("192.0.2.1", "write \"192.0.2.1:514\""),
            ("udp://::1", "write \"udp://[::1]:514\""),
            ("tls://192.0.2.1", "write \"tls://192.0.2.1:6514\""),
            ("http://:80", "write \"tcp://:80\""),
            ("eth0:514", "write \":514\" for all addresses, or \"192.0.2.1:514\" for one"),
            (":99999", "write \":514\" for all addresses, or \"192.0.2.1:514\" for one"),
        ] {
            assert_eq!(listen(text).unwrap_err().fix, fix, "{text}");
        }
    }

    #[test]
    fn targets_are_read_with_their_default_port() {
        for (text, shown) in [
            ("tcp://siem.example.net", "tcp://siem.example.net:514"),
            ("udp://10.1.2.3:1514", "udp://10.1.2.3:1514"),
            ("tcp://[2001:db8::1]:601", "tcp://[2001:db8::1]:601"),
            ("tcp://2001:db8::1", "tcp://[2001:db8::1]:514"),
            ("tcp://log_host.", "tcp://log_host.:514"),
            ("tls://siem.example.net", "tls://siem.example.net:6514"),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(target.to_string(), shown);
            assert_eq!(shown.parse(), Ok(target));
        }
        for bad in
            ["siem:514", "tcp://", "tcp://a b", "tcp://:514", "tcp://a:0", "tcp://a:x", "tcp://300.1.1.1", "tcp://-a"]
        {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_forward_server_is_a_host_and_maybe_a_port() {
        for (text, shown) in [
            ("collector.example.net", "tcp://collector.example.net:24224"),
            ("192.0.2.1:24225", "tcp://192.0.2.1:24225"),
            ("tcp://[2001:db8::1]:24224", "tcp://[2001:db8::1]:24224"),
            ("2001:db8::1", "tcp://[2001:db8::1]:24224"),
        ] {
            let target = forward_target(text).unwrap();
            assert_eq!(target.to_string(), shown);
            assert_eq!(forward_target(shown), Ok(target));
        }
        for (bad, fix) in [
            ("udp://a", "write \"a\""),
            ("a:0", "write \"a:24224\""),
            ("user:password@a", "leave out everything up to the @"),
            ("a b", "write it as \"collector.example.net:24224\""),
        ] {
            assert_eq!(forward_target(bad).unwrap_err().fix, fix, "{bad}");
        }
    }

    #[test]
    fn addresses_that_cover_a_common_one_overlap() {
        for (a, b, expected) in [
            ("udp://:514", "udp://127.0.0.1:514", true),
            ("udp://0.0.0.0:514", "udp://127.0.0.1:514", true),
            ("udp://0.0.0.0:514", "udp://[::1]:514", false),
            ("udp://:514", "tcp://:514", false),
            ("tls://:514", "tcp://:514", true),
            ("tls://:514", "udp://:514", false),
            ("udp://:514", "udp://:515", false),
            ("udp://:0", "udp://:0", false),
            ("udp://10.0.0.1:514", "udp://10.0.0.2:514", false),
        ] {
            let (a, b) = (&listen(a).unwrap()[0], &listen(b).unwrap()[0]);
            assert_eq!((a.overlaps(b), b.overlaps(a)), (expected, expected), "{a} {b}");
        }
    }
}
