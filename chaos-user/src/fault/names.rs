//! All patterns of names as one automaton, which the kernel walks with one look-up for each byte of a name.
//!
//! A state is the set of places in the patterns at which a name may be (subset construction; Rabin and Scott, IBM
//! Journal 1959). Which bytes are told apart is fixed: [`question::CLASS_OF`](chaos_ebpf::question::CLASS_OF).

use std::collections::{BTreeMap, HashMap, btree_map::Entry};

use chaos_ebpf::{
    abi::NameState,
    question::{CLASS_OF, CLASSES, DOT},
};

use crate::spec::Glob;

/// Most states: 2 MB of them. Names without wildcards take one for each character, of which common beginnings are
/// shared; what several patterns with a `*` in the middle have in common multiplies.
pub(super) const MAX_STATES: usize = 16_384;

/// Patterns that take too many states together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooManyStates;

/// A pattern's number and how many of its characters have been passed.
type Place = (u32, u32);

/// Builds the automaton that says for each name which rules want it; none at all for no patterns.
///
/// # Errors
///
/// [`TooManyStates`].
pub(super) fn compile(wanted: &BTreeMap<&Glob, u64>) -> Result<Vec<NameState>, TooManyStates> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let patterns: Vec<(&[u8], u64)> = wanted.iter().map(|(glob, rules)| (glob.as_bytes(), *rules)).collect();
    let start = (0..patterns.len() as u32).map(|pattern| (pattern, 0));
    let mut states = States { patterns: &patterns, numbers: HashMap::new(), sets: Vec::new() };
    states.number(start.collect())?;
    let mut rows = Vec::new();
    while let Some(places) = states.sets.get(rows.len()).cloned() {
        let ends = places.iter().map(|(pattern, passed)| (patterns[*pattern as usize], *passed as usize));
        let ended = ends.filter(|((text, _), passed)| *passed == text.len());
        let rules = ended.fold(0, |all, ((_, rules), _)| all | rules);
        let next = states.after(&places)?;
        rows.push(NameState { rules, next });
    }
    Ok(rows)
}

/// The states that have been found.
struct States<'a> {
    patterns: &'a [(&'a [u8], u64)],
    numbers: HashMap<Vec<Place>, u16>,
    sets: Vec<Vec<Place>>,
}

impl States<'_> {
    /// The number of the state in which a name is at any of these places.
    fn number(&mut self, mut places: Vec<Place>) -> Result<u16, TooManyStates> {
        // A star may stand for nothing: what is before it is behind it as well.
        let behind = places.iter().filter(|place| self.character(**place) == Some(b'*'));
        let behind: Vec<Place> = behind.map(|(pattern, passed)| (*pattern, passed + 1)).collect();
        places.extend(behind);
        places.sort_unstable();
        places.dedup();
        if let Some(number) = self.numbers.get(&places) {
            return Ok(*number);
        }
        if self.sets.len() == MAX_STATES {
            return Err(TooManyStates);
        }
        let number = self.sets.len() as u16;
        self.numbers.insert(places.clone(), number);
        self.sets.push(places);
        Ok(number)
    }

    /// The states after one more byte, by its class.
    fn after(&mut self, places: &[Place]) -> Result<[u16; CLASSES], TooManyStates> {
        // Where any byte leads, and where certain ones lead besides.
        let mut any = Vec::new();
        let mut certain: BTreeMap<u8, Vec<Place>> = BTreeMap::new();
        for place @ (pattern, passed) in places.iter().copied() {
            match self.character(place) {
                None => {}
                Some(b'*') => any.push(place),
                Some(b'?') => any.push((pattern, passed + 1)),
                Some(byte) => certain.entry(class(byte)).or_default().push((pattern, passed + 1)),
            }
        }
        let otherwise = self.number(any.clone())?;
        let mut next = [otherwise; CLASSES];
        for (class, places) in certain {
            next[usize::from(class)] = self.number([&any[..], &places].concat())?;
        }
        Ok(next)
    }

    fn character(&self, (pattern, passed): Place) -> Option<u8> {
        self.patterns[pattern as usize].0.get(passed as usize).copied()
    }
}

/// Of a character of a pattern.
fn class(byte: u8) -> u8 {
    if byte == b'.' { DOT } else { CLASS_OF[usize::from(byte)] }
}

