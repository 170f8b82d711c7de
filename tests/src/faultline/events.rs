//! What a running command has printed so far.

use std::{
    io,
    process::ExitStatus,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use serde::Deserialize;
use serde_json::Value;

use super::{Exit, exit_of};
use crate::error::{Context, Failure, Result};

/// One JSON object that it printed.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its `event`: `prepared`, `armed`, `progress` or `summary`.
    pub kind: String,
    /// When it was read, in [`monotonic_ns`](crate::traffic::monotonic_ns).
    pub read_at: u64,
    /// All of it.
    pub json: Value,
}

/// A count of packets.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Counted {
    /// As the hook sees them.
    pub packets: u64,
    /// As they are on the wire.
    pub segments: u64,
    /// Bytes on the wire.
    pub bytes: u64,
}

/// What one rule has done.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct RuleCounters {
    /// Its number.
    pub rule: u32,
    /// `in` or `out`.
    pub direction: String,
    /// All packets at its hook.
    pub seen: Counted,
    /// Packets that met its conditions.
    pub matched: Counted,
    /// Packets it acted on.
    pub fired: Counted,
    /// Packets among these that hosts and switches send of their own accord; of packets alone.
    #[serde(default)]
    pub fired_background: u64,
    /// The chance asked for; in the summary.
    pub asked: Option<f64>,
    /// The rate seen; in the summary, if there was any packet.
    pub observed: Option<f64>,
    /// Its interval; in the summary, if there was any packet.
    pub interval_95: Option<(f64, f64)>,
}

impl Event {
    /// A field, by its path: `/hooks/0/hook`.
    ///
    /// # Errors
    ///
    /// If it is not there.
    pub fn get(&self, path: &str) -> Result<&Value> {
        self.json.pointer(path).context(format_args!("no {path} in {}", self.json))
    }

    /// A number, by its path.
    ///
    /// # Errors
    ///
    /// If it is not there, or not a whole number.
    pub fn number(&self, path: &str) -> Result<u64> {
        self.get(path)?.as_u64().context(format_args!("{path} is not a number in {}", self.json))
    }

    /// The rules' counters, of a `progress` or `summary`.
    ///
    /// # Errors
    ///
    /// If they are not there.
    pub fn rules(&self) -> Result<Vec<RuleCounters>> {
        serde_json::from_value(self.get("/rules")?.clone()).context(format_args!("rules of {}", self.json))
    }
}

/// The event that a line is.
pub(super) fn parse(line: &str, read_at: u64) -> Option<Event> {
    let json: Value = serde_json::from_str(line).ok()?;
    let kind = json.get("event")?.as_str()?.to_owned();
    Some(Event { kind, read_at, json })
}

/// Filled by the threads that read, waited for by the test.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    events: Vec<Event>,
    /// How many of the events have been looked at.
    consumed: usize,
    stdout: String,
    stderr: String,
    ended: Option<(Option<i32>, Option<i32>)>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    pub(super) fn event(&self, event: Event) {
        self.change(|state| state.events.push(event));
    }

    pub(super) fn text(&self, line: &str) {
        self.change(|state| state.stdout += &format!("{line}\n"));
    }

    pub(super) fn error(&self, line: &str) {
        self.change(|state| state.stderr += &format!("{line}\n"));
    }

    pub(super) fn ended(&self, status: io::Result<ExitStatus>) {
        self.change(|state| state.ended = Some(status.map_or((None, None), exit_of)));
    }

    pub(super) fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }

    pub(super) fn wait_event(&self, kind: &str, deadline: Instant) -> Result<Event> {
        self.wait(deadline, &format!("the {kind} event"), |state| {
            let found = state.events[state.consumed..].iter().position(|event| event.kind == kind);
            if let Some(place) = found {
                state.consumed += place + 1;
                return Some(Ok(state.events[state.consumed - 1].clone()));
            }
            let (code, signal) = state.ended?;
            Some(Err(Failure::new(format!(
                "it ended (exit {code:?}, signal {signal:?}) without the {kind} event; stderr: {}",
                state.stderr
            ))))
        })?
    }

    pub(super) fn wait_exit(&self, deadline: Instant) -> Result<Exit> {
        self.wait(deadline, "the end of faultline", |state| {
            let (code, signal) = state.ended?;
            let State { events, stdout, stderr, .. } = &*state;
            let (events, stdout, stderr) = (events.clone(), stdout.clone(), stderr.clone());
            Some(Exit { code, signal, events, stdout, stderr })
        })
    }

    fn wait<T>(
        &self,
        deadline: Instant,
        what: &str,
        mut look: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T> {
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&mut state) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let kinds: Vec<&str> = state.events.iter().map(|event| event.kind.as_str()).collect();
                return Err(Failure::new(format!(
                    "{what} did not come in time; so far {kinds:?}, stderr: {}",
                    state.stderr
                )));
            }
            state =
                self.changed.wait_timeout(state, left).map_or_else(|error| error.into_inner().0, |ok| ok.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[test]
    fn events_are_found_in_order() {
        let shared = Shared::default();
        for line in [r#"{"event":"armed","at_ns":5}"#, r#"{"event":"progress","n":1}"#] {
            shared.event(parse(line, 1).expect("an event"));
        }
        assert!(parse("not json", 1).is_none());
        assert!(parse(r#"{"no":"event"}"#, 1).is_none());
        let armed = shared.wait_event("armed", soon()).expect("there");
        assert_eq!(armed.number("/at_ns"), Ok(5));
        assert!(armed.get("/nothing").is_err());
        assert!(shared.wait_event("armed", soon()).expect_err("only once").to_string().contains("in time"));
        assert_eq!(shared.wait_event("progress", soon()).expect("there").number("/n"), Ok(1));
        shared.error("boom");
        shared.ended(Ok(ExitStatus::default()));
        let missing = shared.wait_event("summary", soon()).expect_err("ended").to_string();
        assert!(missing.contains("without the summary event") && missing.contains("boom"), "{missing}");
        assert_eq!(shared.wait_exit(soon()).expect("ended").code, Some(0));
    }

    #[test]
    fn rules_are_read() {
        let count = r#"{"packets":1,"segments":2,"bytes":3}"#;
        let rule = format!(
            r#"{{"rule":0,"direction":"in","seen":{count},"matched":{count},"fired":{count},
                "observed":0.5,"interval_95":[0.25,0.75],"asked":0.3,"unknown":true}}"#
        );
        let line = format!(r#"{{"event":"summary","rules":[{rule}]}}"#);
        let rules = parse(&line, 0).expect("an event").rules().expect("rules");
        assert_eq!(rules[0].fired, Counted { packets: 1, segments: 2, bytes: 3 });
        assert_eq!(rules[0].interval_95, Some((0.25, 0.75)));
    }
}
