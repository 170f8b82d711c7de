//! Packets that come later.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use super::{Flows, NOISE, PORT, arm, combinations, count, end, few, lab, median, milliseconds, whole};
use crate::{
    ensure,
    error::{Context, Failure, Result},
    faultline::Faultline,
    harness::{KernelLog, patience, rounds},
    inventory::Inventory,
    lab::{FAR_DEVICE, Family, NEAR_DEVICE},
    stats::acceptance,
    traffic::{
        Counters, Flood,
        frames::Frames,
        probe::{Pace, Probe},
    },
};

const ASKED: i64 = 40;

/// Before, during and after; both ways and families. That the receiver's timestamp is that of the delayed packet is
/// seen by what is measured: by it.
pub(super) fn constant() -> Result {
    let lab = lab()?;
    for (way, family) in combinations().iter().copied() {
        let what = |when: &str| format!("{when}, {} {family}", way.name());
        let flows = Flows::open(&lab, way, family)?;
        ensure!(median(&flows.delays(&what("before"))?) < NOISE, "slow before");
        let fault = arm(&lab, &format!("delay {ASKED}ms --direction {} --port {PORT}", way.name()))?;
        let delays = flows.delays(&what("during"))?;
        // A detour is allowed for by the running mean of what it takes, which may be off by what it varies.
        let early = delays.iter().filter(|delay| **delay < ASKED - 3).count();
        ensure!(early <= delays.len() / 20, "{}: too early: {delays:?}", what("during"));
        let middle = median(&delays);
        ensure!((ASKED - 1..ASKED + NOISE).contains(&middle), "{}: {delays:?}", what("during"));
        let (arrivals, _) = flows.target.run(few())?;
        let late: Vec<i64> = arrivals.iter().map(|arrival| arrival.handed_over / 1_000_000).collect();
        ensure!(median(&late) < NOISE, "{}: handed over after {late:?} ms", what("during"));
        let summary = end(&fault)?;
        let expected = 2 * u64::from(few().count);
        let counted = [count(&summary, "fired/packets")?, count(&summary, "effects/delayed")?];
        ensure!(counted == [expected; 2] && count(&summary, "queue_lost")? == 0, "{summary}");
        ensure!(median(&flows.delays(&what("after"))?) < NOISE, "slow after");
    }
    Ok(())
}

/// What is not IP has no kind of time that a program could give it, and newer kernels' fq asks for one: it waits all the same,
/// and the kernel has nothing to say of it.
pub(super) fn what_is_not_ip() -> Result {
    /// For experiments on a link (IEEE 802), and ARP's.
    const TYPES: [[u8; 2]; 2] = [[0x88, 0xb5], [0x08, 0x06]];
    const EACH: usize = 10;
    let lab = lab()?;
    let mut log = KernelLog::open()?;
    let mut frames = Frames::open((&lab.near, NEAR_DEVICE), (&lab.far, FAR_DEVICE))?;
    let mut times = |when: &str| -> Result<Vec<i64>> {
        let kinds = TYPES.into_iter().cycle().take(EACH * TYPES.len());
        kinds
            .map(|kind| {
                let took = frames.time(&[&kind[..], &[0; 46]].concat(), patience(Duration::from_secs(2)))?;
                Ok(took.context(format_args!("{when}: {kind:x?} does not come"))?.as_millis() as i64)
            })
            .collect()
    };
    let before = times("before")?;
    ensure!(median(&before) < NOISE, "before: {before:?}");
    let fault = arm(&lab, &format!("delay {ASKED}ms --direction out"))?;
    let during = times("during")?;
    let middle = median(&during);
    ensure!((ASKED - 1..ASKED + NOISE).contains(&middle), "during: {during:?}");
    end(&fault)?;
    let after = times("after")?;
    ensure!(median(&after) < NOISE, "after: {after:?}");
    let said = log.of("fq:")?;
    ensure!(said.is_empty(), "the kernel's log: {said:?}");
    Ok(())
}

/// Packets come each millisecond, and deviate by five.
pub(super) fn jitter() -> Result {
    let lab = lab()?;
    let flow = Probe::open(lab.outward(Family::V4), 4000, PORT)?;
    let pace = Pace { count: rounds(1000), interval: Duration::from_millis(1), ..few() };
    let spread = |delays: &[i64]| {
        let mean = delays.iter().sum::<i64>() as f64 / delays.len() as f64;
        (delays.iter().map(|delay| (*delay as f64 - mean).powi(2)).sum::<f64>() / delays.len() as f64).sqrt()
    };

    let fault = arm(&lab, "delay 30ms 5ms distribution normal --proto udp")?;
    let arrived = flow.run(pace)?;
    end(&fault)?;
    let kept = whole("order is kept", &arrived)?;
    // A packet that waits for one CPU may be overtaken by one that waits for another: veth's own doing.
    let overtaken = arrived.0.windows(2).filter(|pair| pair[0].sequence > pair[1].sequence).count();
    ensure!(overtaken * 50 <= kept.len(), "{overtaken} of {} out of order", kept.len());
    let fault = arm(&lab, "delay 30ms 5ms distribution normal --proto udp --reorder-by-jitter")?;
    let (arrivals, sent) = flow.run(pace)?;
    end(&fault)?;
    let reordered = arrivals.windows(2).filter(|pair| pair[0].sequence > pair[1].sequence).count();
    ensure!(arrivals.len() as u32 == sent, "{} of {sent} came", arrivals.len());
    // Two deviations differ by 7 ms, a packet comes each: nearly half overtake the one before.
    ensure!(reordered * 5 > arrivals.len(), "{reordered} of {sent} out of order");
    let delays = milliseconds(&arrivals);
    let (kept, free) = (spread(&kept), spread(&delays));
    ensure!((4.0..15.0).contains(&free) && kept < free + 5.0, "standard deviation {free}, {kept} in order");
    Ok(())
}

