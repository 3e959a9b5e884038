//! Stories of `apply --confirm`: a policy on trial that the kernel ends by itself when nobody confirms it.

mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::stream::Stream;
use support::{API, API_V4, GATEWAY_V4, HOST_V4, LATER_V4, STRANGER_V4, Side, World, is_refused, passes, within_seconds};

/// What is applied, and what is tried: the API alone, and a stranger alone.
fn policies(world: &World) -> [String; 2] {
    let management = format!("management: {{port: 2222, from: [{GATEWAY_V4}]}}\n");
    let text = format!("version: 1\nname: applied\n{management}outbound:\n  - to: {API}\n  - {{to: {API_V4}, port: 6000}}\n");
    let applied = world.policy(&text);
    let tried = applied.replace("policy.yaml", "tried.yaml");
    let text = format!("version: 1\nname: tried\n{management}outbound:\n  - {{to: {STRANGER_V4}, port: 4444, protocol: tcp}}\n");
    std::fs::write(&tried, text).unwrap();
    [applied, tried]
}

fn applied_counts(world: &World) {
    passes(world.tcp(API_V4, 443));
    is_refused(world.tcp(STRANGER_V4, 4444));
}

fn tried_counts(world: &World) {
    is_refused(world.tcp(API_V4, 443));
    passes(world.tcp(STRANGER_V4, 4444));
}

fn json(output: &support::Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", output.stdout))
}

#[test]
fn the_kernel_falls_back_by_itself_when_nobody_confirms() {
    let Some(world) = World::new() else { return };
    let [applied, tried] = policies(&world);
    world.egressguard(&["apply", &applied]).exits(0);
    is_refused(world.udp(STRANGER_V4, 77));
    let begun = Instant::now();
    world.egressguard(&["apply", &tried, "--confirm", "6s"]).exits(0).says(&[
        "on trial for 6s",
        "generation 2",
        "falls back to generation 1",
        "egressguard confirm",
    ]);
    tried_counts(&world);
    let told = json(&world.egressguard(&["status", "--json"]).exits(0));
    assert_eq!(
        (&told["policy"]["name"], &told["trial"]["generation"], &told["drift"]),
        (&"applied".into(), &2.into(), &Value::Array(vec![]))
    );
    assert!((1..=6).contains(&told["trial"]["seconds_left"].as_u64().unwrap()), "{told}");
    world.egressguard(&["verify"]).exits(0);
    world.egressguard(&["explain", "--live", &format!("tcp to {STRANGER_V4}:4444")]).exits(0);
    // The timer comes meanwhile, and finds nothing to put right.
    world.egressguard(&["refresh", "--repair"]).exits(0).says(&["is on trial for another"]);
    tried_counts(&world);

    // No process of ours runs. The kernel does it.
    within_seconds(8, "the kernel falls back", || world.tcp(API_V4, 443).answered());
    assert!(begun.elapsed() >= Duration::from_secs(5), "it is no sooner than said: {:?}", begun.elapsed());
    applied_counts(&world);
    world.egressguard(&["verify"]).exits(0).says(&["same"]);
    world.egressguard(&["confirm"]).exits(1).says(&["has ended", "what was there before counts"]);
    applied_counts(&world);
    world.egressguard(&["refresh", "--repair"]).exits(0).says(&["nobody confirmed policy `tried`"]);
    applied_counts(&world);
    assert!(!world.rules().unwrap().contains("trial"), "it is cleared away");
    assert!(world.set("ledger_user_v4").contains(". 77 "), "nothing that was counted is forgotten: {}", world.set("ledger_user_v4"));
    world.egressguard(&["status"]).exits(0).says(&["policy      applied (generation 1"]);
    world.egressguard(&["confirm"]).exits(1).says(&["nothing is on trial"]);
    world.egressguard(&["rollback"]).exits(1).says(&["nothing is on trial"]);
}

