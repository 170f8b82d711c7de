//! Who must not notice anything: talks on another wire, uses files, and looks at clocks. It tells what went wrong, and that it
//! goes on.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{
    say,
    server::{CONNECTIONS, DATAGRAMS},
};
use crate::{
    clocks::{Source, Way},
    ensure,
    error::{Context, Failure, Result},
    lab::{Family, address},
};

/// Longer than a machine stands still on which everything else goes on.
const PATIENCE: Duration = Duration::from_secs(8);
/// How far the two clocks may go apart from one look to the next: what keeps a clock in time moves it by a part in 2,000.
const APART: i64 = 20_000_000;

/// Works until it is killed.
pub(super) fn run(folder: &str) -> Result {
    let folder = Path::new(folder).to_owned();
    let traffic = thread::spawn(|| again("traffic", traffic));
    let files = thread::spawn(move || again("files", || files(&folder)));
    let clocks = thread::spawn(|| again("clocks", clocks));
    for thread in [traffic, files, clocks] {
        thread.join().map_err(|_| Failure::new("a thread of the bystander panicked"))??;
    }
    Ok(())
}

/// Begins anew after each error.
fn again(name: &str, work: impl Fn() -> Result) -> Result {
    loop {
        if let Err(failure) = work() {
            say(format_args!("error {name}: {failure}"))?;
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Datagrams and connections to the end of the other wire; all that is sent comes back.
fn traffic() -> Result {
    let to = address(Family::V4, 1, 2);
    let socket = UdpSocket::bind("0.0.0.0:0").context("bind UDP")?;
    socket.connect((to, DATAGRAMS)).context("connect UDP")?;
    socket.set_read_timeout(Some(PATIENCE)).context("SO_RCVTIMEO")?;
    let connect = || -> Result<TcpStream> {
        let at = SocketAddr::new(to, CONNECTIONS);
        let stream = TcpStream::connect_timeout(&at, PATIENCE).context("connect TCP")?;
        stream.set_read_timeout(Some(PATIENCE)).context("SO_RCVTIMEO")?;
        Ok(stream)
    };
    let mut standing = connect()?;
    for round in 0_u64.. {
        let bytes = round.to_be_bytes();
        let mut back = [0; 16];
        socket.send(&bytes).context("send a datagram")?;
        let length = socket.recv(&mut back).context("a datagram's echo")?;
        ensure!(back[..length] == bytes, "datagram {round} came back as {:?}", &back[..length]);
        exchange(&mut standing, round).context("the connection that stands")?;
        if round.is_multiple_of(10) {
            exchange(&mut connect()?, round).context("a new connection")?;
        }
        say(format_args!("beat traffic"))?;
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn exchange(stream: &mut TcpStream, round: u64) -> Result {
    let sent = [round as u8; 1000];
    let mut back = [0; 1000];
    stream.write_all(&sent).context("send")?;
    stream.read_exact(&mut back).context("receive")?;
    ensure!(sent == back, "round {round} came back changed");
    Ok(())
}

/// Writes a file, has it be on disk, and reads it again.
fn files(folder: &Path) -> Result {
    const LENGTH: usize = 16 << 10;
    let path = folder.join("work");
    for round in 0_u64.. {
        let written = pattern(round, LENGTH);
        let mut file = File::create(&path).context("create")?;
        file.write_all(&written).context("write")?;
        file.sync_all().context("fsync")?;
        drop(file);
        let read = fs::read(&path).context("read")?;
        ensure!(read.len() == LENGTH, "{} bytes were read of {LENGTH}", read.len());
        ensure!(
            checksum(&read) == checksum(&written),
            "what was read in round {round} is not what was written"
        );
        say(format_args!("beat files"))?;
        thread::sleep(Duration::from_millis(30));
    }
    Ok(())
}

fn pattern(round: u64, length: usize) -> Vec<u8> {
    let mut state = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// The real time does not jump against the monotonic one, in no way that it can be asked for, and that one does not go back.
fn clocks() -> Result {
    let apart = |way: Way| -> Result<(i64, i64, i64)> {
        let before = Source::Monotonic.read(way).context("no monotonic clock")?;
        let real = Source::Realtime.read(way).context("no real clock")?;
        let after = Source::Monotonic.read(way).context("no monotonic clock")?;
        ensure!(after >= before, "the monotonic clock went back by {} ns", before - after);
        Ok((real - before, after - before, after))
    };
    let first = apart(Way::Raw)?;
    // Whoever reads may be kept from it for a while between two clocks, the last time as well.
    let (mut last, mut monotonic) = ([(first.0, first.1); 2], [first.2; 2]);
    loop {
        for (place, way) in [Way::Libc, Way::Raw].into_iter().enumerate() {
            let (now, doubt, at) = apart(way)?;
            ensure!(
                at >= monotonic[place],
                "{way:?}: the monotonic clock went back by {} ns",
                monotonic[place] - at
            );
            monotonic[place] = at;
            let (before, doubted) = last[place];
            let jump = (now - before).abs();
            ensure!(jump < APART + doubt + doubted, "{way:?}: the real time jumped by {jump} ns");
            last[place] = (now, doubt);
        }
        let until = Instant::now() + Duration::from_millis(10);
        while Instant::now() < until {
            thread::sleep(Duration::from_millis(2));
        }
        say(format_args!("beat clocks"))?;
    }
}
