//! What a call is about: a file, by its inode and the directories it is beneath. Names a program has passed are never
//! looked at: what they lead to is, so renames, links, bind mounts and other roots change nothing.

use core::{ffi::c_void, marker::PhantomData, ptr::null};

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_loop, bpf_probe_read_kernel};
use chaos_ebpf::{
    call::{MAX_GLOBS, Setup},
    field, glob,
};

use crate::{
    kernel::{Addressed, Object, Reach, Typed, identity, setup},
    maps::{FL_GLOBS, FL_PLACES},
};

/// What a call is about, and how that is read; null where there is no such thing.
pub(crate) struct Subject<R> {
    /// The open file.
    pub(crate) file: Object,
    /// Its inode.
    pub(crate) inode: Object,
    /// Its place in its file system.
    pub(crate) dentry: Object,
    /// Another place that it is to have, or that it takes from another file.
    other: Object,
    reach: PhantomData<R>,
}

impl Subject<Typed> {
    /// Of no file.
    pub(crate) const NONE: Self = Self::new(null(), null(), null());
}

impl<R> Subject<R> {
    const fn new(file: Object, inode: Object, dentry: Object) -> Self {
        Self { file, inode, dentry, other: null(), reach: PhantomData }
    }
}

impl<R: Reach> Subject<R> {
    /// Of an open file; null for none.
    #[inline(always)]
    pub(crate) fn of_file(file: Object) -> Self {
        if file.is_null() {
            return Self::new(file, null(), null());
        }
        let at = &setup().at;
        Self::new(file, R::object(file, at.file_inode), R::object(file, at.file_dentry))
    }

    /// Of a name in a directory.
    #[inline(always)]
    pub(crate) fn of_dentry(dentry: Object) -> Self {
        let inode = R::object(dentry, setup().at.dentry_inode);
        Self::new(null(), inode, dentry)
    }

    /// Of a name, and another that it is to have.
    #[inline(always)]
    pub(crate) fn of_both(dentry: Object, other: Object) -> Self {
        Self { other, ..Self::of_dentry(dentry) }
    }

    /// The super block, by its address; null without a file.
    #[inline(always)]
    pub(crate) fn file_system(&self, setup: &Setup) -> Object {
        let at = &setup.at;
        if !self.inode.is_null() {
            return R::long(self.inode, at.inode_sb) as Object;
        }
        if self.dentry.is_null() {
            return null();
        }
        // Of what is not there yet, its directory's.
        let parent = R::object(R::object(self.dentry, at.dentry_parent), at.dentry_inode);
        if parent.is_null() { parent } else { R::long(parent, at.inode_sb) as Object }
    }
}

/// How many directories above a file are looked at.
const DEPTH: u32 = 256;

/// Those of the rules asked about that want this file, or a directory that it is beneath, under either of its names, and
/// perhaps others.
#[inline(always)]
pub(crate) fn places<R: Reach>(setup: &Setup, subject: &Subject<R>, asked: u64) -> u64 {
    let rules = place(setup, subject, asked);
    if subject.other.is_null() {
        return rules;
    }
    rules | place(setup, &Subject::<R>::of_dentry(subject.other), asked)
}

#[inline(always)]
fn place<R: Reach>(setup: &Setup, subject: &Subject<R>, asked: u64) -> u64 {
    let Subject { file, inode, dentry, .. } = *subject;
    if dentry.is_null() {
        return 0;
    }
    if !R::IS_TYPED {
        return above_address(inode, dentry, asked);
    }
    // Before Linux 6.5 what overlayfs opens of its layers says it is where the overlay's file is
    // (`open_with_fake_path`): its inode is the layer's all the same, and knows its own name there.
    if !file.is_null() {
        let named = R::object(dentry, setup.at.dentry_inode);
        if !named.is_null() && named != inode {
            let alias = R::long(inode, setup.at.inode_names);
            let dentry = if alias == 0 { 0 } else { alias - field::at(setup.at.dentry_alias) as u64 };
            return above_address(inode, dentry as Object, asked);
        }
    }
    above(inode, dentry, asked)
}

#[inline(never)]
fn above(inode: Object, dentry: Object, asked: u64) -> u64 {
    climb(inode, dentry, asked, step::<Typed>)
}

#[inline(never)]
fn above_address(inode: Object, dentry: Object, asked: u64) -> u64 {
    climb(inode, dentry, asked, step::<Addressed>)
}

/// A file, and then one directory after the other that it is in.
struct Climb {
    inode: Object,
    dentry: Object,
    rules: u64,
    /// Those of which it is not known yet whether they want it.
    asked: u64,
    /// The name that led here, and its length; 0 at the file itself.
    name: u64,
    length: u64,
}

