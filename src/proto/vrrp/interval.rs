//! The advertisement interval, and the two times that follow from it.

use std::time::Duration;

use thiserror::Error;

use super::{Priority, Version};

/// Longest interval of version 3: what 12 bits hold.
const CENTISECONDS_MAX: u16 = 0xfff;
/// Nanoseconds of one 256th of a centisecond, doubled: 39 062.5 each.
const NANOS_OF_TWO_PARTS: u64 = 78_125;

/// Hundredths of a second, 1 to 4095: the unit of version 3. RFC 9568, 5.2.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Centiseconds(u16);

impl Centiseconds {
    /// So many hundredths; `None` for 0, which would end every wait at once, and for what 12 bits do not hold.
    #[must_use]
    pub fn new(number: u16) -> Option<Centiseconds> {
        (1..=CENTISECONDS_MAX).contains(&number).then_some(Centiseconds(number))
    }

    /// The number on the wire.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

/// Whole seconds, 1 to 255: the unit of version 2. RFC 3768, 5.3.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seconds(u8);

impl Seconds {
    /// So many seconds; `None` for 0.
    #[must_use]
    pub fn new(number: u8) -> Option<Seconds> {
        (number > 0).then_some(Seconds(number))
    }

    /// The number on the wire.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

/// Time between two advertisements of a master, in the unit of its version. It decides the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interval {
    /// Version 2.
    V2(Seconds),
    /// Version 3.
    V3(Centiseconds),
}

/// A duration that a version cannot say.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum InvalidInterval {
    /// Version 2 counts in seconds.
    #[error("version 2 advertises every 1 to 255 whole seconds")]
    V2,
    /// Version 3 counts in hundredths.
    #[error("version 3 advertises every 10 ms to 40.95 s, in steps of 10 ms")]
    V3,
}

impl Interval {
    /// `time` as an interval of `version`. Nothing is rounded: keepalived sends 1 s where 0.5 s was asked of version 2,
    /// and both nodes then wait for the wrong time.
    pub fn new(version: Version, time: Duration) -> Result<Interval, InvalidInterval> {
        let exact = |unit: u128| time.as_nanos().is_multiple_of(unit).then(|| time.as_nanos() / unit);
        match version {
            Version::V2 => {
                let seconds = exact(1_000_000_000).and_then(|n| u8::try_from(n).ok()).and_then(Seconds::new);
                seconds.map(Interval::V2).ok_or(InvalidInterval::V2)
            }
            Version::V3 => {
                let centiseconds = exact(10_000_000).and_then(|n| u16::try_from(n).ok()).and_then(Centiseconds::new);
                centiseconds.map(Interval::V3).ok_or(InvalidInterval::V3)
            }
        }
    }

    /// The version whose unit it is.
    #[must_use]
    pub fn version(self) -> Version {
        match self {
            Interval::V2(_) => Version::V2,
            Interval::V3(_) => Version::V3,
        }
    }

    /// The interval.
    #[must_use]
    pub fn duration(self) -> Duration {
        match self {
            Interval::V2(seconds) => Duration::from_secs(seconds.0.into()),
            Interval::V3(centiseconds) => Duration::from_millis(u64::from(centiseconds.0) * 10),
        }
    }

    /// What a backup waits longer than three intervals, so that of several the one with the highest priority is first:
    /// `(256 - priority) / 256` intervals, in version 2 of a second whatever the interval (RFC 9568, 6.1; RFC 3768, 6.1).
    ///
    /// The fraction is kept. In whole centiseconds every priority's skew would be 0 at an interval of 10 ms.
    #[must_use]
    pub fn skew_time(self, priority: Priority) -> Duration {
        let centiseconds = match self {
            Interval::V2(_) => 100,
            Interval::V3(centiseconds) => u64::from(centiseconds.0),
        };
        let parts = (256 - u64::from(priority.0)) * centiseconds;
        Duration::from_nanos(parts * NANOS_OF_TWO_PARTS / 2)
    }

    /// Silence after which a backup takes over: three intervals and the skew time. RFC 9568, 6.1; RFC 3768, 6.1.
    #[must_use]
    pub fn master_down_interval(self, priority: Priority) -> Duration {
        self.duration() * 3 + self.skew_time(priority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v3(milliseconds: u64) -> Interval {
        Interval::new(Version::V3, Duration::from_millis(milliseconds)).unwrap()
    }

    fn v2(seconds: u64) -> Interval {
        Interval::new(Version::V2, Duration::from_secs(seconds)).unwrap()
    }

    #[test]
    fn skew_of_version_3_is_a_part_of_the_interval() {
        let skew = |milliseconds, priority| v3(milliseconds).skew_time(Priority(priority)).as_nanos();
        assert_eq!([1000, 100, 10].map(|ms| skew(ms, 100)), [609_375_000, 60_937_500, 6_093_750]);
        assert_eq!([1000, 100, 10].map(|ms| skew(ms, 254)), [7_812_500, 781_250, 78_125]);
        assert_eq!(skew(10, 255), 39_062, "half a nanosecond is cut");
        assert_eq!(skew(40_950, 0), 40_950_000_000);
    }

    #[test]
    fn skew_of_version_2_is_a_part_of_a_second() {
        assert_eq!([1, 10].map(|s| v2(s).skew_time(Priority(100)).as_micros()), [609_375, 609_375]);
    }

    #[test]
    fn a_backup_waits_for_three_intervals_and_its_skew() {
        let wait = |interval: Interval, priority| interval.master_down_interval(Priority(priority)).as_micros();
        assert_eq!([v3(1000), v3(100), v3(10)].map(|i| wait(i, 100)), [3_609_375, 360_937, 36_093]);
        assert_eq!([v2(1), v2(2)].map(|i| wait(i, 100)), [3_609_375, 6_609_375]);
        assert_eq!(wait(v3(100), 1), 300_000 + 99_609);
    }

    #[test]
    fn what_a_version_cannot_say_is_refused() {
        let interval = |version, milliseconds| Interval::new(version, Duration::from_millis(milliseconds));
        for milliseconds in [0, 5, 15, 40_960] {
            assert_eq!(interval(Version::V3, milliseconds), Err(InvalidInterval::V3), "{milliseconds}");
        }
        for milliseconds in [0, 500, 1500, 256_000] {
            assert_eq!(interval(Version::V2, milliseconds), Err(InvalidInterval::V2), "{milliseconds}");
        }
        assert_eq!(v3(40_950).duration(), Duration::from_millis(40_950));
        assert_eq!(v2(255).duration(), Duration::from_secs(255));
    }
}
