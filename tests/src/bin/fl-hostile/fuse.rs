//! A file system with two files, by the protocol of `linux/fuse.h`: whatever is asked of it is answered but what is in the files,
//! and later nothing is.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::Sender,
    },
};

use faultline_tests::error::{Context, Result, check};

/// The files, by the numbers of their nodes.
pub(super) const PROGRAM: u64 = 2;
pub(super) const MEMORY: u64 = 3;
const ROOT: u64 = 1;
const FILES: [(&[u8], u64); 2] = [(b"program", PROGRAM), (b"memory", MEMORY)];
/// Of each file.
pub(super) const SIZE: u64 = 1 << 20;

/// The kernel gives nothing to who has less room.
const ROOM: usize = 1 << 16;
/// What a request begins with: its length, what is asked, its number, of which node, by whom.
const HEADER: usize = 40;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// The kernel's end of it; all who wait for an answer are told that there is none once nobody has this any more.
#[derive(Debug)]
pub(super) struct Connection {
    file: File,
    room: Vec<u8>,
    is_dead: Arc<AtomicBool>,
}

struct Request<'a> {
    asks: u32,
    number: u64,
    node: u64,
    body: &'a [u8],
}

impl Connection {
    /// Of a file system that is mounted here.
    pub(super) fn mount(folder: &str) -> Result<Self> {
        let path = "/dev/fuse";
        let file = File::options().read(true).write(true).open(path).context(path)?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", file.as_raw_fd());
        let [source, folder, kind, options] =
            ["fl-hostile", folder, "fuse", &options].map(|word| CString::new(word).unwrap_or_default());
        let flags = libc::MS_NOSUID | libc::MS_NODEV;
        // SAFETY: strings that end with NUL.
        let mounted = unsafe {
            libc::mount(source.as_ptr(), folder.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast())
        };
        check(mounted.into(), "mount(fuse)")?;
        Ok(Self { file, room: vec![0; ROOM], is_dead: Arc::default() })
    }

    /// For whoever must not keep it.
    pub(super) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Once it is true nothing is answered: whoever asks waits, and cannot be killed.
    pub(super) fn death(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_dead)
    }

    /// Answers, and tells of which node something is to be read, which is not answered.
    pub(super) fn serve(mut self, reads: &Sender<u64>) -> Result {
        loop {
            let length = match self.file.read(&mut self.room) {
                Ok(length) => length,
                // Who asked waits no more.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => continue,
                Err(error) => return Err(error).context("read /dev/fuse"),
            };
            if self.is_dead.load(Relaxed) {
                continue;
            }
            let request = Request::of(&self.room[..length]).context("half a request")?;
            if request.asks == READ {
                // Nobody listens any more once all is as it should be.
                let _ = reads.send(request.node);
            } else if let Some(answer) = request.answer() {
                match self.file.write_all(&answer) {
                    Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                        return Err(error).context("write /dev/fuse");
                    }
                    _ => {}
                }
            }
        }
    }
}

impl<'a> Request<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let long = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
        let asks = u32::from_ne_bytes(bytes.get(4..8)?.try_into().ok()?);
        Some(Self { asks, number: long(8)?, node: long(16)?, body: bytes.get(HEADER..)? })
    }

    /// All of it; nothing where none is expected.
    fn answer(&self) -> Option<Vec<u8>> {
        let body = match self.asks {
            FORGET | BATCH_FORGET | INTERRUPT => return None,
            INIT => Ok(init()),
            LOOKUP => entry(self.body).ok_or(libc::ENOENT),
            GETATTR => Ok([&long(FOREVER)[..], &[0; 8], &attributes(self.node)].concat()),
            // No handle, and no flags.
            OPEN | OPENDIR => Ok(vec![0; 16]),
            _ => Err(libc::ENOSYS),
        };
        let (error, body) = body.map_or_else(|errno| (-errno, Vec::new()), |body| (0, body));
        let length = (16 + body.len()) as u32;
        Some([&length.to_ne_bytes()[..], &error.to_ne_bytes(), &long(self.number), &body].concat())
    }
}

/// Seconds for which the kernel need not ask again.
const FOREVER: u64 = 1 << 30;

fn long(number: u64) -> [u8; 8] {
    number.to_ne_bytes()
}

/// Version 7.31; nothing is read ahead, so that who reads waits for its own page.
fn init() -> Vec<u8> {
    let mut words = [0_u32; 16];
    words[..2].copy_from_slice(&[7, 31]);
    // The longest write.
    words[5] = 4096;
    // Times are kept in nanoseconds.
    words[6] = 1;
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn entry(name: &[u8]) -> Option<Vec<u8>> {
    let name = name.split(|byte| *byte == 0).next()?;
    let (_, node) = FILES.into_iter().find(|(file, _)| *file == name)?;
    // The node, its generation, for how long that and the attributes hold, and the nanoseconds of that.
    let words = [node, 0, FOREVER, FOREVER, 0].map(long);
    Some([words.concat(), attributes(node)].concat())
}

/// Of a folder or a program, root's.
fn attributes(node: u64) -> Vec<u8> {
    let (mode, size) = match node {
        ROOT => (libc::S_IFDIR | 0o755, 0),
        _ => (libc::S_IFREG | 0o755, SIZE),
    };
    // Its number, size, blocks, and times in seconds; times in nanoseconds, mode, links, owners, device, block size, flags.
    let longs = [node, size, size / 512, 0, 0, 0].map(long).concat();
    let words = [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].map(u32::to_ne_bytes).concat();
    [longs, words].concat()
}

/// In a child that is not to keep the file system alive.
pub(super) fn leave(descriptor: RawFd) -> io::Result<()> {
    // SAFETY: the child's copy, which nobody in it uses.
    match unsafe { libc::close(descriptor) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
