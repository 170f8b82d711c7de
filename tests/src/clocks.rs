//! Clocks, read in every way that a program can: by the vDSO's functions, by the C library's, and by system calls.

mod order;
mod process;
mod vdso;

use std::{fmt, mem::MaybeUninit};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};

pub use self::{
    order::{From, Order, Wait, Waited, Watched},
    process::{Clock, REFERENCE, path},
    vdso::{Image, remove_vdso, vdso_function, vdso_range},
};

const SECOND: i64 = 1_000_000_000;
/// Of that many readings the one counts that was taken fastest.
const TRIES: u32 = 7;

/// What tells the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// `CLOCK_REALTIME`
    Realtime,
    /// `CLOCK_REALTIME_COARSE`
    RealtimeCoarse,
    /// `CLOCK_TAI`
    Tai,
    /// `CLOCK_MONOTONIC`
    Monotonic,
    /// `CLOCK_MONOTONIC_COARSE`
    MonotonicCoarse,
    /// `CLOCK_MONOTONIC_RAW`
    MonotonicRaw,
    /// `CLOCK_BOOTTIME`
    Boottime,
    /// `gettimeofday(2)`
    Gettimeofday,
    /// `time(2)`
    Time,
}

/// How it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// By the vDSO's function.
    Vdso,
    /// By the C library's, which is the vDSO's or a system call.
    Libc,
    /// By a system call.
    Raw,
}

/// What was said, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// By whom.
    pub source: Source,
    /// To whom.
    pub way: Way,
    /// The time, in nanoseconds.
    pub ns: i64,
    /// What the reference said right before, to a system call.
    pub before: i64,
    /// And right after.
    pub after: i64,
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl Way {
    /// All.
    pub const ALL: [Self; 3] = [Self::Vdso, Self::Libc, Self::Raw];
}

impl Source {
    /// All.
    pub const ALL: [Self; 9] = [
        Self::Realtime,
        Self::RealtimeCoarse,
        Self::Tai,
        Self::Monotonic,
        Self::MonotonicCoarse,
        Self::MonotonicRaw,
        Self::Boottime,
        Self::Gettimeofday,
        Self::Time,
    ];

    /// As `--clock` calls it, if that knows it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Realtime => "realtime",
            Self::RealtimeCoarse => "realtime_coarse",
            Self::Tai => "tai",
            Self::Monotonic => "monotonic",
            Self::MonotonicCoarse => "monotonic_coarse",
            Self::MonotonicRaw => "monotonic_raw",
            Self::Boottime => "boottime",
            Self::Gettimeofday => "gettimeofday",
            Self::Time => "time",
        }
    }

    /// The clock that this one shows: itself, if it is exact.
    #[must_use]
    pub const fn shows(self) -> Self {
        match self {
            Self::RealtimeCoarse | Self::Gettimeofday | Self::Time => Self::Realtime,
            Self::MonotonicCoarse => Self::Monotonic,
            other => other,
        }
    }

    /// How far it may be behind the clock it shows, in nanoseconds: coarse clocks go by the tick, which is one of 100
    /// in a second at the slowest, and the CPU that keeps the time may be kept busy for a few.
    #[must_use]
    pub const fn lag(self) -> i64 {
        match self {
            Self::RealtimeCoarse | Self::MonotonicCoarse => SECOND / 20,
            Self::Gettimeofday => 1_000,
            Self::Time => SECOND + SECOND / 80,
            _ => 0,
        }
    }

    const fn id(self) -> libc::clockid_t {
        match self {
            Self::Realtime | Self::Gettimeofday | Self::Time => libc::CLOCK_REALTIME,
            Self::RealtimeCoarse => libc::CLOCK_REALTIME_COARSE,
            Self::Tai => libc::CLOCK_TAI,
            Self::Monotonic => libc::CLOCK_MONOTONIC,
            Self::MonotonicCoarse => libc::CLOCK_MONOTONIC_COARSE,
            Self::MonotonicRaw => libc::CLOCK_MONOTONIC_RAW,
            Self::Boottime => libc::CLOCK_BOOTTIME,
        }
    }

    /// The clock's number for a function that waits.
    #[must_use]
    pub const fn clock(self) -> libc::clockid_t {
        self.id()
    }

    /// What it says, in nanoseconds. Nothing if there is no vDSO to ask.
    #[must_use]
    pub fn read(self, way: Way) -> Option<i64> {
        match self {
            Self::Gettimeofday => gettimeofday(way),
            Self::Time => time(way),
            _ => clock_gettime(self.id(), way),
        }
    }

    /// The same, with what a reference says before and after; the fastest of several.
    #[must_use]
    pub fn reading(self, way: Way, reference: Self) -> Option<Reading> {
        let readings = (0..TRIES).filter_map(|_| self.first_reading(way, reference));
        readings.min_by_key(|reading| reading.after - reading.before)
    }

    /// The same, of one alone.
    #[must_use]
    pub fn first_reading(self, way: Way, reference: Self) -> Option<Reading> {
        let before = reference.read(Way::Raw)?;
        let ns = self.read(way)?;
        let after = reference.read(Way::Raw)?;
        Some(Reading { source: self, way, ns, before, after })
    }

    /// Where the clock it shows is, as this process knows it.
    ///
    /// # Errors
    ///
    /// If the kernel has no such clock.
    pub fn truth(self, reference: Self) -> Result<Reading> {
        self.shows().reading(Way::Raw, reference).context(self)
    }

    /// Every source, in every way.
    #[must_use]
    pub fn readings(reference: Self) -> Vec<Reading> {
        let all = Self::ALL.into_iter().flat_map(|source| Way::ALL.map(|way| (source, way)));
        all.filter_map(|(source, way)| source.reading(way, reference)).collect()
    }
}

