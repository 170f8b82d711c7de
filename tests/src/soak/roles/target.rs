//! Whom faults are aimed at: reads clocks, uses files and a disk, talks to the other end of the wire, starts threads. All
//! of it may fail, and it goes on. It tells in how many rounds, up to the last, nothing did.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    ptr, thread,
    time::Duration,
};

use nix::unistd::getppid;

use super::{
    say,
    server::{CONNECTIONS, DATAGRAMS, QUESTIONS},
};
use crate::{
    clocks::{Source, Way},
    error::{Context, Result},
    lab::{Family, address},
    soak::faults::DISK,
};

const PERIOD: Duration = Duration::from_millis(3);
/// An answer that takes longer does not come.
const ANSWER: Duration = Duration::from_millis(80);
const CONNECTED: Duration = Duration::from_millis(300);

/// A question for the address of `www.example`.
const QUESTION: &[u8] =
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x00\x00\x01\x00\x01";

/// Works in a folder until it is killed, or, if it is a command of somebody's, until that ends.
pub(super) fn run(folder: &str, is_command: bool) -> Result {
    thread::spawn(read_clocks);
    if is_command {
        // It may have died before this began.
        while is_child_of_faultline() {
            thread::sleep(PERIOD);
        }
        return Ok(());
    }
    let file = Path::new(folder).join("file");
    std::fs::write(&file, [7; 4096]).context(file.display())?;
    let socket = UdpSocket::bind("0.0.0.0:0").context("bind UDP")?;
    socket.set_read_timeout(Some(ANSWER)).context("SO_RCVTIMEO")?;
    let (mut clean, mut rounds) = (0_u64, 0_u64);
    loop {
        rounds += 1;
        let worked = round(rounds, &file, &socket).is_ok();
        clean = if worked { clean + 1 } else { 0 };
        say(format_args!("{rounds} {clean}"))?;
        thread::sleep(PERIOD);
    }
}

fn is_child_of_faultline() -> bool {
    let name = std::fs::read_to_string(format!("/proc/{}/comm", getppid()));
    name.is_ok_and(|name| name.starts_with("faultline"))
}

/// Most of the time it is somewhere in the functions that a wrong clock changes.
fn read_clocks() {
    loop {
        for _ in 0..500 {
            for source in [Source::Realtime, Source::Monotonic, Source::Gettimeofday, Source::Time] {
                let _ = source.read(Way::Libc);
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Everything once, or every few rounds. Nothing here needs memory but a thread.
fn round(number: u64, path: &Path, socket: &UdpSocket) -> std::io::Result<()> {
    let every = |count: u64| number.is_multiple_of(count);
    let mut bytes = [0; 64];
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    file.read_exact_at(&mut bytes, 0)?;
    if bytes != [7; 64] {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    file.write_all_at(&[7; 64], 128)?;
    if every(8) {
        // Beyond its end, and back.
        file.write_all_at(&[7; 64], 4096)?;
        file.set_len(4096)?;
    }
    if every(20) {
        file.sync_all()?;
    }
    if getppid().as_raw() < 0 {
        return Err(std::io::Error::last_os_error());
    }
    ask(number, socket, DATAGRAMS, b"datagram")?;
    if every(5) {
        ask(number, socket, QUESTIONS, QUESTION)?;
        std::fs::metadata(path)?;
    }
    if every(10) {
        converse()?;
        map()?;
        read_disk()?;
        let started = thread::Builder::new().spawn(|| ())?;
        let _ = started.join();
    }
    Ok(())
}

/// Sends a datagram and waits for it to come back.
fn ask(number: u64, socket: &UdpSocket, port: u16, words: &[u8]) -> std::io::Result<()> {
    let mut message = [0; 64];
    message[..words.len()].copy_from_slice(words);
    message[56..].copy_from_slice(&number.to_be_bytes());
    // A question is told from what stands behind it by what it says of itself.
    let message = if port == QUESTIONS { words } else { &message[..] };
    socket.send_to(message, (address(Family::V4, 0, 2), port))?;
    let mut answer = [0; 256];
    loop {
        let (length, from) = socket.recv_from(&mut answer)?;
        if from.port() != port {
            continue;
        }
        if answer[..length] == *message {
            return Ok(());
        }
        if port == QUESTIONS {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
    }
}

fn converse() -> std::io::Result<()> {
    let to = SocketAddr::new(address(Family::V4, 0, 2), CONNECTIONS);
    let mut stream = TcpStream::connect_timeout(&to, CONNECTED)?;
    stream.set_read_timeout(Some(CONNECTED))?;
    stream.write_all(&[3; 64])?;
    stream.read_exact(&mut [0; 64])
}

fn map() -> std::io::Result<()> {
    const LENGTH: usize = 1 << 16;
    // SAFETY: a new mapping wherever the kernel puts it, which nobody else has and which is given back.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let at =
            libc::mmap(ptr::null_mut(), LENGTH, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
        if at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        at.cast::<u8>().write(1);
        libc::munmap(at, LENGTH);
    }
    Ok(())
}

/// Where there is one.
fn read_disk() -> std::io::Result<()> {
    #[repr(align(4096))]
    struct Block([u8; 4096]);
    let Ok(disk) = File::options().read(true).custom_flags(libc::O_DIRECT).open(DISK) else { return Ok(()) };
    disk.read_exact_at(&mut Block([0; 4096]).0, 0)
}
