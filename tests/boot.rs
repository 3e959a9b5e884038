//! Real boots: systemd starts the shipped units on a machine of its own, with a network that is configured as on any host, and a
//! program that sends to a stranger from the first moment on. The other end of the cable counts what leaves.

mod support;

use std::time::{Duration, Instant};

use support::machine::{self, Machine, Running};
use support::{API_V4, HOST_V4, STRANGER_V4, Side, World, within_seconds};

/// Packets that reached the other end of the cable, by what they were. It counts from before the machine runs.
struct Wire<'w>(&'w World);

impl Wire<'_> {
    fn tapped(world: &World) -> Wire<'_> {
        let wire = Wire(world);
        wire.nft(&format!(
            "add table ip wire {{ counter stranger {{ }} ; counter api {{ }} ; counter dns {{ }} ; counter other {{ }} ;
             chain arriving {{ type filter hook prerouting priority -300 ;
             ip saddr {HOST_V4} ip daddr {STRANGER_V4} counter name stranger accept ;
             ip saddr {HOST_V4} ip daddr {API_V4} counter name api accept ;
             ip saddr {HOST_V4} udp dport 53 counter name dns accept ;
             ip saddr {HOST_V4} counter name other ; }} ; }}"
        ));
        wire
    }

    fn nft(&self, script: &str) -> String {
        self.0.within(Side::Net, || {
            let output = std::process::Command::new("nft").args(script.split_whitespace()).output().expect("nft runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    fn count(&self, counter: &str) -> u64 {
        let text = self.nft(&format!("list counter ip wire {counter}"));
        let after = text.split("packets ").nth(1).expect("a counter counts packets");
        after.split(' ').next().and_then(|number| number.parse().ok()).expect("a number")
    }

    fn reset(&self) {
        self.nft("reset counters table ip wire");
    }
}

/// The network is configured, and whoever is eager has had a second of it.
fn is_up(running: &Running<'_>) {
    running.reaches("multi-user.target");
    within_seconds(60, "the network is configured", || running.run("ip", &["-br", "address", "show", "uplink"]).stdout.contains(HOST_V4));
    std::thread::sleep(Duration::from_secs(1));
}

fn connects(running: &Running<'_>, address: &str, port: u16) -> bool {
    running.run("timeout", &["2", "bash", "-c", &format!("exec 3<>/dev/tcp/{address}/{port}")]).code == 0
}

#[test]
fn from_the_first_boot_to_the_last_no_packet_leaves_that_the_policy_does_not_allow() {
    if let Some(why) = machine::impossible() {
        assert!(std::env::var("EGRESSGUARD_REQUIRE_KERNEL").as_deref() != Ok("1") || !why.contains("package"), "{why}");
        return println!("skipped: {why}");
    }
    let Some(mut world) = World::new() else { return };
    world.nameserver.set("api.openai.com", &[API_V4]).unwrap();
    let world = &mut world;
    boots(world);
}

fn boots(world: &World) {
    let wire = Wire::tapped(world);
    let machine = Machine::new(world, STRANGER_V4);
    machine.script("install", &["--binary", env!("CARGO_BIN_EXE_egressguard")]).exits(0);

    // Installed is not enabled: what is eager gets out, so that its silence later says something.
    let running = machine.boot();
    within_seconds(60, "the eager service gets out", || wire.count("stranger") > 0);
    running.pull_the_plug();

    // Enabled, and nothing saved: lockdown, from before there is a network.
    machine.script("install", &["--binary", env!("CARGO_BIN_EXE_egressguard"), "--enable"]).exits(0);
    wire.reset();
    let running = machine.boot();
    is_up(&running);
    assert_eq!(["stranger", "api", "dns", "other"].map(|counter| wire.count(counter)), [0; 4], "{}", machine.console());
    running.run("egressguard", &["status"]).says(&["lockdown"]);
    assert!(!connects(&running, API_V4, 443));

    // A policy is applied; the timer refreshes and the service watches, in their sandboxes.
    running.run("egressguard", &["apply"]).exits(0);
    assert!(connects(&running, API_V4, 443));
    assert!(!connects(&running, STRANGER_V4, 4444));
    running.reaches("egressguard-watch.service");
    within_seconds(60, "the service books what was refused", || {
        let book = machine.read("var/lib/egressguard/watch/watch.jsonl");
        book.lines().any(|line| line.contains(STRANGER_V4) && line.contains("\"eager.service\"") && line.contains("\"user\":\"root\""))
    });
    within_seconds(60, "the timer refreshes", || machine.read("var/lib/egressguard/refresh.json").contains("took_ms"));
    running.run("systemctl", &["show", "-P", "Result", "egressguard-refresh.service"]).says(&["success"]);
    running.run("egressguard", &["verify"]).exits(0);

    // Another policy is on trial when the power goes: no boot knows of it.
    machine.write("etc/egressguard/tried.yaml", &format!("version: 1\noutbound:\n  - {{to: {STRANGER_V4}, port: 4444, protocol: tcp}}\n"));
    running.run("egressguard", &["apply", "/etc/egressguard/tried.yaml", "--confirm", "1h"]).exits(0);
    assert!(connects(&running, STRANGER_V4, 4444) && !connects(&running, API_V4, 443));

    // The power goes, and with it the name server: what was saved is in force before there is a network.
    running.pull_the_plug();
    wire.reset();
    let running = machine.boot();
    is_up(&running);
    assert_eq!(["stranger", "api", "other"].map(|counter| wire.count(counter)), [0; 3], "{}", machine.console());
    assert!(connects(&running, API_V4, 443), "the pin is in force without anybody having been asked");
    running.reaches("egressguard-watch.service");

    // A shutdown writes down what was counted since the last refresh.
    running.run("systemctl", &["stop", "egressguard-refresh.timer"]).exits(0);
    running.run("bash", &["-c", &format!("for n in 1 2 3 4 5; do echo x > /dev/udp/{STRANGER_V4}/7777; done")]);
    running.shut_down();
    let book = machine.read("var/lib/egressguard/ledger.jsonl");
    assert!(book.lines().any(|line| line.contains("\"port\":7777") && line.contains("\"packets\":5")), "{book}\n{}", machine.console());
    assert_eq!(wire.count("stranger"), 0);

    // What was installed goes, and the next boot is as the first.
    machine.script("uninstall", &["--purge"]).exits(0);
    let begun = Instant::now();
    let running = machine.boot();
    within_seconds(60, "the eager service gets out again", || wire.count("stranger") > 0);
    running.run("egressguard", &["status"]).exits(127);
    println!("the last boot let it out after {:?}", begun.elapsed());
}
