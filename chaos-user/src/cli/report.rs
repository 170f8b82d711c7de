//! What a run prints: text for people, or the same facts as one JSON object a line.

use std::{
    fmt::{self, Display},
    io::{self, IsTerminal},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use chaos_ebpf::abi::{Count, Direction};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Code,
    command::Held,
    interval::wilson,
    out::{OutputError, Stdout},
    printer::Printer,
    verdict::verdict,
};
use crate::{
    kernel::{
        self,
        counters::Effects,
        mechanism::Mechanism,
        signals::{Asked, News, Signals},
    },
    session::{
        Armed, BACKGROUND, Ended, Ending, Facts, HookRecord, Observer, Prepared, RuleReport, RunReport,
        SessionError,
    },
    spec::{Lines, one, shown_json},
};

/// What is printed for people.
type Text = Lines<String>;

/// Has a terminal forget the line of progress.
const CLEAR: &str = "\r\x1b[K";

/// Prints what a run would do.
pub(super) fn preview(preview: &(impl Serialize + Display), json: bool) -> Result<(), OutputError> {
    let mut out = Stdout::lock();
    if !json {
        return out.text(&preview.to_string());
    }
    let mut object = json!(preview);
    object["event"] = "plan".into();
    out.json(&object)
}

/// Prints a run, and tells the program that was started for it, if there is one. Nothing here waits for who reads, but for
/// [`Reporter::finish`].
pub(super) struct Reporter<'a> {
    json: bool,
    /// Its output is not to be mixed with ours.
    command: Option<&'a mut Held>,
    /// Progress is written over itself on a terminal and a line a second elsewhere.
    terminal: bool,
    stdout: io::Stdout,
    out: Printer,
    err: Printer,
    id: String,
}

