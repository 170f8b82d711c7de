//! Selectors: which packets are hit and which are spared. Nothing is left to chance here.

use super::{PORT, SEED, Way, all_arrive, arm, end, frame, lab};
use crate::{
    ensure,
    error::Result,
    faultline::RuleCounters,
    lab::{Family, Lab},
    traffic::{Frames, Udp},
};

/// What is sent, in both directions, each packet with a letter.
const PACKETS: &[(char, &str)] = &[
    ('a', "udp 10.1.0.1 1000 10.2.0.1 80"),
    ('b', "udp 10.1.0.1 1000 10.2.0.2 80"),
    ('c', "udp 10.1.0.1 1000 10.2.9.1 81"),
    ('d', "udp 10.1.0.9 1001 10.3.0.1 8079"),
    ('e', "tcp 10.1.0.1 1000 10.2.0.1 80"),
    ('f', "tcp 10.1.0.1 2000 10.2.0.1 8080"),
    ('g', "tcp fd01::1 1000 fd02::1 80"),
    ('h', "udp fd01::1 2000 fd02::2 8089"),
    ('i', "udp fd01::9 1001 fd02:0:1::1 80"),
    ('j', "icmp 10.1.0.1 10.2.0.1"),
    ('k', "icmp fd01::1 fd02::1"),
    ('l', "132 10.1.0.1 1000 10.2.0.1 80"),
    ('m', "47 10.1.0.1 10.2.0.1"),
    ('n', "arp"),
];

/// Selectors, and the letters of the packets they hit.
const ROWS: &[(&str, &str)] = &[
    ("", "abcdefghijklmn"),
    ("--to 10.2.0.1", "aefjlm"),
    ("--to 10.2.0.1 --to fd02::1", "aefjlmgk"),
    ("--to 10.2.0.0/24", "abefjlm"),
    ("--to 10.2.0.0/24 --to 10.3.0.1 --to fd02::/48", "abefjlmdghk"),
    ("--to 10.0.0.0/8", "abcdefjlm"),
    ("--to 0.0.0.0/0", "abcdefjlm"),
    ("--to ::/0", "ghik"),
    ("--to 10.9.0.0/16", ""),
    ("--from 10.1.0.9", "d"),
    ("--from 10.1.0.0/29", "abcefjlm"),
    ("--from fd01::1", "ghk"),
    ("--from fd01::/64", "ghik"),
    ("--port 80", "abegil"),
    ("--port 81 --port 8080-8089", "cfh"),
    ("--port 0-65535", "abcdefghil"),
    ("--sport 1001", "di"),
    ("--sport 1001-2000", "dfhi"),
    ("--proto tcp", "efg"),
    ("--proto udp", "abcdhi"),
    ("--proto icmp", "jk"),
    ("--proto 132", "l"),
    ("--proto 47 --proto tcp", "efgm"),
    ("--from 10.1.0.1 --to 10.2.0.1 --sport 1000 --port 80 --proto udp", "a"),
    ("--from fd01::/64 --to fd02::/16 --sport 1000-1001 --port 80", "gi"),
    ("--to 10.2.0.1 --to fd02::1 --proto icmp --proto tcp", "efgjk"),
];

/// The wire both ways, and real traffic that no rule names.
struct Wire {
    ways: [(Way, Frames); 2],
    bystander: Udp,
    frames: Vec<Vec<u8>>,
}

impl Wire {
    fn open(lab: &Lab) -> Result<Self> {
        let [received, sent] = Way::BOTH;
        let ways = [(received, frame::open(lab, received)?), (sent, frame::open(lab, sent)?)];
        let frames = PACKETS.iter().map(|(_, text)| frame::written(text)).collect::<Result<_>>()?;
        Ok(Self { ways, bystander: Udp::open(lab.aside(Family::V4)?, 4000, PORT)?, frames })
    }

    /// The letters of the packets that do not come out, for each way.
    fn lost(&mut self) -> Result<[String; 2]> {
        all_arrive("bystander", &mut self.bystander, 10)?;
        let mut lost = [String::new(), String::new()];
        for ((_, wire), lost) in self.ways.iter_mut().zip(&mut lost) {
            let came = wire.send(&self.frames)?;
            let hit = PACKETS.iter().zip(came).filter(|(_, came)| *came == 0);
            *lost = hit.map(|((letter, _), _)| *letter).collect();
        }
        Ok(lost)
    }

    fn calm(&mut self, when: &str) -> Result {
        let lost = self.lost()?;
        ensure!(lost.iter().all(String::is_empty), "{when}: lost {lost:?}");
        Ok(())
    }
}

