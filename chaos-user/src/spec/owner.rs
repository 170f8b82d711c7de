//! Whose packets: what was typed after `--cgroup`, `--unit`, `--container` and `--pid`.

use std::fmt;

/// Some processes, by what holds them together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A cgroup and those below it: its path in the hierarchy, or in the file system.
    Cgroup(String),
    /// A systemd unit.
    Unit(String),
    /// A container: its id, or how that begins.
    Container(String),
    /// A process, with those it has begun: its number.
    Process(u32),
}

impl Owner {
    /// All processes there are.
    #[must_use]
    pub fn everybody() -> Self {
        Self::Cgroup("/".into())
    }

    /// The option by which it is given.
    #[must_use]
    pub fn option(&self) -> &'static str {
        match self {
            Self::Cgroup(_) => "--cgroup",
            Self::Unit(_) => "--unit",
            Self::Container(_) => "--container",
            Self::Process(_) => "--pid",
        }
    }

    /// What was typed after it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Cgroup(name) | Self::Unit(name) | Self::Container(name) => name.clone(),
            Self::Process(pid) => pid.to_string(),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.option(), self.name())
    }
}
