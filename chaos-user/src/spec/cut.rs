//! Connections that are cut, rather than disturbed.

use std::fmt;

use nix::errno::Errno;

use super::Sides;

/// A connection that is cut: both ways if nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing gets through from or to some peers.
    Partition,
    /// Nothing gets through but what is excluded.
    Blackhole,
    /// TCP connections are reset at both ends.
    Reset,
    /// Nothing of TCP connections gets through once they stand.
    Timeout,
    /// `connect(2)` fails, for this reason.
    Refuse(Errno),
}

/// The words for these.
pub(super) const CUTS: [&str; 5] = ["partition", "blackhole", "reset", "timeout", "refuse"];

impl Cut {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Partition => "partition",
            Self::Blackhole => "blackhole",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Refuse(_) => "refuse",
        }
    }

    /// Whether it is of connections, which are those of TCP if nothing else is said.
    #[must_use]
    pub fn is_of_connections(self) -> bool {
        matches!(self, Self::Reset | Self::Timeout | Self::Refuse(_))
    }

    /// Where it acts if nothing else is said.
    #[must_use]
    pub fn sides(self) -> Sides {
        if let Self::Refuse(_) = self { Sides::Connect } else { Sides::Both }
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refuse(errno) => write!(f, "refuse {errno:?}"),
            cut => f.write_str(cut.name()),
        }
    }
}
