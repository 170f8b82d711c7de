//! How a clock is to be wrong, as it was written.

use std::{fmt, str::FromStr, time::Duration};

use super::{Invalid, Owner};
use crate::kernel::mechanism::Mechanism;

/// A clock that programs read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Clock {
    /// `CLOCK_REALTIME`, with `gettimeofday`, `time` and `CLOCK_REALTIME_COARSE`.
    Realtime,
    /// `CLOCK_TAI`.
    Tai,
    /// `CLOCK_MONOTONIC`, with `CLOCK_MONOTONIC_COARSE`.
    Monotonic,
    /// `CLOCK_MONOTONIC_RAW`.
    Raw,
    /// `CLOCK_BOOTTIME`.
    Boottime,
}

impl Clock {
    /// All, in the order of the slots that the stubs know.
    pub const ALL: [Self; 5] = [Self::Realtime, Self::Tai, Self::Monotonic, Self::Raw, Self::Boottime];

    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Realtime => "realtime",
            Self::Tai => "tai",
            Self::Monotonic => "monotonic",
            Self::Raw => "monotonic_raw",
            Self::Boottime => "boottime",
        }
    }

    /// Whether programs rely on it not to go backwards.
    #[must_use]
    pub const fn is_monotonic(self) -> bool {
        matches!(self, Self::Monotonic | Self::Raw | Self::Boottime)
    }
}

impl FromStr for Clock {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let plain = text.to_ascii_lowercase();
        let plain = plain.strip_prefix("clock_").unwrap_or(&plain);
        // With another clock goes its coarse twin.
        let whole = plain.strip_suffix("_coarse").unwrap_or(plain);
        let found = Self::ALL.into_iter().find(|clock| clock.name() == whole);
        found.or((whole == "raw").then_some(Self::Raw)).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|clock| clock.name()).collect();
            Invalid::new(format!("no clock is called that; there are {}", names.join(", ")))
        })
    }
}

/// Time that is ahead, or behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offset(pub i64);

/// Largest offset: further away a clock's nanoseconds would leave their 63 bits.
const FARTHEST: Duration = Duration::from_secs(100 * 365 * 86_400);

impl FromStr for Offset {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (sign, rest) = match text.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, text.strip_prefix('+').unwrap_or(text)),
        };
        let bad = || Invalid::new("not a duration; write it as -2d, +1h30m or 500ms");
        let time =
            if rest == "0" { Duration::ZERO } else { humantime::parse_duration(rest).map_err(|_| bad())? };
        if time > FARTHEST {
            return Err(Invalid::new("an offset is 100 years at most"));
        }
        Ok(Self(sign * time.as_nanos() as i64))
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "+" };
        let time = humantime::format_duration(Duration::from_nanos(self.0.unsigned_abs())).to_string();
        write!(f, "{sign}{}", time.replace(' ', ""))
    }
}

/// How much faster than time a clock goes: seconds a second beyond one, as a fraction of 2^32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slope(pub i64);

impl Slope {
    /// As many as there are of each.
    pub const ONE: i64 = 1 << 32;
    /// The clock stands still.
    pub const STILL: Self = Self(-Self::ONE);
    const FASTEST: f64 = 1000.0;

    /// `2` for twice as fast, `0.5` for half as fast.
    ///
    /// # Errors
    ///
    /// [`Invalid`].
    pub fn of_rate(text: &str) -> Result<Self, Invalid> {
        let rate = text.parse::<f64>().ok().filter(|rate| rate.is_finite());
        let rate =
            rate.ok_or_else(|| Invalid::new("not a rate; write 2 for twice as fast, 0.5 for half as fast"))?;
        if rate <= 0.0 || rate > Self::FASTEST {
            return Err(Invalid::new("a rate is above 0 and at most 1000; --freeze has a clock stand still"));
        }
        Ok(Self(((rate - 1.0) * Self::ONE as f64).round() as i64))
    }

    /// Parts in a million.
    ///
    /// # Errors
    ///
    /// [`Invalid`].
    pub fn of_drift(text: &str) -> Result<Self, Invalid> {
        let ppm = text.parse::<f64>().ok().filter(|ppm| ppm.is_finite());
        let ppm = ppm.ok_or_else(|| Invalid::new("not a number of parts in a million; write 100 or -50"))?;
        if ppm <= -1e6 || ppm > 1e6 {
            return Err(Invalid::new(
                "a drift lies above -1000000 and is at most 1000000 parts in a million",
            ));
        }
        Ok(Self((ppm / 1e6 * Self::ONE as f64).round() as i64))
    }
}

