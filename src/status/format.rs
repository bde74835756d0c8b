//! Numbers for people: `12,431`, `3.41 G`, `1.2 GiB`, `3 d 04:12`, `0.3 s`.

/// A count with separators; from a hundred million on in three digits with G, T or M.
#[must_use]
pub fn count(value: u64) -> String {
    if value < 100_000_000 {
        return separated(value);
    }
    scaled(value as f64, 1000.0, &["", "k", "M", "G", "T", "P", "E"])
}

/// Bytes in binary units.
#[must_use]
pub fn bytes(value: u64) -> String {
    scaled(value as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// `1 message`, `1,204 messages`.
#[must_use]
pub fn messages(value: u64) -> String {
    of(value, "message")
}

/// A count of things: `1 segment`, `20 segments`.
#[must_use]
pub fn of(value: u64, thing: &str) -> String {
    if value == 1 { format!("1 {thing}") } else { format!("{} {thing}s", count(value)) }
}

/// A rate per second: whole above ten, so that a trickle is not shown as none.
#[must_use]
pub fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate <= 0.0 => "0".to_owned(),
        rate if rate < 9.95 => format!("{rate:.1}"),
        rate => count(rate.round() as u64),
    }
}

/// A short time as people say it: `0.3 s`, `42 s`, `12 min`, `3.5 h`, `12 d`.
#[must_use]
pub fn seconds(value: f64) -> String {
    match value {
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 48.0 * 3600.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.0} d", s / 86400.0),
    }
}

/// An uptime: `04:12:33`, from a day on `3 d 04:12`.
#[must_use]
pub fn uptime(value: f64) -> String {
    let whole = value as u64;
    let (days, hours, minutes) = (whole / 86400, whole / 3600 % 24, whole / 60 % 60);
    match days {
        0 => format!("{hours:02}:{minutes:02}:{:02}", whole % 60),
        _ => format!("{days} d {hours:02}:{minutes:02}"),
    }
}

fn separated(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Three digits and a unit: `999 MiB`, `1.20 GiB`. A value just below the next unit is rounded into it.
fn scaled(value: f64, base: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut unit = 0;
    while value.round() >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    match value {
        _ if unit == 0 => format!("{value} {}", units[0]),
        v if v < 9.995 => format!("{v:.2} {}", units[unit]),
        v if v < 99.95 => format!("{v:.1} {}", units[unit]),
        v => format!("{v:.0} {}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_284_331), "1,284,331");
        assert_eq!(count(3_410_000_000), "3.41 G");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.00 KiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1.00 MiB");
        assert_eq!(bytes(64 << 20), "64.0 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(messages(1), "1 message");
        assert_eq!(rate(0.4), "0.4");
        assert_eq!(rate(12_430.7), "12,431");
        assert_eq!(seconds(0.31), "0.3 s");
        assert_eq!(seconds(7300.0), "2.0 h");
        assert_eq!(uptime(272_520.0), "3 d 03:42");
        assert_eq!(uptime(59.9), "00:00:59");
    }
}