#[test]
fn only_a_connection_that_the_new_rules_let_in_confirms_them() {
    let Some(world) = World::new() else { return };
    let [applied, tried] = policies(&world);
    world.egressguard(&["apply", &applied]).exits(0);
    let old = Stream::open(&world, Side::Net, Side::Host, HOST_V4, 2222);
    let api = Stream::open(&world, Side::Host, Side::Net, API_V4, 6000);
    world.egressguard(&["apply", &tried, "--confirm", "10m", "--json"]).exits(0);
    api.goes_on();
    let flow = |stream: &Stream| {
        let peer: SocketAddr = stream.opener();
        format!("{} {} {HOST_V4} 2222", peer.ip(), peer.port())
    };
    world.egressguard_by_ssh(&flow(&old), &["confirm"]).exits(1).says(&["is older than the rules on trial", "--force"]);
    // A shell that has outlived the connection that it was opened by.
    let gone = format!("{GATEWAY_V4} 50123 {HOST_V4} 2222");
    world.egressguard_by_ssh(&gone, &["confirm"]).exits(1).says(&["has ended", "--force"]);
    let new = Stream::open(&world, Side::Net, Side::Host, HOST_V4, 2222);
    world
        .egressguard_by_ssh(&flow(&new), &["confirm"])
        .exits(0)
        .says(&["confirmed: policy `tried` (generation 2) is applied", "revoked 1 flow"]);
    tried_counts(&world);
    let error = api.error();
    assert_ne!(error, std::io::ErrorKind::WouldBlock, "what is no longer allowed ends with the confirmation");
    world.egressguard(&["verify"]).exits(0);
    assert!(!world.rules().unwrap().contains("trial"));
    // And it is what a boot loads.
    world.nft(&["delete", "table", "inet", "egressguard"]).exits(0);
    world.egressguard(&["restore"]).exits(0).says(&["policy `tried` (generation 2)"]);
    tried_counts(&world);
    world.egressguard(&["refresh"]).exits(0);
}

#[test]
fn a_trial_is_taken_back_at_once_and_ended_by_whatever_loads_rules_of_its_own() {
    let Some(world) = World::new() else { return };
    let [applied, tried] = policies(&world);
    world.egressguard(&["apply", &applied]).exits(0);
    let begin = || {
        world.egressguard(&["apply", &tried, "--confirm", "10m"]).exits(0);
        tried_counts(&world);
    };
    let is_over = || {
        world.egressguard(&["confirm"]).exits(1).says(&["nothing is on trial"]);
        world.egressguard(&["verify"]).exits(0);
    };
    begin();
    world.egressguard(&["rollback"]).exits(0).says(&["rolled back: policy `applied` (generation 1) counts"]);
    applied_counts(&world);
    is_over();

    // A second trial replaces the first, and falls back to what is applied.
    begin();
    begin();
    world.egressguard(&["rollback"]).exits(0);
    applied_counts(&world);

    begin();
    world.egressguard(&["apply", &applied]).exits(0);
    applied_counts(&world);
    is_over();

    begin();
    world.egressguard(&["quarantine"]).exits(0);
    is_refused(world.tcp(STRANGER_V4, 4444));
    is_refused(world.tcp(API_V4, 443));
    world.egressguard(&["apply", &tried, "--confirm", "1m"]).exits(3).says(&["cut off"]);
    world.egressguard(&["quarantine", "--release"]).exits(0);
    world.egressguard(&["refresh"]).exits(0);
    applied_counts(&world);
    is_over();

    begin();
    world.egressguard(&["restore"]).exits(0);
    applied_counts(&world);
    is_over();

    // A boot knows nothing of it.
    begin();
    world.nft(&["delete", "table", "inet", "egressguard"]).exits(0);
    world.egressguard(&["refresh", "--repair"]);
    applied_counts(&world);

    begin();
    world.egressguard(&["remove", "--yes"]).exits(0);
    passes(world.tcp(STRANGER_V4, 4444));
    passes(world.tcp(API_V4, 443));
    // Where nothing was applied, a trial falls back to nothing.
    world.egressguard(&["apply", &tried, "--confirm", "5s"]).exits(0).says(&["lets everything pass again"]);
    tried_counts(&world);
    within_seconds(7, "the kernel falls back", || world.tcp(API_V4, 443).answered());
    passes(world.tcp(LATER_V4, 8443));
    world.egressguard(&["refresh", "--repair"]).says(&["nobody confirmed"]);
    assert_eq!(world.rules(), None);
}