/// By turns right and wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strobe {
    /// How long wrong.
    pub on: Duration,
    /// How long right.
    pub off: Duration,
}

/// How precisely a clock can be set: what is shorter would be missed.
const SHORTEST: Duration = Duration::from_millis(100);

/// A duration between two changes of a clock.
///
/// # Errors
///
/// [`Invalid`].
pub fn parse_period(text: &str) -> Result<Duration, Invalid> {
    let time = humantime::parse_duration(text)
        .map_err(|_| Invalid::new("not a duration; write it as 10s or 1h30m"))?;
    if !(SHORTEST..=FARTHEST).contains(&time) {
        return Err(Invalid::new("a clock is set anew every 100ms at most"));
    }
    Ok(time)
}

impl FromStr for Strobe {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (on, off) = text.split_once('/').ok_or_else(|| Invalid::new("write it as ON/OFF: 10s/50s"))?;
        Ok(Self { on: parse_period(on)?, off: parse_period(off)? })
    }
}

/// How a second is inserted at the end of a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Leap {
    /// The last second is told twice, as Linux does.
    Step,
    /// From noon to noon each second is longer by a part in 86,400, as some time servers do.
    Smear,
}

/// How a clock is wrong.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Skew {
    /// From the start.
    pub offset: Offset,
    /// As it goes on.
    pub slope: Slope,
    /// How often it jumps by the offset once more.
    pub jump_every: Option<Duration>,
    /// By turns right and wrong.
    pub strobe: Option<Strobe>,
    /// A leap second at its next midnight, UTC.
    pub leap: Option<Leap>,
}

/// Whose clocks are wrong, which and how.
#[derive(Clone, Debug, PartialEq)]
pub struct SkewSpec {
    /// How.
    pub skew: Skew,
    /// Which clocks, each once and in order.
    pub clocks: Vec<Clock>,
    /// Whether monotonic clocks may go backwards.
    pub allow_backwards: bool,
    /// Whose.
    pub owners: Vec<Owner>,
    /// How long; until interrupted if it does not say.
    pub duration: Option<Duration>,
    /// By which mechanism, if that was said.
    pub by: Option<Mechanism>,
}

impl SkewSpec {
    /// Refuses what makes no sense together.
    ///
    /// # Errors
    ///
    /// [`Invalid`].
    pub fn check(&self) -> Result<(), Invalid> {
        let Skew { offset, slope, jump_every, strobe, leap } = &self.skew;
        if *offset == Offset(0) && *slope == Slope(0) && leap.is_none() {
            return Err(Invalid::new("wrong by what? Write --offset, --rate, --drift, --freeze or --leap"));
        }
        if jump_every.is_some() && *offset == Offset(0) {
            return Err(Invalid::new("--jump-every jumps by the --offset: write that as well"));
        }
        if leap.is_some() && (*slope != Slope(0) || jump_every.is_some() || strobe.is_some()) {
            return Err(Invalid::new("--leap goes with --offset alone"));
        }
        if leap.is_some() && !self.clocks.contains(&Clock::Realtime) {
            return Err(Invalid::new("--leap is of the clock realtime: write that in --clock as well"));
        }
        let steps_back = offset.0 < 0 || offset.0 > 0 && strobe.is_some() || slope.0 > 0 && strobe.is_some();
        let monotonic = self.clocks.iter().find(|clock| clock.is_monotonic());
        if let Some(clock) = monotonic.filter(|_| steps_back && !self.allow_backwards) {
            return Err(Invalid::new(format!(
                "this would set {} back, which programs rely on not to happen; leave it out of --clock, or write \
                 --allow-backwards-monotonic",
                clock.name()
            )));
        }
        Ok(())
    }
}

