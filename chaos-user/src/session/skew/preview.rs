//! What a run that has clocks be wrong would do.

use std::{fmt, io};

use super::{PLACE, SkewPlan};
use crate::{
    host::{Demands, HostError, Use, rights},
    kernel::{
        self,
        mechanism::Mechanism,
        probe::{Outlook, State},
        vdso::{Image, Kind},
    },
    session::{
        SessionError,
        preview::{ASKED, PreviewTarget, unsure},
    },
    spec::Lines,
    target,
};

/// What would be done.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct SkewPreview {
    /// The fault.
    pub rules: Vec<String>,
    /// The functions of the vDSO that would be changed.
    pub functions: Vec<&'static str>,
    /// By what raw system calls would be told a wrong time, if by anything.
    pub raw: Option<Mechanism>,
    /// Of what that takes only a try would tell whether the kernel has it.
    pub unknown: Vec<Mechanism>,
    /// Whose clocks.
    pub targets: Vec<PreviewTarget>,
    /// What is written down before it is changed.
    pub journalled: Vec<String>,
}

impl SkewPlan {
    /// Refuses what would only half work here.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub fn check(&self) -> Result<(), HostError> {
        Demands { uses: vec![Use::Programs, Use::Clocks], changes: true }.check()?;
        for target in &self.targets {
            // Whether there still is one is asked elsewhere.
            target.processes().unwrap_or_default().into_iter().try_for_each(rights::may_have_memory)?;
        }
        Ok(())
    }

    /// Looks, and touches nothing.
    ///
    /// # Errors
    ///
    /// [`SessionError`]: clocks cannot be wrong here.
    pub fn preview(&self) -> Result<SkewPreview, SessionError> {
        let kernel = Outlook::default();
        let kind = if self.spec.by == Some(Mechanism::Fexit) { Kind::Call } else { Kind::Skew };
        let patch = Image::own()?.patch(kind, 0)?;
        let needed = [Mechanism::Fexit, Mechanism::ProbeWriteUser];
        let lacking = needed.into_iter().rev().find(|it| kernel.lacks(*it));
        if let (Some(Mechanism::Fexit), Some(lacking)) = (self.spec.by, lacking) {
            let nothing = io::ErrorKind::Unsupported.into();
            let error = kernel::Error::new("look-up", format!("{lacking} on this kernel"), nothing);
            return Err(SessionError::NoRewriting { error, remedy: lacking.remedy() });
        }
        let is_wanted = lacking.is_none() && self.spec.by != Some(Mechanism::VdsoPatch);
        let raw = Some(Mechanism::Fexit).filter(|_| is_wanted);
        let is_unknown = |it: &Mechanism| raw.is_some() && kernel.state(*it) == State::Unknown;
        let unknown = needed.into_iter().filter(is_unknown).collect();
        let mut targets = Vec::new();
        for target in &self.targets {
            let processes = target::names(&target.processes()?)?;
            targets.push(PreviewTarget { target: target.to_string(), processes });
        }
        let bytes: usize = patch.entries().iter().map(|entry| entry.bytes.len()).sum();
        let change =
            format!("{bytes} bytes of each process's vDSO changed, {} added", patch.body().bytes.len());
        Ok(SkewPreview {
            rules: vec![self.spec.to_string()],
            functions: patch.functions().collect(),
            raw,
            unknown,
            targets,
            journalled: vec![change],
        })
    }
}

impl fmt::Display for SkewPreview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = Lines(f);
        let Self { rules, functions, raw, unknown, targets, journalled } = self;
        writeln!(f, "plan, nothing is touched: {PLACE}")?;
        rules.iter().enumerate().try_for_each(|(number, rule)| writeln!(f, "  rule {number}: {rule}"))?;
        writeln!(f, "  by {}: {}", Mechanism::VdsoPatch, functions.join(", "))?;
        match raw {
            Some(by) => writeln!(f, "  raw system calls: by {by}{}", unsure(unknown))?,
            None => writeln!(f, "  raw system calls are told the right time")?,
        }
        targets.iter().try_for_each(|target| writeln!(f, "  target: {target}"))?;
        writeln!(f, "  to be undone by more than the end of the process: {}", journalled.join("; "))?;
        writeln!(f, "  {ASKED}")
    }
}
