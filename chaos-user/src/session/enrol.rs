//! Having all who belong to processes be in the table that the programs keep from then on: whoever is begun by one who is in there
//! is added, and whoever ends is removed.

use std::collections::BTreeMap;

use super::SessionError;
use crate::{
    kernel::{self, process::Process, roll},
    target::{Target, Tree},
};

/// The table.
pub(super) trait Roll {
    /// The rules that want a process.
    fn rules(&self, process: u32) -> kernel::Result<u64>;
    /// Has these rules want it.
    fn set(&mut self, process: u32, rules: u64) -> kernel::Result<()>;
    /// Has none want it.
    fn remove(&mut self, process: u32) -> kernel::Result<()>;
}

impl Roll for roll::Roll {
    fn rules(&self, process: u32) -> kernel::Result<u64> {
        Self::rules(self, process)
    }

    fn set(&mut self, process: u32, rules: u64) -> kernel::Result<()> {
        Self::set(self, process, rules)
    }

    fn remove(&mut self, process: u32) -> kernel::Result<()> {
        Self::remove(self, process)
    }
}

/// The trees among targets, with the rules that want each.
pub(super) fn trees(targets: &[Target], rules_of: impl Fn(u32) -> u64) -> Vec<(&Tree, u64)> {
    let mut trees = Vec::new();
    for target in targets {
        if let Target::Process(tree) = target {
            trees.push((tree, rules_of(tree.pid)));
        }
    }
    trees
}

/// How often they are listed at most. Whoever begins processes faster than they are listed has all but the first few begun by those
/// that are known.
pub(super) const ROUNDS: u32 = 64;

/// Those who belong to these just now. Whoever is of several has the rules of all.
///
/// # Errors
///
/// [`SessionError`].
pub(super) fn members(trees: &[(&Tree, u64)]) -> Result<BTreeMap<Process, u64>, SessionError> {
    let mut wanted: BTreeMap<Process, u64> = BTreeMap::new();
    for (tree, rules) in trees {
        for process in tree.members()? {
            *wanted.entry(process).or_default() |= rules;
        }
    }
    Ok(wanted)
}

/// Lists those who belong to these and has them be in the table, again and again until there is nobody new: whoever is begun by one
/// that is not in there yet is none the programs know of. Who has ended by then is taken out again, for another may have that
/// number.
///
/// # Errors
///
/// [`SessionError`].
pub(super) fn enrol(trees: &[(&Tree, u64)], roll: &mut dyn Roll) -> Result<(), SessionError> {
    for _ in 0..ROUNDS {
        SessionError::if_interrupted()?;
        let mut is_new = false;
        for (process, rules) in members(trees)? {
            let has = roll.rules(process.pid)?;
            if has & rules != rules {
                is_new = true;
                roll.set(process.pid, has | rules)?;
                // From here on the programs hear of its end.
                let lives = process.lives();
                if !lives.map_err(|source| SessionError::Proc { call: "read /proc/PID/stat", source })? {
                    roll.remove(process.pid)?;
                }
            }
        }
        if !is_new {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;
    use crate::spec::Owner;

    /// A table that nobody else keeps.
    #[derive(Default)]
    struct Alone {
        rules: BTreeMap<u32, u64>,
        /// Who ends as soon as it is in there.
        ends: Option<Child>,
    }

    impl Roll for Alone {
        fn rules(&self, process: u32) -> kernel::Result<u64> {
            Ok(self.rules.get(&process).copied().unwrap_or(0))
        }

        fn set(&mut self, process: u32, rules: u64) -> kernel::Result<()> {
            self.rules.insert(process, rules);
            if let Some(mut child) = self.ends.take_if(|child| child.id() == process) {
                child.kill().expect("a signal");
                child.wait().expect("its end");
            }
            Ok(())
        }

        fn remove(&mut self, process: u32) -> kernel::Result<()> {
            self.rules.remove(&process);
            Ok(())
        }
    }

    fn sleeps() -> Child {
        Command::new("sleep").arg("1000").spawn().expect("sleep")
    }

    #[test]
    fn who_has_ended_by_then_is_in_no_table() {
        let (mut stays, ends) = (sleeps(), sleeps());
        let (stay, end) = (stays.id(), ends.id());
        let own = Target::find(&Owner::Process(std::process::id()));
        let mut table = Alone { ends: Some(ends), ..Alone::default() };
        // Where processes have other numbers there are no trees.
        if let Ok(own) = own {
            enrol(&trees(&[own], |_| 6), &mut table).expect("a table");
            assert_eq!(table.rules.get(&stay), Some(&6));
            assert!(table.ends.is_none() && !table.rules.contains_key(&end));
        }
        stays.kill().expect("a signal");
        stays.wait().expect("its end");
    }
}
