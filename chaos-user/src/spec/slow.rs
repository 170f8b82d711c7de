//! How slow a device is to be, as it was written.

use std::{fmt, str::FromStr, time::Duration};

use super::{DeviceSpec, Invalid, Owner, PathSpec, units};
use crate::kernel::throttle::Limits;

/// How much a second at most; one of them at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speed {
    /// Bytes.
    pub bytes: Option<u64>,
    /// Reads or writes.
    pub ios: Option<u64>,
}

/// What is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowOp {
    /// Reading.
    Read,
    /// Writing.
    Write,
}

impl SlowOp {
    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

impl FromStr for SlowOp {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let all = [Self::Read, Self::Write];
        let found = all.into_iter().find(|op| op.name() == text);
        found.ok_or_else(|| Invalid::new("what a device can be slow at is read and write"))
    }
}

/// Who is slow, with what.
#[derive(Clone, Debug, PartialEq)]
pub struct SlowSpec {
    /// How slow.
    pub speed: Speed,
    /// At what.
    pub ops: Vec<SlowOp>,
    /// Whose cgroups.
    pub owners: Vec<Owner>,
    /// With which devices.
    pub devices: Vec<DeviceSpec>,
    /// With the devices that these are on.
    pub paths: Vec<PathSpec>,
    /// How long; until interrupted if it does not say.
    pub duration: Option<Duration>,
}

/// Slower than this a read of some hundred kilobytes would take minutes, and cannot be interrupted.
const LEAST: u64 = 1000;
const MOST: u64 = 1_000_000_000_000;
/// The kernel has 32 bits for it, and all of them set for no limit.
const MOST_IOS: u64 = u32::MAX as u64 - 1;

impl Speed {
    /// What comes after `io slow`: `1mb/s`, `100 iops`, or both.
    ///
    /// # Errors
    ///
    /// [`Invalid`].
    pub fn parse(words: &[String]) -> Result<Self, Invalid> {
        let mut speed = Self { bytes: None, ios: None };
        let mut words = words.iter().map(String::as_str).peekable();
        while let Some(word) = words.next() {
            let count = match word.strip_suffix("iops") {
                Some(count) => Some(count),
                None => words.next_if_eq(&"iops").map(|_| word),
            };
            let (place, value) = match count {
                Some(count) => (&mut speed.ios, ios(count)?),
                None => (&mut speed.bytes, bytes(word)?),
            };
            if place.replace(value).is_some() {
                return Err(Invalid::new(format!(
                    "slow: {word} comes after another of its kind; leave one out"
                )));
            }
        }
        Ok(speed)
    }

    /// The limits that this is.
    #[must_use]
    pub fn limits(self, ops: &[SlowOp]) -> Limits {
        let of = |op, value: Option<u64>| value.filter(|_| ops.contains(&op));
        Limits {
            rbps: of(SlowOp::Read, self.bytes),
            wbps: of(SlowOp::Write, self.bytes),
            riops: of(SlowOp::Read, self.ios),
            wiops: of(SlowOp::Write, self.ios),
        }
    }
}

fn bytes(word: &str) -> Result<u64, Invalid> {
    let bytes = units::speed(word)?;
    if !(LEAST..=MOST).contains(&bytes) {
        return Err(Invalid::new("slow: a rate lies between 1kb/s and 1tb/s"));
    }
    Ok(bytes)
}

fn ios(count: &str) -> Result<u64, Invalid> {
    let count = count.parse().ok().filter(|count| (1..=MOST_IOS).contains(count));
    count.ok_or_else(|| Invalid::new("slow: iops follows a whole number from 1 up: 100 iops"))
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes.map(|bytes| format!("{}/s", units::show_bytes(bytes)));
        let ios = self.ios.map(|ios| format!("{ios} iops"));
        f.write_str(&bytes.into_iter().chain(ios).collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Speed, Invalid> {
        Speed::parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn speeds() {
        for (text, bytes, ios, shown) in [
            ("1mb", Some(1_000_000), None, "1mb/s"),
            ("500kb/s", Some(500_000), None, "500kb/s"),
            ("1mib/s", Some(1 << 20), None, "1048576b/s"),
            ("100 iops", None, Some(100), "100 iops"),
            ("100iops", None, Some(100), "100 iops"),
            ("2MB/s 50 iops", Some(2_000_000), Some(50), "2mb/s 50 iops"),
        ] {
            let speed = parse(text).expect(text);
            assert_eq!((speed.bytes, speed.ios, speed.to_string().as_str()), (bytes, ios, shown), "{text}");
        }
        for text in
            ["100", "1mb 2mb", "0 iops", "iops", "999b", "2tb", "-1mb", "nanmb", "1mbit", "1 iops 2 iops"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_what_was_asked_for_is_limited() {
        let speed = Speed { bytes: Some(5000), ios: Some(7) };
        assert_eq!(speed.limits(&[SlowOp::Write]).to_string(), "wbps=5000 wiops=7");
        assert_eq!(
            speed.limits(&[SlowOp::Read, SlowOp::Write]).to_string(),
            "rbps=5000 wbps=5000 riops=7 wiops=7"
        );
    }
}
