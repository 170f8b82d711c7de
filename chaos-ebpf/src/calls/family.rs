//! Who belongs to a process: the children it has from now on are written down as they come to be, so that they are
//! still its children when those between have ended.

use chaos_ebpf::call::Setup;

use crate::{
    kernel::{Addressed, Object, Reach, setup},
    maps::FL_PROCESSES,
};

fn tgid(setup: &Setup, task: Object) -> u32 {
    Addressed::int(task, setup.at.task_tgid)
}

fn is_thread(setup: &Setup, task: Object) -> bool {
    tgid(setup, task) != Addressed::int(task, setup.at.task_pid)
}

/// `sched_process_fork`: a process and its child.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/sched_process_fork")]
extern "C" fn fl_forked(arguments: *const u64) -> i64 {
    // SAFETY: the context the kernel called us with has two.
    let (parent, child) = unsafe { (*arguments as Object, *arguments.add(1) as Object) };
    let setup = setup();
    if is_thread(setup, child) {
        return 0;
    }
    // SAFETY: what is deleted meanwhile is not read but for its number.
    let rules = unsafe { FL_PROCESSES.get(tgid(setup, parent)) }.copied().unwrap_or(0);
    if rules != 0 {
        let _ = FL_PROCESSES.insert(tgid(setup, child), rules, 0);
    }
    0
}

/// `sched_process_exit`: a task that ends, and its process with the last of its tasks. That has its number until it is waited for;
/// from then on another may have it, while the kernel frees the task only some time later.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/sched_process_exit")]
extern "C" fn fl_gone(arguments: *const u64) -> i64 {
    // SAFETY: the context the kernel called us with has one.
    let task = unsafe { *arguments as Object };
    let setup = setup();
    let process = Addressed::object(task, setup.at.task_signal);
    if Addressed::int(process, setup.at.signal_live) == 0 {
        let _ = FL_PROCESSES.remove(tgid(setup, task));
    }
    0
}
