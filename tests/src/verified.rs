//! How far the verifier had to walk to take each program.

use std::{collections::BTreeMap, fmt::Debug, os::fd::AsFd};

use chaos_user::kernel::sys::{self, Kind};

use crate::{
    ensure,
    error::{Context, Result},
};

/// Half of the instructions that the verifier looks at before it gives up (`BPF_COMPLEXITY_LIMIT_INSNS`): a kernel that prunes a
/// little less still takes what is below it.
pub const CEILING: u32 = 500_000;

/// The most that it looked at for programs of each name.
#[derive(Debug, Default)]
pub struct Verified {
    programs: usize,
    most: BTreeMap<String, (u32, String)>,
}

impl Verified {
    /// Takes in a program that is loaded, by its number.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn take(&mut self, number: u32, with: &impl Debug) -> Result {
        let program = sys::open(Kind::Program, number)?.context(format_args!("program {number}"))?;
        self.take_fd(&program, with)
    }

    /// The same by its descriptor.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn take_fd(&mut self, program: &impl AsFd, with: &impl Debug) -> Result {
        let info = sys::program_info(program.as_fd())?;
        self.programs += 1;
        let most = self.most.entry(info.name).or_default();
        if info.verified_instructions > most.0 {
            *most = (info.verified_instructions, format!("{with:?}"));
        }
        Ok(())
    }

    /// Those of another.
    pub(crate) fn add(&mut self, other: Self) {
        self.programs += other.programs;
        for (name, most) in other.most {
            let known = self.most.entry(name).or_default();
            if most.0 > known.0 {
                *known = most;
            }
        }
    }

    /// How many instructions at most, by the names of programs.
    pub fn most(&self) -> impl Iterator<Item = (&str, u32)> {
        self.most.iter().map(|(name, (most, _))| (name.as_str(), *most))
    }

    /// That there are programs, and none is above the ceiling.
    ///
    /// # Errors
    ///
    /// Which is, with what.
    pub(crate) fn hold(&self) -> Result {
        println!("{} programs", self.programs);
        for (name, (most, with)) in &self.most {
            println!("{name}: {most} instructions with {with}");
            ensure!(
                *most <= CEILING,
                "the verifier walked {most} instructions through {name} with {with}; more than {CEILING} may not be"
            );
        }
        ensure!(self.programs > 0, "nothing was tried");
        Ok(())
    }
}

/// Of all programs, with all features that there are and with each alone.
///
/// # Errors
///
/// What does not load.
pub fn all() -> Result<Verified> {
    let mut all = crate::loss::verified()?;
    all.add(crate::calls_load::verified()?);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_counts() {
        let of = |name: &str, most: u32| Verified {
            programs: 1,
            most: [(name.to_owned(), (most, String::new()))].into(),
        };
        let mut all = of("a", 3);
        all.add(of("a", 7));
        all.add(of("a", 5));
        assert!(all.hold().is_ok());
        all.add(of("b", CEILING + 1));
        assert!(all.hold().is_err() && Verified::default().hold().is_err());
        assert_eq!(all.most().collect::<Vec<_>>(), [("a", 7), ("b", CEILING + 1)]);
    }
}
