//! What the user wrote, as values that cannot be invalid. Every message says what would be right; the caller
//! names the option.

mod call;
mod cut;
mod file;
mod impair;
mod net;
mod op;
mod owner;
mod peer;
mod percent;
mod profile;
mod question;
mod ramp;
mod select;
pub(crate) mod shown;
mod skew;
mod slow;
mod units;

pub use call::{
    Action, CallFault, CallMatch, CallSpec, Calls, DeviceSpec, Family, NameSpec, OpenFlags, PathSpec, Spoil,
    SpoilKind, UserSpec, parse_argument, parse_calls, parse_errno,
};
pub use cut::Cut;
pub use file::{FileError, open_file, read_file};
pub use impair::{Chance, Corrupt, Delay, Distribution, Impairments, Loss, Rate, Reorder};
pub use net::{Exact, FaultSpec, NetSpec, Sides};
pub use op::Op;
pub use owner::Owner;
pub use peer::{Exclusion, Peer};
pub use percent::Percent;
pub use profile::{BUILT_IN, Link, Profile, Side};
pub use question::{Answer, Glob, Question, RecordType};
pub use ramp::Ramp;
pub use select::{
    PortRange, Protocol, Selectors, parse_count, parse_duration, parse_network, parse_pid, parse_whole,
};
pub use shown::{Lines, one, shown, shown_json};
pub use skew::{Clock, Leap, Offset, Skew, SkewSpec, Slope, Strobe, parse_period};
pub use slow::{SlowOp, SlowSpec, Speed};
pub use units::show_rate;

/// Text that means nothing we know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl Invalid {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}
