//! A TCP connection as bytes: what another host has to know to go on with it.
//!
//! The kernel of the old owner tells it, that of the new one is told it; nothing here knows either. The client notices a
//! pause. What was read from the connection is not part of it: its receive queue is empty when the image is made.
//!
//! ```text
//! version 1, little endian                        34  local: address, 16 (IPv4 as IPv6-mapped) · port, u16
//!  0  version, u8 = 1                             52  peer: the same
//!  1  family of the socket, u8: 4 or 6            70  window: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup, u32 each
//!  2  marks, u8: 1 SACK, 2 scales, 4 timestamp    90  bytes of the send queue that were never sent, u32
//!  3  zero, u8                                    94  length of the send queue, u32
//!  4  window scales: ours, theirs, u8 each        98  send queue
//!  6  largest segment, u16
//!  8  rcv_nxt, u32
//! 12  snd_una, u32
//! 16  timestamp, u32
//! 20  zero, 14
//! ```
//!
//! A socket of IPv6 with an IPv4-mapped address is one that took IPv4 too (`[::]`), and stays one.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use thiserror::Error;

/// The format this code writes, and reads.
pub const VERSION: u8 = 1;
/// Longest send queue, in bytes: the kernel's own limit (`net.ipv4.tcp_wmem`) is far below.
pub const SEND_QUEUE_BYTES_MAX: usize = 64 << 20;

/// Bytes before the send queue.
const FIXED_BYTES: usize = 98;
/// Largest window scale (RFC 7323, 2.3).
const SCALE_MAX: u8 = 14;

const MARK_SACK: u8 = 1;
const MARK_SCALES: u8 = 2;
const MARK_TIMESTAMP: u8 = 4;

/// Why bytes are no image. The connection they stood for cannot be taken over; its owner keeps it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ImageError {
    /// Another number of bytes than they say themselves.
    #[error("{0} bytes are not as many as the image says")]
    Length(usize),
    /// Of a newer program.
    #[error("image format {0} is not the one this program reads ({VERSION})")]
    Version(u8),
    /// A field has a value that no connection has.
    #[error("the field `{0}` has a value that no connection has")]
    Field(&'static str),
}

/// The windows of both sides, as `struct tcp_repair_window` has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Sequence number of the segment that last changed the peer's window.
    pub snd_wl1: u32,
    /// The peer's window in bytes.
    pub snd_wnd: u32,
    /// The largest that it was.
    pub max_window: u32,
    /// Our window in bytes, as last told.
    pub rcv_wnd: u32,
    /// `rcv_nxt` when it was told.
    pub rcv_wup: u32,
}

/// An established connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Our address; both are of the socket's family.
    pub local: SocketAddr,
    /// The client's.
    pub peer: SocketAddr,
    /// The next byte that the client sends.
    pub rcv_nxt: u32,
    /// The first byte that the client has not acknowledged: the begin of the send queue.
    pub snd_una: u32,
    /// What was written and is not acknowledged.
    pub send_queue: Vec<u8>,
    /// Its last so many bytes were never sent.
    pub unsent: u32,
    /// Largest segment that the client takes.
    pub mss: u16,
    /// Whether selective acknowledgement was agreed on.
    pub sack: bool,
    /// Window scales, the client's and ours, if agreed on.
    pub scales: Option<(u8, u8)>,
    /// The timestamp to go on with, if they were agreed on.
    pub timestamp: Option<u32>,
    /// The windows.
    pub window: Window,
}

