//! What it is aimed at goes away.

use std::{thread, time::Instant};

use super::{
    killed::fraction,
    scene::{PATIENCE, Scene, at_once, records},
};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::{Exit, Faultline},
    harness::{Need, Test, rounds},
    inventory::Inventory,
    lab::{FAR_DEVICE, Family, Lab, NEAR_DEVICE, Options},
    traffic::Udp,
};

const NEEDS: &[Need] = &[Need::Root, Need::Btf];

pub(super) const TESTS: &[Test] = &[
    Test::new("life::its_interface_goes", interface).needs(NEEDS),
    Test::new("life::its_interface_goes_while_it_starts", interface_during_start).needs(NEEDS).waits(),
    // Below 6.6 the owner has to stay in the namespace, which keeps it.
    Test::new("life::its_network_namespace_goes", namespace).needs(&[Need::Root, Need::Btf, Need::Tcx]),
];

fn interface() -> Result {
    let nothing = Inventory::take(&[])?;
    for way in ["in", "out", "both"] {
        let scene = Scene::set()?;
        let (fault, _) = scene.armed(&["100%", "--proto", "udp", "--direction", way])?;
        let mut aside = Udp::open(scene.lab.aside(Family::V4)?, 4002, 5002)?;
        scene.lab.near.delete_interface(NEAR_DEVICE)?;
        let gone = Instant::now();
        let exit = fault.wait(PATIENCE)?;
        let took = gone.elapsed();
        ensure!(took < at_once(), "{way}: it ended {took:?} after its interface");
        aborted(&exit, way)?;
        nothing.wait_until_equal(&[], at_once()).context(way)?;
        let record = aside.burst(100, PATIENCE)?;
        ensure!(record.received[0].lost() == 0, "the bystander lost {}", record.received[0].lost());
    }
    Ok(())
}

fn aborted(exit: &Exit, when: &str) -> Result {
    ensure!(exit.code == Some(4) && exit.stderr.is_empty(), "{when}: {exit:?}");
    let summary = exit.event("summary")?;
    let told = (summary.get("/verdict")?, summary.get("/reason")?);
    ensure!(told.0 == "aborted" && told.1 == "the interface is gone", "{when}: {summary:?}");
    ensure!(records()?.is_empty(), "{when}: left {:?}", records());
    Ok(())
}

/// Either it is said that there is none, or the fault begins and ends.
fn interface_during_start() -> Result {
    let nothing = Inventory::take(&[])?;
    let (mut random, mut length) = (6, None);
    for _ in 0..rounds(9) {
        let lab = Lab::with(Options::default())?;
        let start = Instant::now();
        let arguments = ["net", "loss", "100%", "--dev", NEAR_DEVICE, "--direction", "both"];
        let fault = Faultline::start_in(&lab.near, &arguments)?;
        // The first says how long it takes to be armed.
        let moment = match length {
            None => fault.wait_event("armed", PATIENCE).map(|_| start.elapsed())?,
            Some(length) => length,
        };
        if length.is_some() {
            thread::sleep(moment.mul_f64(fraction(&mut random)));
        }
        length = Some(moment);
        lab.near.delete_interface(NEAR_DEVICE)?;
        let after = start.elapsed();
        let exit = fault.wait(PATIENCE)?;
        let when = format!("its interface went {after:?} after its start");
        if exit.code == Some(3) {
            let named =
                exit.stderr.starts_with(&format!("faultline: --dev: there is no interface {NEAR_DEVICE}"));
            ensure!(named && exit.stderr.lines().count() == 1, "{when}: {}", exit.stderr);
            ensure!(records()?.is_empty(), "{when}: left {:?}", records());
        } else {
            aborted(&exit, &when)?;
        }
        println!("{when}: exit {:?}", exit.code);
        nothing.wait_until_equal(&[], at_once()).context(when)?;
    }
    Ok(())
}

/// The owner is not what keeps it.
fn namespace() -> Result {
    let nothing = Inventory::take(&[])?;
    let Lab { near: _near, far, side: _ } = Lab::new()?;
    let fault =
        Faultline::start_in(&far, &["net", "loss", "100%", "--dev", FAR_DEVICE, "--direction", "both"])?;
    fault.wait_event("armed", PATIENCE)?;
    drop(far);
    let gone = Instant::now();
    let exit = fault.wait(PATIENCE)?;
    println!("it ended {:?} after the namespace", gone.elapsed());
    aborted(&exit, "namespace")?;
    nothing.wait_until_equal(&[], at_once())
}
