//! Values that change while a fault runs: `0..100ms/30s`.

use std::{fmt, time::Duration};

use super::{Impairments, Invalid, Loss, Percent, parse_duration, units};

/// A kind of value that can change.
pub(super) trait Ramped {}

impl Ramped for Percent {}
impl Ramped for Duration {}
impl Ramped for u64 {}

/// The first value of a fault, on its way.
#[derive(Clone, Debug, PartialEq)]
pub struct Ramp {
    from: Value,
    to: Value,
    time: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Loss(f64),
    Duplicate(f64),
    Corrupt(f64),
    Reorder(f64),
    /// Nanoseconds.
    Delay(f64),
    /// Bits per second.
    Rate(f64),
}

impl Ramp {
    /// Reads `FROM..TO/TIME` of this fault; with it the text of its last value. `None` for a value that stays.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if it begins like a ramp and is none.
    pub(super) fn parse<'a>(fault: &str, text: &'a str) -> Result<Option<(Self, &'a str)>, Invalid> {
        let Some((from, rest)) = text.split_once("..") else { return Ok(None) };
        let bad = || Invalid::new("not a ramp; write it as 0..100ms/30s");
        let (to, time) = rest.split_once('/').ok_or_else(bad)?;
        let ramp = Self {
            from: Value::parse(fault, from)?,
            to: Value::parse(fault, to)?,
            time: parse_duration(time)?,
        };
        Ok(Some((ramp, to)))
    }

    /// Reads `[FAULT=]FROM..TO/TIME` as it is given to `--ramp`, of the only fault if none is named.
    ///
    /// # Errors
    ///
    /// [`Invalid`].
    pub fn option(text: &str, faults: &Impairments) -> Result<Self, Invalid> {
        let there = faults.names();
        let (fault, ramp) = match text.split_once('=') {
            Some((fault, ramp)) if there.contains(&fault) => (fault, ramp),
            Some((fault, _)) => {
                return Err(Invalid::new(format!("there is no {fault} here; there is {}", there.join(", "))));
            }
            None => match there[..] {
                [fault] => (fault, text),
                _ => return Err(Invalid::new(format!("name the fault: {}={text}", there.join("= or ")))),
            },
        };
        match Self::parse(fault, ramp)? {
            Some((ramp, _)) => Ok(ramp),
            None => Err(Invalid::new("not a ramp; write it as 0..100ms/30s")),
        }
    }

    /// Whether it is of this fault.
    #[must_use]
    pub fn is_of(&self, fault: &str) -> bool {
        self.to.fault() == fault
    }

    /// The longest delay on the way, if it is one of delays.
    #[must_use]
    pub fn longest_delay(&self) -> Option<Duration> {
        match (self.from, self.to) {
            (Value::Delay(from), Value::Delay(to)) => Some(Duration::from_nanos(from.max(to) as u64)),
            _ => None,
        }
    }

    /// Sets the value after this time.
    fn set(&self, faults: &mut Impairments, elapsed: Duration) {
        let part = (elapsed.as_secs_f64() / self.time.as_secs_f64()).min(1.0);
        let (from, to) = (self.from.number(), self.to.number());
        let now = from + (to - from) * part;
        let percent = Percent::of(now);
        match self.to {
            Value::Loss(_) => match &mut faults.loss {
                Some(Loss::Random(chance)) => chance.percent = percent,
                Some(Loss::PerFlow(chance)) => *chance = percent,
                Some(Loss::Bursts(_)) | None => {}
            },
            Value::Duplicate(_) => faults.duplicate.iter_mut().for_each(|it| it.percent = percent),
            Value::Corrupt(_) => faults.corrupt.iter_mut().for_each(|it| it.chance.percent = percent),
            Value::Reorder(_) => faults.reorder.iter_mut().for_each(|it| it.chance.percent = percent),
            Value::Delay(_) => {
                faults.delay.iter_mut().for_each(|it| it.time = Duration::from_nanos(now as u64));
            }
            Value::Rate(_) => faults.rate.iter_mut().for_each(|it| it.bits = now as u64),
        }
    }
}