/// Each row alone at 100 %, in both directions at once.
pub(super) fn rows() -> Result {
    let lab = lab()?;
    let mut wire = Wire::open(&lab)?;
    for (options, hit) in ROWS {
        wire.calm(&format!("before {options:?}"))?;
        let faults = Way::BOTH.map(|way| format!("loss 100% --direction {} {options}", way.name()));
        let faultline = arm(&lab, SEED, &faults)?;
        let lost = wire.lost()?;
        let rules = end(&faultline)?;
        let mut hit: Vec<char> = hit.chars().collect();
        hit.sort_unstable();
        let hit: String = hit.into_iter().collect();
        for ((way, lost), rule) in Way::BOTH.iter().zip(lost).zip(&rules) {
            ensure!(lost == hit, "{options:?}, {way:?}: hit {lost:?}, not {hit:?}");
            let counted = [rule.seen, rule.matched, rule.fired].map(|count| count.packets);
            let right = [PACKETS.len() as u64, hit.len() as u64, hit.len() as u64];
            ensure!(counted == right, "{options:?}, {way:?}: counted {counted:?}, not {right:?}");
        }
    }
    wire.calm("after")
}

/// All rows as rules of one run, 64 in all, each counting for itself: packet *n* is sent 2^*n* times, so that a
/// rule's count says which packets matched it.
pub(super) fn all_at_once() -> Result {
    let lab = lab()?;
    let mut wire = Wire::open(&lab)?;
    wire.calm("before")?;
    let rows: Vec<&(&str, &str)> = ROWS.iter().cycle().take(32).collect();
    let faults: Vec<String> = Way::BOTH
        .iter()
        .flat_map(|way| rows.iter().map(move |(options, _)| (way, options)))
        .map(|(way, options)| format!("loss 0% --direction {} {options}", way.name()))
        .collect();
    let faultline = arm(&lab, SEED, &faults)?;
    let many: Vec<Vec<u8>> =
        (0..).zip(&wire.frames).flat_map(|(n, frame)| vec![frame.clone(); 1 << n]).collect();
    for (way, frames) in &mut wire.ways {
        let came = frames.send(&many)?;
        ensure!(came.iter().all(|came| *came == 1), "{way:?}: lost some at 0 %");
    }
    let rules = end(&faultline)?;
    ensure!(rules.len() == 64, "{} rules", rules.len());
    for (rule, (options, hit)) in rules.iter().zip(rows.iter().cycle()) {
        let matched = (0..).zip(PACKETS).filter(|(n, _)| rule.matched.packets >> n & 1 != 0);
        let found: String = matched.map(|(_, (letter, _))| *letter).collect();
        let same = found.len() == hit.len() && found.chars().all(|letter| hit.contains(letter));
        ensure!(same, "{options:?}, {}: matched {found:?}, not {hit:?}", rule.direction);
        ensure!(rule.fired.packets == 0, "{options:?}: fired at 0 %");
    }
    wire.calm("after")
}

/// Prefixes inside prefixes in rules of their own: each counts what it matches, whichever is the longest. A packet
/// that one rule has lost does not come to the next.
pub(super) fn nested() -> Result {
    let lab = lab()?;
    let mut wire = Wire::open(&lab)?;
    let lists: [(&[&str], [u64; 2], &str); 3] = [
        (
            &["0% --to 10.2.0.0/16", "0% --to 10.2.0.0/24", "100% --to 10.2.0.1", "100% --to 10.0.0.0/8"],
            [8, 0],
            "abcdefjlm",
        ),
        (&["0% --to fd02::/16", "0% --to fd02::/48", "100% --to fd02::1", "100% --port 8089"], [4, 0], "ghk"),
        (&["100% --to 10.2.0.0/16", "100% --to 10.2.0.1"], [8, 8], "abcefjlm"),
    ];
    let counts: [&[u64]; 3] = [&[8, 7, 6, 3], &[4, 3, 2, 1], &[8, 0]];
    for ((faults, first, hit), counts) in lists.iter().zip(counts) {
        wire.calm(&format!("before {faults:?}"))?;
        let written: Vec<String> = Way::BOTH
            .iter()
            .flat_map(|way| faults.iter().map(|fault| format!("loss {fault} --direction {}", way.name())))
            .collect();
        let faultline = arm(&lab, SEED, &written)?;
        let lost = wire.lost()?;
        let rules = end(&faultline)?;
        for ((way, lost), rules) in Way::BOTH.iter().zip(lost).zip(rules.chunks(faults.len())) {
            ensure!(lost == *hit, "{faults:?}, {way:?}: hit {lost:?}, not {hit:?}");
            let matched: Vec<u64> = rules.iter().map(|rule| rule.matched.packets).collect();
            ensure!(matched == counts, "{faults:?}, {way:?}: matched {matched:?}, not {counts:?}");
            let RuleCounters { matched, fired, .. } = &rules[0];
            let counted = [matched.packets, fired.packets];
            ensure!(
                counted == *first,
                "{faults:?}, {way:?}: rule 0 matched, fired {counted:?}, not {first:?}"
            );
        }
    }
    wire.calm("after")
}