impl<'a> Reporter<'a> {
    /// Starts the threads that print.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn new(json: bool, command: Option<&'a mut Held>) -> kernel::Result<Self> {
        let out = Printer::begin("stdout", io::stdout())?;
        let err = Printer::begin("stderr", io::stderr())?;
        let terminal = io::stderr().is_terminal();
        Ok(Self { json, command, terminal, stdout: io::stdout(), out, err, id: String::new() })
    }

    pub(super) fn has_command(&self) -> bool {
        self.command.is_some()
    }

    /// Whoever asks us to end means the command too.
    fn pass_on(&self, asked: Asked) {
        if let Some(command) = &self.command {
            command.tell(asked);
        }
    }

    fn object(&self, event: &str, facts: Value) -> String {
        let mut object = json!({ "event": event, "id": self.id });
        if let (Value::Object(object), Value::Object(facts)) = (&mut object, facts) {
            object.extend(facts);
        }
        format!("{}\n", shown_json(&object.to_string()))
    }

    fn line(&self, event: &str, facts: Value) {
        self.out.print(self.object(event, facts));
    }

    /// Prints text for people.
    fn text(&self, before: &str, write: impl FnOnce(&mut Text) -> fmt::Result) {
        let mut text = Lines(before.to_owned());
        // A string takes everything.
        let _ = write(&mut text);
        self.out.print(text.0);
    }

    pub(super) fn prepared(&mut self, prepared: &Prepared) {
        self.id = prepared.id().into();
        let (plan, hooks) = (prepared.facts(), prepared.hooks());
        if self.json {
            let rules = plan.rules.iter().enumerate().map(|(number, rule)| {
                json!({ "rule": number, "fault": rule.fault, "direction": rule.direction, "asked": rule.asked })
            });
            self.line(
                "prepared",
                json!({
                    "pid": std::process::id(),
                    "device": plan.device,
                    "seed": plan.seed,
                    "hooks": hooks,
                    "rules": rules.collect::<Vec<_>>(),
                    "protected": plan.protected,
                }),
            );
            return;
        }
        if self.command.is_none() {
            self.text("", |out| prepared_text(out, &self.id, plan, &hooks));
        }
    }

    pub(super) fn armed(&mut self, armed: &Armed) {
        let (_, left) = armed.time();
        if self.json {
            self.line("armed", json!({ "at_ns": armed.since(), "remaining_s": seconds(left) }));
        }
        match &mut self.command {
            Some(command) => command.go(),
            None if self.json => {}
            None => self.text("", |out| match armed.duration() {
                Some(duration) => {
                    writeln!(out, "armed for {}; ^C ends it", humantime::format_duration(duration))
                }
                None => writeln!(out, "armed until interrupted; ^C ends it"),
            }),
        }
    }

    /// Sums up what has become of it.
    pub(super) fn ended(&self, ending: &Result<Ending, SessionError>, ended: &Ended, code: Code) {
        let RunReport { rules, spared, queue_lost, remarks } = &ended.report;
        let (verdict, reason) = verdict(ending, ended);
        if self.command.as_ref().is_some_and(|command| command.has_begun())
            && (ending.is_err() || ended.dirty.is_some())
        {
            self.err.print("faultline: the fault has ended by an error; the command goes on\n".into());
        }
        if self.json {
            let facts = json!({
                "verdict": verdict,
                "reason": reason,
                "exit_code": code.number(),
                "rules": rules.iter().map(facts).collect::<Vec<_>>(),
                "spared": spared,
                "queue_lost": queue_lost,
                "remarks": remarks,
            });
            return self.line("summary", facts);
        }
        if self.command.is_some() {
            let told = remarks.iter().map(|remark| one(format_args!("faultline: {remark}\n")));
            told.for_each(|remark| self.err.print(remark));
            return;
        }
        let checked = if ended.dirty.is_some() { "" } else { "; disarmed, detached, verified" };
        let clear = match (self.terminal, self.stdout.is_terminal()) {
            (true, false) => {
                self.err.print(CLEAR.into());
                ""
            }
            (true, true) => CLEAR,
            (false, _) => "",
        };
        self.text(clear, |out| {
            writeln!(out, "{verdict}: {reason}{checked}")?;
            summary_text(out, &ended.report)
        });
    }

    /// Waits until all is printed. Whoever does not wait for somebody to read it ends that by a signal.
    ///
    /// # Errors
    ///
    /// Those of standard output.
    pub(super) fn finish(self, signals: &Signals) -> Result<(), OutputError> {
        /// How long it may take somebody who does read.
        const PATIENCE: Duration = Duration::from_millis(200);
        const LONG: Duration = Duration::from_secs(60);
        let mut longest = LONG;
        for printer in [&self.out, &self.err] {
            printer.close();
            while printer.owes() {
                match signals.wait(Some(printer.ends()), longest) {
                    Ok(Some(News::Signal(asked))) => {
                        self.pass_on(asked);
                        longest = PATIENCE;
                    }
                    Ok(None) if longest == LONG => {}
                    Ok(Some(News::Gone) | None) | Err(_) => break,
                }
            }
        }
        self.out.printed().map_err(OutputError)
    }
}

/// What is going to be done, for people.
fn prepared_text(out: &mut Text, id: &str, plan: &Facts, hooks: &[HookRecord]) -> fmt::Result {
    let seed = plan.seed.map_or_else(String::new, |seed| format!(", seed {seed}"));
    writeln!(out, "fault {id} on {}{seed}", plan.place)?;
    for rule in &plan.rules {
        writeln!(out, "  {:<3}  {}", rule.direction.name(), rule.fault)?;
    }
    let mut shown = hooks.iter().map(by).collect::<Vec<_>>();
    // Of those at functions of the kernel's there is one for each.
    shown.dedup_by(|next, one| {
        next.0 == one.0 && {
            one.1.append(&mut next.1);
            true
        }
    });
    for ((direction, hook, why), functions) in shown {
        let at = if functions.is_empty() { String::new() } else { format!(" at {}", functions.join(", ")) };
        writeln!(out, "  {direction:<3}  by {hook}{at}: {why}")?;
    }
    if plan.spares_a_session {
        writeln!(out, "  spared: {}", plan.protected)?;
    }
    Ok(())
}