impl Image {
    /// Appends the bytes.
    ///
    /// # Panics
    /// If the send queue is longer than [`SEND_QUEUE_BYTES_MAX`]: whoever makes an image refuses that.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.send_queue.len() <= SEND_QUEUE_BYTES_MAX, "makers of images bound the send queue");
        let family = if self.local.is_ipv4() { 4 } else { 6 };
        let mut marks = u8::from(self.sack) * MARK_SACK;
        marks |= self.scales.map_or(0, |_| MARK_SCALES) | self.timestamp.map_or(0, |_| MARK_TIMESTAMP);
        let (theirs, ours) = self.scales.unwrap_or_default();
        out.extend([VERSION, family, marks, 0, ours, theirs]);
        out.extend(self.mss.to_le_bytes());
        for number in [self.rcv_nxt, self.snd_una, self.timestamp.unwrap_or_default()] {
            out.extend(number.to_le_bytes());
        }
        out.extend([0; 14]);
        for address in [self.local, self.peer] {
            out.extend(mapped(address.ip()).octets());
            out.extend(address.port().to_le_bytes());
        }
        let Window { snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup } = self.window;
        for number in [snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup, self.unsent, self.send_queue.len() as u32] {
            out.extend(number.to_le_bytes());
        }
        out.extend_from_slice(&self.send_queue);
    }

    /// Reads an image, all of `bytes`.
    ///
    /// # Errors
    /// It is none, or one that a kernel would refuse.
    pub fn decode(bytes: &[u8]) -> Result<Image, ImageError> {
        match bytes.first() {
            Some(&VERSION) if bytes.len() >= FIXED_BYTES => {}
            Some(&version) if version != VERSION => return Err(ImageError::Version(version)),
            _ => return Err(ImageError::Length(bytes.len())),
        }
        let (fixed, send_queue) = bytes.split_at(FIXED_BYTES);
        if u32_at(fixed, 94) as usize != send_queue.len() || send_queue.len() > SEND_QUEUE_BYTES_MAX {
            return Err(ImageError::Length(bytes.len()));
        }
        let (family, marks) = (fixed[1], fixed[2]);
        must(marks <= MARK_SACK | MARK_SCALES | MARK_TIMESTAMP, "marks")?;
        must(fixed[3] == 0 && fixed[20..34] == [0; 14], "zero")?;
        let has = |mark: u8| marks & mark != 0;
        let (ours, theirs, timestamp) = (fixed[4], fixed[5], u32_at(fixed, 16));
        must(has(MARK_SCALES) || (ours, theirs) == (0, 0), "scales")?;
        must(has(MARK_TIMESTAMP) || timestamp == 0, "timestamp")?;
        let image = Image {
            local: address_at(fixed, 34, family).ok_or(ImageError::Field("local"))?,
            peer: address_at(fixed, 52, family).ok_or(ImageError::Field("peer"))?,
            rcv_nxt: u32_at(fixed, 8),
            snd_una: u32_at(fixed, 12),
            send_queue: send_queue.to_vec(),
            unsent: u32_at(fixed, 90),
            mss: u16::from_le_bytes([fixed[6], fixed[7]]),
            sack: has(MARK_SACK),
            scales: has(MARK_SCALES).then_some((theirs, ours)),
            timestamp: has(MARK_TIMESTAMP).then_some(timestamp),
            window: Window {
                snd_wl1: u32_at(fixed, 70),
                snd_wnd: u32_at(fixed, 74),
                max_window: u32_at(fixed, 78),
                rcv_wnd: u32_at(fixed, 82),
                rcv_wup: u32_at(fixed, 86),
            },
        };
        image.check()?;
        Ok(image)
    }

    /// Whether this may be a connection: what the kernel asks of windows, and what it would only notice later.
    ///
    /// # Errors
    /// Names the first field that cannot be.
    pub fn check(&self) -> Result<(), ImageError> {
        let Image { local, peer, window, .. } = self;
        must(local.is_ipv4() == peer.is_ipv4(), "peer")?;
        must(mapped(local.ip()).to_ipv4_mapped().is_some() == mapped(peer.ip()).to_ipv4_mapped().is_some(), "peer")?;
        must(is_host(*local), "local")?;
        must(is_host(*peer), "peer")?;
        must(self.mss > 0, "mss")?;
        must(self.scales.is_none_or(|(theirs, ours)| theirs <= SCALE_MAX && ours <= SCALE_MAX), "scales")?;
        must(self.unsent as usize <= self.send_queue.len(), "unsent")?;
        must(self.send_queue.len() <= SEND_QUEUE_BYTES_MAX, "send_queue")?;
        must(window.max_window >= window.snd_wnd, "max_window")?;
        must(!is_after(window.snd_wl1, self.rcv_nxt.wrapping_add(window.rcv_wnd)), "snd_wl1")?;
        must(!is_after(window.rcv_wup, self.rcv_nxt), "rcv_wup")
    }
}

fn must(holds: bool, field: &'static str) -> Result<(), ImageError> {
    if holds { Ok(()) } else { Err(ImageError::Field(field)) }
}

/// Whether sequence number `a` comes after `b` (RFC 9293, 3.4).
fn is_after(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < 1 << 31
}

