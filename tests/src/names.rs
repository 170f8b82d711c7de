//! Processes, cgroups, interfaces and mounts may be called anything the kernel allows. Whatever their names are, they are shown so
//! that no terminal obeys them and no line is forged, and nobody is hit for another of almost the same name.

mod cgroups;
mod hit;
mod interfaces;
mod messages;
mod mounts;
mod processes;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{
    ensure,
    error::{Context, Result},
    faultline::binary,
    harness::{Need, Test, die_with_parent, is_gate, is_spared},
    life::killed::fraction,
};

/// The tests of these files.
pub(crate) const TESTS: &[&[Test]] =
    &[processes::TESTS, cgroups::TESTS, interfaces::TESTS, mounts::TESTS, messages::TESTS, hit::TESTS];

const BPF: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2];
const PATIENCE: Duration = Duration::from_secs(30);
/// A folder of this test's own: so is its `/run`.
const FOLDER: &str = "/run/names";
/// What a name would have a line begin with.
const FORGED: &str = "fault 00000";
/// Those that are likeliest to be taken for something else. Each is still itself when it is cut to 15 bytes.
const NASTY: &[&[u8]] = &[
    b"x\nfault 00000 on lo, seed 1",
    b"\rx\x08\t\x0b\x7f",
    b"\x1b[31mred",
    b"\x1b]0;title\x07",
    b"\x1b[2J\x1b[H",
    b"\x1b]52;c;eA==\x07",
    b"c\x9b2J",
    "c\u{9b}2J".as_bytes(),
    "r\u{202e}gpj.exe".as_bytes(),
    "i\u{2066}s\u{2069}o".as_bytes(),
    "l\u{2028}s\u{2029}".as_bytes(),
    "\u{61c}a\u{200f}".as_bytes(),
    b"i\xff",
    b"i\xfe",
    "i\u{fffd}".as_bytes(),
    b"i\xc3",
    b") R 1 (",
    b") Z 1 1 1",
    b"-rf",
    b"--all",
    b"--and",
    b"--",
    b" ",
    b" x ",
    b"a b",
    b"a\\012b",
    b"\\040",
    b"%s%n",
    b"\"',{}",
    b"$(id)`id`",
];

/// One fault of each kind.
const FAULTS: &[&str] = &[
    "net loss 1%",
    "net refuse",
    "net reset",
    "net delay 1ms",
    "net corrupt 1%",
    "net partition --peer 10.77.9.9",
    "net timeout",
    "net dns servfail --name *.example.com",
    "net --profile lte",
    "io error EIO --ops read,write",
    "io delay 1us --ops read",
    "io corrupt flip",
    "io full",
    "io slow 1mb/s --path /",
    "sys error getpid EIO",
    "sys delay getpid 1us",
    "mem error",
    "fd error",
    "fork error",
    "sock error EIO --ops connect",
    "deny --ops open",
    "time skew --offset 1h",
];

/// These and random ones, always the same, of so many bytes at most.
fn names(longest: usize) -> BTreeSet<Vec<u8>> {
    let mut seed = 20;
    let mut below = |end: usize| (fraction(&mut seed) * end as f64) as usize;
    let mut names: BTreeSet<Vec<u8>> = NASTY.iter().map(|name| name.to_vec()).collect();
    names.insert([&b"\x1b"[..], &vec![b'l'; longest]].concat());
    for _ in 0..4 {
        let length = 1 + below(longest);
        names.insert((0..length).map(|_| below(256) as u8).collect());
        let some = ['\n', '\u{1b}', '\u{9b}', '\u{202e}', '\u{2029}', '\u{fffd}', '"', '\\', ' ', 'n', '名'];
        names.insert((0..length).map(|_| some[below(some.len())]).collect::<String>().into_bytes());
    }
    // What no name of a file may hold, or be.
    names
        .into_iter()
        .map(|mut name| {
            name.retain(|byte| !b"\0/".contains(byte));
            name.truncate(longest);
            name
        })
        .filter(|name| !name.is_empty() && name.iter().any(|byte| *byte != b'.'))
        .collect()
}

/// Of what is done name by name, the gate does each third, and so do guests.
fn step() -> usize {
    if is_gate() || is_spared() { 3 } else { 1 }
}

/// What a command said, which was fit to be said.
struct Said {
    words: String,
    code: Option<i32>,
    lines: Vec<Value>,
    stdout: String,
    stderr: String,
}

/// A command: words parted by single spaces, then words of any bytes.
fn command(line: &str, more: &[&[u8]]) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.args(line.split(' ')).args(more.iter().map(|word| OsStr::from_bytes(word)));
    command.stdin(Stdio::null());
    die_with_parent(&mut command);
    Ok(command)
}