impl fmt::Display for SkewSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Skew { offset, slope, jump_every, strobe, leap } = &self.skew;
        f.write_str("time skew")?;
        if *offset != Offset(0) {
            write!(f, " --offset {offset}")?;
        }
        let part = slope.0 as f64 / Slope::ONE as f64;
        match *slope {
            Slope(0) => {}
            Slope::STILL => f.write_str(" --freeze")?,
            _ if part.abs() < 0.001 => write!(f, " --drift {}", (part * 1e10).round() / 1e4)?,
            _ => write!(f, " --rate {}", ((1.0 + part) * 1e6).round() / 1e6)?,
        }
        let short = |time: &Duration| humantime::format_duration(*time).to_string().replace(' ', "");
        if let Some(every) = jump_every {
            write!(f, " --jump-every {}", short(every))?;
        }
        if let Some(Strobe { on, off }) = strobe {
            write!(f, " --strobe {}/{}", short(on), short(off))?;
        }
        if let Some(leap) = leap {
            write!(f, " --leap {}", if *leap == Leap::Step { "step" } else { "smear" })?;
        }
        let clocks: Vec<_> = self.clocks.iter().map(|clock| clock.name()).collect();
        write!(f, " --clock {}", clocks.join(","))?;
        self.owners.iter().try_for_each(|owner| write!(f, " {owner}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(skew: Skew, clocks: &[Clock]) -> SkewSpec {
        SkewSpec {
            skew,
            clocks: clocks.to_vec(),
            allow_backwards: false,
            owners: Vec::new(),
            duration: None,
            by: None,
        }
    }

    #[test]
    fn offsets() {
        for (text, nanoseconds, shown) in [
            ("2d", 172_800_000_000_000, "+2days"),
            ("+1h30m", 5_400_000_000_000, "+1h30m"),
            ("-500ms", -500_000_000, "-500ms"),
            ("0", 0, "+0s"),
        ] {
            let offset: Offset = text.parse().expect(text);
            assert_eq!((offset.0, offset.to_string().as_str()), (nanoseconds, shown), "{text}");
        }
        assert!(["", "-", "5", "1x", "--1s", "101years"].iter().all(|text| text.parse::<Offset>().is_err()));
    }

    #[test]
    fn speeds() {
        assert_eq!(Slope::of_rate("2"), Ok(Slope(Slope::ONE)));
        assert_eq!(Slope::of_rate("0.5"), Ok(Slope(-Slope::ONE / 2)));
        assert_eq!(Slope::of_drift("-1"), Ok(Slope(-4295)));
        assert!(["0", "-1", "nan", "inf", "1001", "x"].iter().all(|text| Slope::of_rate(text).is_err()));
        assert!(["-1000000", "2e6", "inf", ""].iter().all(|text| Slope::of_drift(text).is_err()));
    }

    #[test]
    fn clocks() {
        assert_eq!("CLOCK_REALTIME_COARSE".parse(), Ok(Clock::Realtime));
        assert_eq!("raw".parse(), Ok(Clock::Raw));
        assert!("process".parse::<Clock>().is_err());
    }

    #[test]
    fn what_goes_together() {
        let skew = |offset, slope| Skew { offset: Offset(offset), slope: Slope(slope), ..Skew::default() };
        let real = &[Clock::Realtime];
        assert!(spec(skew(0, 0), real).check().is_err());
        assert!(spec(skew(-5, 0), real).check().is_ok());
        assert!(spec(skew(-5, 0), &[Clock::Monotonic]).check().is_err());
        assert!(spec(skew(5, 7), &[Clock::Monotonic]).check().is_ok());
        let leap = Skew { leap: Some(Leap::Step), ..skew(0, 3) };
        assert!(spec(leap, real).check().is_err());
        let strobe = Strobe { on: Duration::from_secs(1), off: Duration::from_secs(2) };
        assert_eq!("1s/2s".parse(), Ok(strobe));
        assert!("1s".parse::<Strobe>().is_err() && "1ms/1s".parse::<Strobe>().is_err());
        let strobe = Skew { strobe: Some(strobe), ..skew(5, 0) };
        assert!(spec(strobe, &[Clock::Boottime]).check().is_err());
    }

    #[test]
    fn shown_as_written() {
        let skew = Skew { offset: Offset(-1_000_000_000), slope: Slope(4295), ..Skew::default() };
        assert_eq!(
            spec(skew, &[Clock::Realtime]).to_string(),
            "time skew --offset -1s --drift 1 --clock realtime"
        );
    }
}
