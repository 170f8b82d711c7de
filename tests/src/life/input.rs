//! What cannot be meant: one sentence says which option and what would be right, and nothing is begun.

use std::process;

use super::{
    environment::one_sentence,
    scene::{Scene, at_once, records},
};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::{Need, Test},
    inventory::Inventory,
};

pub(super) const TESTS: &[Test] = &[
    Test::new("input::is_refused_in_one_sentence", refused),
    Test::new("input::nothing_to_do_prints_the_help", help).needs(&[]),
    Test::new("input::rules_up_to_64", rules_up_to_64).needs(&[Need::Root, Need::Btf]).timeout(60),
    Test::new("input::more_rules_are_refused", more_rules),
];

/// What is typed after `faultline net`, the exit code, and what the sentence must say.
type Row = (&'static str, i32, &'static [&'static str]);

/// `_` stands for nothing at all.
const ROWS: &[Row] = &[
    ("loss 1% --dev nope", 3, &["--dev", "no interface nope", "there are lo"]),
    ("loss 1% --dev _", 2, &["--dev", "value"]),
    ("loss 1%", 2, &["--dev", "required"]),
    ("loss --dev lo", 2, &["<PERCENT>", "required"]),
    ("loss 130% --dev lo", 2, &["<PERCENT>", "130%", "between 0% and 100%"]),
    ("loss -5% --dev lo", 2, &["<PERCENT>", "-5%", "between 0% and 100%"]),
    ("loss abc --dev lo", 2, &["<PERCENT>", "abc", "30%"]),
    ("loss _ --dev lo", 2, &["<PERCENT>", "30%"]),
    ("loss nan --dev lo", 2, &["<PERCENT>", "30%"]),
    ("loss 1% --dev lo --port 70000", 2, &["--port", "70000", "0 and 65535"]),
    ("loss 1% --dev lo --sport 70000", 2, &["--sport", "70000", "0 and 65535"]),
    ("loss 1% --dev lo --port 9-8", 2, &["--port", "write 8-9"]),
    ("loss 1% --dev lo --port http", 2, &["--port", "http", "443"]),
    ("loss 1% --dev lo --port _", 2, &["--port", "443"]),
    ("loss 1% --dev lo --to 10.0.0.0/x", 2, &["--to", "10.0.0.0/8"]),
    ("loss 1% --dev lo --to 10.0.0", 2, &["--to", "10.0.0.0/8"]),
    ("loss 1% --dev lo --to 10.0.0.0/33", 2, &["--to", "at most 32 bits"]),
    ("loss 1% --dev lo --from fd00::/129", 2, &["--from", "at most 128 bits"]),
    ("loss 1% --dev lo --from example.org", 2, &["--from", "example.org", "10.0.0.7"]),
    ("loss 1% --dev lo --proto quic", 2, &["--proto", "quic", "tcp, udp, icmp"]),
    ("loss 1% --dev lo --proto 256", 2, &["--proto", "between 0 and 255"]),
    ("loss 1% --dev lo --direction up", 2, &["--direction", "up", "in, out, both"]),
    ("loss 1% --dev lo --for _", 2, &["--for", "30s"]),
    ("loss 1% --dev lo --for", 2, &["--for", "value is required"]),
    ("loss 1% --dev lo --for 0s", 2, &["--for", "longer than nothing"]),
    ("loss 1% --dev lo --for 5", 2, &["--for", "30s"]),
    ("loss 1% --dev lo --for -1s", 2, &["--for", "30s"]),
    ("loss 1% --dev lo --port -1", 2, &["--port", "0 and 65535"]),
    ("loss 1% --dev lo --skip -1", 2, &["--skip", "write 0, 1, 2"]),
    ("loss 1% --dev lo --for 99999999999999999999s", 2, &["--for", "30s"]),
    ("loss 1% --dev lo --every 0", 2, &["--every", "write 1, 2, 3"]),
    ("loss 1% --dev lo --first 0", 2, &["--first", "write 1, 2, 3"]),
    ("loss 1% --dev lo --skip x", 2, &["--skip", "write 0, 1, 2"]),
    ("loss 1% --dev lo --seed x", 2, &["--seed", "write 0, 1, 2"]),
    ("loss 1% --dev lo --netns nope", 3, &["--netns", "nope", "/run/netns/nope", "ip netns"]),
    ("loss 1% --dev lo --netns _", 2, &["--netns", "pid:N"]),
    ("loss 1% --dev lo --netns /nope/net", 3, &["--netns", "/nope/net", "the path of one"]),
    ("loss 1% --dev lo --netns /etc/passwd", 3, &["--netns", "/etc/passwd", "the path of one"]),
    ("loss 1% --dev lo --netns pid:999999999", 3, &["--netns", "pid:999999999", "pid:N"]),
    ("loss 1% --dev lo --netns pid:x", 2, &["--netns", "pid:x", "number"]),
    ("loss 1% --dve lo", 2, &["--dve", "--help"]),
    ("loss 1% 2% 3% --dev lo", 2, &["'3%'", "nothing after loss"]),
    ("loss gemodel --dev lo", 2, &["<P>", "required"]),
    ("loss gemodel 1% 200% --dev lo", 2, &["<R>", "200%"]),
    ("loss 1% loss 2% --dev lo", 2, &["loss is there twice", "--and"]),
    ("loss 1% 5% --per flow --dev lo", 2, &["--per flow", "plain loss"]),
    ("delay --dev lo", 2, &["<TIME>", "required"]),
    ("delay 5 --dev lo", 2, &["<TIME>", "100ms"]),
    ("delay -5ms --dev lo", 2, &["<TIME>", "between 0 and 1m"]),
    ("delay 61s --dev lo", 2, &["<TIME>", "between 0 and 1m"]),
    ("delay 50s 5s distribution normal --dev lo", 2, &["4 times its jitter", "1m"]),
    ("delay 10ms 5% --dev lo", 2, &["<JITTER>", "5%"]),
    ("delay 10ms distribution normal --dev lo", 2, &["distribution needs a jitter"]),
    ("delay 10ms 1ms distribution gauss --dev lo", 2, &["gauss", "paretonormal"]),
    ("delay 10ms 1ms distribution ./nope --dev lo", 2, &["./nope", "No such file"]),
    ("delay 10ms 1ms distribution /dev/null --dev lo", 2, &["/dev/null", "not a file"]),
    ("delay 10ms 1ms distribution /proc/self/status --dev lo", 2, &["is not a number between -32768"]),
    ("delay 10ms --reorder-by-jitter --dev lo", 2, &["--reorder-by-jitter", "jitter"]),
    ("reorder 5% --dev lo", 2, &["reorder needs delay"]),
    ("delay 1ms reorder 5% gap 0 --dev lo", 2, &["<GAP>", "write 1, 2, 3"]),
    ("duplicate 101% --dev lo", 2, &["<PERCENT>", "between 0% and 100%"]),
    ("corrupt 1% bits 33 --dev lo", 2, &["<BITS>", "between 1 and 32"]),
    ("corrupt 1% offset -1 --dev lo", 2, &["<OFFSET>", "between 0 and 65535"]),
    ("loss 1% --fix-checksum --dev lo", 2, &["--fix-checksum", "corrupt"]),
    ("rate 10 --dev lo", 2, &["<RATE>", "10mbit"]),
    ("rate 1bit --dev lo", 2, &["<RATE>", "between 100bit and 1tbit"]),
    ("rate 1mbit burst 2gb --dev lo", 2, &["<BYTES>", "1024mb"]),
    ("rate 1mbit limit 0 --dev lo", 2, &["<PACKETS>", "write 1, 2, 3"]),
    ("rate 10gbit delay 60s --dev lo", 2, &["1000000 can wait", "a delay of 1s 211ms fits"]),
    ("loss 0..5% --dev lo", 2, &["not a ramp", "0..100ms/30s"]),
    ("delay 1ms rate 1mbit --ramp 0..5ms/1s --dev lo", 2, &["--ramp", "name the fault"]),
    ("loss 1% --limit 0 --dev lo", 2, &["--limit", "write 1, 2, 3"]),
    ("delay 1ms --dev lo", 3, &["cannot be had on lo"]),
    ("loss 1% --dev lo --dev lo", 2, &["--dev", "multiple times"]),
    ("lose 1% --dev lo", 2, &["'lose'", "loss, delay"]),
    ("--dev lo", 2, &["a fault is required", "loss 1%"]),
    ("loss 1% --dev lo --and", 2, &["--and", "loss 1%"]),
    ("loss 1% --dev lo --and --and loss 1%", 2, &["--and", "loss 1%"]),
    ("loss 1% --dev lo --and loss", 2, &["<PERCENT>", "required"]),
    ("loss 1% --dev lo --and loss 200%", 2, &["<PERCENT>", "200%", "between 0% and 100%"]),
    ("loss 1% --dev lo --and lose 2%", 2, &["lose", "loss"]),
    ("loss 1% --dev lo --and loss 1% --dev lo", 2, &["--dev", "before the first --and"]),
    ("loss 1% --dev lo --and loss 1% --for 3s", 2, &["--for", "before the first --and"]),
    ("loss 1% --dev lo --and loss 1% --json", 2, &["--json", "before the first --and"]),
    ("loss 1% --dev lo --and loss 1% --prt 3", 2, &["--prt", "--port"]),
    ("loss 1% --and loss 1% --dev lo", 2, &["--dev"]),
];

/// The same of the other commands.
const OTHERS: &[Row] = &[
    ("ps --and loss 1%", 2, &["--and", "faultline net"]),
    ("ps --jsn", 2, &["--jsn", "--json"]),
    ("stop", 2, &["<ID>", "required"]),
    ("stop nobody", 2, &["nobody", "faultline ps"]),
    ("stop nobody --all", 2, &["--all", "ID"]),
    ("sweep everything", 2, &["everything"]),
    ("pss", 2, &["pss", "ps"]),
    ("ps nobody", 2, &["nobody"]),
    ("doctor now", 2, &["now"]),
    ("guard", 2, &["<ID>", "required"]),
    ("profile shwo lte", 2, &["shwo", "show"]),
    ("profile show", 2, &["<NAME>", "required"]),
    ("profile show 5g", 2, &["5g", "faultline profile list"]),
    ("profile apply", 2, &["<FILE>", "required"]),
    ("profile apply /no/such", 2, &["--profile", "/no/such"]),
    ("profile apply lte", 3, &["no run has a profile"]),
    ("profile apply lte --id nobody", 2, &["nobody", "faultline ps"]),
    ("io error EIO", 2, &["--pid", "--path", "--everything"]),
    ("io error EIO --everything --pid 1", 2, &["--everything", "--pid"]),
    ("io error EIO --pid 2147483647", 3, &["--pid 2147483647", "no such process"]),
    ("io error EIO --path /no/such", 3, &["/no/such", "No such file"]),
    ("io error EIO --path /tmp/[a", 2, &["--path", "]"]),
    ("io slow 1mb/s --dev-block 8:0", 2, &["--cgroup, --unit or --container"]),
    ("io slow 1mb/s --cgroup /", 2, &["--dev-block", "required"]),
    ("io slow 1mb/s --dev-block 8:0 --cgroup /no/such", 3, &["/no/such"]),
    ("io slow fast --dev-block 8:0 --cgroup /", 2, &["not a rate", "1mb/s"]),
    ("time skew --offset 1h", 2, &["--cgroup", "command after --"]),
    ("time skew --offset 1h --pid 0", 2, &["--pid"]),
    ("time skew --offset 1h --pid 2147483647", 3, &["--pid 2147483647", "no such process"]),
    ("time skew --rate 2 --freeze --pid 1", 2, &["--rate", "--freeze"]),
    ("time skew --pid 1", 2, &["--offset"]),
    ("net loss 1%", 2, &["--dev", "required"]),
    ("net refuse --dev lo", 2, &["refuse", "--cgroup"]),
    ("net loss 1% --dev lo --unit no-such-unit", 3, &["no-such-unit", "no such unit"]),
    ("net loss 1% --dev lo --peer @", 2, &["--peer", "@FILE"]),
    ("net loss 1% --dev lo --peer 10.0.0.7 --exclude 10.0.0.0/8", 2, &["10.0.0.7", "excluded"]),
    ("net loss 1% --dev lo --peer 10.0.0.7 --to 10.0.0.0/8", 2, &["--peer", "--to"]),
];

fn refused() -> Result {
    let before = Inventory::take(&[])?;
    for (line, code, says) in ROWS {
        check(&format!("net {line}"), *code, says)?;
    }
    for (line, code, says) in OTHERS {
        check(line, *code, says)?;
    }
    before.wait_until_equal(&[], at_once())
}

fn check(line: &str, code: i32, says: &[&str]) -> Result {
    let arguments: Vec<&str> = line.split(' ').map(|word| if word == "_" { "" } else { word }).collect();
    let exit = Faultline::run(&arguments)?;
    one_sentence(&exit, code, says).context(line)?;
    ensure!(records()?.is_empty(), "{line}: left {:?}", records());
    Ok(())
}

fn help() -> Result {
    let exit = Faultline::run(&[])?;
    ensure!(exit.code == Some(2) && exit.stderr.contains("Usage: faultline"), "{exit:?}");
    let exit = Faultline::run(&["net", "loss", "--help"])?;
    ensure!(exit.code == Some(0) && exit.stderr.is_empty(), "{exit:?}");
    ensure!(exit.stdout.contains("--direction <WAY>"), "{}", exit.stdout);
    Ok(())
}

/// `count` faults in one run.
fn faults(count: usize, options: &[&str]) -> Vec<String> {
    let mut words: Vec<String> = options.iter().map(ToString::to_string).collect();
    words.insert(0, "1%".into());
    for number in 1..count {
        let fault = format!("--and loss 1% --proto udp --port {}", 10_000 + number);
        words.extend(fault.split(' ').map(String::from));
        words.extend(
            options.iter().filter(|word| ["--direction", "both"].contains(word)).map(ToString::to_string),
        );
    }
    words
}

fn rules_up_to_64() -> Result {
    let mut scene = Scene::set()?;
    for (count, options) in [(63, &[][..]), (64, &[]), (32, &["--direction", "both"])] {
        let words = faults(count, &[&["--proto", "udp"], options].concat());
        let (fault, _) = scene.armed(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        let rules = if options.is_empty() { count } else { 2 * count };
        scene.lost()?;
        let exit = fault.interrupt()?;
        let prepared = exit.event("prepared")?.get("/rules")?;
        ensure!(prepared.as_array().is_some_and(|all| all.len() == rules), "{count} faults: {prepared}");
        let summary = exit.event("summary")?.rules()?;
        ensure!(summary.len() == rules && summary[0].matched.packets == 100, "{count} faults: {summary:?}");
        scene.over(&format!("{count} faults {options:?}"))?;
    }
    Ok(())
}

fn more_rules() -> Result {
    let before = Inventory::take(&[])?;
    let pid = format!("pid:{}", process::id());
    for (count, options, rules) in [(65, &[][..], "65 rules"), (33, &["--direction", "both"], "66 rules")] {
        let words = faults(count, &[&["--dev", "lo", "--netns", &pid], options].concat());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let exit = Faultline::run(&[&["net", "loss"], &words[..]].concat())?;
        one_sentence(&exit, 2, &["--and", rules, "at most 64"])?;
        ensure!(records()?.is_empty(), "left {:?}", records());
    }
    before.wait_until_equal(&[], at_once())
}
