//! netem in our place, set up as users do.

use std::process::Command;

use chaos_ebpf::abi::Direction;

use crate::{
    ensure,
    error::{Context, Result},
    lab::{NEAR_DEVICE, Netns},
};

/// netem sees only what is sent, so what is received is sent through an interface of its own first.
const IFB: &str = "ifb0";

/// netem on the faulted interface, until dropped.
#[derive(Debug)]
pub(super) struct Netem<'a> {
    netns: &'a Netns,
    direction: Direction,
}

impl<'a> Netem<'a> {
    /// With these words after `netem`.
    pub(super) fn add(netns: &'a Netns, direction: Direction, words: &str) -> Result<Self> {
        // From here on what there is of it is removed if anything fails.
        let netem = Self { netns, direction };
        let device = match direction {
            Direction::Out | Direction::Connect | Direction::Call => NEAR_DEVICE,
            Direction::In => {
                run(netns, &format!("ip link add {IFB} type ifb"))?;
                run(netns, &format!("ip link set {IFB} up"))?;
                run(netns, &format!("tc qdisc add dev {NEAR_DEVICE} ingress"))?;
                let redirect = format!("action mirred egress redirect dev {IFB}");
                run(netns, &format!("tc filter add dev {NEAR_DEVICE} parent ffff: matchall {redirect}"))?;
                IFB
            }
        };
        run(netns, &format!("tc qdisc add dev {device} root netem {words}"))?;
        Ok(netem)
    }
}

impl Drop for Netem<'_> {
    fn drop(&mut self) {
        // What was not made is not there to be removed.
        let _ = match self.direction {
            Direction::Out | Direction::Connect | Direction::Call => {
                run(self.netns, &format!("tc qdisc del dev {NEAR_DEVICE} root"))
            }
            Direction::In => {
                let _ = run(self.netns, &format!("tc qdisc del dev {NEAR_DEVICE} ingress"));
                self.netns.delete_interface(IFB)
            }
        };
    }
}

/// Runs a command in the network namespace: a child has that of the thread that starts it.
fn run(netns: &Netns, line: &str) -> Result {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().context("no command")?);
    command.args(words);
    let output = netns.run(|| command.output().context(line))?;
    ensure!(output.status.success(), "`{line}`: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
