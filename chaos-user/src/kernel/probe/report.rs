//! What the probes found, as data.

use chaos_ebpf::abi::Direction;
use serde::Serialize;

use super::{Answer, Refusal, host::Host, sentence};
use crate::{
    host::{Capability, Use, rights},
    kernel::{
        Error,
        btf::KernelTypes,
        fields::{self, Place},
        mechanism::{Fault, Mechanism, Mechanism as M, WAYS, Way, ways},
    },
};

/// Whether a mechanism is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It was tried and works.
    Available,
    /// It was tried and does not.
    Missing,
    /// It could not be tried.
    Unknown,
}

impl State {
    pub(super) fn of(answer: &Answer) -> Self {
        match answer {
            Ok(_) => Self::Available,
            Err(Refusal::Untried(_)) => Self::Unknown,
            Err(Refusal::Kernel(error)) if is_of_the_moment(error) => Self::Unknown,
            Err(Refusal::Kernel(_) | Refusal::Missing { .. }) => Self::Missing,
        }
    }
}

/// Whether it is no answer of this kernel about a mechanism, but of this moment about the process.
fn is_of_the_moment(error: &Error) -> bool {
    matches!(error.errno(), libc::EMFILE | libc::ENFILE | libc::ENOMEM)
}

/// What was found of one mechanism.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which.
    pub mechanism: Mechanism,
    /// Whether it is there.
    pub state: State,
    /// A remark on one that is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Why it is not there: what the kernel said to which call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// What a fault would be made of here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FaultSupport {
    /// Which fault.
    pub fault: Fault,
    /// Which packets it acts on.
    pub direction: Direction,
    /// What it uses, or nothing if it cannot be had.
    pub mechanism: Option<Mechanism>,
    /// What it falls back to, in order, where an interface or another program stands in the way.
    pub fallbacks: Vec<Mechanism>,
    /// If it cannot be had: what is missing for its best way.
    pub missing: Vec<Mechanism>,
    /// If it cannot be had: the rights that this process lacks for it.
    pub rights: Vec<Capability>,
}

/// A right that this process lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MissingRight {
    /// Which.
    pub capability: Capability,
    /// What Faultline would do by it.
    pub needed_to: &'static str,
}

/// What this kernel can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Faultline's version.
    pub faultline: &'static str,
    /// The kernel's release.
    pub kernel: String,
    /// The machine's architecture.
    pub architecture: String,
    /// Whether the main job (loss, in and out) can run.
    pub ready: bool,
    /// Why nothing can be done at all, if the process lacks the rights.
    pub unprivileged: Option<String>,
    /// What cannot be done for want of a right; most of it depends on the target.
    pub missing_rights: Vec<MissingRight>,
    /// `none`, `integrity` or `confidentiality`; nothing if it could not be told.
    pub lockdown: Option<String>,
    /// The active security modules; nothing if it could not be told.
    pub security_modules: Option<Vec<String>>,
    /// Mechanism by mechanism.
    pub mechanisms: Vec<Finding>,
    /// Fault by fault.
    pub faults: Vec<FaultSupport>,
    /// Field by field of the kernel's structures that programs read; nothing if its types cannot be read.
    pub fields: Vec<Place>,
}

impl Report {
    /// Whether it has a mechanism; if not, why, as far as that could be told.
    ///
    /// # Errors
    ///
    /// The cause.
    pub fn offers(&self, mechanism: M) -> Result<(), String> {
        let finding = self.mechanisms.iter().find(|finding| finding.mechanism == mechanism);
        match finding {
            Some(finding) if finding.state == State::Available => Ok(()),
            Some(Finding { cause: Some(cause), .. }) => Err(cause.clone()),
            _ => Err("the doctor says nothing of it".into()),
        }
    }

    pub(super) fn new(host: &Host, mut answers: Vec<(M, Answer)>) -> Self {
        let mechanisms: Vec<Finding> = M::ALL
            .into_iter()
            .map(|mechanism| {
                let at = answers.iter().position(|(answered, _)| *answered == mechanism);
                let answer = at.map(|at| answers.swap_remove(at).1);
                Finding::new(mechanism, answer, host)
            })
            .collect();
        let faults = faults(&mechanisms, Use::is_allowed);
        let missing = Use::ALL.into_iter().filter(|it| !it.is_allowed());
        let missing_rights =
            missing.map(|it| MissingRight { capability: it.takes(), needed_to: it.purpose() }).collect();
        let ready = host.unprivileged.is_none()
            && [Direction::In, Direction::Out].into_iter().all(|direction| {
                faults.iter().any(|support| {
                    (support.fault, support.direction) == (Fault::Loss, direction)
                        && support.mechanism.is_some()
                })
            });
        Self {
            faultline: env!("CARGO_PKG_VERSION"),
            kernel: host.kernel.clone(),
            architecture: host.architecture.clone(),
            ready,
            unprivileged: host.unprivileged.clone(),
            missing_rights,
            lockdown: host.lockdown.as_ref().ok().cloned(),
            security_modules: host.security_modules.as_ref().ok().cloned(),
            mechanisms,
            faults,
            fields: KernelTypes::read().and_then(fields::places).unwrap_or_default(),
        }
    }

    /// Whether a mechanism is there.
    #[must_use]
    pub fn has(&self, mechanism: Mechanism) -> bool {
        self.offers(mechanism).is_ok()
    }
}

fn available(findings: &[Finding], mechanism: Mechanism) -> bool {
    findings.iter().any(|finding| finding.mechanism == mechanism && finding.state == State::Available)
}

