//! With processes that are begun for it.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::*;
use crate::kernel::{
    change::LONGEST,
    stop::tests::{Subject, until, waits_for_its_child},
    vdso::{Image, Kind, Piece},
};

/// Each test's processes are its own.
fn patch(token: u64) -> Patch {
    let own = u64::from(std::process::id()) << 32;
    Image::own().expect("a vDSO").patch(Kind::Skew, own + token).expect("a patch")
}

fn process(subject: &Subject) -> Process {
    Process::find(subject.pid).expect("its stat").expect("a process")
}

fn memory(subject: &Subject) -> Memory {
    Memory::open(subject.pid).expect("its memory")
}

/// Stops it, at last: on a busy machine that may take more than one try.
fn change(subject: &Subject, patch: &Patch) {
    until("it is changed", || match Changed::new(process(subject), patch, &|| false) {
        Err(error) => {
            assert!(error.is_passing(), "{error}");
            false
        }
        Ok(_) => true,
    });
}

fn undo(change: &VdsoChange) -> super::super::Result<()> {
    change.undo(Instant::now() + LONGEST)
}

fn take_back(change: &VdsoChange) {
    until("all is taken back", || undo(change).is_ok());
    assert_eq!(change.left().expect("processes"), Vec::<u32>::new());
}

fn idles() -> Subject {
    Subject::begin(|_| {})
}

/// Whether each entry is changed, from the first on.
fn entries(memory: &Memory, patch: &Patch) -> Vec<bool> {
    let is_changed = |entry: &Piece| {
        let is_ours = memory.has(entry.offset, &entry.bytes).expect("its memory");
        assert!(is_ours || memory.has(entry.offset, &entry.original).expect("its memory"));
        is_ours
    };
    patch.entries().iter().map(is_changed).collect()
}

#[test]
fn entries_are_one_small_write_each() {
    for kind in [Kind::Skew, Kind::Call] {
        let patch = Image::own().expect("a vDSO").patch(kind, 1).expect("a patch");
        for entry in patch.entries() {
            assert!(entry.bytes.len() <= 8 && entry.offset % 8 == 0, "{entry:?}");
        }
    }
}

/// Takes one of these, if there is any.
fn is_left(looks: &AtomicUsize) -> bool {
    looks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

#[test]
fn what_was_begun_while_a_program_was_held_is_ended_while_it_is_stopped() {
    let patch = patch(1);
    let all = patch.entries().len();
    // As many looks say that it is held: at the body, and at each entry.
    for looks in 0..=all {
        let subject = idles();
        let left = AtomicUsize::new(looks);
        let is_held = || is_left(&left);
        let done = Changed::held(memory(&subject), &patch, &is_held);
        assert!(matches!(done, Err(ClockError::LetGo)), "{looks} looks: {done:?}");
        let expected: Vec<_> = (0..all).map(|entry| entry + 1 < looks).collect();
        assert_eq!(entries(&memory(&subject), &patch), expected, "{looks} looks");
        assert!(!is_put(&memory(&subject), &patch).expect("its memory"));
        change(&subject, &patch);
        assert_eq!(entries(&memory(&subject), &patch), vec![true; all]);
        assert!(is_put(&memory(&subject), &patch).expect("its memory"));
        take_back(&VdsoChange::of(&patch));
        assert_eq!(entries(&memory(&subject), &patch), vec![false; all]);
    }
    let subject = idles();
    assert!(Changed::held(memory(&subject), &patch, &|| true).is_ok());
    assert_eq!(entries(&memory(&subject), &patch), vec![true; all]);
    take_back(&VdsoChange::of(&patch));
}

#[test]
fn what_was_begun_is_taken_back() {
    let patch = patch(2);
    let subject = idles();
    let looks = AtomicUsize::new(2);
    let is_held = || is_left(&looks);
    let done = Changed::held(memory(&subject), &patch, &is_held);
    assert!(matches!(done, Err(ClockError::LetGo)), "{done:?}");
    assert_eq!(VdsoChange::of(&patch).left().expect("processes"), [subject.pid]);
    take_back(&VdsoChange::of(&patch));
    assert!(memory(&subject).has(patch.body().offset, &patch.body().original).expect("its memory"));
}

#[test]
fn who_is_another_s_to_trace_keeps_nobody_waiting() {
    let patch = patch(3);
    let (taken, free) = (idles(), idles());
    change(&taken, &patch);
    change(&free, &patch);
    let all = VdsoChange::of(&patch);
    let number = Pid::from_raw(taken.pid.cast_signed());
    // SAFETY: integers, two of which say nothing.
    assert_eq!(unsafe { libc::ptrace(libc::PTRACE_SEIZE, number.as_raw(), 0, 0) }, 0);
    until("the other is as it was", || {
        undo(&all).is_err() && all.left().is_ok_and(|left| left == [taken.pid])
    });
    let begun = Instant::now();
    let undone = undo(&all);
    assert!(
        undone.as_ref().is_err_and(|error| error.to_string().contains(&taken.pid.to_string())),
        "{undone:?}"
    );
    assert!(begun.elapsed() < LONGEST / 2, "{:?}", begun.elapsed());
    // Its end is its end, traced or not.
    kill(number, Signal::SIGKILL).expect("a signal");
    drop(taken);
    take_back(&all);
}

#[test]
fn who_waits_in_the_kernel_for_a_moment_is_waited_for() {
    const MOMENT: Duration = Duration::from_millis(300);
    let patch = patch(4);
    let subject = Subject::begin(waits_for_its_child);
    let child = Pid::from_raw(subject.other());
    // Neither can be stopped while there are both.
    assert!(Changed::new(process(&subject), &patch, &|| false).is_err());
    put(&memory(&subject), &patch, &|| true).expect("its memory");
    let all = VdsoChange::of(&patch);
    let undone = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(MOMENT);
            kill(child, Signal::SIGKILL).expect("a signal");
        });
        undo(&all)
    });
    assert!(undone.is_ok(), "{undone:?}");
    assert_eq!(all.left().expect("processes"), Vec::<u32>::new());
}
