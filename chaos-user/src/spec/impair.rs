//! What is done to packets, in the words of `tc netem`: `loss 1% 25% delay 20ms 5ms distribution normal rate 10mbit`.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chaos_ebpf::abi::MAX_BITS;

use nix::errno::Errno;

use super::{
    Answer, Cut, Invalid, Percent, Profile, call::parse_errno, cut::CUTS, file::read_file, parse_count,
    ramp::Ramp, ramp::Ramped, units,
};

/// Longest delay, jitter included: fq's clock is asked for little more.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// All that is done to one packet, in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Impairments {
    /// Its connection is cut.
    pub cut: Option<Cut>,
    /// Whether it is done to DNS queries only.
    pub dns: bool,
    /// It is a DNS query, and is answered at once.
    pub answer: Option<Answer>,
    /// It is lost.
    pub loss: Option<Loss>,
    /// It comes twice.
    pub duplicate: Option<Chance>,
    /// Bits of it are flipped.
    pub corrupt: Option<Corrupt>,
    /// It does not wait, and overtakes others.
    pub reorder: Option<Reorder>,
    /// It is sent on a wire of this speed.
    pub rate: Option<Rate>,
    /// It comes later.
    pub delay: Option<Delay>,
    /// Values that change while it runs.
    pub ramps: Vec<Ramp>,
    /// What each peer's link is like; then it is all that is done.
    pub profile: Option<Arc<Profile>>,
}

/// A chance, and how much one packet's fate is that of the one before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chance {
    /// The chance.
    pub percent: Percent,
    /// The correlation.
    pub correlation: Percent,
}

/// Loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// By chance.
    Random(Chance),
    /// By chance, decided once for each flow.
    PerFlow(Percent),
    /// Gilbert-Elliott: p, r, 1-h, 1-k.
    Bursts([Percent; 4]),
}

/// Corruption.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Corrupt {
    /// The chance.
    pub chance: Chance,
    /// How many bits.
    pub bits: u32,
    /// From this byte behind the IP header on; anywhere there if it does not say.
    pub offset: Option<u32>,
    /// Whether the checksum is put right.
    pub fix_checksum: bool,
}

/// Reordering.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reorder {
    /// The chance.
    pub chance: Chance,
    /// Of how many packets the last may overtake the others.
    pub gap: u32,
}

/// Delay.
#[derive(Clone, Debug, PartialEq)]
pub struct Delay {
    /// How long.
    pub time: Duration,
    /// What the distribution is scaled by.
    pub jitter: Duration,
    /// How much one packet's delay is that of the one before.
    pub correlation: Percent,
    /// Of the delays.
    pub distribution: Distribution,
    /// Whether a packet with less of a jitter overtakes others.
    pub reorders: bool,
}

/// How delays are distributed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Distribution {
    /// Evenly, from the delay less the jitter to the delay plus the jitter.
    Uniform,
    /// Normal; the jitter is the standard deviation.
    Normal,
    /// Pareto.
    Pareto,
    /// A quarter normal and three quarters Pareto.
    ParetoNormal,
    /// From a file in netem's format: deviations in 1/8192 of the jitter.
    File(PathBuf, Vec<i16>),
}

/// A wire's speed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Bits per second.
    pub bits: u64,
    /// Bytes that may go at once after a pause.
    pub burst: u64,
    /// Bytes that every packet takes in addition.
    pub overhead: i32,
    /// How many full packets may wait.
    pub limit: u32,
}

/// What a word begins.
const FAULTS: &str =
    "loss, delay, rate, reorder, duplicate, corrupt, partition, blackhole, refuse, reset, timeout, dns";

/// What may follow `dns`.
const DNS: &str = "nxdomain, servfail, refused, empty, drop, delay";

/// The words of one fault after the other.
struct Words<'a> {
    rest: std::iter::Peekable<std::slice::Iter<'a, String>>,
    fault: &'a str,
}