/// What has become of each rule, for people.
fn summary_text(out: &mut Text, report: &RunReport) -> fmt::Result {
    let RunReport { rules, spared, queue_lost, remarks } = report;
    if rules.is_empty() {
        return remarks.iter().try_for_each(|remark| writeln!(out, "{remark}"));
    }
    writeln!(
        out,
        "{:>4}  {:<3}  {:>8}  {:<26}  {:>10}  {:>10}  {:>10}  FAULT",
        "RULE", "DIR", "ASKED", "OBSERVED (95% INTERVAL)", "SEEN", "MATCHED", "FIRED"
    )?;
    for rule in rules {
        writeln!(
            out,
            "{:>4}  {:<3}  {:>8}  {:<26}  {:>10}  {:>10}  {:>10}  {}",
            rule.rule,
            rule.direction.name(),
            rule.asked.map_or_else(|| "-".into(), percent),
            observed(rule),
            rule.seen.packets,
            rule.matched.packets,
            rule.fired.packets,
            rule.fault
        )?;
    }
    for rule in rules {
        let did = effects(&rule.effects);
        if did.len() > 1 || rule.asked.is_none() && !did.is_empty() {
            writeln!(out, "rule {}: {}", rule.rule, did.join(", "))?;
        }
    }
    for rule in rules.iter().filter(|rule| rule.fired_background > 0) {
        let RuleReport { rule, fired, fired_background, .. } = rule;
        writeln!(out, "rule {rule}: {fired_background} of {} it hit: {BACKGROUND}", fired.packets)?;
    }
    for rule in rules.iter().filter(|rule| of_bytes(rule)) {
        let bytes = rule.matched.bytes;
        writeln!(out, "rule {}: FIRED is all that was limited, held up or not: {bytes} bytes", rule.rule)?;
    }
    if *spared > 0 {
        let calls = rules.iter().any(|rule| rule.direction == Direction::Call);
        let what = if calls {
            "calls of Faultline's own programs were spared"
        } else {
            "packets of what is protected were spared; --include-protected hits them as well"
        };
        writeln!(out, "{spared} {what}")?;
    }
    if let Some(lost @ 1..) = queue_lost {
        writeln!(
            out,
            "{lost} packets were lost because no more could wait (--limit), the CPU was not done with those before \
             (net.core.netdev_max_backlog), or the fault ended"
        )?;
    }
    remarks.iter().try_for_each(|remark| writeln!(out, "{remark}"))?;
    for rule in rules.iter().filter(|rule| rule.fired.segments > rule.fired.packets) {
        let Count { packets, segments, .. } = rule.fired;
        writeln!(
            out,
            "rule {}: the {packets} packets it hit were {segments} on the wire: the interface offloads \
             segmentation, and a super-packet is hit whole; --exact switches that off",
            rule.rule
        )?;
    }
    Ok(())
}

impl Observer for Reporter<'_> {
    fn asked(&mut self, asked: Asked) {
        self.pass_on(asked);
    }

    fn settling(&mut self, time: Duration) {
        if self.json {
            return self.line("settling", json!({ "seconds": time.as_secs_f64() }));
        }
        let clear = if self.terminal { CLEAR } else { "" };
        let time = humantime::format_duration(rounded(time));
        self.err.print(format!(
            "{clear}faultline: monotonic clocks become right within {time}; another ^C has them jump\n"
        ));
    }

    fn output(&self) -> BorrowedFd<'_> {
        self.stdout.as_fd()
    }

    fn is_unheard(&self) -> bool {
        self.out.is_unheard()
    }

    fn progress(&mut self, armed: &Armed, report: &RunReport) {
        let rules = &report.rules;
        let (elapsed, left) = armed.time();
        if self.json {
            let facts = json!({
                "elapsed_s": elapsed.as_secs_f64(),
                "remaining_s": seconds(left),
                "rules": rules.iter().map(facts).collect::<Vec<_>>(),
            });
            return self.out.progress(self.object("progress", facts));
        }
        if self.command.is_some() {
            return;
        }
        let time = match left {
            Some(left) => format!("{} left", humantime::format_duration(rounded(left))),
            None => format!("for {}", humantime::format_duration(rounded(elapsed))),
        };
        let total = |count: fn(&RuleReport) -> u64| rules.iter().map(count).sum::<u64>();
        // All rules of one direction see the same packets.
        let mut seen: Vec<_> = rules.iter().map(|rule| (rule.direction, rule.seen.packets)).collect();
        seen.sort_unstable();
        seen.dedup();
        let text = format!(
            "{}: {time}, seen {}, matched {}, fired {}",
            self.id,
            seen.iter().map(|(_, packets)| packets).sum::<u64>(),
            total(|rule| rule.matched.packets),
            total(|rule| rule.fired.packets)
        );
        self.err.progress(if self.terminal { format!("{CLEAR}{text}") } else { format!("{text}\n") });
    }
}

