//! An interface's features, by name: what `ethtool -k` shows and `ethtool -K` sets.

use std::io;

use nix::{
    libc::{self, c_char},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use std::os::fd::{AsRawFd, OwnedFd};

use super::{Error, Result, netlink::Netlink};

/// <https://elixir.bootlin.com/linux/v6.12/source/include/uapi/linux/ethtool.h>
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETH_SS_FEATURES: u32 = 4;
const NAME: usize = 32;
/// More than any kernel has.
const MOST: usize = 1024;

/// What makes one packet of several, and several of one.
pub const SEGMENTATION: &[&str] = &[
    "tx-generic-segmentation",
    "tx-tcp-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-tcp6-segmentation",
    "tx-udp-segmentation",
    "tx-gso-list",
    "rx-gro",
    "rx-gro-list",
    "rx-gro-hw",
    "rx-lro",
];

/// What leaves checksums to the device.
pub const CHECKSUMS: &[&str] =
    &["tx-checksum-ipv4", "tx-checksum-ip-generic", "tx-checksum-ipv6", "tx-checksum-sctp"];

/// A feature and whether it is asked for.
pub type Feature = (String, bool);

/// An interface of the calling thread's network namespace.
#[derive(Debug)]
pub struct Ethtool {
    socket: OwnedFd,
    name: [c_char; libc::IFNAMSIZ],
    object: String,
}

impl Ethtool {
    /// Opens it by its number.
    ///
    /// # Errors
    ///
    /// The kernel's, `ENODEV` if there is none.
    pub fn open(ifindex: u32) -> Result<Self> {
        let object = format!("interface {ifindex}");
        let link = Netlink::open()?.link_by_index(ifindex)?;
        let link = link.ok_or_else(|| {
            Error::new("netlink(RTM_GETLINK)", &object, io::Error::from_raw_os_error(libc::ENODEV))
        })?;
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|errno| Error::new("socket", &object, errno.into()))?;
        let mut name = [0; libc::IFNAMSIZ];
        for (to, from) in name.iter_mut().zip(link.name.bytes().take(libc::IFNAMSIZ - 1)) {
            *to = from.cast_signed();
        }
        Ok(Self { socket, name, object: link.name })
    }

    /// Those of the named features that it has, and whether they are asked for.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn features(&self, wanted: &[&str]) -> Result<Vec<Feature>> {
        let names = self.names()?;
        let mut words = self.words(ETHTOOL_GFEATURES, names.len(), 4);
        self.call("ETHTOOL_GFEATURES", &mut words)?;
        let has = |number: usize, word: usize| words[2 + number / 32 * 4 + word] & 1 << (number % 32) != 0;
        let found = names.iter().enumerate().filter(|(_, name)| wanted.contains(&name.as_str()));
        // Available ones can be changed; the second word is what is asked for.
        Ok(found
            .filter(|(number, _)| has(*number, 0))
            .map(|(number, name)| (name.clone(), has(number, 1)))
            .collect())
    }

    /// Asks for features, or for them no longer.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn set(&self, features: &[Feature]) -> Result<()> {
        let names = self.names()?;
        let mut words = self.words(ETHTOOL_SFEATURES, names.len(), 2);
        for (name, on) in features {
            let Some(number) = names.iter().position(|known| known == name) else { continue };
            let at = 2 + number / 32 * 2;
            words[at] |= 1 << (number % 32);
            words[at + 1] |= u32::from(*on) << (number % 32);
        }
        self.call("ETHTOOL_SFEATURES", &mut words)
    }

    /// A command about all features: its number, how many blocks, and so many words for each.
    fn words(&self, command: u32, features: usize, block: usize) -> Vec<u32> {
        let blocks = features.div_ceil(32);
        let mut words = vec![0; 2 + blocks * block];
        words[0] = command;
        words[1] = blocks as u32;
        words
    }

    fn names(&self) -> Result<Vec<String>> {
        // Command, reserved, a set of string sets in 64 bits, the length of the one.
        let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
        self.call("ETHTOOL_GSSET_INFO", &mut info)?;
        let count = (info[4] as usize).min(MOST);
        let mut strings = vec![0u32; 3 + count * NAME / 4];
        strings[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32]);
        self.call("ETHTOOL_GSTRINGS", &mut strings)?;
        let bytes: Vec<u8> = strings[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let text = |name: &[u8]| {
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            String::from_utf8_lossy(&name[..end]).into_owned()
        };
        Ok(bytes.chunks(NAME).map(text).collect())
    }

    fn call(&self, call: &'static str, words: &mut [u32]) -> Result<()> {
        // SAFETY: plain data, for which all zero is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name = self.name;
        request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
        // SAFETY: the request and what it points to live until the call is over, and the words are as many as the
        // command says.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        if result < 0 {
            return Err(Error::new(call, &self.object, io::Error::last_os_error()));
        }
        Ok(())
    }
}
