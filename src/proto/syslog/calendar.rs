//! Dates of the Gregorian calendar as numbers, and times as RFC 3339 in UTC, the only form that twinlog writes.

use super::decimal;
use crate::proto::envelope::Timestamp;

/// Nanoseconds of a second.
pub(super) const NANOS: u64 = 1_000_000_000;
/// Seconds of a day.
pub(super) const DAY: i64 = 86_400;

/// Days from 1970-01-01 in the Gregorian calendar, after Howard Hinnant's `days_from_civil`. Days and months that are
/// too large run over into the next.
pub(super) fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse of [`days`]: year, month, day.
pub(super) fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

/// Writes `time` as RFC 3339 in UTC, `2026-03-10T11:59:58.19Z`: as many fraction digits as it needs, at most `digits`
/// (which is at most 9; the rest is cut).
pub fn write_rfc3339(out: &mut Vec<u8>, time: Timestamp, digits: usize) {
    let (seconds, nanos) = (time.0 / NANOS, (time.0 % NANOS) as u32);
    let (year, month, day) = civil((seconds / DAY as u64) as i64);
    let of_day = (seconds % DAY as u64) as u32;
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    let mut put = |at: usize, value: u32| text[at..at + 2].copy_from_slice(&decimal::pair(value));
    put(0, year as u32 / 100);
    put(2, year as u32 % 100);
    put(5, month as u32);
    put(8, day as u32);
    put(11, of_day / 3600);
    put(14, of_day / 60 % 60);
    put(17, of_day % 60);
    let mut end = 19;
    if nanos > 0 {
        put(20, nanos / 10_000_000);
        put(22, nanos / 100_000 % 100);
        put(24, nanos / 1000 % 100);
        put(26, nanos / 10 % 100);
        text[28] = b'0' + (nanos % 10) as u8;
        end = 20 + digits.min(9);
        while end > 19 && matches!(text[end - 1], b'0' | b'.') {
            end -= 1;
        }
    }
    text[end] = b'Z';
    out.extend_from_slice(&text[..=end]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_dates_agree_with_chrono() {
        use chrono::Datelike;
        let mut date = chrono::NaiveDate::from_ymd_opt(1969, 12, 1).unwrap();
        for day in -31..200_000 {
            let (year, month, of_month) = civil(day);
            assert_eq!((year as i32, month as u32, of_month as u32), (date.year(), date.month(), date.day()));
            assert_eq!(days(year, month, of_month), day);
            date = date.succ_opt().unwrap();
        }
    }

    #[test]
    fn fraction_digits_are_as_many_as_needed_and_allowed() {
        let show = |nanos: u64, digits| {
            let mut out = Vec::new();
            write_rfc3339(&mut out, Timestamp(nanos), digits);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(show(0, 9), "1970-01-01T00:00:00Z");
        assert_eq!(show(120_000_000, 9), "1970-01-01T00:00:00.12Z");
        assert_eq!(show(1, 9), "1970-01-01T00:00:00.000000001Z");
        assert_eq!(show(123_456_789, 6), "1970-01-01T00:00:00.123456Z");
        assert_eq!(show(999, 6), "1970-01-01T00:00:00Z");
        assert_eq!(show(u64::MAX, 9), "2554-07-21T23:34:33.709551615Z");
    }
}
