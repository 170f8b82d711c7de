//! What gets through a link to many peers, each with a delay of its own: by a profile, and by tc filters with a netem
//! class for each peer. To be run in a guest that has `sch_fq`, `sch_netem`, `sch_htb` and `cls_flower`.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use faultline_tests::{
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::heed_signals,
    lab::{Lab, NEAR_DEVICE, Netns},
    traffic::monotonic_ns,
};

/// So many peers have links of their own.
const OURS: [u32; 4] = [1, 1_000, 10_000, 65_536];
/// netem's classes are numbered with 16 bits, a few of which are taken.
const NETEM: [u32; 3] = [1, 1_000, 10_000];

/// Each number of peers is measured once in each round, so that what else the machine does hits all alike.
const ROUNDS: usize = 5;
const TIME: Duration = Duration::from_secs(3);
/// Left out of each: code that the emulator has not translated yet, and queues that are not filled yet.
const WARM_UP: Duration = Duration::from_millis(1300);
const PATIENCE: Duration = Duration::from_secs(120);

/// The first peer; the others follow.
const FIRST: u32 = 10 << 24 | 128 << 16;

/// To whom the packets go.
#[derive(Clone, Copy, Debug)]
enum To {
    /// The last peer there is.
    One,
    /// All peers, in random order.
    All,
}

const BOTH: [To; 2] = [To::One, To::All];

/// Packets a second of each round, by whom they go to and by number of peers.
type Rates = [Vec<Vec<f64>>; 2];

fn main() -> Result {
    heed_signals();
    println!("{ROUNDS} rounds of {TIME:?} each; packets of 64 bytes, as many as one thread can send");
    let profiles = OURS.into_iter().map(Ours::new).collect::<Result<Vec<_>>>()?;
    let netems = NETEM.into_iter().map(netem).collect::<Result<Vec<_>>>()?;
    let mut ours: Rates = BOTH.map(|_| vec![Vec::new(); OURS.len()]);
    let mut theirs: Rates = BOTH.map(|_| vec![Vec::new(); NETEM.len()]);
    let mut set_up = [Duration::MAX; OURS.len()];
    for round in 1..=ROUNDS {
        for (place, profile) in profiles.iter().enumerate() {
            let (rates, took) = profile.measure()?;
            for to in BOTH {
                ours[to as usize][place].push(rates[to as usize]);
            }
            set_up[place] = set_up[place].min(took);
        }
        for (place, (lab, _)) in netems.iter().enumerate() {
            for to in BOTH {
                theirs[to as usize][place].push(throughput(lab, NETEM[place], to)?);
            }
        }
        // Emulators crash; what is known by then is not lost.
        println!("round {round}: {:?}, {:?} packets a second", last(&ours), last(&theirs));
    }
    println!(
        "{:<36} {:>11} {:>26} {:>32}",
        "LINKS", "SET UP", "PACKETS/S TO ONE PEER", "TO ALL OF THEM, RANDOMLY"
    );
    for (place, count) in OURS.into_iter().enumerate() {
        print(&format!("faultline --profile, {count} peers"), set_up[place], &ours, place);
    }
    for (place, count) in NETEM.into_iter().enumerate() {
        print(&format!("tc flower, htb and netem, {count} peers"), netems[place].1, &theirs, place);
    }
    Ok(())
}

fn last(rates: &Rates) -> [Vec<u64>; 2] {
    let of = |rates: &Vec<f64>| rates.last().map(|rate| *rate as u64);
    rates.each_ref().map(|rates| rates.iter().filter_map(of).collect())
}

fn print(what: &str, set_up: Duration, rates: &Rates, place: usize) {
    let [one, all] = rates.each_ref().map(|rates| beside_one(rates, place));
    println!("{what:<36} {:>8} ms {one:>26} {all:>32}", set_up.as_millis());
}

/// The mean, and that of the ratios of each round to the one with a single peer, with the half width of its interval
/// (Student's t).
fn beside_one(rates: &[Vec<f64>], place: usize) -> String {
    /// For four degrees of freedom.
    const T: f64 = 2.776;
    let ratios: Vec<f64> = rates[place].iter().zip(&rates[0]).map(|(rate, one)| rate / one * 100.0).collect();
    let mean = |numbers: &[f64]| numbers.iter().sum::<f64>() / numbers.len() as f64;
    let middle = mean(&ratios);
    let squares: f64 = ratios.iter().map(|ratio| (ratio - middle).powi(2)).sum();
    let count = ratios.len() as f64;
    let half = T * (squares / (count - 1.0) / count).sqrt();
    format!("{:.0}, {middle:.0} % ± {half:.0}", mean(&rates[place]))
}

/// A wire whose far end takes whatever comes, and answers nothing.
fn lab() -> Result<Lab> {
    let lab = Lab::new()?;
    tool(&lab.near, "ip", &["route", "add", "10.128.0.0/15", "via", "10.77.0.2"], "")?;
    tool(&lab.far, "ip", &["route", "add", "blackhole", "10.128.0.0/15"], "")?;
    Ok(lab)
}