/// The patterns of all rules, each with the rules that want it.
pub(super) fn wanted<'a>(all: impl Iterator<Item = (u64, &'a [Glob])>) -> BTreeMap<&'a Glob, u64> {
    let mut wanted = BTreeMap::new();
    for (bit, glob) in all.flat_map(|(bit, globs)| globs.iter().map(move |glob| (bit, glob))) {
        match wanted.entry(glob) {
            Entry::Vacant(entry) => _ = entry.insert(bit),
            Entry::Occupied(entry) => *entry.into_mut() |= bit,
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use chaos_ebpf::question::step;
    use proptest::prelude::*;

    use super::*;

    fn globs(texts: &[String]) -> Vec<Glob> {
        texts.iter().map(|text| text.parse().expect("valid")).collect()
    }

    fn automaton(globs: &[Glob]) -> Result<Vec<NameState>, TooManyStates> {
        compile(&wanted((0..).zip(globs).map(|(rule, glob)| (1 << rule, std::slice::from_ref(glob)))))
    }

    /// As the program in the kernel goes.
    fn asked(states: &[NameState], name: &str) -> u64 {
        let mut wire = Vec::new();
        for label in name.split('.').filter(|label| !label.is_empty()) {
            wire.push(label.len() as u8);
            wire.extend(label.bytes());
        }
        wire.push(0);
        let (mut left, mut state) = (0, 0);
        for (place, byte) in (0..).zip(wire) {
            match step(place, byte, &mut left, &CLASS_OF) {
                step::FIRST => {}
                step::END => return states[state].rules,
                step::BAD => return 0,
                class => state = states[state].next[class as usize].into(),
            }
        }
        0
    }

    /// The definition: what is left of a pattern, and of a name.
    fn takes(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, rest) => rest.is_none(),
            (Some((b'*', more)), _) => (0..=name.len()).any(|skipped| takes(more, &name[skipped..])),
            (Some((b'?', more)), Some((_, rest))) => takes(more, rest),
            (Some((wanted, more)), Some((there, rest))) => {
                *wanted == there.to_ascii_lowercase() && takes(more, rest)
            }
            (Some(_), None) => false,
        }
    }

    #[test]
    fn what_globs_take() {
        for (glob, takes, not) in [
            (
                "api.example.com",
                &["api.example.com", "API.eXample.COM"][..],
                &["xapi.example.com", "api.example.co", ""][..],
            ),
            ("*.example.com", &["a.example.com", "a.b.example.com"], &["example.com", "aexample.com"]),
            ("*", &["", "a", "a.b"], &[]),
            ("a?c", &["abc", "a-c", "a.c"], &["ac", "abbc"]),
            (".", &[""], &["a"]),
            ("*a*", &["a", "bab", "b.a"], &["", "b"]),
        ] {
            let states = automaton(&globs(&[glob.into()])).expect("small");
            assert!(takes.iter().all(|name| asked(&states, name) == 1), "{glob}");
            assert!(not.iter().all(|name| asked(&states, name) == 0), "{glob}");
        }
        assert_eq!(automaton(&[]), Ok(Vec::new()));
    }

    #[test]
    fn many_patterns() {
        // A thousand hosts in one domain, and a thousand domains with everything below.
        let hosts: Vec<_> = (0..1000).map(|host| format!("host{host}.example.com")).collect();
        let hosts = globs(&hosts);
        let all = [(1, &hosts[..])];
        let states = compile(&wanted(all.into_iter())).expect("they fit");
        assert_eq!(asked(&states, "host999.example.com"), 1);
        assert_eq!(asked(&states, "host1000.example.com"), 0);
        let domains: Vec<_> = (0..1000).map(|domain| format!("*.d{domain}.net")).collect();
        let domains = globs(&domains);
        let states = compile(&wanted([(2, &domains[..])].into_iter())).expect("they fit");
        assert_eq!((asked(&states, "www.d7.net"), asked(&states, "d7.net")), (2, 0));
        // What may be anywhere, in any order, is known to be too much.
        let anywhere: Vec<_> = (b'a'..=b'p').map(|c| format!("*{0}*{0}*", char::from(c))).collect();
        assert_eq!(automaton(&globs(&anywhere)), Err(TooManyStates));
    }

    /// Few letters, so that patterns and names meet.
    fn pattern() -> impl Strategy<Value = String> {
        let label = proptest::string::string_regex("[ab*?]{1,4}").expect("a pattern");
        proptest::collection::vec(label, 1..4).prop_map(|labels| labels.join("."))
    }

    fn name() -> impl Strategy<Value = String> {
        let label = proptest::string::string_regex("[abAB_]{1,4}").expect("a pattern");
        proptest::collection::vec(label, 0..4).prop_map(|labels| labels.join("."))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn as_pattern_by_pattern(patterns in proptest::collection::vec(pattern(), 1..5), name in name()) {
            let globs = globs(&patterns);
            // Now and then so many * are too much, which is refused.
            let states = automaton(&globs);
            prop_assume!(states.is_ok());
            let states = states.unwrap_or_default();
            let expected = (0..).zip(&globs).filter(|(_, glob)| takes(glob.as_bytes(), name.as_bytes()));
            prop_assert_eq!(asked(&states, &name), expected.fold(0, |set, (rule, _)| set | 1 << rule));
        }
    }
}
