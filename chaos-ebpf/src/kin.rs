//! The cgroups around something, and the rules that want them.

use aya_ebpf::helpers::generated::bpf_get_current_ancestor_cgroup_id;
use chaos_ebpf::abi::MAX_LEVELS;

use crate::maps::FL_CGROUPS;

/// The rules of all cgroups that `ancestor` names, by their level.
#[inline(always)]
pub(crate) fn around(levels: &[u8; MAX_LEVELS], count: u32, ancestor: impl Fn(u32) -> u64) -> u64 {
    let mut rules = 0;
    for (place, level) in levels.iter().enumerate() {
        if place as u32 >= count {
            break;
        }
        let number = ancestor(u32::from(*level));
        // SAFETY: the owner never deletes an entry while a program can run.
        rules |= unsafe { FL_CGROUPS.get(number) }.copied().unwrap_or(0);
    }
    rules
}

/// The rules that want the cgroup of the process that runs, or one around it.
#[inline(always)]
pub(crate) fn of_current(levels: &[u8; MAX_LEVELS], count: u32) -> u64 {
    // SAFETY: takes and returns a number.
    around(levels, count, |level| unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) })
}
