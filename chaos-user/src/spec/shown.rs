//! What is shown to people: names of processes, cgroups, interfaces and files are chosen by whoever makes them, and may hold what a
//! terminal obeys. A line is written by one call; whatever else than its end in it could move the cursor, end it, or turn it round
//! is shown as an escape.

use std::{
    borrow::Cow,
    ffi::OsStr,
    fmt::{self, Write},
    os::unix::ffi::OsStrExt,
};

/// Whether a terminal, or the reader of a line, is told something by it that it does not look like: what moves the cursor, ends a
/// line, turns it round, or is not to be seen.
fn is_obeyed(character: char) -> bool {
    // What Rust's own escapes take for what can be printed is by the tables of Unicode. What goes with the letter before it can.
    let is_printed = || {
        let mut behind_a_letter = [b'a'; 5];
        let length = character.encode_utf8(&mut behind_a_letter[1..]).len();
        let text = std::str::from_utf8(&behind_a_letter[..=length]).unwrap_or_default();
        text.escape_debug().eq(text.chars())
    };
    if character.is_ascii() { character.is_ascii_control() } else { !is_printed() }
}

/// A name of any bytes, as text that no other name has: a byte that is no character's is `\xff`. Where a name has such text
/// itself, backslashes before it are doubled.
#[must_use]
pub(crate) fn name<T: AsRef<OsStr> + ?Sized>(name: &T) -> String {
    let mut text = String::new();
    for chunk in name.as_ref().as_bytes().utf8_chunks() {
        text.push_str(&told_apart(chunk.valid(), !chunk.invalid().is_empty()));
        for byte in chunk.invalid() {
            // A string takes everything.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Characters with all backslashes doubled that stand before what looks like such a byte, or before one.
fn told_apart(text: &str, is_before_one: bool) -> Cow<'_, str> {
    let looks_like_one = |rest: &str| {
        let digits = rest.strip_prefix('x').and_then(|rest| rest.as_bytes().get(..2));
        digits.is_some_and(|digits| matches!(digits, [b'8' | b'9' | b'a'..=b'f', b'0'..=b'9' | b'a'..=b'f']))
    };
    if !text.contains('\\') {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len() + 8);
    let mut rest = text;
    while let Some(start) = rest.find('\\') {
        let (before, from) = rest.split_at(start);
        let behind = from.trim_start_matches('\\');
        let run = &from[..from.len() - behind.len()];
        safe.push_str(before);
        safe.push_str(run);
        if looks_like_one(behind) || behind.is_empty() && is_before_one {
            safe.push_str(run);
        }
        rest = behind;
    }
    safe.push_str(rest);
    safe.into()
}

/// A line, without its end, as it may be shown.
#[must_use]
pub fn shown(line: &str) -> Cow<'_, str> {
    replaced(line, |character, text| {
        // A string takes everything.
        let _ = write!(text, "{}", character.escape_default());
    })
}

/// JSON, as it may be shown: whoever reads it reads the same.
#[must_use]
pub fn shown_json(json: &str) -> Cow<'_, str> {
    replaced(json, |character, text| {
        let mut units = [0; 2];
        for unit in character.encode_utf16(&mut units) {
            let _ = write!(text, "\\u{unit:04x}");
        }
    })
}

fn replaced(text: &str, replace: impl Fn(char, &mut String)) -> Cow<'_, str> {
    if !text.contains(is_obeyed) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_obeyed(character) {
            replace(character, &mut safe);
        } else {
            safe.push(character);
        }
    }
    safe.into()
}

/// Lines for people: `writeln!` on it writes one, as it may be shown.
#[derive(Debug)]
pub struct Lines<W>(pub W);

impl<W: Write> Lines<W> {
    /// What `writeln!` calls.
    ///
    /// # Errors
    ///
    /// Those of what it is written to.
    pub fn write_fmt(&mut self, line: fmt::Arguments<'_>) -> fmt::Result {
        self.0.write_str(&one(line))
    }
}