#[test]
fn no_packet_passes_in_the_hand_over_that_neither_policy_allows() {
    let Some(world) = World::new() else { return };
    let [applied, tried] = policies(&world);
    world.egressguard(&["apply", &applied]).exits(0);
    let (ends, attempts) = (AtomicBool::new(false), std::sync::atomic::AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    // To neither of the two places, and to each of them by a port that neither allows.
                    for (address, port) in [(LATER_V4, 443), (STRANGER_V4, 443), (API_V4, 4444), (STRANGER_V4, 22)] {
                        let seen = world.tcp(address, port);
                        assert!(!seen.answered(), "{address}:{port} answered");
                        attempts.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        for _ in 0..3 {
            world.egressguard(&["apply", &tried, "--confirm", "5s"]).exits(0);
            tried_counts(&world);
            within_seconds(7, "the kernel falls back", || world.tcp(API_V4, 443).answered());
            world.egressguard(&["refresh"]).says(&["nobody confirmed"]);
            applied_counts(&world);
        }
        world.egressguard(&["apply", &tried, "--confirm", "10m"]).exits(0);
        world.egressguard(&["confirm"]).exits(0);
        tried_counts(&world);
        ends.store(true, Ordering::Relaxed);
    });
    assert!(attempts.load(Ordering::Relaxed) > 500, "{attempts:?} attempts");
}

#[test]
fn whoever_is_killed_while_he_begins_a_trial_leaves_the_old_rules_or_a_trial_that_ends() {
    let Some(world) = World::new() else { return };
    let [applied, tried] = policies(&world);
    world.egressguard(&["apply", &applied]).exits(0);
    for after in [2, 6, 10, 14, 18, 24, 30, 40] {
        let mut child = world.egressguard_started(&["apply", &tried, "--confirm", "5s"]);
        std::thread::sleep(Duration::from_millis(after));
        let _ = child.kill();
        let _ = child.wait();
        assert!(world.tcp(API_V4, 443).answered() != world.tcp(STRANGER_V4, 4444).answered(), "one of the two counts");
    }
    within_seconds(8, "the kernel falls back", || world.tcp(API_V4, 443).answered());
    applied_counts(&world);
    world.egressguard(&["refresh", "--repair"]).exits(0);
    applied_counts(&world);
    world.egressguard(&["verify"]).exits(0);
}

#[test]
fn what_cannot_be_tried_is_refused_and_changes_nothing() {
    let Some(world) = World::new() else { return };
    let [applied, tried] = policies(&world);
    world.egressguard(&["apply", &applied]).exits(0);
    for wrong in ["0s", "1s", "2h", "soon", "60"] {
        world.egressguard(&["apply", &tried, "--confirm", wrong]).exits(2).says(&["--confirm", "60s"]);
    }
    world.egressguard(&["apply", &tried, "--confirm", "60s", "--dry-run"]).exits(2);
    world.egressguard(&["apply", &tried, "--confirm", "60s", "--backend", "iptables"]).exits(3).says(&["iptables cannot fall back"]);
    // A session that the policy would not let in again is warned, and not refused: the trial ends by itself.
    let locked = tried.replace("tried.yaml", "locked.yaml");
    std::fs::write(&locked, "version: 1\n").unwrap();
    let connection = format!("{GATEWAY_V4} 50000 {HOST_V4} 22");
    world.egressguard_by_ssh(&connection, &["apply", &locked]).exits(3);
    world.egressguard_by_ssh(&connection, &["apply", &locked, "--confirm", "5s"]).exits(0).says(&["it ends by itself"]);
    within_seconds(7, "the kernel falls back", || world.tcp(API_V4, 443).answered());
    applied_counts(&world);
}

