//! Stories of bad days: rights that are missing, disks that are full, other people's rules, two runs at once.

mod support;

use std::process::Command;

use support::{API, API_V4, LATER_V4, STRANGER_V4, World, is_refused, passes};

const DEFAULT: &[&str] = &["apply", "builtin:openai"];
const FOREIGN: &str = "table inet other {\n  set friends { type ipv4_addr; elements = { 192.0.2.7 } }\n  \
     chain input { type filter hook input priority 10; policy accept; ip saddr @friends counter accept; }\n}\n\
     table ip nat {\n  chain prerouting { type nat hook prerouting priority -100; }\n}\n";

#[test]
fn other_peoples_tables_are_never_touched() {
    let Some(world) = World::new() else { return };
    world.nft_load(FOREIGN);
    let foreign =
        || [["inet", "other"], ["ip", "nat"]].map(|[family, table]| world.nft(&["-a", "list", "table", family, table]).exits(0).stdout);
    let before = foreign();
    for command in [DEFAULT, &["refresh"], DEFAULT, &["restore"], &["remove", "--yes"]] {
        world.egressguard(command).exits(0);
        assert_eq!(foreign(), before, "{command:?}");
    }
}

#[test]
fn a_table_of_our_name_that_is_not_ours_is_left_alone() {
    let Some(world) = World::new() else { return };
    world.nft_load("table inet egressguard {\n  chain mine { type filter hook input priority 5; policy accept; }\n}\n");
    let before = world.nft(&["-a", "list", "ruleset"]).stdout;
    for command in [DEFAULT, &["remove", "--yes"], &["restore"]] {
        world.egressguard(command).exits(3).says(&["egressguard", "not"]);
        assert_eq!(world.nft(&["-a", "list", "ruleset"]).stdout, before, "{command:?}");
    }
}