/// Runs a command, and looks at each byte of what it says.
fn said(line: &str, more: &[&[u8]]) -> Result<Said> {
    let more_words: Vec<_> = more.iter().map(|word| word.escape_ascii().to_string()).collect();
    let words = format!("{line} {more_words:?}");
    let output = command(line, more)?.output().context("faultline")?;
    let code = output.status.code();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| fit(&text));
    let (stdout, stderr) = (stdout.context(&words)?, stderr.context(&words)?);
    // Nothing here ends a run before its time or keeps one from being reverted, which 4, 6 and 130 would say; the last two are
    // those of a command that is not there.
    ensure!(matches!(code, Some(0 | 2 | 3 | 5 | 126 | 127)), "{words}: {}: {stderr}", output.status);
    let refused = matches!(code, Some(2 | 3));
    let is_help = stderr.contains("Usage:");
    ensure!(!refused || is_help || stderr.lines().count() <= 1, "{words}: more than a line: {stderr}");
    let mut lines = Vec::new();
    if line.split(' ').any(|word| word == "--json") {
        for line in stdout.lines() {
            let object: Value = serde_json::from_str(line).context(format_args!("{words}: {line}"))?;
            ensure!(object.is_object(), "{words}: no object: {line}");
            lines.push(object);
        }
    }
    Ok(Said { words, code, lines, stdout, stderr })
}

/// What was printed, if nothing in it but the end of a line is more than is to be seen, and no line is forged.
fn fit(text: &[u8]) -> Result<String> {
    let shown = text.escape_ascii();
    let text = std::str::from_utf8(text).context(format_args!("not UTF-8: {shown}"))?;
    let obeyed = text.chars().find(|character| {
        let turns = matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let ends = matches!(character, '\u{2028}' | '\u{2029}');
        *character != '\n' && (character.is_control() || turns || ends)
    });
    ensure!(obeyed.is_none(), "{obeyed:?} in {shown}");
    ensure!(!text.contains("panicked"), "it panicked: {shown}");
    ensure!(!text.lines().any(|line| line.starts_with(FORGED)), "forged: {shown}");
    Ok(text.into())
}

impl Said {
    /// The plan, unless this kernel cannot do it.
    fn plan(&self) -> Option<&Value> {
        self.lines.iter().find(|line| line["event"] == "plan")
    }

    /// Whom a plan is aimed at, by number; and their names.
    fn processes(&self) -> Result<BTreeMap<u32, String>> {
        let targets = self.plan().context(&self.words)?["targets"].as_array().context(&self.words)?;
        let processes = targets.iter().filter_map(|target| target["processes"].as_array()).flatten();
        let named = |it: &Value| Some((it["pid"].as_u64()? as u32, it["name"].as_str()?.to_owned()));
        processes.map(|it| named(it).context(&self.words)).collect()
    }

    /// What a plan calls the target.
    fn target(&self) -> Result<&str> {
        self.plan().and_then(|plan| plan["targets"][0]["target"].as_str()).context(&self.words)
    }

    /// Fails unless these and no others are aimed at, or the kernel cannot do it; whether it can.
    fn hits(&self, pids: &[u32]) -> Result<bool> {
        if self.plan().is_none() {
            ensure!(self.code == Some(3), "{}: {:?}: {}", self.words, self.code, self.stderr);
            return Ok(false);
        }
        let found: Vec<u32> = self.processes()?.into_keys().collect();
        let wanted: BTreeSet<u32> = pids.iter().copied().collect();
        ensure!(found.iter().eq(wanted.iter()), "{}: {found:?}, not {wanted:?}", self.words);
        Ok(true)
    }

    /// The same of what may be refused because its name cannot be typed.
    fn hits_nobody_else(&self, name: &[u8], pids: &[u32]) -> Result<bool> {
        match self.code {
            Some(2) if std::str::from_utf8(name).is_err() => Ok(false),
            _ => self.hits(pids),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{fit, names};

    #[test]
    fn what_is_not_fit_is_found() {
        for text in ["", "two\nlines\n", "名: é", "a\\u{1b}[2J"] {
            assert!(fit(text.as_bytes()).is_ok(), "{text}");
        }
        for text in [&b"\x1b[2J"[..], b"a\rb", b"\x9b", "\u{9b}".as_bytes(), "\u{202e}".as_bytes(), b"\x7f"] {
            assert!(fit(text).is_err(), "{}", text.escape_ascii());
        }
        assert!(fit(b"a\nfault 00000 on lo").is_err() && fit(b"thread panicked").is_err());
    }

    #[test]
    fn names_are_names() {
        for longest in [15, 255] {
            let names = names(longest);
            assert!(names.len() > 30 && names.iter().any(|name| name.len() == longest));
            let is_name = |name: &Vec<u8>| (1..=longest).contains(&name.len()) && !name.contains(&b'/');
            assert!(names.iter().all(is_name));
        }
    }
}
