//! Whether a rule fires: random numbers, thresholds and the order of packets.

use crate::{
    abi::{Bursts, Chance, Control, Delay, Direction, Rate, Window},
    packet::Headers,
};

/// Whether the owner's lease holds at `now`.
#[inline(always)]
#[must_use]
pub fn armed(control: &Control, now: u64) -> bool {
    control.not_before <= now && now < control.lease_until
}

/// The state with which rule `rule` begins on CPU `cpu` in a run seeded with `seed`.
///
/// `SplitMix64` (Steele, Lea, Flood, OOPSLA 2014), the usual way to spread one seed over many generators.
#[must_use]
pub fn random_start(seed: u64, rule: u32, cpu: u32) -> u64 {
    let stream = (u64::from(rule) << 32 | u64::from(cpu)).wrapping_add(1);
    let mut z = seed.wrapping_add(stream.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Steps `state` and returns the next 32 random bits.
///
/// PCG-XSH-RR 64/32 (O'Neill 2014): one multiplication, and good in all its bits.
#[inline(always)]
#[must_use]
pub fn random(state: &mut u64) -> u32 {
    let old = *state;
    *state = old.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let shifted = (((old >> 18) ^ old) >> 27) as u32;
    shifted.rotate_right((old >> 59) as u32)
}

/// The threshold that always fires.
pub const ALWAYS: u32 = u32::MAX;

/// Whether a rule of this threshold fires on these 32 random bits: with probability `threshold / 2^32`, and
/// surely at [`ALWAYS`].
#[inline(always)]
#[must_use]
pub fn fires(threshold: u32, random: u32) -> bool {
    threshold == ALWAYS || random < threshold
}

/// Whether the packet that `before` packets of this rule came before lies in its window.
#[inline(always)]
#[must_use]
pub fn in_window(window: &Window, before: u64) -> bool {
    if before < window.skip {
        return false;
    }
    let place = before - window.skip;
    // Not `%`: its check for zero would leave a panic in the program.
    place < window.first && (place + 1).checked_rem(window.every) == Some(0)
}

/// How many of a rule's first `matched` packets lay in its window: those it could act on.
#[must_use]
pub fn eligible(window: &Window, matched: u64) -> u64 {
    let within = matched.saturating_sub(window.skip).min(window.first);
    within.checked_div(window.every).unwrap_or(0)
}

/// Whether a packet meets this fate: with the chance of the correlation it meets that of the packet before, else
/// one of its own. So the rate is the threshold's whatever the correlation, which is that of each packet with the
/// next; netem's, which mixes random numbers, changes the rate.
///
/// `last` holds the fates of the packet before, `bit` among them.
#[inline(always)]
#[must_use]
pub fn meets(chance: &Chance, bit: u32, last: &mut u32, state: &mut u64) -> bool {
    if chance.correlation != 0 && fires(chance.correlation, random(state)) {
        return *last & bit != 0;
    }
    let met = fires(chance.threshold, random(state));
    if met {
        *last |= bit;
    } else {
        *last &= !bit;
    }
    met
}

/// Whether a packet is lost in the Gilbert-Elliott model: the state it finds decides, and then may change.
///
/// Gilbert, Bell System Technical Journal 39 (1960), and Elliott, 42 (1963); the parameters are netem's.
#[inline(always)]
#[must_use]
pub fn lost_in_burst(model: &Bursts, bad: &mut u32, state: &mut u64) -> bool {
    let (loss, leave) =
        if *bad != 0 { (model.bad_loss, model.to_good) } else { (model.good_loss, model.to_bad) };
    let lost = fires(loss, random(state));
    if fires(leave, random(state)) {
        *bad ^= 1;
    }
    lost
}

/// 32 bits that are the same for all packets of a flow, either way.
#[inline(always)]
#[must_use]
pub fn flow(headers: &Headers, direction: Direction) -> u32 {
    let (remote, local, ports) = match direction {
        Direction::In => {
            (&headers.source, &headers.destination, (headers.source_port, headers.destination_port))
        }
        Direction::Out | Direction::Connect | Direction::Call => {
            (&headers.destination, &headers.source, (headers.destination_port, headers.source_port))
        }
    };
    let mut hash = mix(0, u32::from(headers.protocol));
    hash = mix(hash, u32::from(ports.0) << 16 | u32::from(ports.1));
    hash = mix(hash, remote[0]);
    hash = mix(hash, remote[1]);
    hash = mix(hash, remote[2]);
    hash = mix(hash, remote[3]);
    hash = mix(hash, local[0]);
    hash = mix(hash, local[1]);
    hash = mix(hash, local[2]);
    hash = mix(hash, local[3]);
    finished(hash)
}

/// The same 32 bits for each packet of a flow, others for each seed.
#[inline(always)]
#[must_use]
pub fn of_flow(flow: u32, seed: u32) -> u32 {
    finished(mix(seed, flow))
}

/// The finalizer of MurmurHash3 (Appleby, public domain), as `mix` its body.
#[inline(always)]
fn finished(mut hash: u32) -> u32 {
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

#[inline(always)]
fn mix(hash: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

/// A deviation of the uniform distribution: 32 random bits spread from `-jitter` to `jitter` nanoseconds.
#[inline(always)]
#[must_use]
pub fn uniform(jitter: u64, random: u32) -> i64 {
    // 26 bits of it, so that the product has room: 2^37 nanoseconds in steps of 2^-26.
    ((u64::from(random >> 6) * (2 * jitter)) >> 26).cast_signed() - jitter.cast_signed()
}

/// What an entry of a distribution stands for, in nanoseconds.
#[inline(always)]
#[must_use]
pub fn scaled(jitter: u64, entry: i32) -> i64 {
    (jitter.cast_signed() * i64::from(entry)) >> 13
}

/// When a packet that comes at `start` arrives, with this deviation.
#[inline(always)]
#[must_use]
pub fn delayed(delay: &Delay, start: u64, deviation: i64) -> u64 {
    let time = delay.time.cast_signed() + deviation;
    if time > 0 { start + time.cast_unsigned() } else { start }
}

/// When a wire that was busy until `busy` has sent so many bytes that come at `start`; `None` if more waits before
/// it than the limit says. The generic cell rate algorithm, in virtual scheduling (ITU-T I.371).
#[inline(always)]
#[must_use]
pub fn sent(rate: &Rate, busy: u64, start: u64, bytes: u64) -> Option<u64> {
    let earliest = start.saturating_sub(rate.burst);
    let from = if busy > earliest { busy } else { earliest };
    if from > start + rate.limit {
        return None;
    }
    Some(from + ((bytes * rate.byte_time) >> 20))
}

/// The mean lateness after one more packet that was so late, in nanoseconds: of the last 32 or so, with a packet that
/// was held up for long, by whatever, counted as a little late.
#[inline(always)]
#[must_use]
pub fn lateness(mean: u64, late: u64) -> u64 {
    let most = 2 * mean + 20_000;
    let late = if late < most { late } else { most };
    mean - mean / 32 + late / 32
}

/// The bytes a packet takes on a wire with this overhead.
#[inline(always)]
#[must_use]
pub fn wire_length(rate: &Rate, bytes: u64, segments: u32) -> u64 {
    let length = bytes.cast_signed() + i64::from(rate.overhead) * i64::from(segments);
    if length > 0 { length.cast_unsigned() } else { 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_lease_is_half_open() {
        let control = Control { epoch: 1, not_before: 10, lease_until: 20 };
        assert_eq!([9, 10, 19, 20].map(|now| armed(&control, now)), [false, true, true, false]);
        assert!(!armed(&Control::default(), 0));
    }

    #[test]
    fn thresholds_at_the_ends() {
        assert!(!fires(0, 0));
        assert!(fires(1, 0) && !fires(1, 1));
        assert!(fires(ALWAYS, u32::MAX));
    }

    /// 2^20 draws at each rate; |observed - asked| within 4.9 standard deviations, which a fair generator
    /// leaves once in a million. The seed is fixed: this passes always or never.
    #[test]
    fn rates_come_out_as_asked() {
        const DRAWS: u32 = 1 << 20;
        for (rule, asked) in [0.0001, 0.001, 0.01, 0.3, 0.5, 0.99].into_iter().enumerate() {
            let threshold = (asked * 4_294_967_296.0) as u32;
            let mut state = random_start(42, rule as u32, 0);
            let fired = (0..DRAWS).filter(|_| fires(threshold, random(&mut state))).count() as f64;
            let deviation = (f64::from(DRAWS) * asked * (1.0 - asked)).sqrt();
            assert!((fired - f64::from(DRAWS) * asked).abs() < 4.9 * deviation, "{asked}: {fired}");
        }
    }

    #[test]
    fn streams_differ_and_repeat() {
        let draw = |seed, rule, cpu| {
            let mut state = random_start(seed, rule, cpu);
            core::array::from_fn::<u32, 8, _>(|_| random(&mut state))
        };
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        for other in [draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4), draw(1, 3, 2)] {
            assert_ne!(draw(1, 2, 3), other);
        }
    }

    /// Observed rates of events and of pairs of them, over 2^20 packets. Errors of correlated events are larger than
    /// of independent ones by sqrt((1+c)/(1-c)); 4.9 of these standard deviations are left once in a million runs,
    /// and the seed is fixed.
    #[test]
    fn correlation_leaves_the_rate() {
        const PACKETS: u32 = 1 << 20;
        for (rate, correlation) in [(0.01, 0.25), (0.3, 0.5), (0.3, 0.9), (0.5, 0.0)] {
            let threshold = |chance: f64| (chance * 4_294_967_296.0) as u32;
            let chance = Chance { threshold: threshold(rate), correlation: threshold(correlation) };
            let (mut last, mut state) = (0, random_start(7, 0, 0));
            let fates: Vec<bool> = (0..PACKETS).map(|_| meets(&chance, 4, &mut last, &mut state)).collect();
            let count = fates.iter().filter(|met| **met).count() as f64;
            let pairs = fates.windows(2).filter(|pair| pair[0] && pair[1]).count() as f64;
            let n = f64::from(PACKETS);
            let wide = ((1.0 + correlation) / (1.0 - correlation)).sqrt();
            let deviation = (n * rate * (1.0 - rate)).sqrt() * wide;
            assert!((count - n * rate).abs() < 4.9 * deviation, "{rate} {correlation}: {count}");
            // P(both) = p (p + c (1 - p)); the lag-1 autocorrelation is c.
            let observed = (pairs / n - (count / n).powi(2)) / (count / n * (1.0 - count / n));
            assert!((observed - correlation).abs() < 0.02, "{rate} {correlation}: {observed}");
        }
    }

    /// The long-run rate and the mean length of bursts, which is 1/r where all is lost in the bad state.
    #[test]
    fn bursts_are_gilberts() {
        const PACKETS: u32 = 1 << 20;
        let threshold = |chance: f64| (chance * 4_294_967_296.0) as u32;
        let model =
            Bursts { to_bad: threshold(0.01), to_good: threshold(0.2), bad_loss: ALWAYS, good_loss: 0 };
        let (mut bad, mut state) = (0, random_start(8, 0, 0));
        let fates: Vec<bool> = (0..PACKETS).map(|_| lost_in_burst(&model, &mut bad, &mut state)).collect();
        let lost = fates.iter().filter(|lost| **lost).count() as f64;
        let bursts = fates.windows(2).filter(|pair| !pair[0] && pair[1]).count() as f64;
        assert!((lost / f64::from(PACKETS) - 0.01 / 0.21).abs() < 0.002, "{lost}");
        assert!((lost / bursts - 5.0).abs() < 0.15, "{}", lost / bursts);
    }

    #[test]
    fn a_flow_is_one_both_ways() {
        let there = Headers {
            protocol: 6,
            source: [1, 0, 0, 0],
            destination: [2, 0, 0, 0],
            source_port: 1000,
            destination_port: 80,
            ..Headers::NONE
        };
        let back = Headers {
            source: there.destination,
            destination: there.source,
            source_port: 80,
            destination_port: 1000,
            ..there
        };
        assert_eq!(flow(&there, Direction::Out), flow(&back, Direction::In));
        let one = flow(&there, Direction::Out);
        assert_ne!(of_flow(one, 5), of_flow(one, 6));
        // 30 % of flows: 4.9 standard deviations.
        let flows =
            (0..1 << 16).map(|port| flow(&Headers { source_port: port as u16, ..there }, Direction::Out));
        let fired = flows.filter(|flow| fires(1_288_490_189, of_flow(*flow, 5))).count() as f64;
        assert!((fired - 19_660.8).abs() < 4.9 * 117.3, "{fired}");
    }

    #[test]
    fn a_wire_takes_its_time() {
        // 8 Mbit/s: a microsecond a byte.
        let rate = Rate { byte_time: 1000 << 20, burst: 0, limit: 1_000_000, overhead: 0, pad: 0 };
        assert_eq!(sent(&rate, 0, 5_000, 100), Some(105_000));
        assert_eq!(sent(&rate, 105_000, 5_000, 100), Some(205_000));
        assert_eq!(sent(&rate, 1_005_001, 5_000, 100), None, "more than a millisecond waits");
        let bursty = Rate { burst: 50_000, ..rate };
        assert_eq!(sent(&bursty, 0, 100_000, 40), Some(90_000), "within the burst it goes at once");
        assert_eq!(wire_length(&Rate { overhead: -14, ..rate }, 100, 2), 72);
        assert_eq!(wire_length(&Rate { overhead: -200, ..rate }, 100, 1), 0);
    }

    #[test]
    fn deviations() {
        assert_eq!((uniform(1000, 0), uniform(1000, u32::MAX)), (-1000, 999));
        assert_eq!((scaled(1000, 8192), scaled(1000, -4096)), (1000, -500));
        let delay = Delay { time: 100, ..Delay::default() };
        assert_eq!((delayed(&delay, 7, -50), delayed(&delay, 7, -200)), (57, 7));
    }

    proptest! {
        /// No number that user space lets through overflows.
        #[test]
        fn nothing_overflows(jitter in 0..1u64 << 36, random: u32, entry in -32768..32767i32, rate in 100..1_000_000_000_000u64, bytes in 0..65_536u64, now in 0..1u64 << 60) {
            let _ = (uniform(jitter, random), scaled(jitter, entry));
            let byte_time = ((8_000_000_000_u128 << 20) / u128::from(rate)) as u64;
            let wire = Rate { byte_time, burst: 0, limit: u64::MAX >> 1, overhead: 1000, pad: 0 };
            let _ = sent(&wire, now, now, wire_length(&wire, bytes, 64));
        }

        /// The mean follows what it is of.
        #[test]
        fn lateness_settles(late in 0..200_000u64) {
            let mean = (0..1000).fold(0, |mean, _| lateness(mean, late));
            prop_assert!(mean <= late && late - mean <= 64 + late / 50, "{mean} of {late}");
        }

        /// Against the definition, packet by packet.
        #[test]
        fn windows(skip in 0u64..20, first in 0u64..40, every in 1u64..9, length in 0u64..100) {
            let window = Window { skip, first, every };
            let after_skip = (0..length).filter(|n| *n >= skip);
            let expected: Vec<u64> = after_skip.take(first as usize).enumerate()
                .filter(|(place, _)| (place + 1) % every as usize == 0).map(|(_, n)| n).collect();
            let found: Vec<u64> = (0..length).filter(|n| in_window(&window, *n)).collect();
            prop_assert_eq!(eligible(&window, length), found.len() as u64);
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn no_window_overflows(skip: u64, first: u64, every in 1u64.., before in 0..u64::MAX - 1) {
            let _ = in_window(&Window { skip, first, every }, before);
            prop_assert!(in_window(&Window::ALL, before));
        }
    }
}
