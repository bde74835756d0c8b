//! The acknowledgement: `{"ack": chunk}`, one for each frame that has a chunk, in the order of the frames.
//!
//! The id goes back byte by byte, as str: fluentd's ends with a line feed and must keep it, fluent-bit and the Go logger
//! refuse a bin. fluentd and fluent-bit parse what one read of at most 511 bytes gives, so send each acknowledgement in
//! one write.

use serde::Deserialize;

use super::handshake::Text;
use super::value::{is_map, push_str};

/// Most bytes of an acknowledgement.
pub const ACK_BYTES_MAX: usize = 511;

/// Appends the acknowledgement of `chunk`.
pub fn write_ack(out: &mut Vec<u8>, chunk: &[u8]) {
    out.extend_from_slice(b"\x81\xa3ack");
    push_str(out, chunk);
}

/// The chunk that `reply`, one whole value, acknowledges. `None` if it is no acknowledgement: close and send again.
#[must_use]
pub fn read_ack(reply: &[u8]) -> Option<&[u8]> {
    #[derive(Deserialize)]
    struct Reply<'a> {
        #[serde(borrow)]
        ack: Text<'a>,
    }
    // serde would take an array of values for a struct too.
    if reply.len() > ACK_BYTES_MAX || !is_map(*reply.first()?) {
        return None;
    }
    rmp_serde::from_slice::<Reply<'_>>(reply).ok().map(|reply| reply.ack.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_goes_back_byte_by_byte_as_str() {
        let mut out = Vec::new();
        write_ack(&mut out, b"ZguPIVni+yCePpLbFbLkwA==\n");
        assert_eq!(out, b"\x81\xa3ack\xb9ZguPIVni+yCePpLbFbLkwA==\n");
        out.clear();
        write_ack(&mut out, &[0xff; 40]);
        assert_eq!(out, [&b"\x81\xa3ack\xd9\x28"[..], &[0xff; 40]].concat());
        assert_eq!(read_ack(&out), Some(&[0xff; 40][..]));
    }

    #[test]
    fn replies_of_other_servers_are_understood() {
        for reply in [
            &b"\x81\xa3ack\xa1c"[..],
            b"\x81\xa3ack\xc4\x01c",
            b"\xdf\0\0\0\x02\xa5extra\x91\x01\xd9\x03ack\xda\0\x01c",
        ] {
            assert_eq!(read_ack(reply), Some(&b"c"[..]), "{reply:02x?}");
        }
    }

    #[test]
    fn what_is_no_acknowledgement_is_none() {
        let long = [&b"\x81\xa3ack\xda\x02\x00"[..], &[b'c'; 512]].concat();
        for reply in
            [&b""[..], b"\xc0", b"\x80", b"\x81\xa3ack\x01", b"\x81\xa3ac", b"\x91\xa1c", b"\x81\xa3nak\xa1c", &long]
        {
            assert_eq!(read_ack(reply), None, "{reply:02x?}");
        }
    }
}
