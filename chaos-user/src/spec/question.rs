//! What a DNS query asks for: names by patterns, and types of records.

use std::{fmt, str::FromStr};

use super::Invalid;

/// Which DNS queries. Empty lists ask nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// For a name that any of these takes.
    pub names: Vec<Glob>,
    /// For any of these.
    pub types: Vec<RecordType>,
}

/// How a DNS query is answered: without records, and with this RCODE (RFC 1035 section 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is a name, and nothing of the type asked for.
    Empty,
    /// The server could not find out.
    ServFail,
    /// There is no such name.
    NxDomain,
    /// The server does not want to say.
    Refused,
}

impl Answer {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::NxDomain, Self::ServFail, Self::Refused, Self::Empty];

    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::ServFail => "servfail",
            Self::NxDomain => "nxdomain",
            Self::Refused => "refused",
        }
    }

    /// Its number in the header.
    #[must_use]
    pub fn rcode(self) -> u32 {
        match self {
            Self::Empty => 0,
            Self::ServFail => 2,
            Self::NxDomain => 3,
            Self::Refused => 5,
        }
    }
}

/// A pattern for names: `*` stands for any characters, dots among them, `?` for one. In lower case, without the dot
/// of the root.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Glob(String);

/// Names of 255 bytes have 253 characters, the dots between labels included.
const LONGEST: usize = 253;

impl Glob {
    /// Takes every name.
    #[must_use]
    pub fn any() -> Self {
        Self("*".into())
    }

    /// Its characters, of which each is a byte.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl FromStr for Glob {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Some(other) = text.chars().find(|c| !c.is_ascii_alphanumeric() && !"-_.*?".contains(*c)) {
            let other = other.escape_debug();
            let what = "a name has letters, digits, - and _, with dots between; * stands for any of it and ? for one character";
            let foreign = if other.to_string().is_ascii() { "" } else { "; write the rest as xn--..." };
            return Err(Invalid::new(format!("'{other}' is in no name; {what}{foreign}")));
        }
        let name = if text == "." { "" } else { text.strip_suffix('.').unwrap_or(text) };
        if text.is_empty() || name.starts_with('.') || name.ends_with('.') || name.contains("..") {
            return Err(Invalid::new("a label is missing; write api.example.com or *.example.com"));
        }
        // Runs of stars are as good as one, and cost more.
        let mut short = String::new();
        for c in name.chars() {
            if c != '*' || !short.ends_with('*') {
                short.push(c.to_ascii_lowercase());
            }
        }
        let least = short.chars().filter(|c| *c != '*').count();
        if least > LONGEST {
            return Err(Invalid::new(format!("a name is at most {LONGEST} characters long, not {least}")));
        }
        if let Some(label) = short.split('.').find(|label| label.chars().filter(|c| *c != '*').count() > 63) {
            return Err(Invalid::new(format!(
                "a label is at most 63 characters long, and {label} is longer"
            )));
        }
        Ok(Self(short))
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "." } else { &self.0 })
    }
}

/// A type of records, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordType(pub u16);

/// What is asked for in practice. The numbers are IANA's, "Resource Record (RR) TYPEs".
const TYPES: [(&str, u16); 24] = [
    ("A", 1),
    ("NS", 2),
    ("CNAME", 5),
    ("SOA", 6),
    ("PTR", 12),
    ("HINFO", 13),
    ("MX", 15),
    ("TXT", 16),
    ("AAAA", 28),
    ("LOC", 29),
    ("SRV", 33),
    ("NAPTR", 35),
    ("DNAME", 39),
    ("DS", 43),
    ("SSHFP", 44),
    ("RRSIG", 46),
    ("NSEC", 47),
    ("DNSKEY", 48),
    ("TLSA", 52),
    ("SVCB", 64),
    ("HTTPS", 65),
    ("SPF", 99),
    ("ANY", 255),
    ("CAA", 257),
];

impl FromStr for RecordType {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let upper = text.to_ascii_uppercase();
        // RFC 3597 section 5 has TYPE65280 for what has no name.
        let number = upper.strip_prefix("TYPE").unwrap_or(&upper);
        let number = number.parse().ok().filter(|_| number.starts_with(|c: char| c.is_ascii_digit()));
        let named = TYPES.iter().find(|(name, _)| *name == upper).map(|(_, number)| *number);
        named.or(number).map(Self).ok_or_else(|| {
            let names: Vec<_> = TYPES.iter().map(|(name, _)| *name).collect();
            Invalid::new(format!(
                "no type of records; there are {}, and TYPE1 to TYPE65535",
                names.join(", ")
            ))
        })
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match TYPES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "TYPE{}", self.0),
        }
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { names, types } = self;
        for name in names {
            write!(f, " --name {name}")?;
        }
        if !types.is_empty() {
            let types: Vec<_> = types.iter().map(ToString::to_string).collect();
            write!(f, " --type {}", types.join(","))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        let shown = |text: &str| text.parse::<Glob>().map(|glob| glob.to_string());
        assert_eq!(shown("API.Example.com."), Ok("api.example.com".into()));
        assert_eq!(shown("**.a?"), Ok("*.a?".into()));
        assert_eq!(shown("."), Ok(".".into()));
        assert_eq!(shown("_sip._tcp.*"), Ok("_sip._tcp.*".into()));
        let longest = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61));
        assert!(shown(&longest).is_ok() && shown(&format!("{longest}b")).is_err());
        for text in ["", "..", "a..b", ".a", "a b", "[ab].c", "b\u{fc}cher.de", &"a".repeat(64)] {
            assert!(text.parse::<Glob>().is_err(), "{text}");
        }
        assert!(shown("b\u{fc}cher.de").is_err_and(|error| error.to_string().contains("xn--")));
    }

    #[test]
    fn types() {
        let number = |text: &str| text.parse::<RecordType>().map(|it| it.0).ok();
        assert_eq!([number("a"), number("AAAA"), number("https")], [Some(1), Some(28), Some(65)]);
        assert_eq!([number("TYPE65535"), number("type28"), number("12")], [Some(65535), Some(28), Some(12)]);
        for text in ["", "B", "TYPE", "TYPE65536", "TYPE-1", "TYPE+1", "-1"] {
            assert_eq!(number(text), None, "{text}");
        }
        assert_eq!(RecordType(28).to_string() + &RecordType(4000).to_string(), "AAAATYPE4000");
        assert!(TYPES.is_sorted_by_key(|(_, number)| *number));
    }
}
