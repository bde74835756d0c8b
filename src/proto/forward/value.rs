//! One MessagePack value at a time: read from a slice, or appended to a buffer, with `rmp`.
//!
//! A container is read as its header only; its values come next. Strings are bytes.

use rmp::Marker;
use rmp::decode::{RmpRead, read_marker};
use rmp::encode;

/// A value, or the header of a container.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Nil,
    Bool(bool),
    /// Every integer that an `i64` can hold.
    Int(i64),
    /// The integers above.
    Uint(u64),
    F32(f32),
    F64(f64),
    Str(&'a [u8]),
    Bin(&'a [u8]),
    Ext(i8, &'a [u8]),
    Array(u32),
    /// Number of pairs.
    Map(u32),
}

impl<'a> Value<'a> {
    /// Takes the value at the start of `bytes`. `None` if it is cut or no MessagePack.
    pub(super) fn take(bytes: &mut &'a [u8]) -> Option<Value<'a>> {
        let value = match read_marker(bytes).ok()? {
            Marker::Null => Value::Nil,
            Marker::True => Value::Bool(true),
            Marker::False => Value::Bool(false),
            Marker::FixPos(value) => Value::Int(value.into()),
            Marker::FixNeg(value) => Value::Int(value.into()),
            Marker::U8 => Value::Int(bytes.read_data_u8().ok()?.into()),
            Marker::U16 => Value::Int(bytes.read_data_u16().ok()?.into()),
            Marker::U32 => Value::Int(bytes.read_data_u32().ok()?.into()),
            Marker::U64 => {
                let value = bytes.read_data_u64().ok()?;
                i64::try_from(value).map_or(Value::Uint(value), Value::Int)
            }
            Marker::I8 => Value::Int(bytes.read_data_i8().ok()?.into()),
            Marker::I16 => Value::Int(bytes.read_data_i16().ok()?.into()),
            Marker::I32 => Value::Int(bytes.read_data_i32().ok()?.into()),
            Marker::I64 => Value::Int(bytes.read_data_i64().ok()?),
            Marker::F32 => Value::F32(bytes.read_data_f32().ok()?),
            Marker::F64 => Value::F64(bytes.read_data_f64().ok()?),
            Marker::FixStr(length) => Value::Str(split(bytes, length.into())?),
            Marker::Str8 => Value::Str(take_u8(bytes)?),
            Marker::Str16 => Value::Str(take_u16(bytes)?),
            Marker::Str32 => Value::Str(take_u32(bytes)?),
            Marker::Bin8 => Value::Bin(take_u8(bytes)?),
            Marker::Bin16 => Value::Bin(take_u16(bytes)?),
            Marker::Bin32 => Value::Bin(take_u32(bytes)?),
            Marker::FixArray(length) => Value::Array(length.into()),
            Marker::Array16 => Value::Array(bytes.read_data_u16().ok()?.into()),
            Marker::Array32 => Value::Array(bytes.read_data_u32().ok()?),
            Marker::FixMap(length) => Value::Map(length.into()),
            Marker::Map16 => Value::Map(bytes.read_data_u16().ok()?.into()),
            Marker::Map32 => Value::Map(bytes.read_data_u32().ok()?),
            Marker::FixExt1 => ext(bytes, 1)?,
            Marker::FixExt2 => ext(bytes, 2)?,
            Marker::FixExt4 => ext(bytes, 4)?,
            Marker::FixExt8 => ext(bytes, 8)?,
            Marker::FixExt16 => ext(bytes, 16)?,
            Marker::Ext8 => {
                let length = bytes.read_data_u8().ok()?;
                ext(bytes, length.into())?
            }
            Marker::Ext16 => {
                let length = bytes.read_data_u16().ok()?;
                ext(bytes, length.into())?
            }
            Marker::Ext32 => {
                let length = bytes.read_data_u32().ok()?;
                ext(bytes, length as usize)?
            }
            Marker::Reserved => return None,
        };
        Some(value)
    }

    /// The bytes of a string or of a binary: clients use one for the other.
    pub(super) fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Value::Str(bytes) | Value::Bin(bytes) => Some(bytes),
            _ => None,
        }
    }
}

/// Whether a map starts with this byte.
pub(super) fn is_map(marker: u8) -> bool {
    matches!(Marker::from_u8(marker), Marker::FixMap(_) | Marker::Map16 | Marker::Map32)
}

fn split<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn take_u8<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = bytes.read_data_u8().ok()?;
    split(bytes, length.into())
}

fn take_u16<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = bytes.read_data_u16().ok()?;
    split(bytes, length.into())
}

fn take_u32<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = bytes.read_data_u32().ok()?;
    split(bytes, length as usize)
}

fn ext<'a>(bytes: &mut &'a [u8], length: usize) -> Option<Value<'a>> {
    let kind = bytes.read_data_i8().ok()?;
    Some(Value::Ext(kind, split(bytes, length)?))
}

const INFALLIBLE: &str = "a Vec takes everything";
const BOUNDED: &str = "a frame is bounded far below 4 GiB";

/// Appends `text` as a str, whatever its bytes.
#[inline]
pub(super) fn push_str(out: &mut Vec<u8>, text: &[u8]) {
    encode::write_str_len(out, length(text)).expect(INFALLIBLE);
    out.extend_from_slice(text);
}

/// Appends the header of a bin of so many bytes, which follow.
pub(super) fn push_bin_header(out: &mut Vec<u8>, bytes: usize) {
    encode::write_bin_len(out, u32::try_from(bytes).expect(BOUNDED)).expect(INFALLIBLE);
}

pub(super) fn push_array(out: &mut Vec<u8>, values: u32) {
    encode::write_array_len(out, values).expect(INFALLIBLE);
}

#[inline]
pub(super) fn push_map(out: &mut Vec<u8>, pairs: u32) {
    encode::write_map_len(out, pairs).expect(INFALLIBLE);
}

#[inline]
pub(super) fn push_int(out: &mut Vec<u8>, value: i64) {
    encode::write_sint(out, value).expect(INFALLIBLE);
}

/// Appends the header of an EventTime: its eight bytes of seconds and nanoseconds follow.
#[inline]
pub(super) fn push_event_time_header(out: &mut Vec<u8>) {
    encode::write_ext_meta(out, 8, 0).expect(INFALLIBLE);
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect(BOUNDED)
}