#[inline(always)]
fn climb(
    inode: Object,
    dentry: Object,
    asked: u64,
    step: unsafe extern "C" fn(u32, *mut Climb) -> i64,
) -> u64 {
    // Before Linux 6.7 the verifier takes what it knows of the first turn for what is so in all of them, and removes what
    // would then never run: it must not know that this is 0.
    // SAFETY: takes nothing, returns a number.
    let length = unsafe { bpf_jiffies64() } >> 63;
    let mut climb = Climb { inode, dentry, rules: 0, asked, name: 0, length };
    // SAFETY: the function takes what it is given, and that lives until the call is over.
    unsafe { bpf_loop(DEPTH, step as *mut c_void, (&raw mut climb).cast(), 0) };
    climb.rules
}

/// Looks at one of them; 1 if it was the last, or nothing more can be found.
unsafe extern "C" fn step<R: Reach>(_depth: u32, climb: *mut Climb) -> i64 {
    // SAFETY: as the caller of `bpf_loop` warrants.
    let climb = unsafe { &mut *climb };
    let setup = setup();
    let at = &setup.at;
    let (inode, dentry) = (climb.inode, climb.dentry);
    if !inode.is_null() && setup.numbers >> (R::long(inode, at.inode_number) & 63) & 1 != 0 {
        // SAFETY: the owner never deletes an entry while a program can run.
        if let Some(place) = unsafe { FL_PLACES.get(identity::<R>(inode)) } {
            climb.rules |= place.rules;
            if setup.globs != 0 && place.globs != 0 && climb.length != 0 {
                climb.rules |= fl_matching(climb.name, climb.length, place.globs);
            }
            climb.asked &= !climb.rules;
        }
    }
    if climb.asked == 0 || dentry.is_null() {
        return 1;
    }
    let parent = R::object(dentry, at.dentry_parent);
    if parent == dentry || parent.is_null() {
        return 1;
    }
    if setup.globs != 0 {
        // By its address: since Linux 6.17 what leads to a byte is a pointer for the verifier, and no argument of a global function.
        climb.name = Addressed::long(dentry, at.dentry_name);
        climb.length = R::int(dentry, at.dentry_length).into();
    }
    climb.inode = R::object(parent, at.dentry_inode);
    climb.dentry = parent;
    0
}

/// Most bytes of a name (`NAME_MAX`), and how many of them are read at a time.
const LONGEST: u32 = 255;
const CHUNK: u32 = 8;

/// A name on its way through one glob after the other.
struct Matching {
    name: u64,
    length: u32,
    /// How many of its bytes have been taken.
    taken: u32,
    /// The globs that are left, the lowest being the one it is in.
    globs: u64,
    /// The places in that which it may be at.
    places: u64,
    rules: u64,
}

/// The rules of those of the globs that a name matches. Global for the verifier, as `act::fl_weigh` is.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn fl_matching(name: u64, length: u64, globs: u64) -> u64 {
    let mut work = Matching { name, length: length as u32, taken: 0, globs, places: glob::START, rules: 0 };
    let turns = MAX_GLOBS as u32 * (LONGEST.div_ceil(CHUNK) + 1);
    let callback = take_some as unsafe extern "C" fn(u32, *mut Matching) -> i64;
    // SAFETY: the function takes what it is given, and the work lives until the call is over.
    unsafe { bpf_loop(turns, callback as *mut c_void, (&raw mut work).cast(), 0) };
    work.rules
}

/// Takes the next bytes of the name, or goes on to the next glob; 1 if there is none.
unsafe extern "C" fn take_some(_turn: u32, work: *mut Matching) -> i64 {
    // SAFETY: as the caller of `bpf_loop` warrants.
    let work = unsafe { &mut *work };
    if work.globs == 0 || work.length > LONGEST {
        return 1;
    }
    let Some(glob) = FL_GLOBS.get(work.globs.trailing_zeros()) else { return 1 };
    let start = work.taken;
    if start >= work.length {
        if work.places & glob.end != 0 {
            work.rules |= glob.rules;
        }
        work.globs &= work.globs - 1;
        work.taken = 0;
        work.places = glob::START;
        return 0;
    }
    let mut bytes = 0_u64;
    let from = (work.name + u64::from(start)) as *const c_void;
    // Names have room for a whole number of words (`struct external_name`, `d_iname`).
    // SAFETY: the helper checks what it reads, and writes as many bytes as there are.
    unsafe { bpf_probe_read_kernel((&raw mut bytes).cast(), CHUNK, from) };
    let mut places = work.places;
    for place in 0..CHUNK {
        if start + place < work.length {
            places = glob.step(places, (bytes >> (8 * place)) as u8);
        }
    }
    work.places = places;
    work.taken = start + CHUNK;
    0
}
