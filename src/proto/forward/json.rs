//! A MessagePack value as JSON, written while it is read: no tree, no copy.
//!
//! | MessagePack | JSON |
//! | --- | --- |
//! | nil, true, false | the same |
//! | integer, float | number; NaN and the infinities, which JSON does not have, are `null` |
//! | str | string; what is not UTF-8 in it becomes U+FFFD (whoever needs those bytes takes the forward output) |
//! | bin | string, base64 with padding |
//! | ext | `{"$ext":[TYPE,"BASE64"]}` |
//! | array | array |
//! | map | object, in order; a key that stands twice stands twice |
//!
//! A key that is a bin is its base64; any other key that is no string is its JSON as a string: `{1: 2}` is `{"1":2}`. A
//! map or an array that is a key inside a key is the base64 of its MessagePack: each level of strings in strings would
//! double the escapes, and a record of a hundred bytes take all memory.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;
use thiserror::Error;

use super::scan::{DEPTH_MAX, Walk};
use super::value::Value;

/// The bytes are not one MessagePack value, or it is nested deeper than [`DEPTH_MAX`]. Never of an entry that was
/// accepted.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a record is no MessagePack value")]
pub struct NotAValue;

/// Appends the MessagePack value `value`, for instance a record, as JSON.
///
/// # Errors
/// [`NotAValue`]; nothing is appended then.
pub fn write_json(out: &mut Vec<u8>, value: &[u8]) -> Result<(), NotAValue> {
    let (start, mut rest) = (out.len(), value);
    out.reserve(value.len() + value.len() / 4);
    match push_value(out, &mut rest, Place { depth: 0, in_key: false }) {
        Some(()) if rest.is_empty() => Ok(()),
        _ => {
            out.truncate(start);
            Err(NotAValue)
        }
    }
}

/// Where in a record a value stands.
#[derive(Clone, Copy)]
struct Place {
    depth: usize,
    /// Whether a key is, or holds, the value.
    in_key: bool,
}

impl Place {
    fn inside(self) -> Place {
        Place { depth: self.depth + 1, ..self }
    }
}

fn push_value(out: &mut Vec<u8>, rest: &mut &[u8], place: Place) -> Option<()> {
    match Value::take(rest)? {
        Value::Nil => push(out, &()),
        Value::Bool(value) => push(out, &value),
        Value::Int(value) => push(out, &value),
        Value::Uint(value) => push(out, &value),
        Value::F32(value) => push(out, &value),
        Value::F64(value) => push(out, &value),
        Value::Str(text) => push_text(out, text),
        Value::Bin(bytes) => push_base64(out, bytes),
        Value::Ext(kind, bytes) => {
            out.extend_from_slice(b"{\"$ext\":[");
            push(out, &kind);
            out.push(b',');
            push_base64(out, bytes);
            out.extend_from_slice(b"]}");
        }
        Value::Array(_) | Value::Map(_) if place.depth == DEPTH_MAX => return None,
        Value::Array(values) => {
            out.push(b'[');
            for at in 0..values {
                if at > 0 {
                    out.push(b',');
                }
                push_value(out, rest, place.inside())?;
            }
            out.push(b']');
        }
        Value::Map(pairs) => {
            out.push(b'{');
            for at in 0..pairs {
                if at > 0 {
                    out.push(b',');
                }
                push_key(out, rest, place.inside())?;
                out.push(b':');
                push_value(out, rest, place.inside())?;
            }
            out.push(b'}');
        }
    }
    Some(())
}

fn push_key(out: &mut Vec<u8>, rest: &mut &[u8], place: Place) -> Option<()> {
    let start = out.len();
    if place.in_key && matches!(Value::take(&mut &**rest)?, Value::Array(_) | Value::Map(_)) {
        let (key, behind) = rest.split_at(Walk::new().skip(rest, 0).ok()?);
        push_base64(out, key);
        *rest = behind;
        return Some(());
    }
    push_value(out, rest, Place { in_key: true, ..place })?;
    if out[start] != b'"' {
        let key = out.split_off(start);
        push_text(out, &key);
    }
    Some(())
}

