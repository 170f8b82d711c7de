//! Profiles: what the link to each peer is like. A line is a peer's address, or `default` for all others, and netem's
//! words; `down` and `up` begin those of what is received and of what is sent.

use std::{collections::HashMap, net::IpAddr, path::Path, time::Duration};

use chaos_ebpf::{abi::Direction, figures::MOST_PEERS};

use super::{Chance, Delay, Distribution, Impairments, Invalid, Loss, Percent, Rate, file::read_file};

/// Larger than any file of so many peers.
const LARGEST: u64 = 16 << 20;

/// The profiles that come with Faultline, and where their figures are from.
pub const BUILT_IN: [(&str, &str); 6] = [
    ("3g", include_str!("profiles/3g")),
    ("lte", include_str!("profiles/lte")),
    ("satellite", include_str!("profiles/satellite")),
    ("wifi-bad", include_str!("profiles/wifi-bad")),
    ("dsl", include_str!("profiles/dsl")),
    ("cross-region", include_str!("profiles/cross-region")),
];

/// What the link to each peer is like.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// As it was asked for: a name or a path.
    pub name: String,
    /// The peers, in the order of the file.
    pub peers: Vec<(IpAddr, Link)>,
    /// Everybody else, if that was said.
    pub others: Option<Link>,
    /// Whether it says of what is received and what is sent apart.
    pub has_sides: bool,
}

/// A link, by [`Direction`].
pub type Link = [Side; 2];

/// A link in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Side {
    /// Of a packet to be lost.
    pub loss: Option<Percent>,
    /// How long it takes, and how much that varies, evenly.
    pub delay: Option<(Duration, Duration)>,
    /// Bits per second, and how many full packets may wait for it.
    pub rate: Option<(u64, u32)>,
}

impl Profile {
    /// Reads a profile that comes with Faultline, or one from a file.
    ///
    /// # Errors
    ///
    /// [`Invalid`], naming the file and the line.
    pub fn load(name: &str) -> Result<Self, Invalid> {
        if let Some((_, text)) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            return Self::parse(name, text);
        }
        let text = read_file(Path::new(name), LARGEST).map_err(|error| {
            let names: Vec<_> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            let hint = if name.contains(['/', '.']) {
                String::new()
            } else {
                format!("; without a file there are {}", names.join(", "))
            };
            Invalid::new(format!("{name}: {error}{hint}"))
        })?;
        Self::parse(name, &text)
    }

    /// Reads the lines of a profile.
    ///
    /// # Errors
    ///
    /// [`Invalid`], naming the line.
    pub fn parse(name: &str, text: &str) -> Result<Self, Invalid> {
        let mut profile = Self { name: name.into(), peers: Vec::new(), others: None, has_sides: false };
        let mut places: HashMap<Option<IpAddr>, usize> = HashMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let wrong = |said: String| Invalid::new(format!("{name}:{number}: {said}"));
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let Some(first) = words.next() else { continue };
            let peer = whose(first).map_err(|error| wrong(error.to_string()))?;
            if let Some(place) = places.insert(peer, number) {
                return Err(wrong(format!("'{first}' is in line {place} already")));
            }
            let words: Vec<String> = words.map(ToString::to_string).collect();
            let (link, has_sides) = link(&words).map_err(|error| wrong(error.to_string()))?;
            profile.has_sides |= has_sides;
            match peer {
                None => profile.others = Some(link),
                Some(_) if profile.peers.len() as u32 == MOST_PEERS => {
                    return Err(wrong(format!("there are more than {MOST_PEERS} peers")));
                }
                Some(address) => profile.peers.push((address, link)),
            }
        }
        if places.is_empty() {
            return Err(Invalid::new(format!(
                "{name}: nothing is in it; write a line like 10.0.0.7 delay 20ms"
            )));
        }
        Ok(profile)
    }

    /// Whether anything is said of this host.
    #[must_use]
    pub fn covers(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.others.is_some() || self.peers.iter().any(|(peer, _)| *peer == address)
    }

    /// The sides of all links that packets going this way take.
    pub fn sides(&self, direction: Direction) -> impl Iterator<Item = &Side> {
        let links = self.peers.iter().map(|(_, link)| link).chain(&self.others);
        links.map(move |link| &link[direction as usize])
    }
}