impl<'a> Words<'a> {
    /// The next word, if it does not begin another fault or a named value.
    fn value(&mut self) -> Option<&'a str> {
        self.rest.next_if(|word| !is_name(word)).map(String::as_str)
    }

    /// The value after this name, if the name comes next.
    fn named(&mut self, name: &str, what: &str) -> Result<Option<&'a str>, Invalid> {
        if self.rest.next_if(|word| *word == name).is_none() {
            return Ok(None);
        }
        self.rest.next().map(|word| Some(word.as_str())).ok_or_else(|| self.missing(what))
    }

    fn missing(&self, what: &str) -> Invalid {
        Invalid::new(format!("<{what}> is required after {}", self.fault))
    }

    fn read<T>(
        &self,
        text: &str,
        what: &str,
        read: impl Fn(&str) -> Result<T, Invalid>,
    ) -> Result<T, Invalid> {
        read(text).map_err(|error| {
            Invalid::new(format!("invalid value '{text}' for '{} <{what}>': {error}", self.fault))
        })
    }

    /// The fault's first value, which may change while it runs.
    fn first<T: Ramped>(
        &mut self,
        what: &str,
        ramps: &mut Vec<Ramp>,
        read: impl Fn(&str) -> Result<T, Invalid>,
    ) -> Result<T, Invalid> {
        let text = self.value().ok_or_else(|| self.missing(what))?;
        let (ramp, value) = self.read(text, what, |text| match Ramp::parse(self.fault, text)? {
            Some((ramp, last)) => Ok((Some(ramp), read(last)?)),
            None => Ok((None, read(text)?)),
        })?;
        ramps.extend(ramp);
        Ok(value)
    }

    fn percent(&mut self, what: &str) -> Result<Option<Percent>, Invalid> {
        let Some(text) = self.value() else { return Ok(None) };
        self.read(text, what, str::parse).map(Some)
    }

    fn chance(&mut self, ramps: &mut Vec<Ramp>) -> Result<Chance, Invalid> {
        let percent = self.first("PERCENT", ramps, str::parse)?;
        Ok(Chance { percent, correlation: self.percent("CORRELATION")?.unwrap_or(Percent::NONE) })
    }
}

fn is_name(word: &str) -> bool {
    const NAMES: [&str; 10] =
        ["loss", "delay", "rate", "reorder", "duplicate", "corrupt", "gap", "distribution", "bits", "offset"];
    NAMES.contains(&word)
        || CUTS.contains(&word)
        || ["dns", "burst", "limit", "overhead", "random", "gemodel"].contains(&word)
}

impl Impairments {
    /// Reads netem's words.
    ///
    /// # Errors
    ///
    /// [`Invalid`], naming the fault.
    pub fn parse(words: &[String]) -> Result<Self, Invalid> {
        let mut all = Self::default();
        let mut words = Words { rest: words.iter().peekable(), fault: "net" };
        if words.rest.peek().is_none() {
            return Err(Invalid::new(format!("a fault is required: {FAULTS}; write loss 1%, say")));
        }
        if words.rest.next_if(|word| *word == "dns").is_some() {
            all.dns(&mut words)?;
        }
        while let Some(fault) = words.rest.next() {
            words.fault = fault;
            let twice = match fault.as_str() {
                "loss" => all.loss.replace(loss(&mut words, &mut all.ramps)?).is_some(),
                "duplicate" => all.duplicate.replace(words.chance(&mut all.ramps)?).is_some(),
                "corrupt" => all.corrupt.replace(corrupt(&mut words, &mut all.ramps)?).is_some(),
                "reorder" => all.reorder.replace(reorder(&mut words, &mut all.ramps)?).is_some(),
                "rate" => all.rate.replace(rate(&mut words, &mut all.ramps)?).is_some(),
                "partition" => all.cut.replace(Cut::Partition).is_some(),
                "blackhole" => all.cut.replace(Cut::Blackhole).is_some(),
                "reset" => all.cut.replace(Cut::Reset).is_some(),
                "timeout" => all.cut.replace(Cut::Timeout).is_some(),
                "refuse" => all.cut.replace(refuse(&mut words)?).is_some(),
                "delay" => all.delay.replace(delay(&mut words, &mut all.ramps)?).is_some(),
                "dns" => return Err(Invalid::new("dns comes first: all that follows happens to queries")),
                word => return Err(Invalid::new(format!("'{word}' is no fault; there are {FAULTS}"))),
            };
            if twice {
                let message =
                    format!("{fault} is there twice; write --and between faults of different packets");
                return Err(Invalid::new(message));
            }
            if let Some(word) =
                words.rest.peek().filter(|word| !FAULTS.split(", ").any(|name| name == **word))
            {
                return Err(Invalid::new(format!(
                    "'{word}' means nothing after {fault}; faults are {FAULTS}"
                )));
            }
        }
        all.fit_together()?;
        Ok(all)
    }