fn faults(findings: &[Finding], is_allowed: impl Fn(Use) -> bool) -> Vec<FaultSupport> {
    let mut kinds: Vec<(Fault, Direction)> = WAYS.iter().map(|way| (way.fault, way.direction)).collect();
    kinds.dedup();
    let works = |way: &&Way| way.all().all(|mechanism| available(findings, mechanism));
    let support = |(fault, direction): (Fault, Direction)| {
        let lacking = fault.uses().iter().copied().filter(|it| !is_allowed(*it));
        let rights: Vec<_> = lacking.map(Use::takes).collect();
        let works = |way: &&Way| rights.is_empty() && works(way);
        let mut usable = ways(fault, direction).filter(works).map(|way| way.mechanism);
        let mechanism = usable.next();
        let missing = match (mechanism, ways(fault, direction).last()) {
            (None, Some(last)) => last.all().filter(|mechanism| !available(findings, *mechanism)).collect(),
            _ => Vec::new(),
        };
        let fallbacks = usable.collect();
        FaultSupport { fault, direction, mechanism, fallbacks, missing, rights }
    };
    kinds.into_iter().map(support).collect()
}

impl Finding {
    fn new(mechanism: Mechanism, answer: Option<Answer>, host: &Host) -> Self {
        let finding = |state, note, cause, remedy| Self { mechanism, state, note, cause, remedy };
        let usual = || Some(mechanism.remedy().to_owned());
        match answer {
            Some(Ok(note)) => finding(State::Available, note, None, None),
            Some(Err(Refusal::Missing { cause, remedy })) => {
                finding(State::Missing, None, Some(cause), remedy.or_else(usual))
            }
            Some(Err(Refusal::Kernel(error))) if is_of_the_moment(&error) => {
                let remedy = "raise the limit (ulimit -n, memory) and run it again".to_owned();
                finding(State::Unknown, None, Some(sentence(&error)), Some(remedy))
            }
            Some(Err(Refusal::Kernel(error))) => {
                // Confidentiality empties tracefs instead of refusing it.
                let hidden = mechanism == M::Tracepoint && locked_away(host);
                let refused = matches!(error.errno(), libc::EPERM | libc::EACCES);
                let lacking = rights::lacking(error.call, &error.object, &error.source);
                let lacking: Vec<_> = lacking.into_iter().map(Capability::name).collect();
                let remedy = match (&lacking[..], refused || hidden) {
                    ([], true) => Some(forbidden(host)),
                    ([], false) => usual(),
                    (lacking, _) => {
                        Some(format!("add {} to this process's capabilities", lacking.join(" and ")))
                    }
                };
                finding(State::Missing, None, Some(sentence(&error)), remedy)
            }
            Some(Err(Refusal::Untried(cause))) => {
                let remedy = host
                    .unprivileged
                    .as_ref()
                    .map(|_| "run faultline doctor with the host root's rights".to_owned());
                finding(State::Unknown, None, Some(cause), remedy)
            }
            None => {
                let cause = "not tried: the probe before it could not be made".to_owned();
                finding(State::Unknown, None, Some(cause), None)
            }
        }
    }
}

/// What to do about a `no` that root gets as well.
fn forbidden(host: &Host) -> String {
    if locked_away(host) {
        "boot with lockdown=integrity or lockdown=none".into()
    } else {
        "the kernel or a security module forbids it, to root as well; use another kernel".into()
    }
}

/// Whether the kernel keeps what it holds from root.
fn locked_away(host: &Host) -> bool {
    host.lockdown.as_deref().is_ok_and(|state| state == "confidentiality")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(available: &[Mechanism]) -> Vec<Finding> {
        M::ALL
            .into_iter()
            .map(|mechanism| Finding {
                mechanism,
                state: if available.contains(&mechanism) { State::Available } else { State::Missing },
                note: None,
                cause: None,
                remedy: None,
            })
            .collect()
    }

    #[test]
    fn a_fault_takes_the_best_way_there_is() {
        let modern = faults(&findings(&[M::Btf, M::XdpNative, M::Tcx, M::Clsact]), |_| true);
        assert_eq!(modern[0].mechanism, Some(M::XdpNative));
        assert_eq!(modern[0].fallbacks, [M::Tcx, M::Clsact]);
        assert_eq!(modern[1].mechanism, Some(M::Tcx));

        let old = faults(&findings(&[M::Btf, M::Clsact]), |_| true);
        assert_eq!([old[0].mechanism, old[1].mechanism], [Some(M::Clsact); 2]);
        let delay = old.iter().find(|support| support.fault == Fault::Delay);
        assert_eq!(delay.map(|support| &support.missing[..]), Some(&[M::SchFq][..]));
    }

    #[test]
    fn a_fault_without_a_right_says_which() {
        let without = faults(&findings(&[M::Btf, M::Tcx]), |it| it != Use::Segments);
        let of = |fault| without.iter().find(|support| support.fault == fault).expect("it is in the table");
        assert_eq!(of(Fault::Loss).mechanism, Some(M::Tcx));
        assert_eq!(
            (of(Fault::Reset).mechanism, &of(Fault::Reset).rights[..]),
            (None, &[Capability::NetRaw][..])
        );
    }

    #[test]
    fn a_fault_without_a_way_says_what_is_missing() {
        let without_types = faults(&findings(&[M::XdpNative, M::Tcx, M::Clsact]), |_| true);
        assert_eq!(without_types[0].mechanism, None);
        assert_eq!(without_types[0].missing, [M::Btf]);
        let xdp_only = faults(&findings(&[M::Btf, M::XdpNative]), |_| true);
        assert_eq!(xdp_only[1].missing, [M::Clsact]);
    }
}