/// Whose line it is; nobody's is everybody else's.
fn whose(word: &str) -> Result<Option<IpAddr>, Invalid> {
    if word == "default" {
        return Ok(None);
    }
    let bad = |_| {
        let text = word.escape_debug();
        Invalid::new(format!("'{text}' is no address; a line begins with one, or with default"))
    };
    word.parse::<IpAddr>().map(|address| Some(address.to_canonical())).map_err(bad)
}

/// The words of both sides, or of each; and whether it was each.
fn link(words: &[String]) -> Result<(Link, bool), Invalid> {
    const SIDES: [&str; 2] = ["down", "up"];
    let is_side = |word: &String| SIDES.contains(&word.as_str());
    if !words.iter().any(is_side) {
        return Ok(([side(words)?; 2], false));
    }
    if words.first().is_some_and(|word| !is_side(word)) {
        return Err(Invalid::new("down and up come before the words they are for"));
    }
    let mut link = [None; 2];
    for words in words.chunk_by(|_, next| !is_side(next)) {
        // Each chunk begins with the one or the other.
        let place = usize::from(words.first().is_some_and(|word| word == SIDES[1]));
        let found = side(words.get(1..).unwrap_or_default())?;
        if link[place].replace(found).is_some() {
            return Err(Invalid::new(format!("{} is there twice", SIDES[place])));
        }
    }
    Ok((link.map(Option::unwrap_or_default), true))
}

