//! Our own traffic: flows whose every packet is accounted for, so that a test can say which ones were lost.
//!
//! Without a fault nothing is lost, on a busy machine either: packets are sent a few at a time, and after each
//! few a [`Barrier`] says that the kernel has delivered or dropped all of them. No buffer ever fills.

mod barrier;
pub mod bulk;
pub mod connection;
pub mod counters;
pub mod datagrams;
pub mod echo;
pub mod flood;
pub mod frames;
pub mod probe;
pub mod requests;
mod socket;
mod tcp_info;
pub mod udp;

pub use self::{
    barrier::Pin,
    bulk::Bulk,
    counters::Counters,
    datagrams::{Received, Record},
    echo::Echo,
    flood::Flood,
    frames::Frames,
    requests::Requests,
    tcp_info::{TcpInfo, Wire},
    udp::Udp,
};

use std::time::Duration;

/// How long the kernel may take over anything that here waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// `CLOCK_MONOTONIC` in nanoseconds, which is also what the programs and `faultline`'s events count in.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec. This clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Sleeps until a [`monotonic_ns`] time.
pub fn sleep_until_ns(deadline: u64) {
    let until = libc::timespec {
        tv_sec: (deadline / 1_000_000_000) as i64,
        tv_nsec: (deadline % 1_000_000_000) as i64,
    };
    loop {
        // SAFETY: reads one timespec; with an absolute time nothing is written.
        let result = unsafe {
            libc::clock_nanosleep(
                libc::CLOCK_MONOTONIC,
                libc::TIMER_ABSTIME,
                &raw const until,
                std::ptr::null_mut(),
            )
        };
        if result != libc::EINTR {
            return;
        }
    }
}