#[test]
fn a_first_trial_falls_back_to_the_lockdown_that_a_boot_has_loaded() {
    let Some(world) = World::new() else { return };
    let [applied, _] = policies(&world);
    world.egressguard(&["restore"]).exits(0);
    is_refused(world.tcp(API_V4, 443));
    world.egressguard(&["apply", &applied, "--confirm", "5s"]).exits(0).says(&["falls back to lockdown"]);
    passes(world.tcp(API_V4, 443));
    within_seconds(7, "the kernel falls back", || !world.tcp(API_V4, 443).answered());
    is_refused(world.tcp(STRANGER_V4, 4444));
    world.egressguard(&["refresh", "--repair"]).exits(0).says(&["nobody confirmed"]);
    is_refused(world.tcp(API_V4, 443));
    is_refused(world.tcp(STRANGER_V4, 4444));
    world.egressguard(&["apply", &applied, "--confirm", "10m"]).exits(0);
    world.egressguard(&["rollback"]).exits(0).says(&["lockdown counts"]);
    is_refused(world.tcp(API_V4, 443));
}

#[test]
fn a_host_that_is_cut_off_during_its_first_trial_stays_so_when_the_trial_ends() {
    let Some(world) = World::new() else { return };
    let [applied, _] = policies(&world);
    world.egressguard(&["apply", &applied, "--confirm", "6s"]).exits(0);
    world.egressguard(&["quarantine"]).exits(3).says(&["the kernel has cut the host off all the same"]);
    is_refused(world.tcp(API_V4, 443));
    std::thread::sleep(Duration::from_secs(7));
    for (address, port) in [(API_V4, 443), (STRANGER_V4, 4444)] {
        is_refused(world.tcp(address, port));
    }
    world.egressguard(&["status"]).exits(1).says(&["quarantined the whole host", "no longer: what was there before counts"]);
    world.egressguard(&["refresh", "--repair"]).exits(3).says(&["this host is cut off"]);
    world.egressguard(&["rollback"]).exits(3).says(&["--release"]);
    is_refused(world.tcp(STRANGER_V4, 4444));
}

#[test]
fn what_was_confirmed_cut_off_or_replaced_meanwhile_is_not_undone_by_a_trial_that_nobody_forgot() {
    let Some(world) = World::new() else { return };
    let [applied, tried] = policies(&world);
    let file = |name: &str| world.state().join(name);
    world.egressguard(&["apply", &applied]).exits(0);
    world.egressguard(&["apply", &tried, "--confirm", "10m"]).exits(0);
    let note = std::fs::read(file("trial.json")).unwrap();

    // As a second `apply --confirm` leaves it that was killed before it had loaded anything.
    let other = String::from_utf8(note.clone()).unwrap().replacen("\"generation\": 2", "\"generation\": 9", 1);
    std::fs::write(file("trial.json"), other).unwrap();
    world.egressguard(&["confirm"]).exits(1);
    std::fs::write(file("trial.json"), &note).unwrap();

    // As a cut leaves it that was killed before it could name itself.
    let current = std::fs::read(file("current")).unwrap();
    world.egressguard(&["quarantine"]).exits(0);
    std::fs::write(file("current"), &current).unwrap();
    std::fs::write(file("trial.json"), &note).unwrap();
    world.egressguard(&["refresh", "--repair"]);
    is_refused(world.tcp(API_V4, 443));
    is_refused(world.tcp(STRANGER_V4, 4444));
    world.egressguard(&["quarantine", "--release"]).exits(0);
    world.egressguard(&["refresh"]).exits(0);
    applied_counts(&world);

    // As a confirmation leaves it that was killed at its end.
    world.egressguard(&["apply", &tried, "--confirm", "10m"]).exits(0);
    let note = std::fs::read(file("trial.json")).unwrap();
    world.egressguard(&["confirm"]).exits(0);
    for command in [&["refresh", "--repair"][..], &["rollback"], &["verify"]] {
        std::fs::write(file("trial.json"), &note).unwrap();
        world.egressguard(command);
        tried_counts(&world);
    }
    let _ = std::fs::remove_file(file("trial.json"));
    world.egressguard(&["verify"]).exits(0).says(&["policy `tried`"]);
    world.nft(&["delete", "table", "inet", "egressguard"]).exits(0);
    world.egressguard(&["restore"]).exits(0).says(&["policy `tried`"]);
}