/// A line as `writeln!` has it, as it may be shown.
#[must_use]
pub fn one(line: fmt::Arguments<'_>) -> String {
    let text = line.to_string();
    match text.strip_suffix('\n') {
        Some(line) => format!("{}\n", shown(line)),
        None => shown(&text).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_any_bytes() {
        let same = [
            "",
            "eth0",
            "名前",
            r"dev-disk\x2duuid.swap",
            r"a\b",
            r"\",
            r"a\xf",
            r"\xFF",
            "a\nb",
            "\u{fffd}",
        ];
        for text in same {
            assert_eq!(name(text), text);
        }
        let bytes = |bytes: &[u8]| name(OsStr::from_bytes(bytes));
        assert_eq!(bytes(b"a\xff"), r"a\xff");
        assert_eq!(bytes(br"a\xff"), r"a\\xff");
        assert_eq!(bytes(b"a\\\xff"), r"a\\\xff");
        assert_eq!(bytes(b"\xe5\x90"), r"\xe5\x90");
        assert_eq!(bytes(b"\\\xff\\"), r"\\\xff\");
    }

    #[test]
    fn nothing_is_obeyed() {
        for text in ["eth0: a name — and 名前", "e\u{301} ±5 µs \"x\" \\ 'y' नमस्ते"] {
            assert_eq!(shown(text), text);
        }
        assert_eq!(shown("a\u{200b}b\u{feff}\u{ad}\u{e0041}"), r"a\u{200b}b\u{feff}\u{ad}\u{e0041}");
        assert_eq!(shown("a\nb\tc\x1b[2Jd\u{9b}e\u{202e}f\x7f"), r"a\nb\tc\u{1b}[2Jd\u{9b}e\u{202e}f\u{7f}");
        assert_eq!(shown_json("\"a\u{9b}\u{202e}\u{7f}\""), r#""a\u009b\u202e\u007f""#);
        let mut text = Lines(String::new());
        let fault = "a\nfault";
        writeln!(text, "rule {}: {fault}", 1).expect("a string");
        writeln!(text, "next").expect("a string");
        assert_eq!(text.0, "rule 1: a\\nfault\nnext\n");
    }

    /// What [`name`] was made of.
    fn read(text: &str) -> Vec<u8> {
        let (mut bytes, mut rest) = (Vec::new(), text);
        while let Some(start) = rest.find('\\') {
            bytes.extend_from_slice(&rest.as_bytes()[..start]);
            let behind = rest[start..].trim_start_matches('\\');
            let run = rest.len() - start - behind.len();
            let digits = behind.strip_prefix('x').and_then(|behind| behind.get(..2));
            let byte = digits.filter(|digits| !digits.contains(char::is_uppercase));
            let byte =
                byte.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|byte| *byte >= 0x80);
            let all = if byte.is_some() { run / 2 } else { run };
            bytes.extend(std::iter::repeat_n(b'\\', all));
            rest = behind;
            if let Some(byte) = byte.filter(|_| run % 2 == 1) {
                bytes.push(byte);
                rest = &behind[3..];
            }
        }
        bytes.extend_from_slice(rest.as_bytes());
        bytes
    }

    proptest! {
        #[test]
        fn no_two_names_look_alike(bytes in prop::collection::vec(prop::sample::select(&b"\\\\\\x8faF\xff\xe5\x90\x8d0"[..]), 0..12)) {
            let text = name(OsStr::from_bytes(&bytes));
            prop_assert_eq!(read(&text), bytes);
        }

        #[test]
        fn whatever_it_is(text: String) {
            prop_assert!(!shown(&text).contains(is_obeyed));
            let json = serde_json::to_string(&text).expect("a string");
            let safe = shown_json(&json);
            prop_assert!(!safe.contains(is_obeyed));
            prop_assert_eq!(serde_json::from_str::<String>(&safe).expect("JSON"), text);
        }
    }
}