fn push<T: Serialize>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("a Vec takes everything, and scalars are JSON");
}

fn push_text(out: &mut Vec<u8>, text: &[u8]) {
    match std::str::from_utf8(text) {
        // Most texts need no escape. To ask all of a text at once takes vector instructions; `serde_json` asks each byte.
        Ok(text) if !text.bytes().fold(false, |any, byte| any | needs_escape(byte)) => {
            out.push(b'"');
            out.extend_from_slice(text.as_bytes());
            out.push(b'"');
        }
        Ok(text) => push(out, &text),
        Err(_) => push(out, &String::from_utf8_lossy(text)),
    }
}

fn needs_escape(byte: u8) -> bool {
    (byte < b' ') | (byte == b'"') | (byte == b'\\')
}

fn push_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let start = out.len();
    let length = base64::encoded_len(bytes.len(), true).expect("a frame is far smaller than half the address space");
    out.resize(start + length, 0);
    BASE64.encode_slice(bytes, &mut out[start..]).expect("the space is the encoded length");
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(value: &[u8]) -> String {
        let mut out = b"x".to_vec();
        write_json(&mut out, value).unwrap();
        String::from_utf8(out.split_off(1)).unwrap()
    }

    #[test]
    fn every_kind_of_value_has_its_json() {
        for (value, expected) in [
            (&[0xc0][..], "null"),
            (&[0xc3], "true"),
            (&[0xff], "-1"),
            (&[0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "18446744073709551615"),
            (&[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0], "-9223372036854775808"),
            (&[0xca, 0x3d, 0xcc, 0xcc, 0xcd], "0.1"),
            (&[0xcb, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0], "1.5"),
            (&[0xcb, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0], "1.0"),
            (&[0xcb, 0x7f, 0xf8, 0, 0, 0, 0, 0, 0], "null"),
            (&[0xca, 0xff, 0x80, 0, 0], "null"),
            (b"\xa6a\"\n\x1b\xc3\xa9", "\"a\\\"\\n\\u001bé\""),
            (b"\xa5a\xff\xfeb\xc3", "\"a\u{fffd}\u{fffd}b\u{fffd}\""),
            (b"\xc4\x03\xff\xfea", "\"//5h\""),
            (b"\xd4\x05\x01", "{\"$ext\":[5,\"AQ==\"]}"),
            (&[0x93, 1, 0x90, 0x80], "[1,[],{}]"),
            (b"\x82\xa1a\x01\xa1a\x02", "{\"a\":1,\"a\":2}"),
            (b"\x84\x01\x02\xc0\x03\xc4\x01a\x04\x91\xa1\"\x05", r#"{"1":2,"null":3,"YQ==":4,"[\"\\\"\"]":5}"#),
        ] {
            assert_eq!(json(value), expected);
        }
    }

    #[test]
    fn keys_in_keys_do_not_grow_with_each_level() {
        assert_eq!(json(b"\x81\x81\x81\x01\x02\x03\x04"), r#"{"{\"gQEC\":3}":4}"#);
        let nested = |depth: usize| [vec![0x81; depth], vec![1], vec![2; depth]].concat();
        for depth in 2..=DEPTH_MAX {
            let length = json(&nested(depth)).len();
            assert!(length < 8 * depth + 32, "{depth}: {length}");
        }
    }

    #[test]
    fn what_is_no_value_leaves_nothing() {
        let deep = [vec![0x91; DEPTH_MAX + 1], vec![1]].concat();
        for value in [&[][..], &[0x91], &[0xc1], &[1, 2], &[0xd9, 2, b'a'], &[0xdd, 0xff, 0xff, 0xff, 0xff, 1], &deep] {
            let mut out = b"x".to_vec();
            assert_eq!(write_json(&mut out, value), Err(NotAValue));
            assert_eq!(out, b"x");
        }
        assert_eq!(json(&deep[1..]).len(), 2 * DEPTH_MAX + 1);
    }
}