    /// What comes after `dns`, if it is not a fault of any packet's.
    fn dns(&mut self, words: &mut Words<'_>) -> Result<(), Invalid> {
        (self.dns, words.fault) = (true, "dns");
        let Some(word) = words.rest.peek() else {
            return Err(Invalid::new(format!("dns is followed by one of {DNS}")));
        };
        self.answer = Answer::ALL.into_iter().find(|answer| answer.name() == *word);
        if self.answer.is_none() && *word != "drop" {
            let is_fault = FAULTS.split(", ").any(|name| name == *word) && *word != "dns";
            let unknown =
                || Invalid::new(format!("'{word}' is not what happens to a query; there are {DNS}"));
            return is_fault.then_some(()).ok_or_else(unknown);
        }
        let fault = words.rest.next().map_or("", String::as_str);
        if self.answer.is_none() {
            self.loss = Some(Loss::Random(Chance { percent: Percent::ALL, correlation: Percent::NONE }));
        }
        match words.rest.peek() {
            None => Ok(()),
            Some(word) => Err(Invalid::new(format!(
                "'{word}' means nothing after dns {fault}, which is all that happens to a query"
            ))),
        }
    }

    fn fit_together(&self) -> Result<(), Invalid> {
        if self.dns && self.cut.is_some() {
            return Err(Invalid::new("a cut is of everything; write dns drop, or leave dns out"));
        }
        if self.reorder.is_some() && self.delay.is_none() {
            return Err(Invalid::new("reorder needs delay: what does not wait overtakes what does"));
        }
        if let Some(cut) = self.cut
            && *self != (Self { cut: self.cut, ..Self::default() })
        {
            let name = cut.name();
            return Err(Invalid::new(format!(
                "{name} goes with no other fault: of what is cut nothing comes"
            )));
        }
        Ok(())
    }

    /// Whether a packet may have to wait.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.delay.is_some() || self.rate.is_some() || self.profile.is_some()
    }

    /// Whether a packet may be given a checksum that must stay wrong.
    #[must_use]
    pub fn breaks_checksums(&self) -> bool {
        self.corrupt.is_some_and(|corrupt| !corrupt.fix_checksum)
    }

    /// Whether the fault is not the same if several packets of the wire are treated as one.
    #[must_use]
    pub fn is_of_packets(&self) -> bool {
        let bursts = matches!(self.loss, Some(Loss::Bursts(_)));
        bursts || self.duplicate.is_some() || self.corrupt.is_some() || self.reorder.is_some()
    }

    /// The longest a packet can be delayed, what waits before the wire excluded.
    #[must_use]
    pub fn longest_delay(&self) -> Duration {
        let of = |delay: &Delay| delay.time + delay.jitter.saturating_mul(delay.distribution.widest());
        let now = self.delay.as_ref().map_or(Duration::ZERO, of);
        let ramped = self.ramps.iter().filter_map(Ramp::longest_delay).max().unwrap_or_default();
        now.max(ramped)
    }

    /// The chance of a packet to be hit, if there is a single one.
    #[must_use]
    pub fn chance(&self) -> Option<f64> {
        let Self {
            dns: _,
            answer,
            cut,
            loss,
            duplicate,
            corrupt,
            reorder: _,
            rate: _,
            delay: _,
            ramps,
            profile: _,
        } = self;
        if cut.is_some() {
            return Some(1.0);
        }
        let all = [
            answer.map(|_| 1.0),
            loss.map(Loss::chance),
            duplicate.map(Chance::fraction),
            corrupt.map(|it| it.chance.fraction()),
        ];
        let mut chances = all.into_iter().flatten();
        let first = chances.next().filter(|_| !self.waits() && ramps.is_empty());
        if chances.next().is_some() { None } else { first }
    }
}

