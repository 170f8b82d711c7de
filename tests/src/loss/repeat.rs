//! A run can be repeated: the seed decides which packets are lost.

use chaos_ebpf::decide::{fires, random, random_start};

use super::{PATIENCE, PORT, Way, all_arrive, arm, end, first_cpu, lab};
use crate::{ensure, error::Result, lab::Family, traffic::Udp};

const PACKETS: u32 = 20_000;
const ASKED: f64 = 0.3;

/// The lost packets are not only the same in two runs, they are those that the generator picks when it is run
/// here. So nothing is left to chance.
pub(super) fn same_seed() -> Result {
    let lab = lab()?;
    let (cpu, _pin) = first_cpu()?;
    // Rule 0 acts on what is received, by XDP, and rule 1 on what is sent, by tc.
    let mut flows = Vec::new();
    for way in Way::BOTH {
        flows.push(Udp::open(way.route(&lab, Family::V4), 4000, PORT)?);
    }
    let mut aside = Udp::open(lab.aside(Family::V4)?, 4000, PORT)?;
    let faults = Way::BOTH.map(|way| format!("loss 30% --direction {} --proto udp", way.name()));
    let mut runs = Vec::new();
    for seed in [7, 7, 8] {
        flows.iter_mut().try_for_each(|flow| all_arrive("before", flow, 1000))?;
        let faultline = arm(&lab, seed, &faults)?;
        let mut lost = Vec::new();
        for flow in &mut flows {
            lost.push(flow.burst(PACKETS, PATIENCE)?.received[0].missing());
        }
        all_arrive("bystander", &mut aside, 1000)?;
        let rules = end(&faultline)?;
        for ((way, lost), (rule, number)) in Way::BOTH.iter().zip(&lost).zip(rules.iter().zip(0..)) {
            ensure!(rule.fired.packets == lost.len() as u64, "{way:?}: {} lost, {rule:?}", lost.len());
            ensure!(*lost == predicted(seed, number, cpu as u32), "{way:?}: not what seed {seed} picks");
        }
        runs.push(lost);
    }
    flows.iter_mut().try_for_each(|flow| all_arrive("after", flow, 1000))?;
    ensure!(runs[0] == runs[1], "two runs with seed 7 lost different packets");
    for (way, (one, other)) in Way::BOTH.iter().zip(runs[1].iter().zip(&runs[2])) {
        ensure!(one != other, "{way:?}: seeds 7 and 8 lost the same packets");
    }
    ensure!(runs[0][0] != runs[0][1], "both rules lost the same packets");
    Ok(())
}

fn predicted(seed: u64, rule: u32, cpu: u32) -> Vec<u32> {
    let threshold = (ASKED * 4_294_967_296.0).round() as u32;
    let mut state = random_start(seed, rule, cpu);
    (0..PACKETS).filter(|_| fires(threshold, random(&mut state))).collect()
}
