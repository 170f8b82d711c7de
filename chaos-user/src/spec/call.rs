//! A fault in system calls, as it was written.

use std::{fmt, path::Path, str::FromStr, time::Duration};

use chaos_ebpf::{
    abi::Window,
    call::{ARGUMENTS, Argument, MOST_BYTES, NAME, Name},
};
use nix::errno::Errno;
use syscalls::Sysno;

use super::{Delay, Impairments, Invalid, Op, Owner, Percent, file::read_file, op::unknown};
use crate::kernel::mechanism::Mechanism;

/// A kind of fault: the first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Family {
    Io,
    Sys,
    Mem,
    Fd,
    Fork,
    Sock,
    Deny,
}

impl Family {
    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::Sys => "sys",
            Self::Mem => "mem",
            Self::Fd => "fd",
            Self::Fork => "fork",
            Self::Sock => "sock",
            Self::Deny => "deny",
        }
    }

    /// The operations it can be of.
    #[must_use]
    pub fn ops(self) -> Vec<Op> {
        match self {
            Self::Io => Op::OF_FILES.to_vec(),
            Self::Sock => Op::OF_SOCKETS.to_vec(),
            Self::Mem => Op::OF_MEMORY.to_vec(),
            Self::Fd => vec![Op::Fd],
            Self::Fork => vec![Op::Fork],
            Self::Deny => [&Op::OF_FILES[..], &Op::OF_SOCKETS].concat(),
            Self::Sys => Vec::new(),
        }
    }

    /// Those it is of if nothing else is said.
    #[must_use]
    pub fn usual(self) -> Vec<Op> {
        match self {
            Self::Io => vec![Op::Read, Op::Write],
            Self::Deny => vec![Op::Open],
            family => family.ops(),
        }
    }

    /// The errors the operation can end with, if not any: what it asks the kernel for has only these to give.
    #[must_use]
    pub fn errnos(self) -> &'static [Errno] {
        match self {
            Self::Io | Self::Sys | Self::Sock => &[],
            // Whatever else is the reason, the kernel says this.
            Self::Mem => &[Errno::ENOMEM],
            Self::Fd => &[Errno::EMFILE, Errno::ENFILE],
            Self::Fork => &[Errno::EAGAIN, Errno::ENOMEM],
            Self::Deny => &[Errno::EACCES, Errno::EPERM],
        }
    }
}

/// What is done to a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// It fails.
    Error(Errno),
    /// It fails if a file would grow by it.
    Full(Errno),
    /// It takes longer.
    Delay(Delay),
    /// What was read is wrong.
    Corrupt(Spoil),
}

/// How what was read is made wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spoil {
    /// What becomes of the bytes.
    pub kind: SpoilKind,
    /// How many, at most [`MOST_BYTES`].
    pub bytes: u32,
    /// Where they begin in what was read; anywhere if it does not say.
    pub offset: Option<u32>,
}

/// What becomes of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpoilKind {
    /// One bit of each is turned over.
    Flip,
    /// They are 0.
    Zero,
    /// They are others, by chance.
    Random,
}

impl SpoilKind {
    const ALL: [Self; 3] = [Self::Flip, Self::Zero, Self::Random];

    const fn name(self) -> &'static str {
        match self {
            Self::Flip => "flip",
            Self::Zero => "zero",
            Self::Random => "random",
        }
    }
}

/// Which calls.
#[derive(Clone, Debug, PartialEq)]
pub enum Calls {
    /// Whatever does this.
    Ops(Vec<Op>),
    /// These system calls, with such arguments.
    Named(Vec<Sysno>, [Argument; ARGUMENTS]),
}

/// A file, or a directory with everything beneath.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathSpec {
    /// The file, or the directory of what the glob matches.
    pub path: String,
    /// Which of its entries.
    pub glob: Option<String>,
}

/// A device, by its numbers or by its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceSpec {
    /// Major and minor number.
    Numbers(u32, u32),
    /// Its file.
    File(String),
}