impl Value {
    fn parse(fault: &str, text: &str) -> Result<Self, Invalid> {
        let percent = || text.parse::<Percent>().map(Percent::fraction);
        Ok(match fault {
            "loss" => Self::Loss(percent()?),
            "duplicate" => Self::Duplicate(percent()?),
            "corrupt" => Self::Corrupt(percent()?),
            "reorder" => Self::Reorder(percent()?),
            "rate" => Self::Rate(units::rate(text)? as f64),
            _ => Self::Delay(units::delay(text)?.as_nanos() as f64),
        })
    }

    fn number(self) -> f64 {
        match self {
            Self::Loss(number)
            | Self::Duplicate(number)
            | Self::Corrupt(number)
            | Self::Reorder(number)
            | Self::Delay(number)
            | Self::Rate(number) => number,
        }
    }

    fn fault(self) -> &'static str {
        match self {
            Self::Loss(_) => "loss",
            Self::Duplicate(_) => "duplicate",
            Self::Corrupt(_) => "corrupt",
            Self::Reorder(_) => "reorder",
            Self::Delay(_) => "delay",
            Self::Rate(_) => "rate",
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delay(time) => {
                write!(f, "{}", humantime::format_duration(Duration::from_nanos(*time as u64)))
            }
            Self::Rate(bits) => f.write_str(&units::show_rate(*bits as u64)),
            chance => write!(f, "{}", Percent::of(chance.number())),
        }
    }
}

impl fmt::Display for Ramp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}/{}", self.from, self.to, humantime::format_duration(self.time))
    }
}

impl Impairments {
    /// As they are after this time.
    #[must_use]
    pub fn at(&self, elapsed: Duration) -> Self {
        let mut now = self.clone();
        for ramp in &self.ramps {
            ramp.set(&mut now, elapsed);
        }
        now
    }

    /// The faults that are there.
    fn names(&self) -> Vec<&'static str> {
        let there = [
            ("loss", self.loss.is_some()),
            ("duplicate", self.duplicate.is_some()),
            ("corrupt", self.corrupt.is_some()),
            ("reorder", self.reorder.is_some()),
            ("rate", self.rate.is_some()),
            ("delay", self.delay.is_some()),
        ];
        there.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Impairments, Invalid> {
        Impairments::parse(&text.split(' ').map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn half_way() {
        let faults = parse("loss 0..10%/10s delay 100ms..0/10s").expect("valid");
        let half = faults.at(Duration::from_secs(5));
        assert_eq!(half.delay.map(|delay| delay.time), Some(Duration::from_millis(50)));
        assert!(
            matches!(half.loss, Some(Loss::Random(chance)) if (chance.percent.fraction() - 0.05).abs() < 1e-9)
        );
        let after = faults.at(Duration::from_secs(99));
        assert_eq!(after.delay.map(|delay| delay.time), Some(Duration::ZERO));
        assert_eq!(faults.longest_delay(), Duration::from_millis(100));
        assert_eq!(faults.to_string(), "loss 0%..10%/10s delay 100ms..0s/10s");
    }

    #[test]
    fn the_option_finds_its_fault() {
        let one = parse("delay 1ms").expect("valid");
        let two = parse("delay 1ms rate 1mbit").expect("valid");
        assert!(Ramp::option("0..5ms/1s", &one).is_ok_and(|ramp| ramp.is_of("delay")));
        assert!(Ramp::option("rate=1mbit..2mbit/1s", &two).is_ok_and(|ramp| ramp.is_of("rate")));
        for text in
            ["0..5ms/1s", "loss=0..1%/1s", "rate=5", "delay=0..5ms", "delay=0..5ms/0s", "delay=0..5/1s"]
        {
            assert!(Ramp::option(text, &two).is_err(), "{text}");
        }
    }
}
