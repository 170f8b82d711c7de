//! What a system call costs whose result is rewritten, beside one that is left alone: of a process that is meant, and of
//! one that is not. It takes a kernel that lets programs write a process's memory, so guests are asked.

use faultline_tests::{
    ensure,
    error::{Context, Result},
};

use super::{
    Place,
    caller::{Call, Caller},
    now, print, say_how,
};

const ROUNDS: usize = 5;
/// An emulated machine takes twenty times as long.
const CALLS: u32 = 5_000;
const MEASUREMENTS: usize = 8;

/// What is armed meanwhile, who calls, and how.
const CASES: [(Option<&str>, Whose, Call); 5] = [
    (None, Whose::Target, Call::Raw),
    (Some("--offset 1h --by fexit"), Whose::Target, Call::ClockGettime),
    (Some("--offset 1h --by fexit"), Whose::Target, Call::Raw),
    (Some("--offset 1h"), Whose::Target, Call::Raw),
    (Some("--offset 1h"), Whose::Bystander, Call::Raw),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Target,
    Bystander,
}

pub(super) fn run(place: &Place) -> Result {
    say_how(ROUNDS, MEASUREMENTS, CALLS)?;
    let mut target = Caller::start(&place.target, None)?;
    let mut bystander = Caller::start(&place.beside, None)?;
    let mut table = CASES.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for ((words, whose, call), numbers) in CASES.into_iter().zip(&mut table) {
            let fault = words.map(|words| place.fault(words)).transpose()?;
            let caller = if whose == Whose::Target { &mut target } else { &mut bystander };
            let skewed = fault.is_some() && whose == Whose::Target;
            numbers.push(fastest(caller, call, skewed).context(name((words, whose, call)))?);
            fault.map_or(Ok(()), |fault| fault.end().map(drop))?;
        }
    }
    let names = CASES.map(name);
    print("CLOCK_GETTIME(REALTIME)", "TIMES A SYSTEM CALL", &names, &table);
    Ok(())
}

fn name((words, whose, call): (Option<&str>, Whose, Call)) -> String {
    let how = if call == Call::Raw { "a system call" } else { "by the vDSO" };
    let of = if whose == Whose::Target { "" } else { ", not aimed at" };
    format!("{}: {how}{of}", words.unwrap_or("nothing"))
}

/// Nanoseconds a call, which must tell what it is to tell.
fn fastest(caller: &mut Caller, call: Call, skewed: bool) -> Result<f64> {
    caller.make(call, CALLS / 10)?;
    (0..MEASUREMENTS).try_fold(f64::INFINITY, |fastest, _| {
        let (nanoseconds, told) = caller.make(call, CALLS)?;
        let ahead = told - now()?;
        ensure!((ahead > 3_500) == skewed, "{ahead} s ahead");
        Ok(fastest.min(nanoseconds))
    })
}
