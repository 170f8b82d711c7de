//! How far a packet's TCP connection is, for the rules of connections that stand.

use aya_ebpf::programs::TcContext;
use chaos_ebpf::{abi::effect, tcp};

use crate::{bytes::load, hook::setup, maps::FL_HANDSHAKES};

/// What is not done to a TCP packet, a set of [`effect`] bits: a handshake is let through, and so is a reset.
///
/// Not inlined, for the verifier's sake: what it does not know of the result would multiply its ways.
#[inline(never)]
pub(crate) fn exempt(context: &TcContext, transport: u32, flow: u32) -> u32 {
    let mut control = 0_u8;
    if load(context, transport + tcp::CONTROL, &mut control).is_none() {
        return effect::OF_CONNECTIONS;
    }
    let mut exempt = 0;
    if control & (tcp::control::SYN | tcp::control::RST) != 0 {
        exempt |= effect::RESET;
    }
    if setup().effects & effect::TIMEOUT == 0 {
        return exempt;
    }
    if control & tcp::control::SYN != 0 {
        // If there is no room for it the connection never stands, which is a timeout as well.
        let _ = FL_HANDSHAKES.insert(flow, 1, 0);
        exempt |= effect::TIMEOUT;
    } else if FL_HANDSHAKES.remove(flow).is_ok() {
        // The acknowledgement that ends the handshake.
        exempt |= effect::TIMEOUT;
    }
    exempt
}
