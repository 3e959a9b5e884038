//! Stories of the cut: a host that is cut off at once, stays so over everything that runs by itself, and is let go by whoever says so.

mod support;

use std::fs;
use std::io::ErrorKind;

use support::stream::Stream;
use support::{API, API_V4, API_V6, GATEWAY_V4, HOST_V4, STRANGER_V4, STRANGER_V6, Side, World, eventually, is_refused, passes};

/// A port that nobody serves, so that a stream can have both ends.
const PORT: u16 = 7777;
/// The port of management.
const CONSOLE: u16 = 2222;
/// A number that no user of this machine has.
const SOMEBODY: u32 = 4_100_003;

fn policy(world: &World, more: &str) -> String {
    world.policy(&format!(
        "version: 1\ninbound: {{port: 443}}\noutbound:\n  - to: {API}\n  - {{to: \"{API_V4}\", port: {PORT}, protocol: tcp}}\n\
         management: {{port: {CONSOLE}, from: [{GATEWAY_V4}]}}\n{more}"
    ))
}

fn evidence(world: &World) -> Vec<String> {
    let names = fs::read_dir(world.state()).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("evidence-")).collect()
}

#[test]
fn a_host_that_is_cut_off_keeps_its_management_and_nothing_else_until_it_is_released() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", &policy(&world, "")]).exits(0);
    let stream = Stream::open(&world, Side::Host, Side::Net, API_V4, PORT);
    let console = Stream::open(&world, Side::Net, Side::Host, HOST_V4, CONSOLE);

    world.egressguard(&["quarantine", "--dry-run"]).exits(1).says(&[
        "would cut this host off",
        "port 2222 from",
        "would end 1 flow and close 1 socket",
    ]);
    stream.goes_on();

    world.egressguard(&["quarantine"]).exits(0).says(&["cut off since", "port 2222 from", "evidence"]);
    let cut = format!("by `egressguard quarantine`; evidence: {}", evidence(&world)[0]);
    world.egressguard(&["report"]).says(&["the host was cut off at", &cut]);
    // Closed by the command, or by the kernel's reset to what it sent before that.
    let error = stream.error();
    assert!([ErrorKind::ConnectionAborted, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&error), "{error}");
    console.goes_on();
    for address in [API_V4, API_V6] {
        is_refused(world.tls(address));
    }
    world.egressguard(&["status"]).says(&["quarantined the whole host, since", "by `egressguard quarantine`"]);
    world.egressguard(&["explain", "--live", &format!("tcp to {API_V4}:443")]).exits(1).says(&["refuse-out"]);
    world.egressguard(&["verify"]).exits(0).says(&["same"]);

    // Neither the timer, nor a boot, nor another policy, nor a second cut lets it go.
    world.egressguard(&["refresh", "--repair"]).exits(0);
    is_refused(world.tls(API_V4));
    world.nft(&["delete", "table", "inet", "egressguard"]).exits(0);
    world.egressguard(&["restore"]).exits(0);
    is_refused(world.tls(API_V4));
    world.egressguard(&["apply", &policy(&world, "mode: observe\n")]).exits(0).says(&["cut off and stays so"]);
    is_refused(world.tls(API_V4));
    world.egressguard(&["quarantine"]).exits(0).says(&["unchanged: cut off since"]);
    world.egressguard(&["remove", "--yes"]).exits(3).says(&["without rules it would not be", "--release"]);
    console.goes_on();

    // The tests of a policy ask what it says, whoever is cut off.
    world.egressguard(&["apply", &policy(&world, &format!("tests:\n  - allow: tcp to {API}:443\n"))]).exits(0);
    world.egressguard(&["quarantine", "--release"]).exits(0).says(&["released: policy", "counts again"]);
    passes(world.tls(API_V4));
    world.egressguard(&["quarantine", "--release"]).exits(0).says(&["unchanged: nobody is cut off"]);
    world.egressguard(&["status"]).exits(0);
    let told = world.egressguard(&["report", "--json"]).stdout;
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let what: Vec<&str> = told["cuts"].as_array().unwrap().iter().filter_map(|cut| cut["what"].as_str()).collect();
    assert_eq!(what, ["cut", "release"], "what changed nothing is not told");
    world.egressguard(&["report", "--check-journal"]).exits(0);
}