fn facts(rule: &RuleReport) -> Value {
    let mut facts = json!(rule);
    for (name, count) in [("seen", rule.seen), ("matched", rule.matched), ("fired", rule.fired)] {
        facts[name] = counted(rule.direction, count);
    }
    if rule.direction == Direction::Call
        && let Value::Object(facts) = &mut facts
    {
        facts.remove("effects");
        facts.remove("fired_background");
        if of_bytes(rule) {
            facts.insert("bytes".into(), rule.matched.bytes.into());
        }
    }
    facts["observed"] = json!(wilson(rule.fired.packets, rule.eligible).map(|_| rate(rule)));
    facts["interval_95"] = json!(wilson(rule.fired.packets, rule.eligible));
    facts
}

/// Whether it is one of a rate.
fn of_bytes(rule: &RuleReport) -> bool {
    rule.direction == Direction::Call && rule.matched.bytes > 0
}

/// What is said of a hook, and the function it is at.
fn by(hook: &HookRecord) -> ((&'static str, Mechanism, &str), Vec<&str>) {
    ((hook.direction.name(), hook.hook, &hook.why), hook.function.as_deref().into_iter().collect())
}

/// A count as JSON has it: of calls there is only one number.
pub(super) fn counted(direction: Direction, count: Count) -> Value {
    if direction == Direction::Call { count.packets.into() } else { json!(count) }
}

/// What was done to how many packets.
fn effects(effects: &Effects) -> Vec<String> {
    let Effects { lost, overlimit, duplicated, corrupted, reordered, delayed } = *effects;
    let all = [
        (lost, "lost"),
        (overlimit, "lost before a full wire"),
        (duplicated, "duplicated"),
        (corrupted, "corrupted"),
        (reordered, "not delayed"),
        (delayed, "delayed"),
    ];
    all.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect()
}

fn rate(rule: &RuleReport) -> f64 {
    rule.fired.packets as f64 / rule.eligible as f64
}

fn observed(rule: &RuleReport) -> String {
    if rule.asked.is_none() {
        return "-".into();
    }
    match wilson(rule.fired.packets, rule.eligible) {
        None if rule.direction == Direction::Call => "no call".into(),
        None => "no packet".into(),
        Some((low, high)) => format!("{} ({}..{})", percent(rate(rule)), percent(low), percent(high)),
    }
}

/// Three significant digits, and four places for small rates.
fn percent(fraction: f64) -> String {
    let percent = fraction * 100.0;
    let places = if percent >= 10.0 {
        1
    } else if percent >= 1.0 {
        2
    } else {
        4
    };
    let text = format!("{percent:.places$}");
    let short = text.trim_end_matches('0').trim_end_matches('.');
    format!("{}%", if short.is_empty() { "0" } else { short })
}

fn seconds(duration: Option<Duration>) -> Option<f64> {
    duration.map(|duration| duration.as_secs_f64())
}

/// To milliseconds below a second and to seconds above, upwards.
pub(super) fn rounded(duration: Duration) -> Duration {
    match duration.as_micros().div_ceil(1000) as u64 {
        short @ 0..1000 => Duration::from_millis(short),
        long => Duration::from_secs(long.div_ceil(1000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages() {
        let shown = [0.3, 0.3004, 0.0001, 1.0, 0.0, 0.05123, 0.1].map(percent);
        assert_eq!(shown, ["30%", "30%", "0.01%", "100%", "0%", "5.12%", "10%"]);
    }
}