impl Chance {
    fn fraction(self) -> f64 {
        self.percent.fraction()
    }
}

impl Loss {
    /// Of a packet to be lost, in the long run.
    #[must_use]
    pub fn chance(self) -> f64 {
        match self {
            Self::Random(Chance { percent, .. }) | Self::PerFlow(percent) => percent.fraction(),
            Self::Bursts(model) => {
                let [p, r, bad, good] = model.map(Percent::fraction);
                if p + r == 0.0 { good } else { (p * bad + r * good) / (p + r) }
            }
        }
    }
}

impl Distribution {
    /// How many jitters a delay deviates at most; netem's tables end there.
    #[must_use]
    pub fn widest(&self) -> u32 {
        if *self == Self::Uniform { 1 } else { 4 }
    }
}

fn loss(words: &mut Words<'_>, ramps: &mut Vec<Ramp>) -> Result<Loss, Invalid> {
    if words.rest.next_if(|word| *word == "gemodel").is_some() {
        let p = words.percent("P")?.ok_or_else(|| words.missing("P"))?;
        let r = words.percent("R")?.unwrap_or(p.rest());
        let bad = words.percent("1-H")?.unwrap_or(Percent::ALL);
        let good = words.percent("1-K")?.unwrap_or(Percent::NONE);
        return Ok(Loss::Bursts([p, r, bad, good]));
    }
    let _ = words.rest.next_if(|word| *word == "random");
    Ok(Loss::Random(words.chance(ramps)?))
}

fn refuse(words: &mut Words<'_>) -> Result<Cut, Invalid> {
    let Some(text) = words.value() else { return Ok(Cut::Refuse(Errno::ECONNREFUSED)) };
    words.read(text, "ERRNO", parse_errno).map(Cut::Refuse)
}

fn corrupt(words: &mut Words<'_>, ramps: &mut Vec<Ramp>) -> Result<Corrupt, Invalid> {
    let chance = words.chance(ramps)?;
    let (mut bits, mut offset) = (1, None);
    loop {
        if let Some(text) = words.named("bits", "BITS")? {
            bits = words.read(text, "BITS", |text| {
                let bits = parse_count(text).ok().and_then(|bits| u32::try_from(bits).ok());
                bits.filter(|bits| *bits <= MAX_BITS)
                    .ok_or_else(|| Invalid::new(format!("not a number between 1 and {MAX_BITS}")))
            })?;
        } else if let Some(text) = words.named("offset", "OFFSET")? {
            offset = Some(words.read(text, "OFFSET", |text| {
                let offset = text.parse().ok().filter(|offset| *offset < 65_536);
                offset.ok_or_else(|| Invalid::new("not a number of bytes between 0 and 65535"))
            })?);
        } else {
            return Ok(Corrupt { chance, bits, offset, fix_checksum: false });
        }
    }
}

fn reorder(words: &mut Words<'_>, ramps: &mut Vec<Ramp>) -> Result<Reorder, Invalid> {
    let chance = words.chance(ramps)?;
    let gap = match words.named("gap", "GAP")? {
        None => 1,
        Some(text) => words.read(text, "GAP", |text| {
            let gap = parse_count(text)?;
            u32::try_from(gap).map_err(|_| Invalid::new("not a number of packets below 2^32"))
        })?,
    };
    Ok(Reorder { chance, gap })
}