#[test]
fn the_evidence_says_who_had_what_open_at_the_moment_of_the_cut() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", &policy(&world, "")]).exits(0);
    let _stream = Stream::open(&world, Side::Host, Side::Net, API_V4, PORT);
    is_refused(world.tcp(STRANGER_V4, 4444));
    world.egressguard(&["quarantine"]).exits(0);
    let files = evidence(&world);
    let [file] = files.as_slice() else { panic!("{files:?}") };
    let evidence: serde_json::Value = serde_json::from_slice(&fs::read(world.state().join(file)).unwrap()).unwrap();
    assert_eq!(evidence["schema"], "egressguard.evidence/1");
    let remote = format!("{API_V4}:{PORT}");
    let socket = evidence["sockets"].as_array().unwrap().iter().find(|socket| socket["remote"] == remote.as_str()).unwrap();
    // The stream is held by this test.
    assert_eq!(socket["pid"], std::process::id(), "{socket}");
    let processes = evidence["processes"].as_array().unwrap();
    assert!(processes.iter().any(|process| process["pid"] == std::process::id() && process["command"].as_str().is_some()));
    assert!(evidence["flows"].as_array().unwrap().iter().any(|flow| flow["to"] == remote.as_str()), "{}", evidence["flows"]);
    assert!(evidence["rules"].as_str().unwrap().contains("table inet egressguard"));
    assert!(evidence["counted"]["ledger_user_v4"].to_string().contains("4444"), "{}", evidence["counted"]);
    assert!(evidence["pins"][API].as_array().unwrap().iter().any(|address| address == API_V4));
    assert_eq!(evidence["unseen"], serde_json::json!([]));
}

#[test]
fn whoever_would_cut_off_his_own_session_is_asked_to_say_so() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", &world.policy(&format!("version: 1\ninbound: {{port: 443}}\noutbound:\n  - to: {API}\n"))]).exits(0);
    let ssh = format!("{GATEWAY_V4} 50000 {HOST_V4} 443");
    world.egressguard_by_ssh(&ssh, &["quarantine"]).exits(3).says(&["this session comes from", "a host that is cut off", "--force"]);
    passes(world.tls(API_V4));
    world.egressguard_by_ssh(&ssh, &["quarantine", "--force"]).exits(0).says(&["only a console reaches this host now"]);
    is_refused(world.tls(API_V4));
}

#[test]
fn a_disk_that_takes_nothing_keeps_nobody_from_the_cut() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", &policy(&world, "")]).exits(0);
    let mount = format!("mount --bind {0} {0} && mount -o remount,bind,ro {0} && exec \"$0\" \"$@\"", world.state().display());
    world
        .egressguard_through(&["unshare", "--mount", "sh", "-c", &mount], &["quarantine"])
        .exits(3)
        .says(&["the kernel has cut the host off all the same", "a boot would not know of it"]);
    is_refused(world.tls(API_V4));
    world.egressguard(&["status"]).says(&["quarantined the whole host, until it is released"]);
    world.egressguard(&["refresh", "--repair"]);
    is_refused(world.tls(API_V4));
    world.egressguard(&["quarantine", "--release"]).exits(0).says(&["released"]);
    passes(world.tls(API_V4));
}

