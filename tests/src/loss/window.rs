//! `--skip`, `--first` and `--every` pick packets by their order.

use super::{BYSTANDER_PORT, PATIENCE, PORT, SEED, Way, all_arrive, arm, end, lab};
use crate::{ensure, error::Result, lab::Family, traffic::Udp};

const PACKETS: u32 = 300;

/// Options, and whether the packet of this number is lost.
type Row = (&'static str, fn(u32) -> bool);

const ROWS: &[Row] = &[
    ("--skip 10", |n| n >= 10),
    ("--first 20", |n| n < 20),
    ("--every 3", |n| n % 3 == 2),
    ("--skip 5 --first 1", |n| n == 5),
    // Of numbers 5 to 14 the fourth and the eighth.
    ("--skip 5 --first 10 --every 4", |n| n == 8 || n == 12),
    ("--first 6 --every 7", |_| false),
];

/// Nothing is left to chance here.
pub(super) fn rows() -> Result {
    let lab = lab()?;
    let mut flows = Vec::new();
    for way in Way::BOTH {
        let route = way.route(&lab, Family::V6);
        flows.push((way, Udp::open(route, 4000, PORT)?, Udp::open(route, 4001, BYSTANDER_PORT)?));
    }
    for (options, is_lost) in ROWS {
        for (way, flow, _) in &mut flows {
            all_arrive(&format!("before {options}, {way:?}"), flow, PACKETS)?;
        }
        let faults =
            Way::BOTH.map(|way| format!("loss 100% --direction {} --port {PORT} {options}", way.name()));
        let faultline = arm(&lab, SEED, &faults)?;
        let mut lost = Vec::new();
        for (way, flow, bystander) in &mut flows {
            // Packets of others do not count.
            all_arrive(&format!("{options}: bystander {way:?}"), bystander, 50)?;
            lost.push(flow.burst(PACKETS, PATIENCE)?.received[0].missing());
        }
        let rules = end(&faultline)?;
        let expected: Vec<u32> = (0..PACKETS).filter(|n| is_lost(*n)).collect();
        for ((way, lost), rule) in Way::BOTH.iter().zip(&lost).zip(&rules) {
            ensure!(*lost == expected, "{options}, {way:?}: lost {lost:?}, not {expected:?}");
            let counted = (rule.matched.packets, rule.fired.packets);
            let right = (u64::from(PACKETS), expected.len() as u64);
            ensure!(counted == right, "{options}, {way:?}: matched, fired {counted:?}, not {right:?}");
        }
    }
    for (way, flow, _) in &mut flows {
        all_arrive(&format!("after, {way:?}"), flow, PACKETS)?;
    }
    Ok(())
}
