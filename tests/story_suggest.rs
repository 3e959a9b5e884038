//! Stories of `suggest`: a host observes, does its work, and gets a policy that allows this work and nothing else.

mod support;

use std::fs;
use std::time::Duration;

use egressguard::demo::attempt::Way;
use serde_json::Value;
use support::{API, API_V4, BEHIND_V4, HOST_V4, LATER_V4, STRANGER_V4, STRANGER_V6, Side, World, is_refused, passes};

/// Numbers that no user of this machine has.
const SOMEBODY: u32 = 4_100_001;
const ANOTHER: u32 = 4_100_002;

fn observe(world: &World, more: &str) -> String {
    let policy = world.policy(&format!("version: 1\nname: backend\nmode: observe\n{more}outbound:\n  - to: {API}\n"));
    world.egressguard(&["apply", &policy]).exits(0);
    policy
}

/// The work: a database for one user, a clock, another port of the API, a machine behind, and a port that serves.
#[track_caller]
fn works(world: &World) {
    assert!(world.connects_as(SOMEBODY, SOMEBODY, STRANGER_V4, 5432));
    assert!(world.connects_as(SOMEBODY, SOMEBODY, STRANGER_V4, 4444));
    passes(world.udp(STRANGER_V6, 123));
    passes(world.tcp(API_V4, 80));
    passes(world.tcp(API_V4, 443));
    passes(world.attempt(Side::Behind, Way::Tcp, STRANGER_V4, 8443));
    passes(world.attempt(Side::Net, Way::Tcp, HOST_V4, 8080));
}

#[test]
fn what_a_host_did_while_it_observed_is_what_it_may_do_under_the_suggested_policy() {
    let Some(mut world) = World::new() else { return };
    world.put_a_machine_behind();
    let observed = observe(&world, "");
    works(&world);
    // Somebody from outside tries a door that nobody opens.
    is_refused(world.attempt(Side::Net, Way::Tcp, HOST_V4, 2323));
    // One part was harvested, and the other is still in the kernel only.
    world.egressguard(&["refresh"]).exits(0);
    assert!(world.connects_as(SOMEBODY, SOMEBODY, STRANGER_V4, 5432));

    let path = format!("{}.new.yaml", observed.trim_end_matches(".yaml"));
    world
        .egressguard(&["suggest", "-o", &path])
        .exits(0)
        .says(&["4 ways out and the way in added", &format!("egressguard diff {observed}")]);
    let text = fs::read_to_string(&path).unwrap();
    for line in [
        "mode: enforce",
        "It is applied since ",
        "New: `inbound`, 1 packet",
        &format!("- to: {API}  # "),
        &format!("- to: {STRANGER_V4}  # 3 packets"),
        &format!("port: [4444, 5432]\n    protocol: tcp\n    for: {{uid: {SOMEBODY}}}"),
        &format!("from {BEHIND_V4}"),
        &format!("- to: \"{STRANGER_V6}\"  # 1 packet"),
        "port: 80\n    protocol: tcp\n    for: {user: root}",
        "- 1 packet to a port where nothing listens",
    ] {
        assert!(text.contains(line), "`{line}` is missing:\n{text}");
    }
    assert_eq!(
        world.egressguard(&["suggest"]).exits(0).stdout.replace(|c: char| c.is_ascii_digit(), ""),
        text.replace(|c: char| c.is_ascii_digit(), "")
    );
    world.egressguard(&["check", &path]).exits(0);
    // The way in stays open for the session that this might be: what is new in it is seen first.
    world.egressguard(&["diff", &observed, &path]).exits(1).says(&["narrows"]);
    // Times are whole seconds: what was seen in that of the apply counts as seen under the new policy.
    std::thread::sleep(Duration::from_millis(1100));
    world.egressguard(&["apply", &path]).exits(0);

    works(&world);
    // And nothing else.
    assert!(!world.connects_as(ANOTHER, ANOTHER, STRANGER_V4, 5432));
    assert!(!world.connects_as(SOMEBODY, SOMEBODY, STRANGER_V4, 443));
    is_refused(world.udp(STRANGER_V4, 53));
    is_refused(world.tcp(LATER_V4, 80));
    is_refused(world.attempt(Side::Behind, Way::Tcp, STRANGER_V4, 4444));
    is_refused(world.attempt(Side::Net, Way::Tcp, HOST_V4, 8443));
    is_refused(world.attempt(Side::Net, Way::Tcp, HOST_V4, 22));

    // What was seen before is allowed by now, and what is refused now is said to be refused by a policy that enforces.
    let nothing: Value = serde_json::from_str(&world.egressguard(&["suggest", "--json"]).exits(1).stdout).unwrap();
    assert_eq!(nothing["covered"], 0, "what was seen under the policy before is not asked about: {nothing}");
    let answer = world.egressguard(&["suggest", "--since", "1h", "--json"]).exits(1).says(&["the applied policy enforces"]);
    assert!(answer.stdout.contains("seen under an earlier one"), "{}", answer.stdout);
    let answer: Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!(answer["schema"], "egressguard.suggest/1");
    assert!(answer["covered"].as_u64().unwrap() >= 7, "{answer}");
    let added: Vec<&str> = answer["added"].as_array().unwrap().iter().filter_map(|added| added["to"].as_str()).collect();
    assert!(added.contains(&STRANGER_V4) && !added.contains(&STRANGER_V6), "{answer}");
}