impl Reading {
    /// How far the source was from the reference.
    #[must_use]
    pub fn ahead(&self) -> i64 {
        self.ns - self.middle()
    }

    /// How far it was ahead of the truth, if it was beside [`REFERENCE`].
    ///
    /// # Errors
    ///
    /// If this process cannot read that clock.
    pub fn skew(&self) -> Result<i64> {
        Ok(self.ahead() - self.source.truth(REFERENCE)?.ahead())
    }

    /// When it was, by the reference.
    #[must_use]
    pub fn middle(&self) -> i64 {
        self.before + self.doubt()
    }

    /// How far that may be from the truth.
    #[must_use]
    pub fn doubt(&self) -> i64 {
        (self.after - self.before) / 2
    }
}

/// A call that fills in what it is given, and what then is there.
fn filled<T>(call: impl FnOnce(*mut T) -> i64) -> Option<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let result = call(value.as_mut_ptr());
    // SAFETY: the types here are integers, which zeroed memory is as well.
    (result == 0).then(|| unsafe { value.assume_init() })
}

fn clock_gettime(id: libc::clockid_t, way: Way) -> Option<i64> {
    let timespec: libc::timespec = match way {
        Way::Vdso => {
            let function = vdso::functions()?.clock_gettime;
            // SAFETY: the kernel's function, which writes one timespec.
            filled(|to| unsafe { function(id, to) }.into())
        }
        // SAFETY: writes one timespec.
        Way::Libc => filled(|to| unsafe { libc::clock_gettime(id, to) }.into()),
        // SAFETY: writes one timespec.
        Way::Raw => filled(|to| unsafe { libc::syscall(libc::SYS_clock_gettime, id, to) }),
    }?;
    Some(timespec.tv_sec * SECOND + timespec.tv_nsec)
}

fn gettimeofday(way: Way) -> Option<i64> {
    let none = std::ptr::null_mut();
    let timeval: libc::timeval = match way {
        Way::Vdso => {
            let function = vdso::functions()?.gettimeofday;
            // SAFETY: the kernel's function, which writes one timeval, and no time zone.
            filled(|to| unsafe { function(to, none) }.into())
        }
        // SAFETY: writes one timeval, and no time zone.
        Way::Libc => filled(|to| unsafe { libc::gettimeofday(to, none.cast()) }.into()),
        // SAFETY: writes one timeval, and no time zone.
        Way::Raw => filled(|to| unsafe { libc::syscall(libc::SYS_gettimeofday, to, none) }),
    }?;
    Some(timeval.tv_sec * SECOND + timeval.tv_usec * 1_000)
}

fn time(way: Way) -> Option<i64> {
    let none = std::ptr::null_mut::<libc::time_t>();
    let seconds = match way {
        Way::Vdso => {
            let function = vdso::functions()?.time;
            // SAFETY: the kernel's function, which writes nothing here.
            unsafe { function(none) }
        }
        // SAFETY: writes nothing here.
        Way::Libc => unsafe { libc::time(none) },
        // SAFETY: writes nothing here.
        Way::Raw => unsafe { libc::syscall(libc::SYS_time, none) },
    };
    Some(seconds * SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ways_say_the_same() {
        let readings = Source::readings(Source::MonotonicRaw);
        assert_eq!(readings.len(), Source::ALL.len() * Way::ALL.len());
        for reading in readings {
            let truth = reading.source.shows().reading(Way::Raw, Source::MonotonicRaw).expect("a clock");
            let skew = reading.ahead() - truth.ahead();
            let doubt = reading.doubt() + truth.doubt() + 1_000_000;
            assert!(skew <= doubt && skew >= -doubt - reading.source.lag(), "{reading:?}: {skew}");
        }
    }

    #[test]
    fn the_image_is_its_own() {
        let image = Image::of(std::process::id()).expect("a vDSO");
        assert_eq!(image, Image::of(std::process::id()).expect("a vDSO"));
        assert_eq!(image.bytes[..4], *b"\x7fELF");
    }
}
