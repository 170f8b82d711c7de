//! What is said of a run that is over.

use super::Code;
use crate::session::{Ended, Ending, LEASE, SessionError};

/// Whether anything was hit, if that is known.
fn fired(ended: &Ended) -> Option<bool> {
    let fired = ended.report.rules.iter().any(|rule| rule.fired.packets > 0);
    ended.uncounted.is_none().then_some(fired)
}

/// In one word, and why.
pub(super) fn verdict(ending: &Result<Ending, SessionError>, ended: &Ended) -> (&'static str, String) {
    let (verdict, mut reason) = match ending {
        Ok(ending) => verdict_of(*ending, fired(ended)),
        Err(error) => ("aborted", error.to_string()),
    };
    if let Some(error) = &ended.uncounted {
        reason += &format!("; what it did could not be counted: {error}");
    }
    match &ended.dirty {
        Some(dirty) => ("dirty", format!("{reason}; {dirty}")),
        None => (verdict, reason),
    }
}

fn verdict_of(ending: Ending, fired: Option<bool>) -> (&'static str, String) {
    match (ending, fired) {
        (Ending::Elapsed, Some(true)) => ("observed", "its time is over and it has fired".into()),
        (Ending::Elapsed, Some(false)) => (
            "inconclusive",
            "its time is over and it never fired: nothing met its conditions, or chance".into(),
        ),
        (Ending::Elapsed, None) => ("inconclusive", "its time is over".into()),
        (Ending::CommandEnded, Some(true)) => ("observed", "the command has ended".into()),
        (Ending::CommandEnded, Some(false)) => {
            ("inconclusive", "the command has ended and it never fired".into())
        }
        (Ending::CommandEnded, None) => ("inconclusive", "the command has ended".into()),
        (Ending::Signal(asked), _) => ("interrupted", format!("{}", asked.signal)),
        (Ending::Lapsed(lapsed), _) => (
            "aborted",
            format!(
                "its owner was away for {:.1} s, stopped or asleep with the machine, and the lease of {} s lapsed",
                lapsed.away.as_secs_f64(),
                LEASE.as_secs()
            ),
        ),
        (Ending::DeviceGone, _) => ("aborted", "the interface is gone".into()),
        (Ending::DeviceMoved, _) => {
            ("aborted", "the interface has been moved to another network namespace".into())
        }
        (Ending::DiskGone, _) => ("aborted", "the block device is gone".into()),
        (Ending::Overruled, _) => {
            ("aborted", "somebody else has changed what it had set, which is left so".into())
        }
        (Ending::TargetGone, _) => ("aborted", "whom it was aimed at is gone".into()),
        (Ending::Unheard, _) => ("aborted", "nobody reads its output any more".into()),
    }
}

/// With which code it ends.
pub(super) fn code(ending: &Result<Ending, SessionError>, ended: &Ended) -> Code {
    if ended.dirty.is_some() {
        return Code::Dirty;
    }
    match ending {
        Ok(Ending::Elapsed | Ending::CommandEnded) if fired(ended) == Some(true) => Code::Success,
        Ok(Ending::Elapsed | Ending::CommandEnded) => Code::Inconclusive,
        Ok(Ending::Signal(_)) => Code::Interrupted,
        Ok(
            Ending::Lapsed(_)
            | Ending::DeviceGone
            | Ending::DeviceMoved
            | Ending::DiskGone
            | Ending::Overruled
            | Ending::TargetGone
            | Ending::Unheard,
        )
        | Err(_) => Code::Aborted,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::{kernel, session::RunReport};

    #[test]
    fn what_is_not_known_is_not_said() {
        let error = kernel::Error::new("read", "counters", io::ErrorKind::Other.into());
        let uncounted = Ended { report: RunReport::default(), uncounted: Some(error), dirty: None };
        let (word, reason) = verdict(&Ok(Ending::Elapsed), &uncounted);
        assert!(word == "inconclusive" && reason.starts_with("its time is over; "), "{word}: {reason}");
        assert!(reason.contains("could not be counted: read on counters"), "{reason}");
        let never = Ended { uncounted: None, ..uncounted };
        assert_eq!(fired(&never), Some(false));
        assert!(verdict(&Ok(Ending::Elapsed), &never).1.contains("never fired"));
        let failed = SessionError::Interrupted;
        assert_eq!(verdict(&Err(failed), &never).0, "aborted");
    }
}