/// A network and a profile for it.
struct Ours {
    lab: Lab,
    count: u32,
    file: String,
}

impl Ours {
    fn new(count: u32) -> Result<Self> {
        let file = std::env::temp_dir().join(format!("fl-peers-{count}")).to_string_lossy().into_owned();
        let mut text = String::new();
        for peer in 0..count {
            writeln!(text, "{} delay {}us", Ipv4Addr::from(FIRST + peer), delay(peer)).context("a line")?;
        }
        fs::write(&file, text).context(&file)?;
        Ok(Self { lab: lab()?, count, file })
    }

    fn measure(&self) -> Result<([f64; 2], Duration)> {
        let begin = Instant::now();
        let fault =
            Faultline::start_in(&self.lab.near, &["net", "--profile", &self.file, "--dev", NEAR_DEVICE])?;
        fault.wait_event("armed", PATIENCE)?;
        let took = begin.elapsed();
        let rates =
            [throughput(&self.lab, self.count, To::One)?, throughput(&self.lab, self.count, To::All)?];
        let exit = fault.interrupt()?;
        ensure!(exit.code == Some(130), "{exit:?}");
        let delayed = exit.event("summary")?.json.pointer("/rules/0/effects/delayed").cloned();
        let least = rates[0] * TIME.as_secs_f64() / 2.0;
        ensure!(
            delayed.as_ref().and_then(serde_json::Value::as_f64).is_some_and(|it| it > least),
            "{delayed:?}"
        );
        Ok((rates, took))
    }
}

/// Microseconds: the same for so many peers each.
fn delay(peer: u32) -> u32 {
    1000 + peer % 4000
}

/// A network with a class and a filter for each peer, and how long these took.
fn netem(count: u32) -> Result<(Lab, Duration)> {
    let lab = lab()?;
    let device = format!("dev {NEAR_DEVICE}");
    let mut text = format!(
        "qdisc add {device} root handle 1: htb\nclass add {device} parent 1: classid 1:1 htb rate 100gbit\n"
    );
    text += &format!("qdisc add {device} parent 1:1 netem delay 0\n");
    for peer in 0..count {
        let class = peer + 2;
        writeln!(text, "class add {device} parent 1: classid 1:{class:x} htb rate 100gbit quantum 60000")
            .context("a line")?;
        writeln!(text, "qdisc add {device} parent 1:{class:x} netem delay {}us", delay(peer))
            .context("a line")?;
        let address = Ipv4Addr::from(FIRST + peer);
        writeln!(
            text,
            "filter add {device} parent 1: protocol ip prio 1 flower dst_ip {address} classid 1:{class:x}"
        )
        .context("a line")?;
    }
    let begin = Instant::now();
    tool(&lab.near, "tc", &["-batch", "-"], &text)?;
    Ok((lab, begin.elapsed()))
}

/// Runs a command in a network namespace.
fn tool(netns: &Netns, name: &str, words: &[&str], input: &str) -> Result {
    let run = || {
        let mut command = Command::new(name);
        command.args(words).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context(name)?;
        // Dropped when written, which is the end of its input.
        child.stdin.take().context("no input")?.write_all(input.as_bytes()).context(name)?;
        child.wait_with_output().context(name)
    };
    let output = netns.run(run)?;
    ensure!(output.status.success(), "{name} {words:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Packets a second that leave by the wire.
fn throughput(lab: &Lab, count: u32, to: To) -> Result<f64> {
    let socket = lab.near.run(|| UdpSocket::bind("10.77.0.1:0").context("bind"))?;
    let start = monotonic_ns();
    let (warm, end) = (start + WARM_UP.as_nanos() as u64, start + TIME.as_nanos() as u64);
    let (mut random, mut begun) = (1_u64, None);
    loop {
        for _ in 0..32 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let peer = match to {
                To::One => u64::from(count - 1),
                To::All => ((random >> 32) * u64::from(count)) >> 32,
            };
            let address = SocketAddrV4::new(Ipv4Addr::from(FIRST + peer as u32), 9);
            // One for which there is no room was offered as well.
            let _ = socket.send_to(&[0; 22], address);
        }
        let now = monotonic_ns();
        if begun.is_none() && now >= warm {
            begun = Some((now, sent(lab)?));
        }
        if let Some((since, before)) = begun.filter(|_| now >= end) {
            return Ok((sent(lab)? - before) as f64 * 1e9 / (monotonic_ns() - since) as f64);
        }
    }
}

/// Packets that have left by the wire, behind whatever they waited in.
fn sent(lab: &Lab) -> Result<u64> {
    let text = lab.near.run(|| fs::read_to_string("/proc/thread-self/net/dev").context("/proc/net/dev"))?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix(NEAR_DEVICE)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().nth(9)?.parse().ok());
    number.context("no such interface in /proc/net/dev")
}