#[test]
fn a_foreign_flush_is_seen_and_the_next_apply_heals() {
    let Some(world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    let rules = world.rules();
    world.nft(&["flush", "ruleset"]).exits(0);
    passes(world.tcp(STRANGER_V4, 443));
    world.egressguard(&["status"]).exits(1);
    world.egressguard(DEFAULT).exits(0);
    is_refused(world.tcp(STRANGER_V4, 443));
    let heading = |rules: &Option<String>| rules.as_deref().map(|text| text.matches("chain ").count());
    assert_eq!(heading(&world.rules()), heading(&rules));
}

#[test]
fn without_the_right_to_change_the_packet_filter_it_says_which_right_is_missing() {
    let Some(world) = World::new() else { return };
    let without = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
    for command in [DEFAULT, &["restore"], &["status"]] {
        world.egressguard_through(&without, command).exits(3).says(&["CAP_NET_ADMIN", "help:"]);
    }
    assert_eq!(world.rules(), None);
}

#[test]
fn a_user_that_does_not_exist_is_named_with_its_line_and_nothing_changes() {
    let Some(world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    let generation = world.generation();
    let policy = world.policy(&format!(
        "version: 1\noutbound:\n  - to: {API}\n  - {{to: {STRANGER_V4}, port: 1, protocol: tcp, for: {{user: no-such-user-here}}}}\n"
    ));
    world.egressguard(&["apply", &policy]).exits(3).says(&["no-such-user-here", "policy.yaml:4"]);
    world.egressguard(&["check", &policy]).exits(0);
    assert_eq!(world.generation(), generation);
    passes(world.tls(API_V4));
}

#[test]
fn a_malformed_policy_changes_nothing() {
    let Some(world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    let generation = world.generation();
    for text in ["", "version: 2\n", "version: 1\noutbuond: []\n", "\t", "version: 1\noutbound: [{to: '*.example.com'}]\n"] {
        let policy = world.policy(text);
        world.egressguard(&["apply", &policy]).exits(2).says(&["policy.yaml"]);
    }
    world.egressguard(&["apply", "/nonexistent/policy.yaml"]).exits(3).says(&["/nonexistent/policy.yaml"]);
    world.egressguard(&["apply", "builtin:opnai"]).exits(2).says(&["builtin:openai"]);
    assert_eq!(world.generation(), generation);
}

#[test]
fn a_policy_that_fails_its_own_tests_is_not_applied() {
    let Some(world) = World::new() else { return };
    let policy = world.policy(&format!("version: 1\noutbound:\n  - to: {API}\ntests:\n  - allow: tcp to {STRANGER_V4}:443\n"));
    world.egressguard(&["apply", &policy]).exits(1).says(&["test", STRANGER_V4]);
    assert_eq!(world.rules(), None);
}

#[test]
fn a_read_only_state_directory_stops_an_apply_before_the_kernel_is_changed() {
    let Some(world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    let rules = world.rules();
    let mount = format!("mount --bind {0} {0} && mount -o remount,bind,ro {0} && exec \"$0\" \"$@\"", world.state().display());
    let read_only = ["unshare", "-m", "--", "sh", "-c", &mount];
    let policy = world.policy(&format!("version: 1\noutbound:\n  - {{to: {STRANGER_V4}, port: 4444, protocol: tcp}}\n"));
    world.egressguard_through(&read_only, &["apply", &policy]).exits(3).says(&[&world.state().display().to_string(), "help:"]);
    assert_eq!(world.rules(), rules);
    is_refused(world.tcp(STRANGER_V4, 4444));
    // What was saved can still be restored from it.
    world.nft(&["delete", "table", "inet", "egressguard"]).exits(0);
    world.egressguard_through(&read_only, &["restore"]).exits(0);
    assert_eq!(world.rules(), rules);
}

#[test]
fn a_full_disk_stops_an_apply_before_the_kernel_is_changed() {
    let Some(world) = World::new() else { return };
    std::fs::create_dir_all(world.state()).expect("a directory can be made");
    let mount =
        format!("mount -t tmpfs -o size=4k none {0} && head -c 4096 /dev/zero > {0}/filler; exec \"$0\" \"$@\"", world.state().display());
    world.egressguard_through(&["unshare", "-m", "--", "sh", "-c", &mount], DEFAULT).exits(3).says(&["help:"]);
    assert_eq!(world.rules(), None);
}

#[test]
fn two_applies_at_once_both_succeed_and_the_kernel_holds_one_of_them() {
    let Some(world) = World::new() else { return };
    let policy =
        world.policy(&format!("version: 1\nname: other\noutbound:\n  - to: {API}\n  - {{to: {STRANGER_V4}, port: 4444, protocol: tcp}}\n"));
    let runs = [DEFAULT, &["apply", &policy], DEFAULT, &["apply", &policy]].map(|command| world.egressguard_started(command));
    for run in runs {
        let output = run.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }
    passes(world.tls(API_V4));
    world.egressguard(&["status"]).exits(0);
}

#[test]
fn an_apply_that_is_killed_anywhere_leaves_the_old_rules_or_the_new() {
    let Some(world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    let policy =
        world.policy(&format!("version: 1\nname: other\noutbound:\n  - to: {API}\n  - {{to: {STRANGER_V4}, port: 4444, protocol: tcp}}\n"));
    for round in 0..20 {
        let command: &[&str] = if round % 2 == 0 { &["apply", &policy] } else { DEFAULT };
        let mut run = world.egressguard_started(command);
        std::thread::sleep(std::time::Duration::from_millis(7 * round));
        let _ = run.kill();
        run.wait().expect("our own child");
        passes(world.tls(API_V4));
        is_refused(world.tcp(STRANGER_V4, 22));
        let words = world.egressguard(&["status"]);
        assert!([0, 1].contains(&words.code), "{}", words.words());
    }
    world.egressguard(DEFAULT).exits(0);
    is_refused(world.tcp(STRANGER_V4, 4444));
    world.egressguard(&["status"]).exits(0);
}

#[test]
fn an_interface_that_vanishes_and_comes_back_finds_the_same_rules() {
    let Some(world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    let rules = world.rules();
    world.ip(support::Side::Host, "link del uplink");
    assert_eq!(world.rules(), rules);
    world.egressguard(&["refresh"]).exits(0);
    world.egressguard(DEFAULT).exits(0);
    assert_eq!(world.addresses("tcp_443_v4"), [API_V4]);
}

#[test]
fn a_namespace_that_does_not_exist_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_egressguard"))
        .args(["apply", "builtin:openai", "--netns", "no-such-namespace-here", "--state-dir", "/nonexistent/egressguard"])
        .output()
        .expect("the program runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("no-such-namespace-here"), "{said}");
}

#[test]
fn a_foreign_change_between_reading_and_committing_loses_nothing() {
    let Some(mut world) = World::new() else { return };
    world.nft_load(FOREIGN);
    world.egressguard(DEFAULT).exits(0);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let meddler = scope.spawn(|| {
            let mut element = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                element = (element + 1) % 250;
                world.nft(&["add", "element", "inet", "other", "friends", &format!("{{ 198.18.1.{element} }}")]).exits(0);
                std::thread::sleep(std::time::Duration::from_millis(40));
            }
        });
        for round in 0..6 {
            let policy = world.policy(&format!("version: 1\nname: round-{round}\noutbound:\n  - to: {API}\n"));
            world.egressguard(&["apply", &policy]).exits(0);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        meddler.join().expect("the meddler ends");
    });
    assert!(world.nft(&["list", "set", "inet", "other", "friends"]).stdout.contains("198.18.1.1"));
    world.nameserver.set(API, &[LATER_V4]).expect("the name server starts");
    world.egressguard(&["refresh"]).exits(0);
    passes(world.tls(LATER_V4));
}
