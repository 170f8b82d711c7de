//! Has open connections that are silent say something, so that they can be reset. A thread of its own does so: how long it
//! takes depends on how many connections there are, and no lease waits for it.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel},
    },
    thread::{self, JoinHandle},
};

use super::{Plan, SessionError};
use crate::{
    fault::Rule,
    kernel::{
        self,
        netlink::{Connection, Connections},
        prod::Prod,
    },
    target::Target,
};

/// The thread, until this is dropped.
#[derive(Debug)]
pub(super) struct Silent {
    /// What it is told to do, once more each time.
    turns: Option<SyncSender<Arc<Plan>>>,
    /// What it could not do, after which it has ended.
    failed: Receiver<kernel::Error>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Silent {
    /// Begins in the calling thread's network namespace. `sockets` is the map of those that processes have made, if rules are
    /// aimed at any.
    pub(super) fn begin(sockets: Option<OwnedFd>) -> Result<Self, SessionError> {
        let (prod, mut connections) = (Prod::open()?, Connections::open(sockets)?);
        // That the kernel has no such list is to be known before anything is hit.
        connections.all().map_err(|error| match error.errno() {
            libc::ENOENT => SessionError::NoConnections(error),
            _ => error.into(),
        })?;
        let (turns, turn) = sync_channel::<Arc<Plan>>(1);
        let (fails, failed) = channel();
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let work = move || {
            for plan in turn {
                if let Err(error) = provoke(&plan, &mut connections, &prod, &is_over) {
                    // Nobody is there to hear of it only when all is over.
                    let _ = fails.send(error);
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("fl-silent".into()).spawn(work);
        let thread = thread.map_err(|source| kernel::Error::new("clone", "a thread", source))?;
        Ok(Self { turns: Some(turns), failed, over, thread: Some(thread) })
    }

    /// Has it done once more, unless that is still being done; and says what went wrong since.
    pub(super) fn turn(&self, plan: &Arc<Plan>) -> kernel::Result<()> {
        let Some(turns) = &self.turns else { return Ok(()) };
        match turns.try_send(Arc::clone(plan)) {
            Ok(()) | Err(TrySendError::Full(_)) => Ok(()),
            Err(TrySendError::Disconnected(_)) => Err(self
                .failed
                .try_recv()
                .unwrap_or_else(|_| kernel::Error::new("join", "a thread", io::ErrorKind::Other.into()))),
        }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.turns = None;
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn provoke(plan: &Plan, connections: &mut Connections, prod: &Prod, over: &AtomicBool) -> kernel::Result<()> {
    let cgroups = cgroups(plan)?;
    for connection in connections.all()? {
        if over.load(Ordering::Relaxed) {
            break;
        }
        if plan.resets(&connection, &cgroups) {
            let Connection { local, remote, .. } = connection;
            prod.provoke(local, remote)?;
        }
    }
    Ok(())
}

/// The rules that reset what sockets of a cgroup have, by the number of each cgroup that is a target or below one.
fn cgroups(plan: &Plan) -> kernel::Result<BTreeMap<u64, u64>> {
    let mut cgroups: BTreeMap<u64, u64> = BTreeMap::new();
    for target in &plan.targets {
        let Target::Cgroup(cgroup) = target else { continue };
        let wants = |rule: &Rule| rule.resets() && rule.matches.cgroups.iter().any(|it| it.id == cgroup.id);
        let wanted = (0..).zip(&plan.rules).filter(|(_, rule)| wants(rule));
        let rules = wanted.fold(0, |rules, (number, _)| rules | 1_u64 << number);
        if rules != 0 {
            for number in cgroup.numbers()? {
                *cgroups.entry(number).or_default() |= rules;
            }
        }
    }
    Ok(cgroups)
}
