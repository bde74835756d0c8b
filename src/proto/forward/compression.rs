//! Compressed streams: which they are, and out of them, within a bound.
//!
//! A compressed stream is known by its first bytes. They cannot be mistaken: an entry is an array of two, so a plain
//! stream starts with 0x92, 0xdc or 0xdd. The option `compressed` is only a check, because fluent-bit and others send
//! compressed streams without it.
//!
//! gzip may be several members one after the other (fluentd appends to its chunks so), zstd several frames. We send gzip
//! and never zstd, which fluentd takes since 1.19 only.

use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use ruzstd::decoding::StreamingDecoder;
use thiserror::Error;

/// The window that every decoder of zstd should take (RFC 8878, 3.1.1.1.2), in bytes.
const WINDOW_BYTES: u64 = 8 << 20;

/// How a packed stream is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Not compressed.
    Plain,
    /// RFC 1952, any number of members.
    Gzip,
    /// RFC 8878, any number of frames.
    Zstd,
}

/// Why a compressed stream is not taken. Both are the sender's fault and would be again.
#[derive(Debug, Error)]
pub enum InflateError {
    /// More comes out than is taken: a bomb, or a limit that is too small.
    #[error("a compressed chunk is larger than {limit} bytes when decompressed")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The stream is damaged.
    #[error("decompressing a {encoding} chunk: {source}")]
    Corrupt {
        /// What it claims to be.
        encoding: &'static str,
        /// What the decompressor says.
        source: io::Error,
    },
}

impl Encoding {
    /// The encoding of a packed stream, by its first bytes.
    #[must_use]
    pub fn of(packed: &[u8]) -> Encoding {
        match packed {
            [0x1f, 0x8b, ..] => Encoding::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Encoding::Zstd,
            _ => Encoding::Plain,
        }
    }

    /// The name in the option `compressed`; `None` for a plain stream.
    #[must_use]
    pub fn option(self) -> Option<&'static str> {
        match self {
            Encoding::Plain => None,
            Encoding::Gzip => Some("gzip"),
            Encoding::Zstd => Some("zstd"),
        }
    }
}

/// Replaces the content of `out` by the plain form of `packed`, at most `limit` bytes.
///
/// # Errors
/// Says why not; `out` then holds what came out before.
pub fn inflate(out: &mut Vec<u8>, packed: &[u8], limit: usize) -> Result<(), InflateError> {
    out.clear();
    match Encoding::of(packed) {
        Encoding::Plain if packed.len() > limit => return Err(InflateError::TooLarge { limit }),
        Encoding::Plain => out.extend_from_slice(packed),
        Encoding::Gzip => read_bounded(out, MultiGzDecoder::new(packed), limit, "gzip")?,
        Encoding::Zstd => {
            let mut rest = packed;
            while !rest.is_empty() {
                inflate_zstd_frame(out, &mut rest, limit)?;
            }
        }
    }
    Ok(())
}

fn inflate_zstd_frame(out: &mut Vec<u8>, packed: &mut &[u8], limit: usize) -> Result<(), InflateError> {
    let corrupt = |error| InflateError::Corrupt { encoding: "zstd", source: error };
    // The window is allocated when its frame begins, so it is bounded like the result.
    let window_max = WINDOW_BYTES.max(limit as u64);
    let mut decoder =
        StreamingDecoder::new_with_max_window_size(packed, window_max).map_err(|e| corrupt(io::Error::other(e)))?;
    read_bounded(out, &mut decoder, limit, "zstd")?;
    let decoder = decoder.into_frame_decoder();
    let sent = decoder.get_checksum_from_data();
    if sent.is_some() && sent != decoder.get_calculated_checksum() {
        return Err(corrupt(io::Error::other("the checksum does not match")));
    }
    Ok(())
}

/// Appends what `decoder` gives; `out` may become `limit` bytes long.
fn read_bounded(
    out: &mut Vec<u8>,
    decoder: impl Read,
    limit: usize,
    encoding: &'static str,
) -> Result<(), InflateError> {
    let room = limit - out.len();
    let taken = decoder.take(room as u64 + 1).read_to_end(out);
    if out.len() > limit {
        return Err(InflateError::TooLarge { limit });
    }
    taken.map(drop).map_err(|source| InflateError::Corrupt { encoding, source })
}

/// Appends `packed` as one gzip member.
pub fn gzip(out: &mut Vec<u8>, packed: &[u8]) {
    let mut encoder = GzEncoder::new(out, Compression::fast());
    encoder.write_all(packed).and_then(|()| encoder.finish().map(drop)).expect("a Vec takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKED: &[u8] = b"\x92\x01\x81\xa1a\x01";

    fn gzipped(packed: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        gzip(&mut out, packed);
        out
    }

    fn zstd(packed: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(packed, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn inflated(packed: &[u8], limit: usize) -> Result<Vec<u8>, InflateError> {
        let mut out = b"old".to_vec();
        inflate(&mut out, packed, limit).map(|()| out)
    }

    #[test]
    fn streams_are_known_by_their_first_bytes() {
        assert_eq!(Encoding::of(PACKED), Encoding::Plain);
        assert_eq!(Encoding::of(b""), Encoding::Plain);
        assert_eq!(Encoding::of(&gzipped(PACKED)), Encoding::Gzip);
        assert_eq!(Encoding::of(&zstd(PACKED)), Encoding::Zstd);
    }

    #[test]
    fn members_and_frames_are_joined() {
        for compress in [gzipped, zstd] {
            let packed = [compress(PACKED), compress(PACKED)].concat();
            assert_eq!(inflated(&packed, 12).unwrap(), PACKED.repeat(2));
            assert!(matches!(inflated(&packed, 11), Err(InflateError::TooLarge { limit: 11 })));
        }
    }

    #[test]
    fn bombs_are_bounded() {
        let limit = 1 << 20;
        for compress in [gzipped, zstd] {
            let bomb = compress(&vec![0; 64 << 20]);
            assert!(bomb.len() < limit);
            let mut out = Vec::new();
            assert!(matches!(
                inflate(&mut out, &bomb, limit),
                Err(InflateError::TooLarge { .. } | InflateError::Corrupt { .. })
            ));
            assert!(out.capacity() <= 4 * limit, "{}", out.capacity());
        }
    }

    #[test]
    fn damage_is_an_error() {
        let text: Vec<u8> = (0..2000_u32).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_be_bytes()).collect();
        for compress in [gzipped, zstd] {
            let sound = compress(&text);
            for end in [5, 20, sound.len() / 2, sound.len() - 1] {
                assert!(matches!(inflated(&sound[..end], 1 << 20), Err(InflateError::Corrupt { .. })), "{end}");
            }
            let mut damaged = sound.clone();
            damaged[sound.len() / 2] ^= 1;
            assert!(matches!(inflated(&damaged, 1 << 20), Err(InflateError::Corrupt { .. })));
            assert!(inflated(&[&sound[..], b"rest"].concat(), 1 << 20).is_err());
        }
    }
}
