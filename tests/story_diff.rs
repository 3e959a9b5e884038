//! Stories of `diff` against a kernel: what it holds is lifted, and its addresses are names again.

mod support;

use support::{API, API_V4, LATER_V4, LATER_V6, NEIGHBOUR_V4, World};

const POLICY: &str = "version: 1
inbound: {port: 443}
outbound:
  - to: api.openai.com
  - id: absent
    to: absent.example.com
  - id: db
    to: [10.20.0.0/16, 10.30.0.7]
    port: 5432
    for: {uid: 1234}
  - id: unit
    to: 10.20.0.0/16
    port: 80
    for: {service: no-such-unit}
host: {ntp: [api.openai.com]}
tests: [{allow: in tcp to :443}]
";

#[test]
fn the_kernel_holds_what_was_applied_whatever_dns_says() {
    let Some(mut world) = World::new() else { return };
    let policy = world.policy(POLICY);
    // One name has no address: the answer of `apply` is no.
    world.egressguard(&["apply", &policy]).exits(1);
    world.egressguard(&["diff", &policy]).exits(0).says(&["same"]);
    world.nameserver.set(API, &[LATER_V4, LATER_V6]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    world.egressguard(&["refresh"]).exits(1);
    world.egressguard(&["diff", &policy]).exits(0).says(&["same"]);
    // A name of one family only.
    world.nameserver.set(API, &[API_V4]).unwrap();
    world.egressguard(&["refresh"]).exits(1);
    world.egressguard(&["diff", &policy]).exits(0).says(&["same"]);
}

#[test]
fn a_policy_that_is_not_applied_yet_is_told_from_the_one_that_is() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", "builtin:openai"]).exits(0);
    let policy = world.policy("version: 1\nrefresh: {keep: 7d}\noutbound:\n  - to: api.openai.com\n  - to: eu.api.openai.com\n");
    let told = world.egressguard(&["diff", &policy]).exits(1);
    let told = told.says(&["the kernel ->", "widens 3, narrows 2", "tcp to eu.api.openai.com:443", "in tcp", "refresh.keep: 1d, now 7d"]);
    // The line of the applied policy is known.
    assert!(told.stdout.contains("allowed by `inbound` (the kernel:"), "{}", told.stdout);
    world.egressguard(&["diff", &policy, "--fail-on", "widens"]).exits(1);
    world.egressguard(&["diff", "builtin:lockdown", "--fail-on", "widens"]).exits(0).says(&["narrows"]);
}

#[test]
fn without_memory_the_comments_say_what_addresses_stand_for() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", "builtin:openai"]).exits(0);
    std::fs::remove_dir_all(world.state()).unwrap();
    world.egressguard(&["diff", "builtin:openai"]).exits(0).says(&["same", "comments say"]);
}

#[test]
fn what_somebody_else_put_into_our_table_is_seen() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", "builtin:openai"]).exits(0);
    let hidden = format!("add element inet egressguard tcp_443_v4 {{ {NEIGHBOUR_V4} timeout 1h comment \"api.openai.com\" }}\n");
    world.nft_load(&hidden);
    world.egressguard(&["diff", "builtin:openai"]).exits(1).says(&["narrows 2", &format!("tcp to {NEIGHBOUR_V4}:443")]);
    world.nft_load("insert rule inet egressguard output tcp dport 25 accept comment \"mail\"\n");
    world.egressguard(&["diff", "builtin:openai"]).exits(1).says(&["narrows 3", "allowed by `mail` before", ":25"]);
    world.nft_load("insert rule inet egressguard output meta priority 1 accept\n");
    world.egressguard(&["diff", "builtin:openai"]).exits(3).says(&[
        "not all of them are understood",
        "rule 1 of chain `output`",
        "--repair",
    ]);
}

#[test]
fn a_pin_that_was_taken_out_is_no_longer_allowed() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", "builtin:openai"]).exits(0);
    world.nft_load(&format!("delete element inet egressguard tcp_443_v4 {{ {API_V4} }}\n"));
    world.egressguard(&["diff", "builtin:openai"]).exits(1).says(&["widens 2", "tcp to api.openai.com:443 (over IPv4)"]);
}

#[test]
fn a_kernel_without_our_rules_allows_everything() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["diff", "builtin:openai"]).exits(1).says(&["no rules of egressguard", "widens 0", "narrows"]);
    world.nft_load("table inet egressguard { }\n");
    world.egressguard(&["diff", "builtin:openai"]).exits(3).says(&["did not make"]);
}
