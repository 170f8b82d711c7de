//! Rates, sizes and delays as `tc` writes them.

use std::time::Duration;

use super::{Invalid, impair::LONGEST};

/// Slowest wire: one on which a super-packet still takes less than the kernel's numbers can hold.
const SLOWEST: f64 = 100.0;
const FASTEST: f64 = 1e12;

/// Bits per second: `10mbit`, `1gbit`, `512kbps` (bytes), `8mibit`.
///
/// # Errors
///
/// [`Invalid`] for anything else.
pub(super) fn rate(text: &str) -> Result<u64, Invalid> {
    // Longest first, so that none hides another.
    const UNITS: [(&str, f64); 17] = [
        ("tibit", 1_099_511_627_776.0),
        ("gibit", 1_073_741_824.0),
        ("mibit", 1_048_576.0),
        ("kibit", 1024.0),
        ("tbit", 1e12),
        ("gbit", 1e9),
        ("mbit", 1e6),
        ("kbit", 1e3),
        ("bit", 1.0),
        ("tbps", 8e12),
        ("gbps", 8e9),
        ("mbps", 8e6),
        ("kbps", 8e3),
        ("bps", 8.0),
        ("g", 1e9),
        ("m", 1e6),
        ("k", 1e3),
    ];
    let lower = text.to_ascii_lowercase();
    let found = UNITS.iter().find_map(|(unit, times)| Some((lower.strip_suffix(unit)?, times)));
    let bad = || Invalid::new("not a rate; write it as 10mbit, 1gbit or 512kbit");
    let (number, times) = found.ok_or_else(bad)?;
    let bits = number.trim().parse::<f64>().ok().filter(|number| number.is_finite()).ok_or_else(bad)? * times;
    if !(SLOWEST..=FASTEST).contains(&bits) {
        return Err(Invalid::new("a rate lies between 100bit and 1tbit"));
    }
    Ok(bits.round() as u64)
}

/// A rate in the largest unit that leaves no fraction.
#[must_use]
pub fn show_rate(bits: u64) -> String {
    for (unit, times) in [("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1000)] {
        if bits >= times && bits.is_multiple_of(times) {
            return format!("{}{unit}", bits / times);
        }
    }
    format!("{bits}bit")
}

/// Bytes: `1500`, `16kb`, `1mb`; a kilobyte is 1,024 bytes, as for `tc`.
///
/// # Errors
///
/// [`Invalid`] for anything else.
pub(super) fn size(text: &str) -> Result<u64, Invalid> {
    const UNITS: [(&str, u64); 5] =
        [("kb", 1 << 10), ("mb", 1 << 20), ("k", 1 << 10), ("m", 1 << 20), ("b", 1)];
    let lower = text.to_ascii_lowercase();
    let found = UNITS.iter().find_map(|(unit, times)| Some((lower.strip_suffix(unit)?, *times)));
    let (number, times) = found.unwrap_or((&lower, 1));
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(times));
    bytes
        .filter(|bytes| *bytes <= 1 << 30)
        .ok_or_else(|| Invalid::new("not a size; write it in bytes or as 16kb or 1mb, at most 1024mb"))
}

/// Bytes per second: `1mb`, `500kb/s`, `1mib/s`; a kilobyte is 1,000 bytes and a kibibyte 1,024.
///
/// # Errors
///
/// [`Invalid`] for anything else.
pub(super) fn speed(text: &str) -> Result<u64, Invalid> {
    // Longest first, so that none hides another.
    const UNITS: [(&str, f64); 9] = [
        ("tib", 1_099_511_627_776.0),
        ("gib", 1_073_741_824.0),
        ("mib", 1_048_576.0),
        ("kib", 1024.0),
        ("tb", 1e12),
        ("gb", 1e9),
        ("mb", 1e6),
        ("kb", 1e3),
        ("b", 1.0),
    ];
    let lower = text.to_ascii_lowercase();
    let amount = lower.strip_suffix("/s").unwrap_or(&lower);
    let found = UNITS.iter().find_map(|(unit, times)| Some((amount.strip_suffix(unit)?, times)));
    let bad = || Invalid::new("not a rate; write it as 1mb/s, 500kib/s or 100 iops");
    let (number, times) = found.ok_or_else(bad)?;
    let number = number.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    Ok((number.ok_or_else(bad)? * times).round() as u64)
}