/// What a peer's entry can hold, of all that can be said.
fn side(words: &[String]) -> Result<Side, Invalid> {
    if words.is_empty() {
        return Err(Invalid::new("loss, delay or rate is missing; write delay 20ms, say"));
    }
    let cannot = |what: &str| {
        let of = "delay TIME [JITTER], loss PERCENT and rate RATE [limit PACKETS]";
        Err(Invalid::new(format!("a profile cannot have {what}; it can have {of}")))
    };
    let Impairments {
        dns,
        answer: _,
        cut,
        loss,
        duplicate,
        corrupt,
        reorder,
        rate,
        delay,
        ramps,
        profile: _,
    } = Impairments::parse(words)?;
    for (there, what) in [
        (dns, "dns"),
        (duplicate.is_some(), "duplicate"),
        (corrupt.is_some(), "corrupt"),
        (reorder.is_some(), "reorder"),
        (!ramps.is_empty(), "values that change"),
    ] {
        if there {
            return cannot(what);
        }
    }
    if let Some(cut) = cut {
        return cannot(cut.name());
    }
    let loss = match loss {
        None => None,
        Some(Loss::Random(Chance { percent, correlation: Percent::NONE })) => Some(percent),
        Some(Loss::Random(_)) => return cannot("a correlation of loss"),
        Some(Loss::Bursts(_)) => return cannot("loss gemodel"),
        Some(Loss::PerFlow(_)) => return cannot("loss by flow"),
    };
    let delay = match delay {
        None => None,
        Some(Delay { correlation, .. }) if correlation != Percent::NONE => {
            return cannot("a correlation of delays");
        }
        Some(Delay { distribution, .. }) if distribution != Distribution::Uniform => {
            return cannot("a distribution of delays");
        }
        Some(Delay { time, jitter, .. }) => Some((time, jitter)),
    };
    let rate = match rate {
        None => None,
        Some(Rate { bits, burst: 0, overhead: 0, limit }) => Some((bits, limit)),
        Some(_) => return cannot("a burst or overhead of a rate"),
    };
    Ok(Side { loss, delay, rate })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Profile, String> {
        Profile::parse("FILE", text).map_err(|error| error.to_string())
    }

    #[test]
    fn lines() {
        let text = "# peers\n\n10.0.0.7 delay 20ms 5ms loss 0.1% rate 10mbit # one\r\n\
                    ::ffff:10.0.0.8 delay 1ms\nfd00::1 up loss 1% down delay 3ms\ndefault down rate 1mbit limit 50\n";
        let profile = parse(text).expect("valid");
        let addresses: Vec<_> = profile.peers.iter().map(|(address, _)| address.to_string()).collect();
        assert_eq!(addresses, ["10.0.0.7", "10.0.0.8", "fd00::1"]);
        let [both, _, apart] = &profile.peers[..] else { panic!("three peers") };
        assert_eq!(both.1[0], both.1[1]);
        assert_eq!(both.1[0].delay, Some((Duration::from_millis(20), Duration::from_millis(5))));
        assert_eq!(both.1[0].rate, Some((10_000_000, 1000)));
        assert_eq!(
            apart.1[0],
            Side { delay: Some((Duration::from_millis(3), Duration::ZERO)), ..Side::default() }
        );
        assert!(apart.1[1].loss.is_some() && apart.1[1].delay.is_none());
        let others = profile.others.expect("given");
        assert_eq!((others[0].rate, others[1]), (Some((1_000_000, 50)), Side::default()));
        let covers = |profile: &Profile, text: &str| profile.covers(text.parse().expect("valid"));
        assert!(covers(&profile, "10.9.9.9"));
        let without = Profile { others: None, ..profile.clone() };
        assert!(covers(&without, "::ffff:10.0.0.7") && !covers(&without, "10.9.9.9"));
        assert!(profile.has_sides && !parse("10.0.0.1 delay 1ms").expect("valid").has_sides);
    }

    /// Each with the line it is in.
    #[test]
    fn refused() {
        for (text, says) in [
            ("", "FILE: nothing is in it"),
            ("# nothing\n", "FILE: nothing is in it"),
            ("10.0.0.1 delay 1ms\nhost delay 1ms", "FILE:2: 'host' is no address"),
            ("10.0.0.0/8 delay 1ms", "FILE:1: '10.0.0.0/8' is no address"),
            ("\n\n10.0.0.1", "FILE:3: loss, delay or rate is missing"),
            ("10.0.0.1 delay 5", "FILE:1: invalid value '5' for 'delay <TIME>'"),
            ("10.0.0.1 wait 5ms", "FILE:1: 'wait' is no fault"),
            ("10.0.0.1 delay 1ms\n10.0.0.1 delay 2ms", "FILE:2: '10.0.0.1' is in line 1 already"),
            ("10.0.0.1 delay 1ms\n::ffff:10.0.0.1 delay 2ms", "FILE:2: '::ffff:10.0.0.1' is in line 1"),
            ("default delay 1ms\ndefault delay 1ms", "FILE:2: 'default' is in line 1 already"),
            ("default delay 1ms up delay 1ms", "FILE:1: down and up come before"),
            ("default up delay 1ms up delay 1ms", "FILE:1: up is there twice"),
            ("default up down delay 1ms", "FILE:1: loss, delay or rate is missing"),
            ("default loss 1% 25%", "FILE:1: a profile cannot have a correlation of loss"),
            ("default loss gemodel 1%", "cannot have loss gemodel"),
            ("default delay 1ms 1ms 5%", "cannot have a correlation of delays"),
            ("default delay 1ms 1ms distribution normal", "cannot have a distribution"),
            ("default delay 0..1ms/5s", "cannot have values that change"),
            ("default duplicate 1%", "cannot have duplicate"),
            ("default corrupt 1%", "cannot have corrupt"),
            ("default delay 1ms reorder 1%", "cannot have reorder"),
            ("default rate 1mbit burst 5kb", "cannot have a burst"),
            ("default blackhole", "cannot have blackhole"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(says), "{text:?}: {error}");
        }
        let many: String =
            (0..=MOST_PEERS).map(|peer| format!("{} delay 1ms\n", std::net::Ipv4Addr::from(peer))).collect();
        assert!(parse(&many).is_err_and(|error| error.contains("FILE:65537: there are more than 65536")));
    }

    #[test]
    fn those_that_come_with_it() {
        for (name, text) in BUILT_IN {
            let profile = Profile::load(name).expect(name);
            assert!(profile.peers.is_empty() && profile.has_sides, "{name}");
            assert!(
                profile.others.is_some_and(|link| link.iter().all(|side| side.delay.is_some())),
                "{name}"
            );
            assert!(text.contains("# Source"), "{name}");
        }
        let error = Profile::load("5g").expect_err("unknown").to_string();
        assert!(error.contains("3g, lte, satellite"), "{error}");
        assert!(Profile::load("/").is_err() && Profile::load("/nowhere").is_err());
    }
}