pub(super) fn reorder() -> Result {
    let lab = lab()?;
    let flow = Probe::open(lab.outward(Family::V6), 4000, PORT)?;
    let pace = Pace { count: rounds(1000), interval: Duration::from_millis(1), ..few() };
    for (gap, share) in [(1, 0.3), (4, 0.3 / (1.0 + 3.0 * 0.3))] {
        let fault = arm(&lab, &format!("delay 60ms reorder 30% gap {gap} --proto udp"))?;
        let (arrivals, sent) = flow.run(pace)?;
        let summary = end(&fault)?;
        ensure!(arrivals.len() as u32 == sent, "{} of {sent} came", arrivals.len());
        let early = arrivals.iter().filter(|arrival| arrival.delay < 30_000_000).count() as u64;
        ensure!(early == count(&summary, "effects/reordered")?, "{early} came early: {summary}");
        // With a gap the waits between two are not independent: this allows for more than they vary.
        let expected = acceptance(u64::from(sent), share);
        ensure!(expected.contains(&early), "gap {gap}: {early} of {sent} early, not {expected:?}");
    }
    Ok(())
}

/// From nothing to 100 ms in two seconds, and there it stays.
pub(super) fn ramp() -> Result {
    let lab = lab()?;
    let flow = Probe::open(lab.outward(Family::V4), 4000, PORT)?;
    let fault = arm(&lab, "delay 0..100ms/2s --proto udp")?;
    let pace = Pace { count: 125, interval: Duration::from_millis(20), ..few() };
    let delays = whole("ramp", &flow.run(pace)?)?;
    end(&fault)?;
    let part = |from: usize, to: usize| median(&delays[from..to]);
    // The probes begin a little after the ramp.
    ensure!((0..40).contains(&part(0, 5)), "{delays:?}");
    ensure!((45..90).contains(&part(48, 53)), "{delays:?}");
    ensure!((99..100 + NOISE).contains(&part(115, 125)), "{delays:?}");
    Ok(())
}

/// Room for what comes at once after an emulated CPU has stood still: of 1,000 packets, which is the kernel's default, it
/// needs to do so for 20 ms only, and what is lost then is lost on the lab's own wire as well.
struct Backlog(String);

impl Backlog {
    const FILE: &str = "/proc/sys/net/core/netdev_max_backlog";

    fn set() -> Result<Self> {
        let before = fs::read_to_string(Self::FILE).context(Self::FILE)?;
        fs::write(Self::FILE, "100000").context(Self::FILE)?;
        Ok(Self(before))
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        let _ = fs::write(Self::FILE, &self.0);
    }
}

/// 100 ms of 50,000 packets a second, or of what the machine carries, for five seconds.
pub(super) fn queue() -> Result {
    const OFFERED: f64 = 50_000.0;
    const TIME: Duration = Duration::from_secs(5);
    let _backlog = Backlog::set()?;
    let lab = lab()?;
    let hosts = [&lab.near, &lab.far];
    let read = || Ok::<_, Failure>([Counters::read(hosts[0])?, Counters::read(hosts[1])?]);
    let before = read()?;
    let fault = arm(&lab, "delay 100ms --proto udp")?;
    Flood { size: 64, offered: OFFERED, time: TIME }.run(lab.outward(Family::V4))?;
    // What came into a socket that is full, or closed by then, came as well.
    let counted = || {
        let [near, far] = read()?;
        Ok::<_, Failure>((
            near.since(&before[0]).get("UdpOutDatagrams"),
            far.since(&before[1]).get("IpInDelivers"),
        ))
    };
    let deadline = Instant::now() + Duration::from_secs(2);
    let (sent, came) = loop {
        let (sent, came) = counted()?;
        if came == sent || Instant::now() > deadline {
            break (sent, came);
        }
        thread::sleep(Duration::from_millis(5));
    };
    println!("{} packets a second", sent / TIME.as_secs().cast_signed());
    let summary = end(&fault)?;
    ensure!(sent > 0 && came == sent, "{came} of {sent} came: {summary}");
    ensure!(count(&summary, "effects/delayed")? == sent.cast_unsigned(), "{sent} sent: {summary}");
    ensure!(count(&summary, "queue_lost")? == 0, "{summary}");
    // Said up front, and nothing is begun.
    let refused = Faultline::run(&["net", "rate", "10gbit", "delay", "60s", "--dev", "lo"])?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("1000000 can wait"), "{refused:?}");
    Ok(())
}

/// Whatever makes packets wait is refused with the module it needs, and nothing is left of the attempt.
pub(super) fn no_fq() -> Result {
    let lab = lab()?;
    let netns = lab.near.path();
    let namespaces = [&lab.near];
    let before = Inventory::settled(&namespaces)?;
    for fault in ["delay 10ms", "rate 1mbit", "loss 1% delay 1ms 1ms"] {
        let words = fault.split(' ').chain(["--dev", NEAR_DEVICE, "--netns"]);
        let words: Vec<&str> = ["net"].into_iter().chain(words).collect();
        let refused = Faultline::run(&[&words[..], &[&netns.to_string_lossy()]].concat())?;
        ensure!(refused.code == Some(3) && refused.stderr.contains("sch_fq"), "{fault}: {refused:?}");
        // So does the plan of it.
        let planned = Faultline::run(&[&words[..], &[&netns.to_string_lossy(), "--plan"]].concat())?;
        ensure!(
            planned.code == Some(3) && planned.stdout.contains("not here: sch_fq"),
            "{fault}: {planned:?}"
        );
        before.wait_until_equal(&namespaces, Duration::from_secs(2))?;
    }
    Ok(())
}