/// Bytes in the largest unit that leaves no fraction.
pub(super) fn show_bytes(bytes: u64) -> String {
    for (unit, times) in [("gb", 1_000_000_000), ("mb", 1_000_000), ("kb", 1000)] {
        if bytes >= times && bytes.is_multiple_of(times) {
            return format!("{}{unit}", bytes / times);
        }
    }
    format!("{bytes}b")
}

/// Bytes that a packet takes more, or fewer, than its own.
///
/// # Errors
///
/// [`Invalid`] for anything else.
pub(super) fn overhead(text: &str) -> Result<i32, Invalid> {
    let number = text.parse::<i32>().ok().filter(|number| (-1000..=1000).contains(number));
    number.ok_or_else(|| Invalid::new("not a number of bytes between -1000 and 1000"))
}

/// A delay: `100ms`, `50us`, `1.5s`, `0`.
///
/// # Errors
///
/// [`Invalid`] for anything else, and for more than [`LONGEST`].
pub(super) fn delay(text: &str) -> Result<Duration, Invalid> {
    const UNITS: [(&str, f64); 7] =
        [("msec", 1e6), ("usec", 1e3), ("ms", 1e6), ("us", 1e3), ("µs", 1e3), ("ns", 1.0), ("s", 1e9)];
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let bad = || Invalid::new("not a delay; write it as 100ms, 50us or 1.5s");
    let found = UNITS.iter().find_map(|(unit, times)| Some((text.strip_suffix(unit)?, times)));
    let (number, times) = found.ok_or_else(bad)?;
    let number = number.parse::<f64>().ok().filter(|number| number.is_finite()).ok_or_else(bad)?;
    let nanoseconds = number * times;
    if !(0.0..=LONGEST.as_nanos() as f64).contains(&nanoseconds) {
        let longest = humantime::format_duration(LONGEST);
        return Err(Invalid::new(format!("a delay lies between 0 and {longest}")));
    }
    Ok(Duration::from_nanos(nanoseconds.round() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        for (text, bits) in
            [("10mbit", 10_000_000), ("1Gbit", 1_000_000_000), ("8kbps", 64_000), ("1kibit", 1024)]
        {
            assert_eq!(rate(text), Ok(bits), "{text}");
        }
        for text in ["", "10", "mbit", "-1mbit", "10mb", "1bit", "2tbit", "infmbit", "nangbit"] {
            assert!(rate(text).is_err(), "{text}");
        }
        assert_eq!([1_500_000, 64_000, 999].map(show_rate), ["1500kbit", "64kbit", "999bit"]);
    }

    #[test]
    fn sizes_and_delays() {
        assert_eq!(["1500", "16kb", "1m", "3b"].map(size), [Ok(1500), Ok(16_384), Ok(1 << 20), Ok(3)]);
        assert!(["", "-1", "2gb", "99999999999999999999"].iter().all(|text| size(text).is_err()));
        let nanoseconds = |text| delay(text).map(|delay: Duration| delay.as_nanos());
        assert_eq!(
            ["50us", "1.5s", "0", "0.1ms"].map(nanoseconds),
            [Ok(50_000), Ok(1_500_000_000), Ok(0), Ok(100_000)]
        );
        assert!(["", "5", "ms", "-1ms", "61s", "nans"].iter().all(|text| delay(text).is_err()));
        assert!(overhead("-14").is_ok() && overhead("2000").is_err());
    }
}
