//! `faultline net`: one run, from what was typed to the exit code.

use std::{fs::File, io, io::Read};

use super::{
    CliError, Code,
    args::{LossOptions, RunOptions},
    report::Reporter,
};
use crate::{
    fault::{self, loss},
    session::{self, Ending, Plan, Prepared, Signals, watch},
    spec::{LossSpec, NetSpec},
    target::Device,
};

/// Loses packets until its time is over or something ends it.
pub(super) fn loss(
    first: LossOptions,
    further: Vec<LossSpec>,
    options: &RunOptions,
) -> Result<Code, CliError> {
    let spec = options.spec(std::iter::once(first.spec()).chain(further).collect());
    let rules = fault::check(spec.faults.iter().flat_map(loss::rules).collect())?;
    require_root()?;
    let signals = Signals::take()?;
    session::sweep()?;
    let plan = plan(&spec, rules)?;
    let mut reporter = Reporter::new(options.json);

    let prepared = Prepared::new(plan)?;
    reporter.prepared(&prepared)?;
    let mut armed = prepared.arm()?;
    // Whatever fails from here on, the fault is ended in order and that is what is reported.
    let ending = match reporter.armed(&armed) {
        Ok(()) => watch(&mut armed, &signals, &mut reporter),
        Err(_) => Ok(Ending::Unheard),
    };
    let rules = armed.end()?;
    let ending = ending?;
    let code = code(ending, rules.iter().any(|rule| rule.fired.packets > 0));
    reporter.ended(ending, &rules, code)?;
    Ok(code)
}

fn plan(spec: &NetSpec, rules: Vec<fault::Rule>) -> Result<Plan, CliError> {
    if let Some(netns) = &spec.netns {
        netns.enter()?;
    }
    let device = Device::find(&spec.device)?;
    let seed = spec.seed.map_or_else(draw_seed, Ok)?;
    Ok(Plan { device, rules, seed, duration: spec.duration })
}

/// 32 bits are enough to tell runs apart, and short enough to type again.
fn draw_seed() -> io::Result<u64> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from(u32::from_ne_bytes(bytes)))
}

fn code(ending: Ending, fired: bool) -> Code {
    match ending {
        Ending::Elapsed if fired => Code::Success,
        Ending::Elapsed => Code::Inconclusive,
        Ending::Signal(_) => Code::Interrupted,
        Ending::Lapsed(_) | Ending::DeviceGone | Ending::Unheard => Code::Aborted,
    }
}

/// Refuses anybody but root, before anything is tried that would only half work.
pub(super) fn require_root() -> Result<(), CliError> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(CliError::NotRoot) }
}