/// Which calls of whom. Entries of one list are alternatives, and all lists must be met; an empty one asks nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CallMatch {
    /// Whose.
    pub owners: Vec<Owner>,
    /// Everybody's.
    pub everything: bool,
    /// Of which files.
    pub paths: Vec<PathSpec>,
    /// In file systems of which types.
    pub file_systems: Vec<NameSpec>,
    /// On which devices.
    pub devices: Vec<DeviceSpec>,
    /// Opened with all of these `O_*`.
    pub flags: OpenFlags,
    /// Of threads of these names.
    pub comms: Vec<NameSpec>,
    /// Of these users.
    pub users: Vec<UserSpec>,
}

impl CallMatch {
    /// Whether it says whose calls, or of which files.
    #[must_use]
    pub fn is_aimed(&self) -> bool {
        !self.owners.is_empty() || !self.paths.is_empty()
    }
}

/// What is done to which calls.
#[derive(Clone, Debug, PartialEq)]
pub struct CallFault {
    /// Its family.
    pub family: Family,
    /// What is done.
    pub action: Action,
    /// To which calls.
    pub calls: Calls,
    /// Of whom, about what.
    pub matches: CallMatch,
    /// How likely.
    pub percent: Percent,
    /// Which of these by their order.
    pub window: Window,
}

/// Faults of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct CallSpec {
    /// They.
    pub faults: Vec<CallFault>,
    /// Seed of the random numbers; drawn if none is given.
    pub seed: Option<u64>,
    /// How long; until interrupted if it does not say.
    pub duration: Option<Duration>,
    /// By which mechanism, if not by the best there is.
    pub by: Option<Mechanism>,
}

/// A short name, as the kernel keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameSpec(String);

impl NameSpec {
    /// With zeros behind it.
    #[must_use]
    pub fn padded(&self) -> Name {
        let mut name = [0; NAME];
        name[..self.0.len()].copy_from_slice(self.0.as_bytes());
        let [first, second] = [0, NAME / 2].map(|half| {
            let mut word = [0; NAME / 2];
            word.copy_from_slice(&name[half..half + NAME / 2]);
            u64::from_ne_bytes(word)
        });
        [first, second]
    }
}

