#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs::File, net::IpAddr, os::fd::AsFd, thread};

use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};

use super::*;

/// Runs a test in a network namespace of its own, which goes with its thread.
fn in_netns(test: fn(Netlink)) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root for a network namespace of its own");
        return;
    }
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        test(Netlink::open().unwrap());
    };
    thread::spawn(run).join().unwrap();
}

#[test]
fn veth_lives_and_dies() {
    in_netns(|mut netlink| {
        assert_eq!(netlink.link_by_name("left").unwrap(), None);
        netlink.add_veth(&Veth { gso_max_segs: Some(1), ..Veth::new("left", "right") }).unwrap();
        let left = netlink.link_by_name("left").unwrap().unwrap();
        let right = netlink.link_by_name("right").unwrap().unwrap();
        assert_eq!(left.kind.as_deref(), Some("veth"));
        assert_eq!((left.gso_max_segs, right.gso_max_segs), (Some(1), Some(1)));
        assert_eq!(left.lower, Some(right.index));
        assert_eq!((left.layer, left.mtu, left.address.len()), (1, 1500, 6));
        assert!(left.is_ethernet() && !left.is_up());

        netlink.set_up(left.index, true).unwrap();
        assert!(netlink.link_by_index(left.index).unwrap().unwrap().is_up());
        netlink.set_up(left.index, false).unwrap();
        assert!(!netlink.link_by_index(left.index).unwrap().unwrap().is_up());

        let names: Vec<String> = netlink.links().unwrap().into_iter().map(|link| link.name).collect();
        assert_eq!(names, ["lo", "right", "left"]);

        let taken = netlink.add_veth(&Veth::new("left", "other")).unwrap_err();
        assert_eq!(taken.errno(), libc::EEXIST);

        netlink.delete_link(left.index).unwrap();
        assert_eq!(netlink.link_by_name("right").unwrap(), None);
        assert_eq!(netlink.delete_link(left.index).unwrap_err().errno(), libc::ENODEV);
    });
}

#[test]
fn veth_spans_network_namespaces() {
    in_netns(|mut here| {
        let there = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        let mut other = Netlink::open_in(there.as_fd()).unwrap();
        here.add_veth(&Veth { peer_netns: Some(there.as_fd()), ..Veth::new("near", "far") }).unwrap();
        assert_eq!(here.link_by_name("far").unwrap(), None);
        assert!(other.link_by_name("far").unwrap().is_some());

        let near = here.link_by_name("near").unwrap().unwrap();
        here.set_netns(near.index, there.as_fd()).unwrap();
        assert_eq!(here.link_by_name("near").unwrap(), None);
        assert!(other.link_by_name("near").unwrap().is_some());
    });
}

#[test]
fn addresses_are_usable_at_once() {
    in_netns(|mut netlink| {
        netlink.add_veth(&Veth::new("left", "right")).unwrap();
        for name in ["left", "right"] {
            let index = netlink.link_by_name(name).unwrap().unwrap().index;
            netlink.set_up(index, true).unwrap();
        }
        let index = netlink.link_by_name("left").unwrap().unwrap().index;
        for address in ["10.9.8.7/24", "fd00:9::7/64"] {
            let address: IpNet = address.parse().unwrap();
            netlink.add_address(index, address).unwrap();
            let host: IpAddr = address.addr();
            std::net::UdpSocket::bind((host, 0)).unwrap();
            assert_eq!(netlink.add_address(index, address).unwrap_err().errno(), libc::EEXIST);
        }
    });
}

#[test]
fn names_that_cannot_be() {
    in_netns(|mut netlink| {
        for name in ["", "no such", "sixteen-bytes-xx", &"x".repeat(127), &"x".repeat(128), &"x".repeat(4000)]
        {
            assert_eq!(netlink.link_by_name(name).unwrap(), None, "{name}");
        }
    });
}

#[test]
fn qdiscs_come_and_go() {
    in_netns(|mut netlink| {
        netlink.add_veth(&Veth::new("left", "right")).unwrap();
        let index = netlink.link_by_name("left").unwrap().unwrap().index;
        assert!(netlink.add_clsact(index).unwrap());
        assert!(!netlink.add_clsact(index).unwrap());
        let kinds: Vec<String> = netlink.qdiscs(index).unwrap().into_iter().map(|qdisc| qdisc.kind).collect();
        assert_eq!(kinds, ["clsact"]);
        assert_eq!(netlink.filters(index, Direction::Egress).unwrap(), []);
        netlink.delete_clsact(index).unwrap();
        assert_eq!(netlink.qdiscs(index).unwrap(), []);

        let unknown = netlink.add_qdisc(index, ROOT, 0, "nosuchqdisc", &[]).unwrap_err();
        assert_eq!(unknown.errno(), libc::ENOENT);
        assert!(unknown.to_string().contains("unknown"), "the kernel's own sentence is missing: {unknown}");
    });
}

#[test]
fn attributes_that_lie_about_their_length() {
    assert_eq!(attribute(&[8, 0, 3, 0, b'a', b'b', b'c', 0], 3).map(text).as_deref(), Some("abc"));
    for short in [&[][..], &[8], &[8, 0, 3, 0, 1], &[3, 0, 3, 0], &[0, 0, 0, 0, 0, 0, 0, 0]] {
        assert_eq!(attribute(short, 3), None);
    }
}