fn rate(words: &mut Words<'_>, ramps: &mut Vec<Ramp>) -> Result<Rate, Invalid> {
    let bits = words.first("RATE", ramps, units::rate)?;
    let mut rate = Rate { bits, burst: 0, overhead: 0, limit: 1000 };
    // netem's place for it.
    if let Some(text) = words.value() {
        rate.overhead = words.read(text, "PACKETOVERHEAD", units::overhead)?;
    }
    loop {
        if let Some(text) = words.named("burst", "BYTES")? {
            rate.burst = words.read(text, "BYTES", units::size)?;
        } else if let Some(text) = words.named("overhead", "BYTES")? {
            rate.overhead = words.read(text, "BYTES", units::overhead)?;
        } else if let Some(text) = words.named("limit", "PACKETS")? {
            rate.limit = words.read(text, "PACKETS", |text| {
                let limit = parse_count(text)?;
                u32::try_from(limit).map_err(|_| Invalid::new("not a number of packets below 2^32"))
            })?;
        } else {
            return Ok(rate);
        }
    }
}

fn delay(words: &mut Words<'_>, ramps: &mut Vec<Ramp>) -> Result<Delay, Invalid> {
    let time = words.first("TIME", ramps, units::delay)?;
    let mut jitter = Duration::ZERO;
    let mut correlation = Percent::NONE;
    if let Some(text) = words.value() {
        jitter = words.read(text, "JITTER", units::delay)?;
        correlation = words.percent("CORRELATION")?.unwrap_or(Percent::NONE);
    }
    let distribution = match words.named("distribution", "DISTRIBUTION")? {
        None | Some("uniform") => Distribution::Uniform,
        Some(_) if jitter.is_zero() => {
            return Err(Invalid::new(
                "a distribution needs a jitter: write delay 100ms 10ms distribution normal",
            ));
        }
        Some("normal") => Distribution::Normal,
        Some("pareto") => Distribution::Pareto,
        Some("paretonormal") => Distribution::ParetoNormal,
        Some(path) if path.contains('/') => {
            let entries = words.read(path, "DISTRIBUTION", |path| read_table(Path::new(path)))?;
            Distribution::File(path.into(), entries)
        }
        Some(name) => {
            let known = "uniform, normal, pareto, paretonormal, or a path with a / in it";
            return Err(Invalid::new(format!("'{name}' is no distribution; there are {known}")));
        }
    };
    let delay = Delay { time, jitter, correlation, distribution, reorders: false };
    let longest = delay.time + delay.jitter.saturating_mul(delay.distribution.widest());
    if longest > LONGEST {
        let message = format!(
            "a delay and {} times its jitter are {}, and at most {} can be had",
            delay.distribution.widest(),
            humantime::format_duration(longest),
            humantime::format_duration(LONGEST)
        );
        return Err(Invalid::new(message));
    }
    Ok(delay)
}

/// Most entries that netem takes (`NETEM_DIST_MAX`).
const MOST_ENTRIES: usize = 16_384;
/// No table of so many is longer.
const LONGEST_FILE: u64 = 1 << 20;

/// Reads a distribution as netem has them: numbers between -32768 and 32767, and comments after `#`.
fn read_table(path: &Path) -> Result<Vec<i16>, Invalid> {
    let text = read_file(path, LONGEST_FILE).map_err(|error| Invalid::new(error.to_string()))?;
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let mut entries = Vec::new();
    for number in lines.flat_map(str::split_whitespace) {
        let entry = number.parse().map_err(|_| {
            Invalid::new(format!(
                "'{}' in it is not a number between -32768 and 32767",
                number.escape_debug()
            ))
        })?;
        entries.push(entry);
        if entries.len() > MOST_ENTRIES {
            return Err(Invalid::new(format!("it has more than {MOST_ENTRIES} numbers")));
        }
    }
    if entries.is_empty() { Err(Invalid::new("there are no numbers in it")) } else { Ok(entries) }
}

