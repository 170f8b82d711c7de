//! A driver that does not do as it is asked. That of a TAP interface switches on what the process at its other end takes.

use std::{fs::File, os::fd::AsRawFd};

use chaos_user::kernel::ethtool::{Ethtool, SEGMENTATION};
use nix::errno::Errno;

use super::scene::{PATIENCE, records};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::{Need, Test},
    lab::Netns,
};

const NEEDS: &[Need] = &[Need::Root, Need::Btf, Need::Tun];

pub(super) const TESTS: &[Test] =
    &[Test::new("life::a_driver_that_refuses", refuses).needs(NEEDS).timeout(60).waits()];

const DEVICE: &str = "tap0";
/// As ethtool calls it.
const FEATURE: &str = "tx-tcp-segmentation";

/// The other end of the interface.
struct Tap(File);

impl Tap {
    /// Makes it, in the calling thread's network namespace.
    fn new() -> Result<Self> {
        let file =
            File::options().read(true).write(true).open("/dev/net/tun").context("open /dev/net/tun")?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        // SAFETY: integers and arrays of them may be zero.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, byte) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
            *to = byte.cast_signed();
        }
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: what is read and written is as large as the kernel takes it for.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        Errno::result(made).context("ioctl(TUNSETIFF)")?;
        Ok(Self(file))
    }

    /// Has the interface give it what is not cut into segments yet, or not.
    fn takes(&self, segments: bool) -> Result {
        let flags = if segments { libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 } else { 0 };
        // SAFETY: an integer.
        let set = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, u64::from(flags)) };
        Errno::result(set).context("ioctl(TUNSETOFFLOAD)").map(drop)
    }
}

/// What it had in use is not switched on again while nobody takes it: the record says so until it is.
fn refuses() -> Result {
    let netns = Netns::new()?;
    let tap = netns.run(Tap::new)?;
    tap.takes(true)?;
    let index = netns.index(DEVICE)?;
    netns.netlink()?.set_up(index, true)?;
    let active = || netns.run(|| Ok(Ethtool::open(index)?.active(SEGMENTATION)?));
    let before = active()?;
    ensure!(before.iter().any(|it| it == FEATURE), "{FEATURE} is off before: {before:?}");
    let place = netns.path().display().to_string();
    let words = ["net", "duplicate", "50%", "--exact", "--dev", DEVICE, "--netns", &place];
    for refuses in [false, true] {
        let fault = Faultline::start(&words)?;
        fault.wait_event("armed", PATIENCE)?;
        let while_armed = active()?;
        ensure!(!while_armed.iter().any(|it| it == FEATURE), "{FEATURE} is on under it: {while_armed:?}");
        tap.takes(!refuses)?;
        let exit = fault.interrupt()?;
        if refuses {
            let said = exit.code == Some(6) && exit.stderr.contains(FEATURE);
            ensure!(said && !records()?.is_empty(), "{exit:?}, {:?}", records());
            let swept = Faultline::run(&["sweep"])?;
            ensure!(swept.code == Some(6) && swept.stderr.contains(FEATURE), "{swept:?}");
            tap.takes(true)?;
        } else {
            ensure!(exit.code == Some(130), "{exit:?}");
        }
        let swept = Faultline::run(&["sweep"])?;
        ensure!(swept.code == Some(0) && records()?.is_empty(), "{swept:?}, {:?}", records());
        let after = active()?;
        ensure!(after == before, "in use: {after:?}, not {before:?}");
    }
    Ok(())
}