#[test]
fn one_user_whom_the_rules_have_cut_off_is_released_alone() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", &policy(&world, "violations:\n  quarantine: {after: 3, within: 1m, for: 1h, scope: user}\n")]).exits(0);
    let tries = |uid: u32| world.connects_as(uid, uid, API_V4, 443);
    assert!(tries(SOMEBODY));
    for uid in [SOMEBODY, SOMEBODY + 1] {
        eventually("he is cut off", || {
            world.connects_as(uid, uid, STRANGER_V4, 4444);
            !tries(uid)
        });
    }
    world.egressguard(&["status"]).says(&[
        &format!("uid {SOMEBODY}"),
        "since 20",
        "over 3 refusals within 1m",
        &format!("uid {}", SOMEBODY + 1),
    ]);
    world.egressguard(&["quarantine", "--release", "uid", &SOMEBODY.to_string()]).exits(0).says(&["may do again what the policy allows"]);
    assert!(tries(SOMEBODY) && !tries(SOMEBODY + 1));
    world.egressguard(&["quarantine", "--release", "uid", &SOMEBODY.to_string()]).exits(0).says(&["is not cut off"]);
    world.egressguard(&["quarantine", "--release"]).exits(0).says(&["released"]);
    assert!(tries(SOMEBODY + 1));
    for wrong in [
        &["quarantine", "--release", "user", "no-such-user"][..],
        &["quarantine", "--release", "uid", "x"],
        &["quarantine", "user", "root"],
    ] {
        world.egressguard(wrong).exits(2);
    }
}

#[test]
fn without_a_policy_there_is_nothing_to_cut_with_and_that_is_said() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["quarantine"]).exits(3).says(&["no policy is applied here", "builtin:lockdown"]);
    assert_eq!(world.rules(), None);
}

/// A policy that only observes lets everything pass at the end of its rules, and cuts off all the same.
#[test]
fn a_host_that_only_observes_is_cut_off_by_the_kernels_set_too() {
    let Some(world) = World::new() else { return };
    let observing = policy(&world, "mode: observe\n");
    world.egressguard(&["apply", &observing]).exits(0);
    passes(world.tcp(STRANGER_V4, 4444));
    let stream = Stream::open(&world, Side::Host, Side::Net, API_V4, PORT);
    // Another command holds the lock and hangs.
    let lock = fs::File::create(world.state().join("lock")).unwrap();
    lock.lock().unwrap();
    world.egressguard(&["quarantine"]).exits(3).says(&["holds the lock", "the kernel has cut the host off all the same"]);
    for seen in [world.tcp(STRANGER_V4, 4444), world.udp(STRANGER_V6, 123), world.tcp(API_V4, 443)] {
        is_refused(seen);
    }
    assert_ne!(stream.error(), ErrorKind::WouldBlock, "what was open is refused, too");
    world.egressguard(&["status"]).says(&["quarantined the whole host"]);
    world.egressguard(&["verify"]).exits(0);
    drop(lock);
    // Neither another policy nor a removal lets it go.
    world.egressguard(&["apply", &policy(&world, "mode: observe\nhost: {ping: true}\n")]).exits(0);
    is_refused(world.tcp(STRANGER_V4, 4444));
    world.egressguard(&["remove", "--yes"]).exits(3).says(&["without rules it would not be", "--release"]);
    is_refused(world.tcp(STRANGER_V4, 4444));
    world.egressguard(&["quarantine", "--release"]).exits(0);
    passes(world.tcp(STRANGER_V4, 4444));
}

#[test]
fn whom_the_kernels_set_holds_is_released_whatever_the_state_is_like() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", &policy(&world, "")]).exits(0);
    let whole = fs::read(world.state().join("policy-1.yaml")).unwrap();
    fs::write(world.state().join("policy-1.yaml"), "junk").unwrap();
    world.egressguard(&["quarantine"]).exits(3).says(&["the kernel has cut the host off all the same"]);
    is_refused(world.tls(API_V4));
    world.egressguard(&["quarantine", "--release"]).exits(3).says(&["whom the kernel's sets held is released"]);
    passes(world.tls(API_V4));
    fs::write(world.state().join("policy-1.yaml"), whole).unwrap();
    let answer = world.egressguard(&["quarantine", "--dry-run", "--json"]).exits(1);
    let answer: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!((&answer["cut_off"], answer["would"]["flows"].is_u64()), (&false.into(), true), "{answer}");
}