impl fmt::Display for Impairments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dns, answer, cut, loss, duplicate, corrupt, reorder, rate, delay, ramps, profile } = self;
        let mut parts: Vec<String> = Vec::new();
        parts.extend(dns.then(|| "dns".to_owned()));
        parts.extend(answer.map(|answer| answer.name().to_owned()));
        let first = |fault: &str, value: String| {
            let ramp = ramps.iter().find(|ramp| ramp.is_of(fault));
            ramp.map_or(format!("{fault} {value}"), |ramp| format!("{fault} {ramp}"))
        };
        let chance = |fault: &str, chance: &Chance| first(fault, chance.percent.to_string()) + &chance.tail();
        parts.extend(cut.map(|cut| cut.to_string()));
        match loss {
            Some(Loss::Random(it)) if *dns && it.percent == Percent::ALL && ramps.is_empty() => {
                parts.push("drop".to_owned());
            }
            Some(Loss::Random(it)) => parts.push(chance("loss", it)),
            Some(Loss::PerFlow(percent)) => parts.push(first("loss", percent.to_string()) + " --per flow"),
            Some(Loss::Bursts([p, r, bad, good])) => parts.push(format!("loss gemodel {p} {r} {bad} {good}")),
            None => {}
        }
        if let Some(it) = duplicate {
            parts.push(chance("duplicate", it));
        }
        if let Some(it) = corrupt {
            let bits = if it.bits == 1 { String::new() } else { format!(" bits {}", it.bits) };
            let offset = it.offset.map(|offset| format!(" offset {offset}")).unwrap_or_default();
            let fix = if it.fix_checksum { " --fix-checksum" } else { "" };
            parts.push(format!("{}{bits}{offset}{fix}", chance("corrupt", &it.chance)));
        }
        if let Some(it) = reorder {
            let gap = if it.gap > 1 { format!(" gap {}", it.gap) } else { String::new() };
            parts.push(chance("reorder", &it.chance) + &gap);
        }
        if let Some(it) = rate {
            let named = |name: &str, value: i64, usual: i64| {
                if value == usual { String::new() } else { format!(" {name} {value}") }
            };
            let limit = named("limit", it.limit.into(), 1000);
            let burst = named("burst", it.burst.cast_signed(), 0);
            let overhead = named("overhead", it.overhead.into(), 0);
            parts.push(format!("{}{burst}{overhead}{limit}", first("rate", units::show_rate(it.bits))));
        }
        if let Some(it) = delay {
            parts.push(first("delay", humantime::format_duration(it.time).to_string()) + &it.tail());
        }
        if let Some(profile) = profile {
            parts.push(format!("--profile {}", profile.name));
        }
        f.write_str(&parts.join(" "))
    }
}

impl Chance {
    fn tail(self) -> String {
        if self.correlation == Percent::NONE { String::new() } else { format!(" {}", self.correlation) }
    }
}

