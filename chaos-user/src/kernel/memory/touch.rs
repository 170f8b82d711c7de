//! Who is being changed just now by a thread of this process, which may have been left behind: whatever it waits for may be over at
//! any time, and then it writes what it was about to.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::kernel::vdso::Patch;

/// By what a change is known and the process's number, how many threads.
static TOUCHES: Mutex<BTreeMap<(Vec<u8>, u32), u32>> = Mutex::new(BTreeMap::new());

fn lock() -> MutexGuard<'static, BTreeMap<(Vec<u8>, u32), u32>> {
    TOUCHES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One of them, until it is dropped. Whoever takes one and finds that it is not over yet is seen by all that come after its end.
#[derive(Debug)]
pub struct Touch(Vec<u8>, u32);

impl Touch {
    /// The calling thread is about to make a change, known by this patch.
    #[must_use]
    pub fn begin(patch: &Patch, process: u32) -> Self {
        Self::of(patch.mark(), process)
    }

    fn of(mark: &[u8], process: u32) -> Self {
        *lock().entry((mark.to_vec(), process)).or_default() += 1;
        Self(mark.to_vec(), process)
    }
}

impl Drop for Touch {
    fn drop(&mut self) {
        let mut touches = lock();
        let key = (std::mem::take(&mut self.0), self.1);
        let left = touches.get_mut(&key).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            touches.remove(&key);
        }
    }
}

/// The processes that are being changed so.
pub(super) fn touched(mark: &[u8]) -> Vec<u32> {
    lock().keys().filter(|(of, _)| of == mark).map(|(_, process)| *process).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_long_as_one_is_there() {
        let one = Touch::of(b"mark", 7);
        let two = Touch::of(b"mark", 7);
        let other = Touch::of(b"other", 8);
        assert_eq!(touched(b"mark"), [7]);
        drop(one);
        assert_eq!(touched(b"mark"), [7]);
        drop(two);
        assert!(touched(b"mark").is_empty());
        assert_eq!(touched(b"other"), [8]);
        drop(other);
        assert!(touched(b"other").is_empty());
    }
}