impl FromStr for NameSpec {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() || text.len() >= NAME || text.contains('\0') {
            return Err(Invalid::new(format!("the kernel's names have 1 to {} bytes", NAME - 1)));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for NameSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A user, by number or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserSpec {
    /// The number.
    pub uid: u32,
    text: String,
}

impl FromStr for UserSpec {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let uid = text.parse().ok().or_else(|| user_of("/etc/passwd", text));
        let none =
            || Invalid::new("there is no such user in /etc/passwd; write a name there is, or a number");
        let uid = uid.ok_or_else(none)?;
        Ok(Self { uid, text: text.into() })
    }
}

/// The number of a user. The C library is not asked: of a program that is linked by itself it asks for more than there is.
fn user_of(file: &str, name: &str) -> Option<u32> {
    /// Of a host with a hundred thousand users.
    const LARGEST: u64 = 16 << 20;
    let text = read_file(Path::new(file), LARGEST).ok()?;
    let mut lines = text.lines().map(|line| line.split(':'));
    lines.find_map(|mut words| (words.next() == Some(name)).then(|| words.nth(1)?.parse().ok())?)
}

impl fmt::Display for UserSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A set of `O_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags(pub u32);

const OPEN_FLAGS: [(&str, i32); 9] = [
    ("O_WRONLY", libc::O_WRONLY),
    ("O_RDWR", libc::O_RDWR),
    ("O_APPEND", libc::O_APPEND),
    ("O_NONBLOCK", libc::O_NONBLOCK),
    ("O_SYNC", libc::O_SYNC),
    ("O_DSYNC", libc::O_DSYNC),
    ("O_DIRECT", libc::O_DIRECT),
    ("O_DIRECTORY", libc::O_DIRECTORY),
    ("O_NOATIME", libc::O_NOATIME),
];

impl FromStr for OpenFlags {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let names = || OPEN_FLAGS.iter().map(|(name, _)| *name);
        let all = names().collect::<Vec<_>>().join(", ");
        text.split(',').try_fold(Self(0), |Self(flags), word| {
            let found = OPEN_FLAGS.iter().find(|(name, _)| *name == word);
            let (_, flag) = found.ok_or_else(|| unknown("flag of open()", word, names(), &all))?;
            Ok(Self(flags | flag.cast_unsigned()))
        })
    }
}

impl fmt::Display for OpenFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = |flag: &i32| self.0 & flag.cast_unsigned() == flag.cast_unsigned();
        let names: Vec<_> =
            OPEN_FLAGS.iter().filter(|(_, flag)| has(flag) && *flag != 0).map(|(name, _)| *name).collect();
        f.write_str(&names.join(","))
    }
}

impl FromStr for PathSpec {
    type Err = Invalid;

    /// A `*`, `?` or `[` in the last component makes it a glob; anywhere else they stand for themselves.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() {
            return Err(Invalid::new("a path is missing"));
        }
        let text = if text.len() > 1 { text.trim_end_matches('/') } else { text };
        let (folder, last) = text.rsplit_once('/').unwrap_or((".", text));
        if !last.contains(['*', '?', '[']) {
            return Ok(Self { path: if text.is_empty() { "/" } else { text }.into(), glob: None });
        }
        let folder = if folder.is_empty() { "/" } else { folder };
        Ok(Self { path: folder.into(), glob: Some(last.into()) })
    }
}

impl fmt::Display for PathSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.glob {
            None => f.write_str(&self.path),
            Some(glob) => write!(f, "{}/{glob}", self.path.trim_end_matches('/')),
        }
    }
}

impl FromStr for DeviceSpec {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.starts_with('/') {
            return Ok(Self::File(text.into()));
        }
        let numbers = text.split_once(':').and_then(|(major, minor)| {
            Some(Self::Numbers(
                major.parse().ok().filter(|major| *major < 1 << 12)?,
                minor.parse().ok().filter(|minor| *minor < 1 << 20)?,
            ))
        });
        numbers.ok_or_else(|| Invalid::new("write MAJOR:MINOR, such as 8:0, or a device's file, /dev/sda"))
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numbers(major, minor) => write!(f, "{major}:{minor}"),
            Self::File(path) => f.write_str(path),
        }
    }
}

/// An errno by its name or number.
///
/// # Errors
///
/// [`Invalid`] for what the kernel has no error of, with the nearest names.
pub fn parse_errno(text: &str) -> Result<Errno, Invalid> {
    let known = || (1..512).map(Errno::from_raw).filter(|errno| *errno != Errno::UnknownErrno);
    let number = text.parse::<i32>().ok();
    let found = known().find(|errno| match number {
        Some(number) => *errno as i32 == number,
        None => format!("{errno:?}").eq_ignore_ascii_case(text),
    });
    found.ok_or_else(|| {
        let names: Vec<_> = known().map(|errno| format!("{errno:?}")).collect();
        unknown(
            "errno",
            text,
            names.iter().map(String::as_str),
            "EIO, ENOSPC, EACCES and the like, or a number",
        )
    })
}

/// System calls by their names.
///
/// # Errors
///
/// [`Invalid`] for what is none, with the nearest names.
pub fn parse_calls(text: &str) -> Result<Vec<Sysno>, Invalid> {
    let one = |name: &str| {
        let none = || {
            let names = Sysno::iter().map(|call| call.name());
            unknown("system call", name, names, "those of `man 2 syscalls`")
        };
        name.parse::<Sysno>().map_err(|_| none())
    };
    text.split(',').map(one).collect()
}

/// `N=VALUE`, or `N~MASK` for bits that must be there.
///
/// # Errors
///
/// [`Invalid`] for anything else.
pub fn parse_argument(text: &str) -> Result<(usize, Argument), Invalid> {
    let invalid = || {
        Invalid::new(
            "write 0=3 for a first argument of 3, or 1~0x40 for a second one with this bit; there are 6",
        )
    };
    let at = text.find(['=', '~']).ok_or_else(invalid)?;
    let (place, value) = (&text[..at], &text[at + 1..]);
    let place = place.parse().ok().filter(|place| *place < ARGUMENTS).ok_or_else(invalid)?;
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let argument = if text.as_bytes()[at] == b'~' {
        let mask = number(value).filter(|mask| *mask != 0).ok_or_else(invalid)?;
        Argument { mask, value: mask }
    } else if value.starts_with('-') {
        // What is below zero is an `int`, whose upper half may be anything.
        let value = value.parse::<i32>().map_err(|_| invalid())?;
        Argument { mask: u32::MAX.into(), value: value.cast_unsigned().into() }
    } else {
        Argument { mask: u64::MAX, value: number(value).ok_or_else(invalid)? }
    };
    Ok((place, argument))
}

impl Action {
    /// What comes after `io delay` and `sys delay`: as for packets.
    ///
    /// # Errors
    ///
    /// [`Invalid`].
    pub fn delay(words: &[String]) -> Result<Self, Invalid> {
        let words: Vec<String> = std::iter::once("delay".to_owned()).chain(words.iter().cloned()).collect();
        match Impairments::parse(&words)? {
            Impairments { delay: Some(delay), ref ramps, .. } if ramps.is_empty() => {
                if delay.time.is_zero() && delay.jitter.is_zero() {
                    return Err(Invalid::new("delay: TIME is 0, which is none"));
                }
                Ok(Self::Delay(delay))
            }
            _ => Err(Invalid::new("delay: calls have a delay that does not change; leave FROM..TO/TIME out")),
        }
    }

    /// What comes after `io corrupt`: how, how many bytes and where.
    ///
    /// # Errors
    ///
    /// [`Invalid`].
    pub fn corrupt(words: &[String]) -> Result<Self, Invalid> {
        let mut spoil = Spoil { kind: SpoilKind::Flip, bytes: 1, offset: None };
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            let mut number = |most: u32| {
                let value = words.next().and_then(|text| text.parse::<u32>().ok());
                value.filter(|value| *value <= most)
            };
            match word {
                "bytes" => {
                    spoil.bytes = number(MOST_BYTES).filter(|bytes| *bytes > 0).ok_or_else(|| {
                        Invalid::new(format!("corrupt: bytes is followed by a number from 1 to {MOST_BYTES}"))
                    })?;
                }
                "offset" => {
                    let offset = number(u32::MAX - 1);
                    let missing = || Invalid::new("corrupt: offset is followed by a number of bytes");
                    spoil.offset = Some(offset.ok_or_else(missing)?);
                }
                word => {
                    let found = SpoilKind::ALL.into_iter().find(|kind| kind.name() == word);
                    let names = SpoilKind::ALL.into_iter().map(SpoilKind::name);
                    let all = "flip, zero, random, bytes N and offset N";
                    spoil.kind = found.ok_or_else(|| unknown("way to corrupt", word, names, all))?;
                }
            }
        }
        Ok(Self::Corrupt(spoil))
    }

    /// Its word.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Error(_) => "error",
            Self::Full(_) => "full",
            Self::Delay(_) => "delay",
            Self::Corrupt(_) => "corrupt",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(errno) => write!(f, "error {errno:?}"),
            Self::Full(errno) => write!(f, "full {errno:?}"),
            Self::Delay(delay) => {
                write!(f, "{}", Impairments { delay: Some(delay.clone()), ..Impairments::default() })
            }
            Self::Corrupt(Spoil { kind, bytes, offset }) => {
                write!(f, "corrupt {} bytes {bytes}", kind.name())?;
                offset.map_or(Ok(()), |offset| write!(f, " offset {offset}"))
            }
        }
    }
}

impl fmt::Display for CallFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, action, calls, matches, percent, window } = self;
        match family {
            Family::Deny => write!(f, "deny{}", action.to_string().trim_start_matches("error"))?,
            family => write!(f, "{} {action}", family.name())?,
        }
        match calls {
            Calls::Named(calls, arguments) => {
                let names: Vec<_> = calls.iter().map(Sysno::name).collect();
                write!(f, " of {}", names.join(","))?;
                for (place, Argument { mask, value }) in arguments.iter().enumerate() {
                    match *mask {
                        0 => {}
                        mask if mask == *value && mask != u64::MAX => write!(f, " --arg {place}~{mask:#x}")?,
                        _ => write!(f, " --arg {place}={value:#x}")?,
                    }
                }
            }
            Calls::Ops(ops) if !matches!(action, Action::Full(_) | Action::Corrupt(_)) => {
                let names: Vec<_> = ops.iter().map(|op| op.name()).collect();
                write!(f, " --ops {}", names.join(","))?;
            }
            Calls::Ops(_) => {}
        }
        write!(f, "{matches}")?;
        if *percent != Percent::ALL {
            write!(f, " --percent {percent}")?;
        }
        write!(f, "{}", super::net::Ordered(window))
    }
}

impl fmt::Display for CallMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { owners, everything, paths, file_systems, devices, flags, comms, users } = self;
        owners.iter().try_for_each(|owner| write!(f, " {owner}"))?;
        if *everything {
            f.write_str(" --everything")?;
        }
        paths.iter().try_for_each(|path| write!(f, " --path {path}"))?;
        file_systems.iter().try_for_each(|name| write!(f, " --fstype {name}"))?;
        devices.iter().try_for_each(|device| write!(f, " --dev-block {device}"))?;
        if flags.0 != 0 {
            write!(f, " --open-flags {flags}")?;
        }
        comms.iter().try_for_each(|name| write!(f, " --comm {name}"))?;
        users.iter().try_for_each(|user| write!(f, " --uid {user}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_globs() {
        let path = |text: &str| text.parse::<PathSpec>().map(|it| (it.path, it.glob)).expect("valid");
        assert_eq!(path("/data"), ("/data".into(), None));
        assert_eq!(path("/data/"), ("/data".into(), None));
        assert_eq!(path("/"), ("/".into(), None));
        assert_eq!(path("/data/*.db"), ("/data".into(), Some("*.db".into())));
        assert_eq!(path("/*"), ("/".into(), Some("*".into())));
        assert_eq!(path("x?"), (".".into(), Some("x?".into())));
        assert!("".parse::<PathSpec>().is_err());
    }

    #[test]
    fn arguments() {
        let read = |text: &str| parse_argument(text).map(|(place, it)| (place, it.mask, it.value));
        assert_eq!(read("0=3"), Ok((0, u64::MAX, 3)));
        assert_eq!(read("1~0x40"), Ok((1, 0x40, 0x40)));
        assert_eq!(read("0=-100"), Ok((0, 0xffff_ffff, 0xffff_ff9c)));
        for text in ["", "3", "6=1", "0=", "0~0", "x=1", "0=1x", "-1=2"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn near_names_are_suggested() {
        assert_eq!(parse_errno("eio"), Ok(Errno::EIO));
        assert_eq!(parse_errno("28"), Ok(Errno::ENOSPC));
        let said = |error: Invalid| error.to_string();
        assert!(said(parse_errno("ENOSP").expect_err("none")).contains("ENOSPC"));
        assert!(parse_errno("512").is_err() && parse_errno("0").is_err() && parse_errno("").is_err());
        assert_eq!(parse_calls("fsync,read"), Ok(vec![Sysno::fsync, Sysno::read]));
        assert!(said(parse_calls("fsnyc").expect_err("none")).contains("fsync"));
    }

    #[test]
    fn corruption() {
        let read = |text: &str| {
            Action::corrupt(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
                .map(|it| it.to_string())
        };
        assert_eq!(read(""), Ok("corrupt flip bytes 1".into()));
        assert_eq!(read("zero bytes 16 offset 4"), Ok("corrupt zero bytes 16 offset 4".into()));
        for text in ["bytes", "bytes 0", "bytes 65537", "offset x", "zeros x", "ones"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn users() {
        assert_eq!("7".parse::<UserSpec>().map(|user| user.uid), Ok(7));
        assert_eq!("root".parse::<UserSpec>().map(|user| user.uid), Ok(0));
        assert!("no such user".parse::<UserSpec>().is_err());
    }

    #[test]
    fn flags_of_open() {
        assert_eq!(
            "O_DIRECT,O_SYNC".parse::<OpenFlags>().map(|it| it.to_string()).as_deref(),
            Ok("O_SYNC,O_DSYNC,O_DIRECT")
        );
        assert!("O_DIRCT".parse::<OpenFlags>().expect_err("none").to_string().contains("O_DIRECT"));
    }
}
