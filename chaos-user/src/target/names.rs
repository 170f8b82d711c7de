//! Names that are looked up again and again, for what they stand for may change.

use std::{
    collections::BTreeSet,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel},
    time::Duration,
};

use ipnet::IpNet;

use super::peer::resolve;
use crate::kernel::{self, signals};

/// How often. Resolvers that keep answers keep them for their time.
const INTERVAL: Duration = Duration::from_secs(5);

/// What names stand for, as it is found out. A resolver may take its time, and a lease must not wait for it.
#[derive(Debug)]
pub struct Names {
    news: Receiver<(String, Vec<IpNet>)>,
    /// As long as this is there, somebody wants to know.
    _asks: Sender<()>,
}

impl Names {
    /// Begins to look these up, in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// If there can be no other thread.
    pub fn follow(names: BTreeSet<String>) -> kernel::Result<Self> {
        let (found, news) = sync_channel(16);
        let (asks, asked) = channel::<()>();
        let follow = move || {
            while asked.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                for name in &names {
                    // One that is not answered now still stands for what it did.
                    let Ok(addresses) = resolve(name) else { continue };
                    if found.send((name.clone(), addresses)).is_err() {
                        return;
                    }
                }
            }
        };
        signals::thread("names", follow)?;
        Ok(Self { news, _asks: asks })
    }

    /// What has been found out since it was asked for.
    pub fn news(&self) -> impl Iterator<Item = (String, Vec<IpNet>)> + '_ {
        self.news.try_iter()
    }
}
