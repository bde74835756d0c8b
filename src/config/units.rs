//! Durations and sizes as text: `"100ms"`, `"64MiB"`. A number alone is refused, because nobody knows what it counts.
//!
//! One way to write each: whole numbers, and binary units for sizes. `"64MB"` is not taken for 64 × 1000² or 1024² by
//! guessing; the diagnostic offers the binary unit.

use std::time::Duration;

/// Why a value is refused, worded to follow the key's name, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Such as "needs a unit".
    pub what: String,
    /// Such as `write "10s"`.
    pub fix: String,
}

impl Invalid {
    pub(super) fn new(what: impl Into<String>, fix: impl Into<String>) -> Invalid {
        Invalid { what: what.into(), fix: fix.into() }
    }
}

const DURATIONS: [(&str, u64); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("min", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

const SIZES: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Other spellings people use, and the unit they most likely mean.
const MEANT: [(&str, &str); 30] = [
    ("days", "d"),
    ("day", "d"),
    ("hours", "h"),
    ("hour", "h"),
    ("hr", "h"),
    ("m", "min"),
    ("mins", "min"),
    ("minute", "min"),
    ("minutes", "min"),
    ("sec", "s"),
    ("secs", "s"),
    ("second", "s"),
    ("seconds", "s"),
    ("msec", "ms"),
    ("millis", "ms"),
    ("usec", "us"),
    ("µs", "us"),
    ("k", "KiB"),
    ("kb", "KiB"),
    ("kib", "KiB"),
    ("m", "MiB"),
    ("mb", "MiB"),
    ("mib", "MiB"),
    ("g", "GiB"),
    ("gb", "GiB"),
    ("gib", "GiB"),
    ("t", "TiB"),
    ("tb", "TiB"),
    ("tib", "TiB"),
    ("bytes", "B"),
];

/// Reads `"100ms"`, `"5s"`, `"2min"`, `"1h"`, `"7d"`; also `us` and `ns`.
///
/// # Errors
/// What is wrong with it, and how to write it.
pub fn duration(text: &str) -> Result<Duration, Invalid> {
    quantity(text, "a duration", &DURATIONS, "10s").map(Duration::from_nanos)
}

/// Reads `"480B"`, `"64KiB"`, `"64MiB"`, `"10GiB"`, `"2TiB"`.
pub(super) fn size(text: &str) -> Result<u64, Invalid> {
    quantity(text, "a size", &SIZES, "64MiB")
}

/// The shortest exact way to write a duration of whole nanoseconds.
pub(super) fn show_duration(duration: Duration) -> String {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    if nanos == 0 { "0s".to_owned() } else { show(nanos, &DURATIONS) }
}

/// The shortest exact way to write a size.
pub(super) fn show_size(bytes: u64) -> String {
    if bytes == 0 { "0B".to_owned() } else { show(bytes, &SIZES) }
}

fn show(value: u64, units: &[(&str, u64)]) -> String {
    let (unit, factor) = units.iter().find(|(_, factor)| value.is_multiple_of(*factor)).expect("the last factor is 1");
    format!("{}{unit}", value / factor)
}

fn quantity(text: &str, kind: &str, units: &[(&str, u64)], example: &str) -> Result<u64, Invalid> {
    let trimmed = text.trim();
    let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = (&trimmed[..digits], trimmed[digits..].trim());
    let invalid = |what: String| Invalid::new(what, format!("write {kind} such as \"{example}\""));
    if number.is_empty() {
        return Err(invalid(format!("must be {kind}, not {text:?}")));
    }
    if unit.starts_with(['.', ',']) {
        return Err(Invalid::new("must be a whole number", format!("use a smaller unit, such as \"{example}\"")));
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        let is_unit = |name: &str| units.iter().any(|(known, _)| *known == name);
        let lower = unit.to_lowercase();
        let meant = MEANT.iter().find(|(spelling, name)| *spelling == lower && is_unit(name)).map(|(_, name)| *name);
        let meant = meant.or_else(|| units.iter().map(|(name, _)| *name).find(|name| name.eq_ignore_ascii_case(unit)));
        return Err(match (unit, meant) {
            // Bytes by the thousand were counted by a program; a small number is what a person meant in MiB, or in bytes.
            ("", _) if is_unit("MiB") => {
                let bytes = number.parse().ok().filter(|bytes| *bytes >= 1024);
                let small = || format!("write \"{number}MiB\", or \"{number}B\" for bytes");
                Invalid::new(
                    "needs a unit",
                    bytes.map_or_else(small, |bytes| format!("write \"{}\"", show_size(bytes))),
                )
            }
            ("", _) => Invalid::new("needs a unit", format!("write \"{number}s\"")),
            (_, Some(name)) => Invalid::new(format!("has no unit {unit:?}"), format!("write \"{number}{name}\"")),
            (_, None) => {
                let names: Vec<&str> = units.iter().rev().map(|(name, _)| *name).collect();
                Invalid::new(format!("has no unit {unit:?}"), format!("use one of {}", names.join(", ")))
            }
        });
    };
    let value = number.parse::<u64>().ok().and_then(|number| number.checked_mul(*factor));
    value.ok_or_else(|| invalid("is too large".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_and_shown_in_their_shortest_form() {
        for (text, shown, nanos) in [
            ("100ms", "100ms", 100_000_000),
            ("0s", "0s", 0),
            ("120s", "2min", 120_000_000_000),
            ("24h", "1d", 86_400_000_000_000),
            (" 5 s ", "5s", 5_000_000_000),
        ] {
            let read = duration(text).unwrap();
            assert_eq!((read, show_duration(read).as_str()), (Duration::from_nanos(nanos), shown), "{text}");
        }
        for (text, shown, bytes) in
            [("64MiB", "64MiB", 64 << 20), ("1024KiB", "1MiB", 1 << 20), ("480B", "480B", 480), ("0B", "0B", 0)]
        {
            let read = size(text).unwrap();
            assert_eq!((read, show_size(read).as_str()), (bytes, shown), "{text}");
        }
    }

    #[test]
    fn a_wrong_unit_gets_the_one_that_was_meant() {
        for (text, what, fix) in [
            ("10", "needs a unit", "write \"10s\""),
            ("10 sec", "has no unit \"sec\"", "write \"10s\""),
            ("10S", "has no unit \"S\"", "write \"10s\""),
            ("5m", "has no unit \"m\"", "write \"5min\""),
            ("1.5s", "must be a whole number", "use a smaller unit, such as \"10s\""),
            ("3 weeks", "has no unit \"weeks\"", "use one of ns, us, ms, s, min, h, d"),
            ("soon", "must be a duration, not \"soon\"", "write a duration such as \"10s\""),
            ("-1s", "must be a duration, not \"-1s\"", "write a duration such as \"10s\""),
            ("999999999999d", "is too large", "write a duration such as \"10s\""),
        ] {
            assert_eq!(duration(text), Err(Invalid::new(what, fix)), "{text}");
        }
        for (text, fix) in [
            ("64MB", "write \"64MiB\""),
            ("64m", "write \"64MiB\""),
            ("64", "write \"64MiB\", or \"64B\" for bytes"),
            ("65536", "write \"64KiB\""),
        ] {
            assert_eq!(size(text).unwrap_err().fix, fix, "{text}");
        }
    }
}
