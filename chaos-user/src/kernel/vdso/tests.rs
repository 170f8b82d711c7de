use chaos_ebpf::time::{Block, MARGIN, SlotLine};

use super::{
    patch::{Kind, Patch, Piece},
    *,
};

const TOKEN: u64 = 0xfeed_0000_0000_0001;
/// Linux 6.12 leaves 960.
const ROOM: usize = 900;

fn own() -> Image {
    Image::own().expect("a vDSO")
}

fn put(bytes: &mut [u8], pieces: &[Piece]) {
    for Piece { offset, original, bytes: new } in pieces {
        let place = &mut bytes[*offset..offset + new.len()];
        assert_eq!((&*place, original.len()), (&original[..], new.len()));
        place.copy_from_slice(new);
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_own_one_is_patched_and_found_out() {
    let image = own();
    for kind in [Kind::Skew, Kind::Call] {
        let patch = image.patch(kind, TOKEN).expect("a patch");
        let (body, entries) = (patch.body(), patch.entries());
        println!("{kind:?}: {} bytes of {}", body.bytes.len(), image.slack().len());
        assert!(body.bytes.len() <= ROOM && body.offset == image.slack().start);
        assert!(body.original.iter().all(|byte| *byte == 0));
        assert!(entries.len() == 3 && entries.iter().all(|entry| entry.bytes.len() <= 8));
        let mut bytes = image.bytes().to_vec();
        put(&mut bytes, slice::from_ref(body));
        // Left over, it is in nobody's way.
        assert_eq!(Image::parse(&bytes).expect("an image"), image);
        put(&mut bytes, entries);
        for (offset, new) in patch.renewal(0, &Block { window: 1, ..Block::RIGHT }) {
            bytes[offset..offset + new.len()].copy_from_slice(&new);
        }
        assert!(matches!(Image::parse(&bytes), Err(VdsoError::Patched { token: Some(TOKEN) })));
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn what_cannot_be_patched_is_refused() {
    const CLASS: usize = 4;
    const MACHINE: usize = 18;
    let image = own();
    let with = |at: usize, new: &[u8]| {
        let mut bytes = image.bytes().to_vec();
        bytes[at..at + new.len()].copy_from_slice(new);
        Image::parse(&bytes)
    };
    assert!(matches!(with(CLASS, &[1]), Err(VdsoError::Bits32)));
    assert!(matches!(with(MACHINE, &[243]), Err(VdsoError::Machine { number: 243 })));
    assert!(matches!(with(MACHINE, &[183]), Err(VdsoError::Symbol { symbol: "__kernel_clock_gettime" })));
    assert!(matches!(Image::parse(&[]), Err(VdsoError::Malformed { .. })));
    assert!(matches!(Image::parse(&image.bytes()[..0x400]), Err(VdsoError::Malformed { .. })));
    // Something in the slack.
    let slack = image.slack();
    let full = with(slack.end - 512, &[1]).expect("an image");
    assert_eq!(full.slack().len(), 496);
    let refused = full.patch(Kind::Skew, TOKEN);
    assert!(matches!(refused, Err(VdsoError::Slack { there: 496, .. })));
    // Another's jump there.
    let at = image.functions().gettimeofday.range.start;
    let way = (slack.start - at - 5) as u32;
    let jump = [&[0xe9][..], &way.to_le_bytes()].concat();
    assert!(matches!(with(at, &jump), Err(VdsoError::Patched { token: None })));
}

/// What a child finds in its own vDSO's answers once it has patched it, as bits; it makes system calls only.
#[cfg(target_arch = "x86_64")]
fn look(patch: &Patch, renewal: &[(usize, Vec<u8>)], fd: i32, base: usize) -> i32 {
    let write = |offset: usize, bytes: &[u8]| {
        // SAFETY: the bytes live until it is over, and the file is this process's memory.
        let written =
            unsafe { libc::pwrite(fd, bytes.as_ptr().cast(), bytes.len(), (base + offset) as libc::off_t) };
        written == bytes.len() as isize
    };
    let put = |pieces: &[Piece]| pieces.iter().all(|piece| write(piece.offset, &piece.bytes));
    let put_back = |pieces: &[Piece]| pieces.iter().all(|piece| write(piece.offset, &piece.original));
    if !(put(slice::from_ref(patch.body())) && renewal.iter().all(|(at, bytes)| write(*at, bytes))) {
        return 1;
    }
    let ahead = |clock| {
        let (mut skewed, mut real) =
            (libc::timespec { tv_sec: 0, tv_nsec: 0 }, libc::timespec { tv_sec: 0, tv_nsec: 0 });
        // SAFETY: both store there.
        unsafe {
            libc::clock_gettime(clock, &raw mut skewed);
            libc::syscall(libc::SYS_clock_gettime, clock, &raw mut real);
        }
        (skewed.tv_sec - real.tv_sec + 5) / 10
    };
    let day_ahead = || {
        let mut day = libc::timeval { tv_sec: 0, tv_usec: 0 };
        let mut real = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: these store there, or nowhere.
        let time = unsafe {
            libc::gettimeofday(&raw mut day, std::ptr::null_mut());
            libc::syscall(libc::SYS_clock_gettime, 0, &raw mut real);
            libc::time(std::ptr::null_mut())
        };
        [day.tv_sec, time].map(|seconds| (seconds - real.tv_sec + 5) / 10)
    };
    if ahead(0) != 0 || !put(patch.entries()) {
        return 2;
    }
    if patch.kind() == Kind::Call {
        return if ahead(0) == 0 && day_ahead() == [0; 2] { 0 } else { 3 };
    }
    if [0, 1, 4, 5, 6, 7].map(ahead) != [100, 200, 0, 100, 200, 0] || day_ahead() != [100; 2] {
        return 4;
    }
    if !patch.off().iter().all(|(at, bytes)| write(*at, bytes)) || ahead(0) != 0 || day_ahead() != [0; 2] {
        return 5;
    }
    if !put_back(patch.entries()) || [0, 1].map(ahead) != [0; 2] { 6 } else { 0 }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_process_that_is_patched_reads_what_it_is_to_read() {
    use nix::{
        sys::wait::{WaitStatus, waitpid},
        unistd::{ForkResult, fork},
    };

    let line = |base: u64, offset| SlotLine { start: base - MARGIN, offset, slope: 0, before: 0 };
    let image = own();
    let mut slots = Block::RIGHT.slots;
    let now = |clock| {
        std::time::Duration::from(nix::time::clock_gettime(clock).expect("a clock")).as_nanos() as u64
    };
    slots[0] = line(now(nix::time::ClockId::CLOCK_REALTIME), 1_000_000_000_000);
    slots[2] = line(now(nix::time::ClockId::CLOCK_MONOTONIC), 2_000_000_000_000);
    let block = Block { window: 3_600_000_000_000, slots };
    // SAFETY: it only looks a number up.
    let base = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } as usize;
    for kind in [Kind::Skew, Kind::Call] {
        let patch = image.patch(kind, TOKEN).expect("a patch");
        let renewal = patch.renewal(0, &block);
        // SAFETY: the child makes system calls, and ends.
        match unsafe { fork() }.expect("a child") {
            ForkResult::Child => {
                // SAFETY: opened after the fork, for it is whose memory is meant; the path is a constant.
                let fd = unsafe { libc::open(c"/proc/self/mem".as_ptr(), libc::O_RDWR) };
                // SAFETY: nothing else runs on the way out.
                unsafe { libc::_exit(look(&patch, &renewal, fd, base)) }
            }
            ForkResult::Parent { child } => match waitpid(child, None).expect("its end") {
                WaitStatus::Exited(_, 1) => println!("skipped: nobody may write to code here"),
                end => assert_eq!(end, WaitStatus::Exited(child, 0), "{kind:?}"),
            },
        }
    }
}
