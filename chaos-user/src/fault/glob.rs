//! Globs of file names, as the program in the kernel walks them. What `*`, `?`, `[a-z]` and `[!a-z]` are is glob(7)'s.

use chaos_ebpf::glob::{Glob, LONGEST};

use crate::spec::Invalid;

/// The automaton of a pattern, for these rules.
///
/// # Errors
///
/// [`Invalid`] for a bracket without its other, or a pattern that is too long.
pub fn compile(pattern: &str, rules: u64) -> Result<Glob, Invalid> {
    let mut glob = Glob { rules, ..Glob::NOTHING };
    let mut bytes = pattern.as_bytes();
    let mut place = 0;
    while let Some((first, rest)) = bytes.split_first() {
        if *first == b'*' {
            glob.stays |= 1 << place;
            bytes = rest;
            continue;
        }
        if place == LONGEST {
            return Err(Invalid::new(format!("a glob has at most {LONGEST} characters")));
        }
        let (class, rest) = class(*first, rest)?;
        for (next, taken) in glob.next.iter_mut().zip(class) {
            *next |= u64::from(taken) << place;
        }
        place += 1;
        bytes = rest;
    }
    glob.end = 1 << place;
    Ok(glob)
}

/// Which bytes the next character of a pattern takes, and what is behind it.
fn class(first: u8, rest: &[u8]) -> Result<([bool; 256], &[u8]), Invalid> {
    let only = |byte: u8| std::array::from_fn(|it| it == usize::from(byte));
    match first {
        b'?' => Ok(([true; 256], rest)),
        b'\\' => rest.split_first().map(|(byte, rest)| (only(*byte), rest)).ok_or_else(|| {
            Invalid::new("a glob ends with a backslash, which takes the meaning from what follows it")
        }),
        b'[' => {
            bracket(rest).ok_or_else(|| Invalid::new("a glob has a [ without its ]; write \\[ for itself"))
        }
        byte => Ok((only(byte), rest)),
    }
}

fn bracket(text: &[u8]) -> Option<([bool; 256], &[u8])> {
    let (negated, mut text) = match text.strip_prefix(b"!").or_else(|| text.strip_prefix(b"^")) {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut taken = [false; 256];
    let mut is_first = true;
    loop {
        let (byte, rest) = text.split_first()?;
        text = rest;
        // A bracket that comes first stands for itself.
        if *byte == b']' && !is_first {
            break;
        }
        is_first = false;
        match text {
            [b'-', to, rest @ ..] if *to != b']' => {
                text = rest;
                (*byte..=*to).for_each(|it| taken[usize::from(it)] = true);
            }
            _ => taken[usize::from(*byte)] = true,
        }
    }
    Some((taken.map(|it| it != negated), text))
}

/// Whether it takes a name, as the program in the kernel finds it out.
#[must_use]
pub fn takes(glob: &Glob, name: &[u8]) -> bool {
    let places = name.iter().fold(chaos_ebpf::glob::START, |places, byte| glob.step(places, *byte));
    places & glob.end != 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        takes(&compile(pattern, 1).expect("valid"), name.as_bytes())
    }

    #[test]
    fn what_globs_take() {
        for (pattern, takes, not) in [
            ("*.db", &["a.db", ".db", "a.b.db"][..], &["a.dbx", "db", "A.DB", ""][..]),
            ("*", &["", "a", "anything at all"], &[]),
            ("a?c", &["abc", "a-c"], &["ac", "abbc", "ABC"]),
            ("[a-c]x", &["ax", "cx"], &["dx", "x", "[x"]),
            ("[!a-c]x", &["dx", "-x"], &["ax", "x"]),
            ("[]a]", &["]", "a"], &["b"]),
            ("a\\*", &["a*"], &["ab", "a"]),
            ("*a*b*", &["ab", "xaxbx"], &["ba", "a", "b"]),
        ] {
            assert!(takes.iter().all(|name| matches(pattern, name)), "{pattern}");
            assert!(not.iter().all(|name| !matches(pattern, name)), "{pattern}");
        }
        for pattern in ["[a", "a\\", &"x".repeat(LONGEST + 1)] {
            assert!(compile(pattern, 1).is_err(), "{pattern}");
        }
        assert!(matches(&"x".repeat(LONGEST), &"x".repeat(LONGEST)));
    }

    /// The definition: what is left of a pattern, and of a name.
    fn definition(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, rest) => rest.is_none(),
            (Some((b'*', more)), _) => (0..=name.len()).any(|skipped| definition(more, &name[skipped..])),
            (Some((b'?', more)), Some((_, rest))) => definition(more, rest),
            (Some((wanted, more)), Some((there, rest))) => wanted == there && definition(more, rest),
            (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn as_defined(pattern in "[ab*?]{0,8}", name in "[abc]{0,8}") {
            prop_assert_eq!(matches(&pattern, &name), definition(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
