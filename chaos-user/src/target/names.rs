//! Names that are looked up again and again, for what they stand for may change.

use std::{
    collections::BTreeSet,
    sync::mpsc::{Receiver, sync_channel},
    thread,
    time::Duration,
};

use ipnet::IpNet;

use super::peer::resolve;
use crate::kernel::{self, signals};

/// How often. Resolvers that keep answers keep them for their time.
const INTERVAL: Duration = Duration::from_secs(5);

/// What names stand for, as it is found out. A resolver may take its time, and a lease must not wait for it.
#[derive(Debug)]
pub struct Names(Receiver<(String, Vec<IpNet>)>);

impl Names {
    /// Begins to look these up, in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// If there can be no other thread.
    pub fn follow(names: BTreeSet<String>) -> kernel::Result<Self> {
        let (found, receiver) = sync_channel(16);
        let follow = move || {
            loop {
                thread::sleep(INTERVAL);
                for name in &names {
                    // One that is not answered now still stands for what it did.
                    let Ok(addresses) = resolve(name) else { continue };
                    // Nobody wants to know any more.
                    if found.send((name.clone(), addresses)).is_err() {
                        return;
                    }
                }
            }
        };
        signals::thread("names", follow)?;
        Ok(Self(receiver))
    }

    /// What has been found out since it was asked for.
    pub fn news(&self) -> impl Iterator<Item = (String, Vec<IpNet>)> + '_ {
        self.0.try_iter()
    }
}
