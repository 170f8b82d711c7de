//! What a run is made in: two hosts and a service that does what faults act on, and what of all this must be as before.

use std::{
    fs,
    io::Read,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use aya_obj::generated::{bpf_attach_type, bpf_insn, bpf_prog_type};
use chaos_user::kernel::{
    ethtool::{Ethtool, Feature, SEGMENTATION},
    sys::{self, Program, Target},
};

use crate::{
    cgroup::{Cgroup, Inhabitant},
    clocks::{Clock, Image},
    ensure,
    error::{Context, Result},
    harness::program,
    inventory::Inventory,
    lab::{Family, Lab, NEAR_DEVICE, Options},
};

/// What the service does all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Sends datagrams, by a socket that a process of the cgroup has as well.
    Packets,
    /// Connects to the other host, and again when that is reset.
    Connections,
    /// Opens files.
    Files,
    /// Reads clocks when it is asked to.
    Clocks,
}

/// How often a datagram is sent.
const INTERVAL: Duration = Duration::from_millis(1);
pub(super) const PORT: u16 = 7000;

/// All of it.
#[derive(Debug)]
pub(super) struct Scene {
    lab: Lab,
    /// Programs of somebody else on the interface.
    links: Vec<OwnedFd>,
    // Ends before the cgroup that it is in.
    service: Service,
    cgroup: Cgroup,
    before: Option<State>,
}

#[derive(Debug)]
struct Service {
    process: Option<Inhabitant>,
    clock: Option<Clock>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has told by its panic what went wrong with it.
            let _ = thread.join();
        }
    }
}

/// What is as before afterwards.
#[derive(Debug)]
struct State {
    inventory: Inventory,
    features: Vec<Feature>,
    vdso: Option<Image>,
    limits: String,
}

impl Scene {
    /// All of it at work.
    pub(super) fn set(work: Work) -> Result<Self> {
        let lab = Lab::with(Options::default())?;
        let cgroup = Cgroup::new()?;
        let service = Service::begin(work, &lab, &cgroup)?;
        let mut scene = Self { lab, links: Vec::new(), service, cgroup, before: None };
        scene.before = Some(scene.state()?);
        Ok(scene)
    }

    /// Has no room left for a tcx program on the interface, as on a kernel without tcx.
    pub(super) fn fill_tcx(&mut self) -> Result {
        /// More than a hook has room for.
        const MORE: usize = 65;
        let Lab { near, .. } = &self.lab;
        let index = near.index(NEAR_DEVICE)?;
        // r0 = TCX_NEXT; exit
        let instructions = [insn(0xb7, -1), insn(0x95, 0)];
        let links = near.run(|| {
            let mut links = Vec::new();
            for attach in [bpf_attach_type::BPF_TCX_INGRESS, bpf_attach_type::BPF_TCX_EGRESS] {
                for _ in 0..MORE {
                    let program = sys::load(&Program {
                        name: "somebody",
                        kind: bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS,
                        attach: None,
                        attach_btf_id: 0,
                        flags: 0,
                        instructions: &instructions,
                        functions: None,
                    })?;
                    match sys::link(program.as_fd(), Target::Interface(index), attach, 0) {
                        Err(full) if full.errno() == libc::ERANGE => break,
                        link => links.push(link?),
                    }
                }
            }
            Ok(links)
        })?;
        self.links = links;
        self.before = Some(self.state()?);
        Ok(())
    }

    /// The words of a command, with what stands for what is here.
    pub(super) fn words(&self, words: &str) -> Vec<String> {
        let pid = self.service.pid().to_string();
        let (netns, folder) = (self.lab.near.path(), self.cgroup.path());
        words
            .split(' ')
            .map(|word| match word {
                "DEVICE" => NEAR_DEVICE.into(),
                "NETNS" => netns.to_string_lossy().into_owned(),
                "CGROUP" => folder.to_string_lossy().into_owned(),
                "PID" => pid.clone(),
                word => word.to_owned(),
            })
            .collect()
    }

