//! An interface's features, by name: what `ethtool -k` shows and `ethtool -K` sets.
//!
//! An interface is meant by its number, which is no other's as long as it is there, whatever it is called by now. What a driver
//! makes of what it is asked for is read back: it may leave a feature as it is, and the kernel says that all is well.

use std::{collections::BTreeSet, io};

use serde::{Deserialize, Serialize};

use super::{
    Error, Result,
    netlink::{Attributes, Generic, attribute, nested, text},
};

/// `Documentation/networking/ethtool-netlink.rst`, <https://elixir.bootlin.com/linux/v6.12/source/include/uapi/linux/ethtool_netlink.h>.
const FAMILY: &str = "ethtool";
const FEATURES_GET: u8 = 11;
const FEATURES_SET: u8 = 12;
const SET: &str = "netlink(ETHTOOL_MSG_FEATURES_SET)";
/// `ETHTOOL_A_FEATURES_*`: whose, which may be changed, which are asked for, which are in use, which may never be changed.
const HEADER: u16 = 1;
const CHANGEABLE: u16 = 2;
const WANTED: u16 = 3;
const ACTIVE: u16 = 4;
const FIXED: u16 = 5;
/// `ETHTOOL_A_HEADER_DEV_INDEX`.
const IFINDEX: u16 = 1;
/// `ETHTOOL_A_BITSET_BITS` with `ETHTOOL_A_BITSET_BITS_BIT`, with `ETHTOOL_A_BITSET_BIT_NAME` and `ETHTOOL_A_BITSET_BIT_VALUE`.
const BITS: u16 = 3;
const BIT: u16 = 1;
const NAME: u16 = 2;
const VALUE: u16 = 3;

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

/// A feature that can be changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    /// As the kernel calls it.
    pub name: String,
    /// Whether it is asked for.
    pub asked: bool,
    /// Whether it is in use: it may depend on others, or on what the driver pleases.
    pub active: bool,
}

/// An interface of the calling thread's network namespace.
#[derive(Debug)]
pub struct Ethtool {
    family: Generic,
    ifindex: u32,
    object: String,
}

/// What the kernel says of the features of an interface.
#[derive(Debug, Default)]
struct State {
    changeable: BTreeSet<String>,
    wanted: BTreeSet<String>,
    active: BTreeSet<String>,
}

impl Ethtool {
    /// Opens it by its number.
    ///
    /// # Errors
    ///
    /// The kernel's, `ENOENT` if it has no ethtool by netlink (`CONFIG_ETHTOOL_NETLINK`).
    pub fn open(ifindex: u32) -> Result<Self> {
        Ok(Self { family: Generic::open(FAMILY)?, ifindex, object: format!("interface {ifindex}") })
    }

    /// Those of the named features that it has and that can be changed.
    ///
    /// # Errors
    ///
    /// The kernel's, `ENODEV` if there is no such interface.
    pub fn features(&mut self, named: &[&str]) -> Result<Vec<Feature>> {
        let State { changeable, wanted, active } = self.state()?;
        let found = named.iter().filter(|name| changeable.contains(**name));
        let feature = |name: &&str| Feature {
            name: (*name).to_owned(),
            asked: wanted.contains(*name),
            active: active.contains(*name),
        };
        Ok(found.map(feature).collect())
    }

    /// Those of the named features that are in use, asked for or not.
    ///
    /// # Errors
    ///
    /// The kernel's, `ENODEV` if there is no such interface.
    pub fn active(&mut self, named: &[&str]) -> Result<Vec<String>> {
        let State { active, .. } = self.state()?;
        Ok(named.iter().filter(|name| active.contains(**name)).map(|name| (*name).to_owned()).collect())
    }

    /// Asks for features, or for them no longer. Whether the driver does as it is asked is read by [`active`](Self::active).
    ///
    /// # Errors
    ///
    /// The kernel's: `ENODEV` if there is no such interface, or if its device cannot be reached just now.
    pub fn set<'a>(&mut self, features: impl IntoIterator<Item = &'a str>, on: bool) -> Result<()> {
        let mut bits = Attributes::default();
        for name in features {
            let bit = Attributes::default().with(NAME, &[name.as_bytes(), &[0]].concat());
            let bit = if on { bit.with(VALUE, &[]) } else { bit };
            bits = bits.with_nest(BIT, &bit);
        }
        let asked = Attributes::default().with_nest(BITS, &bits);
        let attributes = self.header().with_nest(WANTED, &asked);
        self.family.command(FEATURES_SET, &attributes, SET, &self.object).map(drop)
    }

    /// Has features be asked for that were in use before, and looks whether they are again.
    ///
    /// # Errors
    ///
    /// As [`set`](Self::set), or that one is not in use.
    pub fn restore(&mut self, before: &[Feature]) -> Result<()> {
        let names =
            |features: &[Feature]| -> Vec<String> { features.iter().map(|it| it.name.clone()).collect() };
        let all = names(before);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let mut refused = self.features(&all)?;
        refused.retain(|now| now.asked && !now.active);
        if !refused.is_empty() {
            // The driver is not asked again for what it has been asked for.
            self.set(names(&refused).iter().map(String::as_str), false)?;
        }
        self.set(all.iter().copied(), true)?;
        let active = self.active(&all)?;
        match before.iter().find(|it| it.active && !active.contains(&it.name)) {
            None => Ok(()),
            Some(Feature { name, .. }) => {
                let stays = "the driver does not switch it on again, or what it depends on is off";
                let object = format!("{name} of {}", self.object);
                Err(Error::new(SET, object, io::Error::other(stays)))
            }
        }
    }

    fn header(&self) -> Attributes {
        let header = Attributes::default().with(IFINDEX, &self.ifindex.to_ne_bytes());
        Attributes::default().with_nest(HEADER, &header)
    }

    fn state(&mut self) -> Result<State> {
        let header = self.header();
        let call = "netlink(ETHTOOL_MSG_FEATURES_GET)";
        let answers = self.family.command(FEATURES_GET, &header, call, &self.object)?;
        let answer = answers.first();
        let answer =
            answer.ok_or_else(|| Error::new(call, &*self.object, io::ErrorKind::InvalidData.into()))?;
        let bits = |kind| attribute(answer, kind).map(names).unwrap_or_default();
        let (mut changeable, fixed) = (bits(CHANGEABLE), bits(FIXED));
        changeable.retain(|name| !fixed.contains(name));
        Ok(State { changeable, wanted: bits(WANTED), active: bits(ACTIVE) })
    }
}

/// The names in a bit set that is a list: with a mask, those with a value; without one, all.
fn names(set: &[u8]) -> BTreeSet<String> {
    /// `ETHTOOL_A_BITSET_NOMASK`.
    const NO_MASK: u16 = 1;
    let is_list = attribute(set, NO_MASK).is_some();
    let bits = attribute(set, BITS).unwrap_or_default();
    let is_set = |bit: &&[u8]| is_list || attribute(bit, VALUE).is_some();
    nested(bits, BIT).filter(is_set).filter_map(|bit| attribute(bit, NAME).map(text)).collect()
}
