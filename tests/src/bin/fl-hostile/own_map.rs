//! Where a process says that its parts lie: anybody may say so of itself, on kernels with `CONFIG_CHECKPOINT_RESTORE`.

use std::fs;

use faultline_tests::error::{Context, Result, check};

/// `struct prctl_mm_map` of `linux/prctl.h`.
#[repr(C)]
#[derive(Debug)]
pub(super) struct OwnMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    pub(super) start_stack: u64,
    pub(super) arg_start: u64,
    pub(super) arg_end: u64,
    pub(super) env_start: u64,
    pub(super) env_end: u64,
    pub(super) auxv: u64,
    pub(super) auxv_size: u32,
    exe_fd: u32,
}

impl OwnMap {
    /// As it is.
    pub(super) fn get() -> Result<Self> {
        let path = "/proc/self/stat";
        let stat = fs::read_to_string(path).context(path)?;
        // The name, which is the second, may hold anything.
        let (_, rest) = stat.rsplit_once(") ").context(path)?;
        let words: Vec<&str> = rest.split_whitespace().collect();
        // As proc_pid_stat(5) numbers them.
        let field = |number: usize| -> Result<u64> {
            let word = words.get(number - 3).context(format_args!("{path} has no field {number}"))?;
            word.parse().context(word)
        };
        Ok(Self {
            start_code: field(26)?,
            end_code: field(27)?,
            start_data: field(45)?,
            end_data: field(46)?,
            start_brk: field(47)?,
            // SAFETY: asks where it is.
            brk: unsafe { libc::sbrk(0) } as u64,
            start_stack: field(28)?,
            arg_start: field(48)?,
            arg_end: field(49)?,
            env_start: field(50)?,
            env_end: field(51)?,
            auxv: 0,
            // What there is stays.
            auxv_size: 0,
            exe_fd: u32::MAX,
        })
    }

    /// As it is to be from now on.
    pub(super) fn set(&self) -> Result {
        let map: *const Self = self;
        // The C library takes five words, all of which the kernel looks at.
        let (what, length, nothing) = (libc::PR_SET_MM_MAP as usize, size_of::<Self>(), 0_usize);
        // SAFETY: reads one map, and as much as that says of an auxiliary vector.
        let set = unsafe { libc::prctl(libc::PR_SET_MM, what, map, length, nothing) };
        check(set.into(), "prctl(PR_SET_MM_MAP)").map(drop)
    }
}