    fn state(&self) -> Result<State> {
        let Self { lab, service, cgroup, .. } = self;
        let index = lab.near.index(NEAR_DEVICE)?;
        Ok(State {
            inventory: Inventory::take(&[&lab.near, &lab.far])?,
            features: lab.near.run(|| Ok(Ethtool::open(index)?.features(SEGMENTATION)?))?,
            vdso: service.clock.as_ref().map(|clock| Image::of(clock.pid())).transpose()?,
            limits: fs::read_to_string(cgroup.path().join("io.max")).unwrap_or_default(),
        })
    }

    /// Fails unless all becomes as it was within this time.
    pub(super) fn is_as_before(&self, time: Duration) -> Result {
        let State { inventory, features, vdso, limits } = self.before.as_ref().context("no state")?;
        let deadline = Instant::now() + time;
        inventory.wait_until_equal(&[&self.lab.near, &self.lab.far], time)?;
        loop {
            let now = self.state()?;
            let same = now.features == *features && now.vdso == *vdso && now.limits == *limits;
            if same {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "offloads {:?}, not {features:?}; limits {:?}, not {limits:?}; its vDSO is{} as it was",
                now.features,
                now.limits,
                if now.vdso == *vdso { "" } else { " not" }
            );
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn insn(code: u8, imm: i32) -> bpf_insn {
    bpf_insn { code, _bitfield_align_1: [], _bitfield_1: bpf_insn::new_bitfield_1(0, 0), off: 0, imm }
}

impl Service {
    fn begin(work: Work, lab: &Lab, cgroup: &Cgroup) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let mut service = Self { process: None, clock: None, over: Arc::clone(&over), thread: None };
        match work {
            Work::Packets => {
                let route = lab.outward(Family::V4);
                let bind = |at| move || UdpSocket::bind((at, PORT)).context("bind");
                let (source, target) =
                    (route.from.run(bind(route.source))?, route.to.run(bind(route.target))?);
                let copy: OwnedFd = source.try_clone().context("dup")?.into();
                service.process = Some(cgroup.inhabit_in(&lab.near, |command| {
                    command.stdout(Stdio::from(copy));
                })?);
                let at = SocketAddr::new(route.target, PORT);
                service.thread = Some(thread::spawn(move || {
                    // It is there to be sent to.
                    let _target = target;
                    while !over.load(Ordering::Relaxed) {
                        // A fault may have the kernel refuse it.
                        let _ = source.send_to(b"faultline", at);
                        thread::sleep(INTERVAL);
                    }
                }));
            }
            Work::Connections => {
                let route = lab.outward(Family::V4);
                let at = SocketAddr::new(route.target, PORT);
                let listener = route.to.run(|| TcpListener::bind(at).context("listen"))?;
                service.process = Some(cgroup.inhabit_in(&lab.near, |_| {})?);
                // Whatever this thread connects is of the namespace that it has entered.
                let netns = fs::File::open(lab.near.path()).context("open")?;
                service.thread = Some(thread::spawn(move || {
                    let entered = nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET);
                    while entered.is_ok() && !over.load(Ordering::Relaxed) {
                        converse(&listener, at, &over);
                    }
                }));
            }
            Work::Files => {
                let shell = program("sh").context("no program sh")?;
                service.process = Some(cgroup.inhabit_as(&shell, |command| {
                    command.args(["-c", "while sleep 0.005; do :; done"]);
                })?);
            }
            Work::Clocks => service.clock = Some(Clock::start(Some(cgroup))?),
        }
        Ok(service)
    }

    fn pid(&self) -> u32 {
        let clock = self.clock.as_ref().map(Clock::pid);
        self.process.as_ref().map(Inhabitant::pid).or(clock).unwrap_or_default()
    }
}

/// One connection, until it is reset or all is over.
fn converse(listener: &TcpListener, at: SocketAddr, over: &AtomicBool) {
    let Ok(mut client) = TcpStream::connect_timeout(&at, Duration::from_millis(200)) else { return };
    let Ok((_server, _)) = listener.accept() else { return };
    let _ = client.set_read_timeout(Some(Duration::from_millis(10)));
    while !over.load(Ordering::Relaxed) {
        match client.read(&mut [0]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}
