//! What `fl-clock` is told at its standard input, one JSON object in a line, and what it answers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Source, Way};

/// What it is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "what each field is for is said of its variant")]
pub enum Order {
    /// Read every clock in every way, beside a reference; answered by readings.
    Read { by: From, reference: Source },
    /// Read one, once; answered by a reading.
    One { source: Source, way: Way, reference: Source },
    /// Read one again and again for so many milliseconds, with so many microseconds in between; answered by readings.
    Sample { source: Source, reference: Source, milliseconds: u64, pause_us: u64 },
    /// Have so many threads read clocks as fast as they can, which may say what is right, or so much more;
    /// answered by what they have seen until then.
    Watch { threads: usize, skew: i64 },
    /// Say what they have seen; answered by that.
    Seen,
    /// Have them end, and say the same.
    Halt,
    /// Become this program once more, which then takes orders; answered by its first reading.
    Exec { reference: Source },
    /// Wait until the clock says so many milliseconds more than it does; answered by how that went.
    Wait { how: Wait, clock: Source, milliseconds: u64 },
    /// Write to a file; answered by the time that is in its inode.
    Touch { path: PathBuf },
}

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum From {
    /// The process's first thread.
    Itself,
    /// A new one.
    Thread,
    /// A child that is forked for it.
    Child,
    /// A child's child, whose parent has ended.
    Orphan,
}

/// How it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wait {
    /// `clock_nanosleep()` until a time.
    Sleep,
    /// `clock_nanosleep()` for a time.
    SleepFor,
    /// A timerfd, set to a time.
    Timerfd,
    /// `pthread_cond_timedwait()`, which is a futex.
    Condition,
}

/// How that went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waited {
    /// How long it took, by `CLOCK_MONOTONIC_RAW` and system calls, in nanoseconds: at least, as it was read between the
    /// readings of the clock itself.
    pub least: i64,
    /// And at most, as it was read around them.
    pub most: i64,
    /// What the clock itself, as the C library reads it, says of that.
    pub seen: i64,
}

/// What the threads have seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// How often they went round.
    pub rounds: u64,
    /// How often `CLOCK_REALTIME` was right.
    pub right: u64,
    /// How often it was ahead by as much as was said.
    pub skewed: u64,
    /// How often it was neither.
    pub absurd: u64,
    /// The last that was neither: how far it was ahead, in nanoseconds.
    pub absurdity: i64,
    /// How often a clock that never goes back did.
    pub backwards: u64,
    /// How far at most, in nanoseconds.
    pub furthest_back: i64,
    /// When `CLOCK_REALTIME` was last skewed, by `CLOCK_MONOTONIC_RAW`.
    pub last_skewed: i64,
    /// When it was last right.
    pub last_right: i64,
    /// The longest time in which none of them went round, in nanoseconds.
    pub longest_gap: i64,
}