#[test]
fn an_address_becomes_the_name_that_the_user_thinks_of() {
    let Some(mut world) = World::new() else { return };
    observe(&world, "");
    world.nameserver.set("db.example.com", &[LATER_V4]).unwrap();
    passes(world.tcp(LATER_V4, 443));
    world.egressguard(&["suggest"]).exits(0).says(&[&format!("- to: {LATER_V4}"), "write the name"]);
    let named = world.egressguard(&["suggest", "--name", "db.example.com", "--name", "nobody.example.com"]).exits(0);
    assert!(named.stdout.contains("- to: db.example.com  # ") && !named.stdout.contains(&format!("to: {LATER_V4}")), "{}", named.stdout);
    assert!(named.stderr.contains("`nobody.example.com` has no address now"), "{}", named.stderr);
    // Destinations of one user on one port are one way out, names and addresses together, each with its own remark.
    passes(world.tcp(STRANGER_V4, 443));
    passes(world.tcp(STRANGER_V4, 443));
    world.egressguard(&["suggest", "--name", "db.example.com"]).exits(0).says(&[
        "1 way out to 2 destinations added",
        "  - to:\n",
        "      - db.example.com  # 1 packet, last ",
        &format!("      - {STRANGER_V4}  # 2 packets, last "),
        "    port: 443\n    protocol: tcp\n    for: {user: root}\n",
    ]);
    world.egressguard(&["suggest", "--name", "192.0.2.1"]).exits(2).says(&["no name of a host"]);
    world.egressguard(&["suggest", "--since", "yesterday"]).exits(2);
}

#[test]
fn a_policy_is_suggested_only_where_one_is_applied_and_its_own_tests_hold_under_it() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["suggest"]).exits(3).says(&["no policy is applied", "mode: observe"]);
    observe(&world, &format!("tests:\n  - deny: tcp to {STRANGER_V4}:4444\n"));
    world.egressguard(&["suggest"]).exits(0).says(&["0 ways out added"]);
    passes(world.tcp(STRANGER_V4, 4444));
    passes(world.tcp(STRANGER_V4, 443));
    let answer = world.egressguard(&["suggest"]).exits(1).says(&["1 way out added", "the policy's own test at line 5 denies it"]);
    assert!(!answer.stdout.contains("port: 4444"), "{}", answer.stdout);
}

#[test]
fn what_is_written_to_is_not_replaced_where_it_is_no_file() {
    let Some(world) = World::new() else { return };
    let observed = observe(&world, "");
    let directory = std::path::Path::new(&observed).parent().unwrap();
    let at = |name: &str| directory.join(name).display().to_string();
    // A device of our own, with the numbers of the one that everybody has.
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    nix::sys::stat::mknod(directory.join("null").as_path(), nix::sys::stat::SFlag::S_IFCHR, mode, nix::sys::stat::makedev(1, 3)).unwrap();
    world.egressguard(&["suggest", "-o", &at("null")]).exits(0);
    let kind = fs::metadata(directory.join("null")).unwrap().file_type();
    assert!(std::os::unix::fs::FileTypeExt::is_char_device(&kind));
    // A link stays one.
    fs::write(directory.join("target.yaml"), "").unwrap();
    std::os::unix::fs::symlink("target.yaml", directory.join("link.yaml")).unwrap();
    world.egressguard(&["suggest", "-o", &at("link.yaml")]).exits(0);
    assert!(fs::symlink_metadata(directory.join("link.yaml")).unwrap().is_symlink());
    assert!(fs::read_to_string(directory.join("target.yaml")).unwrap().contains("mode: enforce"));
    assert!(world.egressguard(&["suggest", "-o", "-"]).exits(0).stdout.contains("mode: enforce"));
    world.egressguard(&["suggest", "-o", &at("nowhere/x.yaml")]).exits(3).says(&["cannot write"]);
}