impl Delay {
    fn tail(&self) -> String {
        if self.jitter.is_zero() {
            return String::new();
        }
        let mut tail = format!(" {}", humantime::format_duration(self.jitter));
        if self.correlation != Percent::NONE {
            tail += &format!(" {}", self.correlation);
        }
        match &self.distribution {
            Distribution::Uniform => {}
            Distribution::Normal => tail += " distribution normal",
            Distribution::Pareto => tail += " distribution pareto",
            Distribution::ParetoNormal => tail += " distribution paretonormal",
            Distribution::File(path, _) => tail += &format!(" distribution {}", super::shown::name(path)),
        }
        if self.reorders {
            tail += " --reorder-by-jitter";
        }
        tail
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Impairments, Invalid> {
        Impairments::parse(&text.split_whitespace().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn netems_words() {
        for text in [
            "loss 1%",
            "loss 1% 25%",
            "loss gemodel 1% 20% 100% 0%",
            "duplicate 1% 5%",
            "corrupt 0.1% bits 3 offset 20",
            "rate 10mbit burst 16384 overhead 24 limit 50",
            "delay 20ms 5ms 25% distribution normal",
            "loss 1% reorder 25% 50% gap 5 rate 1mbit delay 10ms",
            "blackhole",
            "reset",
            "refuse ECONNREFUSED",
            "refuse EHOSTUNREACH",
        ] {
            assert_eq!(parse(text).map(|it| it.to_string()), Ok(text.to_string()));
        }
        assert_eq!(
            parse("loss random 5% delay 10us").map(|it| it.to_string()),
            Ok("loss 5% delay 10us".into())
        );
        assert_eq!(parse("refuse").map(|it| it.to_string()), Ok("refuse ECONNREFUSED".into()));
        assert_eq!(parse("refuse 110").map(|it| it.to_string()), Ok("refuse ETIMEDOUT".into()));
        for text in
            ["refuse ENOTHING", "refuse 0", "refuse 4096", "refuse 41", "reset reset", "reset loss 1%"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("rate 1mbit 24").map(|it| it.to_string()), Ok("rate 1mbit overhead 24".into()));
        assert_eq!(
            parse("loss gemodel 5%").map(|it| it.to_string()),
            Ok("loss gemodel 5% 95% 100% 0%".into())
        );
    }

    #[test]
    fn the_chance_of_a_single_fault() {
        let chance = |text| parse(text).map(|it| it.chance());
        assert_eq!(chance("loss 5%"), Ok(Some(0.05)));
        assert!(chance("loss gemodel 1% 3%").is_ok_and(|it| it.is_some_and(|it| (it - 0.25).abs() < 1e-9)));
        assert_eq!(
            [chance("loss 5% duplicate 1%"), chance("delay 1ms"), chance("loss 1% delay 1ms")],
            [Ok(None), Ok(None), Ok(None)]
        );
    }

    #[test]
    fn of_dns_queries() {
        for text in
            ["dns nxdomain", "dns servfail", "dns refused", "dns empty", "dns drop", "dns delay 20ms 5ms"]
        {
            assert_eq!(parse(text).map(|it| it.to_string()), Ok(text.to_string()));
        }
        assert_eq!(parse("dns drop").map(|it| it.chance()), Ok(Some(1.0)));
        assert_eq!(parse("dns nxdomain").map(|it| it.chance()), Ok(Some(1.0)));
        assert!(parse("dns loss 30% delay 5ms").is_ok_and(|it| it.dns && it.answer.is_none()));
        for text in [
            "dns",
            "dns nope",
            "dns dns",
            "dns nxdomain servfail",
            "dns drop delay 1ms",
            "dns blackhole",
            "loss 1% dns drop",
            "nxdomain",
            "dns delay",
            "dns servfail 20%",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn tables_from_files() {
        let folder = std::env::temp_dir().join(format!("faultline-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let table = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).expect("a file");
            read_table(&path)
        };
        assert_eq!(table("good", "# comment\n -5 3 # more\n32767\n"), Ok(vec![-5, 3, 32_767]));
        for (name, text, says) in [
            ("empty", "", "no numbers"),
            ("comment", "# 1 2 3\n", "no numbers"),
            ("words", "1 2 three", "'three'"),
            ("large", "40000", "'40000'"),
            ("many", &"1 ".repeat(MOST_ENTRIES + 1), "more than 16384"),
            ("huge", &"1\n".repeat(1 << 20), "more than 1 megabytes"),
        ] {
            assert!(table(name, text).is_err_and(|error| error.to_string().contains(says)), "{name}");
        }
        assert!(read_table(&folder).is_err() && read_table(&folder.join("nope")).is_err());
        std::fs::remove_dir_all(&folder).expect("it is removed");
    }
}