/// Whether one host can have it, on every network: a link-local address means another host on another link.
fn is_host(address: SocketAddr) -> bool {
    let is_usable = match address.ip().to_canonical() {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local(),
    };
    is_usable && address.port() > 0
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn address_at(bytes: &[u8], at: usize, family: u8) -> Option<SocketAddr> {
    let octets: [u8; 16] = bytes[at..at + 16].try_into().ok()?;
    let (ip, port) = (Ipv6Addr::from(octets), u16::from_le_bytes([bytes[at + 16], bytes[at + 17]]));
    match family {
        4 => Some(SocketAddr::from((ip.to_ipv4_mapped()?, port))),
        6 => Some(SocketAddr::from((ip, port))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(local: &str, peer: &str) -> Image {
        Image {
            local: local.parse().unwrap(),
            peer: peer.parse().unwrap(),
            rcv_nxt: 5,
            snd_una: u32::MAX - 1,
            send_queue: b"not acknowledged".to_vec(),
            unsent: 4,
            mss: 1460,
            sack: true,
            scales: Some((7, 10)),
            timestamp: Some(123_456),
            // Before and behind the place where numbers begin anew.
            window: Window {
                snd_wl1: u32::MAX,
                snd_wnd: 65_536,
                max_window: 65_536,
                rcv_wnd: 64_240,
                rcv_wup: u32::MAX - 10,
            },
        }
    }

    fn encoded(image: &Image) -> Vec<u8> {
        let mut bytes = Vec::new();
        image.encode(&mut bytes);
        bytes
    }

    #[test]
    fn images_of_every_kind_of_socket_read_back_the_same() {
        for (local, peer) in [
            ("192.0.2.10:514", "192.0.2.7:51400"),
            ("[2001:db8::10]:514", "[2001:db8::7]:51400"),
            ("[::ffff:192.0.2.10]:514", "[::ffff:192.0.2.7]:51400"),
        ] {
            let plain = Image {
                sack: false,
                scales: None,
                timestamp: None,
                send_queue: Vec::new(),
                unsent: 0,
                ..image(local, peer)
            };
            for image in [image(local, peer), plain] {
                assert_eq!(Image::decode(&encoded(&image)), Ok(image));
            }
        }
    }

    #[test]
    fn version_1_is_these_bytes() {
        let bytes = encoded(&image("192.0.2.10:514", "192.0.2.7:51400"));
        assert_eq!(bytes[..20], *b"\x01\x04\x07\x00\x0a\x07\xb4\x05\x05\0\0\0\xfe\xff\xff\xff\x40\xe2\x01\0");
        assert_eq!(bytes[34..52], *b"\0\0\0\0\0\0\0\0\0\0\xff\xff\xc0\0\x02\x0a\x02\x02");
        assert_eq!(bytes[90..], *b"\x04\0\0\0\x10\0\0\0not acknowledged");
    }

    #[test]
    fn nonsense_is_refused_by_its_name() {
        let good = image("192.0.2.10:514", "192.0.2.7:51400");
        let window = good.window;
        for (bad, field) in [
            (Image { peer: "192.0.2.7:0".parse().unwrap(), ..good.clone() }, "peer"),
            (Image { local: "0.0.0.0:514".parse().unwrap(), ..good.clone() }, "local"),
            (Image { peer: "224.0.0.1:1".parse().unwrap(), ..good.clone() }, "peer"),
            (image("[2001:db8::10]:514", "[fe80::7]:51400"), "peer"),
            (image("[2001:db8::10]:514", "[::ffff:192.0.2.7]:51400"), "peer"),
            (Image { mss: 0, ..good.clone() }, "mss"),
            (Image { scales: Some((15, 0)), ..good.clone() }, "scales"),
            (Image { unsent: 17, ..good.clone() }, "unsent"),
            (Image { window: Window { max_window: 1, ..window }, ..good.clone() }, "max_window"),
            (Image { window: Window { rcv_wup: 6, ..window }, ..good.clone() }, "rcv_wup"),
            (Image { window: Window { snd_wl1: 70_000, ..window }, ..good.clone() }, "snd_wl1"),
        ] {
            assert_eq!(Image::decode(&encoded(&bad)), Err(ImageError::Field(field)));
        }
        let bytes = encoded(&good);
        for (at, byte, field) in
            [(1, 5, "local"), (2, 8, "marks"), (2, 5, "scales"), (2, 3, "timestamp"), (30, 1, "zero")]
        {
            let mut bad = bytes.clone();
            bad[at] = byte;
            assert_eq!(Image::decode(&bad), Err(ImageError::Field(field)), "{field}");
        }
        for cut in 1..bytes.len() {
            assert_eq!(Image::decode(&bytes[..cut]), Err(ImageError::Length(cut)));
        }
        assert_eq!(Image::decode(&[2]), Err(ImageError::Version(2)));
        assert_eq!(Image::decode(&[]), Err(ImageError::Length(0)));
    }
}
